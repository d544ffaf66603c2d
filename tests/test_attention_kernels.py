"""The kernels of tree attention, run step by step in JAX, against the dense mask."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_attention import dense
from flax import nnx
from random_models import random_parts
from tiny_training import CONFIG

from emodistill.errors import InputError
from emodistill.model import Qwen2, attention_forms
from emodistill.model.attention_forms import attention_form
from emodistill.model.attention_kernels import (
    LARGE,
    SMALL,
    KernelShapes,
    Schedule,
    kernel_attention,
    seen_blocks,
    shapes_for,
)
from emodistill.seeding import jax_key, stream

SHAPES = KernelShapes(16, 16, 32, *(Schedule(4, 1),) * 3)
LONG_QUERY_BLOCKS = KernelShapes(32, 16, 16, *(Schedule(4, 1),) * 3)
"""In the proportions of the shapes for GPUs."""
NUM_POSITIONS = 75
CASES = [
    ("float32", 64, 1, NUM_POSITIONS, SHAPES),
    pytest.param("float32", 128, 4, NUM_POSITIONS, SHAPES, marks=pytest.mark.slow),
    ("float32", 64, 7, NUM_POSITIONS, SHAPES),
    ("bfloat16", 128, 7, NUM_POSITIONS, SHAPES),
    pytest.param("float32", 16, 2, NUM_POSITIONS, LONG_QUERY_BLOCKS, marks=pytest.mark.slow),
    ("float32", 16, 2, 3 * LONG_QUERY_BLOCKS.multiple, LONG_QUERY_BLOCKS),  # filled to the end
]
"""(dtype, width of a head, query heads that share a key/value head, positions, shapes)."""
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def forest(rng, num_tokens, leaf_share, num_positions):
    """The ends of random trees in depth-first order, filled up with padding of any end."""
    ends = np.zeros(num_tokens, np.int32)
    path: list[int] = []
    for position in range(num_tokens):
        while path and rng.random() < leaf_share:
            ends[path.pop()] = position
        path.append(position)
    ends[path] = num_tokens
    return np.pad(ends, (0, num_positions - num_tokens))


def ends_of_rows(T=NUM_POSITIONS):
    """A row that is filled to its last position, and one of many one-token subtrees."""
    rng = stream(0, "forest")
    return np.stack([forest(rng, T, 0.1, T), forest(rng, 60, 0.6, T)])


@functools.cache
def compiled(dtype, H, group, T=NUM_POSITIONS, shapes=SHAPES):
    """Both forms with their gradients, and what they are given: two key/value heads, or one."""
    K = 2 if group == 1 else 1
    rng = stream(H + group, "heads")
    q, grad, k, v = (
        rng.normal(size=(2, T, heads, H)).astype(jnp.dtype(dtype))
        for heads in (K * group, K * group, K, K)
    )
    ends_BT = ends_of_rows(T)

    def both(q, k, v, grad, attend):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(grad)

    def ours(q, k, v):
        seen = seen_blocks(ends_BT, shapes)
        return kernel_attention(q * H**-0.5, k, v, seen, shapes=shapes, interpret=True)

    def expected(q, k, v):
        is_padding_BT = ends_BT == 0
        own_BT = jnp.where(is_padding_BT, jnp.arange(1, T + 1)[None], ends_BT)
        return dense(q * H**-0.5, k, v, own_BT)

    forms = (jax.jit(functools.partial(both, attend=attend)) for attend in (ours, expected))
    return *forms, (q, k, v, grad)


@pytest.mark.parametrize(("dtype", "H", "group", "T", "shapes"), CASES)
def test_values_and_gradients_are_those_of_the_dense_mask(dtype, H, group, T, shapes):
    ours, expected, arrays = compiled(dtype, H, group, T, shapes)
    wide = [x.astype(np.float32) for x in arrays]
    for found, true in zip(ours(*arrays), map(np.asarray, expected(*wide)), strict=True):
        assert found.dtype == dtype
        error = np.abs(np.asarray(found, np.float32) - true).max() / np.abs(true).max()
        assert error < TOLERANCE[dtype]


def test_nothing_outside_of_a_subtree_changes_a_bit():
    """Neither values nor gradients of queries that don't see a key depend on it."""
    ours, _, (q, k, v, grad) = compiled(*CASES[0])
    ends_BT = ends_of_rows()
    before = list(map(np.asarray, ours(q, k, v, grad)))
    for key in (3, 40):
        is_key_T = (np.arange(NUM_POSITIONS) == key)[:, None, None]
        out, dq, *_ = ours(q, k + np.float32(5) * is_key_T, v + np.float32(7) * is_key_T, grad)
        positions = np.arange(NUM_POSITIONS)
        sees_BT = (positions >= key)[None] & (positions[None] < ends_BT[:, [key]])
        sees_BT[:, key] = True
        assert sees_BT.any() and not sees_BT.all()
        for found, was in ((out, before[0]), (dq, before[1])):
            same_BT = (np.asarray(found) == was).all(axis=(2, 3))
            np.testing.assert_array_equal(same_BT, ~sees_BT)


