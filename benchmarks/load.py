"""How much host memory loading a checkpoint takes beside the weights, and how long it lasts.

A checkpoint of the 7B model's shapes is read by each contender in a process of its own. The host's
peak is what the process held at most beside the weights themselves, which on CPU have to be
in the host's memory too. Pages of the memory-mapped files, which the system takes back when it
needs them, are not counted; on CPU transformers leaves the weights there, unread, and so the clock
stops only after a pass over all of them.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.configs import LoadBenchmark
from benchmarks.loaders import file_sizes, load_figures
from benchmarks.rounds import (
    GB,
    OURS,
    Figures,
    alternate,
    in_own_process,
    kernel_bytes,
    medians,
    report,
)
from emodistill.errors import InputError
from emodistill.model import Qwen2, Qwen2Config, save_qwen2
from emodistill.model.config import read_architecture
from emodistill.model.weights import MAX_SHARD_BYTES


def run(config: LoadBenchmark) -> None:
    """Measure, print a line per round and contender, then the result."""
    with tempfile.TemporaryDirectory(dir=config.dir) as name:
        folder = Path(name)
        whole = read_architecture(config.model)
        num_layers = _layers_that_fit(whole, config, folder)
        write_checkpoint(folder, dataclasses.replace(whole, num_layers=num_layers))
        sizes = file_sizes(folder)
        print(
            f"{config.model}, {num_layers} layers: {sum(sizes) / GB:.1f} GB in files of at most "
            f"{max(sizes) / GB:.2f} GB",
            flush=True,
        )

        def measure(contender: str, number: int) -> Figures:
            return in_own_process(load_figures, contender, folder)

        contenders = {name: partial(measure, name) for name in (OURS, *config.peers)}
        line = "{gb:.2f} GB beside the weights, {seconds:.1f} s"
        rounds = alternate(contenders, config.rounds, line)
    extra = {
        "seconds": medians(rounds, "seconds"),
        "held_in_the_end_gb": medians(rounds, "end_gb"),
        "largest_file_gb": max(sizes) / GB,
        "files_gb": sum(sizes) / GB,
        "num_layers": num_layers,
    }
    report(config, "host peak / largest file", rounds, "share", extra, is_more_better=False)


def write_checkpoint(folder: Path, architecture: Qwen2Config) -> None:
    """Write a checkpoint in bfloat16 whose weights are all the same number.

    They are views of that number, so that no more memory is needed than for the file that is being
    written, which has at most `MAX_SHARD_BYTES`; what reading them takes does not depend on it.
    """
    graphdef, state = nnx.split(_abstract(architecture))
    weight = jnp.bfloat16(0.02)
    state = jax.tree.map(lambda leaf: np.broadcast_to(weight, leaf.shape), state)
    save_qwen2(nnx.merge(graphdef, state), folder)


def _abstract(architecture: Qwen2Config) -> Qwen2:
    """The model without its numbers."""
    return nnx.eval_shape(lambda: Qwen2(architecture, key=jax.random.key(0)))


def _layers_that_fit(whole: Qwen2Config, config: LoadBenchmark, folder: Path) -> int:
    """As many layers as the model has, or as disk and memory have room for.

    Raises:
      InputError: there is no room for two.
    """
    model = _abstract(whole)
    all_bytes, in_layers = (
        2 * sum(leaf.size for leaf in jax.tree.leaves(nnx.state(part)))
        for part in (model, model.layers)
    )
    memory = 0.9 * kernel_bytes("/proc/meminfo", "MemAvailable")
    room = min(0.9 * shutil.disk_usage(folder).free, memory - MAX_SHARD_BYTES / 2)
    room_for_layers = room - (all_bytes - in_layers)
    num_layers = min(
        config.num_layers or whole.num_layers,
        int(room_for_layers // (in_layers / whole.num_layers)),
    )
    if num_layers < 2:
        raise InputError(
            f"{folder} or memory has no room for two layers of {config.model}; free some, name "
            "another --dir or a smaller --model."
        )
    return num_layers
