"""What the data can say about a trained selector before it plays: its value, and its support.

The value of the policy is estimated by fitted Q-evaluation (Le et al., 2019) beside that of
behaviour cloning and of a random choice; all from the same transitions, so that the three compare,
but the estimate trusts Q where the data has little. Where that is, the support map tells: clusters
of states by emotions, how often the data has each and how often the policy asks for it.

Axes: N transitions, S state, A emotions, K policies, C clusters, B batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.cluster.vq import kmeans2

from emodistill.configs import IQLConfig
from emodistill.emotions import EMOTIONS
from emodistill.seeding import derive, stream
from emodistill.train.learner_losses import Data, Layers, at_action, critic_loss, forward
from emodistill.train.q_learning import device_data, initial_networks, train_networks
from emodistill.train.selector_files import Selected
from emodistill.train.transitions import Transitions

NUM_CLUSTERS = 8
MIN_SUPPORT = 5
"""Turns of a cluster that an emotion needs to count as known there."""
MAX_UNSUPPORTED = 0.05
"""Share of the policy's choices outside that is worth a warning."""
FQE_STEPS = 2_000
FQE_RATE = 1e-3
FQE_POLYAK = 0.02


def support_map(networks: Selected, transitions: Transitions, *, seed: int) -> dict[str, Any]:
    """Cluster the data's states (k-means) and count emotions, the data's and the policy's.

    Returns: what support.json holds. `centers` [C, S]; `data` [C, A], turns of the data; `policy`
    [C, A], how many of them the policy is expected to have spoken with each emotion; `unsupported`,
    the share of the policy's choices with fewer than `min_support` turns of the data behind them.
    """
    states_NS = transitions.observation_NS.astype(np.float64)
    num_clusters = min(NUM_CLUSTERS, len(np.unique(states_NS, axis=0)))
    centers_CS, label_N = kmeans2(
        states_NS, num_clusters, minit="++", rng=np.random.default_rng(derive(seed, "support"))
    )
    data_CA = np.zeros((num_clusters, len(EMOTIONS)), np.int64)
    np.add.at(data_CA, (label_N, transitions.action_N), 1)
    # Rounded to float32, as the policies of fitted Q are.
    policy_NA = networks.probabilities(transitions.observation_NS).astype(np.float32)
    policy_CA = np.zeros(data_CA.shape)
    np.add.at(policy_CA, label_N, policy_NA)
    return {
        "emotions": list(EMOTIONS),
        "centers": centers_CS.tolist(),
        "data": data_CA.tolist(),
        "policy": policy_CA.round(3).tolist(),
        "min_support": MIN_SUPPORT,
        "unsupported": float(policy_CA[data_CA < MIN_SUPPORT].sum() / policy_CA.sum()),
    }


def estimated_values(
    networks: Selected, transitions: Transitions, config: IQLConfig
) -> dict[str, float]:
    """Expected return from the dialogues' first turns: of the learner, by its name, of
    `behaviour-cloning` and of `random`."""
    cloning = dataclasses.replace(
        config, learner="cloning", emotions="all", num_steps=min(config.num_steps, FQE_STEPS)
    )
    (cloned,) = train_networks(transitions, [cloning])

    def uniform(states_NS: np.ndarray) -> np.ndarray:
        return np.full((len(states_NS), len(EMOTIONS)), 1 / len(EMOTIONS))

    policies = {
        networks.learner: networks.probabilities,
        "behaviour-cloning": cloned.probabilities,
        "random": uniform,
    }
    return fitted_q_values(policies, transitions, config)


def fitted_q_values(
    policies: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    transitions: Transitions,
    config: IQLConfig,
) -> dict[str, float]:
    """Fitted Q-evaluation of several policies in one program.

    Args:
      policies: name -> what gives the emotions' probabilities [N, A] at states [N, S].

    Returns: the mean of Σ π(e | s) Q(s, e) over the dialogues' first states.
    """
    data = device_data(transitions)
    seeds = [config.seed] * len(policies)
    networks = initial_networks(seeds, data.observation.shape[1], config.hidden_width)
    shape = (FQE_STEPS, min(config.batch_size, len(transitions)))
    index_LB = stream(config.seed, "fqe").integers(len(transitions), size=shape, dtype=np.int32)
    policy_KNA, next_policy_KNA = (
        np.stack([policy(states_NS) for policy in policies.values()]).astype(np.float32)
        for states_NS in (transitions.observation_NS, transitions.next_observation_NS)
    )
    value_KN = np.asarray(
        _fitted_values(
            networks["critic"], policy_KNA, next_policy_KNA, index_LB, data, config.discount
        )
    )
    means_K = value_KN[:, transitions.starts].mean(axis=1)
    return {name: float(mean) for name, mean in zip(policies, means_K, strict=True)}


@jax.jit
def _fitted_values(
    layers_K: Layers,
    policy_KNA: jax.Array,
    next_policy_KNA: jax.Array,
    index_LB: jax.Array,
    data: Data,
    discount: float,
) -> jax.Array:
    """Each policy's value [K, N] at the data's states, by a critic that starts from `layers_K`."""
    optimizer = optax.adam(FQE_RATE)

    def loss(layers: Layers, target: Layers, batch: Data, next_policy_BA: jax.Array) -> jax.Array:
        next_value_B = jnp.sum(next_policy_BA * forward(target, batch.next_observation), axis=1)
        bellman_B = batch.reward + discount * batch.continues * next_value_B
        q_B = at_action(forward(layers, batch.observation), batch.action)
        return critic_loss(q_B, jax.lax.stop_gradient(bellman_B))

    def update(carry: tuple, next_policy_NA: jax.Array, index_B: jax.Array) -> tuple:
        layers, target, opt_state = carry
        batch = jax.tree.map(lambda array: array[index_B], data)
        grads = jax.grad(loss)(layers, target, batch, next_policy_NA[index_B])
        steps, opt_state = optimizer.update(grads, opt_state)
        layers = optax.apply_updates(layers, steps)
        target = jax.tree.map(lambda t, q: t + FQE_POLYAK * (q - t), target, layers)
        return layers, target, opt_state

    def step(carry_K: tuple, index_B: jax.Array) -> tuple[tuple, None]:
        return jax.vmap(update, in_axes=(0, 0, None))(carry_K, next_policy_KNA, index_B), None

    start_K = layers_K, layers_K, jax.vmap(optimizer.init)(layers_K)
    (trained_K, *_), _ = jax.lax.scan(step, start_K, index_LB)
    q_KNA = jax.vmap(forward, in_axes=(0, None))(trained_K, data.observation)
    return jnp.sum(policy_KNA * q_KNA, axis=2)
