"""Stage 4: a LoRA learns from judged turns how to express emotions, whichever the objective.

Training starts from the base model or, as its own reference, from an SFT adapter. The reference's
log-probs are computed once (`reference`), so that a step costs one forward and backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from emodistill.batches import PackedBatches
from emodistill.configs import AdapterConfig
from emodistill.model import LoRAParam, Qwen2, is_first, load_adapter, lora_sha256, save_adapter
from emodistill.offline.rewards import FocalTurns, SweepData, left_out_scenarios, signal_of
from emodistill.train.checkpoints import save_opt_state
from emodistill.train.loop import train
from emodistill.train.objectives import OBJECTIVES, Objective
from emodistill.train.preparation import load_start, pack_samples, select_turns
from emodistill.train.reference import reference_logprobs
from emodistill.train.student import Student
from emodistill.train.watching import UNWATCHED, Watcher

PAPER_STEPS = {
    ("sft", "crad"): (625, 2),
    ("jpo", "crad"): (6_575, 5),
    ("jpo", "disaster"): (3_650, 5),
    ("jpo", "student"): (2_100, 5),
}
"""(stage, domain) -> optimiser steps in all and epochs (Table 15, Appendix L)."""


class SpokenTurns(NamedTuple):
    """How the student has spoken the turns of a round, and what it learns beside them."""

    reference: Path
    """The adapter that the K3 term holds to."""
    temperature: float
    """At which the student was sampled, and at which its log-probs are taken."""
    opt_state: Path | None
    """The optimiser's state after the round before."""


class AdapterResult(NamedTuple):
    """What was trained, as the stage's manifest says it; the adapter is in `<cell>/adapter`."""

    num_steps: int
    kept_step: int
    """The step whose adapter was kept: the last one, unless a watcher has chosen another."""
    num_samples: int
    num_trimmed: int
    """Samples whose prompt lost its oldest turns."""
    num_dropped: int
    """Turns left out: they do not fit even without history, or a turn of their group does not."""
    num_cut: int
    """Turns left out because they were cut at their limit of tokens."""
    num_turns: int
    """Focal turns of the training dialogues, of which the objective has selected its own."""
    num_without_signal: int
    """Those that nobody has scored, left out."""
    num_held_out: int
    """Dialogues of scenarios that are held out, left out."""
    left_out_scenarios: tuple[str, ...]
    """Scenarios with too few scores to be normalised, where advantages are learnt from."""
    metrics: Mapping[str, float]
    """Of the last step."""


OPT_STATE = "optimizer.safetensors"
"""The optimiser's state after a round, in its folder."""


