"""Whether emotions and methods differ: paired tests, corrections for many of them, power.

Everything is paired over scenarios: both sides have played the same ones, and all that a scenario
has on one side counts once, as its mean (paper, Appendix B, Eqs. 7–11).

Departure from the paper: corrected p-values stand for its corrected threshold, which decides
alike. Added: Holm's correction and sign-flip tests for methods, and the number of scenarios needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from emodistill.emotions import EMOTION_INDEX, EMOTIONS, NEUTRAL
from emodistill.errors import InputError
from emodistill.evaluation.bootstrap import (
    CONFIDENCE,
    Clusters,
    Values,
    cluster_totals,
    interval_ends,
)
from emodistill.evaluation.metrics import scenario_means, scored_emotions
from emodistill.offline.rewards import Scores
from emodistill.records import Trajectory
from emodistill.seeding import stream

NUM_TESTS = len(EMOTIONS) - 1
"""Tests that Bonferroni's correction counts on, however many could be made."""


def emotion_tests(trajectories: Sequence[Trajectory], scores: Scores) -> list[dict[str, Any]]:
    """Each emotion's judge scores against neutral's on the scenarios that both have, best first.

    Emotions without a scored turn on any scenario of neutral's are left out; ties stand in
    vocabulary order. NaN stands where a test has too few values or no spread.

    Welch's interval takes the scenarios of both sides for independent ones, which they are not:
    both have played the same. Where the two intervals disagree, trust the paired one.

    Returns:
      Rows of these columns:

      | column | what it holds |
      | --- | --- |
      | `emotion` | the one that is compared to neutral |
      | `num_scenarios` | scenarios that have scored turns under both |
      | `difference` | mean of the scenarios' differences (Eq. 9) |
      | `interval_low`, `interval_high` | its interval by the paired t-test |
      | `t`, `p` | statistic and two-sided p-value of the paired t-test (Eq. 10) |
      | `p_bonferroni` | 27 p, at most 1: below 0.05 where p is below the threshold of Eq. 11 |
      | `welch_low`, `welch_high` | Welch's interval of it, which does not pair |

    Raises:
      InputError: no turn under neutral has a score.
    """
    means = scenario_means(scored_emotions(trajectories, scores)).unstack("emotion")
    if NEUTRAL not in means:
        raise InputError(
            f"{len(trajectories)} dialogues have no scored focal turn under {NEUTRAL!r}, to which "
            "every emotion is compared; play and judge some."
        )
    rows = []
    for emotion in means.columns.drop(NEUTRAL):
        pairs = means.loc[:, [emotion, NEUTRAL]].dropna()
        if not pairs.empty:
            rows.append(_emotion_test(emotion, pairs))
    return sorted(rows, key=lambda row: (-row["difference"], EMOTION_INDEX[row["emotion"]]))


def _emotion_test(emotion: str, means: pd.DataFrame) -> dict[str, Any]:
    """An emotion against neutral, by the means of the scenarios that have both."""
    own, neutral = (means[name].to_numpy() for name in (emotion, NEUTRAL))
    deltas = own - neutral
    t = p = math.nan
    paired_ci = welch_ci = math.nan, math.nan
    if _has_spread(deltas):
        paired = stats.ttest_rel(own, neutral)
        t, p = float(paired.statistic), float(paired.pvalue)
        paired_ci = paired.confidence_interval(CONFIDENCE)
    if _has_spread(own) and _has_spread(neutral):
        unpaired = stats.ttest_ind(own, neutral, equal_var=False)
        welch_ci = unpaired.confidence_interval(CONFIDENCE)
    return {
        "emotion": emotion,
        "num_scenarios": len(means),
        "difference": float(deltas.mean()),
        **interval_ends("interval", paired_ci),
        "t": t,
        "p": p,
        # Python's min and max pass NaN on or not, depending on its position; NumPy's always do.
        "p_bonferroni": float(np.minimum(1.0, NUM_TESTS * p)),
        **interval_ends("welch", welch_ci),
    }


