"""A request's seed as the simulated models read it: who the player is, and which noise it meets.

A dialogue that is played again from one of its turns needs the same opponent and other luck. So
the seed of such a fork has three parts, and every seed below 2³¹ is one without a fork:

    seed = own + 2³¹ · (turn + 2¹⁰ · noise)

`own` draws the hidden type and all noise of the turns before focal turn `turn` (counted from 1);
from that turn on the noise comes from stream number `noise`. The stream depends on the number of
the turn and not on what was said, so that forks of one turn which share the stream differ in what
is said alone (common random numbers).
"""

from __future__ import annotations

from typing import NamedTuple

from emodistill.errors import InputError

_OWN, _TURNS = 1 << 31, 1 << 10


class ForkedSeed(NamedTuple):
    """The parts of a seed; `noise` is 0 where nothing was forked."""

    own: int
    turn: int = 0
    noise: int = 0

    def at(self, turn: int) -> int:
        """What names the noise of a focal turn."""
        return self.own if turn < self.turn or not self.noise else forked_seed(*self)


def forked_seed(own: int, turn: int, noise: int) -> int:
    """The seed of a fork.

    Raises:
      InputError: a part is out of its bounds.
    """
    if not (0 <= own < _OWN and 0 <= turn < _TURNS and noise >= 1):
        raise InputError(
            f"a fork's seed needs a seed in [0, 2**31), a turn under {_TURNS} and a noise stream "
            f"from 1 on; found {own}, {turn}, {noise}."
        )
    return own + _OWN * (turn + _TURNS * noise)


def read_seed(seed: int) -> ForkedSeed:
    """The parts of a request's seed; a negative one is its own and no fork's."""
    if seed < _OWN:
        return ForkedSeed(seed)
    rest, own = divmod(seed, _OWN)
    noise, turn = divmod(rest, _TURNS)
    return ForkedSeed(own, turn, noise) if noise else ForkedSeed(seed)
