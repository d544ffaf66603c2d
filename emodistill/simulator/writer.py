"""The simulated models without the network between, for making pretraining dialogues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emodistill.llm.usage import Completion
from emodistill.simulator.server import complete, count_tokens


@dataclass(frozen=True, slots=True)
class SimulatedWriter:
    """A simulated model as a writer; the same request gets the same answer as over HTTP."""

    model: str
    temperature: float = 0.7

    @property
    def provider(self) -> str:
        return "simulator"

    def fits(self, messages: Sequence[Mapping[str, str]]) -> bool:
        return True

    async def reply(
        self, messages: Sequence[Mapping[str, str]], *, dialogue_id: str, seed: int
    ) -> Completion:
        text, _ = complete(self.model, messages, seed=seed, temperature=self.temperature)
        num_prompt_tokens = sum(count_tokens(message["content"]) for message in messages)
        return Completion(text, num_prompt_tokens, count_tokens(text), latency_s=0.0, cost_usd=0.0)
