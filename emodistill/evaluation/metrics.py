"""What a set of dialogues amounts to: success, Outcomes, Utility, rounds (Appendix E.3–E.7).

±, here and in every table, is the population standard deviation over dialogues.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from emodistill.emotions import EMOTIONS
from emodistill.evaluation.bootstrap import bootstrap_ci
from emodistill.negotiation.mediator import replay
from emodistill.offline.rewards import Scores, is_truncated, savings
from emodistill.records import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSummary:
    """One method's row of a table: shares and savings in [0, 1], NaN where there is nothing."""

    num_dialogues: int
    num_scenarios: int
    num_accepted: int
    num_breakdown: int
    num_ongoing: int
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
    ends = [trajectory.outcome for trajectory in trajectories]
    outcomes, outcomes_std = _mean_std(dialogue_outcomes(trajectories)[0])
    utility, utility_std = _mean_std([dialogue_utility(t) for t in trajectories])
    rounds, rounds_std = _mean_std([len(t.turns) for t in trajectories])
    return MethodSummary(
        num_dialogues=len(ends),
        num_scenarios=len({trajectory.scenario_id for trajectory in trajectories}),
        num_accepted=ends.count("accepted"),
        num_breakdown=ends.count("breakdown"),
        num_ongoing=ends.count("ongoing"),
        success=ends.count("accepted") / len(ends) if ends else math.nan,
        outcomes=outcomes,
        outcomes_std=outcomes_std,
        utility=utility,
        utility_std=utility_std,
        rounds=rounds,
        rounds_std=rounds_std,
        in_bounds=_mean_std([kept for t in trajectories for kept in in_bounds(t)])[0],
    )


def in_bounds(trajectory: Trajectory) -> list[bool]:
    """For each focal offer, whether it lies between the two positions on the table.

    The first offer has to be the target. A later one may go from the focal side's last offer as
    far as the counterparty's last one; a step back, or past what the other side already offers,
    is out of bounds. It tells whether a model reads the figures, not whether it bargains well.
    """
    own = theirs = None
    found = []
    for turn in trajectory.turns:
        if turn.offer is None:
            continue
        if turn.speaker == "counterparty":
            theirs = turn.offer
            continue
        first = trajectory.focal_target if own is None else own
        last = first if own is None or theirs is None else theirs
        found.append(min(first, last) <= turn.offer <= max(first, last))
        own = turn.offer
    return found


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
    cells = scores_by_emotion(trajectories, scores)
    rows = [
        EmotionScore(
            emotion,
            *bootstrap_ci(scenario_means(cells[emotion]), n_resamples, seed),
            sum(map(len, cells[emotion].values())),
            len(cells[emotion]),
        )
        for emotion in EMOTIONS
        if emotion in cells
    ]
    return sorted(rows, key=lambda row: -row.mean)


def scores_by_emotion(
    trajectories: Sequence[Trajectory], scores: Scores
) -> dict[str, dict[str, list[float]]]:
    """emotion -> scenario -> scores of the focal turns; turns without either are left out."""
    cells: dict[str, dict[str, list[float]]] = {}
    for trajectory in trajectories:
        for turn in trajectory.focal_turns:
            score = scores.get((trajectory.trajectory_id, turn.index))
            if turn.emotion is not None and score is not None and not math.isnan(score):
                by_scenario = cells.setdefault(turn.emotion, {})
                by_scenario.setdefault(trajectory.scenario_id, []).append(float(score))
    return cells


def scenario_means(by_scenario: Mapping[str, list[float]]) -> list[float]:
    """The mean of each scenario (Eq. 7), in the order of the scenarios' names."""
    return [float(np.mean(by_scenario[name])) for name in sorted(by_scenario)]


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
    return sum(
        replay(
            t.turns,
            domain=t.domain,
            focal_target=t.focal_target,
            counterparty_anchor=t.counterparty_anchor,
            rule=rule,
        )
        != (t.outcome, t.final_value)
        for t in trajectories
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataQuality:
    """What the measuring instruments missed in a set of dialogues."""

    num_turns: int
    num_without_offer: int
    """Turns in which no offer was read: none was made, or it wasn't understood."""
    num_unread: int
    """Those of them that name a figure (`num_unread_offers`)."""
    num_truncated: int
    """Dialogues cut off by a failure: still open before the cap on turns."""

    @property
    def without_offer_share(self) -> float:
        """Share of all turns; NaN without turns."""
        return self.num_without_offer / self.num_turns if self.num_turns else math.nan

    @property
    def unread_share(self) -> float:
        """Share of all turns; NaN without turns."""
        return self.num_unread / self.num_turns if self.num_turns else math.nan


def data_quality(trajectories: Sequence[Trajectory], *, max_turns: int = 30) -> DataQuality:
    """Count missing offers and cut-off dialogues; `max_turns` is the cap they were played under."""
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    return DataQuality(
        num_turns=len(turns),
        num_without_offer=sum(turn.offer is None for turn in turns),
        num_unread=sum(num_unread_offers(trajectory) for trajectory in trajectories),
        num_truncated=sum(is_truncated(trajectory, max_turns) for trajectory in trajectories),
    )
