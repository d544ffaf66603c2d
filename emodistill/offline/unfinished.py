"""The answers that dialogues have got so far, so that a stop loses no call but those in flight.

    sweep/trajectories.unfinished      one answer a line, of dialogues that are not finished

A dialogue is written whole when it ends. Until then its answers are in this file: whoever starts
again hears them at once, as does a dialogue that is put off and played once more. An answer belongs
to the SHA-256 of its request, so that no other settings ever meet it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple, Self

from emodistill.errors import InputError
from emodistill.jsonl import JsonlAppender, read_lines
from emodistill.llm.cassette import request_sha256
from emodistill.llm.client import Completion, Usage, total_usage

NUM_STALE_LINES = 5_000
"""Lines of finished dialogues that the file may hold before it is written anew: some megabytes, and
seldom enough that the writing costs nothing."""


class _Answer(NamedTuple):
    request: str
    completion: Completion


class UnfinishedAnswers:
    """The client's `AnswerCache` while dialogues are played. A context manager.

    Args:
      path: of the file; deleted at the end where nothing is unfinished.
      done: dialogues whose answers are of no more use.

    Raises:
      InputError: the file holds something else, or another process writes to it.
    """

    def __init__(self, path: Path, done: Container[str]) -> None:
        self._lines = JsonlAppender(path)
        self._answers: defaultdict[str, list[_Answer]] = defaultdict(list)
        self._known: defaultdict[tuple[str, str], deque[Completion]] = defaultdict(deque)
        self._num_stale = 0
        for value, where in read_lines(path):
            dialogue, answer = _read(value, where)
            if dialogue in done:
                self._num_stale += 1
            else:
                self._answers[dialogue].append(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lines.close()
        if not self._answers:
            self._lines.path.unlink(missing_ok=True)

    @property
    def usage(self) -> Usage:
        """What the answers have used."""
        answers = [answer for answers in self._answers.values() for answer in answers]
        used = total_usage(answer.completion.usage for answer in answers)
        return used._replace(num_calls=len(answers))

    def begin(self, dialogue: str) -> None:
        """The dialogue is played from its opening: what it has heard, it hears again."""
        answers = self._answers.get(dialogue, [])
        for request, _ in answers:
            self._known[dialogue, request].clear()
        for request, completion in answers:
            self._known[dialogue, request].append(completion)

    def get(self, dialogue: str, body: bytes) -> Completion | None:
        """The answer that this request has got before, None where it has got none."""
        known = self._known.get((dialogue, request_sha256(body)))
        return known.popleft() if known else None

    def add(self, dialogue: str, body: bytes, completion: Completion) -> None:
        answer = _Answer(request_sha256(body), completion)
        self._answers[dialogue].append(answer)
        self._write(dialogue, answer)

    def forget(self, dialogue: str) -> None:
        """The dialogue is finished, or has failed for good."""
        answers = self._answers.pop(dialogue, [])
        for request, _ in answers:
            self._known.pop((dialogue, request), None)
        self._num_stale += len(answers)
        if self._num_stale >= NUM_STALE_LINES:
            self._lines.clear()
            for name, unfinished in self._answers.items():
                for answer in unfinished:
                    self._write(name, answer)
            self._num_stale = 0

    def _write(self, dialogue: str, answer: _Answer) -> None:
        completion = answer.completion._asdict()
        self._lines.append({"dialogue": dialogue, "request": answer.request, "answer": completion})


def unfinished_path(path: Path) -> Path:
    """`trajectories.unfinished` beside `trajectories.jsonl`."""
    return path.with_suffix(".unfinished")


def _read(value: Any, where: str) -> tuple[str, _Answer]:
    try:
        return value["dialogue"], _Answer(value["request"], Completion(**value["answer"]))
    except (LookupError, TypeError):
        raise InputError(
            f"{where}: no answer of an unfinished dialogue. Delete the file; those dialogues are "
            "then played from their opening."
        ) from None
