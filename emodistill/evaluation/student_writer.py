"""The student as a writer that answers live dialogues, several at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from emodistill.errors import InputError
from emodistill.llm.replies import spoken
from emodistill.llm.usage import Completion
from emodistill.model import (
    Generated,
    GenerationRequest,
    NewTokens,
    decode_reply,
    encode_chat,
    stop_ids,
)
from emodistill.negotiation.writers import EmptyReplyError
from emodistill.seeding import derive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from emodistill.prompts import Message


class Generator(Protocol):
    """What a writer needs of `model.Engine`."""

    def add(self, request: GenerationRequest) -> int: ...
    def cancel(self, handle: int) -> None: ...
    def step(self) -> list[NewTokens]: ...


@dataclass(slots=True, eq=False)
class StudentWriter:
    """A local model as a writer: prompts are answered side by side, and join while others are
    being answered.

    A reply depends on its own prompt and seed alone, never on which prompts it shares the engine
    with (see `model.Engine`). Use as an async context manager.
    """

    engine: Generator
    """An engine of the student, which nobody else uses."""
    tokenizer: PreTrainedTokenizerFast
    _: KW_ONLY
    model: str
    temperature: float
    max_reply_tokens: int
    max_prompt_tokens: int
    """Longer prompts don't fit the window; `fits` tells the caller, who drops the oldest turns."""
    _new: list[tuple[GenerationRequest, asyncio.Future[Generated]]] = field(
        default_factory=list, init=False
    )
    _waiting: dict[int, asyncio.Future[Generated]] = field(default_factory=dict, init=False)
    _has_new: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _worker: asyncio.Task[None] = field(init=False)

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)

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
        future = asyncio.get_running_loop().create_future()
        self._new.append((request, future))
        self._has_new.set()
        return await future

    async def _serve(self) -> None:
        while True:
            if not self._new and not self._waiting:
                self._has_new.clear()
                await self._has_new.wait()
            new, self._new = self._new, []
            for request, future in new:
                try:
                    self._waiting[self.engine.add(request)] = future
                except InputError as error:  # handed to whoever waits, who raises it
                    future.set_exception(error)
            for handle, future in list(self._waiting.items()):
                if future.cancelled():
                    self.engine.cancel(handle)
                    del self._waiting[handle]
            try:
                # In a thread: dialogues with API models go on while the device generates.
                progress = await asyncio.to_thread(self.engine.step)
            except Exception as error:  # handed to those who wait, who raise it
                for handle, future in self._waiting.items():
                    self.engine.cancel(handle)
                    if not future.done():
                        future.set_exception(error)
                self._waiting.clear()
                continue
            for handle, _, _, generated in progress:
                if generated is not None:
                    future = self._waiting.pop(handle)
                    if not future.done():
                        future.set_result(generated)
