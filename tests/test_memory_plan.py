"""Planning memory: the true step compiled without weights, and the search for the longest row."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import chex
import jax
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from tiny_training import CONFIG, SFT, packed, sft, tiny_model

from emodistill.configs import MemoryConfig
from emodistill.errors import InputError
from emodistill.model import LoRAParam, embedded_path, load_qwen2
from emodistill.model.config import read_architecture
from emodistill.stages import device_memory
from emodistill.train import compile_targets, memory_plan, trainer
from emodistill.train.memory_plan import DeviceMemory, MemoryPlan, longest_row, plan_memory
from emodistill.train.program_counts import ProgramCounts
from emodistill.train.trainer import Trainer, response_logprobs

SMALL = MemoryConfig(model="embedded", tokens=512, objective="sft")
SCRIPT = Path(__file__).parents[1] / "scripts/plan.py"


@functools.cache
def planned(config):
    with mock.patch.object(memory_plan, "target_devices", lambda *_: jax.devices()[:1]):
        return plan_memory(config)


def plan(**changes):
    return planned(dataclasses.replace(SMALL, **changes))


def test_what_is_kept_is_what_a_real_model_has():
    found = plan().memory
    model = load_qwen2(embedded_path(), dtype=jax.numpy.float32)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    assert found.weights == pytest.approx(weights, rel=0.01)
    sizes, rank = model.config, 16
    query, key = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    factors = 4 * sizes.hidden_size + 2 * query + 2 * key  # of q, k, v, o
    assert found.adapter == found.gradients == 4 * sizes.num_layers * rank * factors
    assert found.optimizer == pytest.approx(2 * found.adapter, rel=0.01)
    assert found.total == sum(found)


@pytest.mark.parametrize(
    "remats", [("none", "full"), pytest.param(("none", "dots", "full"), marks=pytest.mark.slow)]
)
def test_remat_keeps_less(remats):
    kept = {remat: plan(remat=remat).memory.activations for remat in remats}
    sizes = read_architecture("embedded")
    layer_inputs = 4 * sizes.num_layers * SMALL.tokens * sizes.hidden_size
    assert layer_inputs <= kept["full"] < 2 * layer_inputs
    assert 2 * kept["full"] < kept.get("dots", kept["none"]) <= kept["none"]
    assert len({*kept.values()}) == len(remats)


def test_few_bits_are_few_bytes():
    full, int8 = plan().memory.weights, plan(quantize="int8").memory.weights
    sizes = read_architecture("embedded")
    tables = 4 * sizes.vocab_size * sizes.hidden_size
    assert int8 - tables < 0.35 * (full - tables)  # a byte, and 4 bytes for every 64


def test_longer_rows_need_more():
    short, long = plan().memory, plan(tokens=1024).memory
    assert long.weights == short.weights
    assert long.activations == pytest.approx(2 * short.activations, rel=0.01)
    assert long.total > short.total


def fake(num_tokens, limit=10**9, base=15_000, slope=0.9):
    return MemoryPlan(
        num_tokens, DeviceMemory(base, 0, 0, 0, 0, int(slope * num_tokens), 0, 0), 0, 0
    )


@pytest.mark.parametrize(
    ("limit", "expected"), [(16_000, 1024), (22_000, 7680), (15_100, 0), (10**9, 32_768)]
)
def test_the_longest_row_is_found_in_few_trials(limit, expected):
    tried = []

    def make(num_tokens):
        tried.append(num_tokens)
        return fake(num_tokens)

    found, plans = longest_row(fake(4096), limit, make, 32_768)
    assert found == expected
    assert len(tried) <= 6 and len(set(tried)) == len(tried)
    assert {each.num_tokens for each in plans} == {4096, *tried}


def shapes_in(jaxpr):
    """Every intermediate's shape, those of inner programs too."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, "shape", ())
        for inner in jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


def test_no_array_of_all_tokens_by_all_words_exists(monkeypatch):
    """Neither forwards nor backwards; the largest logits are those of one chunk."""
    graphdef, lora, frozen = nnx.split(tiny_model(), LoRAParam, ...)
    batch = packed(batch_size=8).step(0).batches[0]
    B, M = batch.targets_BM.shape
    V, per_chunk = CONFIG.vocab_size, 2 * B * CONFIG.vocab_size
    monkeypatch.setattr(trainer, "LOGITS_PER_CHUNK", per_chunk)

    def loss(lora):
        model = nnx.merge(graphdef, lora, frozen)
        return response_logprobs(model, batch).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(lora).jaxpr
    logits = [shape for shape in shapes_in(jaxpr) if len(shape) > 2 and shape[-1] == V]
    assert logits
    assert max(map(math.prod, logits)) <= per_chunk < B * M * V


def products_in(jaxpr):
    """The shape of every matrix product, those of inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from products_in(inner)


def test_frozen_weights_get_no_gradient():
    """It would be a product of a weight's shape; those of LoRA's factors are there."""
    graphdef, lora, frozen = nnx.split(tiny_model(), LoRAParam, ...)
    batch = packed(batch_size=8).step(0).batches[0]

    def loss(lora):
        return response_logprobs(nnx.merge(graphdef, lora, frozen), batch).sum()

    found = products_in(jax.make_jaxpr(jax.grad(loss))(lora).jaxpr)
    products = {tuple(sorted(shape)) for shape in found}  # a transposition may follow
    shapes = {tuple(sorted(x.shape[-2:])) for x in jax.tree.leaves(frozen) if x.ndim > 2}
    assert {tuple(sorted(x.shape[1:])) for x in jax.tree.leaves(lora)} <= products
    assert shapes and not shapes & products


def test_the_program_that_is_planned_is_the_one_that_trains():
    """`Trainer.lower` compiles what `Trainer.step` runs: nothing is compiled again."""
    graphdef, lora, frozen = nnx.split(tiny_model(), LoRAParam, ...)
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def loss(logp_SU, batch):
        return sft(logp_SU, batch)

    steps = Trainer(graphdef, loss, SFT, num_steps=1)
    batch = packed(batch_size=4).step(0).batches
    steps.lower(lora, frozen, batch[0])
    steps.step(steps.init(lora), frozen, batch)


def run(*args):
    """The command in a process of its own, since a process counts its devices once."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), "memory", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )


