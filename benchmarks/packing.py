"""How cost grows with samples and turns: computed tokens per sample, time per token, the packing.

The samples are those of a synthetic sweep (`workload`), the steps those of the embedded student.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from benchmarks.configs import PackingBenchmark
from benchmarks.rounds import OURS, report
from benchmarks.timed_steps import TimedSteps
from benchmarks.workload import dialogue_examples, statistics
from emodistill.batches import Example, PackedBatches
from emodistill.configs import Packing
from emodistill.model import embedded_path

NUM_SAMPLES = (100, 1_000, 10_000)
NUM_TURNS = (1, 3, 10, 30)
NUM_SAMPLES_BY_TURNS = 2_000
"""Samples of the sets that differ in turns."""
TIMED_STEPS = 8
SAMPLES_PER_DIALOGUE = 7
DIALOGUES_PER_SCENARIO = 20


def run(config: PackingBenchmark) -> None:
    """Print a line per size, then the result."""
    peak_before = _peak_bytes()
    examples = _sweep(config.num_samples)
    started = time.perf_counter()
    batches = _packed(examples, config.packing, max_micro_tokens=4096)
    seconds = time.perf_counter() - started
    share = sum(example.num_tokens - 1 for example in examples) / batches.num_positions
    print(
        f"{len(examples):,} samples packed in {seconds:.1f} s; {share:.2f} tokens for each "
        f"computed one, rows {batches.num_tokens / batches.num_positions:.1%} filled",
        flush=True,
    )
    extra = {
        "num_samples": len(examples),
        "peak_gb_samples_included": (_peak_bytes() - peak_before) / 1e9,
        "by_samples": {n: _costs(_sweep(n), config.packing) for n in NUM_SAMPLES},
        "by_turns": {
            n: _costs(_sweep(NUM_SAMPLES_BY_TURNS, num_turns=n), config.packing) for n in NUM_TURNS
        },
    }
    rounds = {OURS: [{"seconds": seconds}]}
    unit = f"s to pack {len(examples):,} samples"
    report(config, unit, rounds, "seconds", extra, is_more_better=False)


def _sweep(num_samples: int, *, num_turns: int = SAMPLES_PER_DIALOGUE) -> list[Example]:
    num_dialogues = -(-num_samples // num_turns)
    examples = dialogue_examples(
        num_scenarios=-(-num_dialogues // DIALOGUES_PER_SCENARIO) + 1,
        num_dialogues=DIALOGUES_PER_SCENARIO,
        num_turns=num_turns,
        vocab_size=180,
    )
    return examples[:num_samples]


def _packed(examples: list[Example], packing: Packing, *, max_micro_tokens: int) -> PackedBatches:
    return PackedBatches(
        examples,
        batch_size=16,
        seed=0,
        num_epochs=1,
        packing=packing,
        max_micro_tokens=max_micro_tokens,
    )


def _costs(examples: list[Example], packing: Packing) -> dict[str, float]:
    """Computed tokens per sample and microseconds per computed token."""
    batches = _packed(examples, packing, max_micro_tokens=2048)
    steps = [batches.step(i) for i in range(min(TIMED_STEPS, batches.num_steps))]
    ours = TimedSteps(embedded_path(), "sft")
    ours.seconds(steps)  # compiles
    times = [ours.seconds([step]) / step.work.num_positions for step in steps]
    costs = {
        "prompt_tokens": statistics(examples)["prompt_tokens"],
        "computed_tokens_per_sample": batches.num_positions / len(examples),
        "us_per_computed_token": 1e6 * float(np.median(times)),
        "filled": batches.num_tokens / batches.num_positions,
    }
    print(
        "{:,} samples of {prompt_tokens:,.0f} prompt tokens: {computed_tokens_per_sample:,.0f} "
        "tokens computed a sample, {us_per_computed_token:.1f} us each".format(
            len(examples), **costs
        ),
        flush=True,
    )
    return costs


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
