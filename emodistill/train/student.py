"""The student: the language model that adapters are trained on and that plays with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from emodistill.configs import AttentionForm, Quantization, Remat
from emodistill.model import Qwen2, keep_programs, load_qwen2, load_tokenizer, student_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Student(NamedTuple):
    """A base model and its tokenizer."""

    model: Qwen2
    tokenizer: PreTrainedTokenizerFast


def load_student(
    name: str,
    *,
    mesh: Mesh | None = None,
    remat: Remat | None = None,
    quantize: Quantization | None = None,
    attention: AttentionForm | None = None,
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
        attention=attention,
    )
    return Student(model, load_tokenizer(folder))
