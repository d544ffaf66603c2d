"""What a dialogue amounts to: its utility, its offers, its emotions' scores (Appendix E.3–E.7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from emodistill.evaluation.bootstrap import bootstrap_ci
from emodistill.negotiation.mediator import replay
from emodistill.offline.rewards import Scores, savings
from emodistill.records import Trajectory


def in_bounds(trajectory: Trajectory) -> list[bool]:
    """For each focal offer, whether it lies between the two positions on the table.

    The first offer has to be the target. A later one may go from the focal side's last offer as
    far as the counterparty's last one; a step back, or past what the other side already offers,
    is out of bounds. It tells whether a model reads the figures, not whether it bargains well.
    """
    own = theirs = None
    are_in: list[bool] = []
    for turn in trajectory.turns:
        if turn.offer is None:
            continue
        if turn.speaker == "counterparty":
            theirs = turn.offer
            continue
        first = trajectory.focal_target if own is None else own
        last = first if own is None or theirs is None else theirs
        are_in.append(min(first, last) <= turn.offer <= max(first, last))
        own = turn.offer
    return are_in


def dialogue_utility(trajectory: Trajectory) -> float:
    """Savings of a success (Eq. 30, clipped to [0, 1]), 0 for a failure (Eq. 32)."""
    if trajectory.final_value is None:
        return 0.0
    return savings(trajectory.final_value, trajectory.counterparty_anchor, trajectory.focal_target)


class EmotionScore(NamedTuple):
    """How the judge likes turns under one emotion."""

    emotion: str
    mean: float
    """Mean of scenario means (Eqs. 7 and 8), with its 95 % interval over scenarios."""
    low: float
    high: float
    num_turns: int
    num_scenarios: int


def emotion_scores(
    trajectories: Sequence[Trajectory],
    scores: Scores,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> list[EmotionScore]:
    """Judge scores of the focal turns by emotion, best mean first, ties by name.

    Emotions without a scored turn are left out. A scenario counts once whatever its number of
    turns, as in the paper's Appendix B; there every cell has 20 runs, in a sweep they differ.
    """
    rows = [
        EmotionScore(
            str(emotion),
            *bootstrap_ci(turns.groupby("scenario_id").score.mean(), n_resamples, seed),
            len(turns),
            turns.scenario_id.nunique(),
        )
        for emotion, turns in scored_emotions(trajectories, scores).groupby("emotion")
    ]
    return sorted(rows, key=lambda row: (-row.mean, row.emotion))


def scored_emotions(trajectories: Sequence[Trajectory], scores: Scores) -> pd.DataFrame:
    """`emotion`, `scenario_id` and `score` of the focal turns that have both emotion and score."""
    rows = [
        (turn.emotion, trajectory.scenario_id, scores.get((trajectory.trajectory_id, turn.index)))
        for trajectory in trajectories
        for turn in trajectory.focal_turns
    ]
    frame = pd.DataFrame(rows, columns=["emotion", "scenario_id", "score"]).dropna()
    return frame.astype({"score": np.float64})


def num_unread_offers(trajectory: Trajectory) -> int:
    """Turns that name a figure and in which no offer was read.

    An upper bound on offers in figures that were missed: such a turn may as well quote, refuse or
    speak of something else.
    """
    return sum(
        turn.offer is None and re.search(r"\d", turn.text) is not None for turn in trajectory.turns
    )


def num_otherwise_under(trajectories: Sequence[Trajectory], rule: str) -> int:
    """Dialogues that `rule` would have ended otherwise: sooner, at another value, or not at all."""
    return sum(replay(t, rule) != (t.outcome, t.final_value) for t in trajectories)
