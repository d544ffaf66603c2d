"""The student as a writer that answers live dialogues in batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from emodistill.errors import InputError
from emodistill.llm.replies import spoken
from emodistill.llm.usage import Completion
from emodistill.model import decode_reply, encode_chat, stop_ids
from emodistill.negotiation.writers import EmptyReplyError
from emodistill.seeding import derive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from emodistill.prompts import Message

GATHERING_S = 0.01
"""Pause before a batch starts: turns of other dialogues that end at about the same time join it."""


class _Request(NamedTuple):
    ids: list[int]
    seed: int
    max_tokens: int
    reply_ids: asyncio.Future[list[int]]


@dataclass(slots=True, eq=False)
class StudentWriter:
    """A local model as a writer: prompts that wait at the same time are generated together.

    A reply depends on its own prompt and seed alone, never on which prompts it shares a batch
    with (see `model.generate`). Use as an async context manager.
    """

    generate: Callable[..., list[list[int]]]
    """`model.generate` of the student."""
    tokenizer: PreTrainedTokenizerFast
    _: KW_ONLY
    model: str
    temperature: float
    max_reply_tokens: int
    max_prompt_tokens: int
    """Longer prompts don't fit the window; `fits` tells the caller, who drops the oldest turns."""
    _requests: asyncio.Queue[_Request] = field(default_factory=asyncio.Queue, init=False)
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

        One that is cut is generated once more with double room, as far as the window has that, and
        begins with the same words; what is cut again stays, with the finish reason `length`.

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
        num_tokens = 0
        stops = stop_ids(self.tokenizer)
        rooms = [self.max_reply_tokens]
        if len(ids) + self.max_reply_tokens <= self.max_prompt_tokens:
            rooms.append(2 * self.max_reply_tokens)
        for next_seed in (turn_seed, derive(turn_seed, "after an empty reply")):
            is_cut = False
            reply_ids: list[int] = []
            for room in rooms:
                future = asyncio.get_running_loop().create_future()
                self._requests.put_nowait(_Request(ids, next_seed, room, future))
                reply_ids = await future
                num_tokens += len(reply_ids)
                is_cut = len(reply_ids) == room and reply_ids[-1] not in stops
                if not is_cut:
                    break
            text = spoken(decode_reply(self.tokenizer, reply_ids))
            if text.strip():
                elapsed_s = time.monotonic() - started_s
                reason = "length" if is_cut else "stop"
                return Completion(text, len(ids), num_tokens, elapsed_s, 0.0, reason)
        raise EmptyReplyError(f"{self.model} said nothing, twice, in {dialogue_id}.")

    async def _serve(self) -> None:
        while True:
            batch = [await self._requests.get()]
            await asyncio.sleep(GATHERING_S)
            while not self._requests.empty():
                batch.append(self._requests.get_nowait())
            try:
                # In a thread: dialogues with API models go on while the device generates.
                replies = await asyncio.to_thread(self._generate, batch)
            except Exception as error:  # handed to those who wait, who raise it
                for request in batch:
                    if not request.reply_ids.done():
                        request.reply_ids.set_exception(error)
                continue
            for request, reply_ids in zip(batch, replies, strict=True):
                if not request.reply_ids.done():  # whoever waited may have been cancelled
                    request.reply_ids.set_result(reply_ids)

    def _generate(self, batch: Sequence[_Request]) -> list[list[int]]:
        replies: list[list[int]] = [[] for _ in batch]
        for max_tokens in sorted({request.max_tokens for request in batch}):
            chosen = [i for i, request in enumerate(batch) if request.max_tokens == max_tokens]
            generated = self.generate(
                [batch[i].ids for i in chosen],
                max_new_tokens=max_tokens,
                temperature=self.temperature,
                seeds=[batch[i].seed for i in chosen],
                eos_ids=stop_ids(self.tokenizer),
            )
            for i, reply_ids in zip(chosen, generated, strict=True):
                replies[i] = reply_ids
        return replies
