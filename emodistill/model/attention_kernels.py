"""Tree attention as GPU kernels: one for the forward pass, two for the backward pass.

The same function as `attention.tree_attention`, which is the reference and the way of CPUs and
TPUs: query q sees key k iff k <= q < end(k). XLA makes some thirty small kernels of every turn of
that one's loops; here a whole pass over a layer is one launch (Pallas, by way of Triton, on NVIDIA
GPUs from Ampere on). No array of queries by keys exists, and blocks of keys of which no query of a
block sees one are never read.

Each program of a kernel works on a block of queries (or, for the gradients of keys and values, a
block of keys) of one row and one query head:

    forward     for every block of keys that the queries see: online softmax; keeps the log-sum-exp
    dq          the same loop; scores are computed again from the log-sum-exp
    dk, dv      for every block of queries that sees the keys

Axes: B rows, T positions, N query heads, K key/value heads, E = N / K queries that share a
key/value head, H head width; P queries of a block, S keys of a block; Q query blocks and J key
blocks of a row. Scores, softmax and sums are float32; products take bfloat16 where the heads are.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

MASKED = -1e30
"""The score of a key that is not seen."""
LOWEST = -1e20
"""Where the running maximum starts: far below any score, and far above `MASKED`. A query whose
first blocks hold no key that it sees would otherwise have `MASKED` as its maximum, and weigh all of
those keys with exp(0) = 1."""
LOG2_E = math.log2(math.e)
"""GPUs have an instruction for 2^x, not for e^x: scores are scaled once by this."""


class Schedule(NamedTuple):
    """How the compiler is to schedule a kernel."""

    num_warps: int
    num_stages: int
    """Blocks that are on their way from memory at the same time."""


class KernelShapes(NamedTuple):
    """How the kernels cut a row: what fits into a GPU's shared memory and registers."""

    num_queries: int
    """Queries of a block, forwards and for the gradient of queries, which share a plan."""
    num_keys: int
    num_dkv_queries: int
    """Queries of a block where the gradients of keys and values are computed."""
    forward: Schedule
    dq: Schedule
    dkv: Schedule

    @property
    def multiple(self) -> int:
        """What the positions of a row must be a multiple of."""
        return math.lcm(*self[:3])


LARGE = KernelShapes(128, 64, 64, Schedule(8, 3), Schedule(8, 2), Schedule(8, 2))
"""For GPUs with 160 KiB of shared memory a block and more: A100, H100. With four warps the last of
them spills registers on an A100."""
SMALL = KernelShapes(128, 64, 64, Schedule(8, 2), Schedule(8, 1), Schedule(8, 1))
"""For those with 99 KiB: RTX 3090 and 4090, L40S, A10G."""
LARGE_MEMORY = 160 * 1024


class SeenBlocks(NamedTuple):
    """Which blocks see which, by row: computed once for all layers and passes."""

    ends_BT: jax.Array
    key_blocks_BQJ: jax.Array
    """Numbers of the key blocks that a query block sees, then those of all others."""
    num_seen_BQ: jax.Array
    last_ends_BJ: jax.Array
    """The last end of a key block's positions."""


def shapes_for(device: Any) -> KernelShapes:
    """What fits into the shared memory of `device`, which need not be here."""
    room = getattr(device, "shared_memory_per_block_optin", 0)
    return LARGE if room >= LARGE_MEMORY else SMALL


