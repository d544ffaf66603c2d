"""What tells one set of weights from another: of the base model, of an adapter, of a checkpoint.

Checksums are two weighted sums of an array's bit patterns, computed where the array lives and the
same on every mesh. They tell weights apart and find damage; they do not withstand forgery.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from emodistill.model.config import ParamPath, Qwen2Config
from emodistill.model.lora import LoRAParam
from emodistill.model.processes import to_host
from emodistill.model.qwen2 import Qwen2

NUMBERS_AT_ONCE = 2**18
"""Numbers of a parameter whose checksums are computed together: 4 MB of intermediate values."""


def base_fingerprint(model: Qwen2) -> str:
    """SHA-256 (hex) over the architecture and a checksum of every base weight, LoRA excluded.

    The weights are rounded to bfloat16 first, so that a checkpoint has the same fingerprint in
    whatever dtype, and on whatever mesh, it was loaded. A quantized model has that of the weights
    that it was made from.
    """
    if model.fingerprint is not None:
        return model.fingerprint
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    arrays = {path: _without_mesh_of_one(leaf[...]) for path, leaf in params}
    sums = _all_rounded_sums(
        tuple(arrays.values()), tuple(array.sharding for array in arrays.values())
    )
    return fingerprint_of_sums(
        model.config,
        {
            path: (array.shape, [to_host(found)])
            for (path, array), found in zip(arrays.items(), sums, strict=True)
        },
    )


def _without_mesh_of_one(array: jax.Array) -> jax.Array:
    """`array` as it lies on its only device: loaded onto a mesh of one, as training does it, a
    model would otherwise need another program than without a mesh."""
    return array.addressable_data(0) if array.sharding.num_devices == 1 else array


@functools.partial(jax.jit, static_argnums=1)
def _all_rounded_sums(
    arrays: Sequence[jax.Array], shardings: Sequence[Sharding]
) -> list[jax.Array]:
    """`rounded_sums` of whole parameters, in one program."""
    return [
        rounded_sums_on(array, jnp.uint32(0), sharding)
        for array, sharding in zip(arrays, shardings, strict=True)
    ]


def fingerprint_of_sums(
    config: Qwen2Config,
    params: Mapping[ParamPath, tuple[tuple[int, ...], Sequence[np.ndarray]]],
) -> str:
    """The fingerprint, from each parameter's shape and the `rounded_sums` of its parts in order."""
    digest = hashlib.sha256()
    architecture = dataclasses.asdict(config)
    architecture.pop("eos_token_ids")
    digest.update(json.dumps(architecture, sort_keys=True).encode())
    for path in sorted(params):
        shape, parts = params[path]
        digest.update(f"{'.'.join(path)}{list(shape)}".encode())
        digest.update(np.concatenate(parts, axis=-1).astype("<u4").tobytes())
    return digest.hexdigest()


def rounded_sums(array: jax.Array, first: int = 0) -> np.ndarray:
    """Checksums [2, L] of the layers `first`, `first + 1`, … of a parameter; [2, 1] of a vector."""
    return to_host(rounded_sums_on(array, jnp.uint32(first), array.sharding))


