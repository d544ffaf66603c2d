"""How many calls are in flight: fewer when the server is in trouble, more again when it is not."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

FIRST_LIMIT = 16
"""Calls in flight at first; after five rounds there are five hundred."""
BACK_OFF = 0.7
"""What a sign of overload leaves of the limit: TCP Cubic's factor."""
TOLERATED = 0.1
"""A server that breaks under fewer of its calls than this is merely unreliable: slowing down would
cost time and mend nothing."""
WEIGHT = 1 / 32
"""Of the newest call in the moving share of troubled ones, which looks back some thirty calls."""
PAUSE_S = 1.0
"""Signs of overload within this time of one another count as one, since calls that were in flight
together meet the same trouble."""


class Gate:
    """Additive increase, multiplicative decrease (as TCP does it), up to `ceiling`.

    Enter it around each attempt at a call: `async with gate: …`. It begins with FIRST_LIMIT and
    lets in one more for each answer until there is trouble, so that the first calls to a server
    that takes few of them are not all refused.

    Args:
      ceiling: most calls in flight.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = float(min(ceiling, FIRST_LIMIT))
        self.is_ramping = True
        self.num_in_flight = 0
        self._cut_at_s = -math.inf
        self._share_troubled = 0.0  # of the last thirty calls or so
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._is_full() or self._waiting:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            self._wake()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._leave()
                raise
        else:
            self.num_in_flight += 1

    async def __aexit__(self, *exc_info: object) -> None:
        self._leave()

    def went_well(self) -> None:
        """A call was answered: one more call in flight for every `limit` of these, or for each."""
        self._share_troubled *= 1.0 - WEIGHT
        more = 1.0 if self.is_ramping else 1.0 / self.limit
        self.limit = min(float(self.ceiling), self.limit + more)
        self._wake()

    def overloaded(self) -> None:
        """The server limited a call, broke under it, or stayed silent."""
        self._share_troubled += WEIGHT * (1.0 - self._share_troubled)
        now = time.monotonic()
        if self._share_troubled >= TOLERATED and now - self._cut_at_s >= PAUSE_S:
            self._cut_at_s = now
            self.is_ramping = False
            self.limit = max(1.0, self.limit * BACK_OFF)

    def _is_full(self) -> bool:
        return self.num_in_flight >= int(self.limit)

    def _leave(self) -> None:
        self.num_in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiting and not self._is_full():
            turn = self._waiting.popleft()
            if not turn.done():
                self.num_in_flight += 1
                turn.set_result(None)
