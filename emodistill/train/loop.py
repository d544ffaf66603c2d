"""The training loop of SFT and JPO: checkpoints, metrics, progress around a `Trainer`'s steps.

The host runs two steps ahead of the device and reads metrics late, so the device never waits for
it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from emodistill.batches import PaddedBatches
from emodistill.configs import AdapterConfig
from emodistill.errors import DivergenceError, StaleInputError, StoppedError
from emodistill.model import LoRAParam, Qwen2, is_first
from emodistill.progress import progress
from emodistill.train.checkpoints import Checkpoints
from emodistill.train.losses import Metrics
from emodistill.train.metrics_log import MetricsLog
from emodistill.train.stopping import StopRequest
from emodistill.train.trainer import LossFn, Trainer, TrainState, add_metrics

STEPS_AHEAD = 2


class TrainingRun(NamedTuple):
    """What `train` did."""

    num_steps: int
    metrics: dict[str, float]
    """Of the last step."""


class _Pending(NamedTuple):
    step: int
    sample_ids: tuple[str, ...]
    metrics: list[Metrics]


def train(
    model: Qwen2,
    batches: PaddedBatches,
    loss_fn: LossFn,
    config: AdapterConfig,
    *,
    stage: str,
    cell_dir: Path,
    identity: dict[str, Any],
    on_step: Callable[[int], None] | None = None,
) -> TrainingRun:
    """Train the LoRA of `model` in place, from the newest checkpoint in `cell_dir` if there is one.

    Writes `checkpoints/` (every `config.save_every` steps) and `metrics.jsonl` with a TensorBoard
    copy.

    Args:
      stage: names the progress bar and the metric that is shown beside it.
      identity: what a checkpoint must have been made from to be taken up again.
      on_step: called with the number of steps dispatched, after each.

    Raises:
      DivergenceError: a metric is not finite; names the step and its samples.
      StaleInputError: a checkpoint was made from something else.
      InputError: a checkpoint is damaged, or can't be written.
      StoppedError: Ctrl-C or SIGTERM came; the step that was reached is saved.
    """
    num_steps = min(batches.num_steps, config.max_steps or batches.num_steps)
    graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
    trainer = Trainer(graphdef, loss_fn, config, num_steps, model.mesh)
    checkpoints = Checkpoints(
        cell_dir / "checkpoints", identity, keep=config.keep, keep_every=config.keep_every
    )
    state = _take_up(checkpoints, trainer.init(lora), batches)
    first = int(state.step)
    shown = "sft/loss" if stage == "sft" else "policy/surrogate"
    pending: deque[_Pending] = deque()
    last: dict[str, float] = {}

    with (
        StopRequest() as stop,
        checkpoints,
        MetricsLog(cell_dir, num_steps=first, is_writer=is_first()) as log,
        progress(stage, total=num_steps, unit="steps", done=first, is_shown=is_first()) as bar,
    ):
        last, clock = log.last, time.monotonic()

        def settle(num_left: int) -> None:
            nonlocal last, clock
            while len(pending) > num_left:
                done = pending.popleft()
                last = add_metrics(done.metrics)
                _check_finite(last, done, stage, checkpoints)
                now = time.monotonic()
                log.write(done.step + 1, last | {"time/step_s": now - clock})
                clock = now
                bar.advance(1, note=f"{shown} {last[shown]:.4f}")

        for number in range(first, num_steps):
            step = batches.step(number)
            state, metrics = trainer.step(state, frozen, step.batches)
            pending.append(_Pending(number, step.sample_ids, metrics))
            settle(STEPS_AHEAD)
            reached = number + 1
            is_stopped = stop.is_due(reached)
            if is_stopped or reached % config.save_every == 0 or reached == num_steps:
                settle(0)
                checkpoints.save(reached, state, data=_place(batches, reached), metrics=last)
            if on_step is not None:
                on_step(reached)
            if is_stopped and reached < num_steps:
                raise StoppedError(
                    f"{stage}: stopped after step {reached:,} of {num_steps:,}, which is saved; "
                    "the same command goes on from there."
                )
    nnx.update(model, state.lora)
    return TrainingRun(num_steps, last)


def _take_up(checkpoints: Checkpoints, start: TrainState, batches: PaddedBatches) -> TrainState:
    """The newest checkpoint's state, if its run would now see the same samples; `start` if none."""
    state, place = checkpoints.restore(start)
    step = int(state.step)
    if step and place != _place(batches, step):
        raise StaleInputError(
            f"{checkpoints.directory / str(step)} would go on with other samples than these. "
            f"Delete {checkpoints.directory.parent} to train again."
        )
    return state


def _place(batches: PaddedBatches, step: int) -> dict[str, Any]:
    """Where in the data `step` begins: what a checkpoint before it says comes next."""
    is_over = step >= batches.num_steps
    return {
        "seed": batches.seed,
        "next_samples": [] if is_over else list(batches.sample_ids(step)),
    }


def _check_finite(
    metrics: dict[str, float], done: _Pending, stage: str, checkpoints: Checkpoints
) -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not bad:
        return
    kept = checkpoints.newest
    where = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was written yet"
    raise DivergenceError(
        f"{stage} step {done.step + 1}: {bad[0]}={metrics[bad[0]]} is not finite; {where}. Its "
        f"samples: {', '.join(done.sample_ids)}. Look at them, or lower learning_rate."
    )