def assert_table(printed, begins):
    lines = printed.splitlines()
    assert lines[0].startswith(begins)
    kinds = [line.split("  ")[0] for line in lines[1:-2]]
    assert kinds == ["tokens of a row", *DeviceMemory._fields, "all"]
    assert lines[-2].startswith("trace and compile, s")


def test_the_command_prints_a_table(monkeypatch, capsys):
    words = ("memory", "--model", "embedded", "--tokens", "512", "--objective", "sft")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    monkeypatch.setattr(memory_plan, "plan_memory", planned)  # as other tests have it
    runpy.run_path(str(SCRIPT), run_name="__main__")
    expected = "plan: sft of embedded in float32, LoRA r = 16, on CPU"
    assert_table(capsys.readouterr().out, expected)


@pytest.mark.slow  # test_sharding computes on a mesh by default
def test_the_command_prints_a_table_for_a_mesh():
    done = run("--model", "embedded", "--mesh", "1x2x2", "--tokens", "512")
    assert done.returncode == 0, done.stderr
    expected = "plan: jpo of embedded in float32, LoRA r = 16, on CPU, mesh 1x2x2"
    assert_table(done.stdout, expected)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model", "gpt2"), "model='gpt2' is neither a folder nor one of embedded, qwen2.5-0.5b"),
        (("--mesh", "2x2"), "mesh='2x2' must be DATAxFSDPxTENSOR"),
        (("--tokens", "0"), "tokens=0 must be at least 1"),
    ],
)
def test_wrong_input_is_named(args, message, monkeypatch, capsys):
    assert message in complaint_of(args, monkeypatch, capsys)


def complaint_of(args, monkeypatch, capsys):
    """What the command says on stderr where it ends with code 2."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "memory", *args])
    monkeypatch.setattr(memory_plan, "target_devices", lambda *_: jax.devices()[:1])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    shown = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" not in shown
    return shown


def test_a_limit_that_nothing_fits_into_is_named(monkeypatch, capsys):
    monkeypatch.setattr(memory_plan, "plan_memory", lambda config: fake(config.tokens))
    args = ("--model", "embedded", "--fit-gb", "0.000015")
    message = "no row fits into 1.5e-05 GB; use more devices (--mesh), --quantize nf4"
    assert message in complaint_of(args, monkeypatch, capsys)


def test_gpus_are_advised_eight_bits(monkeypatch):
    """Four bits take more memory there."""
    large = MemoryPlan(
        4096, DeviceMemory(*[10**12] * 8), 1, 2, counts=ProgramCounts(1, 0, collectives={})
    )
    monkeypatch.setattr(memory_plan, "plan_memory", lambda config: large)
    with pytest.raises(InputError, match="--quantize int8 or a smaller --model"):
        device_memory.plan_memory(MemoryConfig(topology="h100:1", fit_gb=80))


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(InputError, match=r"pip install 'emodistill\[tpu-aot\]'"):
        plan_memory(dataclasses.replace(SMALL, topology="v6e:1x1"))


def test_the_missing_gpu_extra_is_named(monkeypatch):
    monkeypatch.setattr(compile_targets, "GPU_PLUGINS", ("xla_none",))
    with pytest.raises(InputError, match=r"'h100:8' takes .* pip install 'emodistill\[gpu-aot\]'"):
        plan_memory(dataclasses.replace(SMALL, topology="h100:8"))
    with pytest.raises(InputError, match="'h100:9' must name 1 to 8 GPUs"):
        plan_memory(dataclasses.replace(SMALL, topology="h100:9"))


@pytest.mark.slow
def test_tpu_compilers_say_what_they_need():
    """Takes the extra `tpu-aot` and some minutes; no TPU."""
    pytest.importorskip("libtpu")
    small = ("--model", "qwen2.5-0.5b", "--tokens", "512")
    one = run(*small, "--topology", "v6e:1x1")
    eight = run(*small, "--topology", "v5e:2x4", "--mesh", "1x2x4")
    needed = []
    for done in (one, eight):
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("all ")]
        needed.append(float(line.split()[-1]))
    assert 5 * needed[1] < needed[0] < 2
    wrong = run("--model", "embedded", "--topology", "v9z:1x1")
    assert wrong.returncode == 2
    assert "topology='v9z:1x1' can't be compiled for" in wrong.stderr


def test_published_sizes_are_those_of_the_family():
    """Parameters without embeddings, as the technical report counts them."""
    for name, billions in (("0.5b", 0.36), ("1.5b", 1.31), ("7b", 6.53), ("72b", 70.0)):
        sizes = read_architecture(f"qwen2.5-{name}")
        query, key = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
        layer = sizes.hidden_size * (2 * query + 2 * key + 3 * sizes.intermediate_size)
        assert sizes.num_layers * layer / 1e9 == pytest.approx(billions, abs=0.01 * billions + 5e-3)
