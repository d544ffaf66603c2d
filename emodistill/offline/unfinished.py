"""The answers that dialogues have got so far, so that a stop loses no call but those in flight.

    sweep/trajectories.unfinished      one answer a line, of dialogues that are not finished

A dialogue is written whole when it ends. Until then its answers are in this file: whoever starts
again hears them at once, as does a dialogue that is put off and played once more. An answer belongs
to the SHA-256 of its request, so that no other settings ever meet it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Container
from pathlib import Path

from emodistill.errors import InputError
from emodistill.jsonl import JsonlAppender, is_gone, read_lines
from emodistill.llm.cassette import request_sha256
from emodistill.llm.usage import Completion, Usage, total_usage
from emodistill.untrusted import named_tuple

NUM_STALE_LINES = 5_000
"""Lines of finished dialogues that the file may hold before it is written anew: some megabytes, and
seldom enough that the writing costs nothing."""


class UnfinishedAnswers(JsonlAppender):
    """The client's `AnswerCache` while dialogues are played. A context manager.

    Args:
      path: of the file; deleted at the end where nothing is unfinished.
      done: dialogues whose answers are of no more use.

    Raises:
      InputError: the file holds something else, or another process writes to it.
    """

    def __init__(self, path: Path, done: Container[str]) -> None:
        super().__init__(path)
        self._answers: defaultdict[str, list[tuple[str, Completion]]] = defaultdict(list)
        self._known: dict[str, dict[str, deque[Completion]]] = {}
        self._num_stale = 0
        for value, where in read_lines(path):
            try:
                dialogue, request = value["dialogue"], value["request"]
                completion = named_tuple(value["answer"], Completion)
                is_named = isinstance(dialogue, str) and isinstance(request, str)
            except (LookupError, TypeError, ValueError):
                is_named = False
            if not is_named:
                raise InputError(
                    f"{where}: no answer of an unfinished dialogue. Delete the file; those "
                    "dialogues are then played from their opening."
                ) from None
            if dialogue in done:
                self._num_stale += 1
            else:
                self._answers[dialogue].append((request, completion))

    def __exit__(self, *exc_info: object) -> None:
        if not self._answers and not is_gone(self._fd, self.path):
            self.path.unlink(
                missing_ok=True
            )  # while it is locked, so that nobody else has begun it
        self.close()

    @property
    def usage(self) -> Usage:
        """What the answers have used."""
        answers = list(itertools.chain.from_iterable(self._answers.values()))
        used = total_usage(completion.usage for _, completion in answers)
        return used._replace(num_calls=len(answers))

    def begin(self, dialogue: str) -> None:
        """The dialogue is played from its opening: what it has heard, it hears again."""
        known = self._known[dialogue] = defaultdict(deque)
        for request, completion in self._answers.get(dialogue, ()):
            known[request].append(completion)

    def get(self, dialogue: str, body: bytes) -> Completion | None:
        """The answer that this request has got before, None where it has got none."""
        known = self._known.get(dialogue, {}).get(request_sha256(body))
        return known.popleft() if known else None

    def add(self, dialogue: str, body: bytes, completion: Completion) -> None:
        request = request_sha256(body)
        self._answers[dialogue].append((request, completion))
        self._write(dialogue, request, completion)

    def forget(self, dialogue: str) -> None:
        """The dialogue is finished, or has failed for good."""
        self._known.pop(dialogue, None)
        self._num_stale += len(self._answers.pop(dialogue, ()))
        if self._num_stale >= NUM_STALE_LINES:
            self.clear()
            for name, answers in self._answers.items():
                for answer in answers:
                    self._write(name, *answer)
            self._num_stale = 0

    def _write(self, dialogue: str, request: str, completion: Completion) -> None:
        answer = completion._asdict()
        self.append({"dialogue": dialogue, "request": request, "answer": answer})
