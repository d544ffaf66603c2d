"""The training loop of SFT and JPO: checkpoints, metrics, progress around a `Trainer`'s steps.

A thread makes the rows ahead of time, the host runs two steps ahead of the device and reads metrics
late: the device never waits, and within a step nothing crosses between the two.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from emodistill.batches import Batch, PackedBatches, Step
from emodistill.configs import AdapterConfig
from emodistill.errors import DivergenceError, StaleInputError, StoppedError
from emodistill.model import LoRAParam, Qwen2, is_first, num_row_shards
from emodistill.progress import progress
from emodistill.train.checkpoints import Checkpoints
from emodistill.train.flops import peak_flops, training_flops
from emodistill.train.losses import Metrics
from emodistill.train.metrics_log import MetricsLog
from emodistill.train.prefetch import prefetched
from emodistill.train.stopping import StopRequest
from emodistill.train.trainer import LossFn, Trainer, TrainState, add_metrics

log = logging.getLogger(__name__)

STEPS_AHEAD = 2
MIN_FILLED = 0.75
"""Share of the rows below which a mesh with many of them is worth a warning."""
SHOWN = {
    "sft": "sft/loss",
    "jpo": "policy/surrogate",
    "alol": "alol/loss",
    "dpo": "dpo/accuracy",
}
"""The metric beside each stage's progress bar."""


class TrainingRun(NamedTuple):
    """What `train` did."""

    num_steps: int
    metrics: dict[str, float]
    """Of the last step."""


class _Input(NamedTuple):
    step: Step
    batches: list[Batch]
    """On the devices."""


class _Pending(NamedTuple):
    number: int
    step: Step
    metrics: list[Metrics]


