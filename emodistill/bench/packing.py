"""How cost grows: tokens a sample, time a token, and the packing itself.

The samples are those of a synthetic sweep (`workload`), the steps those of the embedded student.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from emodistill.batches import Example, PackedBatches
from emodistill.bench.report import Measured, result
from emodistill.bench.workload import dialogue_examples, statistics
from emodistill.configs import BenchPackingConfig, SFTConfig
from emodistill.model import LoRAParam, add_lora, embedded_path, load_qwen2
from emodistill.seeding import jax_key
from emodistill.train.sft import sft_loss_of_batch
from emodistill.train.trainer import Trainer

NUM_SAMPLES = (100, 1_000, 10_000)
NUM_TURNS = (1, 3, 10, 30)
TIMED_STEPS = 8
SAMPLES_PER_DIALOGUE = 7
DIALOGUES_PER_SCENARIO = 20


def run(config: BenchPackingConfig) -> None:
    """Print a line a size, then the result."""
    before = _peak_bytes()
    seconds, size = _pack_many(config)
    taken = _peak_bytes() - before
    extra: dict[str, Any] = {
        "num_samples": size,
        "peak_gb_samples_included": taken / 1e9,
        "by_samples": {n: _growth(config, _sweep(n)) for n in NUM_SAMPLES},
        "by_turns": {n: _growth(config, _sweep(2_000, num_turns=n)) for n in NUM_TURNS},
    }
    own = Measured("emodistill", [seconds])
    print(own.text)
    print(result(config, f"s to pack {size:,} samples", own, [], extra, is_more_better=False))


def _sweep(num_samples: int, *, num_turns: int = SAMPLES_PER_DIALOGUE) -> list[Example]:
    num_dialogues = -(-num_samples // num_turns)
    examples = dialogue_examples(
        num_scenarios=-(-num_dialogues // DIALOGUES_PER_SCENARIO) + 1,
        num_dialogues=DIALOGUES_PER_SCENARIO,
        num_turns=num_turns,
        vocab_size=180,
    )
    return examples[:num_samples]


def _pack_many(config: BenchPackingConfig) -> tuple[float, int]:
    examples = _sweep(config.num_samples)
    started = time.perf_counter()
    batches = PackedBatches(
        examples,
        batch_size=16,
        seed=0,
        num_epochs=1,
        packing=config.packing,
        max_micro_tokens=4096,
    )
    seconds = time.perf_counter() - started
    share = sum(example.num_tokens - 1 for example in examples) / batches.num_positions
    print(
        f"{len(examples):,} samples packed in {seconds:.1f} s; {share:.2f} tokens for each "
        f"computed one, rows {batches.num_tokens / batches.num_positions:.1%} filled",
        flush=True,
    )
    return seconds, len(examples)


def _growth(config: BenchPackingConfig, examples: list[Example]) -> dict[str, float]:
    """Computed tokens a sample and microseconds a computed token."""
    batches = PackedBatches(
        examples,
        batch_size=16,
        seed=0,
        num_epochs=1,
        packing=config.packing,
        max_micro_tokens=2048,
    )
    model = load_qwen2(embedded_path(), dtype=jax.numpy.float32)
    add_lora(model, rank=16, alpha=32.0, rng=jax_key(0, "lora"))
    graphdef, lora, frozen = nnx.split(model, LoRAParam, ...)
    trainer = Trainer(graphdef, sft_loss_of_batch, SFTConfig(), num_steps=100)
    state = trainer.init(lora)
    steps = [batches.step(n) for n in range(min(TIMED_STEPS, batches.num_steps))]
    placed = [trainer.put(step.batches) for step in steps]
    for made in placed:  # compile
        state, _ = trainer.step(state, frozen, made)
    jax.block_until_ready(state)
    times = []
    for step, made in zip(steps, placed, strict=True):
        started = time.perf_counter()
        state, _ = trainer.step(state, frozen, made)
        jax.block_until_ready(state)
        times.append((time.perf_counter() - started) / step.work.num_positions)
    facts = statistics(examples)
    found = {
        "prompt_tokens": facts["prompt_tokens"],
        "computed_tokens_per_sample": batches.num_positions / len(examples),
        "us_per_computed_token": 1e6 * float(np.median(times)),
        "filled": batches.num_tokens / batches.num_positions,
    }
    print(
        f"{len(examples):,} samples of {facts['prompt_tokens']:,.0f} prompt tokens: "
        f"{found['computed_tokens_per_sample']:,.0f} tokens computed a sample, "
        f"{found['us_per_computed_token']:.1f} us each",
        flush=True,
    )
    return found


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
