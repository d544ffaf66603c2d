"""What the selector's learners minimise: IQL (Eqs. 13–15; Kostrikov et al., 2021) and its controls.

    cloning   behaviour cloning: −log π(e | s)
    dqn       (Q(s, e) − y)², y = r + γ Q̄(s', argmax_e' Q(s', e')): double Q-learning (van Hasselt
              et al., 2016) on recorded transitions alone
    cql       half of it, plus α (log Σ_e' exp Q(s, e') − Q(s, e)): CQL(H) (Kumar et al., 2020,
              Eq. 4, whose halved error makes α its own)

Q̄ is the Polyak average of Q. Departures of IQL from the paper: the policy is regressed on the
target critic's advantage, as in IQL's own publication, where Eq. 15 prints the critic's own
(`advantage_q`); the three losses are taken at the same parameters and applied by one Adam (no
shared weights, so it is three optimisers in one); states are clipped features, not text; regression
weights are capped.

Axes: K runs, B batch, S state, A emotions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

Layers = list[tuple[jax.Array, jax.Array]]
"""(kernel, bias) per layer."""
Params = dict[str, Layers]
"""Network name -> its layers."""
Metrics = dict[str, jax.Array]
NEVER = -1e9
"""Stands for −∞ where an emotion may not be chosen: a product with 0 is still 0."""


class LearnerSettings(NamedTuple):
    """Numbers [K] that runs may vary without another compilation."""

    expectile: jax.Array
    advantage_scale: jax.Array
    discount: jax.Array
    learning_rate: jax.Array
    polyak: jax.Array
    weight_cap: jax.Array
    conservatism: jax.Array
    is_online: jax.Array
    """1 where the policy is regressed on the critic's own Q, 0 for the target critic's."""
    is_allowed_A: jax.Array
    """[K, A] 1 for the emotions that may be chosen, else 0."""


class Data(NamedTuple):
    """Transitions on the device; `continues` is 0 where one is terminal, else 1."""

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    continues: jax.Array


def value_loss(value_B: jax.Array, target_q_B: jax.Array, expectile: jax.Array) -> jax.Array:
    """Expectile regression of V on the target network's Q (Eq. 14, first line)."""
    error_B = target_q_B - value_B
    return jnp.mean(jnp.where(error_B > 0, expectile, 1.0 - expectile) * error_B**2)


def critic_loss(q_B: jax.Array, bellman_target_B: jax.Array) -> jax.Array:
    """Squared TD error (Eq. 14, second line)."""
    return jnp.mean((bellman_target_B - q_B) ** 2)


def actor_loss(log_prob_B: jax.Array, weight_B: jax.Array) -> jax.Array:
    """Advantage-weighted regression: weighted negative log-likelihood of the data's emotions."""
    return -jnp.mean(weight_B * log_prob_B)


def conservative_loss(q_BA: jax.Array, q_B: jax.Array) -> jax.Array:
    """CQL's penalty: how far the soft maximum of Q lies above Q of the recorded emotions."""
    return jnp.mean(jax.nn.logsumexp(q_BA, axis=1) - q_B)


def double_q_target(
    reward_B: jax.Array,
    discount_B: jax.Array,
    next_q_BA: jax.Array,
    next_target_q_BA: jax.Array,
) -> jax.Array:
    """Double Q-learning's target [B]: the critic chooses the next emotion, the target critic says
    what it is worth.

    Args:
      discount_B: 0 where a transition is terminal.
    """
    chosen_B = jnp.argmax(next_q_BA, axis=1)
    return reward_B + discount_B * at_action(next_target_q_BA, chosen_B)


def forward(layers: Layers, observation_BS: jax.Array) -> jax.Array:
    """A ReLU network on states."""
    hidden = observation_BS
    for kernel, bias in layers[:-1]:
        hidden = jax.nn.relu(hidden @ kernel + bias[None])
    kernel, bias = layers[-1]
    return hidden @ kernel + bias[None]


def at_action(values_BA: jax.Array, action_B: jax.Array) -> jax.Array:
    """The value of each transition's action, [B].

    A sum, since the gradient of an index is a scatter, which XLA does element by element on CPU.
    """
    one_hot_BA = jax.nn.one_hot(action_B, values_BA.shape[1], dtype=values_BA.dtype)
    return jnp.sum(values_BA * one_hot_BA, axis=1)


