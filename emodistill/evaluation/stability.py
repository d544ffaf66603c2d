"""Whether a training run ended quietly: a row of the paper's Table 15 (Appendix L).

A metric's last quarter is summed up by its median ℓ̃ and MAD = median |ℓ − ℓ̃|, unscaled; the signal
is given as the medians of the first and of the last quarter of the logged points. The paper does
not say what its two signal figures are; those of IQL and SFT equal the last quarter's medians.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from emodistill.errors import InputError

KL = "policy/kl_k3"
RATIO = "policy/ratio_mean"
KL_SPIKE = 0.5
RATIO_BOUNDS = (0.8, 1.2)

Metrics = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""name -> (steps, values), as logged."""


class Watched(NamedTuple):
    """What a stage is judged by: the signal that it works on, and what must stay quiet."""

    signal: str
    controls: tuple[str, ...]


STAGES: Mapping[str, Watched] = {
    "iql": Watched("critic/loss", ("critic/loss",)),
    "sft": Watched("sft/loss", ("sft/loss",)),
    "jpo": Watched("policy/surrogate", (KL, RATIO)),
}


class Quarter(NamedTuple):
    """A metric over the last quarter of its points."""

    metric: str
    median: float
    mad: float


class Stability(NamedTuple):
    """One run's row; the counts are over all logged points, None for stages without a reference."""

    stage: str
    num_points: int
    num_steps: int
    signal: str
    first: float
    """Median of the signal over the first quarter of the points."""
    last: float
    controls: tuple[Quarter, ...]
    kl_spikes: int | None
    """Points with KL > 0.5."""
    ratio_clips: int | None
    """Points whose mean ratio lies outside [0.8, 1.2]."""


def stability_row(stage: str, metrics: Metrics, *, num_steps: int | None = None) -> Stability:
    """Table 15's row for a run of `stage`.

    Args:
      stage: `iql`, `sft` or `jpo`.
      num_steps: steps of the run; None is the last one logged.

    Raises:
      InputError: unknown stage, or a metric that the row needs is missing or empty.
    """
    if stage not in STAGES:
        raise InputError(f"stage={stage!r} is none of {', '.join(STAGES)}.")
    watched = STAGES[stage]
    steps, signal = _column(stage, metrics, watched.signal)
    num_quarter = max(1, len(signal) // 4)
    controls = []
    for name in watched.controls:
        values = _column(stage, metrics, name)[1]
        tail = values[-max(1, len(values) // 4) :]
        mad = float(stats.median_abs_deviation(tail))
        controls.append(Quarter(name, float(np.median(tail)), mad))
    kl_spikes = ratio_clips = None
    if KL in watched.controls:
        low, high = RATIO_BOUNDS
        ratio = _column(stage, metrics, RATIO)[1]
        # Negated, so that NaN, which lies nowhere, counts as a violation.
        kl_spikes = int(np.sum(~(_column(stage, metrics, KL)[1] <= KL_SPIKE)))
        ratio_clips = int(np.sum(~((ratio >= low) & (ratio <= high))))
    return Stability(
        stage=stage,
        num_points=len(signal),
        num_steps=int(steps[-1]) if num_steps is None else num_steps,
        signal=watched.signal,
        first=float(np.median(signal[:num_quarter])),
        last=float(np.median(signal[-num_quarter:])),
        controls=tuple(controls),
        kl_spikes=kl_spikes,
        ratio_clips=ratio_clips,
    )


def _column(stage: str, metrics: Metrics, name: str) -> tuple[np.ndarray, np.ndarray]:
    if name not in metrics or not len(metrics[name][1]):
        raise InputError(
            f"the {stage} run has logged no {name!r}, which its row of Table 15 needs; it has "
            f"{', '.join(sorted(metrics)) or 'nothing'}. Train the stage for at least one step."
        )
    steps, values = metrics[name]
    return np.asarray(steps), np.asarray(values, dtype=np.float64)
