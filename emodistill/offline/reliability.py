"""Advantages from scores that are partly chance: drawn towards what is to be expected of a turn.

Empirical Bayes with covariates (Fay and Herriot, 1979). With z_i the advantage of turn i by the
mean of its n_i scores, and m_i what is to be expected of a turn like it:

    A_i = z_i − (1 − λ_i) (z_i − m_i),    λ_i = τ² / (τ² + s² / (n_i σ²))

s² is the variance of a turn's scores around their mean, pooled over all turns that were scored more
than once; σ² that of a scenario's means; and τ² = max(0, mean of (z − m)² − mean of s² / (n σ²)) is
what is left within a scenario for the turns themselves. A judge that repeats itself exactly has
λ = 1, which changes nothing. A turn of which some scores failed has fewer, and counts for less; one
of which all failed has no advantage, whatever is expected of it.

m is a ridge regression of z on where a turn leaves the table: the selector's numbers of the state
after it, their products, and the turn's emotion. It is fitted on other scenarios than those that it
is asked about, so that the chance in a score is in no expectation of it. With a single scenario
nothing is expected, m = 0, and A = λ z.
"""

from __future__ import annotations

import numpy as np

from emodistill.emotions import EMOTIONS
from emodistill.errors import InputError
from emodistill.negotiation.states import DialogueState, features
from emodistill.offline.rewards import USUAL_LIMIT, FocalTurns, scenario_advantages

NUM_FOLDS = 5
"""Parts of the scenarios, of which each is expected by the others."""
RIDGE = 300.0
"""The strength of the ridge, in scores. Between 100 and 1,000 it makes no difference that could be
seen (docs/judges.md)."""


def shrunk_advantages(turns: FocalTurns) -> np.ndarray:
    """[N] A of each turn by all of its scores; NaN as in `scenario_advantages`.

    Raises:
      InputError: no turn was scored more than once, so that nothing tells what is chance.
    """
    advantages = scenario_advantages(turns.mean_scores, turns.scenario_ids)
    expected = expected_advantages(turns)
    return advantages - (1.0 - reliabilities(turns, expected)) * (advantages - expected)


def reliabilities(turns: FocalTurns, expected: np.ndarray | float = 0.0) -> np.ndarray:
    """[N] λ of each turn, the share of z − m that is not chance; NaN where z is.

    Args:
      expected: m, for all turns or each.

    Raises:
      InputError: as `shrunk_advantages`.
    """
    variance = noise_variance(turns)
    advantages = scenario_advantages(turns.mean_scores, turns.scenario_ids)
    squares = (advantages - expected) ** 2
    found = np.full(len(turns), np.nan)
    for members in _scenarios(turns, advantages):
        spread = turns.mean_scores[members].var()
        errors = variance / (turns.num_scores[members] * (spread if spread > 0 else 1.0))
        between = max(0.0, float(squares[members].mean() - errors.mean()))
        total = between + errors
        found[members] = np.where(errors > 0, between / np.where(total > 0, total, 1.0), 1.0)
    return found


def expected_advantages(turns: FocalTurns) -> np.ndarray:
    """[N] m: the advantage that the turns of other scenarios let expect, 0 on average in each."""
    advantages = scenario_advantages(turns.mean_scores, turns.scenario_ids)
    scenarios = _scenarios(turns, advantages)
    expected = np.zeros(len(turns))
    folds = [np.concatenate(scenarios[k::NUM_FOLDS]) for k in range(min(NUM_FOLDS, len(scenarios)))]
    if len(folds) < 2:
        return expected
    columns_NF = _circumstances(turns)
    for members in scenarios:
        columns_NF[members] -= columns_NF[members].mean(axis=0)
    for number, asked in enumerate(folds):
        known = np.concatenate([fold for other, fold in enumerate(folds) if other != number])
        weighted_FN = columns_NF[known].T * turns.num_scores[known]
        penalty_FF = RIDGE * np.eye(columns_NF.shape[1])
        slopes_F = np.linalg.solve(
            weighted_FN @ columns_NF[known] + penalty_FF, weighted_FN @ advantages[known]
        )
        expected[asked] = columns_NF[asked] @ slopes_F
    return expected


def _circumstances(turns: FocalTurns) -> np.ndarray:
    """[N, F] The state after each turn, standardised: numbers, their products, the emotion."""
    after_NS = np.array(
        [
            features(DialogueState.from_turns(played, played.turns[: index + 1], USUAL_LIMIT.cap))
            for played, index in zip(turns.dialogues, turns.turn_index, strict=True)
        ],
        np.float64,
    )
    numbers_NK, emotions_NE = np.split(after_NS, [-len(EMOTIONS)], axis=1)
    numbers_NK = _standardised(numbers_NK)
    first, second = np.triu_indices(numbers_NK.shape[1])
    products_NP = numbers_NK[:, first] * numbers_NK[:, second]
    return _standardised(np.concatenate([numbers_NK, products_NP, emotions_NE], axis=1))


def _standardised(columns_NF: np.ndarray) -> np.ndarray:
    spread_F = columns_NF.std(axis=0)
    return (columns_NF - columns_NF.mean(axis=0)) / np.where(spread_F > 0, spread_F, 1.0)


def _scenarios(turns: FocalTurns, advantages: np.ndarray) -> list[np.ndarray]:
    """The rows of each scenario that have an advantage, in the order of the scenarios' names."""
    known = np.flatnonzero(~np.isnan(advantages))
    _, number = np.unique(turns.scenario_ids[known].astype(np.str_), return_inverse=True)
    return [known[number == one] for one in range(number.max(initial=-1) + 1)]


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
