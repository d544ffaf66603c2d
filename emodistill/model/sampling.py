"""Batched generation with a key/value cache, in programs of fixed shape.

Requests are grouped by the length bucket of their own prompt and padded to a fixed width, so that
the program that serves a request, and therefore its tokens, depend on the request alone: not on its
neighbours and not on the order. Each row draws from its own seed. One program per bucket prefills
its rows one by one (empty rows are skipped) and then decodes all of them until each has stopped.

Axes: B rows, T positions of a prompt (the bucket), U tokens of a reply, W = T + U positions of the
cache.
"""

from __future__ import annotations

import bisect
import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill import seeding
from emodistill.errors import InputError
from emodistill.model.attention import cached_attention, rope_angles, tree_attention
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import DecoderLayer, Qwen2

DEFAULT_WIDTH = 16
"""Rows of a program; whoever has more requests at once passes a larger one."""
DEFAULT_BUCKETS = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)
"""About half as long again at each step: padding costs a prompt a third of its length at most."""


Cache = tuple[jax.Array, jax.Array]
"""Keys and values of all layers, each [L, B, K, W, H]."""


class _Decoding(NamedTuple):
    """State of the decoding loop."""

    step: jax.Array
    tokens_B: jax.Array
    """The latest token of each row."""
    is_done_B: jax.Array
    counts_B: jax.Array
    """How many tokens each row has got."""
    generated_BU: jax.Array
    cache: Cache


def generate(
    model: Qwen2,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seeds: Sequence[int],
    eos_ids: Iterable[int],
    width: int = DEFAULT_WIDTH,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
) -> list[list[int]]:
    """Continue each prompt.

    One program is compiled per bucket, and kept: training the model or changing its adapter's
    values needs no new ones, and models of one architecture share theirs.

    Args:
      max_new_tokens: most tokens per continuation.
      temperature: of the sampling; 0 takes the likeliest token.
      seeds: one per prompt; the same prompt and seed give the same tokens.
      eos_ids: tokens that end a continuation.
      width: rows per program; fewer prompts are padded, more take several runs.
      buckets: allowed prompt lengths, to which prompts are padded.

    Returns: new token ids of each prompt, in order; the last one is in `eos_ids` unless the limit
      was reached.

    Raises:
      InputError: an argument is out of range, or a prompt is empty, holds an unknown token id or
        does not fit the largest bucket or the model's positions.
    """
    if width < 1:
        raise InputError(f"width={width} must be at least 1.")
    buckets = sorted(buckets)
    if not buckets or buckets[0] < 1:
        raise InputError(f"buckets={buckets} must be positive lengths.")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature={temperature} must be 0 or above.")
    if len(seeds) != len(prompts):
        raise InputError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one each.")
    is_stop_V = np.zeros(model.config.vocab_size, bool)
    for token in eos_ids:
        if not 0 <= token < len(is_stop_V):
            raise InputError(f"eos_ids holds {token}, outside 0 … {len(is_stop_V) - 1}.")
        is_stop_V[token] = True
    by_bucket: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        _check_prompt(prompt, f"prompts[{i}]", model.config, max_new_tokens, buckets[-1])
        by_bucket[buckets[bisect.bisect_left(buckets, len(prompt))]].append(i)

    graphdef, state = nnx.split(model)
    results: list[list[int]] = [[] for _ in prompts]
    for bucket, requests in sorted(by_bucket.items()):
        for start in range(0, len(requests), width):
            chosen = requests[start : start + width]
            tokens_BT = np.zeros((width, bucket), np.int32)
            lengths_B = np.zeros(width, np.int32)
            seeds_B = np.zeros(width, np.uint32)
            for row, i in enumerate(chosen):
                lengths_B[row] = len(prompts[i])
                tokens_BT[row, : lengths_B[row]] = prompts[i]
                seeds_B[row] = seeds[i] & 0xFFFFFFFF
            arrays = tokens_BT, lengths_B, seeds_B, is_stop_V, np.float32(temperature)
            outputs = _program(graphdef, state, *arrays, max_new_tokens)
            generated_BU, counts_B = jax.device_get(outputs)
            for i, tokens_U, count in zip(chosen, generated_BU, counts_B, strict=False):
                results[i] = tokens_U[:count].tolist()
    return results


