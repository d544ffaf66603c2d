"""This project's training steps on a checkpoint, timed."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Literal

import jax
from flax import nnx

from emodistill.batches import Example, Step
from emodistill.configs import CONFIGS, SFTConfig
from emodistill.model import LoRAParam, Qwen2, add_lora
from emodistill.seeding import jax_key
from emodistill.train.objectives import OBJECTIVES
from emodistill.train.trainer import Trainer, response_logprobs

Seconds = Callable[[Sequence[Example]], float]
"""The time that a peer takes for an optimiser step over some samples, or for several."""
JPO_EPOCHS = 2
"""Epochs of JPO, which share the cost of one reference pass."""


class TimedSteps:
    """A model that gets a LoRA, and the compiled step of SFT or JPO.

    A micro-batch shape that was not seen before is compiled within the measured time; run the
    steps once before their times count.
    """

    def __init__(self, model: Qwen2, stage: Literal["sft", "jpo"]) -> None:
        self.architecture, self.attention = model.config, model.attention
        add_lora(model, rank=16, alpha=32.0, rng=jax_key(0, "lora"))
        graphdef, lora, self._frozen = nnx.split(model, LoRAParam, ...)
        self._has_reference = stage == "jpo"
        loss_fn = functools.partial(OBJECTIVES[stage].loss, CONFIGS[stage]())
        self._trainer = Trainer(graphdef, loss_fn, SFTConfig(), num_steps=100)
        self._state = self._trainer.init(lora)
        self._logprobs = jax.jit(
            lambda lora, frozen, batch: response_logprobs(nnx.merge(graphdef, lora, frozen), batch)
        )

    def planned_bytes(self, step: Step) -> int:
        """What the compiler plans for the micro-batch of `step`, and the optimiser state beside it.

        JPO's reference pass and the optimiser's own program take less.
        """
        (batch,) = self._trainer.put(step.batches)
        lora, frozen = self._state.lora, self._frozen
        grads, _ = self._trainer.gradients(lora, frozen, ())
        program = self._trainer.lower(lora, frozen, batch, grads)[0].compile().memory_analysis()
        opt_state = sum(leaf.nbytes for leaf in jax.tree.leaves(self._state.opt_state))
        return program.argument_size_in_bytes + program.temp_size_in_bytes + opt_state

    def seconds(self, steps: Sequence[Step]) -> float:
        """The time of these optimiser steps, and JPO's share of the reference pass over them.

        The steps' rows are on the device already when the clock starts.
        """
        placed = [self._trainer.put(step.batches) for step in steps]
        started = time.perf_counter()
        for batches in placed:
            self._state, metrics = self._trainer.step(self._state, self._frozen, batches)
        jax.block_until_ready((self._state, metrics))
        trained = time.perf_counter()
        if self._has_reference:
            jax.block_until_ready(
                [
                    self._logprobs(self._state.lora, self._frozen, batch)
                    for batch in itertools.chain(*placed)
                ]
            )
        return trained - started + (time.perf_counter() - trained) / JPO_EPOCHS
