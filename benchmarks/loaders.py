"""The contenders of `load`: a checkpoint read in a process of its own, whose memory is watched."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.rounds import OURS, Figures
from emodistill.errors import EmodistillError

GB = 1e9
SAMPLE_EVERY_S = 0.002
"""Between two looks at the memory; a layer takes longer to read."""


def _emodistill(folder: Path) -> Callable[[], list[Any]]:
    import jax  # in this contender's process alone
    from flax import nnx  # as above

    from emodistill.model import load_qwen2  # as above

    return lambda: jax.tree.leaves(jax.block_until_ready(nnx.state(load_qwen2(folder))))


def _transformers(folder: Path) -> Callable[[], list[Any]]:
    import torch  # in this contender's process alone
    from transformers import AutoModelForCausalLM  # as above

    load = AutoModelForCausalLM.from_pretrained
    return lambda: list(load(folder, dtype=torch.bfloat16).parameters())


LOADERS = {OURS: _emodistill, "transformers": _transformers}
"""By name, what imports a library and then gives a function that loads all weights."""


def file_sizes(folder: Path) -> list[int]:
    """The bytes of each file of weights."""
    return [path.stat().st_size for path in folder.glob("*.safetensors")]


def load_figures(name: str, folder: Path) -> Figures:
    """Load the checkpoint in this process and measure what that takes beside the weights."""
    sizes, load = file_sizes(folder), LOADERS[name](folder)
    before = _private_bytes()
    started = time.monotonic()
    with _peak_memory() as peak:
        weights = load()
    gc.collect()
    end = _private_bytes() - before
    for weight in weights:
        weight.max().item()  # what is only mapped into memory is read now
    seconds = time.monotonic() - started
    beside = peak[0] - before - min(end, sum(sizes))
    return {
        "gb": beside / GB,
        "share": beside / max(sizes),
        "seconds": seconds,
        "end_gb": end / GB,
    }


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """The most private memory of this process so far (one number), until the block ends."""
    peak = [_private_bytes()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SAMPLE_EVERY_S):
            peak[0] = max(peak[0], _private_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _private_bytes() -> int:
    """Memory of this process that no file backs."""
    return kernel_bytes("/proc/self/status", "RssAnon")


def kernel_bytes(path: str, name: str) -> int:
    """One of the kernel's figures, which are in KiB."""
    for line in Path(path).read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise EmodistillError(f"{path} has no {name}; this benchmark takes Linux.")
