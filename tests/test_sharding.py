"""A mesh computes what one device computes: eight virtual devices, and two processes of four."""

from __future__ import annotations

import functools
import itertools
import json
import os
import socket
import subprocess
import sys

import mesh_worker
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from mesh_processes import finish, start
from mesh_worker import gradients
from samples import sharing_examples
from tiny_training import lines, without_times

from emodistill.batches import PackedBatches
from emodistill.configs import MeshShape, SFTConfig
from emodistill.errors import InputError
from emodistill.model import Qwen2, add_lora, processes, sharding
from emodistill.model.config import PUBLISHED
from emodistill.runs import begin_stage
from emodistill.seeding import jax_key
from emodistill.train.loop import warn_of_empty_rows
from emodistill.train.preparation import mesh_shape

SHAPES = [
    f"{data}x{fsdp}x{8 // data // fsdp}"
    for data, fsdp in itertools.product((1, 2, 4, 8), repeat=2)
    if data * fsdp <= 8
]


def errors_of(*processes):
    """What those that are to fail say; each may wait `LEAVING_S` for the others at its end."""
    try:
        errors = [process.communicate(timeout=180)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode != 0 for process in processes), errors
    return errors


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start_two(*args):
    """Two processes of four devices each."""
    address = f"127.0.0.1:{free_port()}"
    flags = ("--coordinator", address, "--num-processes", 2, "--process-id")
    return [start(*args, *flags, number, num_devices=4) for number in range(2)]


on_one_device = functools.cache(gradients)
"""Each computed once: to load the same program from JAX's cache many times crashes it."""


def assert_as_on_one_device(path, cases):
    found = np.load(path)
    for shape, name, stage in cases:
        expected = on_one_device(name, stage)
        assert len(expected) > 8
        for key, value in expected.items():
            got = found[f"{shape} {name} {stage}:{key}"]
            scale = max(np.abs(value).max(), 1e-3)
            if key == "dpo/margin":  # a difference, as good as what the loss makes of it
                scale = max(scale, expected["dpo/loss"])
            tolerance = 1e-5 * scale
            np.testing.assert_allclose(got, value, rtol=0, atol=tolerance, err_msg=f"{shape} {key}")


def test_meshes_of_eight_give_one_device_s_losses_and_gradients(tmp_path):
    cases = [("1x2x4", "many", "jpo")]  # key-value heads repeated, rows and vocabulary split
    finish(start(tmp_path / "out.npz", "gradients", json.dumps(cases), num_devices=8))
    assert_as_on_one_device(tmp_path / "out.npz", cases)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_every_mesh_model_and_stage(shape, tmp_path):
    assert len(SHAPES) == 10
    cases = list(itertools.product([shape], ("many", "odd"), ("sft", "jpo", "dpo")))
    finish(start(tmp_path / "out.npz", "gradients", json.dumps(cases), num_devices=8))
    assert_as_on_one_device(tmp_path / "out.npz", cases)
    finish(*start_two(tmp_path / "two.npz", "gradients", json.dumps(cases)))
    assert_as_on_one_device(tmp_path / "two.npz", cases)


