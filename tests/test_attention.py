"""Blockwise attention against the dense mask that it stands for."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_attention import dense

from emodistill.model.attention import _add, tree_attention
from emodistill.seeding import stream


def random_ends(rng, num_positions, num_padding):
    """A random forest in depth-first order, then padding that sees itself alone."""
    ends = np.zeros(num_positions, np.int32)
    path: list[int] = []
    for position in range(num_positions - num_padding):
        while path and rng.random() < 0.1:
            ends[path.pop()] = position
        if path and rng.random() < 0.01:  # another root
            ends[path], path = position, []
        path.append(position)
    ends[path] = num_positions - num_padding
    ends[num_positions - num_padding :] = np.arange(num_positions - num_padding, num_positions) + 1
    return ends


def inputs(num_positions, num_heads=6, num_kv_heads=2, num_rows=2, dtype=jnp.float32):
    rng = stream(num_positions, "attention")
    shapes = [(num_rows, num_positions, heads, 16) for heads in (num_heads, num_kv_heads)]
    q, k, v, grad = (
        rng.normal(size=shape).astype(dtype) for shape in (*shapes, shapes[1], shapes[0])
    )
    ends = [random_ends(rng, num_positions, padding) for padding in (0, num_positions // 4)]
    return (q, k, v), np.stack(ends[:num_rows]), grad


@functools.partial(jax.jit, static_argnums=0, static_argnames=("block_size", "group_size"))
def with_gradients(attention, heads, ends_BT, grad, **sizes):
    """Values and gradients in one program: op by op, loops are compiled one after the other."""
    out, pull = jax.vjp(lambda *heads: attention(*heads, ends_BT, **sizes), *heads)
    return out, pull(grad)


blockwise = jax.jit(functools.partial(tree_attention, block_size=32))


@functools.cache
def expected_of(num_positions):
    """Values and gradients of the dense mask for `inputs(num_positions)`."""
    return with_gradients(dense, *inputs(num_positions))


@pytest.mark.parametrize(
    ("num_positions", "group_size"),
    [
        *((num_positions, 3) for num_positions in (1, 64, 129, 300)),
        *((300, group_size) for group_size in (1, 64)),
        *(
            pytest.param(num_positions, group_size, marks=pytest.mark.slow)
            for num_positions in (1, 64, 129)
            for group_size in (1, 64)
        ),
    ],
)
def test_values_and_gradients_are_those_of_the_dense_mask(num_positions, group_size):
    out, grads = with_gradients(
        tree_attention, *inputs(num_positions), block_size=32, group_size=group_size
    )
    expected, expected_grads = expected_of(num_positions)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(grads, expected_grads, rtol=1e-4, atol=1e-4)


def test_plain_rows_are_causal():
    heads, _, _ = inputs(70)
    whole = np.full((2, 70), 70)
    expected = jax.jit(dense)(*heads, whole)
    np.testing.assert_allclose(jax.jit(tree_attention)(*heads), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_close_with_float32_softmax():
    heads, ends_BT, _ = inputs(200, dtype=jnp.bfloat16)
    out = blockwise(*heads, ends_BT)
    assert out.dtype == jnp.bfloat16
    wide = [x.astype(np.float32) for x in heads]
    expected = jax.jit(dense)(*wide, ends_BT)
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, atol=0.03)


def test_what_is_not_seen_is_skipped_and_no_array_is_quadratic():
    """NaN keys in blocks that no query of other subtrees sees never reach those."""
    (q, k, v), _, _ = inputs(256, num_rows=1)
    ends_BT = np.repeat([64, 128, 192, 256], 64)[None]  # four roots
    spoilt = k.copy()
    spoilt[:, 64:128] = np.nan
    out = np.asarray(blockwise(q, spoilt, v, ends_BT))
    assert np.isnan(out[0, 64:128]).all()
    assert np.isfinite(out[0, :64]).all() and np.isfinite(out[0, 128:]).all()

    def loss(q, k, v):
        return tree_attention(q, k, v, ends_BT, block_size=32).sum()

    jaxpr = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v))
    assert "256,256" not in jaxpr


def test_sums_of_blocks_side_by_side_are_float32_throughout():
    """By default a GPU would round gradients to TF32 as it adds them up."""
    text = str(jax.make_jaxpr(_add)(jnp.zeros((5, 3)), jnp.arange(2), jnp.ones((2, 3))))
    assert text.count("dot_general") == 1 and text.count("HIGHEST") == 2
