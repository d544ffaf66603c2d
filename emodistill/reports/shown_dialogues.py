"""Two dialogues on the same scenario, before training and after: which to show, and how."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from emodistill.domains import format_value
from emodistill.evaluation.cases import DialoguePair, dialogue_pairs
from emodistill.offline.rewards import dialogue_utility
from emodistill.records import Trajectory, Turn


class OfferPoint(NamedTuple):
    """An offer in the drawing of a dialogue: x along the turns, y from the target (top) down."""

    speaker: str
    x: float
    y: float
    is_deal: bool


LEFT, RIGHT, TOP, BOTTOM = 8.0, 472.0, 30.0, 112.0
"""The drawing's area for offers within its 480 × 142 units (report.html.j2)."""


def typical_pair(before: Sequence[Trajectory], after: Sequence[Trajectory]) -> DialoguePair | None:
    """The pair whose difference in savings is closest to the median of all pairs.

    Typical, not flattering: nothing else is looked at, and ties go to the first scenario by name.
    None where the two methods share no scenario and seed.
    """
    pairs = dialogue_pairs(before, after)
    if not pairs:
        return None
    middle = statistics.median(pair.gain for pair in pairs)
    return min(pairs, key=lambda pair: abs(pair.gain - middle))


def outcome_line(trajectory: Trajectory) -> str:
    """How the dialogue ended, in words."""
    rounds = f"{len(trajectory.turns)} turns"
    if trajectory.final_value is None:
        ending = {"breakdown": "talks broken off", "ongoing": "no agreement within the limit"}
        return f"{ending[trajectory.outcome]} after {rounds}: nothing won"
    value = format_value(trajectory.domain, trajectory.final_value)
    won = 100 * dialogue_utility(trajectory)
    return f"agreed on {value} after {rounds}: {won:.0f} % of the gap won"


def offer_track(trajectory: Trajectory) -> list[OfferPoint]:
    """Where the offers stood, turn by turn, between the target (TOP) and the anchor (BOTTOM).

    Offers beyond either are drawn a little outside, in a margin that the labels leave free.
    """
    target, anchor = trajectory.focal_target, trajectory.counterparty_anchor
    last = max(1, len(trajectory.turns) - 1)

    def point(turn: Turn, value: float, is_deal: bool) -> OfferPoint:
        share = (value - anchor) / (target - anchor)
        y = BOTTOM - min(1.1, max(-0.1, share)) * (BOTTOM - TOP)
        x = LEFT + turn.index / last * (RIGHT - LEFT)
        return OfferPoint(turn.speaker, round(x, 1), round(y, 1), is_deal)

    turns = trajectory.turns
    points = [point(turn, turn.offer, False) for turn in turns if turn.offer is not None]
    if trajectory.final_value is not None and turns:
        points = [p for p in points if p.x < RIGHT - 0.05]
        points.append(point(turns[-1], trajectory.final_value, True))
    return points