def seen_blocks(ends_BT: jax.Array, shapes: KernelShapes) -> SeenBlocks:
    """The plan of the kernels for rows whose subtrees end at `ends_BT`.

    Rows are filled up to whole blocks with positions that see themselves alone.
    """
    B, T = ends_BT.shape
    filled = -(-T // shapes.multiple) * shapes.multiple
    # As padding may have any end, every position is made to see itself: a query without any key
    # would divide by zero. An end beyond the row would send the loop over queries past its arrays.
    ends_BT = jnp.pad(ends_BT, ((0, 0), (0, filled - T)))
    ends_BT = jnp.clip(ends_BT, jnp.arange(1, filled + 1)[None], filled)
    num_queries, num_keys = shapes[:2]
    first_queries = jnp.arange(0, filled, num_queries)
    first_keys = jnp.arange(0, filled, num_keys)
    # A subtree that reaches into a later block contains that block's first position, so that the
    # last end of a key block decides alone who sees any of it.
    last_ends_BJ = ends_BT.reshape(B, -1, num_keys).max(axis=-1)
    is_seen_BQJ = (last_ends_BJ[:, None, :] > first_queries[None, :, None]) & (
        first_keys[None, None, :] < first_queries[None, :, None] + num_queries
    )
    key_blocks_BQJ = jnp.argsort(~is_seen_BQJ, axis=-1, stable=True).astype(jnp.int32)
    return SeenBlocks(ends_BT, key_blocks_BQJ, is_seen_BQJ.sum(-1, dtype=jnp.int32), last_ends_BJ)


def kernel_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    seen: SeenBlocks,
    *,
    shapes: KernelShapes,
    interpret: bool = False,
) -> jax.Array:
    """Attention of every position to the earlier ones whose subtree it lies in.

    Args:
      q_BTNH: queries, already scaled.
      seen: of `seen_blocks` with the same shapes.
      interpret: run the kernels step by step in JAX, on any device; for tests.

    Returns: [B, T, N, H] in the values' dtype.
    """
    B, T, _, H = q_BTNH.shape
    chex.assert_shape((k_BTKH, v_BTKH), (B, T, k_BTKH.shape[2], H))
    missing = seen.ends_BT.shape[1] - T
    if missing:
        padding = ((0, 0), (0, missing), (0, 0), (0, 0))
        q_BTNH, k_BTKH, v_BTKH = (jnp.pad(x, padding) for x in (q_BTNH, k_BTKH, v_BTKH))
    return _attend(q_BTNH, k_BTKH, v_BTKH, seen, shapes, interpret)[:, :T]


# JAX can't differentiate a kernel; nor should it, since it would keep all weights.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    seen: SeenBlocks,
    shapes: KernelShapes,
    interpret: bool,
) -> jax.Array:
    return _forward(q_BTNH, k_BTKH, v_BTKH, seen, shapes, interpret)[0]


def _forward(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    seen: SeenBlocks,
    shapes: KernelShapes,
    interpret: bool,
) -> tuple[jax.Array, tuple]:
    B, T, N, _ = q_BTNH.shape
    specs = _Specs(q_BTNH, k_BTKH, shapes)
    out_BTNH, lse_BNT = _call(
        functools.partial(_forward_kernel, shapes=shapes),
        "tree_attention_forward",
        specs.query_grid,
        [specs.queries, specs.keys, specs.keys, specs.plan],
        [specs.queries, specs.query_numbers],
        [
            jax.ShapeDtypeStruct(q_BTNH.shape, v_BTKH.dtype),
            jax.ShapeDtypeStruct((B, N, T), jnp.float32),
        ],
        shapes.forward,
        interpret,
    )(q_BTNH, k_BTKH, v_BTKH, seen[:3])
    return out_BTNH, (q_BTNH, k_BTKH, v_BTKH, seen, out_BTNH, lse_BNT)


