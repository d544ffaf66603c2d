"""Rotary positions and grouped-query attention over trees of tokens.

A row holds a tree in depth-first order, and a token sees its own path to the root: query q sees
key k iff k <= q < end(k), where end(k) is the first place after k's subtree (FlashMask's
column-wise form, Wang et al., arXiv 2410.01359). A plain right-padded row is the tree without a
fork. The work goes block by block with an online softmax (Dao, 2023): blocks in which no query
sees a key are skipped, forward and backward, and no array of all queries by all keys exists.

Axes: B rows, T places, N query heads, K key/value heads, H head width; for blocks: Q blocks of all
rows together, G blocks worked off side by side, S places of a block, M = S · N / K queries of a
key/value head. Scores and softmax are float32.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Far below any score, but finite: a query without any key gives a mean, not NaN.
MASKED = -1e30

BLOCK, NARROW_BLOCK, NARROW_HEAD = 128, 64, 32
"""Places of a block; heads up to that width do better with the smaller one (docs/notes.md)."""
MAX_GPU_SCORES = 2**24
"""Scores that are alive at once on a GPU (64 MiB in float32)."""


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


def tree_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    ends_BT: jax.Array | None = None,
    *,
    block: int | None = None,
    lanes: int = 1,
) -> jax.Array:
    """Attention of every place to the places before it whose subtree it lies in.

    Args:
      q_BTNH: queries, already scaled.
      ends_BT: int32, the first place after each place's subtree, at least its own successor; for
        plain rows their lengths, or None where nothing is padded.
      block: places of a block; by the heads' width without it.
      lanes: blocks of queries that are worked off side by side, at most.

    Returns: [B, T, N, H] in the values' dtype.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    if block is None:
        block = NARROW_BLOCK if H <= NARROW_HEAD else BLOCK
    block = min(block, -(-T // 8) * 8)
    num_blocks = -(-T // block)
    padding = num_blocks * block - T
    if ends_BT is None:
        ends_BT = jnp.full((B, T), T, jnp.int32)
    # Every place sees itself, whatever its end: no query is left without a key.
    ends_BT = jnp.maximum(ends_BT, jnp.arange(1, T + 1)[None])
    if padding:
        own = jnp.arange(T + 1, T + padding + 1, dtype=ends_BT.dtype)
        ends_BT = jnp.concatenate([ends_BT, jnp.broadcast_to(own, (B, padding))], axis=1)
        q_BTNH, k_BTKH, v_BTKH = (
            jnp.pad(x, ((0, 0), (0, padding), (0, 0), (0, 0))) for x in (q_BTNH, k_BTKH, v_BTKH)
        )
    num_groups = -(-B * num_blocks // lanes)
    lanes = -(-B * num_blocks // num_groups)

    def blocked(x: jax.Array) -> jax.Array:
        """[B, T, heads, H] as [Q, K, M or S, H]."""
        x = x.reshape(B * num_blocks, block, K, -1, H)
        return x.transpose(0, 2, 3, 1, 4).reshape(B * num_blocks, K, -1, H)

    plan = _plan(ends_BT, block)
    out: jax.Array = _attend(blocked(q_BTNH), blocked(k_BTKH), blocked(v_BTKH), plan, lanes)
    out = out.reshape(B, num_blocks, K, N // K, block, H).transpose(0, 1, 4, 2, 3, 5)
    return out.reshape(B, num_blocks * block, N, H)[:, :T]


def lanes_of(platform: str, num_heads: int) -> int:
    """How many blocks of queries to work off side by side.

    A GPU wants few large products, since each turn of a loop costs it a pause; CPUs and TPUs are
    better off with what stays in their caches.
    """
    if platform != "gpu":
        return 1
    return max(1, MAX_GPU_SCORES // (num_heads * BLOCK * BLOCK))


class _Plan(NamedTuple):
    """Which blocks of keys each block of queries sees, and which places within them."""

    keys_QJ: jax.Array
    """Their numbers: first the block itself, then those before it, then what is not seen."""
    counts_Q: jax.Array
    ends_QS: jax.Array
    """Of keys, as places within the row."""
    starts_Q: jax.Array
    """The first place of each block within the row."""


def _plan(ends_BT: jax.Array, block: int) -> _Plan:
    B, T = ends_BT.shape
    num_blocks = T // block
    numbers = jnp.arange(num_blocks)
    starts = block * numbers
    # A key of an earlier block that a later block sees is seen by that block's first query.
    last_BJ = ends_BT.reshape(B, num_blocks, block).max(axis=-1)
    is_seen_BIJ = (last_BJ[:, None, :] > starts[None, :, None]) & (
        numbers[None, None, :] < numbers[None, :, None]
    )
    is_itself_BIJ = jnp.broadcast_to(jnp.eye(num_blocks, dtype=bool)[None], is_seen_BIJ.shape)
    rank_BIJ = jnp.where(is_itself_BIJ, 0, jnp.where(is_seen_BIJ, 1, 2))
    keys_BIJ = jnp.argsort(rank_BIJ, axis=-1, stable=True)
    keys_BIJ = keys_BIJ + (num_blocks * jnp.arange(B))[:, None, None]
    counts_BI = 1 + is_seen_BIJ.sum(axis=-1)
    return _Plan(
        keys_BIJ.reshape(B * num_blocks, num_blocks),
        counts_BI.reshape(-1),
        ends_BT.reshape(B * num_blocks, block),
        jnp.tile(starts, B),
    )


def _grouped(tree: Any, lanes: int) -> Any:
    """Leaves [Q, …] as [groups, G, …]; queries that see nothing fill up the last."""

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, -len(x) % lanes),) + ((0, 0),) * (x.ndim - 1))
        return x.reshape(-1, lanes, *x.shape[1:])

    return jax.tree.map(split, tree)


def _ungrouped(x: jax.Array, number: int) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])[:number]


def _take(x_Q: jax.Array, numbers_G: jax.Array) -> jax.Array:
    if len(numbers_G) == 1:
        return jax.lax.dynamic_slice_in_dim(x_Q, numbers_G[0], 1)
    return x_Q[numbers_G]


def _add(x_Q: jax.Array, numbers_G: jax.Array, values_G: jax.Array) -> jax.Array:
    """`x_Q` with `values_G` added at `numbers_G`, in an order that is always the same."""
    if len(numbers_G) == 1:
        sums = jax.lax.dynamic_slice_in_dim(x_Q, numbers_G[0], 1) + values_G
        return jax.lax.dynamic_update_slice_in_dim(x_Q, sums, numbers_G[0], 0)
    is_at_GQ = jax.nn.one_hot(numbers_G, len(x_Q), dtype=x_Q.dtype)
    # By default a GPU would round what it adds to TF32.
    return x_Q + jnp.einsum("GQ,G...->Q...", is_at_GQ, values_G, precision="highest")


class _Lanes(NamedTuple):
    """Blocks of queries that go side by side."""

    keys_GJ: jax.Array
    counts_G: jax.Array
    starts_G: jax.Array

    def masked(self, scores_GKMS: jax.Array, j: jax.Array, plan: _Plan) -> jax.Array:
        """The scores against the j-th seen block of each, `MASKED` where nothing is seen."""
        G, K, _, S = scores_GKMS.shape
        numbers_G = self.keys_GJ[:, j]
        places_S = jnp.arange(S)
        queries_GS = self.starts_G[:, None] + places_S[None]
        keys_GS = _take(plan.starts_Q, numbers_G)[:, None] + places_S[None]
        ends_GS = _take(plan.ends_QS, numbers_G)
        is_seen_GSS = (keys_GS[:, None] <= queries_GS[:, :, None]) & (
            queries_GS[:, :, None] < ends_GS[:, None]
        )
        is_seen_GSS = is_seen_GSS & (j < self.counts_G)[:, None, None]
        scores = scores_GKMS.reshape(G, K, -1, S, S)
        return jnp.where(is_seen_GSS[:, None, None], scores, MASKED).reshape(scores_GKMS.shape)


def _scores(q_GKMH: jax.Array, k_GKSH: jax.Array) -> jax.Array:
    return jnp.einsum("GKMH,GKSH->GKMS", q_GKMH, k_GKSH, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    q_QKMH: jax.Array, k_QKSH: jax.Array, v_QKSH: jax.Array, plan: _Plan, lanes: int
) -> jax.Array:
    return _forward(q_QKMH, k_QKSH, v_QKSH, plan, lanes)[0]


def _forward(
    q_QKMH: jax.Array, k_QKSH: jax.Array, v_QKSH: jax.Array, plan: _Plan, lanes: int
) -> tuple[jax.Array, jax.Array]:
    """What the queries gather, and the log-sum-exp of their scores [Q, K, M]."""

    def group(_: None, inputs: tuple) -> tuple[None, tuple[jax.Array, jax.Array]]:
        q_GKMH, own = inputs[0], _Lanes(*inputs[1:])

        def step(j: jax.Array, carry: tuple) -> tuple:
            highest_GKM, total_GKM, out_GKMH = carry
            numbers_G = own.keys_GJ[:, j]
            k_GKSH, v_GKSH = _take(k_QKSH, numbers_G), _take(v_QKSH, numbers_G)
            scores_GKMS = own.masked(_scores(q_GKMH, k_GKSH), j, plan)
            now_GKM = jnp.maximum(highest_GKM, scores_GKMS.max(axis=-1))
            weights_GKMS = jnp.exp(scores_GKMS - now_GKM[..., None])
            shrink_GKM = jnp.exp(highest_GKM - now_GKM)
            gathered_GKMH = jnp.einsum(
                "GKMS,GKSH->GKMH",
                weights_GKMS.astype(v_GKSH.dtype),
                v_GKSH,
                preferred_element_type=jnp.float32,
            )
            total_GKM = total_GKM * shrink_GKM + weights_GKMS.sum(axis=-1)
            return now_GKM, total_GKM, out_GKMH * shrink_GKM[..., None] + gathered_GKMH

        start = (
            jnp.full(q_GKMH.shape[:-1], MASKED, jnp.float32),
            jnp.zeros(q_GKMH.shape[:-1], jnp.float32),
            jnp.zeros(q_GKMH.shape, jnp.float32),
        )
        highest_GKM, total_GKM, out_GKMH = jax.lax.fori_loop(0, own.counts_G.max(), step, start)
        out_GKMH = (out_GKMH / total_GKM[..., None]).astype(v_QKSH.dtype)
        return None, (out_GKMH, highest_GKM + jnp.log(total_GKM))

    inputs = _grouped((q_QKMH, plan.keys_QJ, plan.counts_Q, plan.starts_Q), lanes)
    _, (out, log_total) = jax.lax.scan(group, None, inputs)
    return _ungrouped(out, len(q_QKMH)), _ungrouped(log_total, len(q_QKMH))


def _forward_for_backward(
    q_QKMH: jax.Array, k_QKSH: jax.Array, v_QKSH: jax.Array, plan: _Plan, lanes: int
) -> tuple[jax.Array, tuple]:
    out, log_total = _forward(q_QKMH, k_QKSH, v_QKSH, plan, lanes)
    return out, (q_QKMH, k_QKSH, v_QKSH, plan, out, log_total)


def _backward(lanes: int, kept: tuple, grad_QKMH: jax.Array) -> tuple:
    q_QKMH, k_QKSH, v_QKSH, plan, out_QKMH, log_total_QKM = kept
    dots_QKM = jnp.sum(grad_QKMH.astype(jnp.float32) * out_QKMH.astype(jnp.float32), axis=-1)

    def group(carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        (q_GKMH, grad_GKMH, log_total_GKM, dots_GKM), own = inputs[:4], _Lanes(*inputs[4:])
        # Turned once for all blocks of keys: on CPU a product with a transposed left side is slow.
        q_GKHM, grad_GKHM = q_GKMH.swapaxes(2, 3), grad_GKMH.swapaxes(2, 3)

        def step(j: jax.Array, carry: tuple) -> tuple:
            dk_QKHS, dv_QKHS, dq_GKMH = carry
            numbers_G = own.keys_GJ[:, j]
            k_GKSH, v_GKSH = _take(k_QKSH, numbers_G), _take(v_QKSH, numbers_G)
            scores_GKMS = own.masked(_scores(q_GKMH, k_GKSH), j, plan)
            weights_GKMS = jnp.exp(scores_GKMS - log_total_GKM[..., None])
            dweights_GKMS = _scores(grad_GKMH, v_GKSH)
            dscores_GKMS = weights_GKMS * (dweights_GKMS - dots_GKM[..., None])
            dscores_GKMS = dscores_GKMS.astype(q_GKMH.dtype)
            product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
            dv_GKHS = product("GKHM,GKMS->GKHS", grad_GKHM, weights_GKMS.astype(q_GKMH.dtype))
            dk_GKHS = product("GKHM,GKMS->GKHS", q_GKHM, dscores_GKMS)
            dq_GKMH = dq_GKMH + product("GKMS,GKSH->GKMH", dscores_GKMS, k_GKSH)
            return _add(dk_QKHS, numbers_G, dk_GKHS), _add(dv_QKHS, numbers_G, dv_GKHS), dq_GKMH

        start = (*carry, jnp.zeros(q_GKMH.shape, jnp.float32))
        dk_QKHS, dv_QKHS, dq_GKMH = jax.lax.fori_loop(0, own.counts_G.max(), step, start)
        return (dk_QKHS, dv_QKHS), dq_GKMH.astype(q_GKMH.dtype)

    zeros = jnp.zeros_like(k_QKSH.swapaxes(2, 3), jnp.float32)
    inputs = _grouped(
        (q_QKMH, grad_QKMH, log_total_QKM, dots_QKM, plan.keys_QJ, plan.counts_Q, plan.starts_Q),
        lanes,
    )
    (dk_QKHS, dv_QKHS), dq = jax.lax.scan(group, (zeros, zeros), inputs)
    dk_QKSH, dv_QKSH = dk_QKHS.swapaxes(2, 3), dv_QKHS.swapaxes(2, 3)
    dq_QKMH = _ungrouped(dq, len(q_QKMH))
    return dq_QKMH, dk_QKSH.astype(k_QKSH.dtype), dv_QKSH.astype(v_QKSH.dtype), None


_attend.defvjp(_forward_for_backward, _backward)


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
