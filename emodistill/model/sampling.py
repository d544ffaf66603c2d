"""Batched generation with a key/value cache, in programs of fixed shape.

Requests are grouped by the length bucket of their own prompt and padded to a fixed width, so that
the program that serves a request, and therefore its tokens, depend on the request alone: not on
its neighbours and not on the order. Each row draws from its own seed. One program per bucket
prefills its rows one by one (empty rows are skipped) and then decodes all of them until each has
stopped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill import seeding
from emodistill.errors import InputError
from emodistill.model.attention import cached_attention, rope_angles, tree_attention
from emodistill.model.qwen2 import Block, Qwen2

DEFAULT_WIDTH = 16
DEFAULT_BUCKETS = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)


class _Decoding(NamedTuple):
    """State of the decoding loop: M = max_new_tokens, S = bucket + M slots."""

    step: jax.Array
    tokens: jax.Array  # [B], the latest
    is_done: jax.Array  # [B]
    counts: jax.Array  # [B], tokens that each row has got
    generated: jax.Array  # [B, M]
    keys: jax.Array  # [L, B, K, S, H]
    values: jax.Array  # [L, B, K, S, H]


class _Programs:
    """Compiled programs and their number."""

    def __init__(self) -> None:
        self.count = 0
        self.run = jax.jit(
            self._traced, static_argnames=("graphdef", "max_new_tokens", "has_top_p")
        )

    def _traced(self, graphdef: Any, state: Any, **arguments: Any) -> tuple[jax.Array, jax.Array]:
        self.count += 1  # this line runs when a program is made, not when it is used
        return _generate(nnx.merge(graphdef, state), **arguments)


_shared_programs = _Programs()


class Generator:
    """Generates with one model, compiling one program per prompt bucket.

    The weights are read from the model at each call, so that training it or changing its adapter
    needs no new programs.
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
        self._programs = _Programs()

    @property
    def num_compilations(self) -> int:
        """How many programs have been compiled so far."""
        return self._programs.count

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
        self._check(prompts, max_new_tokens, temperature, seeds, top_p)
        groups: dict[int, list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            groups[self._bucket(len(prompt), row, max_new_tokens)].append(row)
        graphdef, state = nnx.split(self.model)
        settings = {
            "is_stop_V": self._stop_table(eos_ids),
            "temperature": jnp.float32(temperature),
            "top_p": jnp.float32(top_p),
            "max_new_tokens": max_new_tokens,
            "has_top_p": top_p < 1,
            "base_key": seeding.jax_key(0, "generate"),
        }
        results: list[list[int]] = [[] for _ in prompts]
        for bucket in sorted(groups):
            rows = groups[bucket]
            for start in range(0, len(rows), self.width):
                chosen = rows[start : start + self.width]
                batch = self._batch(
                    [prompts[i] for i in chosen], [seeds[i] for i in chosen], bucket
                )
                generated_BM, counts_B = jax.device_get(
                    self._programs.run(graphdef, state, **batch, **settings)
                )
                for i, tokens_M, count in zip(chosen, generated_BM, counts_B, strict=False):
                    results[i] = tokens_M[:count].tolist()
        return results

    def _check(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        top_p: float,
    ) -> None:
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens={max_new_tokens} must be at least 1.")
        if not 0 <= temperature < float("inf"):
            raise InputError(f"temperature={temperature} must be 0 or above.")
        if not 0 < top_p <= 1:
            raise InputError(f"top_p={top_p} must lie in (0, 1].")
        if len(seeds) != len(prompts):
            raise InputError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one each.")
        vocab_size = self.model.config.vocab_size
        for row, prompt in enumerate(prompts):
            if not len(prompt):
                raise InputError(f"prompts[{row}] is empty; it needs at least one token.")
            if min(prompt) < 0 or max(prompt) >= vocab_size:
                raise InputError(
                    f"prompts[{row}] holds a token id outside 0 … {vocab_size - 1}; its "
                    "tokenizer belongs to another model."
                )

    def _stop_table(self, eos_ids: Iterable[int]) -> np.ndarray:
        is_stop_V = np.zeros(self.model.config.vocab_size, bool)
        for token in eos_ids:
            if not 0 <= token < len(is_stop_V):
                raise InputError(f"eos_ids holds {token}, outside 0 … {len(is_stop_V) - 1}.")
            is_stop_V[token] = True
        return is_stop_V

    def _bucket(self, length: int, row: int, max_new_tokens: int) -> int:
        limit = self.model.config.max_positions - max_new_tokens
        if length > limit:
            raise InputError(
                f"prompts[{row}] has {length} tokens, but with max_new_tokens={max_new_tokens} "
                f"the model has room for {limit}; shorten it."
            )
        for bucket in self.buckets:
            if length <= bucket:
                return bucket
        raise InputError(
            f"prompts[{row}] has {length} tokens, more than the largest bucket "
            f"({self.buckets[-1]}); shorten it or add a bucket."
        )

    def _batch(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], bucket: int
    ) -> dict[str, np.ndarray]:
        tokens_BP = np.zeros((self.width, bucket), np.int32)
        lengths_B = np.zeros(self.width, np.int32)
        seeds_B = np.zeros(self.width, np.uint32)
        for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            tokens_BP[row, : len(prompt)] = prompt
            lengths_B[row] = len(prompt)
            seeds_B[row] = seed & 0xFFFFFFFF
        return {"tokens_BP": tokens_BP, "lengths_B": lengths_B, "seeds_B": seeds_B}


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
    top_p: float = 1.0,
) -> list[list[int]]:
    """`Generator(model, …).generate(…)`; programs are kept for later calls of the same form."""
    generator = Generator(model, width=width, buckets=buckets)
    generator._programs = _shared_programs
    return generator.generate(
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seeds=seeds,
        eos_ids=eos_ids,
        top_p=top_p,
    )


