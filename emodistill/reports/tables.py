"""Rows of methods (Tables 1 to 6, 12 and 14), intervals of their outcomes (9 to 11), and the paired
differences behind the headline.

Success: share of `accepted` dialogues. Outcomes: mean savings over those. Utility: mean savings
with failures counted as 0. Rounds: turns of both sides. In bounds: share of the focal offers that
open at the target or, later, step neither back nor past the other side's offer. ± is the population
standard deviation over dialogues. Intervals are 95 % percentile bootstrap: over dialogues, and over
scenarios with all their dialogues (clustered), which is the one to trust where a scenario has
several. Beside a paired difference stand the p-value of a sign-flip test over scenarios, Holm's
correction of it for the contrasts of the domain, and how many scenarios a stated effect needs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
from emodistill.evaluation.comparisons import (
    holm,
    paired_p_value,
    scenario_differences,
    scenarios_needed,
)
from emodistill.evaluation.metrics import dialogue_outcomes, dialogue_utility, summarize
from emodistill.records import Trajectory
from emodistill.reports import paper
from emodistill.reports.paper import PaperCell, paper_cell
from emodistill.reports.table import Block, Cell, Column, PlusMinus, Range, Table

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
EFFECT_POINTS, POWER = 5.0, 0.8
"""A difference in utility, in points of per cent, and how probably it is to be seen."""

TITLES = {"crad": "CRAD", "disaster": "Disaster", "hospital": "Hospital", "student": "Student"}
"""Domains as the paper's tables head them."""

Evaluations = Mapping[str, Mapping[str, Sequence[Trajectory]]]
"""domain -> method -> its dialogues."""


class Entry(NamedTuple):
    """What a row is made from."""

    block: str
    """A domain, a counterparty, a method: what heads its part of the table."""
    label: str
    dialogues: Sequence[Trajectory]
    published_as: str | None
    """The block of the paper's table that it stands beside; None where the paper has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method in a domain, in per cent but for the rounds; NaN where nothing can be said."""

    block: str
    label: str
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
    p: float
    """Of the two-sided sign-flip test over scenarios; NaN with one scenario."""
    p_holm: float = math.nan
    """Adjusted for all contrasts of the domain."""
    num_needed: float
    """Scenarios that show EFFECT_POINTS with probability POWER; NaN with one scenario."""

    @property
    def verdict(self) -> str:
        """`higher` or `lower` where the interval leaves out zero, else `unclear`."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "unclear"


class Resampling(NamedTuple):
    """Of the bootstrap."""

    seed: int = 0
    num_resamples: int = 10_000


def entries_of(evaluations: Evaluations) -> list[Entry]:
    """A row for each domain and method that has dialogues, in the order of DOMAINS and METHODS.

    Raises:
      InputError: a dialogue stands under another domain than its own.
    """
    found = []
    for domain in sorted(evaluations, key=order_of(DOMAINS)):
        for method in sorted(evaluations[domain], key=order_of(METHODS)):
            dialogues = evaluations[domain][method]
            for dialogue in dialogues:
                if dialogue.domain != domain:
                    raise InputError(
                        f"{dialogue.trajectory_id} is a dialogue of {dialogue.domain}, found among "
                        f"those of {domain}; evaluations must be grouped by their own domain."
                    )
            if dialogues:
                found.append(Entry(domain, method, dialogues, domain))
    return found


def method_rows(table: str, entries: Iterable[Entry], resampling: Resampling) -> list[Row]:
    """The rows of `table` (`table-1`), the paper's figures beside them."""
    return [
        _row(entry, paper_cell(table, entry.published_as, entry.label), resampling)
        for entry in entries
    ]


def paired_differences(evaluations: Evaluations, resampling: Resampling) -> list[Difference]:
    """Each of CONTRASTS that a domain has dialogues for, on the scenarios that both played."""
    found = []
    for domain in sorted(evaluations, key=order_of(DOMAINS)):
        of_domain = []
        for method, baseline in CONTRASTS:
            ours = evaluations[domain].get(method, ())
            theirs = evaluations[domain].get(baseline, ())
            shared = {t.scenario_id for t in ours} & {t.scenario_id for t in theirs}
            if not shared:
                continue
            on_shared = [dialogue_utility(t) for t in theirs if t.scenario_id in shared]
            sides = (*_utilities(ours), *_utilities(theirs))
            drawn = (resampling.num_resamples, resampling.seed)
            ci = paired_difference_ci(*sides, *drawn)
            deltas = scenario_differences(*sides)
            can_vary = len(deltas) > 1
            needed = scenarios_needed(deltas, EFFECT_POINTS, POWER) if can_vary else math.nan
            of_domain.append(
                Difference(
                    domain=domain,
                    method=method,
                    baseline=baseline,
                    num_scenarios=len(shared),
                    baseline_mean=100 * float(np.mean(on_shared)),
                    mean=ci.mean,
                    low=ci.low,
                    high=ci.high,
                    p=paired_p_value(*sides, *drawn),
                    num_needed=needed,
                )
            )
        adjusted = holm([d.p for d in of_domain]).tolist()
        found += [
            dataclasses.replace(d, p_holm=p) for d, p in zip(of_domain, adjusted, strict=True)
        ]
    return found


