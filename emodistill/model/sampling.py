"""Drawing the next token of each row.

Axes: B rows, V vocabulary, X groups of it, Y tokens of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emodistill import seeding

GROUP = 128
"""Tokens of a group: a cumulative sum over few groups, then over one of them, instead of over the
vocabulary, which takes as long as a small model's layers."""


class Sampling(NamedTuple):
    """How each row draws."""

    seeds_B: jax.Array | np.ndarray
    temperatures_B: jax.Array | np.ndarray
    """0 takes the likeliest token."""
    top_ps_B: jax.Array | np.ndarray
    """Tokens are drawn from the likeliest ones whose probabilities reach this; 1 means all."""


def draw(logits_BV: jax.Array, sampling: Sampling, steps_B: jax.Array) -> jax.Array:
    """A token for each row [B]; the noise depends on the row's seed and the step alone."""
    likeliest_B = jnp.argmax(logits_BV, axis=-1)

    def sampled() -> jax.Array:
        warm_B = jnp.maximum(sampling.temperatures_B, 1e-6)
        scaled_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / warm_B[:, None]
        weights_BV = jnp.exp(scaled_BV)
        weights_BV = jax.lax.cond(
            jnp.any(sampling.top_ps_B < 1),
            lambda: _nucleus(weights_BV, sampling.top_ps_B),
            lambda: weights_BV,
        )
        key = seeding.jax_key(0, "generate")
        uniform_B = jax.vmap(
            lambda seed, step: jax.random.uniform(
                jax.random.fold_in(jax.random.fold_in(key, seed), step)
            )
        )(sampling.seeds_B, steps_B)
        return _inverse_cdf(weights_BV, uniform_B)

    is_greedy_B = jnp.asarray(sampling.temperatures_B) == 0
    drawn_B = jax.lax.cond(jnp.all(is_greedy_B), lambda: likeliest_B, sampled)
    return jnp.where(is_greedy_B, likeliest_B, drawn_B).astype(jnp.int32)


def logprobs(logits_BV: jax.Array, tokens_B: jax.Array) -> jax.Array:
    """Log-probabilities [B] of chosen tokens, at temperature 1."""
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def likeliest(logits_BV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` likeliest tokens of each row, and their log-probs at temperature 1 [B, count]."""
    logits_BL, tokens_BL = jax.lax.top_k(logits_BV, count)
    return tokens_BL, logits_BL - jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True)


def _nucleus(weights_BV: jax.Array, top_ps_B: jax.Array | np.ndarray) -> jax.Array:
    """`weights_BV` without the unlikely tokens; of equal ones all stay or none.

    The least weight that stays is found by halving: for positive floats the order of the numbers is
    that of their bits. To sort the vocabulary would take far longer.
    """
    wanted_B = top_ps_B * weights_BV.sum(axis=-1)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The tokens from `low` on reach what is wanted, those from `high` on do not."""
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B) // 2
        least_B = jax.lax.bitcast_convert_type(middle_B, jnp.float32)
        kept_BV = jnp.where(weights_BV >= least_B[:, None], weights_BV, 0)
        is_enough_B = kept_BV.sum(axis=-1) >= wanted_B
        return jnp.where(is_enough_B, middle_B, low_B), jnp.where(is_enough_B, high_B, middle_B)

    # The largest weight is 1, whose token always stays.
    one = jax.lax.bitcast_convert_type(jnp.float32(1), jnp.int32)
    bounds = jnp.zeros_like(wanted_B, jnp.int32), jnp.full_like(wanted_B, one + 1, jnp.int32)
    low_B, _ = jax.lax.fori_loop(0, 31, halve, bounds)
    least_B = jax.lax.bitcast_convert_type(jnp.minimum(low_B, one), jnp.float32)
    is_kept_BV = (weights_BV >= least_B[:, None]) | (jnp.asarray(top_ps_B) >= 1)[:, None]
    return jnp.where(is_kept_BV, weights_BV, 0)


def _inverse_cdf(weights_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The token at which the cumulative weight passes a uniform share of the whole."""
    B, V = weights_BV.shape
    weights_BXY = jnp.pad(weights_BV, ((0, 0), (0, -V % GROUP))).reshape(B, -1, GROUP)

    def passed(weights_BX: jax.Array, wanted_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where the cumulative weight passes what is wanted, and what remains of that there.

        Rounding may leave it just below; then the heaviest, which is never one of weight 0.
        """
        cumulative_BX = jnp.cumsum(weights_BX, axis=-1)
        is_past_BX = cumulative_BX > wanted_B[:, None]
        found_B = jnp.where(
            is_past_BX.any(axis=-1), is_past_BX.argmax(axis=-1), weights_BX.argmax(axis=-1)
        )
        before_BX = jnp.pad(cumulative_BX[:, :-1], ((0, 0), (1, 0)))
        before_B = jnp.take_along_axis(before_BX, found_B[:, None], axis=-1)[:, 0]
        return found_B, jnp.maximum(wanted_B - before_B, 0)

    sums_BX = weights_BXY.sum(axis=-1)
    groups_B, remains_B = passed(sums_BX, uniform_B * sums_BX.sum(axis=-1))
    weights_BY = jnp.take_along_axis(weights_BXY, groups_B[:, None, None], axis=1)[:, 0]
    return groups_B * GROUP + passed(weights_BY, remains_B)[0]