def bit_checksums(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """A checksum (hex) of the bits of each array of 32-bit numbers."""
    # One program for each shape, of which an optimiser's state has few.
    sums = {name: _bit_sums(array) for name, array in arrays.items()}
    return {name: to_host(sums[name]).astype(">u4").tobytes().hex() for name in arrays}


@functools.partial(jax.jit, static_argnums=2)
def rounded_sums_on(x: jax.Array, first: jax.Array, sharding: Sharding) -> jax.Array:
    """`rounded_sums` of an array with that sharding; each device sums up its own part."""
    if not isinstance(sharding, NamedSharding):
        return _local_sums(x, first, x.shape, ())
    axes = (*sharding.spec, *(None,) * (x.ndim - len(sharding.spec)))
    is_stacked = x.ndim > 1
    names = jax.tree.leaves(axes[is_stacked:])  # of the mesh axes that split what is summed up

    def local(part: jax.Array, first: jax.Array) -> jax.Array:
        sums = _local_sums(part, first, x.shape, axes)
        return jax.lax.psum(sums, tuple(names)) if names else sums

    return jax.shard_map(
        local,
        mesh=sharding.mesh,
        in_specs=(PartitionSpec(*axes), PartitionSpec()),
        out_specs=PartitionSpec(None, axes[0] if is_stacked else None),
        check_vma=False,
    )(x, first)


def _local_sums(
    x: jax.Array, first: jax.Array, shape: tuple[int, ...], axes: Sequence[Any]
) -> jax.Array:
    """The share of a device's part `x` of an array of `shape`, split by `axes` (none: not split).

    A few rows at a time: intermediate values take four times the memory of the numbers, and there
    may be barely enough for the parameter itself.
    """
    starts = [jnp.uint32(0)] * x.ndim
    for i, axis in enumerate(axes):
        if axis is not None:
            starts[i] = jax.lax.axis_index(axis).astype(jnp.uint32) * x.shape[i]
    starts[0] += first
    *leading, width = x.shape
    num_rows = math.prod(leading)
    size = min(num_rows, max(1, NUMBERS_AT_ONCE // width))
    x_XY = x.reshape(num_rows, width)

    def add_rows(k: jax.Array, sums_2X: jax.Array) -> jax.Array:
        # Where `size` doesn't divide, the last turn computes some rows a second time.
        start = jnp.minimum(k * size, num_rows - size)
        # Without the barrier, XLA converts the whole array before the loop.
        same_XY, start = jax.lax.optimization_barrier((x_XY, start))
        part_XY = jax.lax.dynamic_slice_in_dim(same_XY, start, size)
        bits = jax.lax.bitcast_convert_type(part_XY.astype(jnp.bfloat16), jnp.uint16)
        rows = jnp.unravel_index(start + jnp.arange(size), leading) if leading else ()
        index = jnp.zeros((size,), jnp.uint32)
        for axis, row in enumerate(rows):
            index = index * shape[axis] + starts[axis] + row.astype(jnp.uint32)
        columns = starts[-1] + jnp.arange(width, dtype=jnp.uint32)
        index = index[:, None] * shape[-1] + columns[None]
        sums = _mixed_sums(bits.astype(jnp.uint32), index, (1,))
        return jax.lax.dynamic_update_slice_in_dim(sums_2X, sums, start, 1)

    zeros = jnp.zeros((2, num_rows), jnp.uint32)
    sums_2X = jax.lax.fori_loop(0, -(-num_rows // size), add_rows, zeros)
    return sums_2X.reshape(2, x.shape[0] if leading else 1, -1).sum(axis=2, dtype=jnp.uint32)


@jax.jit
def _bit_sums(x: jax.Array) -> jax.Array:
    index = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
    return _mixed_sums(jax.lax.bitcast_convert_type(x, jnp.uint32), index, None)


def _mixed_sums(bits: jax.Array, index: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """Two sums over `axes` of `bits`, weighted by a hash of each one's index in the whole array.

    Unweighted, two numbers that changed sides would go unnoticed. The weights are odd (their lowest
    bit is set), so that a change of any single bit changes the first sum.
    """
    mixed = (index ^ (index >> 15)) * jnp.uint32(0x85EBCA6B) | jnp.uint32(1)
    return jnp.stack([jnp.sum(bits * mixed, axes), jnp.sum(bits * (mixed >> 7), axes)])


def lora_sha256(model: Qwen2) -> str:
    """SHA-256 (hex) over the adapter's configuration and values; of nothing without adapter."""
    digest = hashlib.sha256()
    if model.lora is not None:
        digest.update(json.dumps(dataclasses.asdict(model.lora), sort_keys=True).encode())
    for path, leaf in sorted(nnx.to_flat_state(nnx.state(model, LoRAParam))):
        digest.update(".".join(map(str, path)).encode())
        digest.update(to_host(leaf[...]).astype(np.float32).tobytes())
    return digest.hexdigest()
