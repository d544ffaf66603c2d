"""The training loop of all adapters: checkpoints, metrics, progress around a `Trainer`'s steps.

A thread packs the rows ahead of time, the host runs two steps ahead of the device and reads metrics
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
from emodistill.progress import Progress
from emodistill.train.checkpoints import Checkpoints, load_opt_state
from emodistill.train.flops import peak_flops, training_flops
from emodistill.train.losses import Metrics
from emodistill.train.metrics_log import MetricsLog
from emodistill.train.objectives import Objective
from emodistill.train.prefetch import prefetched
from emodistill.train.stopping import StopRequest
from emodistill.train.trainer import Trainer, TrainState, add_metrics
from emodistill.train.watching import UNWATCHED, Watcher, is_due

log = logging.getLogger(__name__)

STEPS_AHEAD = 2
"""With one, the device would wait while the host reads metrics and hands over the next step; each
more keeps another step's rows in device memory."""
MIN_FILLED = 0.75
"""Share of the rows below which a mesh with many of them is worth a warning."""


class TrainingRun(NamedTuple):
    """What `train` did."""

    num_steps: int
    """Steps taken; a watcher may have ended the training before the last one."""
    metrics: dict[str, float]
    """Of the last step."""
    opt_state: optax.OptState
    """The optimiser's, at the end."""


