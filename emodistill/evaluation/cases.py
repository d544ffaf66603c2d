"""Case studies found by query instead of by eye (paper, Appendix Q).

Four questions, each answered by the dialogue that answers it most clearly: which emotions close the
whole gap in the fewest turns, which utterance ranks highest for SFT, where the judge likes one turn
of a dialogue most and another least, and where the selector makes the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from emodistill.offline.rewards import (
    FocalTurns,
    dialogue_utility,
    jpo_advantages,
    sft_quality,
)
from emodistill.records import Trajectory, Turn


class Case(NamedTuple):
    """A dialogue, the turns of it to show, and what each of them is worth in the case's terms."""

    trajectory: Trajectory
    turns: tuple[Turn, ...]
    values: tuple[float, ...]


class DialoguePair(NamedTuple):
    """The same scenario and seed, played by two methods."""

    before: Trajectory
    after: Trajectory

    @property
    def gain(self) -> float:
        """By how much the savings went up."""
        return dialogue_utility(self.after) - dialogue_utility(self.before)


def dialogue_pairs(before: Sequence[Trajectory], after: Sequence[Trajectory]) -> list[DialoguePair]:
    """The dialogues of two methods on the scenarios and seeds that both have played, by name."""
    earlier, later = ({(t.scenario_id, t.seed): t for t in side} for side in (before, after))
    shared = sorted(earlier.keys() & later.keys())
    return [DialoguePair(earlier[key], later[key]) for key in shared]


def quickest_close(trajectories: Sequence[Trajectory]) -> Case | None:
    """The dialogue with the highest savings, of those the one with the fewest turns (IQL's case).

    Values are the turns' offers as savings; dialogues with one focal turn hold no transition.
    """
    closed = [t for t in trajectories if t.outcome == "accepted" and len(t.focal_turns) >= 2]
    if not closed:
        return None
    best = min(closed, key=lambda t: (-dialogue_utility(t), len(t.turns), t.trajectory_id))
    gap = best.focal_target - best.counterparty_anchor
    shares = (
        math.nan
        if turn.offer is None or gap == 0
        else (turn.offer - best.counterparty_anchor) / gap
        for turn in best.focal_turns
    )
    return Case(best, best.focal_turns, tuple(shares))


def best_utterance(trajectories: Sequence[Trajectory], table: FocalTurns) -> Case | None:
    """The turn with the highest hybrid quality q = r + R/2 (SFT's case); its value is q.

    Args:
      table: the turns of these dialogues.
    """
    quality = sft_quality(table)
    if not np.isfinite(quality).any():
        return None
    return _case(trajectories, table, [int(np.nanargmax(quality))], quality)


def largest_flip(trajectories: Sequence[Trajectory], table: FocalTurns) -> Case | None:
    """The dialogue whose turns have the most different advantages, one of either sign (JPO's case).

    Values are the advantages, in the turns' order; the first dialogue by name where several tie.

    Args:
      table: the turns of these dialogues.
    """
    values = jpo_advantages(table)
    advantages = pd.Series(values).dropna()
    by_dialogue = advantages.groupby(table.trajectory_index[advantages.index], sort=False)
    ends = by_dialogue.agg(["min", "max", "idxmin", "idxmax"])
    ends = ends[(ends["min"] < 0) & (ends["max"] > 0)]
    if ends.empty:
        return None
    widest = ends.loc[(ends["max"] - ends["min"]).idxmax()]
    rows = sorted((int(widest["idxmin"]), int(widest["idxmax"])))
    return _case(trajectories, table, rows, values)


def selector_difference(
    without: Sequence[Trajectory], with_selector: Sequence[Trajectory]
) -> DialoguePair | None:
    """The scenario and seed on which the selector gains most, if it gains anywhere."""
    pairs = dialogue_pairs(without, with_selector)
    best = max(pairs, key=lambda pair: pair.gain, default=None)
    return best if best is not None and best.gain > 0 else None


def _case(
    trajectories: Sequence[Trajectory], table: FocalTurns, rows: list[int], values: np.ndarray
) -> Case:
    """Some rows of the table, all of one dialogue, with their values."""
    trajectory = trajectories[table.trajectory_index[rows[0]]]
    turns = tuple(trajectory.turns[table.turn_index[row]] for row in rows)
    return Case(trajectory, turns, tuple(values[rows].tolist()))
