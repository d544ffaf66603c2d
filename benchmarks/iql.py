"""Updates per second of the selector's training, beside the plain PyTorch loop.

Both train three ReLU networks of the same width on the same transitions and minibatch size. Beyond
that, a grid of 18 settings in one program is compared with the same 18 one after another.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.configs import IQLBenchmark
from benchmarks.rounds import OURS, Figures, alternate, medians, report
from emodistill.configs import IQLConfig
from emodistill.emotions import EMOTIONS
from emodistill.negotiation.states import feature_names
from emodistill.seeding import stream
from emodistill.train.q_learning import train_networks
from emodistill.train.transitions import Transitions

GRID = [
    {"expectile": expectile, "advantage_scale": scale, "discount": discount}
    for expectile, scale, discount in itertools.product(
        (0.7, 0.8, 0.9), (1.0, 3.0, 10.0), (0.95, 0.99)
    )
]
NUM_TRANSITIONS = 40_000
TURNS_PER_DIALOGUE = 5


def run(config: IQLBenchmark) -> None:
    """Measure, print a line per round and contender, then the result."""
    transitions = random_transitions(NUM_TRANSITIONS)
    settings = IQLConfig(num_steps=config.num_steps)
    short = dataclasses.replace(settings, num_steps=max(50, settings.num_steps // 10))
    grid = [dataclasses.replace(short, **point) for point in GRID]

    def seconds(*runs: Sequence[IQLConfig]) -> float:
        """The time of these trainings one after another, each of some settings together."""
        started = time.perf_counter()
        for together in runs:
            train_networks(transitions, together)
        return time.perf_counter() - started

    def grid_gain(number: int) -> Figures:
        together = seconds(grid)
        return {"gain": seconds(*([one] for one in grid)) / together}

    contenders: dict[str, Callable[[int], Figures]]
    contenders = {OURS: lambda number: {"rate": config.num_steps / seconds([settings])}}
    if config.peers:
        from benchmarks.torch_iql import updates_per_second  # takes the extra `bench`

        steps = min(config.num_steps, config.peer_steps)
        contenders["torch"] = lambda number: {
            "rate": updates_per_second(transitions, settings, steps)
        }
    seconds([settings])  # compiles, as the two of the grid do below
    rounds = alternate(contenders, config.rounds, "{rate:,.0f} updates/s")
    seconds(grid, grid[:1])
    line = f"{{gain:.2f}} times as fast as {len(grid)} settings one by one"
    gains = alternate({"grid": grid_gain}, config.rounds, line)
    extra = {
        "grid_size": len(grid),
        "grid_over_one_by_one": medians(gains, "gain")["grid"],
        "num_transitions": NUM_TRANSITIONS,
        "batch_size": settings.batch_size,
        "hidden_width": settings.hidden_width,
    }
    report(config, "updates/s", rounds, "rate", extra)


def random_transitions(number: int) -> Transitions:
    """Random features and rewards: the speed does not depend on them."""
    rng = stream(0, "bench", "iql")
    width = len(feature_names())
    return Transitions(
        observation_NS=rng.uniform(-1, 1, (number, width)).astype(np.float32),
        action_N=rng.integers(len(EMOTIONS), size=number, dtype=np.int32),
        reward_N=rng.normal(size=number).astype(np.float32),
        next_observation_NS=rng.uniform(-1, 1, (number, width)).astype(np.float32),
        terminal_N=np.arange(number) % TURNS_PER_DIALOGUE == TURNS_PER_DIALOGUE - 1,
        dialogue_N=np.arange(number, dtype=np.int32) // TURNS_PER_DIALOGUE,
        state="geometry",
        num_dialogues=number // TURNS_PER_DIALOGUE,
    )
