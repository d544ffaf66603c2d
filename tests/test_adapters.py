"""Adapters in PEFT layout: PEFT reads ours, we read PEFT's, and wrong ones are refused."""

from __future__ import annotations

import itertools
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_outputs import logits
from random_adapters import TOKENS_BT, with_random_adapter
from safetensors.numpy import load_file, save_file

from emodistill.errors import InputError
from emodistill.model.adapters import adapted, load_adapter, save_adapter
from emodistill.model.config import TARGETS
from emodistill.model.fingerprint import lora_sha256
from emodistill.model.lora import add_lora, target_layers
from emodistill.model.weights import load_qwen2

Q_B = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"


@pytest.fixture
def adapter(tiny_checkpoint, tmp_path):
    save_adapter(with_random_adapter(tiny_checkpoint, rank=4, alpha=8), tmp_path, "some/base-model")
    return tmp_path


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder, change, metadata=None):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata=metadata)


@pytest.mark.parametrize(
    "targets",
    [TARGETS, pytest.param(("q_proj", "k_proj", "v_proj", "o_proj"), marks=pytest.mark.slow)],
)
def test_peft_reads_ours(make_hf_checkpoint, tmp_path, targets):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    folder, hf = make_hf_checkpoint(tie_word_embeddings=len(targets) > 4)
    with torch.no_grad():
        base = hf(torch.tensor(TOKENS_BT)).logits.numpy()
    model = with_random_adapter(folder, rank=4, alpha=12, targets=targets)
    save_adapter(model, tmp_path, str(folder))
    theirs = peft.PeftModel.from_pretrained(hf, tmp_path).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS_BT)).logits.numpy()
    found = np.asarray(logits(model, TOKENS_BT))
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() / scale < 1e-5
    assert np.abs(found - base).max() / scale > 1e-2


def test_we_read_pefts(make_hf_checkpoint, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    folder, hf = make_hf_checkpoint()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=7, target_modules=["down_proj", "q_proj"]
    )
    theirs = peft.get_peft_model(hf, config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    theirs.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS_BT)).logits.numpy()
    model = load_qwen2(folder, dtype=jnp.float32)
    load_adapter(model, tmp_path)
    assert (model.lora.rank, model.lora.alpha) == (3, 7)
    assert model.lora.targets == ("q_proj", "down_proj")
    error = np.abs(np.asarray(logits(model, TOKENS_BT)) - expected).max() / np.abs(expected).max()
    assert error < 1e-5


PATTERNS = {
    "none": {},
    "ranks by target": {"rank_pattern": {"q_proj": 5, "v_proj": 1}},
    "ranks by layer": {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 6}},
    "scales": {"alpha_pattern": {r"layers\.[02]\.self_attn\.(q|o)_proj": 3.5, "down_proj": 40}},
    "all": {"rank_pattern": {"^model.layers.2.*": 1}, "alpha_pattern": {"o_proj": 1}},
}


