"""How every array lies on a mesh with the axes `data`, `fsdp` and `tensor`: all specs are here.

Rows of a batch are split over `data` and `fsdp`. Frozen weights, LoRA factors and their optimiser
state are split over `fsdp` and `tensor` and whole along `data`. Within a layer `tensor` splits
heads and MLP columns; between layers it splits the tokens of a row, so that what the backward
pass keeps is split too. The vocabulary is split over `fsdp` and `tensor`, and every device scores
all replies against its part, so neither table is ever gathered.

An axis that does not divide a dimension leaves it whole: correct, only less split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from emodistill.configs import MeshShape
from emodistill.errors import InputError
from emodistill.model.config import ParamPath

Axis = str | tuple[str, ...] | None
"""What splits a dimension: an axis of the mesh, several, or none."""

ROWS = ("data", "fsdp")
VOCABULARY = ("fsdp", "tensor")

RESIDUAL = (ROWS, "tensor", None)
"""The residual stream [B, T, D] between layers: the tokens of a row are split."""
PROJECTED = (ROWS, None, None)
"""What enters layers whose columns are split [B, T, D]: all tokens of a row together."""
COLUMNS = (ROWS, None, "tensor")
"""What layers give whose columns are split [B, T, F]."""
SCORED = ("data", None, None)
"""Hidden states of the replies [B, M, D], which every device scores against its own words."""
CACHE = ("tensor", None, None)
"""Cached keys and values [..., K, H, W] or [..., K, W, H]: heads are split, slots are not."""

# The axes that split a weight [out, in]: columns in the layers that widen, rows in those that
# narrow, so that a pair of them needs one reduction, after the second. `fsdp` always splits the
# first dimension: what is gathered over the second has to be transposed, and XLA would transpose
# the weights of all layers at once, ahead of the loop over them, and keep both (docs/notes.md).
_WIDENING = (("tensor", "fsdp"), None)
_NARROWING = ("fsdp", "tensor")
_AXES: dict[str, tuple[Axis, Axis]] = {
    "q_proj": _WIDENING,
    "k_proj": _WIDENING,
    "v_proj": _WIDENING,
    "gate_proj": _WIDENING,
    "up_proj": _WIDENING,
    "o_proj": _NARROWING,
    "down_proj": _NARROWING,
    "embed_tokens": (VOCABULARY, None),
    "lm_head": (VOCABULARY, None),
}


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of that shape over `devices` (all there are, or the first ones that suffice).

    Raises:
      InputError: there are too few devices, or some of another process would be left out.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.astuple(shape)
    num_devices = math.prod(sizes)
    is_short = len(devices) > num_devices and jax.process_count() > 1
    if len(devices) < num_devices or is_short:
        raise InputError(
            f"mesh {shape} takes {num_devices} devices, but there are {len(devices)}; choose "
            "--mesh DATAxFSDPxTENSOR with that product."
        )
    return jax.make_mesh(
        sizes,
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=list(devices[:num_devices]),
    )


def platform(mesh: Mesh | None) -> str:
    """`cpu`, `gpu` or `tpu`: what a program on `mesh` is compiled for."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def first_device(mesh: Mesh | None) -> Any:
    """One of the devices that a program on `mesh` is compiled for; they are all alike."""
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def num_row_shards(mesh: Mesh | None) -> int:
    """By how much the rows of a micro-batch must be divisible."""
    return 1 if mesh is None else math.prod(mesh.shape.get(axis, 1) for axis in ROWS)


def _spec(mesh: Mesh, shape: Sequence[int], axes: Sequence[Axis]) -> PartitionSpec:
    """`axes` along the last dimensions of `shape`, those left out that do not divide theirs."""

    def fitting(axis: Axis, size: int) -> Axis:
        names = (axis,) if isinstance(axis, str) else axis or ()
        names = tuple(name for name in names if name in mesh.shape)
        while size % math.prod(mesh.shape[name] for name in names):
            names = names[:-1]
        return names[0] if len(names) == 1 else names or None

    leading = (None,) * (len(shape) - len(axes))
    return PartitionSpec(*map(fitting, (*leading, *axes), shape))


