"""What a judge is asked about, and how far it has come with each, by the lines of its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from emodistill.errors import ApiError
from emodistill.llm.usage import Completion
from emodistill.records import Judgement

LAST_ATTEMPT = 1
"""Attempts count from 0: what can't be read is asked for once more."""
NO_ANSWER = "[no answer: "
"""How the `raw` of a call begins that got no answer at all."""


class JudgeItem(NamedTuple):
    """Something to be scored: a focal turn, or a dialogue (`turn_index` None), once or again."""

    trajectory_id: str
    turn_index: int | None
    repeat: int


class JudgeAttempts:
    """Which items have a score, and how often the others were tried, by the lines of the file."""

    def __init__(self, lines: Iterable[Judgement]) -> None:
        self.scored: set[JudgeItem] = set()
        self.unreadable: set[JudgeItem] = set()
        self.answered: set[JudgeItem] = set()
        """Readably or not."""
        self.num_failed: Counter[JudgeItem] = Counter()
        for line in lines:
            self.add(line)

    def add(self, line: Judgement) -> None:
        """One more line; a score stays, whatever else the item's lines say."""
        item = JudgeItem(line.trajectory_id, line.turn_index, line.repeat)
        if not line.raw.startswith(NO_ANSWER):
            self.answered.add(item)
        if line.status == "scored":
            self.scored.add(item)
            self.unreadable.discard(item)
            return
        self.num_failed[item] = max(line.attempt + 1, self.num_failed[item])
        if line.attempt >= LAST_ATTEMPT and item not in self.scored:
            self.unreadable.add(item)

    def are_left(self, item: JudgeItem) -> bool:
        return item not in self.scored and item not in self.unreadable


class JudgeJob(NamedTuple):
    """What every way of asking a judge needs: items, and what becomes of their answers."""

    items: list[JudgeItem]
    """Those that are left."""
    attempts: JudgeAttempts
    request: Callable[[JudgeItem], dict[str, Any]]
    """The next attempt at an item, as keywords of `ChatClient.chat`."""
    keep: Callable[[JudgeItem, Completion], None]
    """Writes the answer to that attempt down."""
    give_up: Callable[[JudgeItem, ApiError], None]
    """Writes down that there will be none."""

    @property
    def note(self) -> str:
        """For the progress line."""
        num = len(self.attempts.unreadable)
        return f"{num:,} unreadable" if num else ""