def iql_losses(
    params: Params, target: Layers, batch: Data, settings: LearnerSettings
) -> tuple[jax.Array, Metrics]:
    """The sum of the three losses and a step's metrics; each loss reaches its own network only."""
    fixed = jax.lax.stop_gradient
    value_B1 = forward(params["value"], batch.observation)
    q_BA = forward(params["critic"], batch.observation)
    logits_BA = forward(params["actor"], batch.observation)
    next_value_B1 = forward(fixed(params["value"]), batch.next_observation)
    value_B, q_B = value_B1[:, 0], at_action(q_BA, batch.action)
    target_q_B = fixed(at_action(forward(target, batch.observation), batch.action))
    advantage_B = jnp.where(settings.is_online > 0, fixed(q_B), target_q_B) - fixed(value_B)
    raw_weight_B = jnp.exp(settings.advantage_scale * advantage_B)
    weight_B = jnp.minimum(raw_weight_B, settings.weight_cap)
    log_probs_BA = jax.nn.log_softmax(logits_BA)
    bellman_B = batch.reward + settings.discount * batch.continues * next_value_B1[:, 0]
    losses = {
        "value/loss": value_loss(value_B, target_q_B, settings.expectile),
        "critic/loss": critic_loss(q_B, bellman_B),
        "actor/loss": actor_loss(at_action(log_probs_BA, batch.action), weight_B),
    }
    metrics = losses | {
        "value/mean": jnp.mean(value_B),
        "critic/mean": jnp.mean(q_B),
        "advantage/mean": jnp.mean(advantage_B),
        "advantage/std": jnp.std(advantage_B),
        "policy/weight_mean": jnp.mean(weight_B),
        "policy/capped_fraction": jnp.mean(raw_weight_B >= settings.weight_cap),
        "policy/entropy": _entropy(log_probs_BA),
    }
    return sum(losses.values(), jnp.zeros(())), metrics


def cloning_losses(
    params: Params, target: Layers, batch: Data, settings: LearnerSettings
) -> tuple[jax.Array, Metrics]:
    """Behaviour cloning: the likelihood of the recorded emotions, each as good as any other."""
    log_probs_BA = jax.nn.log_softmax(forward(params["actor"], batch.observation))
    log_prob_B = at_action(log_probs_BA, batch.action)
    loss = actor_loss(log_prob_B, jnp.ones_like(log_prob_B))
    return loss, {"actor/loss": loss, "policy/entropy": _entropy(log_probs_BA)}


def dqn_losses(
    params: Params, target: Layers, batch: Data, settings: LearnerSettings
) -> tuple[jax.Array, Metrics]:
    """Double Q-learning; neither the choice of the next emotion nor its value has a gradient."""
    loss, metrics, _ = _double_q(params, target, batch, settings)
    return loss, metrics


def cql_losses(
    params: Params, target: Layers, batch: Data, settings: LearnerSettings
) -> tuple[jax.Array, Metrics]:
    """Double Q-learning with CQL's penalty on what the data doesn't show."""
    loss, metrics, (q_BA, q_B) = _double_q(params, target, batch, settings)
    penalty = conservative_loss(_allowed(q_BA, settings), q_B)
    total = 0.5 * loss + settings.conservatism * penalty
    return total, metrics | {"critic/conservative": penalty}


def _double_q(
    params: Params, target: Layers, batch: Data, settings: LearnerSettings
) -> tuple[jax.Array, Metrics, tuple[jax.Array, jax.Array]]:
    """The squared error, its metrics, and Q: of all emotions [B, A], of the recorded ones [B]."""
    fixed = jax.lax.stop_gradient
    q_BA = forward(params["critic"], batch.observation)
    q_B = at_action(q_BA, batch.action)
    next_q_BA = forward(fixed(params["critic"]), batch.next_observation)
    bellman_B = double_q_target(
        batch.reward,
        settings.discount * batch.continues,
        _allowed(next_q_BA, settings),
        forward(target, batch.next_observation),
    )
    loss = critic_loss(q_B, fixed(bellman_B))
    return loss, {"critic/loss": loss, "critic/mean": jnp.mean(q_B)}, (q_BA, q_B)


def _allowed(values_BA: jax.Array, settings: LearnerSettings) -> jax.Array:
    return jnp.where(settings.is_allowed_A[None] > 0, values_BA, NEVER)


def _entropy(log_probs_BA: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.sum(jnp.exp(log_probs_BA) * log_probs_BA, axis=-1))


LOSSES: Mapping[str, Callable[..., tuple[jax.Array, Metrics]]] = {
    "iql": iql_losses,
    "cloning": cloning_losses,
    "dqn": dqn_losses,
    "cql": cql_losses,
}
"""Learner -> its loss and a step's metrics; those without one have no networks."""
