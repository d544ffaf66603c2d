"""Attention of new tokens to what a slot's cache holds, block by block.

Only as many blocks of the cache are read as the longest of the rows needs, with the online softmax
of `attention`. A row that needs fewer sees nothing in the others, which then change none of its
bits: exp(-1e30 - maximum) is 0, and the maximum stays. So a row's result depends neither on how
long its neighbours are nor on how much room the cache has.

Axes: G rows, K key/value heads, E queries of a row that share a key/value head, H head width,
P positions of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from emodistill.model.attention import MASKED


def cache_block() -> int:
    """Positions that are read at once: fewer make smaller products, more read further beyond the
    longest row. On a processor the reading takes time, on a GPU the number of kernels.
    """
    return 128 if jax.default_backend() == "cpu" else 256


ReadBlock = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Keys [G, K, H, P] and values [G, K, P, H] of the j-th block of each row.

Keys lie with their positions last, since the product with few queries is faster so
(docs/notes.md)."""


def cached_attention(
    q_GKEH: jax.Array, positions_GE: jax.Array, read: ReadBlock, num_blocks: jax.Array
) -> jax.Array:
    """Attention of each query to the positions of its row's cache up to its own.

    Args:
      q_GKEH: queries, already scaled.
      positions_GE: where in its row each query stands; what the cache holds behind it is not seen.
      num_blocks: how many blocks are read, at least up to the furthest position that counts.

    Returns: [G, K, E, H] in the queries' dtype.
    """
    G, K, E, H = q_GKEH.shape
    block = cache_block()

    def visit(
        j: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        maximum_GKE, total_GKE, sum_GKEH = carry
        k_GKHP, v_GKPH = read(j)
        keys_P = j * block + jnp.arange(block)
        is_seen_GEP = keys_P[None, None] <= positions_GE[:, :, None]
        scores_GKEP = jnp.einsum(
            "GKEH,GKHP->GKEP", q_GKEH, k_GKHP, preferred_element_type=jnp.float32
        )
        scores_GKEP = jnp.where(is_seen_GEP[:, None], scores_GKEP, MASKED)
        new_GKE = jnp.maximum(maximum_GKE, scores_GKEP.max(axis=-1))
        weights_GKEP = jnp.exp(scores_GKEP - new_GKE[..., None])
        shrink_GKE = jnp.exp(maximum_GKE - new_GKE)
        gathered_GKEH = jnp.einsum(
            "GKEP,GKPH->GKEH",
            weights_GKEP.astype(v_GKPH.dtype),
            v_GKPH,
            preferred_element_type=jnp.float32,
        )
        return (
            new_GKE,
            total_GKE * shrink_GKE + weights_GKEP.sum(axis=-1),
            sum_GKEH * shrink_GKE[..., None] + gathered_GKEH,
        )

    start = (
        jnp.full((G, K, E), MASKED, jnp.float32),
        jnp.zeros((G, K, E), jnp.float32),
        jnp.zeros((G, K, E, H), jnp.float32),
    )
    # Every query sees position 0, so that the maximum is a true score from the first block on.
    _, total_GKE, sum_GKEH = jax.lax.fori_loop(0, num_blocks, visit, start)
    return (sum_GKEH / total_GKE[..., None]).astype(q_GKEH.dtype)
