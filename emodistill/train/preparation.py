"""From recorded data to what a training starts with: turns, model and adapter, packed samples.

`train_adapter` and the preflight take the same three steps, so that what is checked before a long
run is what the run will learn from.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from emodistill.batches import PackedBatches, RoundBatches, build_examples
from emodistill.configs import AdapterConfig, MeshShape, OnPolicyConfig
from emodistill.errors import InputError
from emodistill.model import (
    Qwen2,
    Qwen2Config,
    add_lora,
    base_fingerprint,
    encode_chat,
    encode_reply,
    load_adapter,
    lora_sha256,
    make_mesh,
    num_row_shards,
    student_folder,
    template_sha256,
)
from emodistill.offline.rewards import FocalTurns, SweepData, training_dialogues
from emodistill.records import Trajectory
from emodistill.seeding import jax_key, stream
from emodistill.train.objectives import Objective
from emodistill.train.student import load_student

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CPU_MICRO_TOKENS, DEVICE_MICRO_TOKENS = 2048, 8192
"""Tokens of a micro-batch on each device: enough to fill it, few enough for its memory."""


SAMPLES_PER_ROW = 8
"""Samples of a step for every device with rows of its own: with fewer, the samples of a row share
too little of their prompts for prefix trees to pay."""


class SelectedTurns(NamedTuple):
    """The turns to learn from, before they are tokenised."""

    trajectories: Sequence[Trajectory]
    """The dialogues of training scenarios."""
    turns: FocalTurns
    """Their focal turns, without those that were cut at their limit of tokens."""
    num_cut: int
    """How many were."""
    groups: np.ndarray
    """[groups, samples of a group] rows of `turns` (see `Selection`)."""
    num_qualified: int
    """Groups that the objective takes, of which `max_samples` has left these."""
    advantages: np.ndarray | None
    """[N] one per turn of `turns`; None for a loss without any."""


class Start(NamedTuple):
    """What training starts from."""

    model: Qwen2
    """The base with the adapter on it."""
    tokenizer: PreTrainedTokenizerFast
    adapter: str
    """The adapter's hash, or `base` for a new one."""


class PackedSamples(NamedTuple):
    """The samples in the rows in which training sees them."""

    batches: PackedBatches
    made_from: dict[str, str]
    """Hashes of base model, adapter, chat template and samples."""
    num_trimmed: int
    """Samples whose prompt lost its oldest turns."""
    num_dropped: int
    """Turns left out: they do not fit even without history, or a turn of their group does not."""


def select_turns(config: AdapterConfig, data: SweepData, objective: Objective) -> SelectedTurns:
    """The turns that `objective` learns from.

    Raises:
      InputError: there is none, or a dialogue is of a scenario that is held out.
    """
    trajectories, played = training_turns(data)
    turns = played.whole()
    groups, advantages = objective.select(config, turns)
    order = stream(config.seed, "max-samples").permutation(len(groups))
    return SelectedTurns(
        trajectories,
        turns,
        num_cut=len(played) - len(turns),
        groups=groups[np.sort(order[: config.max_samples])],
        num_qualified=len(groups),
        advantages=advantages,
    )


def training_turns(data: SweepData) -> tuple[Sequence[Trajectory], FocalTurns]:
    """The dialogues to learn from and all of their focal turns.

    Raises:
      InputError: there is none, or a dialogue is of a scenario that is held out.
    """
    trajectories = training_dialogues(data)
    return trajectories, FocalTurns.from_trajectories(
        trajectories, data.scores, repeats=data.repeats, max_turns=data.limit.horizon
    )


def load_start(config: AdapterConfig, sft_adapter: Path | None) -> Start:
    """The student on its mesh, with the adapter that training starts from.

    Raises:
      InputError: a file can't be read, or the adapter is missing, of another base or of another
        form than `config` asks for.
    """
    architecture = Qwen2Config.from_pretrained(student_folder(config.model))
    mesh = make_mesh(mesh_shape(config, jax.device_count(), architecture.num_heads))
    model, tokenizer = load_student(
        config.model,
        mesh=mesh,
        remat=config.remat,
        quantize=config.quantize,
        attention=config.attention,
    )
    return Start(model, tokenizer, _add_start(model, config, sft_adapter))


def pack_samples(
    config: AdapterConfig, data: SweepData, selected: SelectedTurns, start: Start
) -> PackedSamples:
    """Tokenise the selected turns and pack them into rows.

    Raises:
      InputError: none of them fits.
    """
    groups, turns, model = selected.groups, selected.turns, start.model
    rows = groups.reshape(-1)
    samples = build_examples(
        selected.trajectories,
        data.scenarios,
        zip(turns.trajectory_index[rows].tolist(), turns.turn_index[rows].tolist(), strict=True),
        pack=data.pack,
        encode_chat=functools.partial(encode_chat, start.tokenizer),
        encode_reply=functools.partial(encode_reply, start.tokenizer),
        max_tokens=min(config.max_tokens, model.config.max_positions),
        emotion_free=config.emotion_free,
    )
    # A turn that does not fit takes its whole group with it.
    fits = np.zeros(groups.shape, bool)
    fits.flat[[example.asked_index for example in samples]] = True
    is_whole = np.repeat(fits.all(axis=1), groups.shape[1])
    examples = [example for example in samples if is_whole[example.asked_index]]
    advantages = selected.advantages
    micro_tokens = CPU_MICRO_TOKENS if jax.default_backend() == "cpu" else DEVICE_MICRO_TOKENS
    kind = RoundBatches if isinstance(config, OnPolicyConfig) else PackedBatches
    batches = kind(
        examples,
        batch_size=config.batch_size,
        seed=config.seed,
        num_epochs=config.num_epochs,
        packing=config.packing,
        max_micro_tokens=config.max_micro_tokens or micro_tokens,
        row_multiple=num_row_shards(model.mesh),
        unit_size=groups.shape[1],
        advantages=None if advantages is None else advantages[rows[is_whole]],
    )
    made_from = {
        "base_model": base_fingerprint(model),
        "adapter": start.adapter,
        "chat_template": template_sha256(start.tokenizer),
        "samples": batches.sha256,
    }
    return PackedSamples(
        batches,
        made_from,
        num_trimmed=sum(example.num_dropped_turns > 0 for example in samples),
        num_dropped=len(rows) - len(examples),
    )


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
    if config.reference == "base":
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
