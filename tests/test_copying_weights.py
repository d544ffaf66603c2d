"""The start weights of the embedded student: what its heads attend to before any training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from emodistill.errors import InputError
from emodistill.model.attention import rope_angles
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import Qwen2
from pretraining.copying_weights import write_copying_weights

NUM_HEADS, HEAD_DIM, NUM_TOKENS = 4, 64, 60


def student(num_layers):
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=NUM_HEADS * HEAD_DIM,
        intermediate_size=32,
        num_layers=num_layers,
        num_heads=NUM_HEADS,
        num_kv_heads=2,
        head_dim=HEAD_DIM,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_positions=512,
        is_tied=True,
        eos_token_ids=(0,),
    )
    return functools.partial(Qwen2, config, key=jax.random.key(0))


@pytest.fixture(scope="module")
def attended():
    """[L, N, T, T]: what each head of each layer attends to in a text that is said twice."""
    model = student(num_layers=2)()
    write_copying_weights(model, np.random.default_rng(0), max_tokens=512)
    once = np.random.default_rng(1).permutation(256)[:NUM_TOKENS]
    tokens_BT = np.tile(once, 2)[None]
    T = tokens_BT.shape[1]
    graphdef, state = nnx.split(model.layers)

    @jax.jit
    def attend(state, x_BTD):
        layer = nnx.merge(graphdef, state)
        rope = rope_angles(jnp.arange(T)[None], HEAD_DIM, 1e6)
        q_BTNH, k_BTKH, v_BTKH = layer.before_attention(x_BTD, rope)
        k_BTNH, v_BTNH = (jnp.repeat(a, NUM_HEADS // 2, axis=2) for a in (k_BTKH, v_BTKH))
        scores_BNTS = jnp.einsum("btnh,bsnh->bnts", q_BTNH, k_BTNH)
        scores_BNTS = jnp.where(jnp.tril(jnp.ones((T, T), bool))[None, None], scores_BNTS, -1e9)
        shares_BNTS = jax.nn.softmax(scores_BNTS)
        gathered_BTNH = jnp.einsum("bnts,bsnh->btnh", shares_BNTS, v_BTNH)
        return layer.after_attention(x_BTD, gathered_BTNH), shares_BNTS[0]

    first, second = (jax.tree.map(lambda a, n=n: np.asarray(a)[n], state) for n in range(2))
    embedded_BTD = np.asarray(model.embed_tokens.weight[...])[tokens_BT]
    x_BTD, first_NTS = attend(first, embedded_BTD)
    _, second_NTS = attend(second, x_BTD)
    return np.stack([first_NTS, second_NTS])


def test_the_heads_of_the_first_layer_look_one_two_three_and_four_tokens_back(attended):
    for n in range(1, NUM_HEADS + 1):
        backs = np.diagonal(attended[0, n - 1], offset=-n)
        assert backs[NUM_HEADS:].min() > 0.85


def test_the_next_layer_looks_for_what_followed_the_same_tokens(attended):
    """At a token said before, the position after it gets more attention than any other would by
    chance, and the most of all for the heads that compare several tokens."""
    answers = np.diagonal(attended[1], offset=1 - NUM_TOKENS, axis1=1, axis2=2)[:, NUM_HEADS:]
    chances = 1 / np.arange(NUM_TOKENS + NUM_HEADS, 2 * NUM_TOKENS + 1)
    rises = (answers / chances[: answers.shape[1]]).mean(axis=1)
    assert (np.diff(rises) > 0).all()
    assert rises[0] > 1.1
    assert rises[-1] > 1.7
    latest = attended[1, -1, NUM_TOKENS + NUM_HEADS :].argmax(axis=-1)
    expected = np.arange(len(latest)) + NUM_HEADS + 1
    assert np.mean(latest == expected) > 0.6


def test_one_layer_cannot_copy():
    with pytest.raises(InputError, match=r"two layers or more.*Raise --num-layers"):
        write_copying_weights(
            nnx.eval_shape(student(num_layers=1)), np.random.default_rng(0), max_tokens=512
        )
