"""Rotary positions and grouped-query attention over trees of tokens.

A row holds a tree in depth-first order, and a token sees its own path to the root: query q sees
key k iff k <= q < end(k), where end(k) is the first position after the subtree of k (FlashMask's
column-wise form, Wang et al., arXiv 2410.01359). A plain right-padded row is a tree without a fork.

The rows are cut into blocks, and each query block goes through its key blocks with an online
softmax (Dao, 2023). No array of all queries by all keys exists, which at 16,384 tokens would be 30
GB a layer of a 7B model, and key blocks of which no query sees a key are skipped, forward and
backward: with masks alone, a row of many dialogues would cost as much as one dialogue of its
length.

Axes: B rows, T positions, N query heads, K key/value heads, H head width; Q blocks of all rows
together, J key blocks of a query block, P positions of a block, E = P · N / K queries of a block
that share a key/value head; G query blocks of a group. Scores, softmax and sums are float32, since
bfloat16 has 8 bits: the sum over a few hundred keys would lose its last ones.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

MASKED = -1e30
"""Far below any score, but finite: the blocks that fill up a group see no key, and with -inf they
would compute inf - inf = NaN."""

BLOCK_SIZE, NARROW_BLOCK_SIZE, NARROW_HEAD = 128, 64, 32
"""Larger blocks skip less of the mask, smaller ones make smaller matrix products. 128 was the
fastest, 64 for heads up to 32 wide (docs/notes.md)."""
MAX_GPU_SCORES = 2**24
"""Scores that a GPU holds at once (64 MiB in float32): enough to fill it, little beside a model."""


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


def group_size_for(platform: str, num_heads: int) -> int:
    """How many query blocks to work on side by side.

    A GPU wants few large products, since the host launches kernels for each turn of a loop; a CPU
    or TPU is better off with one block, which stays in its cache.
    """
    if platform != "gpu":
        return 1
    return max(1, MAX_GPU_SCORES // (num_heads * BLOCK_SIZE * BLOCK_SIZE))


def tree_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    ends_BT: jax.Array | None = None,
    *,
    block_size: int | None = None,
    group_size: int = 1,
) -> jax.Array:
    """Attention of every position to the earlier ones whose subtree it lies in.

    Args:
      q_BTNH: queries, already scaled.
      ends_BT: int32, the first position after the subtree of each position, at least its own
        successor; for plain rows their lengths, or None where nothing is padded.
      block_size: positions of a block; chosen by the heads' width without it.
      group_size: how many query blocks are worked on side by side, at most.

    Returns: [B, T, N, H] in the values' dtype.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    chex.assert_shape((k_BTKH, v_BTKH), (B, T, K, H))
    if block_size is None:
        block_size = NARROW_BLOCK_SIZE if H <= NARROW_HEAD else BLOCK_SIZE
    P = min(block_size, -(-T // 8) * 8)
    num_blocks = -(-T // P)
    if ends_BT is None:
        ends_BT = jnp.full((B, T), T, jnp.int32)
    # The last block is filled up; as padding may have any end, every position is made to see
    # itself, so that no query is left without a key.
    padding = ((0, 0), (0, num_blocks * P - T))
    ends_BT = jnp.maximum(jnp.pad(ends_BT, padding), jnp.arange(1, num_blocks * P + 1)[None])

    def blocked(x: jax.Array) -> jax.Array:
        """[B, T, heads, H] as [Q, K, E or P, H]: queries that share a key head are one product."""
        x = jnp.pad(x, (*padding, (0, 0), (0, 0)))
        x = x.reshape(B * num_blocks, P, K, -1, H).transpose(0, 2, 3, 1, 4)
        return x.reshape(B * num_blocks, K, -1, H)

    # Groups of equal size, so that the last one is not nearly empty.
    num_groups = -(-B * num_blocks // group_size)
    group_size = -(-B * num_blocks // num_groups)
    block_map = _block_map(ends_BT, P)
    out: Any = _attend(blocked(q_BTNH), blocked(k_BTKH), blocked(v_BTKH), block_map, group_size)
    out = out.reshape(B, num_blocks, K, N // K, P, H).transpose(0, 1, 4, 2, 3, 5)
    return out.reshape(B, num_blocks * P, N, H)[:, :T]


class _BlockMap(NamedTuple):
    """Which key blocks each query block sees, and which positions within them."""

    key_blocks_QJ: jax.Array
    """Their numbers: first the query block itself, then the earlier ones that it sees, then all
    others.

    Its own block comes first because there every query has a key, itself: from the first turn on
    the running maximum is a true score, and a later block without one for some query adds
    exp(-1e30) = 0."""
    num_seen_Q: jax.Array
    """How many of them it sees."""
    ends_QP: jax.Array
    """The ends of the positions of each block."""
    starts_Q: jax.Array
    """The first position of each block within its row."""


def _block_map(ends_BT: jax.Array, block_size: int) -> _BlockMap:
    B, T = ends_BT.shape
    num_blocks = T // block_size
    numbers = jnp.arange(num_blocks)
    starts = block_size * numbers
    # A subtree that reaches into a later block contains that block's first position, so that the
    # last end of a key block decides alone who sees any of it.
    last_end_BJ = ends_BT.reshape(B, num_blocks, block_size).max(axis=-1)
    is_seen_BIJ = (last_end_BJ[:, None, :] > starts[None, :, None]) & (
        numbers[None, None, :] < numbers[None, :, None]
    )
    is_itself_BIJ = jnp.broadcast_to(jnp.eye(num_blocks, dtype=bool)[None], is_seen_BIJ.shape)
    rank_BIJ = jnp.where(is_itself_BIJ, 0, jnp.where(is_seen_BIJ, 1, 2))
    key_blocks_BIJ = jnp.argsort(rank_BIJ, axis=-1, stable=True)
    key_blocks_BIJ = key_blocks_BIJ + (num_blocks * jnp.arange(B))[:, None, None]
    return _BlockMap(
        key_blocks_BIJ.reshape(B * num_blocks, num_blocks),
        1 + is_seen_BIJ.sum(axis=-1).reshape(-1),
        ends_BT.reshape(B * num_blocks, block_size),
        jnp.tile(starts, B),
    )


def _grouped(tree: Any, group_size: int) -> Any:
    """Leaves [Q, …] as [groups, G, …]; the last group is filled up with blocks that see nothing."""

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, -len(x) % group_size),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(-1, group_size, *x.shape[1:])

    return jax.tree.map(split, tree)


def _ungrouped(x: jax.Array, num_blocks: int) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])[:num_blocks]


def _take(x_Q: jax.Array, blocks_G: jax.Array) -> jax.Array:
    # A slice is a view where a gather, of even one block, would be a copy.
    if len(blocks_G) == 1:
        return jax.lax.dynamic_slice_in_dim(x_Q, blocks_G[0], 1)
    return x_Q[blocks_G]


def _add(x_Q: jax.Array, blocks_G: jax.Array, values_G: jax.Array) -> jax.Array:
    """`x_Q` with `values_G` added at `blocks_G`, where a block may come several times.

    A scatter-add would use atomic operations on a GPU, whose order changes from run to run, and
    with it the last bits of the gradient; a product with a one-hot matrix always adds in the same
    order.
    """
    if len(blocks_G) == 1:
        sums = jax.lax.dynamic_slice_in_dim(x_Q, blocks_G[0], 1) + values_G
        return jax.lax.dynamic_update_slice_in_dim(x_Q, sums, blocks_G[0], 0)
    is_at_GQ = jax.nn.one_hot(blocks_G, len(x_Q), dtype=x_Q.dtype)
    # By default a GPU would round what it adds to TF32, 11 bits.
    return x_Q + jnp.einsum("GQ,G...->Q...", is_at_GQ, values_G, precision="highest")


def _scores(
    q_GKEH: jax.Array, k_GKPH: jax.Array, own: _BlockMap, j: jax.Array, block_map: _BlockMap
) -> jax.Array:
    """Scores of a group's queries against the j-th key block of each, `MASKED` where nothing is
    seen.

    Args:
      own: the rows of `block_map` that belong to the query blocks of the group.
    """
    G, K, E, _ = q_GKEH.shape
    P = k_GKPH.shape[2]
    blocks_G, positions_P = own.key_blocks_QJ[:, j], jnp.arange(P)
    queries_GP = own.starts_Q[:, None] + positions_P[None]
    keys_GP = _take(block_map.starts_Q, blocks_G)[:, None] + positions_P[None]
    ends_GP = _take(block_map.ends_QP, blocks_G)
    is_seen_GPP = (keys_GP[:, None] <= queries_GP[:, :, None]) & (
        queries_GP[:, :, None] < ends_GP[:, None]
    )
    # A group turns as often as its block that sees most; the others have nothing left to see then.
    is_seen_GPP = is_seen_GPP & (j < own.num_seen_Q)[:, None, None]
    scores_GKEP = _dot("GKEH,GKPH->GKEP", q_GKEH, k_GKPH).reshape(G, K, -1, P, P)
    return jnp.where(is_seen_GPP[:, None, None], scores_GKEP, MASKED).reshape(G, K, E, P)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


# By itself, JAX would keep the scores of every turn of the loop for the backward pass: all queries
# by all keys after all (and it can't differentiate a loop whose number of turns the mask decides).
# So the backward pass is written out: it computes the scores again from the log-sum-exp of each
# query.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    q_QKEH: jax.Array, k_QKPH: jax.Array, v_QKPH: jax.Array, block_map: _BlockMap, group_size: int
) -> jax.Array:
    return _forward(q_QKEH, k_QKPH, v_QKPH, block_map, group_size)[0]


def _forward(
    q_QKEH: jax.Array, k_QKPH: jax.Array, v_QKPH: jax.Array, block_map: _BlockMap, group_size: int
) -> tuple[jax.Array, tuple]:
    """What the queries gather, and what the backward pass needs."""

    def group(_: None, inputs: tuple) -> tuple[None, tuple[jax.Array, jax.Array]]:
        q_GKEH, own = inputs

        def visit(j: jax.Array, carry: tuple) -> tuple:
            """Take in the j-th key block: earlier sums shrink where it holds a higher score."""
            highest_GKE, total_GKE, out_GKEH = carry
            k_GKPH, v_GKPH = (_take(x, own.key_blocks_QJ[:, j]) for x in (k_QKPH, v_QKPH))
            scores_GKEP = _scores(q_GKEH, k_GKPH, own, j, block_map)
            new_highest_GKE = jnp.maximum(highest_GKE, scores_GKEP.max(axis=-1))
            weights_GKEP = jnp.exp(scores_GKEP - new_highest_GKE[..., None])
            shrink_GKE = jnp.exp(highest_GKE - new_highest_GKE)
            gathered_GKEH = _dot("GKEP,GKPH->GKEH", weights_GKEP.astype(v_GKPH.dtype), v_GKPH)
            total_GKE = total_GKE * shrink_GKE + weights_GKEP.sum(axis=-1)
            return new_highest_GKE, total_GKE, out_GKEH * shrink_GKE[..., None] + gathered_GKEH

        start = (
            jnp.full(q_GKEH.shape[:-1], MASKED, jnp.float32),
            jnp.zeros(q_GKEH.shape[:-1], jnp.float32),
            jnp.zeros(q_GKEH.shape, jnp.float32),
        )
        # Here blocks are skipped: the loop ends with the last key block that the group sees.
        highest_GKE, total_GKE, out_GKEH = jax.lax.fori_loop(0, own.num_seen_Q.max(), visit, start)
        out_GKEH = (out_GKEH / total_GKE[..., None]).astype(v_QKPH.dtype)
        return None, (out_GKEH, highest_GKE + jnp.log(total_GKE))

    _, grouped = jax.lax.scan(group, None, _grouped((q_QKEH, block_map), group_size))
    out_QKEH, log_total_QKE = (_ungrouped(x, len(q_QKEH)) for x in grouped)
    return out_QKEH, (q_QKEH, k_QKPH, v_QKPH, block_map, out_QKEH, log_total_QKE)


def _backward(group_size: int, residuals: tuple, grad_QKEH: jax.Array) -> tuple:
    q_QKEH, k_QKPH, v_QKPH, block_map, out_QKEH, log_total_QKE = residuals
    # The sum over keys in the softmax's derivative is that of gradient and output, known already.
    dots_QKE = jnp.sum(grad_QKEH.astype(jnp.float32) * out_QKEH.astype(jnp.float32), axis=-1)

    def group(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        q_GKEH, grad_GKEH, log_total_GKE, dots_GKE, own = inputs
        # Turned once for all key blocks: a product with a transposed left side takes twice as long
        # on a CPU, and XLA would turn both again in each of the loop's.
        q_GKHE, grad_GKHE = q_GKEH.swapaxes(2, 3), grad_GKEH.swapaxes(2, 3)

        def visit(j: jax.Array, carry: tuple) -> tuple:
            dk_QKHP, dv_QKHP, dq_GKEH = carry
            blocks_G = own.key_blocks_QJ[:, j]
            k_GKPH, v_GKPH = _take(k_QKPH, blocks_G), _take(v_QKPH, blocks_G)
            scores_GKEP = _scores(q_GKEH, k_GKPH, own, j, block_map)
            weights_GKEP = jnp.exp(scores_GKEP - log_total_GKE[..., None])
            dweights_GKEP = _dot("GKEH,GKPH->GKEP", grad_GKEH, v_GKPH)
            dscores_GKEP = weights_GKEP * (dweights_GKEP - dots_GKE[..., None])
            dscores_GKEP = dscores_GKEP.astype(q_GKEH.dtype)
            dv_GKHP = _dot("GKHE,GKEP->GKHP", grad_GKHE, weights_GKEP.astype(q_GKEH.dtype))
            dk_GKHP = _dot("GKHE,GKEP->GKHP", q_GKHE, dscores_GKEP)
            dq_GKEH = dq_GKEH + _dot("GKEP,GKPH->GKEH", dscores_GKEP, k_GKPH)
            return _add(dk_QKHP, blocks_G, dk_GKHP), _add(dv_QKHP, blocks_G, dv_GKHP), dq_GKEH

        start = (*carry, jnp.zeros(q_GKEH.shape, jnp.float32))
        dk_QKHP, dv_QKHP, dq_GKEH = jax.lax.fori_loop(0, own.num_seen_Q.max(), visit, start)
        return (dk_QKHP, dv_QKHP), dq_GKEH.astype(q_GKEH.dtype)

    # The gradients of keys and values add up over all queries that see them, and lie turned, as the
    # products give them: one turn at the end instead of one for each pair of blocks.
    zeros = jnp.zeros_like(k_QKPH.swapaxes(2, 3), jnp.float32)
    inputs = _grouped((q_QKEH, grad_QKEH, log_total_QKE, dots_QKE, block_map), group_size)
    (dk_QKHP, dv_QKHP), dq = jax.lax.scan(group, (zeros, zeros), inputs)
    dk_QKPH = dk_QKHP.swapaxes(2, 3).astype(k_QKPH.dtype)
    dv_QKPH = dv_QKHP.swapaxes(2, 3).astype(v_QKPH.dtype)
    return _ungrouped(dq, len(q_QKEH)), dk_QKPH, dv_QKPH, None


_attend.defvjp(_forward, _backward)
