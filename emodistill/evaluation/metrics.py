"""What a dialogue amounts to: its utility, its offers, its emotions' scores (Appendix E.3–E.7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from emodistill.evaluation.bootstrap import formula_ci
from emodistill.negotiation.mediator import replay
from emodistill.offline.rewards import Scores
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


class EmotionScore(NamedTuple):
    """How the judge likes dialogues under one emotion."""

    emotion: str
    mean: float
    """Mean of the scenarios' means (Eq. 8), with its 95 % t-interval over scenarios."""
    low: float
    high: float
    num_turns: int
    num_scenarios: int


def emotion_scores(trajectories: Sequence[Trajectory], scores: Scores) -> list[EmotionScore]:
    """Judge scores of the focal turns by emotion, best mean first, ties by name (Figure 1).

    Each emotion's interval has that emotion's own variance, which is what Welch's has in place of
    one variance for all; NaN with a single scenario. Emotions without a scored turn are left out.
    """
    turns = scored_emotions(trajectories, scores)
    means = scenario_means(turns)
    num_turns = turns.emotion.value_counts()
    rows = [
        EmotionScore(
            str(emotion), *formula_ci(of_emotion), int(num_turns[emotion]), len(of_emotion)
        )
        for emotion, of_emotion in means.groupby("emotion")
    ]
    return sorted(rows, key=lambda row: (-row.mean, row.emotion))


def scored_emotions(trajectories: Sequence[Trajectory], scores: Scores) -> pd.DataFrame:
    """`emotion`, `scenario_id`, `run` and `score` of the focal turns that have emotion and score.

    A run is a dialogue.
    """
    rows = [
        (
            turn.emotion,
            trajectory.scenario_id,
            trajectory.trajectory_id,
            scores.get((trajectory.trajectory_id, turn.index)),
        )
        for trajectory in trajectories
        for turn in trajectory.focal_turns
    ]
    frame = pd.DataFrame(rows, columns=["emotion", "scenario_id", "run", "score"]).dropna()
    return frame.astype({"score": np.float64})


def scenario_means(turns: pd.DataFrame) -> pd.Series:
    """r̄ of Eq. 7 by emotion and scenario: the mean over its runs of each run's mean score.

    A long run counts as much as a short one, and a scenario once whatever its number of runs.

    Args:
      turns: of `scored_emotions`.
    """
    runs = turns.groupby(["emotion", "scenario_id", "run"]).score.mean()
    return runs.groupby(level=["emotion", "scenario_id"]).mean()


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
