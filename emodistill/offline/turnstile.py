"""Dialogues that wait for earlier ones: a training plays a block with what the last one taught.

Within a block dialogues are played side by side; the next block begins once all have ended and been
learned from, in their planned order. So a training is the same at any concurrency.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from emodistill.llm.client import CeilingError
from emodistill.records import Trajectory

Learn = Callable[[Sequence[Trajectory | None]], int]
"""Learns from a block, None for a dialogue that failed for good; gives the size of the next one."""


def _learn_nothing(dialogues: Sequence[Trajectory | None]) -> int:
    return 0


class Turnstile:
    """Admits the dialogues of one block after the other, and any that isn't planned at once.

    Args:
      names: of all dialogues, in their order.
      first: the size of the first block.
      learn: called with each block when all of it has ended.
    """

    def __init__(
        self, names: Sequence[str] = (), first: int = 0, learn: Learn = _learn_nothing
    ) -> None:
        self.is_ordered = bool(names)
        """Whether dialogues wait for each other."""
        self._names = list(names)
        self._order = {name: i for i, name in enumerate(self._names)}
        self._learn = learn
        self._ended: dict[str, Trajectory | None] = {}
        self._start, self._stop = 0, min(first, len(self._names))
        self._moved = asyncio.Event()
        self._is_closed = False

    def position(self, name: str) -> int:
        """Where a dialogue of the current block stands in it."""
        return self._order[name] - self._start

    async def admit(self, name: str) -> None:
        """Wait until the dialogue's block is played.

        Raises:
          CeilingError: what it waits for will not be paid for.
        """
        await asyncio.sleep(0)  # players in this process never wait, and signals have to be seen
        while self._order.get(name, -1) >= self._stop:
            if self._is_closed:
                raise CeilingError("the ceiling on costs is reached.")
            moved = self._moved
            await moved.wait()

    def end(self, name: str, dialogue: Trajectory | None) -> None:
        """A dialogue has ended; None if it failed for good. What isn't planned doesn't count."""
        if name not in self._order:
            return
        self._ended[name] = dialogue
        while self._start < self._stop:
            block = self._names[self._start : self._stop]
            if not all(one in self._ended for one in block):
                return
            size = self._learn([self._ended.pop(one) for one in block])
            self._start = self._stop
            self._stop = min(self._start + size, len(self._names))
            self._wake()

    def close(self) -> None:
        """No further block will be played."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
