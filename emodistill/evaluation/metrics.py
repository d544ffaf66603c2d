"""What a set of dialogues amounts to: success, Outcomes, Utility, rounds (Appendix E.3–E.7).

±, here and in every table, is the population standard deviation over dialogues.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from emodistill.emotions import EMOTION_INDEX
from emodistill.evaluation.bootstrap import bootstrap_ci
from emodistill.negotiation.mediator import replay
from emodistill.offline.rewards import Scores, savings
from emodistill.records import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """One method's row of a table: shares and savings in [0, 1], NaN where there is nothing."""

    num_dialogues: int
    num_scenarios: int
    success: float
    """Share of dialogues that end `accepted` (E.4)."""
    outcomes: float
    """Mean savings over successes (E.6)."""
    outcomes_std: float
    utility: float
    """Mean savings with failures counted as 0 (Eq. 32)."""
    utility_std: float
    rounds: float
    """Mean turns of both sides together (E.7)."""
    rounds_std: float
    in_bounds: float
    """Share of focal offers that lie between the two positions on the table (`in_bounds`)."""


def summarize(trajectories: Sequence[Trajectory]) -> MethodSummary:
    """The figures of a table's row; rates and means are NaN where there are no dialogues."""
    outcomes, outcomes_std = _mean_std(dialogue_outcomes(trajectories)[0])
    utility, utility_std = _mean_std([dialogue_utility(t) for t in trajectories])
    rounds, rounds_std = _mean_std([len(t.turns) for t in trajectories])
    return MethodSummary(
        num_dialogues=len(trajectories),
        num_scenarios=len({trajectory.scenario_id for trajectory in trajectories}),
        success=_mean_std([t.outcome == "accepted" for t in trajectories])[0],
        outcomes=outcomes,
        outcomes_std=outcomes_std,
        utility=utility,
        utility_std=utility_std,
        rounds=rounds,
        rounds_std=rounds_std,
        in_bounds=_mean_std([is_in for t in trajectories for is_in in in_bounds(t)])[0],
    )


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


def _mean_std(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    array = np.asarray(values, dtype=np.float64)
    return (float(array.mean()), float(array.std())) if len(array) else (math.nan, math.nan)


def dialogue_utility(trajectory: Trajectory) -> float:
    """Savings of a success (Eq. 30, clipped to [0, 1]), 0 for a failure (Eq. 32)."""
    if trajectory.final_value is None:
        return 0.0
    return savings(trajectory.final_value, trajectory.counterparty_anchor, trajectory.focal_target)


class Outcomes(NamedTuple):
    """Savings of the successes and the scenarios that they belong to."""

    values: np.ndarray
    scenario_ids: list[str]


def dialogue_outcomes(trajectories: Sequence[Trajectory]) -> Outcomes:
    """What the bootstrap of Appendix I resamples: savings over the dialogues that succeed."""
    accepted = [trajectory for trajectory in trajectories if trajectory.outcome == "accepted"]
    return Outcomes(
        np.array([dialogue_utility(trajectory) for trajectory in accepted], dtype=np.float64),
        [trajectory.scenario_id for trajectory in accepted],
    )


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
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> list[EmotionScore]:
    """Judge scores of the focal turns by emotion, best mean first, ties in vocabulary order.

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
    return sorted(rows, key=lambda row: (-row.mean, EMOTION_INDEX[row.emotion]))


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
