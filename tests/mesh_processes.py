"""Processes that run `mesh_worker.py` on so many virtual devices."""

import os
import subprocess
import sys
from pathlib import Path

import mesh_worker


def start(*args, num_devices):
    """mesh_worker.py as a process of its own with so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}"
    return subprocess.Popen(
        [sys.executable, mesh_worker.__file__, *map(str, args)],
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    errors = [process.communicate(timeout=900)[1] for process in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error
