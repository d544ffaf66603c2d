"""What tells one set of weights from another: of the base model, and of the adapter on it."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill.model.lora import LoRAParam
from emodistill.model.qwen2 import Qwen2, flat_state


def base_fingerprint(model: Qwen2) -> str:
    """SHA-256 (hex) over the architecture and a checksum of every base weight, LoRA excluded.

    The weights are rounded to bfloat16 first, so that a checkpoint has the same fingerprint in
    whatever dtype, and on whatever mesh, it was loaded. The checksums are two weighted sums of
    the bit patterns per parameter and layer, computed where the weights live: they tell models
    apart, they do not withstand forgery.
    """
    leaves = flat_state(nnx.state(model, nnx.Param))
    places = sorted(leaves)
    sums = _checksums([leaves[place][...] for place in places])
    digest = hashlib.sha256()
    architecture = dataclasses.asdict(model.config)
    architecture.pop("eos_token_ids")
    digest.update(json.dumps(architecture, sort_keys=True).encode())
    for place, checksum in zip(places, sums, strict=True):
        shape = leaves[place].shape
        digest.update(f"{'.'.join(place)}{list(shape)}".encode())
        digest.update(np.asarray(checksum).astype("<u4").tobytes())
    return digest.hexdigest()


@jax.jit
def _checksums(arrays: list[jax.Array]) -> list[jax.Array]:
    def one(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
        index = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        axes = tuple(range(min(1, x.ndim - 1), x.ndim))
        mixed = (index ^ (index >> 15)) * jnp.uint32(0x85EBCA6B) | jnp.uint32(1)
        return jnp.stack([jnp.sum(bits * mixed, axes), jnp.sum(bits * (mixed >> 7), axes)])

    return [one(x) for x in arrays]


def lora_sha256(model: Qwen2) -> str:
    """SHA-256 (hex) over the adapter's configuration and values; of nothing without adapter."""
    digest = hashlib.sha256()
    if model.lora is not None:
        digest.update(json.dumps(dataclasses.asdict(model.lora), sort_keys=True).encode())
    leaves = flat_state(nnx.state(model, LoRAParam))
    for place in sorted(leaves):
        digest.update(".".join(place).encode())
        digest.update(np.asarray(leaves[place][...], np.float32).tobytes())
    return digest.hexdigest()
