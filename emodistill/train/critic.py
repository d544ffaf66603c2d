"""PPO's critic and its advantages over the turns of a dialogue (Schulman et al., 2016 and 2017).

    δ_t = r_t + γ V(s_{t+1}) − V(s_t),    A_t = δ_t + γ λ A_{t+1}

V is a small network on the features that the emotion selector sees (`negotiation.states`), V after
the last turn is 0, and a critic is fitted after its advantages were taken, to A + V. A turn that a
judge was asked about in vain has no reward: its δ is 0, as if it had brought what the critic
expected, and it is not trained on itself. The advantages of the others are whitened over the round,
as is usual (Andrychowicz et al., 2021).

Axes: N turns, S state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors import SafetensorError
from safetensors.numpy import load_file

from emodistill.batches.row_packing import round_up
from emodistill.configs import PPOConfig
from emodistill.errors import InputError
from emodistill.negotiation.episode import turn_cap
from emodistill.negotiation.states import DialogueState, feature_names, features
from emodistill.offline.rewards import FocalTurns, iql_rewards
from emodistill.records import Trajectory
from emodistill.tensor_files import write_tensors
from emodistill.train.learner_losses import Layers, forward
from emodistill.train.q_learning import initial_networks

WHITENING_EPS = 1e-8
"""Beside the standard deviation, so that equal advantages become 0."""
ROW_MULTIPLE = 256
"""Turns of a round are padded to this, so that rounds of like size share one program."""


class Critic(NamedTuple):
    """V(s), as the layers of a ReLU network."""

    layers: Layers

    @classmethod
    def initial(cls, config: PPOConfig) -> Critic:
        """A new one, close to 0 everywhere."""
        num_inputs = len(feature_names())
        networks = initial_networks([config.seed], num_inputs, config.critic_width)
        return cls(jax.tree.map(lambda stacked: stacked[0], networks["value"]))

    @classmethod
    def load(cls, path: Path) -> Critic:
        """What `save` has written.

        Raises:
          InputError: the file is missing or torn.
        """
        try:
            arrays = load_file(path)
            num_layers = len(arrays) // 2
            pairs = [(arrays[f"{i}/kernel"], arrays[f"{i}/bias"]) for i in range(num_layers)]
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(
                f"{path} can't be read ({error}). Delete {path.parent} to make that round again."
            ) from None
        return cls(jax.device_put(pairs))

    def save(self, path: Path) -> None:
        arrays = {
            f"{i}/{part}": np.asarray(array)
            for i, layer in enumerate(self.layers)
            for part, array in zip(("kernel", "bias"), layer, strict=True)
        }
        write_tensors(path, arrays)

    def values(self, observation_NS: np.ndarray) -> np.ndarray:
        """V of each state, float64 [N]."""
        padded_NS, _ = _padded(observation_NS)
        values_N1 = _values(self.layers, padded_NS)
        return np.asarray(values_N1, np.float64)[: len(observation_NS), 0]

    def fitted(
        self, observation_NS: np.ndarray, target_N: np.ndarray, config: PPOConfig
    ) -> tuple[Critic, float]:
        """The critic after `critic_steps` of Adam on the squared error, and the error before."""
        padded_NS, is_turn_N = _padded(observation_NS)
        padded_N = np.zeros(len(padded_NS), np.float32)
        padded_N[: len(target_N)] = target_N
        layers, losses = _fit(
            self.layers,
            padded_NS,
            padded_N,
            is_turn_N,
            jnp.float32(config.critic_learning_rate),
            config.critic_steps,
        )
        return Critic(layers), float(losses[0])


class CriticAdvantages(NamedTuple):
    """What PPO learns from the turns of a round."""

    advantages_N: np.ndarray
    """Whitened; NaN where the turn has no reward."""
    observation_NS: np.ndarray
    target_N: np.ndarray
    """A + V before whitening: what the critic is fitted to."""


def critic_advantages(
    config: PPOConfig, critic: Critic, trajectories: Sequence[Trajectory], turns: FocalTurns
) -> CriticAdvantages:
    """Advantages of the turns of a round, which run dialogue by dialogue."""
    is_last = np.append(np.diff(turns.trajectory_index) != 0, True)[: len(turns)]
    rewards = iql_rewards(dataclasses.replace(turns, is_last=is_last), config.signal)
    cap = turn_cap(config.max_turns, config.count_turns)
    observation_NS = np.stack(
        [
            features(DialogueState.from_turns(dialogue, dialogue.turns[:index], cap))
            for dialogue, index in (
                (trajectories[t], int(i))
                for t, i in zip(turns.trajectory_index, turns.turn_index, strict=True)
            )
        ]
    )
    values = critic.values(observation_NS)
    advantages = generalized_advantages(
        rewards, values, is_last, discount=config.discount, gae_lambda=config.gae_lambda
    )
    known = np.where(np.isnan(rewards), np.nan, advantages)
    whitened = known
    if not np.isnan(known).all():  # of none there is no mean
        whitened = (known - np.nanmean(known)) / (np.nanstd(known) + WHITENING_EPS)
    return CriticAdvantages(whitened, observation_NS, advantages + values)


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    is_last: np.ndarray,
    *,
    discount: float,
    gae_lambda: float,
) -> np.ndarray:
    """A of each turn by GAE (Schulman et al., 2016, Eq. 16), float64 [N].

    Args:
      rewards: NaN where nobody knows.
      values: V of the state before each turn.
      is_last: whether a turn ends its dialogue.
    """
    advantages = np.zeros(len(rewards))
    after, value_after = 0.0, 0.0
    for i in reversed(range(len(rewards))):
        if is_last[i]:
            after, value_after = 0.0, 0.0
        is_known = not np.isnan(rewards[i])
        delta = rewards[i] + discount * value_after - values[i] if is_known else 0.0
        advantages[i] = after = delta + discount * gae_lambda * after
        value_after = values[i]
    return advantages


def _padded(observation_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The states with rows of zeros behind them, and which rows are states."""
    num_turns, num_features = observation_NS.shape
    padded_NS = np.zeros((round_up(num_turns, ROW_MULTIPLE), num_features), np.float32)
    padded_NS[:num_turns] = observation_NS
    return padded_NS, np.arange(len(padded_NS)) < num_turns


_values = jax.jit(forward)


@functools.partial(jax.jit, static_argnames="num_steps")
def _fit(
    layers: Layers,
    observation_NS: jax.Array,
    target_N: jax.Array,
    is_turn_N: jax.Array,
    learning_rate: jax.Array,
    num_steps: int,
) -> tuple[Layers, jax.Array]:
    """The layers after full-batch Adam, and the mean squared error before each step."""
    adam = optax.scale_by_adam()

    def loss(layers: Layers) -> jax.Array:
        error_N = jnp.where(is_turn_N, forward(layers, observation_NS)[:, 0] - target_N, 0.0)
        return jnp.sum(error_N**2) / jnp.sum(is_turn_N)

    def step(carry: tuple[Layers, optax.OptState], _: None) -> tuple[object, jax.Array]:
        layers, opt_state = carry
        value, gradient = jax.value_and_grad(loss)(layers)
        updates, opt_state = adam.update(gradient, opt_state)
        layers = jax.tree.map(lambda p, u: p - learning_rate * u, layers, updates)
        return (layers, opt_state), value

    (layers, _), losses = jax.lax.scan(step, (layers, adam.init(layers)), length=num_steps)
    return layers, losses
