"""The form of the weights that engines take on a processor says what the model says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_outputs import logits
from random_adapters import TOKENS_BT, with_random_adapter

from emodistill.model import load_qwen2
from emodistill.model.adapters import adapted, save_adapter
from emodistill.model.config import ATTENTION_TARGETS
from emodistill.model.generation_form import generation_form
from emodistill.model.lora import target_layers


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

    def test_base_and_adapter_share_programs_and_what_no_adapter_changes(
        self, tiny_checkpoint, tmp_path
    ):
        save_adapter(with_random_adapter(tiny_checkpoint), tmp_path, "base")
        base = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
        forms = [generation_form(one) for one in (base, adapted(base, tmp_path))]
        assert nnx.graphdef(forms[0]) == nnx.graphdef(forms[1])
        layers = [target_layers(form) for form in forms]
        for name in layers[0]:
            is_adapted = name in ATTENTION_TARGETS
            same = layers[0][name].weight.get_value() is layers[1][name].weight.get_value()
            assert same != is_adapted, name

    def test_what_would_lose_by_it_stays_as_it_is(self, tiny_checkpoint, monkeypatch):
        for model in (
            load_qwen2(tiny_checkpoint, dtype=jnp.bfloat16),
            load_qwen2(tiny_checkpoint, dtype=jnp.float32, quantize="int8"),
        ):
            assert generation_form(model) is model
        large = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
        monkeypatch.setattr("emodistill.model.generation_form.MAX_BYTES", 1000)
        assert generation_form(large) is large
