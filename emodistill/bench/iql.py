"""Updates a second of the selector's training, beside the plain PyTorch loop.

Both train three ReLU networks of the same width on the same transitions and minibatch size. Beyond
that, a grid of 18 settings in one program is set against the same 18 one by one.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable

import numpy as np

from emodistill.bench.report import Measured, result
from emodistill.configs import BenchIQLConfig, IQLConfig
from emodistill.emotions import EMOTIONS
from emodistill.negotiation.states import feature_names
from emodistill.seeding import stream
from emodistill.train.q_learning import train_iql
from emodistill.train.transitions import Transitions

GRID = tuple(itertools.product((0.7, 0.8, 0.9), (1.0, 3.0, 10.0), (0.95, 0.99)))
"""(expectile, advantage scale, discount) of 18 runs."""
NUM_TRANSITIONS = 40_000
TURNS = 5
"""Of a dialogue."""


def run(config: BenchIQLConfig) -> None:
    """Measure by turns, print a line a round and contender, then the result."""
    transitions = random_transitions(NUM_TRANSITIONS)
    settings = IQLConfig(num_steps=config.num_steps)
    contenders: dict[str, Callable[[], float]] = {
        "emodistill": lambda: _ours(transitions, settings)
    }
    if "torch" in config.peers:
        from emodistill.bench.torch_iql import updates_per_second

        steps = min(config.num_steps, config.peer_steps)
        contenders["torch"] = lambda: updates_per_second(transitions, settings, steps)
    _ours(transitions, settings)  # compile
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(config.rounds):
        for name, measure in contenders.items():
            found[name].append(measure())
            print(f"round {number + 1}, {name}: {found[name][-1]:,.0f} updates/s", flush=True)
    grid = [_grid_gain(transitions, settings) for _ in range(config.rounds)]
    own, *peers = (Measured(name, rounds) for name, rounds in found.items())
    for measured in (own, *peers):
        print(measured.text)
    print(f"grid of {len(GRID)}: {np.median(grid):.2f} times as fast as one by one")
    extra = {
        "grid_size": len(GRID),
        "grid_over_one_by_one": float(np.median(grid)),
        "num_transitions": NUM_TRANSITIONS,
        "batch_size": settings.batch_size,
        "hidden_width": settings.hidden_width,
    }
    print(result(config, "updates/s", own, peers, extra))


def random_transitions(number: int) -> Transitions:
    """Features and rewards by lot: what is measured does not depend on them."""
    rng = stream(0, "bench", "iql")
    width = len(feature_names())
    return Transitions(
        observation_NS=rng.uniform(-1, 1, (number, width)).astype(np.float32),
        action_N=rng.integers(len(EMOTIONS), size=number, dtype=np.int32),
        reward_N=rng.normal(size=number).astype(np.float32),
        next_observation_NS=rng.uniform(-1, 1, (number, width)).astype(np.float32),
        terminal_N=np.arange(number) % TURNS == TURNS - 1,
        dialogue_N=np.arange(number, dtype=np.int32) // TURNS,
        state="geometry",
        num_dialogues=number // TURNS,
    )


def _ours(transitions: Transitions, settings: IQLConfig) -> float:
    started = time.perf_counter()
    train_iql(transitions, [settings])
    return settings.num_steps / (time.perf_counter() - started)


def _grid_gain(transitions: Transitions, settings: IQLConfig) -> float:
    """How much faster the whole grid is in one program; neither side compiles anew."""
    short = dataclasses.replace(settings, num_steps=max(50, settings.num_steps // 10))
    names = ("expectile", "advantage_scale", "discount")
    configs = [dataclasses.replace(short, **dict(zip(names, point, strict=True))) for point in GRID]
    train_iql(transitions, configs)
    train_iql(transitions, configs[:1])
    started = time.perf_counter()
    train_iql(transitions, configs)
    together = time.perf_counter() - started
    started = time.perf_counter()
    for one in configs:
        train_iql(transitions, [one])
    return (time.perf_counter() - started) / together
