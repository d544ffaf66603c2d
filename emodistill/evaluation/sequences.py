"""Recorded emotions: which pairs of them end well, and how far a selector's choices are from them.

Table 16 ranks the emotions of dialogues with two focal turns. Appendix H counts how often a greedy
selector would have chosen the recorded emotion, over all turns and over those that SFT keeps.

Departures from the paper: a sequence's successes and its savings with failures counted as 0 stand
beside its rank, since savings over successes alone put one on top that seldom closes. Matches are
also counted by outcome. The paper names a shift between the states of the sweep and those met at
deployment and measures none; `state_shift` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
from scipy import stats

from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.evaluation.bootstrap import clustered_ci, interval_ends
from emodistill.negotiation.states import DialogueState, feature_names, features
from emodistill.offline.rewards import (
    USUAL_LIMIT,
    FocalTurns,
    Scores,
    TurnLimit,
    dialogue_utility,
    sft_quality,
    top_fraction,
)
from emodistill.records import Outcome, Trajectory

NUM_STEPS = 2
"""Focal turns of the dialogues whose emotions are ranked, as in the paper's Table 16."""


def top_sequences(
    trajectories: Sequence[Trajectory], *, average: str = "mean", min_dialogues: int = 3
) -> pd.DataFrame:
    """The emotions of two-step dialogues by savings, then by number of dialogues (Table 16).

    A two-step dialogue has two focal turns, both with an emotion; longer ones don't count. Further
    ties stand in vocabulary order; sequences that never close come last.

    Args:
      average: of the savings of a sequence's successes, `mean` or `median`.
      min_dialogues: rarer sequences are left out.

    Returns:
      A line a sequence: `first`, `second`, `num_dialogues`, `num_accepted`, `outcomes` (savings
      over the successes; NaN without one) and `utility` (mean savings, failures counted as 0).
    """
    vocabulary = pd.CategoricalDtype(EMOTIONS)
    rows = [
        (*(turn.emotion for turn in t.focal_turns), t.outcome == "accepted", dialogue_utility(t))
        for t in trajectories
        if len(t.focal_turns) == NUM_STEPS
    ]
    frame = pd.DataFrame(rows, columns=["first", "second", "is_accepted", "utility"])
    frame["outcomes"] = frame.utility.where(frame.is_accepted.astype(bool))  # NaN for a failure
    sequences = (
        frame.astype({"first": vocabulary, "second": vocabulary})
        .groupby(["first", "second"], observed=True)
        .agg(
            num_dialogues=("utility", "size"),
            num_accepted=("outcomes", "count"),
            outcomes=("outcomes", _mean if average == "mean" else "median"),
            utility=("utility", _mean),
        )
        .query("num_dialogues >= @min_dialogues")
        .reset_index()
    )
    return sequences.sort_values(["outcomes", "num_dialogues"], ascending=False, kind="stable")


def _mean(values: pd.Series) -> float:
    """By `fsum`, since the order of the dialogues must not decide between equal means."""
    known = values.dropna()
    return math.fsum(known) / len(known) if len(known) else math.nan


def match_rates(
    trajectories: Sequence[Trajectory],
    scores: Scores,
    choose: Callable[[DialogueState], str],
    n_resamples: int = 10_000,
    seed: int = 0,
    *,
    limit: TurnLimit = USUAL_LIMIT,
) -> list[dict[str, Any]]:
    """Replay the recorded states through `choose` and count its agreement with the emotions spoken.

    Where emotions were drawn uniformly, any selector matches 1 turn in 28 (3.6 %) by chance; read
    the rates against that. Turns spoken without an emotion are left out.

    Args:
      choose: the selector's greedy choice.
      limit: what the dialogues were played under.

    Returns:
      A row a group: `group` (`all`; `kept`, the turns that SFT trains on by default; or an outcome
      of the dialogue), `num_turns`, `num_matches`, and `rate` (per cent), with its interval over
      scenarios as `interval_low` and `interval_high`; NaN without turns.
    """
    table = FocalTurns.from_trajectories(trajectories, scores, max_turns=limit.horizon)
    matches = []
    for row in range(len(table)):
        trajectory = trajectories[table.trajectory_index[row]]
        if (emotion := table.emotions[row]) is not None:
            before = trajectory.turns[: table.turn_index[row]]
            chosen = choose(DialogueState.from_turns(trajectory, before, limit.cap))
            matches.append((row, trajectory.outcome, table.scenario_ids[row], chosen == emotion))
    turns = pd.DataFrame(matches, columns=["row", "outcome", "scenario_id", "is_match"])
    is_kept = turns.row.isin(top_fraction(sft_quality(table)))
    groups = {"all": turns, "kept": turns[is_kept]}
    groups |= {name: turns[turns.outcome == name] for name in get_args(Outcome)}
    rows = []
    for name, group in groups.items():
        rate, *ends = clustered_ci(group.is_match, group.scenario_id, n_resamples, seed)
        counts = {"num_turns": len(group), "num_matches": int(group.is_match.sum())}
        ends = interval_ends("interval", [100 * end for end in ends])
        rows.append({"group": name, **counts, "rate": 100 * rate, **ends})
    return rows


def state_shift(
    sweep: Sequence[Trajectory],
    evaluation: Sequence[Trajectory],
    *,
    limit: TurnLimit = USUAL_LIMIT,
) -> pd.DataFrame:
    """How far the states met at evaluation are from the sweep's, feature by feature, widest first.

    States before focal turns, as selectors see them. There is no p-value, since states of one
    dialogue depend on each other.

    Returns:
      A line a feature: `feature`, `distance` (Kolmogorov–Smirnov's: the largest gap between the
      distribution functions, 0 to 1), `sweep_mean` and `evaluation_mean`.

    Raises:
      InputError: a side has no focal turn.
    """
    sides: list[np.ndarray] = []
    for name, trajectories in (("sweep", sweep), ("evaluation", evaluation)):
        states = [
            features(DialogueState.from_turns(t, t.turns[: turn.index], limit.cap))
            for t in trajectories
            for turn in t.focal_turns
        ]
        if not states:
            raise InputError(f"{name}: {len(trajectories)} dialogues without a focal turn.")
        sides.append(np.stack(states).astype(np.float64))
    shifts = [
        (name, stats.ks_2samp(ours, theirs, method="asymp")[0], ours.mean(), theirs.mean())
        for name, ours, theirs in zip(feature_names(), sides[0].T, sides[1].T, strict=True)
    ]
    return pd.DataFrame(
        shifts, columns=["feature", "distance", "sweep_mean", "evaluation_mean"]
    ).sort_values("distance", ascending=False, kind="stable")
