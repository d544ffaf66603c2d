"""Logits against Hugging Face's implementation on tiny random checkpoints, in float32."""

from __future__ import annotations

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_outputs import logits

from emodistill import model as model_package
from emodistill import seeding
from emodistill.errors import InputError
from emodistill.model import qwen2
from emodistill.model.config import Qwen2Config
from emodistill.model.qwen2 import Qwen2
from emodistill.model.weights import load_qwen2

TOKENS_BT = seeding.stream(0, "test-tokens").integers(0, 100, (2, 40))


def hf_logits(model, tokens_BT, **arguments):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        outputs = model(torch.tensor(tokens_BT), **arguments)
    return outputs.logits.numpy()


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen2", {"rope_theta": 1_000_000.0, "config_style": "hub", "num_key_value_heads": 6}),
        ("qwen2", {"rope_theta": 500.0, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}),
        ("llama", {"rope_theta": 50_000.0}),
        ("qwen3", {"rope_theta": 1_000_000.0}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("qwen2", {"num_key_value_heads": 3, "vocab_size": 203}),  # two query heads each
                ("qwen2", {"num_attention_heads": 8, "num_key_value_heads": 2}),  # four
                ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
            )
        ),
    ],
    ids=str,
)
def test_logits_equal_hf(make_hf_checkpoint, architecture, changes):
    folder, hf = make_hf_checkpoint(architecture, **changes)
    logits_BTV = logits(load_qwen2(folder, dtype=jnp.float32), TOKENS_BT)
    assert logits_BTV.dtype == jnp.float32
    assert relative_error(logits_BTV, hf_logits(hf, TOKENS_BT)) < 1e-5


def test_padding_equals_hf(make_hf_checkpoint):
    torch = pytest.importorskip("torch")
    folder, hf = make_hf_checkpoint()
    model = load_qwen2(folder, dtype=jnp.float32)
    mask_BT = np.ones_like(TOKENS_BT, bool)
    mask_BT[1, 25:] = False
    expected = hf_logits(hf, TOKENS_BT, attention_mask=torch.tensor(mask_BT.astype(int)))
    assert relative_error(logits(model, TOKENS_BT)[mask_BT], expected[mask_BT]) < 1e-5


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load_qwen2(tiny_checkpoint, dtype=jnp.float32)


def test_padding_is_not_told_by_token_ids(model):
    """Zeros are ordinary tokens where the row is long, and any token is padding where it ends."""
    tokens_BT = np.array([[5, 0, 0, 7, 0, 3]])
    full = logits(model, tokens_BT)
    for filler in (0, 9):
        padded = np.pad(tokens_BT, ((0, 0), (0, 4)), constant_values=filler)
        found = logits(model, padded)
        np.testing.assert_allclose(found[:, :6], full, rtol=1e-5, atol=1e-6)
    changed_BT = np.array([[5, 8, 0, 7, 0, 3]])
    assert not np.allclose(logits(model, changed_BT)[0, -1], full[0, -1], atol=1e-4)


def test_two_samples_share_a_prefix_in_one_row(model):
    prefix, first, second = [5, 6, 7, 8], [9, 10, 11], [12, 13]
    tokens_BT = np.array([prefix + first + second])
    positions_BT = np.array([[0, 1, 2, 3, 4, 5, 6, 4, 5]])
    ends_BT = np.array([[9] * 4 + [7] * 3 + [9] * 2])
    packed = logits(model, tokens_BT, positions_BT=positions_BT, ends_BT=ends_BT)
    np.testing.assert_allclose(packed[:, :7], logits(model, tokens_BT[:, :7]), rtol=1e-4, atol=1e-5)
    alone = logits(model, np.array([prefix + second]))
    np.testing.assert_allclose(packed[:, 7:], alone[:, 4:], rtol=1e-4, atol=1e-5)


