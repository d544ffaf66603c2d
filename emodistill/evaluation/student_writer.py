"""The student as a writer that answers live dialogues, several at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from emodistill.errors import InputError
from emodistill.evaluation.methods import TrainedAdapter
from emodistill.llm.replies import spoken
from emodistill.llm.usage import Completion
from emodistill.model import (
    EngineWorker,
    Generated,
    GenerationRequest,
    decode_reply,
    encode_chat,
    stop_ids,
)
from emodistill.negotiation.writers import EmptyReplyError
from emodistill.seeding import derive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from emodistill.prompts import Message


@dataclass(frozen=True, slots=True)
class StudentWriter:
    """A local model as a writer: prompts are answered side by side, and join while others are
    being answered.

    A reply depends on its own prompt and seed alone, never on which prompts it shares the engine
    with (see `model.Engine`).
    """

    worker: EngineWorker[TrainedAdapter | None]
    """Whoever generates, in a thread: dialogues with API models go on meanwhile."""
    adapter: TrainedAdapter | None
    """Which of its engines; None for the base."""
    tokenizer: PreTrainedTokenizerFast
    _: KW_ONLY
    model: str
    temperature: float
    max_reply_tokens: int
    max_prompt_tokens: int
    """Longer prompts don't fit the window; `fits` tells the caller, who drops the oldest turns."""

    @property
    def provider(self) -> str:
        return ""

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether the prompt leaves room for a reply."""
        return len(encode_chat(self.tokenizer, messages)) <= self.max_prompt_tokens

    async def reply(
        self, messages: Sequence[Message], *, dialogue_id: str, seed: int
    ) -> Completion:
        """The student's next utterance; an empty one is asked for again, once.

        One that is longer than `max_reply_tokens` goes on to double that, as far as the window has
        room; what is cut there stays, with the finish reason `length`.

        Raises:
          InputError: the prompt doesn't fit the window.
          EmptyReplyError: two empty replies.
          GenerationFailedError: the engine has failed.
        """
        ids = encode_chat(self.tokenizer, messages)
        if len(ids) > self.max_prompt_tokens:
            raise InputError(
                f"{dialogue_id}: the prompt has {len(ids)} tokens, the window leaves room for "
                f"{self.max_prompt_tokens} even without any history; shorten the prompt pack."
            )
        started_s = time.monotonic()
        turn_seed = derive(seed, "turn", messages[-1]["content"])
        has_double_room = len(ids) + self.max_reply_tokens <= self.max_prompt_tokens
        num_tokens = 0
        for next_seed in (turn_seed, derive(turn_seed, "after an empty reply")):
            generated = await self._generated(
                GenerationRequest(
                    ids,
                    max_new_tokens=self.max_reply_tokens * (2 if has_double_room else 1),
                    temperature=self.temperature,
                    seed=next_seed,
                    stop_ids=frozenset(stop_ids(self.tokenizer)),
                )
            )
            num_tokens += len(generated.ids)
            text = spoken(decode_reply(self.tokenizer, generated.ids))
            if text.strip():
                elapsed_s = time.monotonic() - started_s
                reason = generated.finish_reason
                return Completion(text, len(ids), num_tokens, elapsed_s, 0.0, reason)
        raise EmptyReplyError(f"{self.model} said nothing, twice, in {dialogue_id}.")

    async def _generated(self, request: GenerationRequest) -> Generated:
        async with aclosing(self.worker.generate(self.adapter, request)) as progress:
            async for step in progress:
                if step.generated is not None:
                    return step.generated
        raise AssertionError("the engine has ended nothing")
