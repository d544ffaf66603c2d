"""Stage 4: a LoRA learns from judged turns how to express emotions, whichever the objective.

Training starts from the base model or, as its own reference, from an SFT adapter. The reference's
log-probs are computed once (`reference`), so that a step costs one forward and backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emodistill.batches import PackedBatches, build_examples
from emodistill.configs import AdapterConfig, MeshShape
from emodistill.errors import InputError
from emodistill.model import (
    Qwen2,
    Qwen2Config,
    add_lora,
    base_fingerprint,
    encode_chat,
    encode_reply,
    is_first,
    load_adapter,
    lora_sha256,
    make_mesh,
    num_row_shards,
    save_adapter,
    student_folder,
    template_sha256,
)
from emodistill.offline.rewards import (
    FocalTurns,
    SweepData,
    left_out_scenarios,
    signal_of,
    training_dialogues,
)
from emodistill.seeding import jax_key, stream
from emodistill.train.loop import train
from emodistill.train.objectives import OBJECTIVES, Objective
from emodistill.train.reference import reference_logprobs
from emodistill.train.student import load_student

CPU_MICRO_TOKENS, DEVICE_MICRO_TOKENS = 2048, 8192
"""Tokens of a micro-batch on each device: enough to fill it, few enough for its memory."""


SAMPLES_PER_ROW = 8
"""Samples of a step for every device with rows of its own: with fewer, the samples of a row share
too little of their prompts for prefix trees to pay."""


PAPER_STEPS = {
    ("sft", "crad"): (625, 2),
    ("jpo", "crad"): (6_575, 5),
    ("jpo", "disaster"): (3_650, 5),
    ("jpo", "student"): (2_100, 5),
}
"""(stage, domain) -> optimiser steps in all and epochs (Table 15, Appendix L)."""


class AdapterResult(NamedTuple):
    """What was trained, as the stage's manifest says it; the adapter is in `<cell>/adapter`."""

    num_steps: int
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


