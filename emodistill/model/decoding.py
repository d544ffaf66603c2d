"""The two programs of generation: a chunk of prompts enters the slots, and slots decode.

Both have one shape, whatever the requests. A chunk is cut into *pieces* of `kv_cache.BLOCK` tokens,
each of one prompt and at a multiple of its length, so that pieces of several prompts fill a chunk
together, and a token's keys and values come out the same in whichever chunk it enters. The last
token of a prompt enters by the first step of decoding, which makes logits; a chunk makes none.

Axes: G pieces of a chunk, P tokens of a piece, B slots, U steps, L likeliest tokens, E queries of
a piece or slot that share a key/value head; the others as in `kv_cache` and docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill.model.attention import rope_angles
from emodistill.model.cached_attention import cache_block, cached_attention
from emodistill.model.generation_requests import MAX_LOGPROBS, TokenLogprobs
from emodistill.model.kv_cache import Cache, constrained
from emodistill.model.programs import Static, note_program
from emodistill.model.qwen2 import DecoderLayer, Qwen2
from emodistill.model.sampling import Sampling, draw, likeliest, logprobs

UNROLLED_LAYERS = 4
"""Layers of models whose chunks are computed without a loop over them, at most. In a loop, each
layer's weights are copied out of the stack first, a tenth of a small model's time; without, the
program takes longer to compile with every layer."""
MAX_STEPS = 8
"""Steps of one call of the decoding program at most: new requests join after it."""


class Pieces(NamedTuple):
    """A chunk of prompts."""

    tokens_GP: np.ndarray
    """Filled up behind the end of a prompt with any tokens; what they leave is never seen."""
    slots_G: np.ndarray
    starts_G: np.ndarray
    """The position of each piece in its prompt. A piece that is none stands at the end of a slot,
    which is nobody's."""


class DecodingRows(NamedTuple):
    """What each slot is to decode."""

    tokens_B: np.ndarray
    """The latest token of each, whose keys and values are not cached yet."""
    positions_B: np.ndarray
    """Where that token stands."""
    counts_B: np.ndarray
    """How many tokens each has got so far."""
    limits_B: np.ndarray
    """How many it gets at most; 0 for slots that don't decode."""
    sampling: Sampling
    is_stop_BV: np.ndarray | jax.Array
    wants_logprobs: bool
    """Whether anybody wants them."""
    wants_likeliest: bool
    """Whether anybody wants those of the likeliest tokens."""


