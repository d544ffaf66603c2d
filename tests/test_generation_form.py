"""The form of the weights that engines take on a processor says what the model says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_outputs import logits
from random_adapters import TOKENS_BT, with_random_adapter

from emodistill.model import load_qwen2
from emodistill.model.generation_form import generation_form


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of processors")
class TestOnProcessors:
    def test_it_says_the_same_and_leaves_the_model_alone(self, make_hf_checkpoint):
        folder, _ = make_hf_checkpoint(tie_word_embeddings=False)
        model = with_random_adapter(folder, rank=2, alpha=8, targets=("q_proj", "down_proj"))
        before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
        turned = generation_form(model)
        assert turned.lora is None and model.lora is not None
        np.testing.assert_allclose(logits(turned, TOKENS_BT), logits(model, TOKENS_BT), atol=2e-4)
        after = nnx.to_pure_dict(nnx.state(model))
        jax.tree.map(np.testing.assert_array_equal, before, after)

    def test_base_and_adapter_have_one_form(self, tiny_checkpoint):
        """So that their engines share programs."""
        base = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
        forms = [
            nnx.graphdef(generation_form(one))
            for one in (base, with_random_adapter(tiny_checkpoint))
        ]
        assert forms[0] == forms[1]

    def test_what_would_lose_by_it_stays_as_it_is(self, tiny_checkpoint, monkeypatch):
        for model in (
            load_qwen2(tiny_checkpoint, dtype=jnp.bfloat16),
            load_qwen2(tiny_checkpoint, dtype=jnp.float32, quantize="int8"),
        ):
            assert generation_form(model) is model
        large = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
        monkeypatch.setattr("emodistill.model.generation_form.MAX_BYTES", 1000)
        assert generation_form(large) is large
