"""Training throughput beside the libraries that people would use: `sft`, `jpo` and `mfu`.

All contenders train the same random checkpoint, with the same LoRA, on samples of one synthetic
sweep (`workload`). Ours takes optimiser steps of `batch_size` samples; the peers, whose speed does
not depend on how many samples there are, take `peer_samples` of each step, others in each round, in
batches of similar lengths where they pad. Compiling, loading, tokenising and the first step are not
timed.

The 7B-width slice has few layers of Qwen2.5-7B's widths, and a vocabulary that is smaller in the
same proportion, so that head and layers keep their shares of the work.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.configs import JPOBenchmark, MFUBenchmark, SFTBenchmark, TrainingBenchmark
from benchmarks.rounds import OURS, Figures, alternate, medians, report
from benchmarks.timed_steps import JPO_EPOCHS, TimedSteps
from benchmarks.workload import dialogue_examples, statistics
from emodistill.batches import Example, PackedBatches, Step
from emodistill.errors import InputError
from emodistill.model import Qwen2, embedded_path, save_qwen2
from emodistill.model.config import Qwen2Config, read_architecture
from emodistill.seeding import jax_key, stream
from emodistill.train.flops import measured_peak, training_flops

PEAK_SIZE = 3072
"""Size of the square matrices whose product measures the device's peak: large enough to reach it
and small enough to take a second on two cores."""


def run(config: SFTBenchmark | JPOBenchmark | MFUBenchmark) -> None:
    """Measure, print a line per round and contender, then the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = _checkpoint(config, Path(name))
        architecture = Qwen2Config.from_pretrained(folder)
        samples = Samples(config, architecture.vocab_size)
        ours = TimedSteps(folder, "jpo" if config.stage == "bench-jpo" else "sft")
        ours.seconds(samples.steps)  # all of them, for a shape may occur in one step alone
        if config.stage == "bench-jpo":
            ours.reference_seconds(samples.steps)
        facts = samples.facts(architecture)
        if isinstance(config, MFUBenchmark):
            _run_mfu(config, ours, samples, facts)
            return
        contenders: dict[str, Callable[[int], Figures]]
        contenders = {OURS: partial(_our_rate, config, ours, samples)}
        if config.peers:
            contenders |= _peer_rates(config, folder, samples)
        rounds = alternate(contenders, config.rounds, "{rate:,.2f} reply tokens/s")
    report(config, "reply tokens/s", rounds, "rate", facts)


def _our_rate(
    config: SFTBenchmark | JPOBenchmark, ours: TimedSteps, samples: Samples, number: int
) -> Figures:
    steps = samples.steps_of(number)
    seconds = ours.seconds(steps)
    if config.stage == "bench-jpo":
        seconds += ours.reference_seconds(steps) / JPO_EPOCHS
    return {"rate": sum(step.work.num_reply_tokens for step in steps) / seconds}


def _peer_rates(
    config: SFTBenchmark | JPOBenchmark, folder: Path, samples: Samples
) -> dict[str, Callable[[int], Figures]]:
    """The peers, each after a first step that is not timed."""
    from benchmarks.torch_training import PEERS  # takes the extra `bench`

    def rate(peer: Any, number: int) -> Figures:
        examples = samples.for_peers(number)
        return {"rate": sum(len(one.response_ids) for one in examples) / peer.seconds(examples)}

    peers = {name: PEERS[name](folder, config.max_micro_tokens) for name in config.peers}
    for peer in peers.values():
        peer.seconds(sorted(samples.examples, key=lambda one: one.num_tokens)[:2])
    return {name: partial(rate, peer) for name, peer in peers.items()}


def _run_mfu(
    config: MFUBenchmark, ours: TimedSteps, samples: Samples, facts: dict[str, Any]
) -> None:
    def measure(number: int) -> Figures:
        steps = samples.steps_of(number)
        before = measured_peak(PEAK_SIZE)
        seconds = ours.seconds(steps)
        peak = max(before, measured_peak(PEAK_SIZE))
        flops = sum(training_flops(ours.architecture, step.work) for step in steps)
        return {"share": flops / seconds / peak, "peak": peak}

    rounds = alternate({OURS: measure}, config.rounds, "{share:.1%} of {peak:,.3g} FLOP/s")
    facts |= {"peak_flops": medians(rounds, "peak")[OURS], "peak_matrix": PEAK_SIZE}
    report(config, "useful FLOP/s over measured matmul peak", rounds, "share", facts)


