"""How far a long job is: a bar on a terminal, a line every few seconds anywhere else.

Goes to stderr, so that what a script prints as its result stays alone on stdout.
"""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 5.0
QUIET_LINE_EVERY_S = 30.0


class Progress:
    """`with Progress("sweep", total=8_000, unit="dialogues") as p: p.advance(note="$0.12")`.

    `done` is what an earlier run has left, `total=None` an unknown amount; `is_shown=False` is
    for processes that another one speaks for.
    """

    def __init__(
        self, name: str, *, total: int | None, unit: str, done: int = 0, is_shown: bool = True
    ) -> None:
        self.name = name
        self.is_shown = is_shown
        self.total = total
        self.unit = unit
        self.done = done
        self._at_start = done
        self._note = ""
        self._bar: RichProgress | None = None
        self._last_done: int | None = None

    def __enter__(self) -> Self:
        self._started_s = self._last_line_s = time.monotonic()
        if self.is_shown and sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.unit),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.name, total=self.total, completed=self.done, note=""
            )
        elif self.done:
            self.say(f"{self.name}: {self._count} are there already")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.done != self._last_done:
            self._line()

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """`steps` more are done; `note` is what to show beside the count (a loss, a cost).

        `steps=0` tells that the job is alive: off a terminal, such lines come less often.
        """
        self.done += steps
        if note is not None:
            self._note = note
        every_s = LINE_EVERY_S if steps else QUIET_LINE_EVERY_S
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
        elif time.monotonic() - self._last_line_s >= every_s:
            self._line()

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        elif self.is_shown:
            print(text, file=sys.stderr, flush=True)

    def _line(self) -> None:
        self._last_line_s = time.monotonic()
        self._last_done = self.done
        words = [self._count]
        elapsed_s = self._last_line_s - self._started_s
        rate = (self.done - self._at_start) / elapsed_s if elapsed_s > 0 else 0.0
        if rate > 0:
            words.append(f"{rate:,.1f}/s" if rate >= 0.1 else f"{1 / rate:,.0f} s each")
            if self.total is not None and self.total > self.done:
                words.append(f"{duration((self.total - self.done) / rate)} left")
        if self._note:
            words.append(self._note)
        self.say(f"{self.name}: {', '.join(words)}")

    @property
    def _count(self) -> str:
        if self.total is None:
            return f"{self.done:,} {self.unit}"
        share = self.done / self.total if self.total else 1.0
        return f"{self.done:,} of {self.total:,} {self.unit} ({share:.0%})"


def duration(seconds: float) -> str:
    """A time to read: `48 s`, `12 min 5 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
