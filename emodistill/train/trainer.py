"""The compiled programs of SFT and JPO: donated steps over LoRA weights alone, on any mesh.

A step sums the gradients of its micro-batches, whose losses are already divided by the step's
totals, then clips and applies them once.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.tree_util import Partial

from emodistill.batches import Batch
from emodistill.configs import AdapterConfig
from emodistill.model import Qwen2, sharding
from emodistill.train.losses import Metrics, token_logprobs

LossFn = Callable[[jax.Array, Batch], tuple[jax.Array, Metrics]]
"""(log-probs of the replies [S, U], the batch) -> (its share of the step's loss, metrics).

Programs are shared by losses that are equal, so it must be hashable, as every function is."""

LOGITS_PER_CHUNK = 2**24
"""Logits that are alive at once on a device (64 MiB in float32); half as many saved nothing
more."""


class TrainState(NamedTuple):
    """All that training changes."""

    lora: nnx.State
    opt_state: optax.OptState
    step: jax.Array
    """int32, optimiser steps taken."""


def response_logprobs(model: Qwen2, batch: Batch) -> jax.Array:
    """log π of the replies' tokens, float32 [S, U]; values outside `mask_SU` mean nothing.

    π is the policy at the batch's temperature, as it is sampled.

    The head runs at the replies' positions alone, in chunks whose logits the backward pass computes
    again: no more than `LOGITS_PER_CHUNK` of them (or those of one position of each row) are alive
    on a device.
    """
    chex.assert_equal_shape((batch.tokens_BT, batch.positions_BT, batch.ends_BT))
    chex.assert_equal_shape((batch.parents_BM, batch.targets_BM))
    chex.assert_equal_shape((batch.logp_index_SU, batch.mask_SU))
    hidden_BTD = model.hidden(
        batch.tokens_BT, positions_BT=batch.positions_BT, ends_BT=batch.ends_BT
    )
    hidden_BMD = jnp.take_along_axis(hidden_BTD, batch.parents_BM[..., None], axis=1)
    hidden_BMD = sharding.constrain(hidden_BMD, model.mesh, sharding.SCORED)
    logp_BM = _scored(model, hidden_BMD, batch.targets_BM, batch.temperature)
    return sharding.everywhere(logp_BM, model.mesh).reshape(-1)[batch.logp_index_SU]


def _scored(
    model: Qwen2, hidden_BMD: jax.Array, targets_BM: jax.Array, temperature: jax.Array | None
) -> jax.Array:
    """log π of the targets [B, M]."""

    def score(hidden_BMD: jax.Array, targets_BM: jax.Array) -> jax.Array:
        logits_BMV = model.logits(hidden_BMD)
        if temperature is not None:
            logits_BMV = logits_BMV / temperature
        return token_logprobs(logits_BMV, targets_BM)

    B, M = targets_BM.shape
    num_logits = LOGITS_PER_CHUNK * (1 if model.mesh is None else model.mesh.size)
    num_chunks = -(-M // max(1, num_logits // (model.config.vocab_size * B)))
    if num_chunks <= 1:
        return score(hidden_BMD, targets_BM)
    width = -(-M // num_chunks)

    def chunks(x: jax.Array) -> jax.Array:
        """[B, M, …] as [chunks, B, width, …]."""
        x = jnp.pad(x, ((0, 0), (0, num_chunks * width - M)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, num_chunks, width, *x.shape[2:]), 1, 0)

    # Without the checkpoint the logits of all chunks would wait for the backward pass.
    score_chunk = jax.checkpoint(lambda inputs: score(*inputs))
    logp = jax.lax.map(score_chunk, (chunks(hidden_BMD), chunks(targets_BM)))
    return jnp.moveaxis(logp, 0, 1).reshape(B, num_chunks * width)[:, :M]


class _Optimizer(NamedTuple):
    """AdamW behind a clip of the gradient's norm.

    Its numbers are arguments of the compiled programs, which trainings of other rates and lengths
    so share; optax's own schedules would make them constants of a program.
    """

    learning_rate: float
    max_grad_norm: float
    num_warmup: int
    num_steps: int | None
    """Length of the schedule; None for a constant rate."""

    def rate(self, count: jax.Array | int) -> jax.Array | float:
        """The rate of the step after `count` others: a linear warm-up, then a cosine towards 0.

        Neither end is 0 itself: the first and the last step move the weights too.
        """
        if self.num_steps is None:
            return self.learning_rate
        step = jnp.asarray(count, jnp.float32) + 1
        last = jnp.maximum(self.num_steps, self.num_warmup) + 1
        done = (step - self.num_warmup) / (last - self.num_warmup)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(done, 0, 1)))
        return self.learning_rate * jnp.where(
            step < self.num_warmup, step / self.num_warmup, cosine
        )

    def transformation(self, count: jax.Array | int = 0) -> optax.GradientTransformation:
        """What the step after `count` others does to a gradient."""
        return optax.chain(
            optax.clip_by_global_norm(self.max_grad_norm),
            optax.adamw(self.rate(count), b1=0.9, b2=0.95, weight_decay=0.0),
        )


class Trainer:
    """The compiled programs of one stage: `step(state, frozen, batches) -> (state, metrics)`.

    One program is compiled for each shape of a micro-batch, and one for the optimiser. Trainers of
    one model and kind of loss share them, whatever their rates, κ or numbers of steps.

    Args:
      graphdef: of the model, from `nnx.split(model, LoRAParam, ...)`.
      loss_fn: what a `jax.tree_util.Partial` binds is an argument of the compiled program.
      config: rates, clipping, warm-up.
      num_steps: length of the schedule; None for a constant rate.
      mesh: over which the model is spread; state and gradients then lie like its LoRA.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        loss_fn: LossFn,
        config: AdapterConfig,
        num_steps: int | None,
        mesh: Mesh | None = None,
    ) -> None:
        self.graphdef, self._mesh = graphdef, mesh
        self._loss_fn: Any = loss_fn if isinstance(loss_fn, Partial) else Partial(loss_fn)
        warmup = max(1, round(config.warmup_fraction * (num_steps or 0)))
        optimizer = _Optimizer(config.learning_rate, config.max_grad_norm, warmup, num_steps)
        self.optimizer: _Optimizer = jax.tree.map(np.float32, optimizer)

    @functools.cached_property
    def _placed(self) -> tuple[_Optimizer, Any]:
        """Optimiser and loss with their numbers on the devices; the first step hands them over."""
        with jax.transfer_guard_host_to_device("allow"):
            return sharding.put_batch((self.optimizer, self._loss_fn), self._mesh)

    def init(self, lora: nnx.State) -> TrainState:
        """The state before the first step; it owns a copy of the LoRA, since steps donate it."""
        return _init(self.optimizer, self._mesh, lora)

    def loss(self, lora: nnx.State, frozen: nnx.State, batch: Batch) -> tuple[jax.Array, Metrics]:
        """A micro-batch's share of the step's loss, and of its metrics."""
        return _loss(self.graphdef, self._loss_fn, lora, frozen, batch)

    def put(self, batches: Sequence[Batch]) -> list[Batch]:
        """The micro-batches of a step on the devices, as a step wants them."""
        return [sharding.put_batch(batch, self._mesh) for batch in batches]

    def gradients(
        self, lora: nnx.State, frozen: nnx.State, batches: Sequence[Batch]
    ) -> tuple[nnx.State, list[Metrics]]:
        """The step's gradient, and each micro-batch's share of its metrics.

        Args:
          batches: on the devices already (`put`).
        """
        grads, metrics = _zeros(self._mesh, lora), []
        _, loss_fn = self._placed
        for batch in batches:
            grads, shares = _accumulate(
                self.graphdef, loss_fn, self._mesh, lora, frozen, grads, batch
            )
            metrics.append(shares)
        return grads, metrics

    def step(
        self, state: TrainState, frozen: nnx.State, batches: Sequence[Batch]
    ) -> tuple[TrainState, list[Metrics]]:
        """One optimiser step; donates `state`. The metrics, on device, add up (`add_metrics`).

        A gradient that is not finite changes nothing but the count of steps.
        """
        grads, metrics = self.gradients(state.lora, frozen, batches)
        state, more = _update(self._placed[0], self._mesh, state, grads)
        return state, [*metrics, more]

    def lower(
        self, lora: nnx.State, frozen: nnx.State, batch: Batch, grads: nnx.State | None = None
    ) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """The two programs of a step: a micro-batch's, the optimiser's.

        Args:
          lora, frozen, batch: abstract or real.
          grads: with real arguments, what `gradients` gives without a batch; the micro-batch's
            program is then the very one of a step, and is not compiled twice.
        """
        optimizer, mesh = self.optimizer, self._mesh
        state = jax.eval_shape(functools.partial(_init, optimizer, mesh), lora)
        if mesh is not None:
            state = sharding.abstract(state, _state_shardings(optimizer, mesh, state))
        loss_fn = self._loss_fn if grads is None else self._placed[1]
        accumulate = _accumulate.lower(
            *(self.graphdef, loss_fn, mesh, lora, frozen),
            *(lora if grads is None else grads, batch),
        )
        return accumulate, _update.lower(optimizer, mesh, state, lora)


