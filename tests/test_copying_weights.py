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
from pretraining.copying_weights import ROPE_THETA, write_copying_weights

NUM_HEADS, GROUP_SIZE, HEAD_DIM, NUM_TOKENS = 6, 3, 64, 60


def student(num_layers):
    config = Qwen2Config(
        vocab_size=256,
        hidden_size=NUM_HEADS * HEAD_DIM,
        intermediate_size=32,
        num_layers=num_layers,
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_HEADS // GROUP_SIZE,
        head_dim=HEAD_DIM,
        rope_theta=ROPE_THETA,
        norm_eps=1e-6,
        max_positions=512,
        is_tied=True,
        eos_token_ids=(0,),
    )
    return functools.partial(Qwen2, config, key=jax.random.key(0))


@pytest.fixture(scope="module")
def started():
    """A student before any training, what of it is to be trained, and a text that is said twice."""
    model = student(num_layers=2)()
    trained = write_copying_weights(model, np.random.default_rng(0), max_tokens=512)
    once = np.random.default_rng(1).permutation(256)[:NUM_TOKENS]
    return model, trained, np.tile(once, 2)[None]


@pytest.fixture(scope="module")
def attended(started):
    """[L, N, T, T]: what each head of each layer attends to."""
    model, _, tokens_BT = started
    T = tokens_BT.shape[1]
    graphdef, state = nnx.split(model.layers)

    @jax.jit
    def attend(state, x_BTD):
        layer = nnx.merge(graphdef, state)
        rope = rope_angles(jnp.arange(T)[None], HEAD_DIM, ROPE_THETA)
        q_BTNH, k_BTKH, v_BTKH = layer.before_attention(x_BTD, rope)
        k_BTNH, v_BTNH = (jnp.repeat(a, GROUP_SIZE, axis=2) for a in (k_BTKH, v_BTKH))
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


def test_the_heads_of_the_first_layer_look_one_two_and_three_tokens_back(attended):
    for n in range(1, GROUP_SIZE + 1):
        backs = np.diagonal(attended[0, n - 1], offset=-n)
        assert backs[GROUP_SIZE:].min() > 0.85


def test_the_next_layer_finds_what_followed_the_same_tokens(attended):
    """At a token said before, the frozen heads look at the position after it; the others lean
    towards it. Those that compare more tokens are surer."""
    answers = np.diagonal(attended[1], offset=1 - NUM_TOKENS, axis1=1, axis2=2)[:, GROUP_SIZE:]
    frozen, leaning = np.split(answers, 2)
    assert (frozen.mean(axis=1) > [0.5, 0.9, 0.99]).all()
    chances = 1 / np.arange(NUM_TOKENS + GROUP_SIZE, 2 * NUM_TOKENS + 1)
    rises = (leaning / chances[: answers.shape[1]]).mean(axis=1)
    assert (np.diff(rises) > 0).all()
    assert rises[0] > 1.05
    assert leaning.mean(axis=1).max() < 0.5


def test_random_words_are_copied_before_any_training(started):
    model, _, tokens_BT = started
    predicted_T = np.asarray(jax.jit(model)(tokens_BT))[0].argmax(axis=-1)
    second = slice(NUM_TOKENS + GROUP_SIZE, -1)
    assert np.mean(predicted_T[second] == np.roll(tokens_BT[0], -1)[second]) > 0.95


def test_what_copies_is_not_trained(started):
    model, trained, _ = started
    frozen = {
        ".".join(map(str, path)): float(np.mean(np.asarray(leaf) == 0))
        for path, leaf in nnx.to_flat_state(trained)
        if not np.asarray(leaf).all()
    }
    # Of two layers: one of two key heads with its queries, and the norms before them.
    projections = [f"{name}_proj.{part}" for name in "qkv" for part in ("weight", "bias")]
    assert frozen == {
        **{f"layers.self_attn.{name}": 0.5 for name in [*projections, "o_proj.weight"]},
        "layers.input_layernorm.weight": 1.0,
    }
    assert jax.tree.structure(trained) == jax.tree.structure(nnx.state(model, nnx.Param))


def test_one_layer_cannot_copy():
    with pytest.raises(InputError, match=r"two layers or more.*Raise --num-layers"):
        write_copying_weights(
            nnx.eval_shape(student(num_layers=1)), np.random.default_rng(0), max_tokens=512
        )
