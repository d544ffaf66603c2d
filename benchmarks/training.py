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
import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.configs import JPOBenchmark, MFUBenchmark, SFTBenchmark, TrainingBenchmark
from benchmarks.rounds import OURS, Figures, alternate, medians, report
from benchmarks.timed_steps import Seconds, TimedSteps
from benchmarks.workload import dialogue_examples, epoch, statistics
from emodistill.batches import Example, PackedBatches, Step
from emodistill.errors import InputError
from emodistill.model import Qwen2, embedded_path, load_qwen2, save_qwen2
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
        batches = _packed_sweep(config, architecture.vocab_size)
        steps = _steps_of_rounds(config, batches)
        ours = TimedSteps(
            load_qwen2(folder, dtype=jnp.float32),
            "jpo" if isinstance(config, JPOBenchmark) else "sft",
        )
        ours.seconds(list(itertools.chain(*steps)))  # all, for a shape may occur in one step alone

        def our_rate(number: int) -> Figures:
            num_tokens = sum(step.work.num_reply_tokens for step in steps[number])
            return {"rate": num_tokens / ours.seconds(steps[number])}

        def our_share_of_peak(number: int) -> Figures:
            before = measured_peak(PEAK_SIZE)
            seconds = ours.seconds(steps[number])
            peak = max(before, measured_peak(PEAK_SIZE))
            flops = sum(training_flops(architecture, step.work) for step in steps[number])
            return {"share": flops / seconds / peak, "peak": peak}

        extra: dict[str, Any] = statistics(batches) | {
            "size": config.size,
            "layers": architecture.num_layers,
            "vocabulary": architecture.vocab_size,
            "kept": config.kept,
            "samples_per_step": config.batch_size,
            "peer_samples_per_round": config.peer_samples * config.steps,
            "row_lengths": [shape.num_positions for shape in batches.shapes],
        }
        contenders: dict[str, Callable[[int], Figures]]
        if isinstance(config, MFUBenchmark):
            contenders = {OURS: our_share_of_peak}
            rounds = alternate(contenders, config.rounds, "{share:.1%} of {peak:,.3g} FLOP/s")
            extra |= {"peak_flops": medians(rounds, "peak")[OURS], "peak_matrix": PEAK_SIZE}
            report(config, "useful FLOP/s over measured matmul peak", rounds, "share", extra)
        else:
            contenders = {OURS: our_rate, **_peer_rates(config, folder, batches.examples, steps)}
            rounds = alternate(contenders, config.rounds, "{rate:,.2f} reply tokens/s")
            report(config, "reply tokens/s", rounds, "rate", extra)


def _peer_rates(
    config: SFTBenchmark | JPOBenchmark,
    folder: Path,
    examples: Sequence[Example],
    steps: Sequence[Sequence[Step]],
) -> dict[str, Callable[[int], Figures]]:
    """The peers, each after a first step that is not timed."""
    if not config.peers:
        return {}
    from benchmarks.torch_training import PEERS  # takes the extra `bench`

    def rate(seconds: Seconds, number: int) -> Figures:
        """Over some samples of each of the round's steps: from shortest to longest, evenly."""
        chosen: list[Example] = []
        for step in steps[number]:
            members = sorted((examples[i] for i in step.samples), key=lambda e: e.num_tokens)
            spread = np.linspace(0, len(members) - 1, config.peer_samples)
            chosen += [members[i] for i in spread.round().astype(int)]
        return {"rate": sum(len(one.response_ids) for one in chosen) / seconds(chosen)}

    peers = {name: PEERS[name](folder, config.max_micro_tokens) for name in config.peers}
    for seconds in peers.values():
        seconds(sorted(examples, key=lambda one: one.num_tokens)[:2])
    return {name: partial(rate, seconds) for name, seconds in peers.items()}


def _checkpoint(config: TrainingBenchmark, folder: Path) -> Path:
    """A random checkpoint of the asked size, or the student that ships."""
    if config.size == "embedded":
        return embedded_path()
    whole = read_architecture("qwen2.5-7b")
    architecture = dataclasses.replace(
        whole,
        num_layers=config.num_layers,
        vocab_size=round(whole.vocab_size * config.num_layers / whole.num_layers / 64) * 64,
        eos_token_ids=(0,),  # TRL asks for one, which must lie within the smaller vocabulary
    )
    save_qwen2(Qwen2(architecture, key=jax_key(0, "bench")), folder)
    return folder


def _packed_sweep(config: TrainingBenchmark, vocab_size: int) -> PackedBatches:
    """The samples that all contenders train on, and the steps in which ours does."""
    shape: dict[str, Any] = {}
    if config.size == "embedded":  # the simulator's dialogues in the student's tokens
        shape = {"context_tokens": 150, "turn_tokens": 23, "cue_tokens": 24, "num_turns": 4.8}
    sweep = dialogue_examples(num_scenarios=20, num_dialogues=20, vocab_size=vocab_size, **shape)
    order = stream(0, "bench", "kept").permutation(len(sweep))
    kept = np.sort(order[: round(config.kept * len(sweep))])
    batches = epoch(
        [sweep[i] for i in kept],
        batch_size=config.batch_size,
        packing=config.packing,
        max_micro_tokens=config.max_micro_tokens,
        advantages=stream(0, "bench", "advantages").normal(size=len(kept)),
    )
    batches.set_reference(np.full((len(kept), batches.num_reply_tokens), -9.0, np.float32))
    return batches


def _steps_of_rounds(config: TrainingBenchmark, batches: PackedBatches) -> list[list[Step]]:
    """Each round's optimiser steps.

    Raises:
      InputError: there are fewer steps than the rounds take.
    """
    if config.rounds * config.steps > batches.num_steps:
        raise InputError(
            f"{config.rounds} rounds of {config.steps} steps take more than the "
            f"{batches.num_steps} that {len(batches.examples):,} samples give at batch_size="
            f"{config.batch_size}."
        )
    # A step of fewer samples may stand anywhere in an epoch; it is used only if it has to be.
    steps = [batches.step(i) for i in range(batches.num_steps)]
    steps.sort(key=lambda step: len(step.samples) < config.batch_size)
    return [steps[i * config.steps :][: config.steps] for i in range(config.rounds)]
