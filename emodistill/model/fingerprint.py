"""What tells one set of weights from another: of the base model, of an adapter, of a checkpoint.

Checksums are two weighted sums of an array's bit patterns, computed where the array lives and the
same on every mesh. They tell weights apart and find damage; they do not withstand forgery.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill.model.config import ParamPath, Qwen2Config
from emodistill.model.lora import LoRAParam
from emodistill.model.processes import to_host
from emodistill.model.qwen2 import Qwen2, flat_state


def base_fingerprint(model: Qwen2) -> str:
    """SHA-256 (hex) over the architecture and a checksum of every base weight, LoRA excluded.

    The weights are rounded to bfloat16 first, so that a checkpoint has the same fingerprint in
    whatever dtype, and on whatever mesh, it was loaded. A quantized model has that of the weights
    that it was made from.
    """
    if model.fingerprint is not None:
        return model.fingerprint
    leaves = flat_state(nnx.state(model, nnx.Param))
    return fingerprint_of_sums(
        model.config,
        {place: (leaf.shape, [rounded_sums(leaf[...])]) for place, leaf in leaves.items()},
    )


def fingerprint_of_sums(
    config: Qwen2Config,
    params: Mapping[ParamPath, tuple[tuple[int, ...], Sequence[np.ndarray]]],
) -> str:
    """The fingerprint, from each parameter's shape and the `rounded_sums` of its parts in order."""
    digest = hashlib.sha256()
    architecture = dataclasses.asdict(config)
    architecture.pop("eos_token_ids")
    digest.update(json.dumps(architecture, sort_keys=True).encode())
    for place in sorted(params):
        shape, parts = params[place]
        digest.update(f"{'.'.join(place)}{list(shape)}".encode())
        digest.update(np.concatenate(parts, axis=-1).astype("<u4").tobytes())
    return digest.hexdigest()


def rounded_sums(array: jax.Array, first: int = 0) -> np.ndarray:
    """Checksums [2, L] of the layers `first`, `first + 1`, … of a parameter; [2, 1] of a vector."""
    return to_host(_rounded_sums(array, jnp.uint32(first)))


def bit_checksums(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
    """A checksum (hex) of the bits of each array of 32-bit numbers."""
    sums = _bit_sums(list(arrays.values()))
    return {
        name: to_host(checksum).astype(">u4").tobytes().hex()
        for name, checksum in zip(arrays, sums, strict=True)
    }


@jax.jit
def _rounded_sums(x: jax.Array, first: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    axes = tuple(range(min(1, x.ndim - 1), x.ndim))
    return _sums(bits, axes, first).reshape(2, -1)


@jax.jit
def _bit_sums(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_sums(jax.lax.bitcast_convert_type(x, jnp.uint32), None, jnp.uint32(0)) for x in arrays]


def _sums(bits: jax.Array, axes: tuple[int, ...] | None, first: jax.Array) -> jax.Array:
    """Over `axes`, of an array whose leading index begins at `first`."""
    index = jnp.zeros(bits.shape, jnp.uint32) + first.reshape((1,) * bits.ndim)
    for axis, size in enumerate(bits.shape):
        scale = jnp.uint32(1 if axis == 0 else size)
        index = index * scale + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = (index ^ (index >> 15)) * jnp.uint32(0x85EBCA6B) | jnp.uint32(1)
    return jnp.stack([jnp.sum(bits * mixed, axes), jnp.sum(bits * (mixed >> 7), axes)])


def lora_sha256(model: Qwen2) -> str:
    """SHA-256 (hex) over the adapter's configuration and values; of nothing without adapter."""
    digest = hashlib.sha256()
    if model.lora is not None:
        digest.update(json.dumps(dataclasses.asdict(model.lora), sort_keys=True).encode())
    leaves = flat_state(nnx.state(model, LoRAParam))
    for place in sorted(leaves):
        digest.update(".".join(place).encode())
        digest.update(to_host(leaves[place][...]).astype(np.float32).tobytes())
    return digest.hexdigest()