def _loss(
    graphdef: nnx.GraphDef, loss_fn: LossFn, lora: nnx.State, frozen: nnx.State, batch: Batch
) -> tuple[jax.Array, Metrics]:
    model = nnx.merge(graphdef, lora, frozen)
    return loss_fn(response_logprobs(model, batch), batch)


# These are functions of the module, since a method's programs would belong to its object alone.
@functools.partial(jax.jit, static_argnums=1)
def _init(optimizer: _Optimizer, mesh: Mesh | None, lora: nnx.State) -> TrainState:
    lora = jax.tree.map(jnp.copy, lora)
    opt_state = optimizer.transformation().init(lora)
    return _sharded(optimizer, mesh, TrainState(lora, opt_state, jnp.zeros((), jnp.int32)))


# Without an operand they would be uncommitted, unlike the sums, and a step with several
# micro-batches be compiled twice.
@functools.partial(jax.jit, static_argnums=0, keep_unused=True)
def _zeros(mesh: Mesh | None, lora: nnx.State) -> nnx.State:
    return _like_lora(mesh, jax.tree.map(jnp.zeros_like, lora))


# Gradients and state are donated: of each, one copy is alive, not two.
@functools.partial(jax.jit, static_argnums=(0, 2), donate_argnums=5)
def _accumulate(
    graphdef: nnx.GraphDef,
    loss_fn: LossFn,
    mesh: Mesh | None,
    lora: nnx.State,
    frozen: nnx.State,
    grads: nnx.State,
    batch: Batch,
) -> tuple[nnx.State, Metrics]:
    loss = functools.partial(_loss, graphdef, loss_fn)
    own, metrics = jax.grad(loss, has_aux=True)(lora, frozen, batch)
    grads = _like_lora(mesh, jax.tree.map(jnp.add, grads, own))
    return grads, _on_every_device(mesh, metrics)


