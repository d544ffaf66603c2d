"""Other forms of an adapter: merged into its base, and as a GGUF file for llama.cpp."""

from __future__ import annotations

import importlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from model_outputs import logits
from random_adapters import TOKENS_BT, with_random_adapter
from safetensors.numpy import load_file, save_file

from emodistill.errors import InputError
from emodistill.model.config import TARGETS
from emodistill.model.gguf_adapters import paired_rows, save_gguf_adapter
from emodistill.model.merging import save_merged
from emodistill.model.weights import load_qwen2, save_qwen2


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_hf_loads_the_merged_model_with_the_same_logits(make_hf_checkpoint, tmp_path, architecture):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, hf = make_hf_checkpoint(architecture)
    model = with_random_adapter(folder, rank=4, alpha=12, targets=tuple(TARGETS))
    errors = save_merged(model, folder, tmp_path / "merged")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        base = hf(torch.tensor(TOKENS_BT)).logits.numpy()
        merged = theirs(torch.tensor(TOKENS_BT)).logits.numpy()
    adapted = np.asarray(logits(model, TOKENS_BT))
    scale = np.abs(adapted).max()
    assert np.abs(merged - adapted).max() / scale < 1e-5
    assert np.abs(merged - base).max() / scale > 1e-2
    assert errors.largest == errors.mean == errors.share == 0 < errors.mean_update  # float32 base
    assert (tmp_path / "merged/config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_rounding_to_the_bases_dtype_is_measured(tiny_checkpoint, tmp_path):
    bfloat16, merged = tmp_path / "bfloat16", tmp_path / "merged"
    save_qwen2(load_qwen2(tiny_checkpoint, dtype=jnp.bfloat16), bfloat16)
    model = with_random_adapter(bfloat16, rank=4, alpha=8)
    errors = save_merged(model, bfloat16, merged)
    before, after = (load_file(path / "model.safetensors") for path in (bfloat16, merged))
    assert {str(tensor.dtype) for tensor in after.values()} == {"bfloat16"}
    name = "model.layers.1.self_attn.k_proj.weight"
    lora = model.layers.self_attn.k_proj.lora
    a_RI, b_OR = np.asarray(lora.a[...][1], np.float64), np.asarray(lora.b[...][1], np.float64)
    exact = before[name].astype(np.float64) + model.lora.scale * b_OR @ a_RI
    rounded = np.abs(after[name].astype(np.float64) - exact)
    assert 0 < rounded.max() <= errors.largest * 1.001
    assert rounded.mean() == pytest.approx(errors.mean, rel=0.5)
    assert 1e-4 < errors.share < 1e-1
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert len(changed) == 2 * 4 and all("self_attn" in name for name in changed)
    assert "root mean squares" in str(errors)


def test_split_weights_are_merged_file_by_file(tiny_checkpoint, tmp_path):
    split = tmp_path / "split"
    split.mkdir()
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    files = {name: f"model-{1 + ('layers.1' in name)}-of-2.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({n: t for n, t in tensors.items() if files[n] == file}, split / file)
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (split / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    model = with_random_adapter(split, rank=4, alpha=8)
    save_merged(model, split, tmp_path / "merged")
    merged = load_qwen2(tmp_path / "merged", dtype=jnp.float32)
    assert (
        np.abs(np.asarray(logits(merged, TOKENS_BT)) - np.asarray(logits(model, TOKENS_BT))).max()
        < 1e-5
    )
    with pytest.raises(InputError, match="is the base model's own folder"):
        save_merged(model, split, split)
    with pytest.raises(InputError, match="has no LoRA to merge"):
        save_merged(merged, split, tmp_path / "none")


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "qwen3"])
def test_gguf_holds_the_adapter_as_llama_cpp_reads_it(make_hf_checkpoint, tmp_path, architecture):
    gguf = pytest.importorskip("gguf")
    folder, _ = make_hf_checkpoint(architecture)
    model = with_random_adapter(folder, rank=4, alpha=12, targets=tuple(TARGETS))
    save_gguf_adapter(model, tmp_path / "adapter.gguf", "ours")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert fields["general.architecture"] == architecture
    assert fields["general.type"] == "adapter" and fields["general.name"] == "ours"
    assert fields["adapter.type"] == "lora" and fields["adapter.lora.alpha"] == 12
    assert len(tensors) == 3 * len(TARGETS) * 2
    save_merged(model, folder, tmp_path / "merged")
    base, merged = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "merged"))
    architectures = {"qwen2": gguf.MODEL_ARCH.QWEN2, "llama": gguf.MODEL_ARCH.LLAMA}
    architectures["qwen3"] = gguf.MODEL_ARCH.QWEN3
    names = gguf.get_tensor_name_map(architectures[architecture], 3)
    heads = {"q_proj": model.config.num_heads, "k_proj": model.config.num_kv_heads}
    for name in (name for name in merged if not np.array_equal(base[name], merged[name])):
        weight = names.get_name(name, try_suffixes=(".weight",))
        a_RI, b_OR = tensors[f"{weight}.lora_a"], tensors[f"{weight}.lora_b"]
        rank = b_OR.shape[1]
        # What llama.cpp adds to its weight is what it would find in the merged one.
        update = fields["adapter.lora.alpha"] / rank * b_OR @ a_RI
        expected = merged[name] - base[name]
        if architecture == "llama" and (target := name.split(".")[-2]) in heads:
            assert np.abs(update - expected).max() > 1e-2
            expected = as_llama_cpp_stores(expected, heads[target])
        assert np.abs(update - expected).max() < 1e-5


def as_llama_cpp_stores(weight_OI, num_heads):
    """Rows by the rule itself: rotation pairs (i, i + H/2) of a head become (2i, 2i + 1)."""
    H = len(weight_OI) // num_heads
    rows = [
        n * H + i + half * H // 2
        for n in range(num_heads)
        for i in range(H // 2)
        for half in (0, 1)
    ]
    return weight_OI[rows]


def test_paired_rows_are_those_that_are_rotated_together():
    rows = paired_rows(np.arange(16)[:, None], 2)[:, 0]
    assert rows.tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]


def test_without_the_package_gguf_the_extra_is_named(tiny_checkpoint, tmp_path, monkeypatch):
    def missing(name, *args, **kwargs):
        raise ModuleNotFoundError(name)

    model = with_random_adapter(tiny_checkpoint, rank=4, alpha=8)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"pip install 'emodistill\[gguf\]'"):
        save_gguf_adapter(model, tmp_path / "adapter.gguf", "ours")
    assert not list(tmp_path.iterdir())


def test_nothing_to_write_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(InputError, match="has no LoRA to save"):
        save_gguf_adapter(load_qwen2(tiny_checkpoint), tmp_path / "adapter.gguf", "ours")