def _row(entry: Entry, paper: PaperCell | None, resampling: Resampling) -> Row:
    summary = summarize(entry.dialogues)
    percents, clusters = _utilities(entry.dialogues)
    drawn = (resampling.num_resamples, resampling.seed)
    return Row(
        block=entry.block,
        label=entry.label,
        num_dialogues=summary.num_dialogues,
        num_scenarios=summary.num_scenarios,
        success=100 * summary.success,
        outcomes=100 * summary.outcomes,
        outcomes_std=100 * summary.outcomes_std,
        utility=100 * summary.utility,
        utility_std=100 * summary.utility_std,
        utility_ci=bootstrap_ci(percents, *drawn),
        utility_clustered=clustered_ci(percents, clusters, *drawn),
        rounds=summary.rounds,
        rounds_std=summary.rounds_std,
        in_bounds=100 * summary.in_bounds,
        paper=paper,
    )


def _utilities(dialogues: Sequence[Trajectory]) -> tuple[list[float], list[str]]:
    """The utility of each dialogue in per cent, and its scenario."""
    return [100 * dialogue_utility(t) for t in dialogues], [t.scenario_id for t in dialogues]


def order_of(order: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """A sorting key: known names in their order, unknown ones after them by name."""
    return lambda name: (order.index(name) if name in order else len(order), name)


NOTE_METHODS = (
    "Per cent but for the rounds; outcomes are savings over successes, utility counts failures as "
    "0; in bounds is the share of focal offers that open at the target or, later, step neither "
    "back nor past the other side's; ± is the population standard deviation over dialogues. "
    "Intervals are 95 % percentile bootstrap of the utility, over dialogues and, drawing "
    "whole scenarios, clustered. Bold: best of its block, success aside."
)
NOTE_OUTCOMES = (
    "Savings over successful dialogues, per cent, with 95 % percentile bootstrap intervals, over "
    "dialogues as in the paper and, drawing whole scenarios, clustered. N/A: no success."
)
NOTE_DIFFERENCES = (
    "Differences in utility on the same scenarios, in points of per cent, with paired "
    "scenario-clustered 95 % percentile bootstrap intervals; unclear: the interval includes zero. "
    "p: two-sided sign-flip test on the scenarios' mean differences, and its Holm correction for "
    "all comparisons of the domain. Needed: scenarios with which a paired t-test at 0.05 sees an "
    f"effect of {EFFECT_POINTS:g} points with a power of {POWER:g}, the differences varying as "
    "they do here. N/A: a single scenario."
)
NOTE_PAPER = f"Columns of the *paper*: {paper.SOURCE}; a difference is ours less the paper's."

_METRICS = (("success", "success %"), ("outcomes", "outcomes %"), ("utility", "utility %"))
METHOD_COLUMNS = (
    Column(key="method", title="method"),
    Column(key="num_dialogues", title="n"),
    Column(key="success", title="success %"),
    Column(key="outcomes", title="outcomes %", best="max"),
    Column(key="utility", title="utility %", best="max"),
    Column(key="utility_ci", title="95 % interval"),
    Column(key="utility_clustered", title="clustered"),
    Column(key="rounds", title="rounds", best="min"),
    Column(key="in_bounds", title="in bounds %"),
    *(Column(key=f"paper_{k}", title=t, group="paper") for k, t in _METRICS),
    Column(key="paper_rounds", title="rounds", group="paper"),
    *(Column(key=f"less_{k}", title=t, group="ours − paper", is_signed=True) for k, t in _METRICS),
    Column(key="less_rounds", title="rounds", group="ours − paper", is_signed=True),
)
OUTCOME_COLUMNS = (
    Column(key="method", title="method"),
    Column(key="num_successes", title="successes"),
    Column(key="outcomes", title="outcomes %", best="max"),
    Column(key="interval", title="95 % interval"),
    Column(key="clustered", title="clustered"),
    Column(key="paper_outcomes", title="outcomes %", group="paper"),
    Column(key="paper_interval", title="95 % interval", group="paper"),
    Column(key="less_outcomes", title="outcomes %", group="ours − paper", is_signed=True),
)
DIFFERENCE_COLUMNS = (
    Column(key="comparison", title="comparison"),
    Column(key="num_scenarios", title="scenarios"),
    Column(key="difference", title="difference", is_signed=True),
    Column(key="interval", title="95 % interval", is_signed=True),
    Column(key="reading", title="reading"),
    Column(key="p", title="p", digits=4),
    Column(key="p_holm", title="p, Holm", digits=4),
    Column(key="num_needed", title="needed"),
)


def method_table(name: str, title: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> Table:
    """Rows of methods, a block after the other."""
    return Table(
        name=name,
        title=title,
        columns=METHOD_COLUMNS,
        blocks=blocks([(row.block, _cells(row)) for row in rows]),
        notes=(NOTE_METHODS, *notes, NOTE_PAPER),
    )


def _cells(row: Row) -> tuple[Cell, ...]:
    theirs: tuple[Cell, ...] = (None,) * 8
    if row.paper is not None:
        p = row.paper
        theirs = (
            p.success,
            PlusMinus(p.outcomes, p.outcomes_std) if not math.isnan(p.outcomes) else None,
            PlusMinus(p.utility, p.utility_std),
            PlusMinus(p.rounds, p.rounds_std),
            row.success - p.success,
            row.outcomes - p.outcomes if not math.isnan(p.outcomes) else None,
            row.utility - p.utility,
            row.rounds - p.rounds,
        )
    return (
        row.label,
        row.num_dialogues,
        row.success,
        PlusMinus(row.outcomes, row.outcomes_std),
        PlusMinus(row.utility, row.utility_std),
        Range(*row.utility_ci[1:]),
        Range(*row.utility_clustered[1:]),
        PlusMinus(row.rounds, row.rounds_std),
        row.in_bounds,
        *theirs,
    )


def outcome_table(
    name: str,
    title: str,
    entries: Sequence[Entry],
    resampling: Resampling,
    notes: Sequence[str] = (),
) -> Table:
    """Intervals of the outcomes, a block after the other."""
    rows = []
    for entry in entries:
        found = dialogue_outcomes(entry.dialogues)
        values = 100 * found.values
        drawn = (resampling.num_resamples, resampling.seed)
        over_dialogues = bootstrap_ci(values, *drawn)
        clustered = clustered_ci(values, found.scenario_ids, *drawn)
        theirs: tuple[Cell, ...] = (None, None, None)
        published = paper.numbers(name, entry.published_as, entry.label)
        if published is not None:
            mean, low, high = published
            theirs = (mean, Range(low, high), over_dialogues.mean - mean)
        cells = (
            entry.label,
            len(values),
            over_dialogues.mean,
            Range(*over_dialogues[1:]),
            Range(*clustered[1:]),
            *theirs,
        )
        rows.append((entry.block, cells))
    return Table(
        name=name,
        title=title,
        columns=OUTCOME_COLUMNS,
        blocks=blocks(rows),
        notes=(NOTE_OUTCOMES, *notes, NOTE_PAPER),
    )


def difference_table(differences: Sequence[Difference], notes: Sequence[str] = ()) -> Table:
    """The paired differences, a block a domain."""
    rows = [
        (
            d.domain,
            (
                f"{d.method} − {d.baseline}",
                d.num_scenarios,
                d.mean,
                Range(d.low, d.high),
                d.verdict,
                d.p,
                d.p_holm,
                d.num_needed,
            ),
        )
        for d in differences
    ]
    return Table(
        name="differences",
        title="Paired differences in utility",
        columns=DIFFERENCE_COLUMNS,
        blocks=blocks(rows),
        notes=(NOTE_DIFFERENCES, *notes),
    )


def blocks(rows: Sequence[tuple[str, tuple[Cell, ...]]]) -> tuple[Block, ...]:
    """(block, cells) as blocks in the order in which they first come; domains by their titles."""
    by_block: dict[str, list[tuple[Cell, ...]]] = {}
    for block, cells in rows:
        by_block.setdefault(block, []).append(cells)
    return tuple(
        Block(title=TITLES.get(block, block), rows=tuple(found))
        for block, found in by_block.items()
    )