def param_sharding(
    path: ParamPath, shape: Sequence[int], mesh: Mesh | None
) -> jax.sharding.Sharding:
    """The sharding of the parameter with the path ("layers", "mlp", "up_proj", "weight"), say.

    Of the LoRA factors, `(…, "lora", "a" | "b")`, `b` is split along its outputs like the weight
    that it adapts. `a` is split along its inputs like that weight, or over `fsdp` where the inputs
    of the weight are whole, so that no device holds all of it. Norms are whole everywhere. Without
    a mesh everything lives on the first device.
    """
    if mesh is None:
        return _first_device()
    *_, module, leaf = (name for name in path if name != "lora")
    if module not in _AXES:
        return NamedSharding(mesh, _spec(mesh, shape, ()))
    out_axis, in_axis = _AXES[module]
    axes: dict[str, tuple[Axis, ...]] = {
        "weight": (out_axis, in_axis),
        "bias": (out_axis,),
        "a": (None, in_axis or "fsdp"),
        "b": (out_axis, None),
    }
    return NamedSharding(mesh, _spec(mesh, shape, axes[leaf]))


def state_sharding(state: nnx.State, mesh: Mesh | None) -> Any:
    """The shardings of a model's (or an adapter's) variables, in a tree of the form of `state`."""

    def shardings(path: ParamPath, variable: Any) -> Any:
        value = variable.get_value()  # a tree of several arrays where the weight is quantized
        return variable.replace(jax.tree.map(lambda x: param_sharding(path, x.shape, mesh), value))

    return nnx.map_state(shardings, state)


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of `tree` with `shardings`, for compiling without arrays."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def replicated(mesh: Mesh | None) -> jax.sharding.Sharding | None:
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def cache_sharding(shape: Sequence[int], mesh: Mesh | None) -> jax.sharding.Sharding:
    """How the keys or the values of a cache lie; without a mesh, with the weights."""
    if mesh is None:
        return _first_device()
    return NamedSharding(mesh, _spec(mesh, shape, CACHE))


def _first_device() -> jax.sharding.Sharding:
    return SingleDeviceSharding(jax.local_devices()[0])


def batch_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Rows over `data` and `fsdp`; scalars everywhere."""
    axes = (ROWS, *(None,) * (len(shape) - 1)) if shape else ()
    return NamedSharding(mesh, _spec(mesh, shape, axes))


def put_batch(batch: Any, mesh: Mesh | None) -> Any:
    """A batch of NumPy arrays on the mesh; each process hands over its own rows only."""
    if mesh is None:
        return jax.device_put(batch)
    return jax.tree.map(lambda x: _put(np.asarray(x), batch_sharding(np.shape(x), mesh)), batch)


def put_like(values: np.ndarray, array: jax.Array) -> jax.Array:
    """`values`, which every process holds whole, with the sharding and dtype of `array`."""
    return _put(values.astype(array.dtype), array.sharding)


def _put(values: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    # `device_put` would first compare the values of all processes, over the network.
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def constrain(x: jax.Array, mesh: Mesh | None, axes: Sequence[Axis]) -> jax.Array:
    """`x`, its last dimensions split by `axes`; unchanged without a mesh."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _spec(mesh, x.shape, axes)))


def everywhere(x: jax.Array, mesh: Mesh | None) -> jax.Array:
    """`x`, whole on every device."""
    return constrain(x, mesh, ())


def by_head(
    attend: Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array],
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    plan: Any,
    mesh: Mesh | None,
) -> jax.Array:
    """`attend(q, k, v, plan)`, which every device computes for its own rows and heads.

    Args:
      plan: a tree of arrays whose first axis is that of rows.

    Left to itself, XLA would gather the blocks of all rows on every device, since it can't see that
    a loop over blocks never crosses rows or heads. Key-value heads are repeated until every shard
    of `tensor` has one of its own; query heads that `tensor` does not divide stay whole.
    """
    if mesh is None:
        return attend(q_BTNH, k_BTKH, v_BTKH, plan)
    num_shards, num_kv_heads = mesh.shape.get("tensor", 1), k_BTKH.shape[2]
    is_split = q_BTNH.shape[2] % num_shards == 0
    axes = (ROWS, None, "tensor" if is_split else None, None)
    if is_split and num_kv_heads % num_shards:
        repeats = num_shards // math.gcd(num_kv_heads, num_shards)
        k_BTKH, v_BTKH = (jnp.repeat(x, repeats, axis=2) for x in (k_BTKH, v_BTKH))
    q_BTNH, k_BTKH, v_BTKH = (constrain(x, mesh, axes) for x in (q_BTNH, k_BTKH, v_BTKH))
    if mesh.size == 1:
        return attend(q_BTNH, k_BTKH, v_BTKH, plan)
    head_specs = tuple(_spec(mesh, x.shape, axes) for x in (q_BTNH, k_BTKH, v_BTKH))
    specs = (*head_specs, jax.tree.map(lambda x: batch_sharding(x.shape, mesh).spec, plan))
    split = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    return split(q_BTNH, k_BTKH, v_BTKH, plan)
