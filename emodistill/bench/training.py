"""Training throughput beside the libraries that people would use: `sft`, `jpo` and `mfu`.

All contenders train the same random checkpoint, with the same LoRA, on samples of one synthetic
sweep (`workload`), by turns. Ours takes an optimiser step of `batch_size` samples; the peers, whose
speed does not depend on how many samples there are, take `peer_samples` of them, others in each
round. Nothing of compiling, loading or tokenising is timed.

The 7B-width slice has few layers of Qwen2.5-7B's widths, and a vocabulary that is as much smaller
as the layers are fewer, so that head and layers keep their shares.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emodistill.bench.own_training import Ours, checkpoint
from emodistill.bench.report import Measured, result
from emodistill.configs import BenchTrainingConfig
from emodistill.train.flops import measured_peak

PEAK_SIZE = 3072
"""Of the square matrices whose product tells the device's peak."""


class Contender(NamedTuple):
    """Measures one round: reply tokens per second."""

    name: str
    measure: Callable[[int], float]


def run(config: BenchTrainingConfig) -> None:
    """Measure by turns, print a line a round and contender, then the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoint(config, Path(name))
        ours = Ours(config, folder)
        if config.name == "mfu":
            _run_mfu(config, ours)
            return
        contenders = [Contender("emodistill", ours.sft if config.name == "sft" else ours.jpo)]
        for peer in config.peers:
            from emodistill.bench import torch_training  # takes the extra `bench`

            contenders.append(
                Contender(peer, torch_training.PEERS[config.name][peer](config, folder, ours))
            )
        found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
        for number in range(config.rounds):
            for contender in contenders:
                speed = contender.measure(number)
                found[contender.name].append(speed)
                print(
                    f"round {number + 1}, {contender.name}: {speed:,.2f} reply tokens/s", flush=True
                )
    own, *peers = (Measured(name, rounds) for name, rounds in found.items())
    for measured in (own, *peers):
        print(measured.text)
    print(result(config.name, "reply tokens/s", own, peers, ours.facts()))


def _run_mfu(config: BenchTrainingConfig, ours: Ours) -> None:
    shares, peaks = [], []
    for number in range(config.rounds):
        before = measured_peak(PEAK_SIZE)
        seconds = ours.step_seconds("sft", number)
        peaks.append(max(before, measured_peak(PEAK_SIZE)))
        shares.append(ours.flops(number) / seconds / peaks[-1])
        print(f"round {number + 1}: {shares[-1]:.1%} of {peaks[-1] / 1e9:,.1f} GFLOP/s", flush=True)
        gc.collect()
    own = Measured("emodistill", shares)
    extra = ours.facts() | {"peak_flops": float(np.median(peaks)), "peak_matrix": PEAK_SIZE}
    print(own.text)
    print(result("mfu", "useful FLOP/s over measured matmul peak", own, [], extra))
