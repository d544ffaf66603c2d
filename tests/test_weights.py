"""Checkpoints: round trips with Hugging Face, placement on meshes, and everything refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from safetensors.numpy import load_file, save_file

from emodistill.configs import MeshShape
from emodistill.errors import InputError
from emodistill.model import fingerprint, weights
from emodistill.model.fingerprint import base_fingerprint
from emodistill.model.lora import add_lora
from emodistill.model.sharding import make_mesh
from emodistill.model.weights import load_qwen2, save_qwen2
from emodistill.seeding import stream

Q = "model.layers.1.self_attn.q_proj.weight"


def arrays(model):
    return dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))


def assert_same_weights(one, other):
    chex.assert_trees_all_equal(*(nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (one, other)))


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint that a test may break."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("architecture", "is_tied"), [("qwen2", True), ("qwen2", False), ("qwen3", False)]
)
def test_hf_reads_what_we_write(make_hf_checkpoint, tmp_path, architecture, is_tied):
    torch = pytest.importorskip("torch")
    import transformers

    folder, hf = make_hf_checkpoint(architecture, tie_word_embeddings=is_tied, rope_theta=5e5)
    save_qwen2(load_qwen2(folder, dtype=jnp.float32), tmp_path)
    again, report = type(hf).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, hf(tokens).logits, rtol=1e-5, atol=1e-5)
    saved = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (saved.rope_parameters["rope_theta"], saved.eos_token_id) == (5e5, 100)


def test_round_trip_single_and_sharded(tiny_checkpoint, tmp_path, monkeypatch):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    extra = [tiny_checkpoint / "tokenizer.json"]
    save_qwen2(model, tmp_path / "single", extra_files=extra)
    assert_same_weights(load_qwen2(tmp_path / "single", dtype=jnp.float32), model)
    assert (tmp_path / "single" / "tokenizer.json").read_bytes() == extra[0].read_bytes()
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 40_000)
    save_qwen2(model, tmp_path / "sharded")
    names = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    assert_same_weights(load_qwen2(tmp_path / "sharded", dtype=jnp.float32), model)
    assert not list(tmp_path.rglob("*.partial"))


def test_hf_reads_our_shards(make_hf_checkpoint, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    folder, hf = make_hf_checkpoint()
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 40_000)
    save_qwen2(load_qwen2(folder, dtype=jnp.float32), tmp_path)
    again = type(hf).from_pretrained(tmp_path)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, hf(tokens).logits, rtol=1e-5, atol=1e-5)


def test_dtypes(checkpoint):
    full = load_qwen2(checkpoint, dtype=jnp.float32)
    half = load_qwen2(checkpoint)
    assert {leaf.dtype for leaf in arrays(half).values()} == {jnp.dtype("bfloat16")}
    save_qwen2(half, checkpoint / "half")
    assert json.loads((checkpoint / "half" / "config.json").read_text())["torch_dtype"] == (
        "bfloat16"
    )
    stored = load_file(checkpoint / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert_same_weights(load_qwen2(checkpoint / "half"), half)
    rewrite(checkpoint, lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}))
    q = load_qwen2(checkpoint, dtype=jnp.float32).layers.self_attn.q_proj.weight[...]
    np.testing.assert_allclose(q, full.layers.self_attn.q_proj.weight[...], rtol=1e-3, atol=1e-6)


def test_a_tied_head_stored_twice_is_fine(checkpoint):
    rewrite(
        checkpoint,
        lambda t: t.update(
            {
                "lm_head.weight": t["model.embed_tokens.weight"].copy(),
                "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
            }
        ),
    )
    assert load_qwen2(checkpoint, dtype=jnp.float32).lm_head is None


@pytest.mark.parametrize("shape", [(37,), (11, 6), (5, 7, 6)])
def test_checksums_are_those_of_their_formula(shape, monkeypatch):
    """With loops whose last turn is a short one."""
    monkeypatch.setattr(fingerprint, "NUMBERS_AT_ONCE", 24)
    x = jnp.asarray(stream(0, "checksums").normal(size=shape), jnp.bfloat16)
    bits = np.asarray(x).view(np.uint16).astype(np.uint32)
    size = bits[0].size if len(shape) > 1 else 1
    index = (np.arange(bits.size, dtype=np.uint32) + np.uint32(3 * size)).reshape(shape)
    mixed = (index ^ (index >> 15)) * np.uint32(0x85EBCA6B) | np.uint32(1)
    axes = tuple(range(min(1, len(shape) - 1), len(shape)))
    want = [np.sum(bits * m, axes, dtype=np.uint32) for m in (mixed, mixed >> 7)]
    found = fingerprint.rounded_sums(x, 3)
    np.testing.assert_array_equal(found, np.reshape(want, (2, -1)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 2_048, 4_096), (150_000, 512)])
def test_checksums_need_room_for_few_numbers_at_once(shape, dtype):
    """And not for several times the parameter, of which there may be barely room for one."""
    x = jax.ShapeDtypeStruct(shape, dtype)
    first = jax.ShapeDtypeStruct((), jnp.uint32)
    room = 16 * fingerprint.NUMBERS_AT_ONCE + 2 * 8 * math.prod(shape[:-1])  # and sums of rows
    mesh = make_mesh(MeshShape())
    split = NamedSharding(mesh, PartitionSpec(*(None,) * (len(shape) - 1), "fsdp"))
    for sharding in (SingleDeviceSharding(jax.devices()[0]), split):
        compiled = fingerprint.rounded_sums_on.lower(x, first, sharding).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < room


def test_fingerprint_tells_bases_apart(checkpoint):
    model = load_qwen2(checkpoint, dtype=jnp.float32)
    fingerprint = base_fingerprint(model)
    assert len(fingerprint) == 64
    assert base_fingerprint(load_qwen2(checkpoint)) == fingerprint  # bfloat16
    add_lora(model)
    assert base_fingerprint(model) == fingerprint

    def swap(tensors):
        q = tensors[Q] = tensors[Q].copy()
        q[[3, 4], 7] = q[[4, 3], 7]

    rewrite(checkpoint, swap)
    assert base_fingerprint(load_qwen2(checkpoint)) != fingerprint


@pytest.mark.slow
def test_a_mesh_holds_the_same_model(tiny_checkpoint):
    """Eight virtual devices give one device's logits; needs a process of its own.

    Copies of a part are read once.
    """
    code = f"""
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from flax import nnx
from unittest import mock
from emodistill.model import load_qwen2, base_fingerprint, weights
mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
one = load_qwen2({str(tiny_checkpoint)!r}, dtype=jnp.float32)
many = load_qwen2({str(tiny_checkpoint)!r}, mesh, dtype=jnp.float32)
up = many.layers.mlp.up_proj.weight[...]
assert len(up.addressable_shards) == 8
assert up.addressable_shards[0].data.shape == (2, 8, 32)  # inputs whole
down = many.layers.mlp.down_proj.weight[...]
assert down.addressable_shards[0].data.shape == (2, 16, 16)
assert many.layers.self_attn.q_proj.bias[...].addressable_shards[0].data.shape == (2, 4)
assert many.norm.weight[...].addressable_shards[0].data.shape == (32,)
tokens = jnp.arange(24).reshape(2, 12)
run = jax.jit(lambda g, s: nnx.merge(g, s)(tokens), static_argnums=0)
np.testing.assert_allclose(run(*nnx.split(many)), run(*nnx.split(one)), rtol=1e-4, atol=1e-5)
assert base_fingerprint(many) == base_fingerprint(one)