def test_head_at_few_positions_equals_head_everywhere(model):
    tokens_BT = jnp.asarray(TOKENS_BT)
    graphdef, state = nnx.split(model)

    @jax.jit
    def at_few(state):
        merged = nnx.merge(graphdef, state)
        hidden_BTD = merged.hidden(tokens_BT)
        return merged.logits(hidden_BTD[:, 3:5]), merged.logits(hidden_BTD[0, 3])

    few, one = at_few(state)
    np.testing.assert_allclose(few, logits(model, tokens_BT)[:, 3:5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one, np.asarray(few)[0, 0], rtol=1e-5, atol=1e-6)


def gradients(model, remat):
    """The gradient of a loss, and how often its trace computes something again."""
    graphdef, params = nnx.split(model)

    def loss(params):
        merged = nnx.merge(graphdef, params)
        merged.remat = remat
        return jnp.mean(jax.nn.log_softmax(merged(jnp.asarray(TOKENS_BT)))[..., 3])

    traced = jax.jit(jax.grad(loss)).trace(params)
    return traced.lower().compile()(params), str(traced.jaxpr).count("remat")


@pytest.fixture(scope="module")
def plain(model):
    return gradients(model, "none")


@pytest.mark.parametrize(
    ("remat", "num_parts"),
    [("full", 3), ("dots", 1), pytest.param("full", 1, marks=pytest.mark.slow)],
)
def test_remat_changes_no_gradient(model, plain, remat, num_parts, monkeypatch):
    """Nor do the parts in which the MLP then takes long rows, here 14, 14 and 12 tokens."""
    monkeypatch.setattr(qwen2, "MLP_TOKENS", 0)
    monkeypatch.setattr(qwen2, "MLP_PARTS", num_parts)
    rematted, num_remat = gradients(model, remat)
    assert plain[1] == 1 < num_remat  # the MLP's two factors, and whole layers beside them
    chex.assert_trees_all_close(rematted, plain[0], rtol=1e-4, atol=1e-7)


def test_bfloat16_weights_give_float32_logits_close_to_float32(model, tiny_checkpoint):
    half = load_qwen2(tiny_checkpoint)
    assert half.dtype == jnp.bfloat16
    assert jax.eval_shape(half.hidden, TOKENS_BT).dtype == jnp.bfloat16
    found = logits(half, TOKENS_BT)
    assert found.dtype == jnp.float32
    assert 0 < relative_error(found, np.asarray(logits(model, TOKENS_BT))) < 0.03


def test_program_size_does_not_grow_with_depth():
    def num_equations(num_layers):
        config = Qwen2Config(
            vocab_size=16,
            hidden_size=8,
            intermediate_size=8,
            num_layers=num_layers,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            rope_theta=1e4,
            norm_eps=1e-6,
            max_positions=64,
            is_tied=True,
        )
        model = nnx.eval_shape(lambda: Qwen2(config, key=seeding.jax_key(0, "test")))
        graphdef, state = nnx.split(model)
        tokens_BT = jnp.zeros((1, 8), jnp.int32)
        return str(jax.make_jaxpr(lambda s: nnx.merge(graphdef, s)(tokens_BT))(state)).count("\n")

    assert num_equations(2) == num_equations(12)


def test_wrong_shapes_are_refused(model):
    with pytest.raises(AssertionError, match=r"shape \(2, 39\) but expected \(2, 40\)"):
        model(TOKENS_BT, ends_BT=jnp.ones((2, 39), jnp.int32))
    with pytest.raises(AssertionError, match="rank"):
        model(TOKENS_BT[0])


QWEN = {
    "model_type": "qwen2",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64,
}


def test_config_reads_both_places_of_rope_theta():
    hub = Qwen2Config.from_hf({**QWEN, "use_sliding_window": False, "sliding_window": 131072})
    new = {k: v for k, v in QWEN.items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_theta": 1e6, "rope_type": "default"}
    assert hub == Qwen2Config.from_hf(new)
    assert (hub.rope_theta, hub.head_dim, hub.is_tied) == (1e6, 4, False)
    assert Qwen2Config.from_hf(hub.to_hf()) == hub


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' is not implemented; known: qwen2, llama"),
        ({"model_type": None}, "model_type=None is not implemented"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"num_key_value_heads": 3}, "num_heads=2 must be a multiple of num_kv_heads=3"),
        ({"num_hidden_layers": 0}, "num_layers=0 must be a positive integer"),
        ({"vocab_size": "many"}, "vocab_size='many' must be a positive integer"),
        ({"use_sliding_window": True}, "use_sliding_window=true is not implemented for qwen2"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type='yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": False}, "attention_bias=false is not implemented for qwen2"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias=true"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": ["qwen2"]}, r"model_type=\['qwen2'\] is not implemented"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be a positive integer"),
        ({"num_attention_heads": "2"}, "num_attention_heads='2' must be a positive integer"),
        ({"hidden_size": [8]}, r"hidden_size=\[8\] must be a positive integer"),
        ({"num_key_value_heads": 0}, "num_kv_heads=0 must be a positive integer"),
        ({"vocab_size": True}, "vocab_size=True must be a positive integer"),
        ({"rope_theta": "many"}, "rope_theta='many' must be a positive number"),
        ({"rope_theta": -1}, "rope_theta=-1 must be a positive number"),
        ({"rope_theta": math.nan}, "NaN is no JSON number"),
        ({"rms_norm_eps": -1}, "norm_eps=-1 must be a positive number"),
        ({"rope_scaling": "yarn"}, "rope_scaling='yarn' must be an object, or null"),
        ({"rope_parameters": [1]}, r"rope_parameters=\[1\] must be an object, or null"),
        ({"layer_types": 7}, "layer_types=7 must be a list"),
        ({"layer_types": [["full_attention"]]}, "layer_types="),
        ({"tie_word_embeddings": "no"}, "is_tied='no' must be true or false"),
        ({"eos_token_id": ["</s>"]}, r"eos_token_ids=\('</s>',\) must be token ids"),
        ({"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "factor"),
        (
            {"model_type": "llama", "attention_bias": False, "sliding_window": 4096},
            "sliding_window",
        ),
        ({"logits_scaling": 8.0}, "logits_scaling=8.0 is not implemented"),
        ({"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "auto_map"),
        ({"hidden_size": "9" * 5_000}, r"hidden_size='9+….{0,9} must be a positive integer"),
        ({"eos_token_id": {}}, r"eos_token_ids=\({},\) must be token ids"),
    ],
    ids=str,
)
def test_config_refuses_by_name(changes, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**QWEN, **changes}))
    with pytest.raises(InputError, match=message) as caught:
        Qwen2Config.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_config_file_errors(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        Qwen2Config.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"config\.json is missing"):
        Qwen2Config.from_pretrained(tmp_path)
    path = tmp_path / "config.json"
    for text, message in (('{"a": ', "no JSON"), ("[1]", "must hold a JSON object, not list")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            Qwen2Config.from_pretrained(tmp_path)
    path.write_text(json.dumps(QWEN))
    assert Qwen2Config.from_pretrained(tmp_path).vocab_size == 16


def test_the_package_has_all_that_it_names():
    assert "Qwen2" in model_package.__all__
    assert all(hasattr(model_package, name) for name in model_package.__all__)