def _check_prompt(
    prompt: Sequence[int], name: str, config: Qwen2Config, max_new_tokens: int, longest: int
) -> None:
    if not prompt:
        raise InputError(f"{name} is empty; it needs at least one token.")
    if min(prompt) < 0 or max(prompt) >= config.vocab_size:
        raise InputError(
            f"{name} holds a token id outside 0 … {config.vocab_size - 1}; its tokenizer belongs "
            "to another model."
        )
    limit = config.max_positions - max_new_tokens
    if len(prompt) > limit:
        raise InputError(
            f"{name} has {len(prompt)} tokens, but with max_new_tokens={max_new_tokens} "
            f"the model has room for {limit}; shorten it."
        )
    if len(prompt) > longest:
        raise InputError(
            f"{name} has {len(prompt)} tokens, more than the largest bucket ({longest}); shorten "
            "it or add a bucket."
        )


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens"))
def _program(
    graphdef: Any,
    state: Any,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    seeds_B: jax.Array,
    is_stop_V: jax.Array,
    temperature: jax.Array,
    max_new_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    """New tokens [B, U] and how many of them count [B]; rows of length 0 are empty."""
    model: Qwen2 = nnx.merge(graphdef, state)
    B, T = tokens_BT.shape
    key = seeding.jax_key(0, "generate")
    keys_B = jax.vmap(functools.partial(jax.random.fold_in, key))(seeds_B)
    positions_W = jnp.arange(T + max_new_tokens)

    def record(state: _Decoding, logits_BV: jax.Array) -> _Decoding:
        """Draw one more token of every row by the Gumbel-max trick, and keep it.

        Rows that have stopped go on, uncounted.
        """
        noise_BV = jax.vmap(
            lambda key: jax.random.gumbel(jax.random.fold_in(key, state.step), logits_BV.shape[1:])
        )(keys_B)
        sampled_B = jnp.argmax(logits_BV / jnp.maximum(temperature, 1e-6) + noise_BV, axis=-1)
        likeliest_B = jnp.argmax(logits_BV, axis=-1)
        chosen_B = jnp.where(temperature > 0, sampled_B, likeliest_B).astype(jnp.int32)
        return state._replace(
            step=state.step + 1,
            tokens_B=chosen_B,
            is_done_B=state.is_done_B | is_stop_V[chosen_B],
            counts_B=state.counts_B + ~state.is_done_B,
            generated_BU=state.generated_BU.at[:, state.step].set(chosen_B),
        )

    def is_unfinished(state: _Decoding) -> jax.Array:
        return (state.step < max_new_tokens) & ~jnp.all(state.is_done_B)

    def advance(state: _Decoding) -> _Decoding:
        position = T + state.step - 1
        # A row sees its prompt and what was generated, but not the padding of the prompt in
        # between.
        is_new_W = (positions_W >= T) & (positions_W <= position)
        mask_BW = (positions_W[None] < lengths_B[:, None]) | is_new_W[None]
        logits_BV, cache = _decode(
            model, state.tokens_B, lengths_B + state.step - 1, position, mask_BW, state.cache
        )
        return record(state._replace(cache=cache), logits_BV)

    logits_BV, cache = _prefill(model, tokens_BT, lengths_B, max_new_tokens)
    start = _Decoding(
        step=jnp.int32(0),
        tokens_B=jnp.zeros(B, jnp.int32),
        is_done_B=lengths_B == 0,
        counts_B=jnp.zeros(B, jnp.int32),
        generated_BU=jnp.zeros((B, max_new_tokens), jnp.int32),
        cache=cache,
    )
    last = jax.lax.while_loop(is_unfinished, advance, record(start, logits_BV))
    return last.generated_BU, last.counts_B


def _prefill(
    model: Qwen2, tokens_BT: jax.Array, lengths_B: jax.Array, max_new_tokens: int
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after each prompt, and the cache with the prompts in it.

    Row by row: a prompt fills the device by itself, empty rows cost nothing, and no more than one
    row's activations are alive.
    """
    config, T = model.config, tokens_BT.shape[1]
    rope = rope_angles(jnp.arange(T)[None], config.head_dim, config.rope_theta)

    def fill(tokens_T: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def step(layer: DecoderLayer, x_1TD: jax.Array, _: None) -> tuple[jax.Array, Any]:
            q_1TNH, k_1TKH, v_1TKH = layer.before_attention(x_1TD, rope)
            attended_1TNH = tree_attention(q_1TNH, k_1TKH, v_1TKH)
            cached = (k_1TKH[0].swapaxes(0, 1), v_1TKH[0].swapaxes(0, 1))
            return layer.after_attention(x_1TD, attended_1TNH), cached

        x_1TD, (k_LKTH, v_LKTH) = model.scan_layers(step, model.embed_tokens(tokens_T[None]))
        last_D = jax.lax.dynamic_index_in_dim(x_1TD[0], length - 1, keepdims=False)
        return model.norm(last_D), k_LKTH, v_LKTH

    shapes = jax.eval_shape(fill, tokens_BT[0], lengths_B[0])

    def skip(*_: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return jax.tree.map(jnp.zeros_like, shapes)

    def row(cache: Cache, inputs: Any) -> tuple[Cache, jax.Array]:
        index, tokens_T, length = inputs
        last_D, *filled = jax.lax.cond(length > 0, fill, skip, tokens_T, length)
        cache = jax.tree.map(
            lambda cached_LBKWH, new_LKTH: jax.lax.dynamic_update_slice(
                cached_LBKWH, new_LKTH[:, None], (0, index, 0, 0, 0)
            ),
            cache,
            tuple(filled),
        )
        return cache, last_D

    B, K, H = len(tokens_BT), config.num_kv_heads, config.head_dim
    empty_LBKWH = jnp.zeros((config.num_layers, B, K, T + max_new_tokens, H), model.dtype)
    cache, last_BD = jax.lax.scan(
        row, (empty_LBKWH, empty_LBKWH), (jnp.arange(B), tokens_BT, lengths_B)
    )
    return model.logits(last_BD), cache


def _decode(
    model: Qwen2,
    tokens_B: jax.Array,
    positions_B: jax.Array,
    cache_position: jax.Array,
    mask_BW: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] after one more token per row, and the cache with it at `cache_position`.

    Args:
      positions_B: rotary positions of the tokens, which count no padding.
    """
    config = model.config
    rope = rope_angles(positions_B[:, None], config.head_dim, config.rope_theta)

    # The cache is carried through the layers, not scanned over: XLA then updates it in place, where
    # a scan would write a second one at every token.
    def step(layer: DecoderLayer, carry: Any, index: jax.Array) -> tuple[Any, None]:
        x_B1D, cache = carry
        q_B1NH, *new = layer.before_attention(x_B1D, rope)
        cache = jax.tree.map(
            lambda cached_LBKWH, new_B1KH: jax.lax.dynamic_update_slice(
                cached_LBKWH, new_B1KH.swapaxes(1, 2)[None], (index, 0, 0, cache_position, 0)
            ),
            cache,
            tuple(new),
        )
        k_LBKWH, v_LBKWH = cache
        attended_B1NH = cached_attention(q_B1NH, k_LBKWH[index], v_LBKWH[index], mask_BW)
        return (layer.after_attention(x_B1D, attended_B1NH), cache), None

    carry = (model.embed_tokens(tokens_B[:, None]), cache)
    (x_B1D, cache), _ = model.scan_layers(step, carry, jnp.arange(config.num_layers))
    return model.logits(model.norm(x_B1D)[:, 0]), cache
