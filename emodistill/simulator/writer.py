"""The simulated models without the network between: the same dialogues, several times as fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emodistill.llm.usage import Completion
from emodistill.simulator.server import complete, count_tokens


@dataclass(frozen=True, slots=True)
class SimulatedWriter:
    """A simulated model as a writer; the same request gets the same answer as over HTTP.

    An answer that is cut at `max_tokens` is asked for once more with double room, as by
    `ApiWriter`.
    """

    model: str
    temperature: float = 0.7
    max_tokens: int = 256

    @property
    def provider(self) -> str:
        return "simulator"

    def fits(self, messages: Sequence[Mapping[str, str]]) -> bool:
        return True

    async def reply(
        self, messages: Sequence[Mapping[str, str]], *, dialogue_id: str, seed: int
    ) -> Completion:
        return self.answer(messages, seed)

    def answer(self, messages: Sequence[Mapping[str, str]], seed: int) -> Completion:
        """`reply` for whoever can't wait."""
        whole = self._ask(messages, seed, self.max_tokens)
        if whole.finish_reason == "length":
            whole = self._ask(messages, seed, 2 * self.max_tokens).after(whole)
        return whole

    def _ask(self, messages: Sequence[Mapping[str, str]], seed: int, max_tokens: int) -> Completion:
        text, reason = complete(
            self.model,
            messages,
            seed=seed,
            temperature=self.temperature,
            max_tokens=max_tokens,
        )
        return Completion(
            text,
            sum(count_tokens(message["content"]) for message in messages),
            count_tokens(text),
            latency_s=0.0,
            cost_usd=0.0,
            finish_reason=reason,
        )