def train_adapter(
    config: AdapterConfig,
    data: SweepData,
    *,
    cell_dir: Path,
    sft_adapter: Path | None = None,
    objective: Objective | None = None,
    on_step: Callable[[int], None] | None = None,
    watcher_of: Callable[[Student], Watcher] | None = None,
    spoken: SpokenTurns | None = None,
) -> AdapterResult:
    """Train the student's adapter, or go on from the newest checkpoint in `cell_dir`.

    Args:
      sft_adapter: what to start from; needed where `config.reference` is `sft`.
      objective: the stage's own without it.
      on_step: called after each step with the number of steps taken.
      watcher_of: who looks at the student at checkpoints, made from the model that is trained.
      spoken: where the student itself has spoken the turns, how it did; `sft_adapter` is then the
        adapter that it had.

    Raises:
      InputError: nothing to train on, no adapter to start from, or a model, turn or scenario that
        can't be used.
      StaleInputError: `cell_dir` holds a checkpoint of other settings or data.
      DivergenceError: a metric was not finite.
      StoppedError: Ctrl-C or SIGTERM came; the step that was reached is saved.
    """
    objective = objective or OBJECTIVES[config.stage]
    selected = select_turns(config, data, objective)
    start = load_start(config, sft_adapter)
    model = start.model
    batches, made_from, num_trimmed, num_dropped = pack_samples(config, data, selected, start)
    if is_first():
        print(planned_steps(config, len(batches.examples), batches.steps_per_epoch), flush=True)
        if objective is OBJECTIVES["jpo"] and config.signal == "turn-judge" and data.validity:
            print(f"{config.stage}: {data.validity}", flush=True)
    if spoken is not None:
        _set_policies(model, batches, spoken, made_from, directory=cell_dir / "reference")
    elif objective.needs_reference:
        directory = cell_dir.parent / "reference"
        batches.set_reference(
            reference_logprobs(model, batches, directory=directory, made_from=made_from)
        )
    identity = made_from | {"config": config.identity(), "dtype": str(jnp.dtype(model.dtype))}
    if config.stage == "sft":
        del identity["adapter"]  # SFT always starts from the base; its checkpoints don't say so
    watcher = UNWATCHED if watcher_of is None else watcher_of(Student(model, start.tokenizer))
    run = train(
        *(model, batches, config, objective),
        cell_dir=cell_dir,
        identity=identity,
        on_step=on_step,
        watcher=watcher,
        goes_on_from=None if spoken is None else spoken.opt_state,
    )
    if spoken is not None:
        save_opt_state(cell_dir / OPT_STATE, run.opt_state)
    kept_step, kept = watcher.kept(run.num_steps)
    if kept is not None:
        load_adapter(model, kept)
    save_adapter(model, cell_dir / "adapter", config.model)
    turns, advantages = selected.turns, selected.advantages
    return AdapterResult(
        num_steps=run.num_steps,
        kept_step=kept_step,
        num_samples=len(batches.examples),
        num_trimmed=num_trimmed,
        num_dropped=num_dropped,
        num_cut=selected.num_cut,
        num_turns=len(turns),
        num_without_signal=num_without_signal(config, turns),
        num_held_out=len(data.trajectories) - len(selected.trajectories),
        left_out_scenarios=() if advantages is None else left_out_scenarios(turns, advantages),
        metrics=run.metrics,
    )


def _set_policies(
    model: Qwen2,
    batches: PackedBatches,
    spoken: SpokenTurns,
    made_from: Mapping[str, str],
    *,
    directory: Path,
) -> None:
    """Give every sample its log-probs under the policy that spoke and under the reference.

    Both are computed by the pass that training uses, in the same rows: those that the generator
    could give come out of other arithmetic, and the ratio would not begin at 1. `model` is
    as it was, afterwards.
    """
    batches.temperature = spoken.temperature
    policy = jax.tree.map(jnp.copy, nnx.state(model, LoRAParam))  # the state itself is the model's

    def logprobs() -> np.ndarray:
        facts = {**made_from, "adapter": lora_sha256(model)}
        return reference_logprobs(model, batches, directory=directory, made_from=facts)

    batches.set_behavior(logprobs())
    load_adapter(model, spoken.reference)
    batches.set_reference(logprobs())
    nnx.update(model, policy)


def num_without_signal(config: AdapterConfig, turns: FocalTurns) -> int:
    """Turns that nobody has scored."""
    signal = "turn-judge" if config.signal == "hybrid" else config.signal
    return int(np.isnan(signal_of(turns, signal)).sum())


def planned_steps(config: AdapterConfig, num_samples: int, steps_per_epoch: int) -> str:
    """What training is about to do, beside what the paper reports of the same stage and domain."""
    num_steps = steps_per_epoch * config.num_epochs
    text = (
        f"{config.stage}: {num_samples:,} samples, {steps_per_epoch:,} steps an epoch, epochs: "
        f"{config.num_epochs}"
    )
    if config.max_steps is not None and config.max_steps < num_steps:
        text += f", stopped after {config.max_steps:,} steps"
    if published := PAPER_STEPS.get((config.stage, config.domain)):
        total, epochs = published
        text += f"; the paper: {total / epochs:,.4g} steps an epoch, epochs: {epochs} (Table 15)"
    return f"{text}."
