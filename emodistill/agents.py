"""A method is a selector and a writer: who picks the emotion, and who puts it into words.

Table 7 of the paper as data, and the student as a speaker that answers live dialogues in batches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from emodistill.errors import InputError
from emodistill.model import decode_reply, encode_chat, stop_ids
from emodistill.negotiation.speakers import EmptyReplyError, Reply
from emodistill.seeding import derive

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from emodistill.model import Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a method's name stands for.

    `adapter` names the stage that trained the writer, None is the base model. Under the emotion
    `none` prompts have no emotion block.
    """

    writer: Literal["llm", "student"]
    emotion: Literal["none", "neutral", "random", "fixed", "iql", "oracle"]
    adapter: Literal["sft", "jpo", "alol", "dpo"] | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Stage -> what its training changes for this method: a cell of its own."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The training stages that it needs, each before those that go on from it."""
        selector = ("iql",) if self.emotion == "iql" else ()
        if self.adapter is None:
            return selector
        is_refined = self.adapter != "sft"
        has_start = self.settings.get(self.adapter, {}).get("reference") != "base"
        start = ("sft",) if is_refined and has_start else ()
        return (*selector, *start, self.adapter)


_FREE = {"emotion_free": True}
_BASE = {"reference": "base"}


METHODS: Mapping[str, Method] = {
    "vanilla-slm": Method(writer="student", emotion="neutral"),
    "vanilla-llm": Method(writer="llm", emotion="neutral"),
    "neutral": Method(writer="llm", emotion="neutral"),
    "random": Method(writer="llm", emotion="random"),
    "iql": Method(writer="llm", emotion="iql"),
    "iql+sft": Method(writer="student", emotion="iql", adapter="sft"),
    "iql+jpo": Method(writer="student", emotion="iql", adapter="jpo", settings={"jpo": _BASE}),
    "iql+sft+jpo": Method(writer="student", emotion="iql", adapter="jpo"),
    "iql+sft+jpo-stripped": Method(writer="student", emotion="none", adapter="jpo"),
    "iql+sft+alol": Method(writer="student", emotion="iql", adapter="alol"),
    "iql+sft+dpo": Method(writer="student", emotion="iql", adapter="dpo"),
    "free-sft": Method(writer="student", emotion="none", adapter="sft", settings={"sft": _FREE}),
    "free-jpo": Method(
        writer="student", emotion="none", adapter="jpo", settings={"jpo": _FREE | _BASE}
    ),
    "free-sft+jpo": Method(
        writer="student", emotion="none", adapter="jpo", settings={"sft": _FREE, "jpo": _FREE}
    ),
    "fixed": Method(writer="llm", emotion="fixed"),
    "oracle": Method(writer="llm", emotion="oracle"),
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
      InputError: there is none; the message lists them.
    """
    if name not in METHODS:
        raise InputError(f"--method {name} is not known; use one of {', '.join(METHODS)}.")
    return METHODS[name]


class _Request(NamedTuple):
    ids: list[int]
    seed: int
    answer: asyncio.Future[list[int]]


class StudentSpeaker:
    """A local model as a speaker: prompts that wait at the same time are generated together.

    A reply depends on its own prompt and seed alone, never on which prompts it shares a batch
    with (see `sampling.Generator`). Use as an async context manager.

    Args:
      max_prompt_tokens: longer prompts don't fit the window; `fits` tells the caller, who drops
        the oldest turns.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: PreTrainedTokenizerFast,
        *,
        model: str,
        temperature: float,
        max_reply_tokens: int,
        max_prompt_tokens: int,
    ) -> None:
        self.model = model
        self.temperature = temperature
        self._generator = generator
        self._tokenizer = tokenizer
        self._max_reply_tokens = max_reply_tokens
        self._max_prompt_tokens = max_prompt_tokens
        self._waiting: list[_Request] = []
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> StudentSpeaker:
        self._worker = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)

    def fits(self, messages: Sequence[Mapping[str, str]]) -> bool:
        """Whether the prompt leaves room for a reply."""
        return len(encode_chat(self._tokenizer, messages)) <= self._max_prompt_tokens

    async def reply(
        self, messages: Sequence[Mapping[str, str]], *, dialogue_id: str, seed: int
    ) -> Reply:
        ids = encode_chat(self._tokenizer, messages)
        if len(ids) > self._max_prompt_tokens:
            raise InputError(
                f"{dialogue_id}: the prompt has {len(ids)} tokens, the window leaves room for "
                f"{self._max_prompt_tokens} even without any history; shorten the prompt pack."
            )
        started_s = time.monotonic()
        turn_seed = derive(seed, "turn", messages[-1]["content"])
        num_tokens = 0
        for next_seed in (turn_seed, derive(turn_seed, "after an empty reply")):
            answer = asyncio.get_running_loop().create_future()
            self._waiting.append(_Request(ids, next_seed, answer))
            self._arrived.set()
            reply_ids = await answer
            num_tokens += len(reply_ids)
            text = decode_reply(self._tokenizer, reply_ids)
            if text.strip():
                return Reply(text, len(ids), num_tokens, time.monotonic() - started_s)
        raise EmptyReplyError(f"{self.model} said nothing, twice, in {dialogue_id}.")

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await asyncio.sleep(0.01)  # let the other live dialogues arrive
            batch, self._waiting = self._waiting, []
            self._arrived.clear()
            try:
                replies = await loop.run_in_executor(None, self._generate, batch)
            except Exception as error:  # handed to those who wait, who raise it
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)
                continue
            for request, reply_ids in zip(batch, replies, strict=True):
                if not request.answer.done():
                    request.answer.set_result(reply_ids)

    def _generate(self, batch: Sequence[_Request]) -> list[list[int]]:
        return self._generator.generate(
            [request.ids for request in batch],
            max_new_tokens=self._max_reply_tokens,
            temperature=self.temperature,
            seeds=[request.seed for request in batch],
            eos_ids=stop_ids(self._tokenizer),
        )