def test_blocks_that_nobody_sees_are_not_read():
    ends_BT = np.repeat([32, 64], 32)[None]
    blocks = jax.jit(functools.partial(seen_blocks, shapes=SHAPES))
    seen = jax.tree.map(np.asarray, blocks(ends_BT))
    np.testing.assert_array_equal(seen.num_seen_BQ[0], [1, 2, 1, 2])
    np.testing.assert_array_equal(seen.key_blocks_BQJ[0, :, :2], [[0, 1], [0, 1], [2, 0], [2, 3]])
    np.testing.assert_array_equal(seen.last_ends_BJ[0], [32, 32, 64, 64])
    # The end of padding may lie anywhere, and no query lies beyond the row.
    ends_BT[0, -1] = 1000
    seen = blocks(ends_BT)
    np.testing.assert_array_equal(seen.last_ends_BJ[0], [32, 32, 64, 64])


def test_a_model_computes_the_same_in_both_forms(monkeypatch):
    tokens_BT, ends_BT = np.arange(2 * NUM_POSITIONS).reshape(2, -1) % 200, ends_of_rows()

    def computed(**form):
        make = functools.partial(Qwen2, CONFIG, key=jax_key(0, "model"), **form)
        graphdef, state = random_parts(make)
        run = jax.jit(lambda state: nnx.merge(graphdef, state)(tokens_BT, ends_BT=ends_BT))
        return np.asarray(run(state))

    with monkeypatch.context() as patch:
        patch.setattr(attention_forms, "IS_INTERPRETED", True)
        found = computed(attention="pallas")
    expected = computed()
    is_token_BT = ends_BT > 0
    np.testing.assert_allclose(found[is_token_BT], expected[is_token_BT], rtol=1e-4, atol=1e-5)


def fake_mesh(platform="gpu", **device):
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform, **device)]))


AMPERE = fake_mesh(compute_capability="8.0")


def test_kernels_are_chosen_where_they_run():
    def chosen(mesh=AMPERE, head_dim=128, dtype=jnp.bfloat16):
        return attention_form(None, mesh, head_dim, dtype)

    assert chosen() == "pallas"
    assert attention_form("xla", AMPERE, 128, jnp.bfloat16) == "xla"
    assert chosen(fake_mesh("cpu")) == chosen(fake_mesh("tpu")) == "xla"
    assert chosen(fake_mesh(compute_capability="7.5")) == "xla"
    assert chosen(fake_mesh(compute_capability="gfx942")) == "xla"
    assert chosen(head_dim=80) == chosen(head_dim=8) == chosen(dtype=jnp.float32) == "xla"
    assert chosen(head_dim=16) == "pallas" and chosen(head_dim=256) == "xla"


@pytest.mark.parametrize(
    ("mesh", "head_dim", "dtype", "message"),
    [
        (None, 128, jnp.bfloat16, "takes an NVIDIA GPU, and this is a CPU; leave --attention out"),
        (fake_mesh(compute_capability="7.5"), 128, jnp.bfloat16, "compute capability 8.0 or later"),
        (AMPERE, 80, jnp.bfloat16, "width is a power of 2 from 16 to 128, and these have 80"),
        (AMPERE, 256, jnp.bfloat16, "width is a power of 2 from 16 to 128, and these have 256"),
        (AMPERE, 128, jnp.float32, "takes bfloat16, and this model is in float32"),
    ],
)
def test_kernels_are_refused_where_they_do_not_run(mesh, head_dim, dtype, message):
    with pytest.raises(InputError, match=message):
        attention_form("pallas", mesh, head_dim, dtype)


def test_blocks_fit_the_shared_memory():
    assert shapes_for(SimpleNamespace(shared_memory_per_block_optin=166_912)) == LARGE
    assert shapes_for(SimpleNamespace(shared_memory_per_block_optin=101_376)) == SMALL
