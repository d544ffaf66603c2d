"""This project's side of `training`: the checkpoint, the samples, and its steps on them."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from emodistill.batches import Example, PackedBatches, Step
from emodistill.bench.workload import dialogue_examples, statistics
from emodistill.configs import BenchTrainingConfig, JPOConfig, SFTConfig
from emodistill.errors import InputError
from emodistill.model import LoRAParam, Qwen2, add_lora, embedded_path, load_qwen2, save_qwen2
from emodistill.model.config import Qwen2Config, read_architecture
from emodistill.seeding import jax_key, stream
from emodistill.train.flops import training_flops
from emodistill.train.objectives import loss_of
from emodistill.train.sft import sft_loss_of_batch
from emodistill.train.trainer import Trainer, TrainState, response_logprobs

EPOCHS = 2
"""Of JPO: the reference pass is spread over so many."""


def checkpoint(config: BenchTrainingConfig, folder: Path) -> Path:
    """A random checkpoint of the asked size, or the student that ships."""
    if config.size == "embedded":
        return embedded_path()
    whole = read_architecture("qwen2.5-7b")
    sizes = dataclasses.replace(
        whole,
        num_layers=config.num_layers,
        vocab_size=round(whole.vocab_size * config.num_layers / whole.num_layers / 64) * 64,
        eos_token_ids=(0,),
    )
    save_qwen2(Qwen2(sizes, key=jax_key(0, "bench")), folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"bos_token_id": 0, "eos_token_id": 0}))
    return folder


def samples(config: BenchTrainingConfig, vocab_size: int) -> list[Example]:
    """The sweep that all train on."""
    shape: dict[str, Any] = {}
    if config.size == "embedded":  # as the simulator's dialogues are in its tokens
        shape = {"context_tokens": 150, "turn_tokens": 23, "cue_tokens": 24, "num_turns": 4.8}
    found = dialogue_examples(num_scenarios=20, num_dialogues=20, vocab_size=vocab_size, **shape)
    kept = stream(0, "bench", "kept").permutation(len(found))[: round(config.kept * len(found))]
    return [found[i] for i in np.sort(kept)]


class Ours:
    """This project's steps on one batch of the sweep."""

    def __init__(self, config: BenchTrainingConfig, folder: Path) -> None:
        self.config = config
        model = load_qwen2(folder, dtype=jax.numpy.float32)
        self.sizes: Qwen2Config = model.config
        add_lora(model, rank=16, alpha=32.0, rng=jax_key(0, "lora"))
        self.examples = samples(config, self.sizes.vocab_size)
        advantages = stream(0, "bench", "advantages").normal(size=len(self.examples))
        self.batches = PackedBatches(
            self.examples,
            batch_size=config.batch_size,
            seed=0,
            num_epochs=1,
            packing=config.packing,
            max_micro_tokens=config.max_micro_tokens,
            advantages=advantages,
        )
        shape = len(self.examples), self.batches.num_reply_tokens
        self.batches.set_reference(np.full(shape, -9.0, np.float32))
        self._graphdef, self._lora, self._frozen = nnx.split(model, LoRAParam, ...)
        num_steps = config.rounds * config.steps
        if num_steps > self.batches.num_steps:
            raise InputError(
                f"{config.rounds} rounds of {config.steps} steps take more than the "
                f"{self.batches.num_steps} that {len(self.examples):,} samples give at batch_size="
                f"{config.batch_size}."
            )
        # A short step may stand anywhere in an epoch; it is left out where others are enough.
        found = [self.batches.step(i) for i in range(self.batches.num_steps)]
        self.steps = sorted(found, key=lambda step: len(step.samples) < config.batch_size)
        self.steps = self.steps[:num_steps]

    def for_peers(self, round_number: int) -> list[Example]:
        """Some of the samples of the round's steps for those who take them one by one or padded.

        Short ones and long ones are paired, so that few are like all.
        """
        size, chosen = self.config.peer_samples, []
        for step in self._steps(round_number):
            members = sorted(
                (self.examples[number] for number in step.samples),
                key=lambda example: example.num_tokens,
            )
            ends = [one for pair in zip(members, members[::-1], strict=True) for one in pair]
            ends = ends[: len(members)]  # shortest, longest, second shortest, ...
            first = size * round_number % len(ends)
            chosen += [ends[i % len(ends)] for i in range(first, first + size)]
        return chosen

    def facts(self) -> dict[str, Any]:
        """What was trained on what."""
        whole = sum(example.num_tokens - 1 for example in self.examples)
        return statistics(self.examples) | {
            "size": self.config.size,
            "layers": self.sizes.num_layers,
            "vocabulary": self.sizes.vocab_size,
            "kept": self.config.kept,
            "samples_per_step": self.config.batch_size,
            "peer_samples_per_round": self.config.peer_samples * self.config.steps,
            "row_lengths": [shape.num_positions for shape in self.batches.shapes],
            "tokens_per_computed_token": whole / self.batches.num_positions,
            "filled": self.batches.num_tokens / self.batches.num_positions,
        }

    def _steps(self, round_number: int) -> list[Step]:
        first = round_number * self.config.steps
        return self.steps[first : first + self.config.steps]

    def _trainer(self, stage: str) -> tuple[Trainer, TrainState]:
        loss_fn = sft_loss_of_batch if stage == "sft" else loss_of(JPOConfig())
        trainer = Trainer(self._graphdef, loss_fn, SFTConfig(), num_steps=100)
        state = trainer.init(self._lora)
        for step in self.steps:  # all of them, for some shape may be in one alone
            state, _ = trainer.step(state, self._frozen, trainer.put(step.batches))
        jax.block_until_ready(state)
        return trainer, state

    def step_seconds(self, stage: str, round_number: int) -> float:
        """Of the round's optimiser steps, rows ready."""
        if not hasattr(self, "_made"):
            self._made = self._trainer(stage)
        trainer, state = self._made
        placed = [trainer.put(step.batches) for step in self._steps(round_number)]
        started = time.perf_counter()
        for batches in placed:
            state, metrics = trainer.step(state, self._frozen, batches)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - started
        self._made = trainer, state
        return seconds

    def reference_seconds(self, round_number: int) -> float:
        """Of the forward pass that stores the reference's log-probs."""
        if not hasattr(self, "_logprobs"):
            graphdef = self._graphdef
            self._logprobs = jax.jit(
                lambda lora, frozen, batch: response_logprobs(
                    nnx.merge(graphdef, lora, frozen), batch
                )
            )
            for step in self.steps:
                for batch in step.batches:
                    jax.block_until_ready(self._logprobs(self._lora, self._frozen, batch))
        started = time.perf_counter()
        found = [
            self._logprobs(self._lora, self._frozen, batch)
            for step in self._steps(round_number)
            for batch in step.batches
        ]
        jax.block_until_ready(found)
        return time.perf_counter() - started

    def num_replies(self, round_number: int) -> int:
        return sum(step.work.num_reply_tokens for step in self._steps(round_number))

    def sft(self, round_number: int) -> float:
        return self.num_replies(round_number) / self.step_seconds("sft", round_number)

    def jpo(self, round_number: int) -> float:
        reference = self.reference_seconds(round_number)
        seconds = reference / EPOCHS + self.step_seconds("jpo", round_number)
        return self.num_replies(round_number) / seconds

    def flops(self, round_number: int) -> float:
        """Useful arithmetic of the round's steps."""
        return sum(training_flops(self.sizes, step.work) for step in self._steps(round_number))


def padded(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Right-padded arrays in the peers' terms: input_ids, attention_mask, labels."""
    length = max(example.num_tokens for example in examples)
    shape = len(examples), length
    found = {
        "input_ids": np.zeros(shape, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
        "labels": np.full(shape, -100, np.int64),
    }
    for row, example in enumerate(examples):
        prompt, size = len(example.prompt_ids), example.num_tokens
        found["input_ids"][row, :prompt] = example.prompt_ids
        found["input_ids"][row, prompt:size] = example.response_ids
        found["attention_mask"][row, :size] = 1
        found["labels"][row, prompt:size] = example.response_ids
    return found