@functools.partial(jax.jit, static_argnums=1, donate_argnums=2)
def _update(
    optimizer: _Optimizer, mesh: Mesh | None, state: TrainState, grads: nnx.State
) -> tuple[TrainState, Metrics]:
    transformation = optimizer.transformation(state.step)
    updates, opt_state = transformation.update(grads, state.opt_state, state.lora)
    metrics = {
        "optimizer/grad_norm": optax.tree.norm(grads),
        "optimizer/learning_rate": jnp.asarray(optimizer.rate(state.step), jnp.float32),
    }
    lora: Any = optax.apply_updates(state.lora, updates)
    new = TrainState(lora, opt_state, state.step)
    # The host reads metrics two steps late: a step that diverged must not spoil the weights
    # before it is noticed.
    is_finite = jnp.isfinite(metrics["optimizer/grad_norm"])
    new = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
    new = _sharded(optimizer, mesh, new._replace(step=state.step + 1))
    return new, _on_every_device(mesh, metrics)


def _on_every_device(mesh: Mesh | None, metrics: Metrics) -> Metrics:
    return jax.tree.map(lambda metric: sharding.everywhere(metric, mesh), metrics)


def _state_shardings(optimizer: _Optimizer, mesh: Mesh | None, state: TrainState) -> TrainState:
    """The optimiser's two moments of a factor lie like the factor."""
    whole: Any = sharding.replicated(mesh)
    lora = sharding.state_sharding(state.lora, mesh)
    opt_state = optax.tree.map_params(
        optimizer.transformation(),
        lambda _, of_factor: of_factor,
        state.opt_state,
        lora,
        transform_non_params=lambda _: whole,
    )
    return TrainState(lora, opt_state, whole)


# Without these two, XLA would choose where results lie, and the next step be compiled anew.
def _sharded(optimizer: _Optimizer, mesh: Mesh | None, state: TrainState) -> TrainState:
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, _state_shardings(optimizer, mesh, state))


def _like_lora(mesh: Mesh | None, tree: nnx.State) -> nnx.State:
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, sharding.state_sharding(tree, mesh))


def add_metrics(shares: Sequence[Metrics]) -> dict[str, float]:
    """A step's metrics on the host; waits for the device."""
    total: Counter[str] = Counter()
    for share in jax.device_get(list(shares)):
        total.update({name: float(value) for name, value in share.items()})
    return dict(total)
