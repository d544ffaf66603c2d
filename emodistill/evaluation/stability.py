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


STAGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "iql": ("critic/loss", ("critic/loss",)),
    "sft": ("sft/loss", ("sft/loss",)),
    "jpo": ("policy/surrogate", (KL, RATIO)),
}
"""Stage -> the signal that it works on, and the controls that must stay quiet."""


class Quarter(NamedTuple):
    """A metric over the last quarter of its points."""

    metric: str
    median: float
    mad: float


class Stability(NamedTuple):
    """One run's row; the counts are over all logged points, None for stages without a reference."""

    num_points: int
    num_steps: int
    """The last step logged."""
    first: float
    """Median of the signal over the first quarter of the points."""
    last: float
    controls: tuple[Quarter, ...]
    kl_spikes: int | None = None
    """Points with KL > 0.5."""
    ratio_clips: int | None = None
    """Points whose mean ratio lies outside [0.8, 1.2]."""


def stability_row(stage: str, metrics: Metrics) -> Stability:
    """Table 15's row for a run of `stage`: `iql`, `sft` or `jpo`.

    Raises:
      InputError: unknown stage, or a metric that the row needs is missing or empty.
    """
    if stage not in STAGES:
        raise InputError(f"stage={stage!r} is none of {', '.join(STAGES)}.")
    signal_name, control_names = STAGES[stage]
    for name in (signal_name, *control_names):
        if name not in metrics or not len(metrics[name][1]):
            raise InputError(
                f"the {stage} run has logged no {name!r}, which its row of Table 15 needs; it has "
                f"{', '.join(sorted(metrics)) or 'nothing'}. Train the stage for at least one step."
            )
    last_quarter = {
        name: values[-max(1, len(values) // 4) :] for name, (_, values) in metrics.items()
    }
    steps, signal = metrics[signal_name]
    counts: dict[str, int] = {}
    if stage == "jpo":
        low, high = RATIO_BOUNDS
        kl, ratio = metrics[KL][1], metrics[RATIO][1]
        # Negated, so that NaN, which lies nowhere, counts as a violation.
        counts["kl_spikes"] = int(np.sum(~(kl <= KL_SPIKE)))
        counts["ratio_clips"] = int(np.sum(~((ratio >= low) & (ratio <= high))))
    return Stability(
        num_points=len(signal),
        num_steps=int(steps[-1]),
        first=float(np.median(signal[: max(1, len(signal) // 4)])),
        last=float(np.median(last_quarter[signal_name])),
        controls=tuple(
            Quarter(
                name,
                float(np.median(last_quarter[name])),
                float(stats.median_abs_deviation(last_quarter[name])),
            )
            for name in control_names
        ),
        **counts,
    )
