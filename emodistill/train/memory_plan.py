"""What a training step needs on each device: the true step, compiled ahead of time, no weights.

A step alternates between two programs, a micro-batch's and the optimiser's; weights, LoRA and
optimiser state stay on the device throughout. The larger of the two programs decides. For GPUs and
TPUs the figures are those of their compilers, which need no device (`compile_targets`). For CPUs
they are as good for what stays, but XLA's CPU compiler plans its temporaries generously.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from emodistill.batches import Batch, RowShape, empty_batch
from emodistill.configs import CONFIGS, MemoryConfig, MeshShape
from emodistill.errors import InputError
from emodistill.model import LoRAParam, Qwen2, add_lora, sharding
from emodistill.model.config import read_architecture
from emodistill.model.quantization import quantize_abstractly
from emodistill.train.compile_targets import AOT_OPTIONS, is_abstract, target_devices
from emodistill.train.objectives import OBJECTIVES
from emodistill.train.preparation import mesh_shape
from emodistill.train.program_counts import ProgramCounts, count_kernels
from emodistill.train.trainer import Trainer

REPLY_SHARE = 4
"""One token in so many is part of a reply, as in rows of turns that share their prompts."""
REPLY_TOKENS = 64
"""Tokens of a reply, about the length that the simulated and the paper's dialogues have."""
ROW_MULTIPLE = 256
"""Row lengths are tried in steps of this."""


class DeviceMemory(NamedTuple):
    """Bytes on each device."""

    weights: int
    """Frozen, in the model's dtype or quantized."""
    adapter: int
    """LoRA in float32."""
    optimizer: int
    """AdamW's two moments of each LoRA weight."""
    gradients: int
    batch: int
    activations: int
    """What the forward pass keeps for the backward pass."""
    temporaries: int
    """All else that is alive at the peak."""
    program: int
    """The compiled code, where it lies beside the data."""

    @property
    def total(self) -> int:
        return sum(self)


class MemoryPlan(NamedTuple):
    """What a step with rows of one length needs, and how long it took to compile it."""

    num_tokens: int
    memory: DeviceMemory
    trace_s: float
    compile_s: float
    mesh: str = "1x1x1"
    counts: ProgramCounts | None = None
    """What a step of one micro-batch launches; None but for GPUs."""


def plan_memory(config: MemoryConfig) -> MemoryPlan:
    """Compile the step of `config.objective` for its mesh and read what it needs.

    It is compiled for `config.topology`, or for CPUs without one; without a mesh, for the one that
    a training with its default settings would choose.

    Raises:
      InputError: the model, mesh or topology is unknown.
    """
    settings: Any = CONFIGS[config.objective]()
    mesh = _target_mesh(config, settings)
    graphdef, lora, frozen = _abstract_student(config, mesh)
    batch = _abstract_batch(config, mesh)
    loss_fn = OBJECTIVES[config.objective].loss_under(settings)
    trainer = Trainer(graphdef, loss_fn, settings, num_steps=100, mesh=mesh)
    started = time.monotonic()
    accumulate, update = trainer.lower(lora, frozen, batch)
    traced = time.monotonic()
    options = AOT_OPTIONS if is_abstract(mesh.devices.flat[0]) else None
    programs = [lowered.compile(options) for lowered in (accumulate, update)]
    compile_s = time.monotonic() - traced
    step, end = map(_analysis, programs)

    adapter, batch_bytes = _bytes(lora), _bytes(batch)
    # The arguments of a micro-batch's program are weights, LoRA, gradients and rows; those of the
    # optimiser's are LoRA, optimiser state and gradients; the few numbers of either don't count.
    weights = step.argument_size_in_bytes - 2 * adapter - batch_bytes
    optimizer = end.argument_size_in_bytes - 2 * adapter
    residuals = _residual_bytes(trainer, lora, frozen, batch)
    activations = min(residuals, step.temp_size_in_bytes)
    memory = DeviceMemory(
        weights=weights,
        adapter=adapter,
        optimizer=optimizer,
        gradients=adapter,
        batch=batch_bytes,
        activations=activations,
        temporaries=max(step.temp_size_in_bytes, end.temp_size_in_bytes) - activations,
        program=step.generated_code_size_in_bytes + end.generated_code_size_in_bytes,
    )
    counts = None
    if sharding.platform(mesh) == "gpu":
        counts = operator.add(*(count_kernels(program.as_text()) for program in programs))
    return MemoryPlan(
        config.tokens,
        memory,
        traced - started,
        compile_s,
        "x".join(map(str, mesh.devices.shape)),
        counts,
    )


def _target_mesh(config: MemoryConfig, settings: Any) -> Mesh:
    """The mesh of `config` over the devices that its topology has."""
    if config.mesh is None:
        devices = target_devices(config.topology, 1)
        num_heads = read_architecture(config.model).num_heads
        return sharding.make_mesh(mesh_shape(settings, len(devices), num_heads), devices)
    shape = MeshShape.parse(config.mesh)
    num_devices = math.prod(dataclasses.astuple(shape))
    return sharding.make_mesh(shape, target_devices(config.topology, num_devices))