def _generate(
    model: Qwen2,
    *,
    tokens_BP: jax.Array,
    lengths_B: jax.Array,
    seeds_B: jax.Array,
    is_stop_V: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    base_key: jax.Array,
    max_new_tokens: int,
    has_top_p: bool,
) -> tuple[jax.Array, jax.Array]:
    """New tokens [B, M] and how many of them count [B]; rows of length 0 are empty."""
    B, P = tokens_BP.shape
    keys_B = jax.vmap(partial(jax.random.fold_in, base_key))(seeds_B)
    slots_S = jnp.arange(P + max_new_tokens)

    def choose(logits_BV: jax.Array, step: jax.Array) -> jax.Array:
        """The next token of each row, drawn by the Gumbel-max trick."""
        noise_BV = jax.vmap(
            lambda key: jax.random.gumbel(jax.random.fold_in(key, step), logits_BV.shape[1:])
        )(keys_B)
        scaled_BV = logits_BV / jnp.maximum(temperature, 1e-6)
        if has_top_p:
            scaled_BV = _keep_top(scaled_BV, top_p)
        sampled_B = jnp.argmax(scaled_BV + noise_BV, axis=-1)
        return jnp.where(temperature > 0, sampled_B, jnp.argmax(logits_BV, axis=-1))

    def record(state: _Decoding, logits_BV: jax.Array) -> _Decoding:
        """Choose and keep one more token of every row that has not stopped."""
        chosen_B = choose(logits_BV, state.step).astype(jnp.int32)
        return state._replace(
            step=state.step + 1,
            tokens=chosen_B,
            is_done=state.is_done | is_stop_V[chosen_B],
            counts=state.counts + ~state.is_done,
            generated=jax.lax.dynamic_update_slice_in_dim(
                state.generated, chosen_B[:, None], state.step, axis=1
            ),
        )

    def is_unfinished(state: _Decoding) -> jax.Array:
        return (state.step < max_new_tokens) & ~jnp.all(state.is_done)

    def advance(state: _Decoding) -> _Decoding:
        slot = P + state.step - 1
        # A row sees its prompt and what was generated; the prompt's padding in between is dark.
        is_new_S = (slots_S >= P) & (slots_S <= slot)
        is_visible_BS = (slots_S[None] < lengths_B[:, None]) | is_new_S[None]
        positions_B = lengths_B + state.step - 1
        logits_BV, k_LBKSH, v_LBKSH = _decode(
            model, state.tokens, positions_B, slot, is_visible_BS, state.keys, state.values
        )
        return record(state._replace(keys=k_LBKSH, values=v_LBKSH), logits_BV)

    logits_BV, k_LBKSH, v_LBKSH = _prefill(model, tokens_BP, lengths_B, max_new_tokens)
    start = _Decoding(
        step=jnp.int32(0),
        tokens=jnp.zeros(B, jnp.int32),
        is_done=lengths_B == 0,
        counts=jnp.zeros(B, jnp.int32),
        generated=jnp.zeros((B, max_new_tokens), jnp.int32),
        keys=k_LBKSH,
        values=v_LBKSH,
    )
    last = jax.lax.while_loop(is_unfinished, advance, record(start, logits_BV))
    return last.generated, last.counts


