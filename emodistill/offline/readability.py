"""Whether utterances carry offers that their game can mean.

Where they don't, as when a salary is squeezed into a domain of days, dialogues end at figures that
nobody meant, or at none, and all that follows learns from noise. A job that plays such dialogues
stops early and shows some of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from emodistill.domains import format_value, get_domain
from emodistill.errors import InputError
from emodistill.records import Trajectory, Turn

MIN_DIALOGUES = 20
"""Dialogues after which a job is judged: enough that chance explains no majority."""
MIN_DIALOGUES_AT_END = 10
"""The same for a job that ends before it has so many."""
MAX_SHARE = 0.5
"""Of utterances without an offer, and of offers far out. On the simulator up to a fifth of the
utterances have none, for a dialogue's last one often agrees to what was said, and no offer is far
out."""
NUM_EXAMPLES, EXAMPLE_LENGTH = 3, 120


class OfferShares(NamedTuple):
    """How the utterances of some dialogues fare with whoever reads the offers.

    Those that were cut at their limit of tokens are not among them: nobody has read them.
    """

    num_turns: int
    num_without: int
    """Turns without a readable offer."""
    num_far: int
    """Offers that lie further outside target and anchor than these are apart."""

    @property
    def without(self) -> float:
        """Of the turns, the share without an offer."""
        return self.num_without / max(1, self.num_turns)

    @property
    def far(self) -> float:
        """Of the offers, the share far out."""
        return self.num_far / max(1, self.num_turns - self.num_without)

    @property
    def text(self) -> str:
        return (
            f"{self.without:.0%} of utterances without an offer, {self.far:.0%} of offers far out"
        )


def offer_shares(trajectories: Iterable[Trajectory]) -> OfferShares:
    """The shares of all dialogues together."""
    check = ReadabilityCheck(is_lenient=True)
    for trajectory in trajectories:
        check.add(trajectory)
    return check.shares


def _unusual(trajectory: Trajectory) -> tuple[list[Turn], list[Turn]]:
    """The turns without an offer, and those whose offer is far out."""
    low, high = sorted((trajectory.focal_target, trajectory.counterparty_anchor))
    gap = high - low
    without = [turn for turn in _whole_turns(trajectory) if turn.offer is None]
    far = [
        turn
        for turn in trajectory.turns
        if turn.offer is not None and not low - gap <= turn.offer <= high + gap
    ]
    return without, far


def _whole_turns(trajectory: Trajectory) -> list[Turn]:
    return [turn for turn in trajectory.turns if turn.finish_reason == "stop"]


class ReadabilityCheck:
    """Counts a job's dialogues, and stops it where most of what they say can't be read.

    Args:
      is_lenient: never stop.
    """

    def __init__(self, *, is_lenient: bool) -> None:
        self._is_lenient = is_lenient
        self._num_dialogues = 0
        self._num_cut = 0
        self._examples: tuple[list[str], list[str]] = ([], [])
        self.shares = OfferShares(0, 0, 0)

    def add(self, trajectory: Trajectory) -> None:
        without, far = _unusual(trajectory)
        num_whole = len(_whole_turns(trajectory))
        self._num_cut += len(trajectory.turns) - num_whole
        counts = OfferShares(num_whole, len(without), len(far))
        self.shares = OfferShares(*(a + b for a, b in zip(self.shares, counts, strict=True)))
        self._num_dialogues += 1
        for examples, turns in zip(self._examples, (without, far), strict=True):
            examples += [_example(trajectory, t) for t in turns[: NUM_EXAMPLES - len(examples)]]

    def check(self, *, is_end: bool = False) -> None:
        """Look at what has been counted.

        Args:
          is_end: no further dialogues follow.

        Raises:
          InputError: most utterances were cut or have no offer, or most offers are far out.
        """
        if self._is_lenient:
            return
        if self._num_dialogues < (MIN_DIALOGUES_AT_END if is_end else MIN_DIALOGUES):
            return
        without, far = self._examples
        if self._num_cut > MAX_SHARE * (self._num_cut + self.shares.num_turns):
            raise InputError(
                f"{self._num_cut:,} of {self._num_cut + self.shares.num_turns:,} utterances were "
                "cut at their limit of tokens, and again with double room. Raise "
                "--max-reply-tokens, above all for a model that thinks first, and start anew in "
                "another --run. --keep-unread goes on all the same; what is finished is kept."
            )
        if self.shares.without > MAX_SHARE:
            raise InputError(
                self._message("carry no readable offer", self.shares.without, "utterances", without)
            )
        if self.shares.far > MAX_SHARE:
            what = "lie far outside target and anchor"
            raise InputError(self._message(what, self.shares.far, "offers", far))

    def _message(self, what: str, share: float, of: str, examples: list[str]) -> str:
        return "\n".join(
            (
                f"{share:.0%} of the {of} in {self._num_dialogues} dialogues {what}:",
                *(f"  {example}" for example in examples),
                "Are target and anchor in the domain's unit, and is that what the two sides speak "
                "of? If not, correct the scenarios and the prompt pack, or use the --domain that "
                "fits, and start anew in another --run. If the words are at fault, have a language "
                "model read them (--offer-reader llm). --keep-unread goes on all the same; what is "
                "finished is kept.",
            )
        )


def _example(trajectory: Trajectory, turn: Turn) -> str:
    """An utterance and what was read in it, in the domain that it should be of."""
    text = turn.text if len(turn.text) <= EXAMPLE_LENGTH else f"{turn.text[:EXAMPLE_LENGTH]}…"
    name = trajectory.domain
    if turn.offer is None:
        return f"{text!r}: no offer in {get_domain(name).unit}"
    offer, target, anchor = (
        format_value(name, value)
        for value in (turn.offer, trajectory.focal_target, trajectory.counterparty_anchor)
    )
    return f"{text!r}: {offer}, with target {target} and anchor {anchor}"
