"""The dialogues of a run as one tidy frame, and what tables say about groups of them.

Success: share of `accepted` dialogues. Outcomes: mean savings over those. Utility: mean savings
with failures counted as 0. Rounds: turns of both roles. In bounds: share of the focal offers that
open at the target or, later, step neither back nor past the counterparty's offer. ± is the
population standard deviation over dialogues. Intervals are 95 % percentile bootstrap: over
dialogues, and over scenarios with all their dialogues (clustered), which is the one to trust where
a scenario has several. Beside a paired difference stand the p-value of a sign-flip test over
scenarios, Holm's correction of it for the contrasts of the domain, and how many scenarios a stated
effect needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from emodistill.configs import METHODS
from emodistill.evaluation.bootstrap import bootstrap_ci, clustered_ci, paired_difference_ci
from emodistill.evaluation.comparisons import (
    holm,
    paired_p_value,
    scenario_differences,
    scenarios_needed,
)
from emodistill.evaluation.metrics import dialogue_utility, in_bounds
from emodistill.records import Trajectory
from emodistill.reports import paper
from emodistill.reports.labels import UNTRAINED, in_order

CONTRASTS = (
    *((method, UNTRAINED) for method in METHODS[1:]),
    ("iql", "random"),
    ("iql", "oracle"),
    ("iql+sft", "iql"),
    ("iql+sft+jpo", "iql+sft"),
    ("iql+sft+jpo", "iql+jpo"),
    ("iql+sft+jpo", "iql+sft+alol"),
    ("iql+sft+jpo", "iql+sft+dpo"),
)
"""Methods and the baselines to which they are compared."""
EFFECT_POINTS, POWER = 5.0, 0.8
"""A difference in utility, in points of per cent, and how probably it is to be seen. Five points
are less than each step of training gains in the paper's Table 1 on CRAD; 0.8 is customary."""


class Resampling(NamedTuple):
    """The bootstrap's number of resamples and its seed, in the order that its functions take."""

    num_resamples: int = 10_000
    seed: int = 0


Labelled = tuple[Mapping[str, str | None], Sequence[Trajectory]]
"""What the report calls some dialogues (the first columns of the frame), and the dialogues."""
FRAME_COLUMNS = (
    *("source", "study", "arm", "block", "label", "opponent", "published_as"),
    *("domain", "split", "method", "focal_model", "counterparty_model", "scenario_id", "seed"),
    *("success", "utility", "rounds", "num_offers", "num_in_bounds", "dialogue"),
)


def dialogue_frame(labelled: Iterable[Labelled]) -> pd.DataFrame:
    """One line a dialogue.

    | column | what it holds |
    | --- | --- |
    | `source` | `sweep`, `evaluation`, `study` or `tournament` |
    | `study`, `arm` | of a study: its name, and the path of the arm's dialogues |
    | `block`, `label` | heading and name of the table row to which the dialogue belongs |
    | `opponent` | of a tournament: the counterparty's method (`label` is the focal one's) |
    | `published_as` | the block of the paper's table beside which it stands, if any |
    | `domain` … `seed` | as in the record; `method` is the focal role's |
    | `success` | whether the dialogue ended `accepted` |
    | `utility` | savings in [0, 1], 0 for a failure |
    | `rounds` | turns of both roles |
    | `num_offers`, `num_in_bounds` | focal offers, and how many of them were in bounds |
    | `dialogue` | the record itself |

    Args:
      labelled: values of the first seven columns, and the dialogues to which they apply.
    """
    return pd.DataFrame(
        [
            {
                **labels,
                "domain": t.domain,
                "split": t.split,
                "method": t.focal.method,
                "focal_model": t.focal.model,
                "counterparty_model": t.counterparty.model,
                "scenario_id": t.scenario_id,
                "seed": t.seed,
                "success": t.outcome == "accepted",
                "utility": dialogue_utility(t),
                "rounds": len(t.turns),
                "num_offers": len(offers),
                "num_in_bounds": sum(offers),
                "dialogue": t,
            }
            for labels, dialogues in labelled
            for t in dialogues
            for offers in [in_bounds(t)]
        ],
        columns=FRAME_COLUMNS,
    )


def method_rows(table: str, frame: pd.DataFrame, resampling: Resampling) -> list[dict[str, Any]]:
    """Success, outcomes, utility and rounds by block and label, with the paper's for `table`."""
    return [
        row | paper.beside(row, published, paper.METHOD_FIGURES)
        for labels, published, group in _groups(table, frame)
        for row in [labels | _method_figures(group, resampling)]
    ]


