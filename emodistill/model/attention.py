"""Rotary positions and causal grouped-query attention; scores and softmax in float32.

Axes: B rows, T queries, S keys, N query heads, K key/value heads, G = N / K, H head width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Far below any score, but finite: a query without any key gives a mean, not NaN.
MASKED = -1e30

# Queries are taken in segments, and the keys after a segment are never touched: nearly half of the
# scores are saved. Each segment costs compile time, hence the bound on their number; long ones are
# worked off in blocks by a loop, so that few scores are alive at once (256 MiB in float32).
QUERY_BLOCK = 256
MAX_SEGMENTS = 8
MAX_SCORES = 2**26


class Rope(NamedTuple):
    """Cosines and sines of the rotary angles, each [B, T, 1, H / 2] float32."""

    cos: jax.Array
    sin: jax.Array


def rope_angles(positions_BT: jax.Array, head_dim: int, theta: float) -> Rope:
    """The rotary angles of `positions_BT` in Hugging Face's half-split convention."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    inverse_frequencies = 1.0 / theta**exponents
    angles = (
        positions_BT.astype(jnp.float32)[:, :, None, None] * inverse_frequencies[None, None, None]
    )
    return Rope(jnp.cos(angles), jnp.sin(angles))


def rotate(x_BTNH: jax.Array, rope: Rope) -> jax.Array:
    """Turn the pairs (i, i + H/2) of each head by the angles of `rope`; float32 out."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(
        [first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin], axis=-1
    )


def causal_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    mask: jax.Array | None = None,
    *,
    remat: bool = False,
    max_scores: int = MAX_SCORES,
) -> jax.Array:
    """Attention of every position to itself and what comes before.

    Args:
      q_BTNH: queries, already scaled.
      mask: bool; [B, T] leaves out keys (padding) beside the causal rule, [B, T, T] replaces the
        causal rule by itself; None is the causal rule alone.
      remat: compute the scores again in the backward pass instead of keeping them.
      max_scores: scores of all rows and heads that are alive at once.

    Returns: [B, T, N, H] in the values' dtype.
    """
    num_tokens = q_BTNH.shape[1]
    if mask is not None and mask.ndim == 3:
        return _attend(q_BTNH, k_BTKH, v_BTKH, mask)
    segment = max(QUERY_BLOCK, math.ceil(num_tokens / MAX_SEGMENTS))
    outputs = []
    for start in range(0, num_tokens, segment):
        end = min(start + segment, num_tokens)
        keys = k_BTKH[:, :end], v_BTKH[:, :end], None if mask is None else mask[:, :end]
        outputs.append(_causal_segment(q_BTNH[:, start:end], start, *keys, remat, max_scores))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def _causal_segment(
    q_BTNH: jax.Array,
    start: int,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BS: jax.Array | None,
    remat: bool,
    max_scores: int,
) -> jax.Array:
    """The queries at `start`, `start + 1`, … over all keys up to the last of them."""
    B, T, N, _ = q_BTNH.shape
    S = k_BSKH.shape[1]

    def attend(q_BTNH: jax.Array, first: jax.Array | int) -> jax.Array:
        queries_T = first + jnp.arange(q_BTNH.shape[1])
        visible = (queries_T[:, None] >= jnp.arange(S)[None, :])[None]
        if mask_BS is not None:
            visible = visible & mask_BS[:, None]
        return _attend(q_BTNH, k_BSKH, v_BSKH, visible)

    if remat:
        attend = jax.checkpoint(attend)
    block = max(1, max_scores // (B * N * S))
    if block >= T:
        return attend(q_BTNH, start)
    num_blocks = math.ceil(T / block)
    block = math.ceil(T / num_blocks)
    padded = jnp.pad(q_BTNH, ((0, 0), (0, num_blocks * block - T), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(B, num_blocks, block, N, -1), 1, 0)
    firsts = start + block * jnp.arange(num_blocks)
    out = jax.lax.map(lambda block: attend(*block), (blocks, firsts))
    return jnp.moveaxis(out, 0, 1).reshape(B, num_blocks * block, N, -1)[:, :T]


def _attend(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, v_BSKH).reshape(B, T, N, H)


def cached_attention(
    q_B1NH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, mask_BS: jax.Array
) -> jax.Array:
    """Attention of one new query per row to a cache that is stored head by head.

    Args:
      q_B1NH: queries, already scaled.
      mask_BS: bool, the filled and visible slots of each row.

    Returns: [B, 1, N, H] in the values' dtype.
    """
    B, _, N, H = q_B1NH.shape
    K = k_BKSH.shape[1]
    q_BKGH = q_B1NH.reshape(B, K, N // K, H)
    scores = jnp.einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_BS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BKSH.dtype)
    return jnp.einsum("BKGS,BKSH->BKGH", weights, v_BKSH).reshape(B, 1, N, H)
