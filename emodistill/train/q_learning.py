"""Training of the emotion selector by IQL, or by one of its controls (`learner_losses`).

The whole training is one compiled program: transitions live on the device, a scan runs over the
steps, and several runs of a learner (seeds, or a grid of settings) are a leading axis. Between its
chunks the host draws the next minibatches, passes on metrics, shows progress.

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

from emodistill.configs import IQLConfig, LearnerName
from emodistill.emotions import EMOTION_INDEX, EMOTION_SETS, EMOTIONS
from emodistill.errors import DivergenceError, InputError
from emodistill.seeding import stream
from emodistill.train.learner_losses import LOSSES, Data, Layers, LearnerSettings, Metrics, Params
from emodistill.train.selector_files import HEADS, HEADS_OF, SelectorNetworks
from emodistill.train.transitions import Transitions

NUM_HIDDEN_LAYERS = 2
MAX_POINTS = 1000
"""Most points that a run logs, each the mean over the steps since the one before: as many as a
curve can show, in a file of some hundred kilobytes."""
SHARED = ("learner", "num_steps", "batch_size", "hidden_width", "state")
"""What runs of one program have in common."""
NUM_CHUNKS = 50
"""Calls of the compiled program, between which progress is reported: every 2 % is enough for a bar
and costs nothing beside the training itself."""


class _State(NamedTuple):
    params: Params
    target: Layers
    """The critic's Polyak average; empty for a learner without a critic."""
    opt_state: optax.OptState


_ADAM = optax.scale_by_adam()


def initial_networks(
    seeds: Sequence[int], num_inputs: int, width: int, learner: LearnerName = "iql"
) -> Params:
    """New networks of several runs of a learner, whose leaves have the runs as leading axis.

    He-uniform hidden layers; last layers near zero, so that the policy starts uniform. NumPy makes
    the numbers, which spares a compilation.
    """
    rngs = [stream(seed, "iql", "init") for seed in seeds]
    params: Params = {}
    for name in HEADS_OF[learner]:
        sizes = [num_inputs, *[width] * NUM_HIDDEN_LAYERS, HEADS[name]]
        params[name] = []
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = math.sqrt(6.0 / fan_in) * (0.01 if layer == NUM_HIDDEN_LAYERS else 1.0)
            kernels = [rng.uniform(-bound, bound, (fan_in, fan_out)) for rng in rngs]
            kernel_K = np.stack(kernels).astype(np.float32)
            params[name].append((kernel_K, np.zeros((len(seeds), fan_out), np.float32)))
    return jax.device_put(params)


def _initial_state(
    seeds: Sequence[int], num_inputs: int, width: int, learner: LearnerName = "iql"
) -> _State:
    return _first_state(initial_networks(seeds, num_inputs, width, learner))


@jax.jit
def _first_state(params: Params) -> _State:
    # A copy: the state is donated, and a buffer can't be given away twice.
    target = jax.tree.map(jnp.copy, params.get("critic", []))
    return _State(params, target, jax.vmap(_ADAM.init)(params))


def _update(
    learner: LearnerName, state: _State, index_B: jax.Array, data: Data, settings: LearnerSettings
) -> tuple[_State, Metrics]:
    """One step on the transitions `index_B`: Adam on all networks, then the Polyak target."""
    batch = jax.tree.map(lambda array: array[index_B], data)
    gradients, metrics = jax.grad(LOSSES[learner], has_aux=True)(
        state.params, state.target, batch, settings
    )
    steps, opt_state = _ADAM.update(gradients, state.opt_state)
    params = jax.tree.map(lambda p, s: p - settings.learning_rate * s, state.params, steps)
    target = jax.tree.map(
        lambda t, q: t + settings.polyak * (q - t), state.target, params.get("critic", [])
    )
    return _State(params, target, opt_state), metrics


