"""How cost grows with samples and turns: computed tokens per sample, time per token, the packing.

The samples are those of a synthetic sweep (`workload`), the steps those of the embedded student.
"""

from __future__ import annotations

import time
from functools import partial

import jax.numpy as jnp
import numpy as np

from benchmarks.configs import PackingBenchmark
from benchmarks.rounds import GB, OURS, peak_bytes, report
from benchmarks.timed_steps import TimedSteps
from benchmarks.workload import dialogue_examples, epoch, statistics
from emodistill.batches import Example
from emodistill.configs import Packing
from emodistill.model import embedded_path, load_qwen2

NUM_SAMPLES = (100, 1_000, 10_000)
NUM_TURNS = (1, 3, 10, 30)
NUM_SAMPLES_BY_TURNS = 2_000
"""Samples of the sets that differ in turns."""
TIMED_STEPS = 8
SAMPLES_PER_DIALOGUE = 7
DIALOGUES_PER_SCENARIO = 20


def run(config: PackingBenchmark) -> None:
    """Print a line per size, then the result."""
    peak_before = peak_bytes()
    examples = _sweep(config.num_samples)
    started = time.perf_counter()
    batches = epoch(examples, packing=config.packing, max_micro_tokens=4096)
    seconds = time.perf_counter() - started
    print(
        "{num_samples:,} samples packed in {seconds:.1f} s; {tokens_per_computed_token:.2f} tokens "
        "for each computed one, rows {filled:.1%} filled".format(
            seconds=seconds, **statistics(batches)
        ),
        flush=True,
    )
    peak = peak_bytes() - peak_before
    costs = partial(
        _costs,
        packing=config.packing,
        ours=TimedSteps(load_qwen2(embedded_path(), dtype=jnp.float32), "sft"),
    )
    extra = {
        "num_samples": len(examples),
        "peak_gb_samples_included": peak / GB,
        "by_samples": {n: costs(_sweep(n)) for n in NUM_SAMPLES},
        "by_turns": {n: costs(_sweep(NUM_SAMPLES_BY_TURNS, num_turns=n)) for n in NUM_TURNS},
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


def _costs(examples: list[Example], packing: Packing, ours: TimedSteps) -> dict[str, float]:
    """Computed tokens per sample and microseconds per computed token."""
    batches = epoch(examples, packing=packing, max_micro_tokens=2048)
    steps = [batches.step(i) for i in range(min(TIMED_STEPS, batches.num_steps))]
    ours.seconds(steps)  # compiles
    times = [ours.seconds([step]) / step.work.num_positions for step in steps]
    packed = statistics(batches)
    costs = {
        "prompt_tokens": packed["prompt_tokens"],
        "computed_tokens_per_sample": batches.num_positions / len(examples),
        "us_per_computed_token": 1e6 * float(np.median(times)),
        "filled": packed["filled"],
    }
    print(
        "{:,} samples of {prompt_tokens:,.0f} prompt tokens: {computed_tokens_per_sample:,.0f} "
        "tokens computed a sample, {us_per_computed_token:.1f} us each".format(
            len(examples), **costs
        ),
        flush=True,
    )
    return costs