def train(
    model: Qwen2,
    batches: PackedBatches,
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
      DivergenceError: a metric is not finite; names the step and the samples that make it so.
      StaleInputError: a checkpoint was made from something else.
      InputError: a checkpoint is damaged, or can't be written.
      StoppedError: Ctrl-C or SIGTERM came; the step that was reached is saved.
    """
    warn_of_empty_rows(model.mesh, batches, config)
    num_steps = min(batches.num_steps, config.max_steps or batches.num_steps)
    graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
    trainer = Trainer(graphdef, loss_fn, config, num_steps, model.mesh)
    checkpoints = Checkpoints(
        cell_dir / "checkpoints", identity, keep=config.keep, keep_every=config.keep_every
    )
    state = _take_up(checkpoints, trainer.init(lora), batches)
    first = int(state.step)
    shown = SHOWN[stage]
    pending: deque[_Pending] = deque()
    last: dict[str, float] = {}
    devices = jax.devices()[:1] if model.mesh is None else list(model.mesh.devices.flat)
    peak = peak_flops(devices, model.dtype)

    def make(number: int) -> _Input:
        step = batches.step(number)
        return _Input(step, trainer.put(step.batches))

    with (
        StopRequest() as stop,
        checkpoints,
        MetricsLog(cell_dir, num_steps=first, is_writer=is_first()) as metrics_log,
        progress(stage, total=num_steps, unit="steps", done=first, is_shown=is_first()) as bar,
    ):
        last, clock = metrics_log.last, time.monotonic()

        def settle(num_left: int) -> None:
            nonlocal last, clock
            while len(pending) > num_left:
                done = pending.popleft()
                last = add_metrics(done.metrics)
                if bad := [name for name, value in last.items() if not math.isfinite(value)]:
                    guilty = _not_finite_alone(trainer, state, frozen, batches, done.step)
                    raise _divergence(stage, done, bad[0], last[bad[0]], guilty, checkpoints)
                now = time.monotonic()
                seconds, work = now - clock, done.step.work
                last["rows/useful_share"] = work.num_tokens / work.num_positions
                times = {
                    "time/step_s": seconds,
                    "time/tokens_per_s": work.num_tokens / seconds,
                    "time/response_tokens_per_s": work.num_reply_tokens / seconds,
                    "time/mfu": training_flops(model.config, work) / seconds / peak,
                }
                metrics_log.write(done.number + 1, last | times)
                clock = now
                bar.advance(1, note=f"{shown} {last[shown]:.4f}")

        numbers = range(first, num_steps)
        for number, made in zip(numbers, prefetched(make, numbers, ahead=STEPS_AHEAD), strict=True):
            with jax.transfer_guard("disallow"):
                state, metrics = trainer.step(state, frozen, made.batches)
            pending.append(_Pending(number, made.step, metrics))
            settle(STEPS_AHEAD)
            reached = number + 1
            is_stopped = stop.is_due(reached)
            if is_stopped or reached % config.save_every == 0 or reached == num_steps:
                settle(0)
                checkpoints.save(reached, state, cursor=_cursor(batches, reached), metrics=last)
            if on_step is not None:
                on_step(reached)
            if is_stopped and reached < num_steps:
                raise StoppedError(
                    f"{stage}: stopped after step {reached:,} of {num_steps:,}, which is saved; "
                    "the same command goes on from there."
                )
    nnx.update(model, state.lora)
    return TrainingRun(num_steps, last)


def warn_of_empty_rows(mesh: Mesh | None, batches: PackedBatches, config: AdapterConfig) -> None:
    """Say so where a step has too few samples for the rows of `mesh`."""
    filled, num_shards = batches.num_tokens / batches.num_positions, num_row_shards(mesh)
    if num_shards > 1 and filled < MIN_FILLED and is_first():
        log.warning(
            "rows are only %.0f %% full: %d samples a step are few for %d devices with rows of "
            "their own. Raise --batch-size, or split less over data and fsdp and more over tensor "
            "(--mesh DATAxFSDPxTENSOR).",
            100 * filled,
            config.batch_size,
            num_shards,
        )


def _take_up(checkpoints: Checkpoints, start: TrainState, batches: PackedBatches) -> TrainState:
    """The newest checkpoint's state, if its run would now see the same samples; `start` if none."""
    state, cursor = checkpoints.restore(start)
    step = int(state.step)
    if step and cursor != _cursor(batches, step):
        raise StaleInputError(
            f"{checkpoints.directory / str(step)} would go on with other samples than these. "
            f"Delete {checkpoints.directory.parent} to train again."
        )
    return state


def _cursor(batches: PackedBatches, step: int) -> dict[str, Any]:
    """Where in the data `step` begins: what a checkpoint before it says comes next."""
    is_over = step >= batches.num_steps
    return {
        "seed": batches.seed,
        "next_samples": [] if is_over else list(batches.sample_ids(step)),
    }


def _not_finite_alone(
    trainer: Trainer, state: TrainState, frozen: Any, batches: PackedBatches, step: Step
) -> list[str]:
    """Those samples of `step` whose own loss or gradient is not finite."""
    found = []
    for sample in step.samples[:: batches.unit_size]:
        alone = batches.step_of_sample(sample)
        grads, metrics = trainer.gradients(state.lora, frozen, trainer.put(alone.batches))
        values = [*add_metrics(metrics).values(), float(optax.tree.norm(grads))]
        if not np.isfinite(values).all():
            found += [batches.examples[i].sample_id for i in alone.samples]
    return found


def _divergence(
    stage: str,
    done: _Pending,
    name: str,
    value: float,
    guilty: list[str],
    checkpoints: Checkpoints,
) -> DivergenceError:
    kept = checkpoints.newest
    where = f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was written yet"
    which = (
        f"It comes from {', '.join(guilty)}; look at its tokens and scores."
        if guilty
        else "Each of its samples alone is finite; lower learning_rate."
    )
    return DivergenceError(
        f"{stage} step {done.number + 1}: {name}={value} is not finite; {where}. {which}"
    )
