"""The training loop of SFT and JPO: jitted, donated steps over LoRA weights alone.

A step sums the gradients of its micro-batches, whose losses are already divided by the step's
totals, then clips and applies them once. The host runs two steps ahead of the device and reads
metrics late, so the device never waits for it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from emodistill.batches import Batch, PaddedBatches
from emodistill.configs import AdapterConfig
from emodistill.errors import DivergenceError
from emodistill.model import LoRAParam, Qwen2
from emodistill.progress import progress
from emodistill.train.checkpoints import Checkpoints
from emodistill.train.losses import Metrics, token_logprobs
from emodistill.train.metrics_log import MetricsLog

LossFn = Callable[[jax.Array, Batch], tuple[jax.Array, Metrics]]
"""(log-probs of the replies [B, U], the batch) -> (its share of the step's loss, metrics)."""

LOGITS_PER_CHUNK = 2**24
"""Logits that are alive at once (64 MiB in float32)."""
STEPS_AHEAD = 2


class TrainState(NamedTuple):
    """All that training changes."""

    lora: nnx.State
    opt_state: optax.OptState
    step: jax.Array
    """int32, optimiser steps taken."""


def response_logprobs(
    model: Qwen2, batch: Batch, *, logits_per_chunk: int = LOGITS_PER_CHUNK
) -> jax.Array:
    """log π of the reply's tokens, float32 [B, U]; what lies outside `mask_BU` means nothing.

    The head runs at the reply's positions alone, in chunks whose logits are made again in the
    backward pass.
    """
    hidden_BTD = model.hidden(batch.tokens_BT, lengths_B=batch.lengths_B)
    hidden_BUD = jnp.take_along_axis(hidden_BTD, batch.positions_BU[..., None], axis=1)
    num_targets = batch.targets_BU.size
    size = max(1, logits_per_chunk // model.config.vocab_size)
    if num_targets <= size:
        return token_logprobs(model.logits(hidden_BUD), batch.targets_BU)

    num_chunks = -(-num_targets // size)
    size = -(-num_targets // num_chunks)
    padding = num_chunks * size - num_targets
    hidden = jnp.pad(hidden_BUD.reshape(num_targets, -1), ((0, padding), (0, 0)))
    targets = jnp.pad(batch.targets_BU.reshape(num_targets), (0, padding))

    @jax.checkpoint
    def chunk(inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
        hidden_CD, targets_C = inputs
        return token_logprobs(model.logits(hidden_CD), targets_C)

    shape = (num_chunks, size)
    logp = jax.lax.map(chunk, (hidden.reshape(*shape, -1), targets.reshape(shape)))
    return logp.reshape(-1)[:num_targets].reshape(batch.targets_BU.shape)


def learning_rate_schedule(
    peak: float, *, num_steps: int, warmup_fraction: float
) -> optax.Schedule:
    """Linear warm-up over `warmup_fraction` of the steps, then a cosine towards 0.

    Neither end is 0 itself: the first and the last step move the weights too.
    """
    warmup = max(1, round(warmup_fraction * num_steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(num_steps, warmup) + 1)
    return lambda count: schedule(count + 1)


class Trainer:
    """The compiled programs of one stage: `step(state, frozen, batches) -> (state, metrics)`.

    Compiles once per shape of a micro-batch, and the optimiser's part once.

    Args:
      graphdef: of the model, from `nnx.split(model, LoRAParam, ...)`.
      config: rates, clipping, warm-up.
      num_steps: length of the schedule.
    """

    def __init__(
        self, graphdef: nnx.GraphDef, loss_fn: LossFn, config: AdapterConfig, num_steps: int
    ) -> None:
        self._graphdef, self._loss_fn = graphdef, loss_fn
        self._schedule = learning_rate_schedule(
            config.learning_rate, num_steps=num_steps, warmup_fraction=config.warmup_fraction
        )
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm),
            optax.adamw(self._schedule, b1=0.9, b2=0.95, weight_decay=0.0),
        )
        self.num_compilations = 0
        """Micro-batch shapes compiled so far."""
        self._zeros = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree))
        self._accumulate = jax.jit(self._accumulate_fn, donate_argnums=2)
        self._update = jax.jit(self._update_fn, donate_argnums=0)

    def init(self, lora: nnx.State) -> TrainState:
        """The state before the first step; it owns a copy of `lora`, since steps donate it."""
        lora = jax.tree.map(jnp.copy, lora)
        return TrainState(lora, self.optimizer.init(lora), jnp.zeros((), jnp.int32))

    def gradients(
        self, lora: nnx.State, frozen: nnx.State, batches: Sequence[Batch]
    ) -> tuple[nnx.State, list[Metrics]]:
        """The step's gradient, and each micro-batch's share of its metrics."""
        grads, metrics = self._zeros(lora), []
        for batch in batches:
            grads, shares = self._accumulate(lora, frozen, grads, batch)
            metrics.append(shares)
        return grads, metrics

    def step(
        self, state: TrainState, frozen: nnx.State, batches: Sequence[Batch]
    ) -> tuple[TrainState, list[Metrics]]:
        """One optimiser step; donates `state`. The metrics, on device, add up (`add_metrics`)."""
        grads, metrics = self.gradients(state.lora, frozen, batches)
        state, more = self._update(state, grads)
        return state, [*metrics, more]

    def _accumulate_fn(
        self, lora: nnx.State, frozen: nnx.State, grads: nnx.State, batch: Batch
    ) -> tuple[nnx.State, Metrics]:
        self.num_compilations += 1

        def loss(lora: nnx.State) -> tuple[jax.Array, Metrics]:
            model = nnx.merge(self._graphdef, lora, frozen)
            return self._loss_fn(response_logprobs(model, batch), batch)

        own, metrics = jax.grad(loss, has_aux=True)(lora)
        return jax.tree.map(jnp.add, grads, own), metrics

    def _update_fn(self, state: TrainState, grads: nnx.State) -> tuple[TrainState, Metrics]:
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.lora)
        metrics = {
            "optimizer/grad_norm": optax.tree.norm(grads),
            "optimizer/learning_rate": jnp.asarray(self._schedule(state.step), jnp.float32),
        }
        lora: Any = optax.apply_updates(state.lora, updates)
        return TrainState(lora, opt_state, state.step + 1), metrics


def add_metrics(shares: Sequence[Metrics]) -> dict[str, float]:
    """A step's metrics on the host; waits for the device."""
    total: dict[str, float] = {}
    for share in jax.device_get(list(shares)):
        for name, value in share.items():
            total[name] = total.get(name, 0.0) + float(value)
    return total


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

    Writes `checkpoints/` (two newest, every `config.save_every` steps) and `metrics.jsonl` with
    a TensorBoard copy.

    Args:
      stage: names the progress bar and the metric that is shown beside it.
      identity: what a checkpoint must have been made from to be taken up again.
      on_step: called with the number of steps dispatched, after each.

    Raises:
      DivergenceError: a metric is not finite; names the step and its samples.
      StaleInputError: a checkpoint was made from something else.
    """
    num_steps = min(batches.num_steps, config.max_steps or batches.num_steps)
    graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
    trainer = Trainer(graphdef, loss_fn, config, num_steps)
    checkpoints = Checkpoints(cell_dir / "checkpoints", identity)
    state = checkpoints.restore(trainer.init(lora))
    first = int(state.step)
    shown = "sft/loss" if stage == "sft" else "policy/surrogate"
    pending: deque[_Pending] = deque()
    last: dict[str, float] = {}

    with (
        checkpoints,
        MetricsLog(cell_dir, num_steps=first) as log,
        progress(stage, total=num_steps, unit="steps", done=first) as bar,
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
            if (number + 1) % config.save_every == 0 or number + 1 == num_steps:
                settle(0)
                checkpoints.save(number + 1, state)
            if on_step is not None:
                on_step(number + 1)
    nnx.update(model, state.lora)
    return TrainingRun(num_steps, last)


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