def outcome_rows(table: str, frame: pd.DataFrame, resampling: Resampling) -> list[dict[str, Any]]:
    """Outcomes and their intervals by block and label, with the paper's for `table`."""
    rows = []
    for labels, published, group in _groups(table, frame):
        successes = group[group.success]
        savings = 100 * successes.utility.to_numpy(np.float64)
        over_dialogues = bootstrap_ci(savings, *resampling)
        clustered = clustered_ci(savings, successes.scenario_id.to_list(), *resampling)
        row = {
            **labels,
            "num_successes": len(savings),
            "outcomes": over_dialogues.mean,
            **interval("interval", over_dialogues),
            **interval("clustered", clustered),
        }
        names = ("outcomes", "interval_low", "interval_high")
        rows.append(row | paper.beside(row, published, names))
    return rows


def _groups(table: str, frame: pd.DataFrame):
    """For each row of a table: its heading and name, the paper's numbers, and its dialogues."""
    for _, group in frame.groupby(["block", "label"], sort=False):
        block, label, published_as = group[["block", "label", "published_as"]].iloc[0]
        published = paper.numbers(table, published_as if pd.notna(published_as) else None, label)
        yield {"block": block, "method": label}, published, group


def _method_figures(group: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    """A row of methods, in per cent but for the rounds; NaN where there is nothing to average."""
    utility = group.utility.to_numpy(np.float64)
    savings = utility[group.success]
    percents, num_offers = 100 * utility, int(group.num_offers.sum())
    clusters = group.scenario_id.to_list()
    return {
        "num_dialogues": len(group),
        "success": 100 * float(group.success.mean()),
        **mean_std("outcomes", savings, 100),
        **mean_std("utility", utility, 100),
        **interval("utility_ci", bootstrap_ci(percents, *resampling)),
        **interval("utility_clustered", clustered_ci(percents, clusters, *resampling)),
        **mean_std("rounds", group.rounds.to_numpy(np.float64)),
        "in_bounds": 100
        * (int(group.num_in_bounds.sum()) / num_offers if num_offers else math.nan),
    }


def mean_std(name: str, values: np.ndarray, scale: float = 1.0) -> dict[str, float]:
    """`<name>` and `<name>_std`: mean and population standard deviation, NaN without values."""
    is_empty = not len(values)
    return {
        name: math.nan if is_empty else scale * float(values.mean()),
        f"{name}_std": math.nan if is_empty else scale * float(values.std()),
    }


def interval(name: str, values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """`<name>_low` and `<name>_high` of an interval that ends in these two."""
    *_, low, high = values
    return {f"{name}_low": scale * low, f"{name}_high": scale * high}


def paired_differences(frame: pd.DataFrame, resampling: Resampling) -> list[dict[str, Any]]:
    """Each of CONTRASTS that a domain has dialogues for, on the scenarios that both have played.

    Values are utilities in points of per cent. `baseline_mean` is the baseline's utility on those
    scenarios, `p_holm` is adjusted for all contrasts of the domain, and `num_needed` are the
    scenarios that show EFFECT_POINTS with probability POWER; NaN with a single scenario.
    """
    rows = []
    for domain in in_order(frame.domain.unique()):
        by_label: dict[Any, pd.DataFrame] = dict(
            iter(frame.query("domain == @domain").groupby("label"))
        )
        of_domain: list[dict[str, Any]] = [
            _difference(by_label[method], by_label[baseline], resampling)
            | {"block": domain, "method": method, "baseline": baseline}
            | {"comparison": f"{method} − {baseline}"}
            for method, baseline in CONTRASTS
            if method in by_label
            and baseline in by_label
            and {*by_label[method].scenario_id} & {*by_label[baseline].scenario_id}
        ]
        adjusted = holm([row["p"] for row in of_domain]).tolist()
        rows += [row | {"p_holm": p} for row, p in zip(of_domain, adjusted, strict=True)]
    return rows


def _difference(ours: pd.DataFrame, theirs: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    """The utility of `ours` less that of `theirs` on the scenarios that both have played."""

    def side(frame: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
        return 100 * frame.utility.to_numpy(np.float64), frame.scenario_id.to_list()

    sides = (*side(ours), *side(theirs))
    ci = paired_difference_ci(*sides, *resampling)
    deltas = scenario_differences(*sides)
    needed = scenarios_needed(deltas, EFFECT_POINTS, POWER) if len(deltas) > 1 else math.nan
    on_shared = theirs.utility[theirs.scenario_id.isin(ours.scenario_id)].to_numpy(np.float64)
    verdict = "higher" if ci.low > 0 else "lower" if ci.high < 0 else "unclear"
    return {
        "num_scenarios": len(deltas),
        "baseline_mean": 100 * float(on_shared.mean()),
        "difference": ci.mean,
        **interval("interval", ci),
        "reading": verdict,
        "p": paired_p_value(deltas, *resampling),
        "num_needed": needed,
    }
