"""Devices to compile for, here or not: GPUs and TPUs by name, or virtual CPUs.

An abstract device has no memory and runs nothing, but its compiler works as ever: for TPUs it comes
with `libtpu`, for GPUs with JAX's CUDA plugin and NVIDIA's assembler (extras `tpu-aot`, `gpu-aot`).
"""

from __future__ import annotations

import importlib.util
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from emodistill.errors import InputError

GPU_PLUGINS = ("xla_cuda12", "xla_cuda13")
"""JAX's plugins for NVIDIA GPUs, of which one is enough."""

DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""What an NVIDIA driver leaves in the file system, on Linux and in Windows' Linux."""

AOT_OPTIONS = {"xla_gpu_autotune_level": 0}
"""For compiling without the GPU: XLA would choose among kernels by running them."""

_LIMITS = """\
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
"""
"""What all of NVIDIA's GPUs since 2020 have in common."""


def gpu_targets() -> dict[str, dict[str, Any]]:
    """The GPUs that can be compiled for by name, with their figures (`gpu_targets.toml`)."""
    path = Path(__file__).with_name("gpu_targets.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def target_devices(topology: str | None, num_devices: int) -> Sequence[Any]:
    """The devices to compile for.

    Args:
      topology: GPUs of one machine such as `h100:8`, a TPU slice such as `v5e:2x4`, or None for
        virtual CPUs. GPUs that are really here stand for themselves.
      num_devices: how many virtual CPUs.

    Raises:
      InputError: there is no such topology, or the extra that it takes is missing.
    """
    if topology is None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", num_devices)
        return jax.devices("cpu")
    kind, _, layout = topology.partition(":")
    target = gpu_targets().get(kind)
    if target is None:
        return _tpus(topology, kind, layout)
    if not layout.isdecimal() or int(layout) not in range(1, 9):
        raise InputError(
            f"topology={topology!r} must name 1 to 8 GPUs of one machine, such as {kind}:8."
        )
    return _real_gpus(target["description"], int(layout)) or _gpus(kind, target, int(layout))


def is_abstract(device: Any) -> bool:
    """Whether `device` is a GPU that is not here, so that nothing can run on it."""
    if device.platform != "gpu":
        return False
    # An abstract device's own client counts it among its devices, so JAX's list of GPUs decides.
    try:
        return device not in jax.local_devices(backend="gpu")
    except RuntimeError:
        return True


def _real_gpus(description: str, number: int) -> Sequence[Any]:
    """The GPUs of this machine where they are the ones that are asked for, else none."""
    if not any(Path(device).exists() for device in DRIVERS):
        # JAX would try to start its CUDA plugin, and drop it for good when that fails.
        jax.config.update("jax_platforms", "cpu")
        return []
    found = jax.devices() if jax.default_backend() == "gpu" else []
    found = [device for device in found if device.device_kind == description]
    return found[:number] if len(found) >= number else []


def _gpus(kind: str, target: dict[str, Any], number: int) -> Sequence[Any]:
    names = (f"jax_plugins.{plugin}" for plugin in GPU_PLUGINS)
    if importlib.util.find_spec("jax_plugins") is None or not any(
        map(importlib.util.find_spec, names)
    ):
        raise InputError(
            f"topology '{kind}:{number}' takes the extra `gpu-aot`: pip install "
            "'emodistill[gpu-aot]'."
        )
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=kind,
        target_config=_target_config(target),
        topology=f"1x1x{number}",
    ).devices


def _target_config(target: dict[str, Any]) -> str:
    """`target` as XLA's `GpuTargetConfigProto` in text form."""
    figures = dict(target)
    description, (major, minor) = figures.pop("description"), figures.pop("compute_capability")
    lines = "".join(f"  {name}: {value}\n" for name, value in figures.items())
    return (
        f"gpu_device_info {{\n{_LIMITS}{lines}"
        f"  cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        f'platform_name: "CUDA"\ndnn_version_info {{ major: 9 minor: 1 }}\n'
        f'device_description_str: "{description}"\n'
    )


def _tpus(topology: str, kind: str, layout: str) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"topology={topology!r} takes the extra `tpu-aot`: pip install 'emodistill[tpu-aot]'. "
            f"GPUs are {', '.join(f'{name}:1' for name in gpu_targets())}."
        )
    jax.config.update("jax_platforms", "cpu")
    for name, value in _NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    if set(layout.split("x")) == {"1"}:  # else libtpu takes a host for one of four chips
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{kind}:{layout}", **options
        ).devices
    except Exception as error:  # libtpu's errors have no common base
        raise InputError(
            f"topology={topology!r} can't be compiled for ({str(error).strip().splitlines()[0]}); "
            f"there are {', '.join(f'{name}:1' for name in gpu_targets())} for GPUs, and v6e:1x1, "
            "v5e:2x4, v5p:2x2x2 and the like for TPUs."
        ) from None


_NO_TPU_HERE = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
"""Keeps libtpu from asking the cloud where it is, and from locking out others: it only compiles."""