def longest_row(
    first: MemoryPlan, limit_bytes: float, plan: Callable[[int], MemoryPlan], max_tokens: int
) -> tuple[int, list[MemoryPlan]]:
    """The longest row (in multiples of 256 tokens) that takes at most `limit_bytes`.

    What a step needs grows in proportion to the row, so that two lengths tell where to look; the
    answer has been compiled itself. 0 where not even the shortest row fits.

    Args:
      first: a plan to begin with.
      plan: compiles another length.

    Returns: the length, and all plans, in the order in which they were compiled.
    """
    known = {first.num_tokens: first}
    if first.memory.total - first.memory.activations - first.memory.temporaries > limit_bytes:
        return 0, [first]
    low, high = 0, max_tokens // ROW_MULTIPLE + 1  # in multiples: fits, does not fit
    guess = first.num_tokens // ROW_MULTIPLE
    while high - low > 1:
        guess = min(max(guess, low + 1), high - 1)
        num_tokens = guess * ROW_MULTIPLE
        if num_tokens not in known:
            known[num_tokens] = plan(num_tokens)
        if known[num_tokens].memory.total <= limit_bytes:
            low = guess
        else:
            high = guess
        guess = _next_guess(known, limit_bytes, guess)
    return low * ROW_MULTIPLE, list(known.values())


def _next_guess(known: dict[int, MemoryPlan], limit_bytes: float, guess: int) -> int:
    """The next length to try: where the line through the two plans nearest to the limit meets
    it."""
    if len(known) == 1:
        return 2 * guess
    near = sorted(known.values(), key=lambda plan: abs(plan.memory.total - limit_bytes))[:2]
    (x, y), (other_x, other_y) = ((plan.num_tokens, plan.memory.total) for plan in near)
    slope = (other_y - y) / (other_x - x)
    if slope <= 0:
        return guess + 1
    return math.floor((x + (limit_bytes - y) / slope) / ROW_MULTIPLE)


def _abstract_student(
    config: MemoryConfig, mesh: Mesh
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The model without weights: its graph, LoRA and frozen parts, as shapes with shardings."""
    architecture = read_architecture(config.model)
    dtype = jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16

    def make() -> Qwen2:
        model = Qwen2(
            architecture,
            key=jax.random.key(0),
            dtype=dtype,
            remat=config.remat,
            mesh=mesh,
            attention=config.attention,
        )
        if config.quantize is not None:
            quantize_abstractly(model, config.quantize)
        add_lora(model, config.lora_rank, targets=config.lora_targets)
        return model

    graphdef, lora, frozen = nnx.split(nnx.eval_shape(make), LoRAParam, ...)
    lora, frozen = (
        sharding.abstract(part, sharding.state_sharding(part, mesh)) for part in (lora, frozen)
    )
    return graphdef, lora, frozen


def _abstract_batch(config: MemoryConfig, mesh: Mesh) -> Batch:
    """A row of `config.tokens` on every device that has rows of its own."""
    B, T = sharding.num_row_shards(mesh), config.tokens
    M = max(1, T // REPLY_SHARE)
    S, U = B * max(1, M // REPLY_TOKENS), min(M, REPLY_TOKENS)
    batch = empty_batch(RowShape(B, T), M, S, U)
    if config.objective == "sft":
        batch = batch._replace(advantages_S=None, ref_logp_SU=None)
    shardings = jax.tree.map(lambda x: sharding.batch_sharding(x.shape, mesh), batch)
    return sharding.abstract(batch, shardings)


def _bytes(tree: Any) -> int:
    """What the arrays take on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _analysis(compiled: jax.stages.Compiled) -> Any:
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise InputError("this compiler tells nothing about memory; choose another --topology.")
    return analysis


def _residual_bytes(trainer: Trainer, lora: nnx.State, frozen: nnx.State, batch: Batch) -> int:
    """What the forward pass leaves for the backward pass beside its own arguments, per device.

    All of it has the tokens of rows, which the mesh splits over all its axes. The compiler doesn't
    say; a trace of the forward pass does, since JAX's pullback is a pytree whose leaves are what it
    keeps.
    """
    sizes = []

    def forward(lora: nnx.State, frozen: nnx.State, batch: Batch) -> jax.Array:
        value, pull_back = jax.vjp(lambda lora: trainer.loss(lora, frozen, batch)[0], lora)
        given = {id(x) for x in jax.tree.leaves((lora, frozen, batch))}
        residuals = [x for x in jax.tree.leaves(pull_back) if id(x) not in given]
        sizes.append(sum(x.size * x.dtype.itemsize for x in residuals))
        return value

    jax.eval_shape(forward, lora, frozen, batch)
    mesh = jax.tree.leaves(lora)[0].sharding.mesh
    return sizes[0] // mesh.size
