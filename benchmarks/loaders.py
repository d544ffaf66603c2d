"""The contenders of `load`: a checkpoint read in a process of its own, whose memory is watched."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks.rounds import GB, OURS, Figures, kernel_bytes

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
    before = peak = _private_bytes()
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load)
        # The kernel keeps no peak of private memory, so this thread looks while that one loads.
        while not loading.done():
            peak = max(peak, _private_bytes())
            wait([loading], SAMPLE_EVERY_S)
    weights = loading.result()
    gc.collect()
    end = _private_bytes() - before
    for weight in weights:
        weight.max().item()  # what is only mapped into memory is read now
    seconds = time.monotonic() - started
    beside = peak - before - min(end, sum(sizes))
    return {
        "gb": beside / GB,
        "share": beside / max(sizes),
        "seconds": seconds,
        "end_gb": end / GB,
    }


def _private_bytes() -> int:
    """Memory of this process that no file backs."""
    return kernel_bytes("/proc/self/status", "RssAnon")
