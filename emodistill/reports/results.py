"""The dialogues of a run as one tidy frame, and what tables say about groups of them.

Success: share of `accepted` dialogues. Outcomes: mean savings over those. Utility: mean savings
with failures counted as 0. Rounds: turns of both roles. In bounds: share of the focal offers that
open at the target or, later, step neither back nor past the counterparty's offer. ± is the
standard deviation over dialogues (`Readings`). Intervals are 95 % percentile bootstrap: over
dialogues, and over scenarios with all their dialogues (clustered), which is the one to trust where
a scenario has several. Beside a paired difference stand the p-value of a sign-flip test over
scenarios, Holm's correction of it for the contrasts of the domain, and how many scenarios a stated
effect needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from emodistill.configs import METHODS, Deviation, OutcomeInterval, SequenceAverage
from emodistill.evaluation.bootstrap import (
    bootstrap_ci,
    clustered_ci,
    formula_ci,
    interval_ends,
    paired_difference_ci,
)
from emodistill.evaluation.comparisons import (
    holm,
    paired_p_value,
    scenario_differences,
    scenarios_needed,
)
from emodistill.evaluation.metrics import in_bounds
from emodistill.offline.rewards import dialogue_utility
from emodistill.records import CounterpartyPlayer, FocalPlayer, Trajectory
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
    ("iql+sft+jpo", "iql+sft+grpo"),
    ("iql+sft+jpo", "iql+sft+ppo"),
)
"""Methods and the baselines to which they are compared."""
SIGNIFICANCE = 0.05
"""The corrected p up to which a difference is called one."""
EFFECT_POINTS, POWER = 5.0, 0.8
"""A difference in utility, in points of per cent, and how probably it is to be seen. Five points
are less than each step of training gains in the paper's Table 1 on CRAD; 0.8 is customary."""


class Resampling(NamedTuple):
    """The bootstrap's number of resamples and its seed, in the order that its functions take."""

    num_resamples: int = 10_000
    seed: int = 0


class Readings(NamedTuple):
    """How statistics are taken about which the paper says two things (docs/paper.md)."""

    deviation: Deviation = "population"
    """Of ±."""
    interval: OutcomeInterval = "bootstrap"
    """Of the outcomes in Tables 9 to 11."""
    average: SequenceAverage = "mean"
    """Of Table 16."""

    @property
    def ddof(self) -> int:
        """What is taken off the number of values in a variance."""
        return 1 if self.deviation == "sample" else 0

    def words(self) -> dict[str, str]:
        """How notes call them."""
        intervals = {
            "bootstrap": "percentile bootstrap",
            "normal": f"mean ± 1.96 s/√n with the {self.deviation} deviation",
            "student": f"Student's t with the {self.deviation} deviation",
        }
        return {**self._asdict(), "interval": intervals[self.interval]}


Labelled = tuple[Mapping[str, str | None], Sequence[Trajectory]]
"""What the report calls some dialogues (the first columns of the frame), and the dialogues."""
FRAME_COLUMNS = (
    *("source", "study", "arm", "block", "label", "opponent", "published_as"),
    *("domain", "focal_model", "counterparty_model", "scenario_id", "seed"),
    *("success", "utility", "rounds", "dialogue"),
)


def dialogue_frame(labelled: Iterable[Labelled]) -> pd.DataFrame:
    """One line a dialogue.

    | column | what it holds |
    | --- | --- |
    | `source` | `sweep`, `evaluation`, `study` or `tournament` |
    | `study`, `arm` | of a study: its name, and the path of the arm's dialogues |
    | `block`, `label` | heading and name of the table row to which the dialogue belongs |
    | `opponent` | of a tournament: the counterparty's method (`label` is the focal one's) |
    | `published_as` | the block of the paper's table beside which it stands, `""` for none |
    | `domain` … `seed` | as in the record |
    | `success` | whether the dialogue ended `accepted` |
    | `utility` | savings in [0, 1], 0 for a failure |
    | `rounds` | turns of both roles |
    | `dialogue` | the record itself |

    Args:
      labelled: values of the first seven columns, and the dialogues to which they apply.
    """
    rows = [
        {
            **labels,
            "domain": t.domain,
            "focal_model": t.focal.model,
            "counterparty_model": t.counterparty.model,
            "scenario_id": t.scenario_id,
            "seed": t.seed,
            "success": t.outcome == "accepted",
            "utility": dialogue_utility(t),
            "rounds": len(t.turns),
            "dialogue": t,
        }
        for labels, dialogues in labelled
        for t in dialogues
    ]
    return pd.DataFrame(rows, columns=FRAME_COLUMNS)


