"""What the GPU compiler makes of our programs, on a machine without a GPU (extra `gpu-aot`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emodistill.configs import MemoryConfig
from emodistill.model.attention_kernels import kernel_attention, seen_blocks, shapes_for
from emodistill.train.compile_targets import AOT_OPTIONS, gpu_targets, is_abstract, target_devices
from emodistill.train.memory_plan import plan_memory

HAS_COMPILER = find_spec("jax_plugins") and find_spec("jax_plugins.xla_cuda12")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_COMPILER, reason="takes the extra gpu-aot"),
]
# The tests' own flags are for programs that run a few times on a CPU.
OPTIONS = {**AOT_OPTIONS, "xla_backend_optimization_level": 3}
ARCHITECTURES = {"h100": "sm_90a", "a100-40": "sm_80", "rtx4090": "sm_89"}
NUM_HEADS, NUM_KV_HEADS = 28, 4


def compiled_attention(target, num_positions, head_dim, dump):
    """Forward and backward pass of one layer; the compiler's files are left in `dump`."""
    (device,) = target_devices(f"{target}:1", 1)
    place = NamedSharding(Mesh(np.array([device]), ("x",)), PartitionSpec())
    shapes = shapes_for(device)

    def both(q, k, v, ends_BT, grad):
        seen = seen_blocks(ends_BT, shapes)
        out, pull = jax.vjp(lambda q, k, v: kernel_attention(q, k, v, seen, shapes=shapes), q, k, v)
        return out, pull(grad)

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    q, k = (array(1, num_positions, n, head_dim) for n in (NUM_HEADS, NUM_KV_HEADS))
    ends_BT = array(1, num_positions, dtype=jnp.int32)
    lowered = jax.jit(both).lower(q, k, k, ends_BT, q)
    return lowered.compile({**OPTIONS, "xla_dump_to": str(dump)})


def assembled(target, dump):
    """The bytes that each kernel spills, by what the assembler says of it."""
    (folder,) = find_spec("nvidia.cuda_nvcc").submodule_search_locations
    found = {}
    for ptx in dump.glob("*.ptx"):
        if "tree_attention" not in ptx.read_text():  # some files are no whole program
            continue
        done = subprocess.run(
            [f"{folder}/bin/ptxas", "-v", f"-arch={ARCHITECTURES[target]}", ptx, "-o", os.devnull],
            capture_output=True,
            text=True,
            check=True,
        )
        # A file may hold several kernels; what is said of one stands before the next one's name.
        for said in done.stderr.split("Compiling entry function ")[1:]:
            name = re.match(r"'(\w+)'", said)[1]
            if name.startswith("tree_attention_"):
                assert "Used " in said
                spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
                assert len(spills) == 2
                found[name] = sum(map(int, spills))
    return found


def test_a_gpu_that_is_not_here_runs_nothing():
    (device,) = target_devices("h100:1", 1)
    here = jax.default_backend() == "gpu" and device in jax.devices()
    assert is_abstract(device) is not here
    assert not is_abstract(jax.devices("cpu")[0])


@pytest.mark.parametrize("num_positions", [4096, 16_384])
@pytest.mark.parametrize("target", ARCHITECTURES)
def test_the_kernels_fit_every_target_without_spills(target, num_positions, tmp_path):
    compiled_attention(target, num_positions, 128, tmp_path)
    kernels = assembled(target, tmp_path)
    assert set(kernels) == {f"tree_attention_{name}" for name in ("forward", "dq", "dkv")}
    assert not any(kernels.values())
    (plan,) = tmp_path.glob("*thunk_sequence.txt")
    shared = re.findall(r"tree_attention_\w+ .*shared_memory: (\d+)", plan.read_text())
    limit = gpu_targets()[target]["shared_memory_per_block_optin"]
    assert len(shared) == 3 and max(map(int, shared)) <= limit


@pytest.mark.parametrize(
    ("topology", "tokens", "most_gb"),
    [("h100:1", 4096, 17.5), ("h100:1", 16_384, 20.6), ("h100:8", 4096, 3.0)],
)
def test_a_7b_step_keeps_within_its_memory_and_launches_few_kernels(topology, tokens, most_gb):
    found = plan_memory(MemoryConfig(topology=topology, tokens=tokens))
    assert found.memory.total <= most_gb * 1e9
    if (topology, tokens) == ("h100:1", 4096):
        assert found.counts.num_kernels <= 4_000
        assert found.counts.num_attention_kernels <= 150


@pytest.mark.parametrize("target", gpu_targets())
def test_every_target_compiles(target):
    """Also where nobody has told JAX that there is no GPU."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).parents[1] / "scripts/plan.py"), "memory"),
            *("--model", "embedded", "--tokens", "512", "--topology", f"{target}:1"),
        ],
        capture_output=True,
        text=True,
        env={**env, "PYTHONPATH": os.pathsep.join(sys.path), "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "\nkernels " in done.stdout
