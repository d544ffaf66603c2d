"""Stage 4b: Judge Policy Optimization of the student's adapter (JPO, Eqs. 17-19).

The policy starts as its own reference: the SFT snapshot, or the base model. The reference's
log-probs are computed once (`reference`), so that a step costs one forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from emodistill.batches import Batch, PaddedBatches
from emodistill.configs import JPOConfig
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.model import Qwen2, add_lora, load_adapter, lora_sha256, save_adapter
from emodistill.offline import rewards
from emodistill.prompts import PromptPack
from emodistill.records import Trajectory
from emodistill.seeding import jax_key
from emodistill.train.loop import train
from emodistill.train.losses import Metrics, jpo_loss
from emodistill.train.reference import reference_logprobs
from emodistill.train.sft import ADAPTER
from emodistill.train.student import (
    examples_of_rows,
    row_limits,
    student_to_train,
    training_identity,
    training_trajectories,
)
from emodistill.train.trainer import LossFn

BASE_REFERENCE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class JPOResult:
    """Where the adapter is, and what it was made from."""

    adapter_dir: Path
    reference_path: Path
    """The stored reference log-probs."""
    is_reference_reused: bool
    num_steps: int
    num_samples: int
    num_trimmed: int
    """Samples whose prompt lost its oldest turns."""
    num_dropped: int
    """Turns that do not fit even without history."""
    left_out_scenarios: tuple[str, ...]
    """Scenarios with too few scores to be normalised."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the last step."""


def train_jpo(
    config: JPOConfig,
    *,
    cell_dir: Path,
    trajectories: Sequence[Trajectory],
    scenarios: Iterable[Scenario],
    scores: rewards.Scores,
    pack: PromptPack,
    sft_adapter: Path | None = None,
    max_turns: int = 30,
    on_step: Callable[[int], None] | None = None,
) -> JPOResult:
    """Refine the student's adapter, or go on from the newest checkpoint in `cell_dir`.

    Args:
      trajectories: the sweep; only dialogues of training scenarios are used.
      scores: the judge's, by (trajectory id, turn index or None).
      sft_adapter: the snapshot to start from; needed unless `config.reference` is `base`.
      max_turns: T of the shaped return.
      on_step: called after each step with the number of steps taken.

    Raises:
      InputError: nothing to train on, no snapshot, or a model, turn or scenario that can't be
        used.
      StaleInputError: `cell_dir` holds a checkpoint of other settings or data.
      DivergenceError: a metric was not finite.
      StoppedError: Ctrl-C or SIGTERM came; the step that was reached is saved.
    """
    trajectories = training_trajectories(trajectories)
    table = rewards.focal_turn_table(trajectories, scores, max_turns=max_turns)
    signal = rewards.jpo_advantages(table, config.signal)
    rows = _rows(config, table, signal.values)
    student = student_to_train(config)
    samples = examples_of_rows(student, config, table, rows, trajectories, scenarios, pack)
    advantages = dict(zip((table.sample_id(row) for row in rows), signal.values[rows], strict=True))
    batches = PaddedBatches(
        samples.examples,
        batch_size=config.batch_size,
        seed=config.seed,
        num_epochs=config.num_epochs,
        **row_limits(config, student.model),
        advantages=rewards.asymmetric(
            [advantages[example.sample_id] for example in samples.examples], config.kappa
        ),
    )
    _add_start(student.model, config, sft_adapter)
    start = BASE_REFERENCE if config.reference == "base" else lora_sha256(student.model)
    data_sha256 = samples.sha256()
    reference = reference_logprobs(
        student.model,
        batches,
        directory=cell_dir.parent / "reference",
        made_from={
            "base_model": student.base_sha256,
            "adapter": start,
            "chat_template": student.template_sha256,
            "samples": data_sha256,
        },
    )
    batches.set_reference(reference.logp_NU)
    run = train(
        student.model,
        batches,
        loss_of(config),
        config,
        stage="jpo",
        cell_dir=cell_dir,
        identity=training_identity(student, config, data_sha256) | {"adapter": start},
        on_step=on_step,
    )
    save_adapter(student.model, cell_dir / ADAPTER, config.model)
    return JPOResult(
        adapter_dir=cell_dir / ADAPTER,
        reference_path=reference.path,
        is_reference_reused=reference.is_reused,
        num_steps=run.num_steps,
        num_samples=len(samples.examples),
        num_trimmed=samples.num_trimmed,
        num_dropped=samples.num_dropped,
        left_out_scenarios=signal.left_out_scenarios,
        metrics=run.metrics,
    )


def loss_of(config: JPOConfig) -> LossFn:
    """The loss of a micro-batch under `config`."""

    def loss(logp_BU: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
        return jpo_loss(
            logp_BU,
            batch.ref_logp_BU,
            batch.mask_BU,
            batch.advantages_B,
            clip=config.clip,
            kl_coef=config.kl_coef,
            ratio=config.ratio,
            num_samples=batch.num_samples,
            num_tokens=batch.num_tokens,
        )

    return loss


def _rows(config: JPOConfig, table: rewards.FocalTurnTable, advantages: np.ndarray) -> np.ndarray:
    """The rows with an advantage: all of them, or those among SFT's best quarter."""
    rows = np.arange(len(table))
    if config.data == "top":
        rows = np.sort(rewards.top_fraction(rewards.sft_quality(table).values, config.top_fraction))
    return rows[np.isfinite(advantages[rows])]


def _add_start(model: Qwen2, config: JPOConfig, sft_adapter: Path | None) -> None:
    """Give `model` the adapter that it starts from."""
    if config.reference == "base":
        rng = jax_key(config.seed, "lora")
        add_lora(model, config.lora_rank, config.lora_alpha, config.lora_targets, rng)
        return
    if sft_adapter is None:
        raise InputError(
            "reference='sft' needs an SFT adapter; train one with scripts/train_sft.py, or start "
            "from the base model with --reference base."
        )
    load_adapter(model, sft_adapter)
    wanted = {
        "lora_rank": (model.lora.rank, config.lora_rank),
        "lora_alpha": (float(model.lora.alpha), float(config.lora_alpha)),
        "lora_targets": (sorted(model.lora.targets), sorted(config.lora_targets)),
    }
    for name, (found, asked) in wanted.items():
        if found != asked:
            raise InputError(
                f"{name}={asked!r}, but the SFT adapter in {sft_adapter} has {found!r}. JPO goes "
                f"on with that adapter: set {name} to its value, or train SFT with yours."
            )