def _backward(
    shapes: KernelShapes, interpret: bool, residuals: tuple, grad_BTNH: jax.Array
) -> tuple:
    q_BTNH, k_BTKH, v_BTKH, seen, out_BTNH, lse_BNT = residuals
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    specs = _Specs(q_BTNH, k_BTKH, shapes)
    dq_BTNH, dots_BNT = _call(
        functools.partial(_dq_kernel, shapes=shapes),
        "tree_attention_dq",
        specs.query_grid,
        [
            *(specs.queries, specs.keys, specs.keys, specs.plan),
            *(specs.queries, specs.queries, specs.query_numbers),
        ],
        [specs.queries, specs.query_numbers],
        [jax.ShapeDtypeStruct(q_BTNH.shape, q_BTNH.dtype), lse_BNT],
        shapes.dq,
        interpret,
    )(q_BTNH, k_BTKH, v_BTKH, seen[:3], out_BTNH, grad_BTNH, lse_BNT)
    # One program for each query head, not for each key/value head: the few programs whose keys
    # everybody sees, those of a shared context, would work long after all others. The sums over the
    # heads of a key follow, since adding from several programs at once would depend on their order.
    dk_by_head = jax.ShapeDtypeStruct(q_BTNH.shape, jnp.float32)
    dk_BTNH, dv_BTNH = _call(
        functools.partial(_dkv_kernel, shapes=shapes),
        "tree_attention_dkv",
        specs.key_grid,
        [
            *(specs.all_queries, specs.key_block, specs.key_block, specs.key_plan),
            *(specs.all_queries, specs.all_numbers, specs.all_numbers),
        ],
        [specs.dk_by_head, specs.dk_by_head],
        [dk_by_head, dk_by_head],
        shapes.dkv,
        interpret,
    )(q_BTNH, k_BTKH, v_BTKH, (seen.ends_BT, seen.last_ends_BJ), grad_BTNH, lse_BNT, dots_BNT)
    dk_BTKH, dv_BTKH = (
        x.reshape(B, T, K, N // K, H).sum(axis=3).astype(k_BTKH.dtype) for x in (dk_BTNH, dv_BTNH)
    )
    return dq_BTNH, dk_BTKH, dv_BTKH, None


_attend.defvjp(_forward, _backward)


class _Specs:
    """Which part of each array a program sees; programs are numbered (block, query head, row)."""

    def __init__(self, q_BTNH: jax.Array, k_BTKH: jax.Array, shapes: KernelShapes) -> None:
        B, T, N, H = q_BTNH.shape
        group = N // k_BTKH.shape[2]
        P, S = shapes[:2]
        J = T // S
        self.query_grid, self.key_grid = (T // P, N, B), (J, N, B)
        # Programs that loop over queries.
        self.queries = pl.BlockSpec((None, P, None, H), lambda i, n, b: (b, i, n, 0))
        self.keys = pl.BlockSpec((None, T, None, H), lambda i, n, b: (b, 0, n // group, 0))
        self.query_numbers = pl.BlockSpec((None, None, P), lambda i, n, b: (b, n, i))
        ends = pl.BlockSpec((None, T), lambda i, n, b: (b, 0))
        key_blocks = pl.BlockSpec((None, None, J), lambda i, n, b: (b, i, 0))
        num_seen = pl.BlockSpec((None, None), lambda i, n, b: (b, i))
        self.plan = (ends, key_blocks, num_seen)
        # Programs that loop over keys.
        self.all_queries = pl.BlockSpec((None, T, None, H), lambda j, n, b: (b, 0, n, 0))
        self.key_block = pl.BlockSpec((None, S, None, H), lambda j, n, b: (b, j, n // group, 0))
        self.dk_by_head = pl.BlockSpec((None, S, None, H), lambda j, n, b: (b, j, n, 0))
        key_ends = pl.BlockSpec((None, S), lambda j, n, b: (b, j))
        last_end = pl.BlockSpec((None, None), lambda j, n, b: (b, j))
        self.key_plan = (key_ends, last_end)
        self.all_numbers = pl.BlockSpec((None, None, T), lambda j, n, b: (b, n, 0))


def _call(
    kernel: Any,
    name: str,
    grid: tuple[int, ...],
    in_specs: list[Any],
    out_specs: list[Any],
    out_shape: list[Any],
    schedule: Schedule,
    interpret: bool,
) -> Any:
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        name=name,
        interpret=interpret,
        compiler_params=triton.CompilerParams(**schedule._asdict()),
    )


def _forward_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    plan: tuple[Any, Any, Any],
    out_ref: Any,
    lse_ref: Any,
    *,
    shapes: KernelShapes,
) -> None:
    q_PH, (ends_ref, key_blocks_ref, num_seen_ref) = q_ref[...], plan
    queries_P = pl.program_id(0) * shapes.num_queries + jnp.arange(shapes.num_queries)

    def visit(j: jax.Array, carry: tuple) -> tuple:
        """Take in a block of keys: earlier sums shrink where it holds a higher score."""
        highest_P, total_P, out_PH = carry
        start = key_blocks_ref[j] * shapes.num_keys
        block = pl.ds(start, shapes.num_keys)
        scores_PS = _scores(q_PH, k_ref[block, :], queries_P, start, ends_ref[block])
        new_P = jnp.maximum(highest_P, scores_PS.max(axis=1))
        weights_PS = jnp.exp2(scores_PS - new_P[:, None])
        shrink_P = jnp.exp2(highest_P - new_P)
        v_SH = v_ref[block, :]
        out_PH = out_PH * shrink_P[:, None] + triton.dot(weights_PS.astype(v_SH.dtype), v_SH)
        return new_P, total_P * shrink_P + weights_PS.sum(axis=1), out_PH

    start = (
        jnp.full(queries_P.shape, LOWEST, jnp.float32),
        jnp.zeros(queries_P.shape, jnp.float32),
        jnp.zeros(q_PH.shape, jnp.float32),
    )
    highest_P, total_P, out_PH = jax.lax.fori_loop(0, num_seen_ref[...], visit, start)
    out_ref[...] = (out_PH / total_P[:, None]).astype(out_ref.dtype)
    lse_ref[...] = highest_P + jnp.log2(total_P)


def _scores(
    q_PH: jax.Array, k_SH: jax.Array, queries_P: jax.Array, start: jax.Array, ends_S: jax.Array
) -> jax.Array:
    """Scores times log2(e) of queries against the keys from `start` on, `MASKED` where nothing is
    seen."""
    keys_S = start + jnp.arange(len(ends_S))
    is_seen_PS = (keys_S[None] <= queries_P[:, None]) & (queries_P[:, None] < ends_S[None])
    return jnp.where(is_seen_PS, triton.dot(q_PH, k_SH, trans_b=True) * LOG2_E, MASKED)


def _dq_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    plan: tuple[Any, Any, Any],
    out_ref: Any,
    grad_ref: Any,
    lse_ref: Any,
    dq_ref: Any,
    dots_ref: Any,
    *,
    shapes: KernelShapes,
) -> None:
    ends_ref, key_blocks_ref, num_seen_ref = plan
    q_PH, grad_PH, lse_P = q_ref[...], grad_ref[...], lse_ref[...]
    queries_P = pl.program_id(0) * shapes.num_queries + jnp.arange(shapes.num_queries)
    # The sum over keys in the softmax's derivative is that of gradient and output, known already.
    dots_P = (grad_PH.astype(jnp.float32) * out_ref[...].astype(jnp.float32)).sum(axis=1)
    dots_ref[...] = dots_P

    def visit(j: jax.Array, dq_PH: jax.Array) -> jax.Array:
        start = key_blocks_ref[j] * shapes.num_keys
        block = pl.ds(start, shapes.num_keys)
        k_SH = k_ref[block, :]
        scores_PS = _scores(q_PH, k_SH, queries_P, start, ends_ref[block])
        weights_PS = jnp.exp2(scores_PS - lse_P[:, None])
        dweights_PS = triton.dot(grad_PH, v_ref[block, :], trans_b=True)
        dscores_PS = weights_PS * (dweights_PS - dots_P[:, None])
        return dq_PH + triton.dot(dscores_PS.astype(k_SH.dtype), k_SH)

    zeros = jnp.zeros(q_PH.shape, jnp.float32)
    dq_PH = jax.lax.fori_loop(0, num_seen_ref[...], visit, zeros)
    dq_ref[...] = dq_PH.astype(dq_ref.dtype)


def _dkv_kernel(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    plan: tuple[Any, Any],
    grad_ref: Any,
    lse_ref: Any,
    dots_ref: Any,
    dk_ref: Any,
    dv_ref: Any,
    *,
    shapes: KernelShapes,
) -> None:
    ends_ref, last_end_ref = plan
    k_SH, v_SH, ends_S = k_ref[...], v_ref[...], ends_ref[...]
    first_key = pl.program_id(0) * shapes.num_keys
    keys_S = first_key + jnp.arange(shapes.num_keys)

    def visit(i: jax.Array, carry: tuple) -> tuple:
        """Take in a block of queries. Scores are keys by queries here, for then no product has a
        transposed left side, which would have to go through shared memory."""
        dk_SH, dv_SH = carry
        start = i * shapes.num_dkv_queries
        block = pl.ds(start, shapes.num_dkv_queries)
        queries_P = start + jnp.arange(shapes.num_dkv_queries)
        q_PH, grad_PH = q_ref[block, :], grad_ref[block, :]
        is_seen_SP = (keys_S[:, None] <= queries_P[None]) & (queries_P[None] < ends_S[:, None])
        scores_SP = triton.dot(k_SH, q_PH, trans_b=True) * LOG2_E
        weights_SP = jnp.exp2(jnp.where(is_seen_SP, scores_SP, MASKED) - lse_ref[block][None])
        dv_SH = dv_SH + triton.dot(weights_SP.astype(grad_PH.dtype), grad_PH)
        dweights_SP = triton.dot(v_SH, grad_PH, trans_b=True)
        dscores_SP = weights_SP * (dweights_SP - dots_ref[block][None])
        return dk_SH + triton.dot(dscores_SP.astype(q_PH.dtype), q_PH), dv_SH

    # A position's subtree is one run of positions, so the queries that see any of these keys form
    # one run as well.
    zeros = jnp.zeros(k_SH.shape, jnp.float32)
    first = jax.lax.div(first_key, shapes.num_dkv_queries)
    last = jax.lax.div(last_end_ref[...] + (shapes.num_dkv_queries - 1), shapes.num_dkv_queries)
    dk_SH, dv_SH = jax.lax.fori_loop(first, last, visit, (zeros, zeros))
    dk_ref[...], dv_ref[...] = dk_SH, dv_SH