@pytest.mark.parametrize(
    ("pattern", "is_rank_stabilized"),
    [
        *itertools.product(("none", "all"), (False, True)),
        *((name, False) for name in ("ranks by target", "ranks by layer", "scales")),
        *(
            pytest.param(name, True, marks=pytest.mark.slow)
            for name in ("ranks by target", "ranks by layer", "scales")
        ),
    ],
)
def test_ranks_and_scales_that_differ_are_read_as_peft_means_them(
    make_hf_checkpoint, tmp_path, pattern, is_rank_stabilized
):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    folder, hf = make_hf_checkpoint()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=7,
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        use_rslora=is_rank_stabilized,
        **PATTERNS[pattern],
    )
    theirs = peft.get_peft_model(hf, config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = torch.log_softmax(theirs(torch.tensor(TOKENS_BT)).logits, -1).numpy()
        with theirs.disable_adapter():
            base = torch.log_softmax(theirs(torch.tensor(TOKENS_BT)).logits, -1).numpy()
    model = load_qwen2(folder, dtype=jnp.float32)
    load_adapter(model, tmp_path)
    ours = np.asarray(nnx.log_softmax(logits(model, TOKENS_BT)))
    assert np.abs(ours - expected).max() < 1e-4
    assert np.abs(ours - base).max() > 0.1
    # What is written again is plain, and the same adapter.
    save_adapter(model, tmp_path / "plain", "base")
    again = load_qwen2(folder, dtype=jnp.float32)
    load_adapter(again, tmp_path / "plain")
    assert lora_sha256(again) == lora_sha256(model)


def test_round_trip(tiny_checkpoint, adapter):
    original = with_random_adapter(tiny_checkpoint, rank=4, alpha=8)
    fresh = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    assert lora_sha256(fresh) != lora_sha256(original)
    load_adapter(fresh, adapter)
    assert lora_sha256(fresh) == lora_sha256(original)
    present = load_qwen2(tiny_checkpoint)  # bfloat16 base, with a LoRA of the same form
    add_lora(present, rank=4, alpha=8)
    load_adapter(present, adapter)
    assert lora_sha256(present) == lora_sha256(original)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base-model"
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_hash_follows_values_and_scale(tiny_checkpoint):
    hashes = {
        lora_sha256(with_random_adapter(tiny_checkpoint, rank=4, alpha=alpha)) for alpha in (8, 9)
    }
    assert len(hashes) == 2


def test_nothing_to_save_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(InputError, match="has no LoRA to save"):
        save_adapter(load_qwen2(tiny_checkpoint), tmp_path / "a", "base")
    assert not (tmp_path / "a").exists()


def refused(tiny_checkpoint, folder, message, **present):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    if present:
        add_lora(model, **present)
    before = lora_sha256(model)
    with pytest.raises(InputError, match=message):
        load_adapter(model, folder)
    assert lora_sha256(model) == before


def test_an_adapter_of_another_base_is_refused(tiny_checkpoint, adapter):
    other = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    other.norm.weight.set_value(other.norm.weight[...] * 2)
    with pytest.raises(InputError, match=r"another base model .* load some/base-model first"):
        load_adapter(other, adapter)
    assert other.lora is None


def test_missing_and_torn_files_are_named(tiny_checkpoint, adapter):
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    refused(tiny_checkpoint, adapter, r"adapter_model\.safetensors can't be read as safetensors")
    weights.unlink()
    refused(tiny_checkpoint, adapter, r"adapter_model\.safetensors is missing")
    (adapter / "adapter_config.json").write_text("{")
    refused(tiny_checkpoint, adapter, "no JSON")
    (adapter / "adapter_config.json").unlink()
    refused(tiny_checkpoint, adapter, r"adapter_config\.json is missing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not implemented"),
        ({"use_rslora": "yes"}, "use_rslora='yes' must be true or false"),
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"rank_pattern": {"q_proj": 8}}, r"q_proj.lora_A.weight has shape \[4, 32\], .* rank 8"),
        ({"rank_pattern": {"q_proj": 10**12}}, r"q_proj.lora_A.weight has shape"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern: q_proj: rank=0 must be"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern=\['q_proj'\] must be an object"),
        ({"alpha_pattern": {"q_proj": "much"}}, "alpha_pattern: q_proj: alpha='much' must be"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern: \( can't be read"),
        ({"alpha_pattern": {"(a+)+": 2}}, "too much of a regular expression"),
        ({"alpha_pattern": {".*.*.*x": 2}}, "too much of a regular expression"),
        ({"bias": "all"}, "bias='all'"),
        ({"target_modules": "all-linear"}, "target_modules='all-linear' must be a list"),
        ({"target_modules": ["q_proj", "c_attn"]}, r"\['c_attn'\] can't be adapted here"),
        ({"target_modules": ["q_proj"]}, "is unexpected"),
        ({"target_modules": list(TARGETS)}, "gate_proj.lora_A.weight is missing"),
        ({"r": 8}, r"q_proj.lora_A.weight has shape \[4, 32\], .* \[8, 32\]"),
        ({"r": "many"}, "r='many' must be a number"),
        ({"r": 0}, "rank=0 must be a positive integer"),
    ],
    ids=str,
)
def test_other_configurations_are_refused(tiny_checkpoint, adapter, changes, message):
    change_config(adapter, **changes)
    refused(tiny_checkpoint, adapter, message)