sizes = []
def noting(read):
    def noted(*args):
        sizes.append(read(*args).size)
        return read(*args)
    return noted
copies = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
with mock.patch.object(weights, "_read", noting(weights._read)):
    load_qwen2({str(tiny_checkpoint)!r}, copies, dtype=jnp.float32)
assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(one))), "read twice"
"""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags.strip()}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def refused(folder, message):
    with pytest.raises(InputError, match=message):
        load_qwen2(folder, dtype=jnp.float32)


def test_missing_parts_are_named(checkpoint):
    refused(checkpoint / "nowhere", "nowhere is no folder")
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    refused(checkpoint, r"neither .* pytorch_model\.bin is another format; convert it")
    (checkpoint / "config.json").unlink()
    refused(checkpoint, r"config\.json is missing")


def test_torn_files_are_named(checkpoint):
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:4], b"", b"not safetensors at all"):
        path.write_bytes(content)
        refused(checkpoint, r"model\.safetensors can't be read as safetensors")


def test_wrong_tensors_are_named(checkpoint):
    whole = (checkpoint / "model.safetensors").read_bytes()

    def attempt(change, message):
        (checkpoint / "model.safetensors").write_bytes(whole)
        rewrite(checkpoint, change)
        refused(checkpoint, message)

    attempt(lambda t: t.pop(Q), "model.layers.1.self_attn.q_proj.weight is missing")
    attempt(
        lambda t: [t.pop(name) for name in list(t) if "layers.1." in name],
        "model.layers.1.input_layernorm.weight, .* and 9 more are missing",
    )
    attempt(
        lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[Q]}),
        "model.layers.2.mlp.up_proj.weight is unexpected",
    )
    attempt(
        lambda t: t.update({Q: t[Q][:16]}), r"q_proj.weight has shape \[16, 32\], .* \[32, 32\]"
    )
    attempt(lambda t: t.update({Q: t[Q].astype(np.int8)}), "is stored as I8; readable: F32")


def test_wrong_indices_are_named(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 40_000)
    save_qwen2(load_qwen2(tiny_checkpoint, dtype=jnp.float32), tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    second = shards[1]
    content = second.read_bytes()
    second.unlink()
    refused(tmp_path, rf"{second.name} is missing, but model\.safetensors\.index\.json lists it")
    second.write_bytes(content[: len(content) // 2])
    refused(tmp_path, rf"{second.name} can't be read as safetensors")
    second.write_bytes(content)
    index = tmp_path / "model.safetensors.index.json"
    for text, message in (
        ("{", "can't be read"),
        ('{"weight_map": []}', "can't be read"),
        ('{"weight_map": {"a": "../outside.safetensors"}}', "only .safetensors beside it"),
        ('{"weight_map": {"a": "model.bin"}}', "lists 'model.bin'"),
    ):
        index.write_text(text)
        refused(tmp_path, message)


def test_a_head_of_its_own_beside_a_tied_config_is_refused(checkpoint):
    rewrite(
        checkpoint,
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + np.float32(0.1)}),
    )
    with pytest.raises(InputError, match=r"lm_head\.weight differs .* tie_word_embeddings=true"):
        load_qwen2(checkpoint)


def test_a_single_file_goes_before_an_index_as_in_transformers(make_hf_checkpoint, tmp_path):
    torch = pytest.importorskip("torch")
    folder, hf = make_hf_checkpoint()
    newer = tmp_path / "both"
    shutil.copytree(folder, newer)
    hf.save_pretrained(newer, max_shard_size="20KB")  # leaves the shards and their index
    assert (newer / "model.safetensors.index.json").is_file()
    with torch.no_grad():
        hf.model.norm.weight.mul_(2)
    hf.save_pretrained(tmp_path / "single")
    shutil.copy(tmp_path / "single" / "model.safetensors", newer)
    theirs = type(hf).from_pretrained(newer).model.norm.weight.detach().numpy()
    ours = load_qwen2(newer, dtype=jnp.float32).norm.weight[...]
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours, hf.model.norm.weight.detach().numpy())


def test_saving_leaves_no_file_that_would_be_read_instead(tiny_checkpoint, tmp_path, monkeypatch):
    model = load_qwen2(tiny_checkpoint, dtype=jnp.float32)
    save_qwen2(model, tmp_path)
    model.norm.weight.set_value(model.norm.weight[...] * 2)
    monkeypatch.setattr("emodistill.model.weights.MAX_SHARD_BYTES", 5_000)
    save_qwen2(model, tmp_path)
    assert_same_weights(load_qwen2(tmp_path, dtype=jnp.float32), model)