def by_domain(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each domain with its dialogues, in the order of the domains."""
    for domain in in_order(frame.domain.unique()):
        yield domain, frame.loc[frame.domain == domain, :]


def models(frame: pd.DataFrame) -> list[str]:
    """The language models of the focal role and of the counterparty, as text."""
    roles = ("focal", "counterparty")
    return [
        ", ".join(sorted({_served(getattr(one, role)) for one in frame.dialogue})) for role in roles
    ]


def _served(player: FocalPlayer | CounterpartyPlayer) -> str:
    """A player's model, with who served it where that isn't plain."""
    is_plain = player.provider in ("", "simulator")
    return player.model if is_plain else f"{player.model} ({player.provider})"


def method_rows(
    table: str, frame: pd.DataFrame, resampling: Resampling, readings: Readings
) -> list[dict[str, Any]]:
    """Success, outcomes, utility and rounds by block and label, and the paper's for `table`.

    In per cent but for the rounds; NaN where there is nothing to average.
    """
    rows = []
    for _, group in frame.groupby(["block", "label"], sort=False):
        block, label, published_as = group[["block", "label", "published_as"]].iloc[0]
        utility, scenarios = 100 * group.utility, group.scenario_id
        outcomes, of_outcomes = utility[group.success], scenarios[group.success]
        if readings.interval == "bootstrap":
            interval = bootstrap_ci(outcomes, *resampling)
        else:
            interval = formula_ci(
                outcomes,
                is_normal=readings.interval == "normal",
                ddof=readings.ddof,
            )
        rows.append(
            {
                "block": block,
                "method": label,
                "published": paper.numbers(table, published_as, label),
                "num_dialogues": len(group),
                "num_successes": len(outcomes),
                "success": 100 * group.success.mean(),
                **mean_std("outcomes", outcomes, readings),
                **interval_ends("interval", interval),
                **interval_ends("clustered", clustered_ci(outcomes, of_outcomes, *resampling)),
                **mean_std("utility", utility, readings),
                **interval_ends("utility_ci", bootstrap_ci(utility, *resampling)),
                **interval_ends("utility_clustered", clustered_ci(utility, scenarios, *resampling)),
                **mean_std("rounds", group.rounds, readings),
                "in_bounds": 100 * group.dialogue.map(in_bounds).explode().astype(float).mean(),
            }
        )
    return rows


def mean_std(name: str, values: pd.Series, readings: Readings) -> dict[str, Any]:
    """`<name>` and `<name>_std`: mean and standard deviation, NaN without values."""
    return {name: values.mean(), f"{name}_std": values.std(ddof=readings.ddof)}


def paired_differences(frame: pd.DataFrame, resampling: Resampling) -> list[dict[str, Any]]:
    """Each of CONTRASTS that a domain has dialogues for, on the scenarios that both have played.

    Values are utilities in points of per cent. `baseline_mean` is the baseline's utility on those
    scenarios, `p_holm` is adjusted for all contrasts of the domain, and `num_needed` are the
    scenarios that show EFFECT_POINTS with probability POWER; NaN with a single scenario, or where
    all differ alike. `num_to_tell` is the same for the difference that was found. `reading` is
    `higher` or `lower` where the interval leaves zero out and `p_holm` is at most SIGNIFICANCE.
    """
    rows = []
    for domain, played in by_domain(frame):
        by_label: dict[Any, pd.DataFrame] = dict(iter(played.groupby("label")))
        of_domain: list[dict[str, Any]] = [
            {"block": domain, "method": method, "baseline": baseline}
            | {"comparison": f"{method} − {baseline}"}
            | utility_difference(by_label[method], by_label[baseline], resampling)
            for method, baseline in CONTRASTS
            if {method, baseline} <= by_label.keys()
            and by_label[method].scenario_id.isin(by_label[baseline].scenario_id).any()
        ]
        rows += holm_corrected(of_domain)
    return rows


def differences_from(
    frame: pd.DataFrame, other: pd.DataFrame, resampling: Resampling
) -> list[dict[str, Any]]:
    """Each method less the same one of another run, on the scenarios that both have played.

    As `paired_differences`, corrected for all methods of a domain; `method_mean` and
    `baseline_mean` are the utilities that are compared.
    """
    rows = []
    for domain, played in by_domain(frame):
        theirs = other.loc[other.domain == domain, :]
        of_domain = [
            {"block": domain, "method": method} | utility_difference(group, same, resampling)
            for method, group in played.groupby("label", sort=False)
            if not (same := theirs.loc[theirs.label == method, :]).empty
            and group.scenario_id.isin(same.scenario_id).any()
        ]
        rows += holm_corrected(of_domain)
    return rows


def holm_corrected(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a domain with Holm's p; a reading claims no more than the corrected test."""
    adjusted = holm([row["p"] for row in rows]).tolist()
    return [
        # NaN, no test, is no significance.
        row | {"p_holm": p} | ({} if p <= SIGNIFICANCE else {"reading": "unclear"})
        for row, p in zip(rows, adjusted, strict=True)
    ]


def utility_difference(
    ours: pd.DataFrame, theirs: pd.DataFrame, resampling: Resampling
) -> dict[str, Any]:
    """The utility of `ours` less that of `theirs` on the scenarios that both have played."""
    sides = (100 * ours.utility, ours.scenario_id, 100 * theirs.utility, theirs.scenario_id)
    ci = paired_difference_ci(*sides, *resampling)
    deltas = scenario_differences(*sides)
    has_spread = len(deltas) > 1 and deltas.std() > 1e-9  # else it says nothing of other scenarios

    def needed(effect: float) -> float:
        return scenarios_needed(deltas, effect, POWER) if has_spread and effect else math.nan

    return {
        "num_scenarios": len(deltas),
        "method_mean": 100 * ours.utility[ours.scenario_id.isin(theirs.scenario_id)].mean(),
        "baseline_mean": 100 * theirs.utility[theirs.scenario_id.isin(ours.scenario_id)].mean(),
        "difference": ci.mean,
        **interval_ends("interval", ci),
        "reading": "higher" if ci.low > 0 else "lower" if ci.high < 0 else "unclear",
        "p": paired_p_value(deltas, *resampling),
        "num_needed": needed(EFFECT_POINTS),
        "num_to_tell": needed(float(deltas.mean())),
    }
