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

# Queries are taken in blocks, and the keys after a block are never touched: nearly half of the
# scores are saved. Each block costs compile time, hence the bound on their number.
QUERY_BLOCK = 256
MAX_QUERY_BLOCKS = 8


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
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Attention of every position to itself and what comes before.

    Args:
      q_BTNH: queries, already scaled.
      mask: bool; [B, T] leaves out keys (padding) beside the causal rule, [B, T, T] replaces the
        causal rule by itself; None is the causal rule alone.

    Returns: [B, T, N, H] in the values' dtype.
    """
    num_tokens = q_BTNH.shape[1]
    if mask is not None and mask.ndim == 3:
        return _attend(q_BTNH, k_BTKH, v_BTKH, mask)
    block = max(QUERY_BLOCK, math.ceil(num_tokens / MAX_QUERY_BLOCKS))
    outputs = []
    for start in range(0, num_tokens, block):
        end = min(start + block, num_tokens)
        visible_TS = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]
        visible = visible_TS[None] if mask is None else visible_TS[None] & mask[:, None, :end]
        outputs.append(_attend(q_BTNH[:, start:end], k_BTKH[:, :end], v_BTKH[:, :end], visible))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


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