def train_adapter(
    config: AdapterConfig,
    data: SweepData,
    *,
    cell_dir: Path,
    sft_adapter: Path | None = None,
    objective: Objective | None = None,
    on_step: Callable[[int], None] | None = None,
) -> AdapterResult:
    """Train the student's adapter, or go on from the newest checkpoint in `cell_dir`.

    Args:
      sft_adapter: what to start from; needed unless `config.starts_from_base`.
      objective: the stage's own without it.
      on_step: called after each step with the number of steps taken.

    Raises:
      InputError: nothing to train on, no adapter to start from, or a model, turn or scenario that
        can't be used.
      StaleInputError: `cell_dir` holds a checkpoint of other settings or data.
      DivergenceError: a metric was not finite.
      StoppedError: Ctrl-C or SIGTERM came; the step that was reached is saved.
    """
    objective = objective or OBJECTIVES[config.stage]
    trajectories = training_dialogues(data)
    played = FocalTurns.from_trajectories(trajectories, data.scores, max_turns=data.limit.horizon)
    turns = played.whole()
    groups, advantages = objective.select(config, turns)
    order = stream(config.seed, "max-samples").permutation(len(groups))
    groups = groups[np.sort(order[: config.max_samples])]
    rows = groups.reshape(-1)

    architecture = Qwen2Config.from_pretrained(student_folder(config.model))
    mesh = make_mesh(mesh_shape(config, jax.device_count(), architecture.num_heads))
    model, tokenizer = load_student(
        config.model, mesh=mesh, remat=config.remat, quantize=config.quantize
    )
    start = _add_start(model, config, sft_adapter)
    samples = build_examples(
        trajectories,
        data.scenarios,
        zip(turns.trajectory_index[rows].tolist(), turns.turn_index[rows].tolist(), strict=True),
        pack=data.pack,
        encode_chat=functools.partial(encode_chat, tokenizer),
        encode_reply=functools.partial(encode_reply, tokenizer),
        max_tokens=min(config.max_tokens, model.config.max_positions),
        emotion_free=config.emotion_free,
    )
    # A turn that does not fit takes its whole group with it.
    fits = np.zeros(groups.shape, bool)
    fits.flat[[example.asked_index for example in samples]] = True
    is_whole = np.repeat(fits.all(axis=1), groups.shape[1])
    examples = [example for example in samples if is_whole[example.asked_index]]
    micro_tokens = CPU_MICRO_TOKENS if jax.default_backend() == "cpu" else DEVICE_MICRO_TOKENS
    batches = PackedBatches(
        examples,
        batch_size=config.batch_size,
        seed=config.seed,
        num_epochs=config.num_epochs,
        packing=config.packing,
        max_micro_tokens=config.max_micro_tokens or micro_tokens,
        row_multiple=num_row_shards(mesh),
        unit_size=groups.shape[1],
        advantages=None if advantages is None else advantages[rows[is_whole]],
    )
    made_from = {
        "base_model": base_fingerprint(model),
        "adapter": start,
        "chat_template": template_sha256(tokenizer),
        "samples": batches.sha256,
    }
    if is_first():
        print(planned_steps(config, len(examples), batches.steps_per_epoch), flush=True)
    if objective.needs_reference:
        directory = cell_dir.parent / "reference"
        batches.set_reference(
            reference_logprobs(model, batches, directory=directory, made_from=made_from)
        )
    identity = made_from | {"config": config.identity(), "dtype": str(jnp.dtype(model.dtype))}
    if config.stage == "sft":
        del identity["adapter"]  # SFT always starts from the base; its checkpoints don't say so
    run = train(
        model, batches, config, objective, cell_dir=cell_dir, identity=identity, on_step=on_step
    )
    save_adapter(model, cell_dir / "adapter", config.model)
    signal = "turn-judge" if config.signal == "hybrid" else config.signal
    return AdapterResult(
        num_steps=run.num_steps,
        num_samples=len(examples),
        num_trimmed=sum(example.num_dropped_turns > 0 for example in samples),
        num_dropped=len(rows) - len(examples),
        num_cut=len(played) - len(turns),
        num_turns=len(turns),
        num_without_signal=int(np.isnan(signal_of(turns, signal)).sum()),
        num_held_out=len(data.trajectories) - len(trajectories),
        left_out_scenarios=() if advantages is None else left_out_scenarios(turns, advantages),
        metrics=run.metrics,
    )


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


def mesh_shape(config: AdapterConfig, num_devices: int, num_heads: int) -> MeshShape:
    """The mesh on which to train a model of `num_heads` query heads.

    Unless `config` names one, `tensor` takes the devices that rows can't use, as far as it divides
    the heads: samples share much within a row, and too little between rows.
    """
    if config.mesh:
        return MeshShape.parse(config.mesh)
    tensors = [n for n in (1, 2, 4) if num_devices % n == 0 and num_heads % n == 0]
    enough = (t for t in tensors if config.batch_size * t >= SAMPLES_PER_ROW * num_devices)
    tensor = next(enough, tensors[-1])
    return MeshShape(fsdp=num_devices // tensor, tensor=tensor)


def _add_start(model: Qwen2, config: AdapterConfig, sft_adapter: Path | None) -> str:
    """Give `model` the adapter that training starts from; its hash, or `base` for a new one."""
    if config.starts_from_base:
        rng = jax_key(config.seed, "lora")
        add_lora(model, config.lora_rank, config.lora_alpha, config.lora_targets, rng)
        return "base"
    if sft_adapter is None:
        raise InputError(
            f"{config.stage} starts from an SFT adapter, and there is none; train one with "
            "scripts/train_sft.py."
        )
    lora = load_adapter(model, sft_adapter)
    for name, loaded, asked in (
        ("lora_rank", lora.rank, config.lora_rank),
        ("lora_alpha", float(lora.alpha), float(config.lora_alpha)),
        ("lora_targets", sorted(lora.targets), sorted(config.lora_targets)),
    ):
        if loaded != asked:
            raise InputError(
                f"{name}={asked!r}, but the SFT adapter in {sft_adapter} has {loaded!r}. "
                f"{config.stage} goes on with that adapter: set {name} to its value, or train SFT "
                "with yours."
            )
    return lora_sha256(model)