def _train_run(
    learner: LearnerName,
    run: tuple[_State, LearnerSettings, jax.Array],
    num_steps_P: jax.Array,
    data: Data,
) -> tuple[_State, Metrics]:
    """Train one run for P points of up to L steps on its minibatches; metrics [P] are means.

    How many steps a point takes (`num_steps_P`) is data, so that a shorter last chunk runs the
    same program.
    """

    state, settings, index_PLB = run
    update = functools.partial(_update, learner)

    def point(state: _State, inputs: tuple) -> tuple[_State, Metrics]:
        index_LB, num_steps = inputs

        def step(number: jax.Array, carry: tuple) -> tuple:
            state, sums = carry
            state, metrics = update(state, index_LB[number], data, settings)
            return state, jax.tree.map(jnp.add, sums, metrics)

        shapes = jax.eval_shape(update, state, index_LB[0], data, settings)[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        state, sums = jax.lax.fori_loop(0, num_steps, step, (state, zeros))
        return state, jax.tree.map(lambda total: total / jnp.maximum(num_steps, 1), sums)

    return jax.lax.scan(point, state, (index_PLB, num_steps_P))


@functools.partial(jax.jit, donate_argnames="state", static_argnames="learner")
def _train_chunk(
    state: _State,
    data: Data,
    settings: LearnerSettings,
    index_KPLB: jax.Array,
    num_steps_P: jax.Array,
    learner: LearnerName = "iql",
) -> tuple[_State, Metrics]:
    """Train all runs, metrics [K, P].

    Side by side on accelerators, which a single run leaves idle; one after the other on CPU, where
    it does not, and where products with a leading axis of runs are slower.
    """

    def train(run: tuple[_State, LearnerSettings, jax.Array]) -> tuple[_State, Metrics]:
        return _train_run(learner, run, num_steps_P, data)

    runs = state, settings, index_KPLB
    if jax.default_backend() == "cpu":
        return jax.lax.map(train, runs)
    return jax.vmap(train)(runs)


def train_networks(
    transitions: Transitions,
    configs: Sequence[IQLConfig],
    *,
    rows: Sequence[np.ndarray] | None = None,
    report: Callable[[list[list[dict[str, float]]]], None] = lambda points: None,
) -> list[SelectorNetworks]:
    """Train one selector per configuration, all in one program.

    Args:
      rows: the transitions that each run learns from, as indices; all of them if None.
      report: called after each chunk with each run's metrics, one dictionary (with its `step`) a
        logged point.

    Raises:
      InputError: the configurations differ in what shapes the program (learner, steps, batch,
        width), or ask for another kind of state than the transitions hold, or a run has no
        transition to learn from.
      DivergenceError: a metric is not finite.
    """
    if not configs:
        raise InputError("configs is empty; give one IQLConfig per selector.")
    shared = configs[0]
    for config in configs:
        for name in SHARED:
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
    learner, num_inputs = shared.learner, data.observation.shape[1]
    state = _initial_state(seeds, num_inputs, shared.hidden_width, learner)
    rows_of = _allowed_rows(transitions, configs, rows)
    rngs = [stream(seed, "iql", "batches") for seed in seeds]
    num_steps = shared.num_steps
    steps_per_point = math.ceil(num_steps / MAX_POINTS)
    points_per_chunk = math.ceil(math.ceil(num_steps / steps_per_point) / NUM_CHUNKS)
    shape = points_per_chunk, steps_per_point, shared.batch_size
    for first_step in range(0, num_steps, points_per_chunk * steps_per_point):
        start_P = first_step + steps_per_point * np.arange(points_per_chunk)
        num_steps_P = np.clip(num_steps - start_P, 0, steps_per_point)
        index_KPLB = np.stack(
            [
                of_run[rng.integers(len(of_run), size=shape, dtype=np.int32)]
                for of_run, rng in zip(rows_of, rngs, strict=True)
            ]
        )
        state, metrics = _train_chunk(state, data, settings, index_KPLB, num_steps_P, learner)
        report(_points(metrics, (start_P + num_steps_P)[num_steps_P > 0].tolist()))
    params = jax.device_get(state.params)
    return [_networks(params, run, config) for run, config in enumerate(configs)]


def _allowed_rows(
    transitions: Transitions, configs: Sequence[IQLConfig], rows: Sequence[np.ndarray] | None
) -> list[np.ndarray]:
    """The transitions of each run, as int32 indices, without those of emotions that it may not
    choose: what such an emotion is worth makes no difference to it."""
    every = np.arange(len(transitions), dtype=np.int32)
    found = []
    for config, of_run in zip(configs, rows or [every] * len(configs), strict=True):
        allowed = [EMOTION_INDEX[emotion] for emotion in EMOTION_SETS[config.emotions]]
        kept = of_run[np.isin(transitions.action_N[of_run], allowed)].astype(np.int32)
        if not len(kept):
            raise InputError(
                f"emotions={config.emotions!r}: none of the {len(of_run)} transitions has such an "
                "emotion; learn from more dialogues, or from all emotions."
            )
        found.append(kept)
    return found


def _settings(configs: Sequence[IQLConfig]) -> LearnerSettings:
    *numbers, _, _ = LearnerSettings._fields
    columns = {name: [getattr(config, name) for config in configs] for name in numbers}
    columns["is_online"] = [config.advantage_q == "online" for config in configs]
    columns["is_allowed_A"] = [
        [label in EMOTION_SETS[config.emotions] for label in EMOTIONS] for config in configs
    ]
    arrays = {name: np.array(column, np.float32) for name, column in columns.items()}
    return jax.device_put(LearnerSettings(**arrays))


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


def _points(metrics: Metrics, ends: list[int]) -> list[list[dict[str, float]]]:
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
        **{name: tuple(layers) for name, layers in of_run.items()},
        learner=config.learner,
        emotions=config.emotions,
        state=config.state,
        advantage_scale=config.advantage_scale,
        settings=config.identity(),
    )
