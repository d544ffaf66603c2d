"""What all training of adapters shares: the student, and the turns that it learns from."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from emodistill.batches import ExampleSet, build_examples
from emodistill.configs import AdapterConfig, Packing, Quantization, Remat
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.model import (
    Qwen2,
    Qwen2Config,
    base_fingerprint,
    encode_chat,
    encode_reply,
    keep_programs,
    load_qwen2,
    load_tokenizer,
    make_mesh,
    num_row_shards,
    student_folder,
    template_sha256,
)
from emodistill.offline.rewards import FocalTurnTable
from emodistill.prompts import PromptPack
from emodistill.records import Trajectory
from emodistill.seeding import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Student(NamedTuple):
    """A base model and its tokenizer, with what identifies them."""

    model: Qwen2
    tokenizer: PreTrainedTokenizerFast
    base_sha256: str
    template_sha256: str


def load_student(
    name: str,
    *,
    mesh: Mesh | None = None,
    remat: Remat | None = None,
    quantize: Quantization | None = None,
) -> Student:
    """Load `embedded` or the checkpoint folder `name`: float32 on CPU, bfloat16 elsewhere.

    Layers are recomputed in the backward pass on accelerators, where memory is what runs out,
    unless `remat` says otherwise.
    """
    keep_programs()
    folder = student_folder(name)
    on_cpu = jax.default_backend() == "cpu"
    model = load_qwen2(
        folder,
        mesh,
        jnp.float32 if on_cpu else jnp.bfloat16,
        remat=remat or ("none" if on_cpu else "full"),
        quantize=quantize,
    )
    tokenizer = load_tokenizer(folder)
    return Student(model, tokenizer, base_fingerprint(model), template_sha256(tokenizer))


def student_to_train(config: AdapterConfig) -> Student:
    """The student of `config`, spread over the mesh that it asks for."""
    architecture = Qwen2Config.from_pretrained(student_folder(config.model))
    mesh = make_mesh(config.mesh_shape(jax.device_count(), architecture.num_heads))
    return load_student(config.model, mesh=mesh, remat=config.remat, quantize=config.quantize)


class Rows(TypedDict):
    """What shapes the rows of a micro-batch (see `PackedBatches`)."""

    packing: Packing
    max_micro_tokens: int
    row_multiple: int


def row_settings(config: AdapterConfig, model: Qwen2) -> Rows:
    """Places of a micro-batch: enough to fill the devices, little enough for their memory."""
    on_cpu = jax.default_backend() == "cpu"
    per_device = config.max_micro_tokens or (2048 if on_cpu else 8192)
    num_shards = num_row_shards(model.mesh)
    return {
        "packing": config.packing,
        "max_micro_tokens": per_device,
        "row_multiple": num_shards,
    }


def training_trajectories(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """The dialogues of training scenarios; held-out ones never reach a student."""
    kept = [trajectory for trajectory in trajectories if trajectory.split == "train"]
    if not kept:
        raise InputError("no dialogue belongs to a training scenario; is the sweep finished?")
    return kept


def drawn(config: AdapterConfig, rows: np.ndarray) -> np.ndarray:
    """`rows`, or a seeded draw of `config.max_samples` of them, in their order."""
    if config.max_samples is None or config.max_samples >= len(rows):
        return rows
    order = stream(config.seed, "max-samples").permutation(len(rows))
    return rows[np.sort(order[: config.max_samples])]


def examples_of_rows(
    student: Student,
    config: AdapterConfig,
    table: FocalTurnTable,
    rows: np.ndarray,
    trajectories: Sequence[Trajectory],
    scenarios: Iterable[Scenario],
    pack: PromptPack,
) -> ExampleSet:
    """Tokenise the turns in `rows` of `table`, within the tokens that config and model allow."""
    return build_examples(
        trajectories,
        scenarios,
        [(int(table.trajectory_index[row]), int(table.turn_index[row])) for row in rows],
        pack=pack,
        encode_chat=functools.partial(encode_chat, student.tokenizer),
        encode_reply=functools.partial(encode_reply, student.tokenizer),
        max_tokens=min(config.max_tokens, student.model.config.max_positions),
        emotion_free=config.emotion_free,
    )


def training_identity(student: Student, config: AdapterConfig, data_sha256: str) -> dict[str, Any]:
    """What a checkpoint must have been made from for a run to take it up again."""
    return {
        "config": config.identity(),
        "base_model": student.base_sha256,
        "chat_template": student.template_sha256,
        "samples": data_sha256,
        "dtype": str(jnp.dtype(student.model.dtype)),
    }
