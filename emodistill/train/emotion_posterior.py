"""A contextual bandit over emotions: how good each is in each phase of the talks, as a posterior.

A recorded turn is a pull of its emotion's arm in the phase of its state, and the return of the
dialogue from that turn on is what it paid. The mean payment of an arm has a normal prior and a
normal likelihood of known variance:

    payment ~ N(μ, σ²),  μ ~ N(m_p, τ²)   =>   μ | n payments ~ N((m_p/τ² + Σ/σ²) v, v),
                                               v = 1 / (1/τ² + n/σ²)

with m_p the mean of the phase, σ² the pooled variance within arms, and τ² what the arms' means vary
beyond that (the method of moments); all three are estimated, so that no number is ours but the
phases: thirds of the data's turns by the progress of the talks. Thompson's rule draws each μ and
takes the largest. With a single phase and the largest mean in place of a draw, it is the best fixed
emotion that the data can name.

Free of jax. Axes: N transitions, S state, A emotions, P phases, G points of a grid.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from emodistill.configs import EmotionSet, IQLConfig, LearnerName, StateKind
from emodistill.emotions import EMOTION_SETS, EMOTIONS
from emodistill.errors import InputError
from emodistill.negotiation.states import feature_names
from emodistill.train.transitions import Transitions

NUM_PHASES: Mapping[str, int] = {"bandit": 3, "best-fixed": 1}
"""The learners of this kind, and how many phases of the talks each tells apart; early, middle and
late, as EmoMAS (arXiv 2604.07003) does."""
MIN_VARIANCE = 1e-6
"""Of payments and of arms: keeps a posterior proper where all payments are alike."""
GRID_POINTS = 2_001
"""Of the integral for an arm's chance to be the best: good to 1e-4 at 28 arms."""


@dataclass(frozen=True, kw_only=True)
class EmotionPosterior:
    """The posterior of each emotion's mean payment in each phase."""

    mean_PA: np.ndarray
    """float32; emotions that may not be chosen have one all the same."""
    deviation_PA: np.ndarray
    """float32."""
    bounds: np.ndarray
    """float32 [P − 1], ascending: a state's phase is how many of them its progress has reached."""
    learner: LearnerName
    emotions: EmotionSet
    state: StateKind
    settings: Mapping[str, Any]
    """The configuration that it was estimated under, seed included."""

    @property
    def num_features(self) -> int:
        return len(feature_names(self.state))

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies that it can act by."""
        return ("network",)

    @property
    def metrics(self) -> dict[str, float]:
        """What it has found: the largest and the mean payment, and how sure it is of its choice."""
        return {
            "posterior/best": float(self.mean_PA.max()),
            "posterior/mean": float(self.mean_PA.mean()),
            "posterior/deviation": float(self.deviation_PA.mean()),
            "posterior/chance": float(self.best_chances.max(axis=1).mean()),
        }

    @functools.cached_property
    def best_chances(self) -> np.ndarray:
        """[P, A] How probably each emotion is the best of its phase: what Thompson's rule draws."""
        is_allowed_A = np.isin(EMOTIONS, EMOTION_SETS[self.emotions])
        return np.stack(
            [
                chances_to_be_best(mean_A, deviation_A, is_allowed_A)
                for mean_A, deviation_A in zip(self.mean_PA, self.deviation_PA, strict=True)
            ]
        )

    def probabilities(self, observation: np.ndarray, policy: str = "network") -> np.ndarray:
        """The policy at one state [S] or several [N, S]: float64 [A] or [N, A], sums to one."""
        return self.best_chances[phases(observation, self.state, self.bounds)]


def phases(observation: np.ndarray, state: StateKind, bounds: np.ndarray) -> np.ndarray:
    """The phase of one state [S] or several [N, S]: a number, or int [N]."""
    progress = observation[..., feature_names(state).index("progress")]
    return np.searchsorted(bounds, progress, side="right")


