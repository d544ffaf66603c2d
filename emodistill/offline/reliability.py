"""Advantages from scores that are partly chance: shrunk towards 0 by how reliable each is.

Empirical Bayes within a scenario, with r̄_i the mean of the n_i scores of turn i:

    A_i = λ_i (r̄_i − μ) / (σ + ε),    λ_i = τ² / (τ² + s² / n_i)

s² is the variance of a turn's scores around their mean, pooled over all turns that were scored more
than once; μ and σ are those of the scenario's means r̄; and τ² = max(0, σ² − mean of s² / n_i) is
what is left of their variance for the turns themselves. A judge that repeats itself exactly has
λ = 1, which changes nothing; a scenario whose turns differ by chance alone teaches nothing. A turn
of which some scores failed has fewer, and counts for less.
"""

from __future__ import annotations

import numpy as np

from emodistill.errors import InputError
from emodistill.offline.rewards import FocalTurns, scenario_advantages


def shrunk_advantages(turns: FocalTurns) -> np.ndarray:
    """[N] A of each turn by all of its scores; NaN as in `scenario_advantages`.

    Raises:
      InputError: no turn was scored more than once, so that nothing tells what is chance.
    """
    advantages = scenario_advantages(turns.mean_scores, turns.scenario_ids)
    return advantages * reliabilities(turns)


def reliabilities(turns: FocalTurns) -> np.ndarray:
    """[N] λ of each turn; NaN where it has no score.

    Raises:
      InputError: as `shrunk_advantages`.
    """
    errors = noise_variance(turns) / np.maximum(turns.num_scores, 1)
    found = np.full(len(turns), np.nan)
    scored = ~np.isnan(turns.mean_scores)
    for scenario in np.unique(turns.scenario_ids[scored]):
        members = scored & (turns.scenario_ids == scenario)
        own, error = turns.mean_scores[members], errors[members]
        between = max(0.0, float(own.var()) - float(error.mean()))
        total = between + error
        found[members] = np.where(error > 0, between / np.where(total > 0, total, 1.0), 1.0)
    return found


def noise_variance(turns: FocalTurns) -> float:
    """s²: the pooled unbiased variance of the scores of a turn.

    Raises:
      InputError: as `shrunk_advantages`.
    """
    is_repeated = turns.num_scores > 1
    freedom = turns.num_scores[is_repeated] - 1
    if not len(freedom):
        raise InputError(
            "--shrink needs scores that tell how much of them is chance: have the judge score the "
            "turns again with judge.py --repeats 2."
        )
    return float((turns.score_variances[is_repeated] * freedom).sum() / freedom.sum())