def _prefill(
    model: Qwen2, tokens_BP: jax.Array, lengths_B: jax.Array, max_new_tokens: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [B, V] after each prompt and the caches [L, B, K, P + max_new_tokens, H]."""
    config, P = model.config, tokens_BP.shape[1]
    rope = rope_angles(jnp.arange(P)[None], config.head_dim, config.rope_theta)

    def fill(tokens_P: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def layer(block: Block, x_1PD: jax.Array, _: None) -> tuple[jax.Array, Any]:
            q_1PNH, k_1PKH, v_1PKH = block.before_attention(x_1PD, rope)
            attended = tree_attention(q_1PNH, k_1PKH, v_1PKH)
            cached = (k_1PKH[0].swapaxes(0, 1), v_1PKH[0].swapaxes(0, 1))
            return block.after_attention(x_1PD, attended), cached

        x_1PD, (k_LKPH, v_LKPH) = model.scan_layers(layer, model.embed_tokens(tokens_P[None]))
        last_D = jax.lax.dynamic_index_in_dim(x_1PD[0], length - 1, keepdims=False)
        return model.norm(last_D), k_LKPH, v_LKPH

    shapes = jax.eval_shape(fill, tokens_BP[0], lengths_B[0])

    def skip(tokens_P: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def row(caches: tuple[jax.Array, jax.Array], inputs: Any) -> tuple[Any, jax.Array]:
        index, tokens_P, length = inputs
        last_D, *filled = jax.lax.cond(length > 0, fill, skip, tokens_P, length)
        place = (0, index, 0, 0, 0)
        written = tuple(
            jax.lax.dynamic_update_slice(cache_LBKSH, new_LKPH[:, None], place)
            for cache_LBKSH, new_LKPH in zip(caches, filled, strict=True)
        )
        return written, last_D

    B, K, H = len(tokens_BP), config.num_kv_heads, config.head_dim
    empty_LBKSH = jnp.zeros((config.num_layers, B, K, P + max_new_tokens, H), model.dtype)
    caches, last_BD = jax.lax.scan(
        row, (empty_LBKSH, empty_LBKSH), (jnp.arange(B), tokens_BP, lengths_B)
    )
    return model.logits(last_BD), *caches


def _decode(
    model: Qwen2,
    tokens_B: jax.Array,
    positions_B: jax.Array,
    slot: jax.Array,
    is_visible_BS: jax.Array,
    k_LBKSH: jax.Array,
    v_LBKSH: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits [B, V] after one more token per row, and the caches with it at `slot`."""
    config = model.config
    rope = rope_angles(positions_B[:, None], config.head_dim, config.rope_theta)

    def layer(block: Block, carry: Any, index: jax.Array) -> tuple[Any, None]:
        x_B1D, k_LBKSH, v_LBKSH = carry
        q_B1NH, k_B1KH, v_B1KH = block.before_attention(x_B1D, rope)
        place = (index, 0, 0, slot, 0)
        k_LBKSH = jax.lax.dynamic_update_slice(k_LBKSH, k_B1KH.swapaxes(1, 2)[None], place)
        v_LBKSH = jax.lax.dynamic_update_slice(v_LBKSH, v_B1KH.swapaxes(1, 2)[None], place)
        attended = cached_attention(q_B1NH, k_LBKSH[index], v_LBKSH[index], is_visible_BS)
        return (block.after_attention(x_B1D, attended), k_LBKSH, v_LBKSH), None

    carry = (model.embed_tokens(tokens_B[:, None]), k_LBKSH, v_LBKSH)
    (x_B1D, k_LBKSH, v_LBKSH), _ = model.scan_layers(layer, carry, jnp.arange(config.num_layers))
    return model.logits(model.norm(x_B1D)[:, 0]), k_LBKSH, v_LBKSH


def _keep_top(logits_BV: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits with all but the nucleus (arXiv 1904.09751) at -inf; the likeliest always stays."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    num_kept_B1 = jnp.sum(before_BV < top_p, axis=-1, keepdims=True)
    threshold_B1 = jnp.take_along_axis(sorted_BV, num_kept_B1 - 1, axis=-1)
    return jnp.where(logits_BV >= threshold_B1, logits_BV, -jnp.inf)
