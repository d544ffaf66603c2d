"""Table 1 (methods by domain) and the paired differences behind its headline.

Success: share of `accepted` dialogues. Outcomes: mean savings over those. Utility: mean savings
with failures counted as 0. Rounds: turns of both sides. In bounds: share of the focal offers that
open at the target or, later, step neither back nor past the other side's offer. ± is the population
standard deviation over dialogues. Intervals are 95 % percentile bootstrap: over dialogues, and over
scenarios with all their dialogues (clustered), which is the one to trust where a scenario has
several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from emodistill.configs import METHODS
from emodistill.domains import DOMAINS
from emodistill.errors import InputError
from emodistill.evaluation.bootstrap import (
    Interval,
    bootstrap_ci,
    clustered_ci,
    paired_difference_ci,
)
from emodistill.evaluation.metrics import dialogue_utility, summarize
from emodistill.records import Trajectory
from emodistill.reports.paper import PaperCell, paper_cell

TRAINED = frozenset({"iql+sft", "iql+jpo", "iql+sft+jpo", "iql+sft+alol", "iql+sft+dpo"})
STUDENT, TAUGHT = "vanilla-slm", "iql+sft+jpo"
CONTRASTS = (
    *((method, STUDENT) for method in METHODS[1:]),
    ("iql", "random"),
    ("iql", "oracle"),
    ("iql+sft", "iql"),
    ("iql+sft+jpo", "iql+sft"),
    ("iql+sft+jpo", "iql+jpo"),
    ("iql+sft+jpo", "iql+sft+alol"),
    ("iql+sft+jpo", "iql+sft+dpo"),
)

TITLES = {"crad": "CRAD", "disaster": "Disaster", "hospital": "Hospital", "student": "Student"}
"""Domains as the paper's tables head them."""

Evaluations = Mapping[str, Mapping[str, Sequence[Trajectory]]]
"""domain -> method -> its dialogues."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method in a domain, in per cent but for the rounds; NaN where nothing can be said."""

    domain: str
    method: str
    num_dialogues: int
    num_scenarios: int
    success: float
    outcomes: float
    outcomes_std: float
    utility: float
    utility_std: float
    utility_ci: Interval
    utility_clustered: Interval
    rounds: float
    rounds_std: float
    in_bounds: float
    paper: PaperCell | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Utility of `method` minus that of `baseline` on the same scenarios, in points of per cent."""

    domain: str
    method: str
    baseline: str
    num_scenarios: int
    baseline_mean: float
    """Utility of `baseline` on those scenarios."""
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`higher` or `lower` where the interval leaves out zero, else `unclear`."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "unclear"


def table_1(evaluations: Evaluations, *, seed: int, num_resamples: int) -> list[Row]:
    """A row for each domain and method that has dialogues, in the order of DOMAINS and METHODS.

    Raises:
      InputError: a dialogue stands under another domain than its own.
    """
    return [
        _row(domain, method, list(evaluations[domain][method]), seed, num_resamples)
        for domain in sorted(evaluations, key=order_of(DOMAINS))
        for method in sorted(evaluations[domain], key=order_of(METHODS))
        if evaluations[domain][method]
    ]


def paired_differences(
    evaluations: Evaluations, *, seed: int, num_resamples: int
) -> list[Difference]:
    """Each of CONTRASTS that a domain has dialogues for, on the scenarios that both played."""
    found = []
    for domain in sorted(evaluations, key=order_of(DOMAINS)):
        for method, baseline in CONTRASTS:
            ours = evaluations[domain].get(method, ())
            theirs = evaluations[domain].get(baseline, ())
            shared = {t.scenario_id for t in ours} & {t.scenario_id for t in theirs}
            if not shared:
                continue
            on_shared = [dialogue_utility(t) for t in theirs if t.scenario_id in shared]
            ci = paired_difference_ci(
                *_utilities(ours),
                *_utilities(theirs),
                num_resamples,
                seed,
            )
            found.append(
                Difference(
                    domain=domain,
                    method=method,
                    baseline=baseline,
                    num_scenarios=len(shared),
                    baseline_mean=100 * float(np.mean(on_shared)),
                    mean=ci.mean,
                    low=ci.low,
                    high=ci.high,
                )
            )
    return found


def percent(value: float) -> str:
    """One decimal, a dash for NaN; never `-0.0`."""
    return "–" if math.isnan(value) else f"{round(value, 1) + 0.0:.1f}"


def signed(value: float) -> str:
    """One decimal with a true plus or minus sign, a dash for NaN."""
    if math.isnan(value):
        return "–"
    rounded = round(value, 1) + 0.0
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded):.1f}"


def _row(
    domain: str, method: str, dialogues: list[Trajectory], seed: int, num_resamples: int
) -> Row:
    for dialogue in dialogues:
        if dialogue.domain != domain:
            raise InputError(
                f"{dialogue.trajectory_id} is a dialogue of {dialogue.domain}, found among those "
                f"of {domain}; evaluations must be grouped by their own domain."
            )
    summary = summarize(dialogues)
    percents, clusters = _utilities(dialogues)
    return Row(
        domain=domain,
        method=method,
        num_dialogues=summary.num_dialogues,
        num_scenarios=summary.num_scenarios,
        success=100 * summary.success,
        outcomes=100 * summary.outcomes,
        outcomes_std=100 * summary.outcomes_std,
        utility=100 * summary.utility,
        utility_std=100 * summary.utility_std,
        utility_ci=bootstrap_ci(percents, num_resamples, seed),
        utility_clustered=clustered_ci(percents, clusters, num_resamples, seed),
        rounds=summary.rounds,
        rounds_std=summary.rounds_std,
        in_bounds=100 * summary.in_bounds,
        paper=paper_cell(domain, method),
    )


def _utilities(dialogues: Sequence[Trajectory]) -> tuple[list[float], list[str]]:
    """The utility of each dialogue in per cent, and its scenario."""
    return [100 * dialogue_utility(t) for t in dialogues], [t.scenario_id for t in dialogues]


def order_of(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """A sorting key: known names in their order, unknown ones after them by name."""
    return lambda name: (order.index(name) if name in order else len(order), name)
