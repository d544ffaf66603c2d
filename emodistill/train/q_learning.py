"""Discrete implicit Q-learning of the emotion selector (Eqs. 13–15; Kostrikov et al., 2021).

The whole training is one compiled program: transitions live on the device, a scan runs over the
steps, and several runs (seeds, or a grid of settings) are a leading axis. Between its chunks the
host draws the next minibatches, passes on metrics, shows progress.

Departures from the paper: the policy is regressed on the target critic's advantage, as in IQL's own
publication, where Eq. 15 prints the critic's own (`advantage_q`); the three losses are taken at the
same parameters and applied by one Adam (no shared weights, so it is three optimisers in one);
states are clipped features, not text; regression weights are capped.

Axes: K runs, N transitions, B batch, S state, A emotions, P logged points, L steps of a point.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from emodistill.configs import IQLConfig
from emodistill.errors import DivergenceError, InputError
from emodistill.seeding import stream
from emodistill.train.selector_files import HEADS, SelectorNetworks
from emodistill.train.transitions import Transitions

NUM_HIDDEN_LAYERS = 2
MAX_POINTS = 1000
"""Most points that a run logs, each the mean over the steps since the one before: as many as a
curve can show, in a file of some hundred kilobytes."""
NUM_CHUNKS = 50
"""Calls of the compiled program, between which progress is reported: every 2 % is enough for a bar
and costs nothing beside the training itself."""

Layers = list[tuple[jax.Array, jax.Array]]
"""(kernel, bias) per layer."""
Params = dict[str, Layers]
"""Network name -> its layers."""


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


class _Settings(NamedTuple):
    """[K] numbers that runs may vary without another compilation."""

    expectile: jax.Array
    advantage_scale: jax.Array
    discount: jax.Array
    learning_rate: jax.Array
    polyak: jax.Array
    weight_cap: jax.Array
    is_online: jax.Array
    """1 where the policy is regressed on the critic's own Q, 0 for the target critic's."""


class Data(NamedTuple):
    """Transitions on the device; `continues` is 0 where one is terminal, else 1."""

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array
    continues: jax.Array


class _State(NamedTuple):
    params: Params
    target: Layers
    opt_state: optax.OptState


_ADAM = optax.scale_by_adam()


def initial_networks(seeds: Sequence[int], num_inputs: int, width: int) -> Params:
    """New networks of several runs, whose leaves have the runs as leading axis.

    He-uniform hidden layers; last layers near zero, so that the policy starts uniform. NumPy makes
    the numbers, which spares a compilation.
    """
    rngs = [stream(seed, "iql", "init") for seed in seeds]
    params: Params = {}
    for name, outputs in HEADS.items():
        sizes = [num_inputs, *[width] * NUM_HIDDEN_LAYERS, outputs]
        params[name] = []
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = math.sqrt(6.0 / fan_in) * (0.01 if layer == NUM_HIDDEN_LAYERS else 1.0)
            kernels = [rng.uniform(-bound, bound, (fan_in, fan_out)) for rng in rngs]
            kernel_K = np.stack(kernels).astype(np.float32)
            params[name].append((kernel_K, np.zeros((len(seeds), fan_out), np.float32)))
    return jax.device_put(params)


def _initial_state(seeds: Sequence[int], num_inputs: int, width: int) -> _State:
    return _first_state(initial_networks(seeds, num_inputs, width))


@jax.jit
def _first_state(params: Params) -> _State:
    # A copy: the state is donated, and a buffer can't be given away twice.
    return _State(params, jax.tree.map(jnp.copy, params["critic"]), jax.vmap(_ADAM.init)(params))


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


def _losses(
    params: Params, target: Layers, batch: Data, settings: _Settings
) -> tuple[jax.Array, dict[str, jax.Array]]:
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
        "policy/entropy": -jnp.mean(jnp.sum(jnp.exp(log_probs_BA) * log_probs_BA, axis=-1)),
    }
    return sum(losses.values(), jnp.zeros(())), metrics


def _update(
    state: _State, index_B: jax.Array, data: Data, settings: _Settings
) -> tuple[_State, dict[str, jax.Array]]:
    """One step on the transitions `index_B`: Adam on all networks, then the Polyak target."""
    batch = jax.tree.map(lambda array: array[index_B], data)
    gradients, metrics = jax.grad(_losses, has_aux=True)(
        state.params, state.target, batch, settings
    )
    steps, opt_state = _ADAM.update(gradients, state.opt_state)
    params = jax.tree.map(lambda p, s: p - settings.learning_rate * s, state.params, steps)
    target = jax.tree.map(
        lambda t, q: t + settings.polyak * (q - t), state.target, params["critic"]
    )
    return _State(params, target, opt_state), metrics


def _train_run(
    state: _State, settings: _Settings, index_PLB: jax.Array, num_steps_P: jax.Array, data: Data
) -> tuple[_State, dict[str, jax.Array]]:
    """Train one run for P points of up to L steps on the given minibatches; metrics [P] are means.

    How many steps a point takes (`num_steps_P`) is data, so that a shorter last chunk runs the
    same program.
    """

    def point(state: _State, inputs: tuple) -> tuple[_State, dict[str, jax.Array]]:
        index_LB, num_steps = inputs

        def step(number: jax.Array, carry: tuple) -> tuple:
            state, sums = carry
            state, metrics = _update(state, index_LB[number], data, settings)
            return state, jax.tree.map(jnp.add, sums, metrics)

        shapes = jax.eval_shape(_update, state, index_LB[0], data, settings)[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        state, sums = jax.lax.fori_loop(0, num_steps, step, (state, zeros))
        return state, jax.tree.map(lambda total: total / jnp.maximum(num_steps, 1), sums)

    return jax.lax.scan(point, state, (index_PLB, num_steps_P))


@functools.partial(jax.jit, donate_argnames="state")
def _train_chunk(
    state: _State, data: Data, settings: _Settings, index_KPLB: jax.Array, num_steps_P: jax.Array
) -> tuple[_State, dict[str, jax.Array]]:
    """Train all runs, metrics [K, P].

    Side by side on accelerators, which a single run leaves idle; one after the other on CPU, where
    it does not, and where products with a leading axis of runs are slower.
    """

    def train(run: tuple[_State, _Settings, jax.Array]) -> tuple[_State, dict[str, jax.Array]]:
        return _train_run(*run, num_steps_P, data)

    runs = state, settings, index_KPLB
    if jax.default_backend() == "cpu":
        return jax.lax.map(train, runs)
    return jax.vmap(train)(runs)


def train_iql(
    transitions: Transitions,
    configs: Sequence[IQLConfig],
    *,
    report: Callable[[list[list[dict[str, float]]]], None] = lambda points: None,
) -> list[SelectorNetworks]:
    """Train one selector per configuration, all in one program.

    Args:
      report: called after each chunk with each run's metrics, one dictionary (with its `step`) a
        logged point.

    Raises:
      InputError: the configurations differ in what shapes the program (steps, batch, width), or
        ask for another kind of state than the transitions hold.
      DivergenceError: a metric is not finite.
    """
    if not configs:
        raise InputError("configs is empty; give one IQLConfig per selector.")
    shared = configs[0]
    for config in configs:
        for name in ("num_steps", "batch_size", "hidden_width", "state"):
            if (value := getattr(config, name)) != getattr(shared, name):
                raise InputError(
                    f"{name}={value} beside {getattr(shared, name)}: runs that train side by side "
                    f"must agree on {name}. Train them one after the other."
                )
    if shared.state != transitions.state:
        raise InputError(
            f"state={shared.state!r}, but the transitions hold {transitions.state!r} features. "
            "Make them again with the state that is asked for."
        )
    data, settings = device_data(transitions), _settings(configs)
    seeds = [config.seed for config in configs]
    state = _initial_state(seeds, data.observation.shape[1], shared.hidden_width)
    rngs = [stream(seed, "iql", "batches") for seed in seeds]
    num_steps = shared.num_steps
    steps_per_point = math.ceil(num_steps / MAX_POINTS)
    points_per_chunk = math.ceil(math.ceil(num_steps / steps_per_point) / NUM_CHUNKS)
    shape = points_per_chunk, steps_per_point, shared.batch_size
    for first_step in range(0, num_steps, points_per_chunk * steps_per_point):
        start_P = first_step + steps_per_point * np.arange(points_per_chunk)
        num_steps_P = np.clip(num_steps - start_P, 0, steps_per_point)
        index_KPLB = np.stack(
            [rng.integers(len(transitions), size=shape, dtype=np.int32) for rng in rngs]
        )
        state, metrics = _train_chunk(state, data, settings, index_KPLB, num_steps_P)
        report(_points(metrics, (start_P + num_steps_P)[num_steps_P > 0].tolist()))
    params = jax.device_get(state.params)
    return [_networks(params, run, config) for run, config in enumerate(configs)]


def _settings(configs: Sequence[IQLConfig]) -> _Settings:
    *numbers, _ = _Settings._fields
    columns = {name: [getattr(config, name) for config in configs] for name in numbers}
    columns["is_online"] = [config.advantage_q == "online" for config in configs]
    arrays = {name: np.array(column, np.float32) for name, column in columns.items()}
    return jax.device_put(_Settings(**arrays))


def device_data(transitions: Transitions) -> Data:
    """The transitions as arrays of JAX, their shapes and types checked."""
    data = Data(
        transitions.observation_NS,
        transitions.action_N,
        transitions.reward_N,
        transitions.next_observation_NS,
        (~transitions.terminal_N).astype(np.float32),
    )
    chex.assert_shape(data.observation, (len(transitions), None))
    chex.assert_equal_shape((data.observation, data.next_observation))
    chex.assert_shape((data.action, data.reward, data.continues), (len(transitions),))
    chex.assert_type(data, [jnp.float32, jnp.int32, jnp.float32, jnp.float32, jnp.float32])
    return jax.device_put(data)


def _points(metrics: dict[str, jax.Array], ends: list[int]) -> list[list[dict[str, float]]]:
    """Metrics [K, P] as each run's points, which end at the steps `ends`; P may be longer."""
    names = list(metrics)
    values = np.stack([np.asarray(metrics[name])[:, : len(ends)] for name in names], axis=2)
    bad = [
        (ends[p], names[column], run, values[run, p, column])
        for run, p, column in np.argwhere(~np.isfinite(values))
    ]
    if bad:
        step, name, run, value = min(bad)
        raise DivergenceError(
            f"IQL: {name} is {value} by step {step} (run {run}). Lower learning_rate, or look for "
            "extreme rewards in the data."
        )
    return [
        [
            {"step": end, **dict(zip(names, point, strict=True))}
            for end, point in zip(ends, of_run, strict=True)
        ]
        for of_run in values.tolist()
    ]


def _networks(params: Params, run: int, config: IQLConfig) -> SelectorNetworks:
    of_run = jax.tree.map(lambda leaf: np.asarray(leaf[run]), params)
    return SelectorNetworks(
        **{name: tuple(of_run[name]) for name in HEADS},
        state=config.state,
        advantage_scale=config.advantage_scale,
        settings=config.identity(),
    )