def _checkpoint(config: TrainingBenchmark, folder: Path) -> Path:
    """A random checkpoint of the asked size, or the student that ships."""
    if config.size == "embedded":
        return embedded_path()
    whole = read_architecture("qwen2.5-7b")
    architecture = dataclasses.replace(
        whole,
        num_layers=config.num_layers,
        vocab_size=round(whole.vocab_size * config.num_layers / whole.num_layers / 64) * 64,
        eos_token_ids=(0,),
    )
    save_qwen2(Qwen2(architecture, key=jax_key(0, "bench")), folder)
    # TRL asks for both tokens, which must lie within the smaller vocabulary.
    file = folder / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"bos_token_id": 0, "eos_token_id": 0})
    )
    return folder


class Samples:
    """The sweep that all contenders train on, and the steps in which ours does."""

    def __init__(self, config: TrainingBenchmark, vocab_size: int) -> None:
        self._config = config
        shape: dict[str, Any] = {}
        if config.size == "embedded":  # the simulator's dialogues in the student's tokens
            shape = {"context_tokens": 150, "turn_tokens": 23, "cue_tokens": 24, "num_turns": 4.8}
        sweep = dialogue_examples(
            num_scenarios=20, num_dialogues=20, vocab_size=vocab_size, **shape
        )
        order = stream(0, "bench", "kept").permutation(len(sweep))
        self.examples = [sweep[i] for i in np.sort(order[: round(config.kept * len(sweep))])]
        self._batches = PackedBatches(
            self.examples,
            batch_size=config.batch_size,
            seed=0,
            num_epochs=1,
            packing=config.packing,
            max_micro_tokens=config.max_micro_tokens,
            advantages=stream(0, "bench", "advantages").normal(size=len(self.examples)),
        )
        shape_SU = len(self.examples), self._batches.num_reply_tokens
        self._batches.set_reference(np.full(shape_SU, -9.0, np.float32))
        num_steps = config.rounds * config.steps
        if num_steps > self._batches.num_steps:
            raise InputError(
                f"{config.rounds} rounds of {config.steps} steps take more than the "
                f"{self._batches.num_steps} that {len(self.examples):,} samples give at batch_size="
                f"{config.batch_size}."
            )
        # A step of fewer samples may stand anywhere in an epoch; it is used only if it has to be.
        steps = [self._batches.step(i) for i in range(self._batches.num_steps)]
        steps.sort(key=lambda step: len(step.samples) < config.batch_size)
        self.steps = steps[:num_steps]

    def steps_of(self, round_number: int) -> list[Step]:
        first = round_number * self._config.steps
        return self.steps[first : first + self._config.steps]

    def for_peers(self, round_number: int) -> list[Example]:
        """Some samples of each of the round's steps: from its shortest to its longest, evenly."""
        chosen = []
        for step in self.steps_of(round_number):
            members = sorted((self.examples[i] for i in step.samples), key=lambda e: e.num_tokens)
            spread = np.linspace(0, len(members) - 1, self._config.peer_samples)
            chosen += [members[i] for i in spread.round().astype(int)]
        return chosen

    def facts(self, architecture: Qwen2Config) -> dict[str, Any]:
        """What is trained on what, and how it is packed."""
        config, batches = self._config, self._batches
        whole = sum(example.num_tokens - 1 for example in self.examples)
        return statistics(self.examples) | {
            "size": config.size,
            "layers": architecture.num_layers,
            "vocabulary": architecture.vocab_size,
            "kept": config.kept,
            "samples_per_step": config.batch_size,
            "peer_samples_per_round": config.peer_samples * config.steps,
            "row_lengths": [shape.num_positions for shape in batches.shapes],
            "tokens_per_computed_token": whole / batches.num_positions,
            "filled": batches.num_tokens / batches.num_positions,
        }
