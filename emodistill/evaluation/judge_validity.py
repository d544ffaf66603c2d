"""How a judge's scores of turns go with what the turns are worth.

Worths come from forks (`turn_worth`); where there are none, how the dialogues ended says a little.
Intervals are percentiles over resampled scenarios, with all of their turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from emodistill.evaluation.bootstrap import Interval, percentiles
from emodistill.evaluation.turn_worth import phase_of_turn, worth_reliability
from emodistill.offline.rewards import Scores, dialogue_utility
from emodistill.records import Trajectory, TurnWorth
from emodistill.seeding import stream

NUM_RESAMPLES = 500
"""Fewer than for tables of the paper: each ranks all turns anew."""
MIN_TURNS = 20
"""Turns of a group below which a correlation is not worth a row."""
MIN_RELIABILITY = 0.3
"""Worths of a lower reliability are mostly luck: divided by its root, a correlation that is itself
chance would nearly double, or grow without bound."""
LOW_VALIDITY = 0.3
"""Below that, about two fifths of the advantages or more have the wrong sign."""
MEASURES = ("utility", "success")
ALL = "all turns"

Statistic = Callable[[np.ndarray], float]
"""Of the chosen items, by their indices."""


class ValidityRow(NamedTuple):
    """How scores go with worths, for a group of turns and one measure of worth."""

    continued_by: str
    group: str
    measure: str
    num_turns: int
    spearman: Interval
    corrected: float
    """The same corrected for attenuation: divided by the root of the worths' reliability, and
    within ±1. NaN where that is below `MIN_RELIABILITY`."""
    sign_errors: Interval
    """Share of the advantages (Eq. 29) whose sign is not that of the worth; chance is 0.5. Zeros of
    either have no sign and are left out; NaN where fewer than `MIN_TURNS` turns remain."""


class CalibrationRow(NamedTuple):
    """What turns of one score are worth, in points."""

    continued_by: str
    score: int
    num_turns: int
    utility: float
    success: float


class OutcomeRow(NamedTuple):
    """How the mean score of a dialogue's turns goes with how it ended."""

    measure: str
    num_dialogues: int
    spearman: Interval


def clustered_statistic(
    statistic: Statistic, clusters: Sequence[str], *, seed: int = 0
) -> Interval:
    """Any statistic of N items with a percentile interval over resampled clusters.

    The ends are NaN where there is one cluster only, which says nothing of how clusters differ.
    """
    _, index = np.unique(np.asarray(clusters, np.str_), return_inverse=True)
    if index.max() == 0:
        return Interval(statistic(np.arange(len(index))), math.nan, math.nan)
    members = [np.flatnonzero(index == number) for number in range(index.max() + 1)]
    rng = stream(seed, "bootstrap", "statistic")
    found = []
    for _ in range(NUM_RESAMPLES):
        drawn = rng.integers(len(members), size=len(members))
        found.append(statistic(np.concatenate([members[i] for i in drawn])))
    values = np.array(found)
    values = values[np.isfinite(values)]
    ends = percentiles(values).tolist() if len(values) else (math.nan, math.nan)
    return Interval(statistic(np.arange(len(index))), *ends)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The rank correlation; NaN where a side is constant."""
    a, b = rankdata(first), rankdata(second)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else math.nan


def validity_rows(
    worths: Sequence[TurnWorth],
    scores: Scores,
    advantages: Scores,
    dialogues: Mapping[str, Trajectory],
) -> list[ValidityRow]:
    """For all turns with a score and a worth, then by phase and by kind of move.

    Args:
      worths: of one player's continuation.
      advantages: by the same keys as the scores, normalised over all turns of the judge.
    """
    known = [w for w in worths if (w.trajectory_id, w.turn_index) in scores]
    groups: dict[str, list[TurnWorth]] = {ALL: known}
    for worth in known:
        dialogue = dialogues[worth.trajectory_id]
        for name in (
            f"phase: {phase_of_turn(dialogue, worth.turn_index)}",
            f"move: {kind_of_move(dialogue, worth.turn_index)}",
        ):
            groups.setdefault(name, []).append(worth)
    return [
        _row(name, measure, members, scores, advantages, dialogues)
        for name, members in sorted(groups.items(), key=lambda item: (item[0] != ALL, item[0]))
        if len(members) >= MIN_TURNS
        for measure in MEASURES
    ]


def _row(
    group: str,
    measure: str,
    worths: Sequence[TurnWorth],
    scores: Scores,
    advantages: Scores,
    dialogues: Mapping[str, Trajectory],
) -> ValidityRow:
    keys = [(w.trajectory_id, w.turn_index) for w in worths]
    score = np.array([scores[key] for key in keys], float)
    worth = np.array([getattr(w, measure) for w in worths])
    advantage = np.array([advantages.get(key, math.nan) for key in keys])
    clusters = [dialogues[w.trajectory_id].scenario_id for w in worths]

    products = np.sign(advantage) * np.sign(worth)
    has_sign = np.isfinite(products) & (products != 0)

    def sign_errors(chosen: np.ndarray) -> float:
        signs = products[chosen][has_sign[chosen]]
        return float((signs < 0).mean()) if len(signs) else math.nan

    wrong = Interval(math.nan, math.nan, math.nan)
    if has_sign.sum() >= MIN_TURNS:
        wrong = clustered_statistic(sign_errors, clusters)
    rank = clustered_statistic(lambda i: spearman(score[i], worth[i]), clusters)
    reliability = worth_reliability(worths, measure)
    return ValidityRow(
        worths[0].continued_by,
        group,
        measure,
        len(worths),
        rank,
        _corrected(rank.mean, reliability),
        wrong,
    )


def _corrected(correlation: float, reliability: float) -> float:
    if not reliability >= MIN_RELIABILITY:
        return math.nan
    return float(np.clip(correlation / math.sqrt(reliability), -1.0, 1.0))


def calibration(worths: Sequence[TurnWorth], scores: Scores) -> list[CalibrationRow]:
    """The mean worth of the turns of each score."""
    by_score: dict[int, list[TurnWorth]] = {}
    for worth in worths:
        score = scores.get((worth.trajectory_id, worth.turn_index))
        if score is not None:
            by_score.setdefault(int(score), []).append(worth)
    return [
        CalibrationRow(
            some[0].continued_by,
            score,
            len(some),
            100 * float(np.mean([worth.utility for worth in some])),
            100 * float(np.mean([worth.success for worth in some])),
        )
        for score, some in sorted(by_score.items())
    ]


def outcome_rows(dialogues: Sequence[Trajectory], scores: Scores) -> list[OutcomeRow]:
    """How the dialogues' mean turn scores go with their utility and success."""
    means, ends, clusters = [], [], []
    for dialogue in dialogues:
        keys = [(dialogue.trajectory_id, turn.index) for turn in dialogue.focal_turns]
        known = [scores[key] for key in keys if key in scores]
        if known:
            means.append(np.mean(known))
            ends.append((dialogue_utility(dialogue), dialogue.outcome == "accepted"))
            clusters.append(dialogue.scenario_id)
    if len(means) < 2:
        return []
    mean, columns = np.array(means), np.array(ends, float).T
    return [
        OutcomeRow(measure, len(mean), clustered_statistic(_rank_of(mean, column), clusters))
        for measure, column in zip(MEASURES, columns, strict=True)
    ]


