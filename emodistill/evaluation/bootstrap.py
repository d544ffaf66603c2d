"""Percentile bootstrap intervals for means (paper, Appendix I), plain and by scenario.

The plain form resamples dialogues, as the paper does. Dialogues of one scenario are alike, so
wherever a scenario has several, resampling whole scenarios gives the honest width; comparing two
methods, the same resampled scenarios serve both.

Departure from the paper: none in the plain form; the clustered and paired forms are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from emodistill.errors import InputError
from emodistill.seeding import stream

MAX_DRAWS = 1 << 21
"""Drawn indices held at once, which bounds the memory whatever the data's size."""

Values = Sequence[float] | np.ndarray
Clusters = Sequence[str] | np.ndarray


class Interval(NamedTuple):
    """A mean with its interval; all NaN where there was nothing to average."""

    mean: float
    low: float
    high: float


def bootstrap_ci(
    values: Values, n_resamples: int = 10_000, seed: int = 0, *, confidence: float = 0.95
) -> Interval:
    """The mean of `values` with a percentile interval over resamples of them.

    Returns:
      (mean, low, high); (NaN, NaN, NaN) for no values, and no width for a single one.

    Raises:
      InputError: a value is NaN or infinite, or a parameter is out of range.
    """
    array = _checked(values)
    if not len(array):
        return Interval(np.nan, np.nan, np.nan)
    ones = np.ones_like(array)
    means = _resampled_means([(array, ones)], n_resamples, stream(seed, "bootstrap"))[0]
    return Interval(float(array.mean()), *percentiles(means, confidence))


def clustered_ci(
    values: Values,
    clusters: Clusters,
    n_resamples: int = 10_000,
    seed: int = 0,
    *,
    confidence: float = 0.95,
) -> Interval:
    """As `bootstrap_ci`, resampling whole clusters (scenarios) with all of their values.

    Every value weighs the same, so a resample's mean is the sum of what was drawn over its
    number. Where `values` are successes only, scenarios without a success play no part.
    """
    array, names, groups = grouped(values, clusters)
    if not len(array):
        return Interval(np.nan, np.nan, np.nan)
    sums = totals(array, groups, len(names))
    means = _resampled_means([sums], n_resamples, stream(seed, "bootstrap", "clustered"))[0]
    return Interval(float(array.mean()), *percentiles(means, confidence))


def paired_difference_ci(
    values: Values,
    clusters: Clusters,
    baseline_values: Values,
    baseline_clusters: Clusters,
    n_resamples: int = 10_000,
    seed: int = 0,
    *,
    confidence: float = 0.95,
) -> Interval:
    """Mean of a method minus mean of a baseline, resampling the scenarios that both have played.

    Each resample takes the same scenarios for both sides and all of their dialogues, of which the
    sides may have different numbers. Scenarios that only one side has are left out.

    Returns:
      (difference, low, high); (NaN, NaN, NaN) where the sides share no scenario.
    """
    array, names, _ = grouped(values, clusters)
    baseline, baseline_names, _ = grouped(baseline_values, baseline_clusters)
    shared = np.intersect1d(names, baseline_names)
    if not len(shared):
        return Interval(np.nan, np.nan, np.nan)
    sides = []
    for side, side_clusters in ((array, clusters), (baseline, baseline_clusters)):
        ids = np.asarray(side_clusters, dtype=np.str_)
        is_shared = np.isin(ids, shared)
        sides.append(totals(side[is_shared], np.searchsorted(shared, ids[is_shared]), len(shared)))
    first, second = _resampled_means(sides, n_resamples, stream(seed, "bootstrap", "paired"))
    (sums, counts), (baseline_sums, baseline_counts) = sides
    difference = sums.sum() / counts.sum() - baseline_sums.sum() / baseline_counts.sum()
    return Interval(float(difference), *percentiles(first - second, confidence))


def _checked(values: Values) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"values has shape {array.shape}; give a flat sequence of numbers.")
    if not np.isfinite(array).all():
        place = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"values[{place}]={array[place]} is not finite; leave such items out.")
    return array


def grouped(values: Values, clusters: Clusters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values as float64, the clusters' names in order, and each value's place among them.

    Raises:
      InputError: a value is not finite, or the lengths differ.
    """
    array, ids = _checked(values), np.asarray(clusters, dtype=np.str_)
    if ids.shape != array.shape:
        raise InputError(
            f"{len(array)} values but clusters of shape {ids.shape}; every value needs its cluster."
        )
    names, groups = np.unique(ids, return_inverse=True)
    return array, names, groups


def totals(values: np.ndarray, groups: np.ndarray, num_groups: int) -> tuple[np.ndarray, ...]:
    """Sum and number of the values of each group."""
    sums = np.bincount(groups, weights=values, minlength=num_groups)
    return sums, np.bincount(groups, minlength=num_groups).astype(np.float64)


def _resampled_means(
    sides: Sequence[tuple[np.ndarray, ...]], n_resamples: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """[B] means for each side, all sides under the same draws of items with (sum, number)."""
    if n_resamples < 1:
        raise InputError(f"n_resamples={n_resamples} must be at least 1; the paper uses 10,000.")
    num_items = len(sides[0][0])
    rows = max(1, MAX_DRAWS // num_items)
    means = [np.empty(n_resamples) for _ in sides]
    for start in range(0, n_resamples, rows):
        stop = min(start + rows, n_resamples)
        drawn = rng.integers(num_items, size=(stop - start, num_items))
        for out, (sums, counts) in zip(means, sides, strict=True):
            out[start:stop] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


def percentiles(means: np.ndarray, confidence: float) -> tuple[float, float]:
    """The two ends between which `confidence` of the resamples lie."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must lie in (0, 1); the paper uses 0.95.")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)
