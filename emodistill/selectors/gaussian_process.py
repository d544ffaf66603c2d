"""A Gaussian process on a few hundred points: Matérn kernels, noise and length by likelihood.

Posterior and log marginal likelihood as in Rasmussen and Williams (2006), Algorithm 2.1. Targets
are standardised; the kernel's variance is one, as the standardised targets' is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist
from scipy.stats import norm

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
NOISES = (1e-6, 0.01, 0.1, 0.3, 1.0, 3.0)
"""Variance of the noise over the kernel's; the grids are ours."""


def matern(distances: np.ndarray, length: float, nu: float) -> np.ndarray:
    """The Matérn covariance of points at these distances, for ν = 1.5 or 2.5."""
    scaled = math.sqrt(2 * nu) * distances / length
    rest = scaled**2 / 3 if nu == 2.5 else 0.0
    return (1.0 + scaled + rest) * np.exp(-scaled)


@dataclass(frozen=True, slots=True)
class GaussianProcess:
    """A process that has seen `points_NS`; make one with `fit`."""

    points_NS: np.ndarray
    nu: float
    length: float
    noise: float
    mean: float
    scale: float
    factor_NN: np.ndarray
    weights_N: np.ndarray
    log_likelihood: float

    @classmethod
    def fit(
        cls,
        points_NS: np.ndarray,
        values_N: np.ndarray,
        *,
        nu: float = 1.5,
        lengths: Sequence[float] = LENGTHS,
        noises: Sequence[float] = NOISES,
    ) -> GaussianProcess:
        """The process with the length and the noise of the largest marginal likelihood."""
        fits = (
            cls._of(points_NS, values_N, nu, length, noise)
            for length, noise in itertools.product(lengths, noises)
        )
        return max(fits, key=lambda process: process.log_likelihood)

    @classmethod
    def _of(
        cls, points_NS: np.ndarray, values_N: np.ndarray, nu: float, length: float, noise: float
    ) -> GaussianProcess:
        mean, scale = float(values_N.mean()), float(values_N.std()) or 1.0
        targets_N = (values_N - mean) / scale
        covariance_NN = matern(cdist(points_NS, points_NS), length, nu)
        covariance_NN[np.diag_indices_from(covariance_NN)] += max(noise, 1e-10)
        factor_NN, _ = cho_factor(covariance_NN, lower=True)
        weights_N = cho_solve((factor_NN, True), targets_N)
        log_likelihood = (
            -0.5 * float(targets_N @ weights_N)
            - float(np.log(np.diag(factor_NN)).sum())
            - 0.5 * len(values_N) * math.log(2 * math.pi)
        )
        return cls(points_NS, nu, length, noise, mean, scale, factor_NN, weights_N, log_likelihood)

    def predict(self, points_MS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the function (without noise) at M points."""
        cross_MN = matern(cdist(points_MS, self.points_NS), self.length, self.nu)
        mean_M = cross_MN @ self.weights_N
        explained_NM = cho_solve((self.factor_NN, True), cross_MN.T)
        variance_M = np.maximum(1.0 - np.einsum("MN,NM->M", cross_MN, explained_NM), 0.0)
        return self.mean + self.scale * mean_M, self.scale * np.sqrt(variance_M)


def expected_improvement(
    mean_M: np.ndarray, deviation_M: np.ndarray, incumbent: float, margin: float
) -> np.ndarray:
    """E[max(0, f − incumbent − margin)] for f ~ N(mean, deviation²)."""
    gain_M = mean_M - incumbent - margin
    safe_M = np.maximum(deviation_M, 1e-12)
    z_M = gain_M / safe_M
    return np.where(
        deviation_M > 0, gain_M * norm.cdf(z_M) + safe_M * norm.pdf(z_M), np.maximum(gain_M, 0.0)
    )
