"""Tapes: what a language model answered, on disk, and played back without any connection.

    python scripts/sweep.py --provider dashscope --record tapes/sweep
    python scripts/sweep.py --replay tapes/sweep --run runs/again

A folder holds `calls.jsonl`, one finished call a line, in the order in which they were finished. A
call is found again by its dialogue and the SHA-256 of its request body; keys are in neither. Calls
that failed for good are recorded as well, so that a replay fails where the recording did.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from emodistill.errors import InputError
from emodistill.files import write_json
from emodistill.jsonl import JsonlAppender, read_lines
from emodistill.llm.usage import Completion
from emodistill.untrusted import brief, named_tuple, read_typed

CALLS = "calls.jsonl"
OWNER = "recording.json"
NUM_IDLE_TICKS = 50
"""Turns of the event loop in which nobody may ask for the next answer of the recording before a
later one is handed out: a caller asks on within a few turns of being answered."""


class CallError(msgspec.Struct):
    """How a call failed for good; the status of a refusal, None where all attempts met trouble."""

    message: str
    status: int | None


class _Recorded(msgspec.Struct):
    """What a line must hold for a replay."""

    dialogue: str
    request: str
    answer: dict[str, Any] | None = None
    error: CallError | None = None

    @property
    def call(self) -> Completion | CallError:
        if self.answer is not None and self.error is None:
            return named_tuple(self.answer, Completion)
        if self.answer is None and self.error is not None:
            return self.error
        raise ValueError("a call has either an answer or an error")


Call = Mapping[str, Any]
"""`{"answer": …}` or `{"error": …}`, as the client makes them."""


class Recorder(JsonlAppender):
    """Appends calls to a folder; a context manager.

    Args:
      owner: the run that is recorded; a folder holds one.

    Raises:
      InputError: the folder holds the recording of another run.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        super().__init__(folder / CALLS)
        label = folder / OWNER
        if self.path.stat().st_size == 0 or not label.exists():
            write_json(label, {"run": owner})
            return
        try:
            recorded = read_typed(label, dict[str, str], "Name an empty folder.").get("run")
            if recorded != owner:
                raise InputError(
                    f"--record {folder} holds the recording of {brief(recorded)}; two runs in one "
                    "folder could not be told apart. Name an empty one."
                )
        except InputError:
            self.close()
            raise

    def add(self, dialogue: str, body: bytes, call: Call) -> None:
        """Keep a finished call."""
        self.append({"dialogue": dialogue, "request": request_sha256(body), **call})


def request_sha256(body: bytes) -> str:
    """What identifies a request within its dialogue."""
    return hashlib.sha256(body).hexdigest()


class Replayer:
    """Answers requests from a recording.

    Answers are handed out in the recorded order: one waits until those before it have been asked
    for, unless nobody does so, as when dialogues were finished before. Whoever plays at the same
    concurrency therefore finishes the same dialogues in the same order.

    Raises:
      InputError: the folder holds no recording.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CALLS
        self._calls: dict[tuple[str, str], deque[tuple[int, Completion | CallError]]] = {}
        for position, line in enumerate(read_lines(self.path)):
            try:
                recorded = msgspec.convert(line.value, _Recorded)
                call = recorded.call
            except ValueError:
                raise InputError(
                    f"{line.where}: no recorded call; --replay takes a folder that --record made."
                ) from None
            name = recorded.dialogue, recorded.request
            self._calls.setdefault(name, deque()).append((position, call))
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._next = 0
        self._release: asyncio.Task[None] | None = None

    async def play(self, dialogue: str, body: bytes) -> Completion | CallError:
        """The recorded answer to a request; to the same request asked again, the next one.

        Raises:
          InputError: there is none.
        """
        calls = self._calls.get((dialogue, request_sha256(body)))
        if not calls:
            raise InputError(
                f"{self.path} holds no answer to this request of {dialogue}. A replay needs the "
                "recording's own settings (models, seed, prompts, scenarios), and its dialogues."
            )
        position, call = calls.popleft()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (position, turn))
        if self._release is None or self._release.done():
            self._release = asyncio.create_task(self._hand_out())
        await turn
        return call

    async def _hand_out(self) -> None:
        num_idle = 0
        while self._waiting:
            position, turn = self._waiting[0]
            if position == self._next or num_idle >= NUM_IDLE_TICKS:
                heapq.heappop(self._waiting)
                self._next = position + 1
                num_idle = 0
                if not turn.done():
                    turn.set_result(None)
            num_idle += 1
            await asyncio.sleep(0)  # lets the one that was answered ask on
