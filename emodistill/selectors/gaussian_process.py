"""A Gaussian process on a few hundred points: Matérn kernels, noise and length by likelihood.

Posterior and log marginal likelihood as in Rasmussen and Williams (2006), Algorithm 2.1. Targets
are standardised; the kernel's variance is one, as the standardised targets' is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist
from scipy.stats import norm

LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
NOISES = (1e-6, 0.01, 0.1, 0.3, 1.0, 3.0)
"""Variance of the noise over the kernel's; the grids are ours."""
JITTER = 1e-10
"""Keeps the covariance of equal points invertible."""


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
    inverse_NN: np.ndarray
    """Of the covariance with its noise."""
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
        mean, scale = float(values_N.mean()), float(values_N.std()) or 1.0
        targets_N = (values_N - mean) / scale
        distances_NN = cdist(points_NS, points_NS)
        best: tuple[float, float, float, np.ndarray, np.ndarray] | None = None
        for length in lengths:
            eigenvalues_N, vectors_NN = eigh(matern(distances_NN, length, nu))
            projected_N = vectors_NN.T @ targets_N
            for noise in noises:
                spectrum_N = np.maximum(eigenvalues_N, 0.0) + max(noise, JITTER)
                log_likelihood = -0.5 * float(
                    (projected_N**2 / spectrum_N + np.log(2 * math.pi * spectrum_N)).sum()
                )
                if best is None or log_likelihood > best[0]:
                    best = log_likelihood, length, noise, spectrum_N, vectors_NN
        assert best is not None  # the grids are not empty
        log_likelihood, length, noise, spectrum_N, vectors_NN = best
        inverse_NN = (vectors_NN / spectrum_N) @ vectors_NN.T
        weights_N = inverse_NN @ targets_N
        known = nu, length, noise, mean, scale
        return cls(points_NS, *known, inverse_NN, weights_N, log_likelihood)

    def predict(self, points_MS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the function (without noise) at M points."""
        cross_MN = matern(cdist(points_MS, self.points_NS), self.length, self.nu)
        explained_M = np.einsum("MN,NP,MP->M", cross_MN, self.inverse_NN, cross_MN, optimize=True)
        deviation_M = np.sqrt(np.maximum(1.0 - explained_M, 0.0))
        return self.mean + self.scale * (cross_MN @ self.weights_N), self.scale * deviation_M


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
