"""Training throughput beside the libraries that people would use: `sft`, `jpo` and `mfu`.

All contenders train the same random checkpoint, with the same LoRA, on samples of one synthetic
sweep (`workload`), by turns. Ours takes an optimiser step of `batch_size` samples; the peers, whose
speed does not depend on how many samples there are, take `peer_samples` of them, others in each
round, in batches of like lengths where they pad. Nothing of compiling, loading, tokenising or the
first step is timed.

The 7B-width slice has few layers of Qwen2.5-7B's widths, and a vocabulary that is as much smaller
as the layers are fewer, so that head and layers keep their shares.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from emodistill.bench.own_training import Ours, checkpoint
from emodistill.bench.report import Measured, result
from emodistill.configs import BenchTrainingConfig
from emodistill.train.flops import measured_peak

PEAK_SIZE = 3072
"""Of the square matrices whose product tells the device's peak."""


def run(config: BenchTrainingConfig) -> None:
    """Measure by turns, print a line a round and contender, then the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoint(config, Path(name))
        ours = Ours(config, folder)
        if config.name == "mfu":
            _run_mfu(config, ours)
            return
        contenders = {"emodistill": ours.sft if config.name == "sft" else ours.jpo}
        contenders |= {peer: _peer(peer, config, folder, ours) for peer in config.peers}
        found: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(config.rounds):
            for name, measure in contenders.items():
                found[name].append(measure(number))
                print(
                    f"round {number + 1}, {name}: {found[name][-1]:,.2f} reply tokens/s", flush=True
                )
    own, *peers = (Measured(name, rounds) for name, rounds in found.items())
    for measured in (own, *peers):
        print(measured.text)
    print(result(config, "reply tokens/s", own, peers, ours.facts()))


def _peer(
    name: str, config: BenchTrainingConfig, folder: Path, ours: Ours
) -> Callable[[int], float]:
    """Reply tokens per second of a peer in a round, after a first step that is not timed."""
    from emodistill.bench import torch_training  # takes the extra `bench`

    seconds = torch_training.PEERS[config.name][name](config, folder, ours)
    seconds(sorted(ours.examples, key=lambda example: example.num_tokens)[:2])

    def measure(round_number: int) -> float:
        examples = ours.for_peers(round_number)
        return sum(len(one.response_ids) for one in examples) / seconds(examples)

    return measure


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
    print(result(config, "useful FLOP/s over measured matmul peak", own, [], extra))
