"""What a check before training has found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

MAX_NAMED = 3
"""Samples or scenarios that a finding names; the rest are counted."""


class Finding(NamedTuple):
    """The outcome of one check."""

    check: str
    text: str
    """What is the case, or what is wrong and what to do about it."""
    is_problem: bool = False
    is_checked: bool = True
    """False where nothing could be told either way."""

    def __str__(self) -> str:
        passed = "ok" if self.is_checked else "unknown"
        return f"{'PROBLEM' if self.is_problem else passed:8}{self.check}: {self.text}"


def some_of(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
