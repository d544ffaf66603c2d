"""Bradley–Terry strengths of methods that have played against each other.

P(a beats b) = σ(θ_a − θ_b), fitted by maximum likelihood to scores in [0, 1]; a share counts as so
much of a win. So that a method which always wins has a finite strength, and methods that never met
can be compared, every pair is taken to have drawn half a bout besides (`PRIOR_BOUTS`).

An addition to the paper, whose Table 13 gives the matrix of results alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from emodistill.errors import InputError
from emodistill.evaluation.bootstrap import interval_ends, percentiles
from emodistill.seeding import stream

PRIOR_BOUTS = 0.5
"""Drawn bouts that every pair is given besides; more would pull strengths together."""
TOLERANCE = 1e-9
"""Of a strength; two decimals are shown."""
MAX_STEPS = 200
"""A guard alone: shortened steps settle within tens even where one method always wins."""


class Bout(NamedTuple):
    """One dialogue of two methods."""

    first: str
    second: str
    score: float
    """What `first` got of it, in [0, 1]; `second` got the rest."""
    scenario_id: str


def bradley_terry(
    bouts: Sequence[Bout],
    n_resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Strengths, strongest first, with percentile intervals that resample whole scenarios.

    A difference of 1 in strength is odds of e ≈ 2.7. Bouts of a method with itself say nothing of
    strengths and are passed over.

    Returns:
      A line a method, none for no bouts: `method`, `strength` (log-strength θ, 0 for the mean of
      all), `interval_low` and `interval_high` (over scenarios), `num_bouts`.

    Raises:
      InputError: a score outside [0, 1], or n_resamples under 1.
    """
    if n_resamples < 1:
        raise InputError(f"n_resamples={n_resamples} must be at least 1; the default is 10,000.")
    if not bouts:
        return pd.DataFrame()
    for number, bout in enumerate(bouts):
        if not 0 <= bout.score <= 1:
            raise InputError(
                f"bouts[{number}]: score={bout.score} of {bout.first!r} against {bout.second!r} "
                f"on {bout.scenario_id!r} must lie in [0, 1]."
            )
    first, second, score, scenario_ids = map(np.array, zip(*bouts, strict=True))
    methods, player = np.unique([first, second], return_inverse=True)
    scenarios, row = np.unique(scenario_ids, return_inverse=True)
    player = player.reshape(2, -1)
    won = np.zeros((len(scenarios), len(methods), len(methods)))
    np.add.at(won, (row, *player), score)
    np.add.at(won, (row, *player[::-1]), 1 - score)
    won *= 1 - np.eye(len(methods))
    num_bouts = np.bincount(player[:, first != second].ravel(), minlength=len(methods))
    prior = PRIOR_BOUTS / 2 * (1 - np.eye(len(methods)))
    strengths = _strengths(won.sum(axis=0) + prior)
    draws = stream(seed, "bootstrap", "ratings").multinomial(
        len(scenarios), np.full(len(scenarios), 1 / len(scenarios)), size=n_resamples
    )
    resampled = _strengths(np.einsum("bs,sij->bij", draws.astype(np.float64), won) + prior)
    return pd.DataFrame(
        {
            "method": methods,
            "strength": strengths,
            **interval_ends("interval", percentiles(resampled)),
            "num_bouts": num_bouts,
        }
    ).sort_values("strength", ascending=False, kind="stable")


def _strengths(won: np.ndarray) -> np.ndarray:
    """[…, A] log-strengths, centred, for [..., A, A] of what the row's method won of the column's.

    Newton's method. The likelihood is concave and its third derivative at most its second times
    the step's widest difference d, for which steps shortened to ln(1 + d)/d never overshoot.
    """
    played = won + np.swapaxes(won, -1, -2)
    theta = np.zeros(won.shape[:-1])
    for _ in range(MAX_STEPS):
        chance = expit(theta[..., :, None] - theta[..., None, :])
        gradient = (won - played * chance).sum(axis=-1)
        weight = played * chance * (1 - chance)
        curvature = weight.sum(axis=-1)[..., None] * np.eye(won.shape[-1]) - weight
        # Strengths are free up to a constant; adding 1 throughout makes steps of mean 0 the
        # only solution.
        step = np.linalg.solve(curvature + 1.0, gradient[..., None])[..., 0]
        reach = np.ptp(step, axis=-1, keepdims=True)
        theta += step * np.divide(np.log1p(reach), reach, out=np.ones_like(reach), where=reach > 0)
        if reach.max() < TOLERANCE:
            break
    return theta - theta.mean(axis=-1, keepdims=True)
