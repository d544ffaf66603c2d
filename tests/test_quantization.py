"""Weights in 8 and 4 bits: near the full ones, with their fingerprint, and trainable on."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_training import SFT, packed, sft

from emodistill.errors import InputError
from emodistill.model import (
    LoRAParam,
    add_lora,
    base_fingerprint,
    embedded_path,
    encode_chat,
    load_adapter,
    load_qwen2,
    load_tokenizer,
    save_adapter,
    save_qwen2,
    weights,
)
from emodistill.model.quantization import dequantized, quantized
from emodistill.seeding import stream
from emodistill.train.trainer import Trainer

# QLoRA's table (arXiv 2305.14314, Appendix E).
NORMAL_FLOAT = [
    *(-1.0, -0.696193, -0.525073, -0.394917, -0.284441, -0.184773, -0.091050, 0.0),
    *(0.079580, 0.160930, 0.246112, 0.337915, 0.440710, 0.562617, 0.722957, 1.0),
]


@pytest.fixture(scope="module")
def weight():
    return stream(0, "weight").normal(size=(2, 3, 256)).astype(np.float32)


@jax.jit
def full_numbers(codes):
    return dequantized(codes, jnp.float32)


def blocks(weight):
    return np.asarray(weight).reshape(-1, 64)


def test_int8_is_within_half_a_step_of_its_block(weight):
    found = full_numbers(quantized(weight, "int8"))
    step = np.abs(blocks(weight)).max(axis=1, keepdims=True) / 127
    assert (np.abs(blocks(found) - blocks(weight)) <= 0.51 * step).all()


def test_nf4_is_the_nearest_code_of_the_published_table(weight):
    found = full_numbers(quantized(weight, "nf4"))
    scaled = blocks(weight) / np.abs(blocks(weight)).max(axis=1, keepdims=True)
    codes = np.array(NORMAL_FLOAT)
    nearest = codes[np.abs(scaled[..., None] - codes).argmin(axis=-1)]
    expected = nearest * np.abs(blocks(weight)).max(axis=1, keepdims=True)
    np.testing.assert_allclose(blocks(found), expected, atol=1e-5)


def test_four_bits_are_stored_in_four(weight):
    assert str(quantized(weight, "nf4").qvalue.dtype) == "uint4"
    assert str(quantized(weight, "int8").qvalue.dtype) == "int8"


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_tokenizer(embedded_path())
    texts = [
        f"You are the creditor. They offer {days} days, you want {days // 3} days. Answer."
        for days in (30, 45, 60, 75, 90, 120)
    ]
    ids = [encode_chat(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    length = min(map(len, ids))
    return np.array([row[:length] for row in ids])


def logprobs(model, tokens_BT):
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state):
        return jax.nn.log_softmax(nnx.merge(graphdef, state)(tokens_BT))

    return np.asarray(run(state))


@pytest.fixture(scope="module")
def full(prompts):
    """What the student that ships says in full precision."""
    return logprobs(load_qwen2(embedded_path(), dtype=jnp.float32), prompts)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        pytest.param(None, 0.005, marks=pytest.mark.slow),
        pytest.param("int8", 0.005, marks=pytest.mark.slow),
        ("nf4", 0.4),
    ],
)
def test_a_trained_model_says_nearly_the_same(kind, most, prompts, full):
    """Mean KL of the next-token distribution, in nats, of the student that ships."""
    dtype = jnp.bfloat16 if kind is None else jnp.float32
    model = load_qwen2(embedded_path(), dtype=dtype, quantize=kind)
    assert model.quantization == kind
    found = logprobs(model, prompts)
    kl = float(np.mean(np.sum(np.exp(full) * (full - found), axis=-1)))
    print(f"{kind or 'bfloat16'}: {kl:.4f} nats")
    assert 0 < kl < most


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_the_fingerprint_is_that_of_the_full_weights(kind, tiny_checkpoint, tmp_path, monkeypatch):
    full = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    monkeypatch.setattr(weights, "MAX_GROUP_BYTES", 1)  # a layer at a time
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32, quantize=kind)
    assert base_fingerprint(model) == base_fingerprint(full)
    add_lora(model, rank=4)
    save_adapter(model, tmp_path / "adapter", "base")
    load_adapter(full, tmp_path / "adapter")  # trained on few bits, used on many


def test_lora_on_quantized_weights_has_the_gradient_of_the_dequantized_ones():
    """Values of B, gradients of A and B, and only they move."""
    batch = packed(batch_size=4).step(0).batches
    found = []
    for is_quantized in (True, False):
        model = make(is_quantized=is_quantized)
        graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
        trainer = Trainer(graphdef, sft, SFT, num_steps=1)
        found.append(trainer.gradients(lora, frozen, batch)[0])
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def make(*, is_quantized):
    """The tiny model with weights rounded to int8, as codes or as the numbers that they mean."""
    from tiny_training import tiny_model

    model = tiny_model(is_trained=True)
    for layer in (model.layers.mlp.up_proj, model.layers.self_attn.q_proj):
        codes = quantized(layer.weight[...], "int8")
        layer.weight.set_value(codes if is_quantized else full_numbers(codes))
    return model


def test_quantized_weights_are_not_saved(tiny_checkpoint, tmp_path):
    model = load_qwen2(tiny_checkpoint, quantize="int8")
    with pytest.raises(InputError, match="a model held in int8 can't be saved; load it without"):
        save_qwen2(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_missing_extra_is_named(tiny_checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(InputError, match=r"pip install 'emodistill\[quantize\]'"):
        load_qwen2(tiny_checkpoint, quantize="nf4")