def fit_posterior(transitions: Transitions, config: IQLConfig) -> EmotionPosterior:
    """The posterior after the transitions that have an emotion to choose from; `best-fixed` keeps
    its mean alone.

    Raises:
      InputError: none has one.
    """
    num_phases = NUM_PHASES[config.learner]
    is_used_N = np.isin(np.array(EMOTIONS)[transitions.action_N], EMOTION_SETS[config.emotions])
    if not is_used_N.any():
        raise InputError(
            f"emotions={config.emotions!r}: none of the {len(transitions)} transitions has such an "
            "emotion; learn from more dialogues, or from all emotions."
        )
    observation_NS = transitions.observation_NS[is_used_N]
    progress_N = observation_NS[:, feature_names(config.state).index("progress")]
    bounds = np.quantile(progress_N, np.arange(1, num_phases) / num_phases).astype(np.float32)
    phase_N = phases(observation_NS, config.state, bounds)
    payment_N = returns_to_go(transitions)[is_used_N]
    shape = num_phases, len(EMOTIONS)
    count_PA, sum_PA, square_PA = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    arm_N = phase_N, transitions.action_N[is_used_N]
    np.add.at(count_PA, arm_N, 1.0)
    np.add.at(sum_PA, arm_N, payment_N)
    np.add.at(square_PA, arm_N, payment_N**2)
    prior_P1 = sum_PA.sum(axis=1, keepdims=True) / np.maximum(
        count_PA.sum(axis=1, keepdims=True), 1
    )
    mean_PA = np.where(count_PA > 0, sum_PA / np.maximum(count_PA, 1), prior_P1)
    within = float((square_PA - count_PA * mean_PA**2).sum())
    noise = max(within / max(float((count_PA - 1).clip(0).sum()), 1.0), MIN_VARIANCE)
    is_seen_PA = count_PA > 0
    spread_PA = (mean_PA - prior_P1) ** 2 - noise / np.maximum(count_PA, 1)
    between = max(float(np.average(spread_PA[is_seen_PA], weights=count_PA[is_seen_PA])), 0.0)
    between = max(between, MIN_VARIANCE)
    variance_PA = 1.0 / (1.0 / between + count_PA / noise)
    posterior_PA = variance_PA * (prior_P1 / between + sum_PA / noise)
    is_sampled = config.learner == "bandit"
    return EmotionPosterior(
        mean_PA=posterior_PA.astype(np.float32),
        deviation_PA=(np.sqrt(variance_PA) * is_sampled).astype(np.float32),
        bounds=bounds,
        learner=config.learner,
        emotions=config.emotions,
        state=config.state,
        settings=config.identity(),
    )


def returns_to_go(transitions: Transitions) -> np.ndarray:
    """What each transition's dialogue pays from it on, float64 [N], undiscounted."""
    total_N = np.cumsum(transitions.reward_N[::-1].astype(np.float64))[::-1]
    after_N = np.append(total_N, 0.0)
    ends = np.append(transitions.starts[1:], len(transitions))
    lengths = np.diff(np.append(transitions.starts, len(transitions)))
    return total_N - np.repeat(after_N[ends], lengths)


def chances_to_be_best(
    mean_A: np.ndarray, deviation_A: np.ndarray, is_allowed_A: np.ndarray
) -> np.ndarray:
    """P(arm a's draw is the largest) for independent normal draws, float64 [A]; sums to one.

    ∫ φ_a(x) Π_{b≠a} Φ_b(x) dx by the trapezoid rule; where no arm has a deviation, all of it is the
    first largest mean's.
    """
    chances_A = np.zeros(len(mean_A))
    allowed = np.flatnonzero(is_allowed_A)
    mean, deviation = (array[allowed].astype(np.float64) for array in (mean_A, deviation_A))
    if not deviation.any():
        chances_A[allowed[mean.argmax()]] = 1.0
        return chances_A
    deviation = np.maximum(deviation, 1e-6 * deviation.max())
    grid_G1 = np.linspace((mean - 8 * deviation).min(), (mean + 8 * deviation).max(), GRID_POINTS)
    scaled_GA = (grid_G1[:, None] - mean) / deviation
    log_below_GA = norm.logcdf(scaled_GA)
    log_others_GA = log_below_GA.sum(axis=1, keepdims=True) - log_below_GA
    density_GA = np.exp(norm.logpdf(scaled_GA) - np.log(deviation) + log_others_GA)
    found = density_GA.sum(axis=0)
    chances_A[allowed] = found / found.sum()
    return chances_A
