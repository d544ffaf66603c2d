"""The compiled programs of SFT and JPO: donated steps over LoRA weights alone, on any mesh.

A step sums the gradients of its micro-batches, whose losses are already divided by the step's
totals, then clips and applies them once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from emodistill.batches import Batch
from emodistill.configs import AdapterConfig
from emodistill.model import Qwen2, sharding
from emodistill.train.losses import Metrics, token_logprobs

LossFn = Callable[[jax.Array, Batch], tuple[jax.Array, Metrics]]
"""(log-probs of the replies [S, U], the batch) -> (its share of the step's loss, metrics)."""

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
    logp_BM = _scored(model, hidden_BMD, batch.targets_BM)
    return sharding.everywhere(logp_BM, model.mesh).reshape(-1)[batch.logp_index_SU]


def _scored(model: Qwen2, hidden_BMD: jax.Array, targets_BM: jax.Array) -> jax.Array:
    """log π of the targets [B, M]."""

    def score(hidden_BMD: jax.Array, targets_BM: jax.Array) -> jax.Array:
        return token_logprobs(model.logits(hidden_BMD), targets_BM)

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

    One program is compiled for each shape of a micro-batch, and one for the optimiser.

    Args:
      graphdef: of the model, from `nnx.split(model, LoRAParam, ...)`.
      config: rates, clipping, warm-up.
      num_steps: length of the schedule.
      mesh: over which the model is spread; state and gradients then lie like its LoRA.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        loss_fn: LossFn,
        config: AdapterConfig,
        num_steps: int,
        mesh: Mesh | None = None,
    ) -> None:
        self._graphdef, self._loss_fn, self._mesh = graphdef, loss_fn, mesh
        self._schedule = learning_rate_schedule(
            config.learning_rate, num_steps=num_steps, warmup_fraction=config.warmup_fraction
        )
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(config.max_grad_norm),
            optax.adamw(self._schedule, b1=0.9, b2=0.95, weight_decay=0.0),
        )
        self.init: Callable[[nnx.State], TrainState] = jax.jit(self._init_fn)
        """The state before the first step; it owns a copy of the LoRA, since steps donate it."""
        self._zeros = jax.jit(lambda lora: self._like_lora(jax.tree.map(jnp.zeros_like, lora)))
        # Gradients and state are donated: of each, one copy is alive, not two.
        self._accumulate = jax.jit(self._accumulate_fn, donate_argnums=2)
        self._update = jax.jit(self._update_fn, donate_argnums=0)

    def loss(self, lora: nnx.State, frozen: nnx.State, batch: Batch) -> tuple[jax.Array, Metrics]:
        """A micro-batch's share of the step's loss, and of its metrics."""
        return self._loss_fn(response_logprobs(self.model(lora, frozen), batch), batch)

    def model(self, lora: nnx.State, frozen: nnx.State) -> Qwen2:
        """The model whose two halves these are."""
        return nnx.merge(self._graphdef, lora, frozen)

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
        grads, metrics = self._zeros(lora), []
        for batch in batches:
            grads, shares = self._accumulate(lora, frozen, grads, batch)
            metrics.append(shares)
        return grads, metrics

    def step(
        self, state: TrainState, frozen: nnx.State, batches: Sequence[Batch]
    ) -> tuple[TrainState, list[Metrics]]:
        """One optimiser step; donates `state`. The metrics, on device, add up (`add_metrics`).

        A gradient that is not finite changes nothing but the count of steps.
        """
        grads, metrics = self.gradients(state.lora, frozen, batches)
        state, more = self._update(state, grads)
        return state, [*metrics, more]

    def lower(
        self, lora: nnx.State, frozen: nnx.State, batch: Batch
    ) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """The two programs of a step for abstract arguments: a micro-batch's, the optimiser's."""
        state = jax.eval_shape(self._init_fn, lora)
        if self._mesh is not None:
            state = sharding.abstract(state, self._state_shardings(state))
        accumulate = self._accumulate.lower(lora, frozen, lora, batch)
        return accumulate, self._update.lower(state, lora)

    def _init_fn(self, lora: nnx.State) -> TrainState:
        lora = jax.tree.map(jnp.copy, lora)
        state = TrainState(lora, self.optimizer.init(lora), jnp.zeros((), jnp.int32))
        return self._sharded(state)

    def _accumulate_fn(
        self, lora: nnx.State, frozen: nnx.State, grads: nnx.State, batch: Batch
    ) -> tuple[nnx.State, Metrics]:
        own, metrics = jax.grad(self.loss, has_aux=True)(lora, frozen, batch)
        metrics = jax.tree.map(self._on_every_device, metrics)
        return self._like_lora(jax.tree.map(jnp.add, grads, own)), metrics

    def _update_fn(self, state: TrainState, grads: nnx.State) -> tuple[TrainState, Metrics]:
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.lora)
        metrics = {
            "optimizer/grad_norm": optax.tree.norm(grads),
            "optimizer/learning_rate": jnp.asarray(self._schedule(state.step), jnp.float32),
        }
        lora: Any = optax.apply_updates(state.lora, updates)
        new = TrainState(lora, opt_state, state.step)
        # The host reads metrics two steps late: a step that diverged must not spoil the weights
        # before it is noticed.
        is_finite = jnp.isfinite(metrics["optimizer/grad_norm"])
        new = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
        new = self._sharded(new._replace(step=state.step + 1))
        return new, jax.tree.map(self._on_every_device, metrics)

    def _on_every_device(self, metric: jax.Array) -> jax.Array:
        return sharding.everywhere(metric, self._mesh)

    def _state_shardings(self, state: TrainState) -> TrainState:
        """The optimiser's two moments of a factor lie like the factor."""
        whole: Any = sharding.replicated(self._mesh)
        lora = sharding.state_sharding(state.lora, self._mesh)
        opt_state = optax.tree.map_params(
            self.optimizer,
            lambda _, of_factor: of_factor,
            state.opt_state,
            lora,
            transform_non_params=lambda _: whole,
        )
        return TrainState(lora, opt_state, whole)

    # Without these two, XLA would choose where results lie, and the next step be compiled anew.
    def _sharded(self, state: TrainState) -> TrainState:
        if self._mesh is None:
            return state
        return jax.lax.with_sharding_constraint(state, self._state_shardings(state))

    def _like_lora(self, tree: nnx.State) -> nnx.State:
        if self._mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, sharding.state_sharding(tree, self._mesh))


def add_metrics(shares: Sequence[Metrics]) -> dict[str, float]:
    """A step's metrics on the host; waits for the device."""
    total: Counter[str] = Counter()
    for share in jax.device_get(list(shares)):
        total.update({name: float(value) for name, value in share.items()})
    return dict(total)
