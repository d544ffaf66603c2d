"""How much of the host a checkpoint takes on its way to the devices, and how long that lasts.

A random checkpoint of the 7B model's shapes is read by each contender in a process of its own, by
turns. The host's peak is what the process held at most beside the weights themselves, which on CPU
have to lie in the host's memory too. Pages of the memory-mapped files, which the system takes back
when it needs them, are not counted; on CPU transformers leaves the weights there, unread,
and so the clock stops only once a pass over all of them is done.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emodistill import runs
from emodistill.bench.report import Measured, result
from emodistill.configs import BenchLoadConfig
from emodistill.errors import EmodistillError, InputError
from emodistill.seeding import stream

SHARD_BYTES = 4 * 10**9
"""Of the files, as the hub's are."""
SAMPLE_EVERY_S = 0.002
GB = 1e9


def run(config: BenchLoadConfig) -> None:
    """Measure, print a line a contender, then the result."""
    names = ("emodistill", *config.peers)
    with tempfile.TemporaryDirectory(dir=config.dir) as name:
        folder = Path(name)
        num_layers = _layers_that_fit(config, folder)
        largest = write_checkpoint(folder, config.model, num_layers)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(
            f"{config.model}, {num_layers} layers: {size / GB:.1f} GB in files of at most "
            f"{largest / GB:.2f} GB",
            flush=True,
        )
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for number in range(config.rounds):
            for name in names:
                found[name].append(_measure(name, folder, size))
                last = found[name][-1]
                print(
                    f"round {number + 1}, {name}: {last['peak_bytes'] / GB:.2f} GB beside the "
                    f"weights, {last['seconds']:.1f} s",
                    flush=True,
                )
    peaks = {
        name: Measured(name, [each["peak_bytes"] / largest for each in rounds])
        for name, rounds in found.items()
    }
    seconds = {
        name: Measured(name, [each["seconds"] for each in rounds]).median
        for name, rounds in found.items()
    }
    for name in names:
        print(f"{peaks[name].text} of the largest file, {seconds[name]:.1f} s")
    ours, *peers = (peaks[name] for name in names)
    extra = {
        "seconds": seconds,
        "held_in_the_end_gb": {
            name: Measured(name, [each["end_bytes"] / GB for each in rounds]).median
            for name, rounds in found.items()
        },
        "largest_file_gb": largest / GB,
        "files_gb": size / GB,
        "num_layers": num_layers,
    }
    print(result(config, "host peak / largest file", ours, peers, extra, is_more_better=False))


def write_checkpoint(folder: Path, model: str, num_layers: int) -> int:
    """A random checkpoint of the shapes of `model`, in bfloat16.

    Returns: bytes of the largest file.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from emodistill.model import Qwen2
    from emodistill.model.config import read_architecture
    from emodistill.model.qwen2 import flat_state
    from emodistill.model.weights import INDEX_FILE, hf_name

    architecture = dataclasses.replace(read_architecture(model), num_layers=num_layers)
    shapes = nnx.eval_shape(lambda: Qwen2(architecture, key=jax.random.key(0)))
    tensors: list[tuple[str, tuple[int, ...]]] = []
    for place, leaf in flat_state(nnx.state(shapes)).items():
        if place[0] == "layers":
            tensors += [(hf_name(place, layer), leaf.shape[1:]) for layer in range(num_layers)]
        else:
            tensors.append((hf_name(place), leaf.shape))
    # One block of noise, cut at another place for every tensor: no time is spent on randomness.
    rng = stream(0, "checkpoint")
    noise = (0.02 * rng.standard_normal(2**24, np.float32)).astype(jnp.bfloat16)

    def values(shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        start = int(rng.integers(2**23))
        return np.resize(noise[start:], size).reshape(shape)

    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    room = SHARD_BYTES
    for name, shape in tensors:
        num_bytes = 2 * int(np.prod(shape))
        if num_bytes > room and files[-1]:
            files.append([])
            room = SHARD_BYTES
        files[-1].append((name, shape))
        room -= num_bytes
    index, sizes = {}, []
    for number, part in enumerate(files, 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        runs.write_tensors(folder / file, {n: values(shape) for n, shape in part}, {"format": "pt"})
        index |= {name: file for name, _ in part}
        sizes.append((folder / file).stat().st_size)
    runs.write_json(folder / INDEX_FILE, {"metadata": {}, "weight_map": index})
    runs.write_json(folder / "config.json", architecture.to_hf(dtype="bfloat16"))
    return max(sizes)


def _layers_that_fit(config: BenchLoadConfig, folder: Path) -> int:
    """As many layers as the model has, or as disk and memory have room for.

    Raises:
      InputError: there is no room for two.
    """
    from emodistill.model.config import read_architecture

    model = read_architecture(config.model)
    width, key_width = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    layer = 2 * model.hidden_size * (2 * width + 2 * key_width + 3 * model.intermediate_size)
    tables = 2 * model.vocab_size * model.hidden_size * (1 if model.is_tied else 2)
    memory = _kernel_bytes("/proc/meminfo", "MemAvailable")
    room = min(0.9 * shutil.disk_usage(folder).free, 0.9 * memory - SHARD_BYTES / 2)
    num_layers = min(config.num_layers or model.num_layers, int((room - tables) // layer))
    if num_layers < 2:
        raise InputError(
            f"{folder} or memory has no room for two layers of {config.model}; free some, name "
            "another --dir or a smaller --model."
        )
    return num_layers


def _measure(name: str, folder: Path, size: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "emodistill.bench.load", name, str(folder), str(size)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EmodistillError(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


class _Loader(NamedTuple):
    load: Callable[[], Any]
    read_all: Callable[[Any], object]
    """A pass over every weight of the model that `load` gave."""


def _ours(folder: Path) -> _Loader:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from emodistill.model import load_qwen2

    largest = jax.jit(jnp.max)
    return _Loader(
        lambda: jax.block_until_ready(nnx.state(load_qwen2(folder))),
        lambda state: [largest(leaf).item() for leaf in jax.tree.leaves(state)],
    )


def _transformers(folder: Path) -> _Loader:
    import torch
    from transformers import AutoModelForCausalLM

    return _Loader(
        lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        lambda model: [parameter.max().item() for parameter in model.parameters()],
    )


_LOADERS = {"emodistill": _ours, "transformers": _transformers}


def _private_bytes() -> int:
    """Memory of this process that no file backs."""
    return _kernel_bytes("/proc/self/status", "RssAnon")


def _kernel_bytes(path: str, name: str) -> int:
    """One of the kernel's figures, which are in KiB."""
    for line in Path(path).read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise EmodistillError(f"{path} has no {name}; this benchmark takes Linux.")


class _Peak:
    """The most private memory since it began, sampled by a thread."""

    def __init__(self) -> None:
        self.bytes = _private_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self.bytes = max(self.bytes, _private_bytes())

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main(name: str, folder: str, size: str) -> None:
    """One contender's turn, in its own process; `size` is that of the weights in bytes."""
    loader = _LOADERS[name](Path(folder))
    before = _private_bytes()
    started = time.monotonic()
    with _Peak() as peak:
        model = loader.load()
    gc.collect()
    end = _private_bytes() - before
    loader.read_all(model)
    seconds = time.monotonic() - started
    beside = peak.bytes - before - min(end, int(size))
    print(json.dumps({"peak_bytes": beside, "end_bytes": end, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
