"""Batched generation with a key/value cache, in programs of fixed shape.

Requests are grouped by the length bucket of their own prompt and padded to a fixed width, so that
the program that serves a request, and therefore its tokens, depend on the request alone: not on its
neighbours and not on the order. Each row draws from its own seed. One program per bucket prefills
its rows one by one (empty rows are skipped) and then decodes all of them until each has stopped.

Axes: B rows, T positions of a prompt (the bucket), U tokens of a reply, W = T + U positions of the
cache.
"""

from __future__ import annotations

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
from emodistill.model.qwen2 import DecoderLayer, Qwen2

DEFAULT_WIDTH = 16
"""Rows of a program; whoever has more requests at once passes a larger one."""
DEFAULT_BUCKETS = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)
"""About half as long again at each step: padding costs a prompt a third of its length at most."""


class Cache(NamedTuple):
    """Keys and values of all layers, each [L, B, K, W, H]."""

    k_LBKWH: jax.Array
    v_LBKWH: jax.Array


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


class Generator:
    """Generates with one model, compiling one program per prompt bucket.

    The weights are read from the model at each call, so that training it or changing its adapter's
    values needs no new programs; models of one architecture share theirs.
    """

    def __init__(
        self,
        model: Qwen2,
        *,
        width: int = DEFAULT_WIDTH,
        buckets: Sequence[int] = DEFAULT_BUCKETS,
    ) -> None:
        """
        Args:
          width: rows per program; fewer requests are padded, more take several runs.
          buckets: allowed prompt lengths, to which prompts are padded.
        """
        if width < 1:
            raise InputError(f"width={width} must be at least 1.")
        if not buckets or min(buckets) < 1:
            raise InputError(f"buckets={list(buckets)} must be positive lengths.")
        self.model = model
        self.width = width
        self.buckets = tuple(sorted(set(buckets)))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        eos_ids: Iterable[int],
        top_p: float = 1.0,
    ) -> list[list[int]]:
        """Continue each prompt.

        Args:
          max_new_tokens: most tokens per continuation.
          temperature: of the sampling; 0 takes the likeliest token.
          seeds: one per prompt; the same prompt and seed give the same tokens.
          eos_ids: tokens that end a continuation.
          top_p: sample from the smallest set of tokens that holds this share of probability.

        Returns: new token ids of each prompt, in order; the last one is in `eos_ids` unless the
          limit was reached.

        Raises:
          InputError: an argument is out of range, or a prompt is empty, holds an unknown token id
            or does not fit the largest bucket or the model's positions.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1.")
        if not 0 <= temperature < float("inf"):
            raise InputError(f"temperature={temperature} must be 0 or above.")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p={top_p} must lie in (0, 1].")
        if len(seeds) != len(prompts):
            raise InputError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one each.")
        is_stop_V = np.zeros(self.model.config.vocab_size, bool)
        for token in eos_ids:
            if not 0 <= token < len(is_stop_V):
                raise InputError(f"eos_ids holds {token}, outside 0 … {len(is_stop_V) - 1}.")
            is_stop_V[token] = True
        by_bucket: dict[int, list[int]] = defaultdict(list)
        for i, prompt in enumerate(prompts):
            by_bucket[self._bucket(prompt, f"prompts[{i}]", max_new_tokens)].append(i)

        graphdef, state = nnx.split(self.model)
        results: list[list[int]] = [[] for _ in prompts]
        for bucket, requests in sorted(by_bucket.items()):
            for start in range(0, len(requests), self.width):
                chosen = requests[start : start + self.width]
                tokens_BT = np.zeros((self.width, bucket), np.int32)
                lengths_B = np.zeros(self.width, np.int32)
                seeds_B = np.zeros(self.width, np.uint32)
                for row, i in enumerate(chosen):
                    lengths_B[row] = len(prompts[i])
                    tokens_BT[row, : lengths_B[row]] = prompts[i]
                    seeds_B[row] = seeds[i] & 0xFFFFFFFF
                outputs = _program(
                    graphdef,
                    state,
                    tokens_BT=tokens_BT,
                    lengths_B=lengths_B,
                    seeds_B=seeds_B,
                    is_stop_V=is_stop_V,
                    temperature=jnp.float32(temperature),
                    top_p=jnp.float32(top_p),
                    base_key=seeding.jax_key(0, "generate"),
                    max_new_tokens=max_new_tokens,
                    has_top_p=top_p < 1,
                )
                generated_BU, counts_B = jax.device_get(outputs)
                for i, tokens_U, count in zip(chosen, generated_BU, counts_B, strict=False):
                    results[i] = tokens_U[:count].tolist()
        return results

    def _bucket(self, prompt: Sequence[int], name: str, max_new_tokens: int) -> int:
        """The length to which `prompt` is padded."""
        config, length = self.model.config, len(prompt)
        if not length:
            raise InputError(f"{name} is empty; it needs at least one token.")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise InputError(
                f"{name} holds a token id outside 0 … {config.vocab_size - 1}; its "
                "tokenizer belongs to another model."
            )
        limit = config.max_positions - max_new_tokens
        if length > limit:
            raise InputError(
                f"{name} has {length} tokens, but with max_new_tokens={max_new_tokens} "
                f"the model has room for {limit}; shorten it."
            )
        for bucket in self.buckets:
            if length <= bucket:
                return bucket
        raise InputError(
            f"{name} has {length} tokens, more than the largest bucket "
            f"({self.buckets[-1]}); shorten it or add a bucket."
        )


def generate(
    model: Qwen2,
    prompts: Sequence[Sequence[int]],
    *,
    width: int = DEFAULT_WIDTH,
    buckets: Sequence[int] = DEFAULT_BUCKETS,
    **sampling: Any,
) -> list[list[int]]:
    """`Generator(model, width=width, buckets=buckets).generate(prompts, **sampling)`."""
    return Generator(model, width=width, buckets=buckets).generate(prompts, **sampling)


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "has_top_p"))
def _program(graphdef: Any, state: Any, **arguments: Any) -> tuple[jax.Array, jax.Array]:
    return _generate(nnx.merge(graphdef, state), **arguments)


def _generate(
    model: Qwen2,
    *,
    tokens_BT: jax.Array,
    lengths_B: jax.Array,
    seeds_B: jax.Array,
    is_stop_V: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    base_key: jax.Array,
    max_new_tokens: int,
    has_top_p: bool,
) -> tuple[jax.Array, jax.Array]:
    """New tokens [B, U] and how many of them count [B]; rows of length 0 are empty."""
    B, T = tokens_BT.shape
    keys_B = jax.vmap(functools.partial(jax.random.fold_in, base_key))(seeds_B)
    positions_W = jnp.arange(T + max_new_tokens)

    def choose(logits_BV: jax.Array, step: jax.Array) -> jax.Array:
        """The next token of each row, drawn by the Gumbel-max trick."""
        noise_BV = jax.vmap(
            lambda key: jax.random.gumbel(jax.random.fold_in(key, step), logits_BV.shape[1:])
        )(keys_B)
        scaled_BV = logits_BV / jnp.maximum(temperature, 1e-6)
        # Static, since the nucleus sorts the vocabulary at every step, which most requests don't
        # need.
        if has_top_p:
            scaled_BV = _keep_top(scaled_BV, top_p)
        sampled_B = jnp.argmax(scaled_BV + noise_BV, axis=-1)
        return jnp.where(temperature > 0, sampled_B, jnp.argmax(logits_BV, axis=-1))

    def record(state: _Decoding, logits_BV: jax.Array) -> _Decoding:
        """Choose and keep one more token of every row that has not stopped."""
        chosen_B = choose(logits_BV, state.step).astype(jnp.int32)
        return state._replace(
            step=state.step + 1,
            tokens_B=chosen_B,
            is_done_B=state.is_done_B | is_stop_V[chosen_B],
            counts_B=state.counts_B + ~state.is_done_B,
            generated_BU=jax.lax.dynamic_update_slice_in_dim(
                state.generated_BU, chosen_B[:, None], state.step, axis=1
            ),
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
        written = [
            jax.lax.dynamic_update_slice(cached_LBKWH, new_LKTH[:, None], (0, index, 0, 0, 0))
            for cached_LBKWH, new_LKTH in zip(cache, filled, strict=True)
        ]
        return Cache(*written), last_D

    B, K, H = len(tokens_BT), config.num_kv_heads, config.head_dim
    empty_LBKWH = jnp.zeros((config.num_layers, B, K, T + max_new_tokens, H), model.dtype)
    cache, last_BD = jax.lax.scan(
        row, Cache(empty_LBKWH, empty_LBKWH), (jnp.arange(B), tokens_BT, lengths_B)
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
        start = (index, 0, 0, cache_position, 0)
        k_LBKWH, v_LBKWH = (
            jax.lax.dynamic_update_slice(cached_LBKWH, new_B1KH.swapaxes(1, 2)[None], start)
            for cached_LBKWH, new_B1KH in zip(cache, new, strict=True)
        )
        attended_B1NH = cached_attention(q_B1NH, k_LBKWH[index], v_LBKWH[index], mask_BW)
        return (layer.after_attention(x_B1D, attended_B1NH), Cache(k_LBKWH, v_LBKWH)), None

    carry = (model.embed_tokens(tokens_B[:, None]), cache)
    (x_B1D, cache), _ = model.scan_layers(step, carry, jnp.arange(config.num_layers))
    return model.logits(model.norm(x_B1D)[:, 0]), cache


def _keep_top(logits_BV: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits with all but the nucleus (arXiv 1904.09751) at -inf; the likeliest always stays."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    size_B1 = jnp.sum(before_BV < top_p, axis=-1, keepdims=True)
    threshold_B1 = jnp.take_along_axis(sorted_BV, size_B1 - 1, axis=-1)
    return jnp.where(logits_BV >= threshold_B1, logits_BV, -jnp.inf)
