"""What the data can say about a trained selector before it plays: its value, and its support.

The value of the policy is estimated by fitted Q-evaluation (Le et al., 2019) beside that of
behaviour cloning and of a random choice; all from the same transitions, so that the three compare,
but the estimate trusts Q where the data has little. Where that is, the support map tells: clusters
of states by emotions, how often the data has each and how often the policy asks for it.

Axes: N transitions, S state, A emotions, K policies, C clusters, B batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.cluster.vq import kmeans2

from emodistill.configs import IQLConfig
from emodistill.emotions import EMOTIONS
from emodistill.seeding import derive, stream
from emodistill.train.iql import critic_layers, forward, taken, train_iql
from emodistill.train.selector_files import SelectorNetworks
from emodistill.train.transitions import Transitions

NUM_CLUSTERS = 8
MIN_SUPPORT = 5
"""Turns of a cluster that an emotion needs to count as known there."""
MAX_UNSUPPORTED = 0.05
"""Share of the policy's choices outside that is worth a warning."""
FQE_STEPS = 2_000
FQE_RATE = 1e-3
FQE_POLYAK = 0.02
NO_SCALE = 1e-6
"""An advantage scale at which weighted regression is behaviour cloning."""


class Support(NamedTuple):
    """The support map."""

    centers_CS: np.ndarray
    data_CA: np.ndarray
    """Turns of the data."""
    policy_CA: np.ndarray
    """Turns that the policy would have spoken with each emotion, expected."""
    unsupported: float
    """Share of the policy's choices with fewer than `MIN_SUPPORT` turns behind them."""

    def as_json(self) -> dict[str, Any]:
        return {
            "emotions": list(EMOTIONS),
            "centers": self.centers_CS.tolist(),
            "data": self.data_CA.tolist(),
            "policy": self.policy_CA.round(3).tolist(),
            "min_support": MIN_SUPPORT,
            "unsupported": self.unsupported,
        }


def policy_of(networks: SelectorNetworks, observation_NS: np.ndarray) -> np.ndarray:
    """The policy's probabilities, float32 [N, A]."""
    logits_NA = networks.policy_logits(observation_NS).astype(np.float64)
    logits_NA -= logits_NA.max(axis=1, keepdims=True)
    weights_NA = np.exp(logits_NA)
    return (weights_NA / weights_NA.sum(axis=1, keepdims=True)).astype(np.float32)


def support_map(networks: SelectorNetworks, transitions: Transitions, *, seed: int) -> Support:
    """Cluster the data's states (k-means) and count emotions, the data's and the policy's."""
    states_NS = transitions.observation_NS.astype(np.float64)
    num_clusters = min(NUM_CLUSTERS, len(np.unique(states_NS, axis=0)))
    centers_CS, label_N = kmeans2(
        states_NS, num_clusters, minit="++", rng=np.random.default_rng(derive(seed, "support"))
    )
    data_CA = np.zeros((num_clusters, len(EMOTIONS)), np.int64)
    np.add.at(data_CA, (label_N, transitions.action_N), 1)
    policy_NA = policy_of(networks, transitions.observation_NS).astype(np.float64)
    policy_CA = np.zeros(data_CA.shape)
    np.add.at(policy_CA, label_N, policy_NA)
    unsupported = float(policy_CA[data_CA < MIN_SUPPORT].sum() / policy_CA.sum())
    return Support(centers_CS, data_CA, policy_CA, unsupported)


def estimated_values(
    networks: SelectorNetworks, transitions: Transitions, config: IQLConfig
) -> dict[str, float]:
    """Expected return from the dialogues' first turns: of `iql`, `behaviour-cloning`, `random`."""
    cloning = dataclasses.replace(
        config, advantage_scale=NO_SCALE, num_steps=min(config.num_steps, FQE_STEPS)
    )
    (cloned,) = train_iql(transitions, cloning)
    num_actions = len(EMOTIONS)

    def uniform(observation_NS: np.ndarray) -> np.ndarray:
        return np.full((len(observation_NS), num_actions), 1 / num_actions, np.float32)

    policies = {
        "iql": lambda states_NS: policy_of(networks, states_NS),
        "behaviour-cloning": lambda states_NS: policy_of(cloned.networks, states_NS),
        "random": uniform,
    }
    tables = {
        name: (policy(transitions.observation_NS), policy(transitions.next_observation_NS))
        for name, policy in policies.items()
    }
    return fitted_q_values(tables, transitions, config)


