"""Intervals for means: percentile bootstrap (paper, Appendix I), plain or by scenario; by formula.

The plain form resamples dialogues, as the paper does. Dialogues of one scenario are alike, so
wherever a scenario has several, resampling whole scenarios gives the honest width; comparing two
methods, the same resampled scenarios serve both.

Departure from the paper: none in the plain form; the clustered and paired forms are added.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from emodistill.errors import InputError
from emodistill.seeding import stream

MAX_DRAWS = 1 << 21
"""Drawn indices held at once, which bounds the memory whatever the data's size."""

CONFIDENCE = 0.95
"""Of all intervals, as in the paper."""

Values = Sequence[float] | np.ndarray | pd.Series
Clusters = Sequence[str] | np.ndarray | pd.Series


class Interval(NamedTuple):
    """A mean with its interval; all NaN where there was nothing to average."""

    mean: float
    low: float
    high: float

    @property
    def text(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interval_ends(name: str, values: Sequence[Any] | np.ndarray) -> dict[str, Any]:
    """`<name>_low` and `<name>_high`, as a row holds an interval that ends in these two."""
    *_, low, high = values
    return {f"{name}_low": low, f"{name}_high": high}


def bootstrap_ci(values: Values, n_resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean of `values` with a percentile interval over resamples of them.

    Returns:
      (mean, low, high); (NaN, NaN, NaN) for no values, and no width for a single one.

    Raises:
      InputError: a value is NaN or infinite, or n_resamples under 1.
    """
    each = pd.DataFrame({"sum": _checked(values), "count": 1})
    return _interval([each], n_resamples, stream(seed, "bootstrap"))


def formula_ci(values: Values, *, is_normal: bool = False, ddof: int = 1) -> Interval:
    """The mean of `values` with Student's interval, m ± t s/√n with n − 1 degrees of freedom.

    Args:
      is_normal: takes 1.96 in place of t.
      ddof: what is taken off n in the variance s²: 1 for an unbiased one.

    Returns:
      (mean, low, high); without a width (NaN) for a single value.

    Raises:
      InputError: a value is NaN or infinite.
    """
    array = _checked(values)
    if not array.size:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, np.nan, np.nan)
    tail = (1.0 - CONFIDENCE) / 2.0
    quantile = stats.norm.isf(tail) if is_normal else stats.t.isf(tail, array.size - 1)
    half = float(quantile * stats.sem(array, ddof=ddof))
    return Interval(mean, mean - half, mean + half)


def clustered_ci(
    values: Values,
    clusters: Clusters,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """As `bootstrap_ci`, resampling whole clusters (scenarios) with all of their values.

    Every value weighs the same, so a resample's mean is the sum of what was drawn over its
    number. Where `values` are successes only, scenarios without a success play no part.
    """
    totals = cluster_totals(values, clusters)
    return _interval([totals], n_resamples, stream(seed, "bootstrap", "clustered"))


def paired_difference_ci(
    values: Values,
    clusters: Clusters,
    baseline_values: Values,
    baseline_clusters: Clusters,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Mean of a method minus mean of a baseline, resampling the scenarios that both have played.

    Each resample takes the same scenarios for both sides and all of their dialogues, of which the
    sides may have different numbers. Scenarios that only one side has are left out.

    Returns:
      (difference, low, high); (NaN, NaN, NaN) where the sides share no scenario.
    """
    ours = cluster_totals(values, clusters)
    theirs = cluster_totals(baseline_values, baseline_clusters)
    shared = ours.index.intersection(theirs.index)
    sides = [ours.loc[shared], theirs.loc[shared]]
    return _interval(sides, n_resamples, stream(seed, "bootstrap", "paired"))


def cluster_totals(values: Values, clusters: Clusters) -> pd.DataFrame:
    """`sum` and `count` of the values of each cluster, in the order of the clusters' names.

    Raises:
      InputError: a value is not finite, or the lengths differ.
    """
    array, names = _checked(values), np.asarray(clusters, dtype=np.str_)
    if names.shape != array.shape:
        raise InputError(
            f"{len(array)} values but clusters of shape {names.shape}; every value needs its "
            "cluster."
        )
    by_name = pd.Series(array).groupby(names)
    return pd.DataFrame({"sum": by_name.sum(), "count": by_name.count()})


def _checked(values: Values) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"values has shape {array.shape}; give a flat sequence of numbers.")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"values[{index}]={array[index]} is not finite; leave such items out.")
    return array


def _interval(
    sides: Sequence[pd.DataFrame], n_resamples: int, rng: np.random.Generator
) -> Interval:
    """The mean of the first side, less that of the second if there is one, with its interval.

    Resamples draw items, each with a sum of values and their count, the same ones for both sides.
    """
    num_items = len(sides[0])
    if not num_items:
        return Interval(np.nan, np.nan, np.nan)
    if n_resamples < 1:
        raise InputError(f"n_resamples={n_resamples} must be at least 1; the paper uses 10,000.")
    columns = [(side["sum"].to_numpy(), side["count"].to_numpy()) for side in sides]

    def estimate(drawn: np.ndarray) -> np.ndarray:
        means = (sums[drawn].sum(axis=-1) / counts[drawn].sum(axis=-1) for sums, counts in columns)
        return functools.reduce(np.subtract, means)

    chunk = max(1, MAX_DRAWS // num_items)
    sizes = [min(chunk, n_resamples - start) for start in range(0, n_resamples, chunk)]
    resampled = [estimate(rng.integers(num_items, size=(size, num_items))) for size in sizes]
    ends = percentiles(np.concatenate(resampled)).tolist()
    return Interval(float(estimate(np.arange(num_items))), *ends)


def percentiles(resampled: np.ndarray) -> np.ndarray:
    """[2, …] The ends between which `CONFIDENCE` of the [B, …] resamples lie."""
    tail = (1.0 - CONFIDENCE) / 2.0
    return np.quantile(resampled, [tail, 1.0 - tail], axis=0)