def _has_spread(values: np.ndarray | pd.Series) -> bool:
    """Whether a deviation can be estimated: not of one value, nor where rounding alone differs."""
    return bool(np.ptp(values) > 1e-12 * np.abs(values).max())


def holm(p_values: Values) -> np.ndarray:
    """Holm's adjusted p-values: reject where one is at most α, and any error has at most chance α.

    NaN, for a test that could not be made, stays NaN and does not count.

    Raises:
      InputError: a p-value lies outside [0, 1].
    """
    array = np.asarray(p_values, dtype=np.float64)
    if (wrong := np.flatnonzero((array < 0) | (array > 1))).size:
        raise InputError(f"p_values[{wrong[0]}]={array[wrong[0]]} must lie in [0, 1].")
    adjusted, is_made = np.full_like(array, np.nan), ~np.isnan(array)
    if is_made.any():
        adjusted[is_made] = multipletests(array[is_made], method="holm")[1]
    return adjusted


def scenario_differences(
    values: Values, clusters: Clusters, baseline_values: Values, baseline_clusters: Clusters
) -> np.ndarray:
    """A method's mean less the baseline's on each scenario that both have, by the scenario's name.

    Arguments as for `bootstrap.paired_difference_ci`, whose mean weighs dialogues instead.
    """
    ours = cluster_totals(values, clusters)
    theirs = cluster_totals(baseline_values, baseline_clusters)
    differences = ours["sum"] / ours["count"] - theirs["sum"] / theirs["count"]
    return differences.dropna().to_numpy()  # aligned by name: NaN where one side lacks it


def paired_p_value(
    differences_by_scenario: np.ndarray, n_resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value for no difference between a method and a baseline.

    A sign-flip test on the mean of `scenario_differences`: were the methods alike, each scenario's
    difference could as well have the other sign. Unlike a t-test, it needs no normal differences,
    which savings that heap up at 0 and 1 don't give. Exact up to 13 scenarios under the default of
    `n_resamples`, by random flips beyond.

    Returns:
      A p-value; NaN with under two shared scenarios.
    """
    if n_resamples < 1:
        raise InputError(f"n_resamples={n_resamples} must be at least 1; the default is 10,000.")
    if len(differences_by_scenario) < 2:
        return math.nan
    test = stats.permutation_test(
        (differences_by_scenario,),
        np.mean,
        permutation_type="samples",
        n_resamples=n_resamples,
        rng=stream(seed, "sign-flips"),
    )
    return float(test.pvalue)


def scenarios_needed(
    differences_by_scenario: Values, effect: float, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Scenarios that a paired comparison needs to see `effect` with probability `power`.

    Two-sided paired t-test at `alpha`; the spread of the differences is taken from those given
    (`scenario_differences`), so it is as uncertain as they are few.

    Args:
      effect: the true mean difference to be seen, in the unit of the differences (0.05 for five
        points of utility).

    Raises:
      InputError: no effect, no two differences, or a probability out of range.
    """
    differences = np.asarray(differences_by_scenario, dtype=np.float64)
    if differences.ndim != 1 or len(differences) < 2 or not np.isfinite(differences).all():
        raise InputError(
            f"differences_by_scenario of shape {differences.shape} must be at least two finite "
            "numbers; their spread is what the answer hangs on."
        )
    if not (math.isfinite(effect) and effect != 0):
        raise InputError(f"effect={effect} must be a finite difference other than 0.")
    if not 0 < alpha < power < 1:
        raise InputError(f"power={power} and alpha={alpha} must satisfy 0 < alpha < power < 1.")
    deviation = float(differences.std(ddof=1))
    if deviation == 0:
        return 2
    size = abs(effect) / deviation
    # The t-test needs a few more than the z-test, so that the search is short.
    quantiles = stats.norm.isf(alpha / 2) + stats.norm.isf(1 - power)
    num = max(2, math.floor((quantiles / size) ** 2))
    while TTestPower().power(size, num, alpha) < power:
        num += 1
    return num