def fitted_q_values(
    policies: Mapping[str, tuple[np.ndarray, np.ndarray]],
    transitions: Transitions,
    config: IQLConfig,
    *,
    num_steps: int = FQE_STEPS,
) -> dict[str, float]:
    """Fitted Q-evaluation of several policies in one program.

    Args:
      policies: name -> probabilities at each state and at each next state, [N, A].

    Returns: the mean of Σ π(e | s) Q(s, e) over the dialogues' first states.
    """
    now_KNA, next_KNA = (jnp.asarray(np.stack(x)) for x in zip(*policies.values(), strict=True))
    observation_NS = jnp.asarray(transitions.observation_NS)
    following_NS = jnp.asarray(transitions.next_observation_NS)
    action_N, reward_N = jnp.asarray(transitions.action_N), jnp.asarray(transitions.reward_N)
    continues_N = jnp.asarray(~transitions.terminal_N, jnp.float32)
    layers = critic_layers(config.seed, observation_NS.shape[1], config.hidden_width)
    layers_K = jax.tree.map(lambda x: jnp.stack([x] * len(policies)), layers)
    optimizer = optax.adam(FQE_RATE)

    def loss(layers: Any, target: Any, rows_B: jax.Array, next_NA: jax.Array) -> jax.Array:
        q_BA = forward(layers, observation_NS[rows_B])
        next_q_BA = forward(target, following_NS[rows_B])
        next_value_B = jnp.sum(next_NA[rows_B] * next_q_BA, axis=1)
        wanted_B = reward_N[rows_B] + config.discount * continues_N[rows_B] * next_value_B
        q_B = taken(q_BA, action_N[rows_B])
        return jnp.mean((q_B - jax.lax.stop_gradient(wanted_B)) ** 2)

    def update(
        layers: Any, target: Any, moments: Any, rows_B: jax.Array, next_NA: jax.Array
    ) -> tuple[Any, Any, Any]:
        grads = jax.grad(loss)(layers, target, rows_B, next_NA)
        steps, moments = optimizer.update(grads, moments)
        layers = optax.apply_updates(layers, steps)
        target = jax.tree.map(lambda t, q: t + FQE_POLYAK * (q - t), target, layers)
        return layers, target, moments

    @jax.jit
    def evaluate(layers_K: Any, rows_LB: jax.Array) -> jax.Array:
        def step(carry: Any, rows_B: jax.Array) -> tuple[Any, None]:
            every = jax.vmap(update, in_axes=(0, 0, 0, None, 0))
            layers_K, target_K, moments_K = carry
            return every(layers_K, target_K, moments_K, rows_B, next_KNA), None

        start = (layers_K, layers_K, jax.vmap(optimizer.init)(layers_K))
        (layers_K, _, _), _ = jax.lax.scan(step, start, rows_LB)

        def value(layers: Any, now_NA: jax.Array) -> jax.Array:
            q_NA = forward(layers, observation_NS)
            return jnp.sum(now_NA * q_NA, axis=1)

        return jax.vmap(value)(layers_K, now_KNA)

    shape = (num_steps, min(config.batch_size, len(transitions)))
    rows_LB = stream(config.seed, "fqe").integers(len(transitions), size=shape, dtype=np.int32)
    value_KN = np.asarray(evaluate(layers_K, rows_LB))
    means_K = value_KN[:, transitions.starts].mean(axis=1)
    return {name: float(mean) for name, mean in zip(policies, means_K, strict=True)}