def _rank_of(first: np.ndarray, second: np.ndarray) -> Statistic:
    return lambda chosen: spearman(first[chosen], second[chosen])


def kind_of_move(dialogue: Trajectory, turn_index: int) -> str:
    """What a focal turn does with the figures: opens, accepts, stands, gives a little or much."""
    before = dialogue.turns[:turn_index]
    offer = dialogue.turns[turn_index].offer
    own = [t.offer for t in before if t.speaker == "focal" and t.offer is not None]
    theirs = [t.offer for t in before if t.speaker == "counterparty" and t.offer is not None]
    if not any(turn.speaker == "focal" for turn in before):
        return "opens"
    if offer is None:
        is_last = turn_index == dialogue.turns[-1].index and dialogue.outcome == "accepted"
        return "accepts" if is_last else "names no figure"
    if theirs and offer == theirs[-1]:
        return "accepts"
    standing = own[-1] if own else dialogue.focal_target
    reached = theirs[-1] if theirs else dialogue.counterparty_anchor
    if reached == standing or (offer - standing) / (reached - standing) <= 0:
        return "stands"
    return "gives a little" if (offer - standing) / (reached - standing) <= 0.4 else "gives much"


def known_line(judge: str, rows: Sequence[ValidityRow], outcomes: Sequence[OutcomeRow]) -> str:
    """What is known of a judge in one line, for where something learns from it.

    It warns where the validity in utility is low. How dialogues ended never makes it warn, since
    that says little of single turns.
    """
    overall = [row for row in rows if row.group == ALL]
    parts = [
        f"{row.spearman.text} with their worth in {row.measure}, {row.continued_by} playing on"
        f"{_correction_text(row)}"
        for row in overall
    ]
    if not overall:
        parts = [
            f"{row.spearman.text} with the {row.measure} of dialogues, by their mean"
            for row in outcomes
        ]
    is_low = any(_is_low(row) for row in overall if row.measure == "utility")
    warning = "warning: low validity: " if is_low else ""
    return f"{warning}rank correlation of {judge}'s turn scores: {'; '.join(parts) or 'unknown'}."


def _is_low(row: ValidityRow) -> bool:
    """Whether a validity is known to be low; a judge that scores all turns alike has none."""
    if math.isnan(row.spearman.mean):
        return True
    return row.corrected < LOW_VALIDITY


def _correction_text(row: ValidityRow) -> str:
    if math.isnan(row.spearman.mean):
        return ""
    if math.isnan(row.corrected):
        return " (corrected for attenuation: not known: too few continuations)"
    return f" ({row.corrected:.2f} corrected for attenuation)"


def repeat_lines(reliability: float, validity: float, usd_per_score: float | None) -> list[str]:
    """What scoring every turn several times would bring (Spearman-Brown), a line for each.

    Args:
      reliability: of a single score, by repeats.
      validity: of a single score; left out where it is NaN, which is unknown.
    """
    lines = []
    for repeats in (1, 2, 3, 5):
        gained = repeats / (1 + (repeats - 1) * reliability)
        cost = "" if not usd_per_score else f", {1_000 * repeats * usd_per_score:.2f} USD"
        line = f"{repeats} x {1_000:,} scores{cost}: reliability {gained * reliability:.2f}"
        if not math.isnan(validity):
            line += f", validity {validity * math.sqrt(gained):.2f}"
        lines.append(line)
    return lines
