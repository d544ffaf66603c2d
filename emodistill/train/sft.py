"""Stage 4a: a LoRA learns how good negotiators put it (SFT, Eqs. 16 and 23).

The samples are the best quarter of the domain's judged focal turns by q = r + ½R(τ).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from emodistill.batches import Batch, PackedBatches
from emodistill.configs import SFTConfig
from emodistill.domains.scenario import Scenario
from emodistill.model import add_lora, save_adapter
from emodistill.offline import rewards
from emodistill.prompts import PromptPack
from emodistill.records import Trajectory
from emodistill.seeding import jax_key
from emodistill.train.loop import train
from emodistill.train.losses import Metrics, sft_loss
from emodistill.train.student import (
    drawn,
    examples_of_rows,
    row_settings,
    student_to_train,
    training_identity,
    training_trajectories,
)

ADAPTER = "adapter"


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTResult:
    """Where the adapter is, and what it was made from."""

    adapter_dir: Path
    num_steps: int
    num_samples: int
    num_trimmed: int
    """Samples whose prompt lost its oldest turns."""
    num_dropped: int
    """Turns that do not fit even without history."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the last step."""


def train_sft(
    config: SFTConfig,
    *,
    cell_dir: Path,
    trajectories: Sequence[Trajectory],
    scenarios: Iterable[Scenario],
    scores: rewards.Scores,
    pack: PromptPack,
    max_turns: int = 30,
    on_step: Callable[[int], None] | None = None,
) -> SFTResult:
    """Train the student's adapter, or go on from the newest checkpoint in `cell_dir`.

    Args:
      trajectories: the sweep; only dialogues of training scenarios are used.
      scores: the judge's, by (trajectory id, turn index).
      max_turns: T of the shaped return.
      on_step: called after each step with the number of steps taken.

    Raises:
      InputError: nothing to train on, or a model, turn or scenario that can't be used.
      StaleInputError: `cell_dir` holds a checkpoint of other settings or data.
      DivergenceError: a metric was not finite.
      StoppedError: Ctrl-C or SIGTERM came; the step that was reached is saved.
    """
    trajectories = training_trajectories(trajectories)
    table = rewards.focal_turn_table(trajectories, scores, max_turns=max_turns)
    quality = rewards.sft_quality(table, config.signal).values
    rows = drawn(config, np.sort(rewards.top_fraction(quality, config.top_fraction)))
    student = student_to_train(config)
    samples = examples_of_rows(student, config, table, rows, trajectories, scenarios, pack)
    batches = PackedBatches(
        samples.examples,
        batch_size=config.batch_size,
        seed=config.seed,
        num_epochs=config.num_epochs,
        **row_settings(config, student.model),
    )
    add_lora(
        student.model,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        targets=config.lora_targets,
        rng=jax_key(config.seed, "lora"),
    )
    run = train(
        student.model,
        batches,
        sft_loss_of_batch,
        config,
        stage="sft",
        cell_dir=cell_dir,
        identity=training_identity(student, config, batches.sha256),
        on_step=on_step,
    )
    save_adapter(student.model, cell_dir / ADAPTER, config.model)
    return SFTResult(
        adapter_dir=cell_dir / ADAPTER,
        num_steps=run.num_steps,
        num_samples=len(samples.examples),
        num_trimmed=samples.num_trimmed,
        num_dropped=samples.num_dropped,
        metrics=run.metrics,
    )


def sft_loss_of_batch(logp_SU: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
    """The loss of a micro-batch."""
    return sft_loss(logp_SU, batch.mask_SU, num_tokens=batch.num_tokens)
