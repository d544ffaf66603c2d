"""Stage 4b: what refines the student's adapter, whichever the objective (`objectives`).

The policy starts as its own reference: the SFT snapshot, or the base model. The reference's
log-probs are computed once (`reference`), so that a step costs one forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emodistill.batches import Example, PackedBatches
from emodistill.configs import RefinementConfig
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.model import Qwen2, add_lora, load_adapter, lora_sha256, save_adapter
from emodistill.offline import rewards
from emodistill.prompts import PromptPack
from emodistill.records import Trajectory
from emodistill.seeding import jax_key
from emodistill.train.loop import train
from emodistill.train.objectives import objective_of
from emodistill.train.reference import reference_logprobs
from emodistill.train.sft import ADAPTER
from emodistill.train.student import (
    drawn,
    examples_of_rows,
    row_settings,
    student_to_train,
    training_identity,
    training_trajectories,
)

BASE_REFERENCE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementResult:
    """Where the adapter is, and what it was made from."""

    adapter_dir: Path
    reference_path: Path | None
    """The stored reference log-probs, where the objective has a reference."""
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


def refine(
    config: RefinementConfig,
    *,
    cell_dir: Path,
    trajectories: Sequence[Trajectory],
    scenarios: Iterable[Scenario],
    scores: rewards.Scores,
    pack: PromptPack,
    sft_adapter: Path | None = None,
    max_turns: int = 30,
    on_step: Callable[[int], None] | None = None,
) -> RefinementResult:
    """Refine the student's adapter, or go on from the newest checkpoint in `cell_dir`.

    Args:
      trajectories: the sweep; only dialogues of training scenarios are used.
      scores: the judge's, by (trajectory id, turn index or None).
      sft_adapter: the snapshot to start from; needed unless it starts from the base model.
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
    objective = objective_of(config, table, trajectories)
    units = drawn(config, objective.units)
    student = student_to_train(config)
    samples = examples_of_rows(
        student, config, table, units.reshape(-1), trajectories, scenarios, pack
    )
    examples = _whole_units(samples.examples, table, units)
    row_of = {table.sample_id(int(row)): int(row) for row in units.reshape(-1)}
    rows = [row_of[example.sample_id] for example in examples]
    batches = PackedBatches(
        examples,
        batch_size=config.batch_size,
        seed=config.seed,
        num_epochs=config.num_epochs,
        unit_size=units.shape[1],
        **row_settings(config, student.model),
        advantages=None if objective.advantages is None else objective.advantages[rows],
    )
    _add_start(student.model, config, sft_adapter)
    start = BASE_REFERENCE if config.starts_from_base else lora_sha256(student.model)
    reference = None
    if objective.needs_reference:
        reference = reference_logprobs(
            student.model,
            batches,
            directory=cell_dir.parent / "reference",
            made_from={
                "base_model": student.base_sha256,
                "adapter": start,
                "chat_template": student.template_sha256,
                "samples": batches.sha256,
            },
        )
        batches.set_reference(reference.logp_NU)
    run = train(
        student.model,
        batches,
        objective.loss_fn,
        config,
        stage=config.stage,
        cell_dir=cell_dir,
        identity=training_identity(student, config, batches.sha256) | {"adapter": start},
        on_step=on_step,
    )
    save_adapter(student.model, cell_dir / ADAPTER, config.model)
    return RefinementResult(
        adapter_dir=cell_dir / ADAPTER,
        reference_path=None if reference is None else reference.path,
        is_reference_reused=reference is not None and reference.is_reused,
        num_steps=run.num_steps,
        num_samples=len(examples),
        num_trimmed=samples.num_trimmed,
        num_dropped=units.size - len(examples),
        left_out_scenarios=objective.left_out_scenarios,
        metrics=run.metrics,
    )


def _whole_units(
    examples: Sequence[Example], table: rewards.FocalTurnTable, units: np.ndarray
) -> list[Example]:
    """The samples unit by unit, without units that lost one (it did not fit)."""
    by_id = {example.sample_id: example for example in examples}
    names = [[table.sample_id(int(row)) for row in unit] for unit in units]
    return [by_id[name] for unit in names if all(n in by_id for n in unit) for name in unit]


def _add_start(model: Qwen2, config: RefinementConfig, sft_adapter: Path | None) -> None:
    """Give `model` the adapter that it starts from."""
    if config.starts_from_base:
        rng = jax_key(config.seed, "lora")
        add_lora(model, config.lora_rank, config.lora_alpha, config.lora_targets, rng)
        return
    if sft_adapter is None:
        raise InputError(
            f"{config.stage} starts from an SFT adapter, and there is none; train one with "
            "scripts/train_sft.py."
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
                f"{name}={asked!r}, but the SFT adapter in {sft_adapter} has {found!r}. "
                f"{config.stage} goes on with that adapter: set {name} to its value, or train SFT "
                "with yours."
            )