def train(
    model: Qwen2,
    batches: PackedBatches,
    config: AdapterConfig,
    objective: Objective,
    *,
    cell_dir: Path,
    identity: dict[str, Any],
    on_step: Callable[[int], None] | None = None,
    watcher: Watcher = UNWATCHED,
    goes_on_from: Path | None = None,
) -> TrainingRun:
    """Train the LoRA of `model` in place, from the newest checkpoint in `cell_dir` if there is one.

    Writes `checkpoints/` (every `config.save_every` steps) and `metrics.jsonl` with a TensorBoard
    copy.

    Args:
      objective: the loss, and the metric to show.
      identity: what a checkpoint must have been made from to be taken up again.
      on_step: called with the number of steps dispatched, after each.
      watcher: looks at the student at some of the checkpoints, and may end the training there.
      goes_on_from: the optimiser's state at the end of an earlier training, to go on with.

    Raises:
      DivergenceError: a metric is not finite; names the step and the samples that make it so.
      StaleInputError: a checkpoint was made from something else.
      InputError: a checkpoint is damaged, or can't be written.
      StoppedError: Ctrl-C or SIGTERM came; the step that was reached is saved.
    """
    warn_of_empty_rows(model.mesh, batches, config)
    stage = config.stage
    num_steps = min(batches.num_steps, config.max_steps or batches.num_steps)
    trainer, lora, frozen = make_trainer(model, config, objective, num_steps)
    checkpoints = Checkpoints(
        cell_dir / "checkpoints", identity, keep=config.keep, keep_every=config.keep_every
    )
    state = _first_state(checkpoints, trainer.init(lora), batches, goes_on_from)
    first = int(state.step)

    def load(number: int) -> tuple[Step, list[Batch]]:
        step = batches.step(number)
        return step, trainer.put(step.batches)

    def is_ended(number: int) -> bool:
        """Let the watcher look at the student after `number` steps; whether it ends training."""
        nnx.update(model, state.lora)
        return watcher.look(number, model)

    def check(number: int, step: Step, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                culprits = _culprits(trainer, state, frozen, batches, step)
                what = f"{stage} step {number}: {name}={value}"
                raise _divergence(what, culprits, checkpoints.newest)

    with (
        StopRequest() as stop,
        checkpoints,
        MetricsLog(cell_dir, num_steps=first, is_writer=is_first()) as metrics_log,
        Progress(stage, total=num_steps, unit="steps", done=first, is_shown=is_first()) as bar,
    ):
        watcher.begin(first)
        if is_due(watcher, first, num_steps) and is_ended(first):
            num_steps = first
        late = _LateMetrics(model, metrics_log, bar, objective.shown_metric, check)
        loaded = prefetched(load, range(first, num_steps), ahead=STEPS_AHEAD)
        for number, (step, on_device) in enumerate(loaded, start=first + 1):
            # Whatever crosses between host and device here would make the device wait.
            with jax.transfer_guard("disallow"):
                state, metrics = trainer.step(state, frozen, on_device)
            late.add(number, step, metrics)
            is_stopped = stop.is_due(number)
            is_saved = number % config.save_every == 0 or number == num_steps
            if is_stopped or is_saved or is_due(watcher, number, num_steps):
                late.read(0)
                checkpoints.save(number, state, cursor=_cursor(batches, number), metrics=late.last)
            if on_step is not None:
                on_step(number)
            if is_stopped and number < num_steps:
                raise StoppedError(
                    f"{stage}: stopped after step {number:,} of {num_steps:,}, which is saved; "
                    "the same command goes on from there."
                )
            if is_due(watcher, number, num_steps):
                if is_ended(number):
                    num_steps = number
                    break
                late.restart_clock()
    nnx.update(model, state.lora)
    return TrainingRun(num_steps, late.last, state.opt_state)


class _LateMetrics:
    """The metrics of dispatched steps, which the host reads some steps later, checks and logs.

    Args:
      check: called with number, input and metrics of each step; raises where they can't be.
    """

    def __init__(
        self,
        model: Qwen2,
        metrics_log: MetricsLog,
        bar: Progress,
        shown: str,
        check: Callable[[int, Step, dict[str, float]], None],
    ) -> None:
        devices = jax.devices()[:1] if model.mesh is None else list(model.mesh.devices.flat)
        self._peak = peak_flops(devices, model.dtype)
        self._model_config = model.config
        self._log, self._bar, self._shown, self._check = metrics_log, bar, shown, check
        self._unread: deque[tuple[int, Step, list[Metrics]]] = deque()
        self.last = metrics_log.last
        """Of the newest step that was read."""
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count no time until now for the next step."""
        self._clock = time.monotonic()

    def add(self, number: int, step: Step, on_device: list[Metrics]) -> None:
        """Note a step, and read those that lie `STEPS_AHEAD` back."""
        self._unread.append((number, step, on_device))
        self.read(STEPS_AHEAD)

    def read(self, num_left: int) -> None:
        """Wait for steps, oldest first, until so many are unread; check and log each."""
        while len(self._unread) > num_left:
            number, step, shares = self._unread.popleft()
            self.last = add_metrics(shares)
            self._check(number, step, self.last)
            now = time.monotonic()
            seconds, work = now - self._clock, step.work
            self.last["rows/useful_share"] = work.num_tokens / work.num_positions
            times = {
                "time/step_s": seconds,
                "time/tokens_per_s": work.num_tokens / seconds,
                "time/response_tokens_per_s": work.num_reply_tokens / seconds,
                "time/mfu": training_flops(self._model_config, work) / seconds / self._peak,
            }
            self._log.write(number, self.last | times)
            self._clock = now
            self._bar.advance(1, note=f"{self._shown} {self.last[self._shown]:.4f}")


class TrainerParts(NamedTuple):
    """A trainer, and what it trains."""

    trainer: Trainer
    lora: nnx.State
    """What is trained."""
    frozen: nnx.State


def make_trainer(
    model: Qwen2, config: AdapterConfig, objective: Objective, num_steps: int
) -> TrainerParts:
    """The trainer of `model` for a run of `num_steps`: its LoRA is trained, all else is frozen."""
    graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
    length = None if config.has_constant_rate else num_steps
    trainer = Trainer(graphdef, objective.loss_under(config), config, length, model.mesh)
    return TrainerParts(trainer, lora, frozen)


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


def _first_state(
    checkpoints: Checkpoints, start: TrainState, batches: PackedBatches, goes_on_from: Path | None
) -> TrainState:
    """The newest checkpoint's state, if its run would now see the same samples; `start` if none,
    with the optimiser's state of an earlier training where there is one."""
    if goes_on_from is not None:
        start = start._replace(opt_state=load_opt_state(goes_on_from, start.opt_state))
    state, cursor = checkpoints.restore(start)
    step = int(state.step)
    if step and cursor != _cursor(batches, step):
        raise StaleInputError(
            f"{checkpoints.directory / str(step)} would go on with other samples than these. "
            f"Delete {checkpoints.directory.parent} to train again."
        )
    return state


def _cursor(batches: PackedBatches, step: int) -> dict[str, Any]:
    """Where in the data a run goes on after `step` steps, as its checkpoint says."""
    is_over = step >= batches.num_steps
    return {
        "seed": batches.seed,
        "next_samples": [] if is_over else list(batches.sample_ids(step)),
    }


def _culprits(
    trainer: Trainer, state: TrainState, frozen: Any, batches: PackedBatches, step: Step
) -> list[str]:
    """Those samples of `step` whose own loss or gradient is not finite.

    A step that is not finite leaves the weights alone, so that they still show which it was.
    """
    culprits, norm = [], jax.jit(optax.tree.norm)
    for number in step.samples[:: batches.unit_size]:
        alone = batches.step_of_sample(number)
        grads, metrics = trainer.gradients(state.lora, frozen, trainer.put(alone.batches))
        values = [*add_metrics(metrics).values(), float(norm(grads))]
        if not np.isfinite(values).all():
            culprits += [batches.examples[i].sample_id for i in alone.samples]
    return culprits


def _divergence(what: str, culprits: list[str], checkpoint: int | None) -> DivergenceError:
    where = "no checkpoint was written yet"
    if checkpoint:
        where = f"the checkpoint of step {checkpoint} is kept"
    advice = "Each of its samples alone is finite; lower learning_rate."
    if culprits:
        advice = f"It comes from {', '.join(culprits)}; look at its tokens and scores."
    return DivergenceError(f"{what} is not finite; {where}. {advice}")