def assert_same_run(cell, other, rtol):
    rows, expected = without_times(lines(cell)), without_times(lines(other))
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row, want in zip(rows, expected, strict=True):
        assert row.keys() == want.keys()
        for name, value in want.items():
            if name == "rows/useful_share":  # of rows that only a mesh fills up
                continue
            np.testing.assert_allclose(row[name], value, rtol=rtol, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_preempted_run_of_two_processes_goes_on_on_eight_devices_and_on_one(tmp_path):
    """One of them gets the SIGTERM; both save the same step."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    mesh_worker.run(whole, None, 8)
    finish(*start_two(cut, "preempt", "jpo", "1x2x4", 2))
    assert 2 <= [row["step"] for row in lines(cut)][-1] < 8
    finish(start(cut, "train", "jpo", "2x2x2", 5, num_devices=8))
    mesh_worker.run(cut, None, 8)
    assert_same_run(cut, whole, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_each_read_their_part_of_a_checkpoint(tiny_checkpoint, tmp_path):
    finish(*start_two(tmp_path / "out.json", "load", tiny_checkpoint, "1x2x4"))
    found = [json.loads((tmp_path / f"out.{n}.json").read_text()) for n in range(2)]
    whole = mesh_worker.load(str(tiny_checkpoint), None)
    for part in found:
        assert part["fingerprint"] == whole["fingerprint"]
        np.testing.assert_allclose(part["logits"], whole["logits"], rtol=0, atol=1e-5)
        # Half of the matrices; norms are whole everywhere, and four devices share a process.
        assert part["num_read"] < 0.55 * whole["num_read"]


@pytest.mark.slow
def test_a_refusal_of_the_first_process_is_said_by_all(tmp_path):
    begin_stage(mesh_worker.job(tmp_path, kappa=0.5))
    for error in errors_of(*start_two(tmp_path, "refuse")):
        assert f"error: {tmp_path} was made with kappa=0.5, now kappa=1.0. Delete" in error


@pytest.mark.slow
def test_a_process_that_fails_alone_says_so_and_ends_the_others(tmp_path):
    first, _ = errors_of(*start_two(tmp_path / "out", "fail"))
    assert f"error: {tmp_path / 'out'} can't be written." in first


def test_one_process_a_machine_gets_all_of_its_devices():
    for environment, ids in (
        ({}, None),
        ({"SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS": "2"}, []),
        ({"SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS": "16"}, None),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8"}, None),
    ):
        assert processes.local_devices(environment) == ids, environment


VISIBLE = """
import sys
import jax
from emodistill.configs import SFTConfig
from emodistill.model import joined
with joined(SFTConfig(coordinator=sys.argv[1], num_processes=1, process_id=0)):
    print(jax.config.read("jax_cuda_visible_devices"))
"""


@pytest.mark.slow
def test_slurm_s_only_task_of_a_machine_sees_all_gpus():
    slurm = dict.fromkeys(("JOB_ID", "STEP_NUM_NODES", "NTASKS"), "1")
    slurm |= {"PROCID": "0", "LOCALID": "0", "STEP_NODELIST": "localhost"}
    done = subprocess.run(
        [sys.executable, "-c", VISIBLE, f"127.0.0.1:{free_port()}"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            **{f"SLURM_{name}": value for name, value in slurm.items()},
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == "all", done.stderr


def abstract_mesh(data, fsdp, tensor):
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)


def specs(config, mesh):
    """The PartitionSpec of every parameter and LoRA factor, by path."""

    def make():
        model = Qwen2(config, key=jax_key(0, "test"))
        add_lora(model, targets=("q_proj", "o_proj"))
        return model

    state = nnx.state(nnx.eval_shape(make))
    return {
        ".".join(map(str, path)): sharding.param_sharding(
            tuple(map(str, path)), variable.shape, mesh
        ).spec
        for path, variable in nnx.to_flat_state(state)
    }


def test_7b_is_split_over_eight_devices_and_lora_like_its_base():
    found = specs(PUBLISHED["qwen2.5-7b"], abstract_mesh(1, 2, 4))
    expected = {
        "embed_tokens.weight": PartitionSpec(("fsdp", "tensor"), None),
        "lm_head.weight": PartitionSpec(("fsdp", "tensor"), None),
        "layers.self_attn.q_proj.weight": PartitionSpec(None, ("tensor", "fsdp"), None),
        "layers.self_attn.q_proj.bias": PartitionSpec(None, ("tensor", "fsdp")),
        "layers.self_attn.q_proj.lora.a": PartitionSpec(None, None, "fsdp"),
        "layers.self_attn.q_proj.lora.b": PartitionSpec(None, ("tensor", "fsdp"), None),
        "layers.self_attn.o_proj.weight": PartitionSpec(None, "fsdp", "tensor"),
        "layers.self_attn.o_proj.lora.a": PartitionSpec(None, None, "tensor"),
        "layers.self_attn.o_proj.lora.b": PartitionSpec(None, "fsdp", None),
        "layers.mlp.down_proj.weight": PartitionSpec(None, "fsdp", "tensor"),
        "layers.input_layernorm.weight": PartitionSpec(None, None),
    }
    assert {name: found[name] for name in expected} == expected


def test_what_an_axis_does_not_divide_stays_whole():
    odd = specs(mesh_worker.ODD, abstract_mesh(2, 2, 4))
    assert odd["embed_tokens.weight"] == PartitionSpec(None, None)  # 203 rows
    assert odd["layers.self_attn.q_proj.weight"] == PartitionSpec(None, ("tensor", "fsdp"), None)
    assert specs(mesh_worker.ODD, abstract_mesh(1, 1, 5))["layers.mlp.up_proj.weight"] == (
        PartitionSpec(None, None, None)
    )


@pytest.mark.parametrize(
    ("num_devices", "batch_size", "num_heads", "shape"),
    [
        (1, 16, 28, "1x1x1"),
        (2, 16, 28, "1x2x1"),
        (8, 16, 28, "1x2x4"),
        (8, 64, 28, "1x8x1"),
        (6, 16, 28, "1x3x2"),
        (8, 16, 14, "1x4x2"),
        (8, 16, 6, "1x4x2"),
        (8, 16, 7, "1x8x1"),
    ],
)
def test_rows_are_split_no_further_than_samples_and_heads_allow(
    num_devices, batch_size, num_heads, shape
):
    found = mesh_shape(SFTConfig(batch_size=batch_size), num_devices, num_heads)
    assert str(found) == shape


@pytest.mark.parametrize(("batch_size", "is_told"), [(8, True), (64, False)])
def test_rows_that_stay_empty_are_worth_a_warning(batch_size, is_told, caplog):
    mesh = abstract_mesh(1, 8, 1)
    batches = PackedBatches(
        sharing_examples(64), batch_size=batch_size, seed=0, num_epochs=1, row_multiple=8
    )
    warn_of_empty_rows(mesh, batches, SFTConfig(batch_size=batch_size))
    assert ("8 samples a step are few for 8 devices" in caplog.text) == is_told


@pytest.mark.parametrize("text", ["8", "1x2", "axbxc", "1x0x8"])
def test_mesh_shapes_that_mean_nothing_are_refused(text):
    message = f"mesh='{text}' must be DATAxFSDPxTENSOR, each at least 1, such as 1x2x4"
    with pytest.raises(InputError, match=message):
        SFTConfig(mesh=text).check_devices()


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(InputError, match="mesh 1x2x4 takes 8 devices, but there are 1; choose"):
        sharding.make_mesh(MeshShape.parse("1x2x4"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "host:1"}, "takes --num-processes and --process-id"),
        ({"num_processes": 2}, "take --coordinator HOST:PORT"),
        ({"keep": 0}, "keep=0 must be at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SFTConfig(**settings).check_devices()