class Decoded(NamedTuple):
    """New tokens of all slots; those of a slot count up to its first stop or its limit."""

    tokens_UB: jax.Array
    logprobs_UB: jax.Array
    """Of the chosen tokens at temperature 1; zeros where nobody wants them."""
    likeliest_UBL: jax.Array
    """The `MAX_LOGPROBS` likeliest tokens of each step; zeros where nobody wants them."""
    likeliest_logprobs_UBL: jax.Array
    num_steps: jax.Array

    def logprobs_of(self, slot: int, num_likeliest: int) -> list[TokenLogprobs]:
        """Of a slot's tokens; on the host."""
        done = slice(self.num_steps)
        steps = zip(
            self.logprobs_UB[done, slot].tolist(),
            self.likeliest_UBL[done, slot, :num_likeliest].tolist(),
            self.likeliest_logprobs_UBL[done, slot, :num_likeliest].tolist(),
            strict=True,
        )
        return [
            TokenLogprobs(chosen, tuple(zip(tokens, logps, strict=True)))
            for chosen, tokens, logps in steps
        ]


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="slots")
def prefill(graph: Static, state: Any, slots: Cache, pieces: Pieces) -> Cache:
    """`slots` with the keys and values of a chunk of prompts."""
    note_program()
    model: Qwen2 = nnx.merge(graph.value, state)
    G, P = pieces.tokens_GP.shape
    positions_GP = jnp.asarray(pieces.starts_G)[:, None] + jnp.arange(P)[None]
    # Pieces that are none stand behind everything that counts; they need not see all of it.
    last = slots.keys.shape[-1] - P
    ends_G = jnp.where(pieces.starts_G < last, pieces.starts_G + P, 0)
    num_blocks = jnp.max(ends_G + cache_block() - 1) // cache_block()

    def read(slots: Cache, layer: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys, values = (
            [_block(slots, layer, pieces.slots_G[g], j, 1)[i][0] for g in range(G)] for i in (0, 1)
        )
        return jnp.stack(keys), jnp.stack(values)

    _, slots = _layers(
        model,
        slots,
        pieces.tokens_GP,
        positions_GP,
        jnp.asarray(pieces.slots_G),
        num_blocks,
        read,
        is_unrolled=model.config.num_layers <= UNROLLED_LAYERS,
    )
    return constrained(slots, model.mesh)


@functools.partial(jax.jit, static_argnames="graph", donate_argnames="slots")
def decode(graph: Static, state: Any, slots: Cache, rows: DecodingRows) -> tuple[Decoded, Cache]:
    """Up to `MAX_STEPS` more tokens for each slot; fewer where one of them ends before."""
    note_program()
    model: Qwen2 = nnx.merge(graph.value, state)
    B, W = len(rows.tokens_B), slots.keys.shape[-1]
    is_active_B = rows.limits_B > 0
    num_likeliest = min(MAX_LOGPROBS, model.config.vocab_size)

    def read(slots: Cache, layer: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _block(slots, layer, 0, j, B)

    def step(carry: Any) -> Any:
        i, _, tokens_B, slots, decoded = carry
        positions_B = jnp.where(is_active_B, rows.positions_B + i, W - 1)
        furthest = jnp.max(jnp.where(is_active_B, positions_B, 0))
        hidden_B1D, slots = _layers(
            model,
            slots,
            tokens_B[:, None],
            positions_B[:, None],
            jnp.arange(B),
            furthest // cache_block() + 1,
            read,
        )
        logits_BV = model.logits(hidden_B1D[:, 0])
        counts_B = rows.counts_B + i
        tokens_B = draw(logits_BV, rows.sampling, counts_B)
        # Asked for or not: within one program, so that asking changes no token.
        logprobs_B = jax.lax.cond(
            rows.wants_logprobs,
            lambda: logprobs(logits_BV, tokens_B),
            lambda: jnp.zeros(B, jnp.float32),
        )
        likeliest_BL, likeliest_logprobs_BL = jax.lax.cond(
            rows.wants_likeliest,
            lambda: likeliest(logits_BV, num_likeliest),
            lambda: (jnp.zeros((B, num_likeliest), jnp.int32), jnp.zeros((B, num_likeliest))),
        )
        decoded = decoded._replace(
            tokens_UB=decoded.tokens_UB.at[i].set(tokens_B),
            logprobs_UB=decoded.logprobs_UB.at[i].set(logprobs_B),
            likeliest_UBL=decoded.likeliest_UBL.at[i].set(likeliest_BL),
            likeliest_logprobs_UBL=decoded.likeliest_logprobs_UBL.at[i].set(likeliest_logprobs_BL),
        )
        is_stop_B = rows.is_stop_BV[jnp.arange(B), tokens_B]
        has_ended = jnp.any(is_active_B & (is_stop_B | (counts_B + 1 >= rows.limits_B)))
        return i + 1, has_ended, tokens_B, slots, decoded

    zeros_UB = jnp.zeros((MAX_STEPS, B))
    zeros_UBL = jnp.zeros((MAX_STEPS, B, num_likeliest))
    start = Decoded(
        zeros_UB.astype(jnp.int32), zeros_UB, zeros_UBL.astype(jnp.int32), zeros_UBL, jnp.int32(0)
    )
    num_steps, _, _, slots, decoded = jax.lax.while_loop(
        lambda carry: (carry[0] < MAX_STEPS) & ~carry[1],
        step,
        (jnp.int32(0), jnp.bool_(False), jnp.asarray(rows.tokens_B), slots, start),
    )
    return decoded._replace(num_steps=num_steps), constrained(slots, model.mesh)


def _layers(
    model: Qwen2,
    slots: Cache,
    tokens_GP: jax.Array | np.ndarray,
    positions_GP: jax.Array,
    slots_G: jax.Array,
    num_blocks: jax.Array,
    read: Callable[[Cache, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    *,
    is_unrolled: bool = False,
) -> tuple[jax.Array, Cache]:
    """Final hidden states [G, P, D] of tokens that enter the slots, and the slots with them."""
    config = model.config
    G, P = tokens_GP.shape
    K, H = config.num_kv_heads, config.head_dim
    rope = rope_angles(positions_GP, H, config.rope_theta)
    positions_GE = jnp.tile(positions_GP, (1, config.num_heads // K))

    # The cache is carried through the layers, not scanned over: XLA then updates it in place, where
    # a scan would write a second one at every token.
    def step(layer: DecoderLayer, carry: Any, index: jax.Array) -> tuple[Any, None]:
        x_GPD, slots = carry
        q_GPNH, k_GPKH, v_GPKH = layer.before_attention(x_GPD, rope)
        new_GKHP, new_GKPH = k_GPKH.transpose(0, 2, 3, 1), v_GPKH.swapaxes(1, 2)

        # By a loop: XLA would make copies of the cache for a scatter, and where updates stand one
        # after the other it may read a block out of the last one before that is made, for which it
        # copies the cache as well.
        def enter(g: jax.Array, slots: Cache) -> Cache:
            slot, start = slots_G[g], positions_GP[g, 0]
            new_KHP, new_KPH = new_GKHP[g], new_GKPH[g]
            return Cache(
                jax.lax.dynamic_update_slice(
                    slots.keys, new_KHP[None, None], (index, slot, 0, 0, start)
                ),
                jax.lax.dynamic_update_slice(
                    slots.values, new_KPH[None, None], (index, slot, 0, start, 0)
                ),
            )

        slots = jax.lax.fori_loop(0, G, enter, slots)
        q_GKEH = q_GPNH.reshape(G, P, K, -1, H).transpose(0, 2, 3, 1, 4).reshape(G, K, -1, H)
        attended_GKEH = cached_attention(
            q_GKEH, positions_GE, functools.partial(read, slots, index), num_blocks
        )
        attended_GPNH = (
            attended_GKEH.reshape(G, K, -1, P, H).transpose(0, 3, 1, 2, 4).reshape(G, P, -1, H)
        )
        return (layer.after_attention(x_GPD, attended_GPNH), slots), None

    carry = (model.embed_tokens(jnp.asarray(tokens_GP)), slots)
    layers = jnp.arange(config.num_layers)
    (x_GPD, slots), _ = model.scan_layers(step, carry, layers, is_unrolled=is_unrolled)
    return model.norm(x_GPD), slots


def _block(
    slots: Cache, layer: jax.Array, slot: jax.Array | int, j: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """The j-th block of `count` slots of a layer, as `cached_attention` reads it."""
    K, H = slots.keys.shape[2:4]
    P = cache_block()
    start = j * P
    return (
        jax.lax.dynamic_slice(slots.keys, (layer, slot, 0, 0, start), (1, count, K, H, P))[0],
        jax.lax.dynamic_slice(slots.values, (layer, slot, 0, start, 0), (1, count, K, P, H))[0],
    )