def test_other_tensors_are_refused(tiny_checkpoint, adapter):
    change_weights(adapter, lambda t: t.update({Q_B: t[Q_B][:, :3].copy()}))
    refused(
        tiny_checkpoint, adapter, r"layers.1.self_attn.q_proj.lora_B.weight has shape \[32, 3\]"
    )
    change_weights(adapter, lambda t: t.pop(Q_B))
    refused(tiny_checkpoint, adapter, "layers.1.self_attn.q_proj.lora_B.weight is missing")


def test_an_adapter_beside_the_base_leaves_it_alone_and_shares_its_arrays(tiny_checkpoint, adapter):
    base = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    before = np.asarray(logits(base, TOKENS_BT))
    one = adapted(base, adapter)
    assert one.embed_tokens.weight[...] is base.embed_tokens.weight[...]
    for name, layer in target_layers(one).items():
        assert layer.weight[...] is target_layers(base)[name].weight[...]
    assert base.lora is None and one.lora is not None
    loaded = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    load_adapter(loaded, adapter)
    assert np.array_equal(logits(one, TOKENS_BT), logits(loaded, TOKENS_BT))
    assert np.array_equal(logits(base, TOKENS_BT), before)
    assert not np.array_equal(logits(one, TOKENS_BT), before)
    with pytest.raises(InputError, match="has an adapter already"):
        adapted(one, adapter)


def test_another_lora_in_place_is_refused(tiny_checkpoint, adapter):
    refused(tiny_checkpoint, adapter, "load the base model again", rank=8, alpha=8)
    refused(tiny_checkpoint, adapter, "load the base model again", rank=4, alpha=16)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"use_dora": True}, "use_dora=True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "target_modules="),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"target_parameters": ["q_proj.weight"]}, "target_parameters"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_peft_writes_beyond_plain_lora_is_refused_by_name(
    tiny_checkpoint, adapter, options, name
):
    peft = pytest.importorskip("peft")
    wanted = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]} | options
    peft.LoraConfig(**wanted).save_pretrained(adapter)
    refused(tiny_checkpoint, adapter, rf"adapter_config\.json: {re.escape(name)}")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights"),
        ({"init_lora_weights": ["pissa"]}, "init_lora_weights"),
        ({"an_option_of_tomorrow": "on"}, "an_option_of_tomorrow='on'"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA'"),
        ({"use_dora": "9" * 9_000}, "use_dora"),
    ],
    ids=str,
)
def test_unknown_options_of_an_adapter_are_refused(tiny_checkpoint, adapter, changes, name):
    change_config(adapter, **changes)
    refused(tiny_checkpoint, adapter, rf"adapter_config\.json: {name}")


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal"])
def test_initialisations_that_leave_the_base_alone_are_read(make_hf_checkpoint, tmp_path, init):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    folder, hf = make_hf_checkpoint()
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=init
    )
    theirs = peft.get_peft_model(hf, config).eval()
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS_BT)).logits.numpy()
    model = load_qwen2(folder, dtype=jnp.float32)
    load_adapter(model, tmp_path)
    error = np.abs(np.asarray(logits(model, TOKENS_BT)) - expected).max() / np.abs(expected).max()
    assert error < 1e-5


def test_eight_bit_and_infinite_factors_are_refused(tiny_checkpoint, adapter):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    path = adapter / "adapter_model.safetensors"
    plain = load_file(path)
    eight_bit = {k: torch.tensor(v).to(torch.float8_e4m3fn) for k, v in plain.items()}
    save_torch(eight_bit, path)
    refused(tiny_checkpoint, adapter, "stored as F8_E4M3; readable: F32, F16, BF16")
    save_file(plain | {Q_B: np.full_like(plain[Q_B], np.inf)}, path)
    refused(tiny_checkpoint, adapter, "q_proj has factors B that are not finite")
