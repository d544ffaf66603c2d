"""Two dialogues on the same scenario, before training and after: which to show, and how."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from emodistill.domains import format_value
from emodistill.evaluation.metrics import dialogue_utility
from emodistill.records import Trajectory


class DialoguePair(NamedTuple):
    """The same scenario and seed, played by two methods."""

    before: Trajectory
    after: Trajectory


class OfferPoint(NamedTuple):
    """An offer in the drawing of a dialogue: x along the turns, y from the target (top) down."""

    speaker: str
    x: float
    y: float
    is_deal: bool


class OfferTrack(NamedTuple):
    """The drawing's size, its two level lines, their labels, and the offers."""

    width: float
    height: float
    target_y: float
    anchor_y: float
    target_label: str
    anchor_label: str
    points: list[OfferPoint]


def typical_pair(before: Sequence[Trajectory], after: Sequence[Trajectory]) -> DialoguePair | None:
    """The pair whose difference in savings is closest to the median of all pairs.

    Typical, not flattering: nothing else is looked at, and ties go to the first scenario by name.
    None where the two methods share no scenario and seed.
    """
    earlier, later = ({(t.scenario_id, t.seed): t for t in side} for side in (before, after))
    pairs = [
        DialoguePair(earlier[key], later[key]) for key in sorted(earlier.keys() & later.keys())
    ]
    if not pairs:
        return None
    gains = [dialogue_utility(pair.after) - dialogue_utility(pair.before) for pair in pairs]
    middle = statistics.median(gains)
    return pairs[min(range(len(pairs)), key=lambda i: abs(gains[i] - middle))]


def outcome_line(trajectory: Trajectory) -> str:
    """How the dialogue ended, in words."""
    rounds = f"{len(trajectory.turns)} turns"
    if trajectory.final_value is None:
        ending = {"breakdown": "talks broken off", "ongoing": "no agreement within the limit"}
        return f"{ending[trajectory.outcome]} after {rounds}: nothing won"
    value = format_value(trajectory.domain, trajectory.final_value)
    won = 100 * dialogue_utility(trajectory)
    return f"agreed on {value} after {rounds}: {won:.0f} % of the gap won"


def offer_track(trajectory: Trajectory, width: float = 480, height: float = 142) -> OfferTrack:
    """Where the offers stood, turn by turn, between the target (top) and the anchor (bottom).

    Offers beyond either are drawn a little outside, in a margin that the labels leave free.
    """
    top, bottom, left, right = 30.0, height - 30.0, 8.0, width - 8.0
    target, anchor = trajectory.focal_target, trajectory.counterparty_anchor
    last = max(1, len(trajectory.turns) - 1)

    def point(index: int, speaker: str, value: float, is_deal: bool = False) -> OfferPoint:
        share = (value - anchor) / (target - anchor)
        y = bottom - min(1.1, max(-0.1, share)) * (bottom - top)
        x = left + index / last * (right - left)
        return OfferPoint(speaker, round(x, 1), round(y, 1), is_deal)

    points = [
        point(turn.index, turn.speaker, turn.offer)
        for turn in trajectory.turns
        if turn.offer is not None
    ]
    if trajectory.final_value is not None and trajectory.turns:
        final = trajectory.turns[-1]
        points = [p for p in points if p.x < right - 0.05]
        points.append(point(final.index, final.speaker, trajectory.final_value, is_deal=True))
    return OfferTrack(
        width,
        height,
        target_y=top,
        anchor_y=bottom,
        target_label=f"focal target {format_value(trajectory.domain, target)}",
        anchor_label=f"counterparty's anchor {format_value(trajectory.domain, anchor)}",
        points=points,
    )
