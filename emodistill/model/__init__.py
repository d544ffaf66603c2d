"""The language model: Qwen2 in Flax NNX, its files, LoRA, generation and tokenization.

Names are looked up on first use, so that importing the package costs no jax.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from emodistill.configs import EMBEDDED
from emodistill.errors import InputError

_HOMES = {
    "Qwen2Config": "config",
    "LoRAConfig": "config",
    "Qwen2": "qwen2",
    "LoRAParam": "lora",
    "add_lora": "lora",
    "base_fingerprint": "fingerprint",
    "load_qwen2": "weights",
    "save_qwen2": "weights",
    "adapted": "adapters",
    "load_adapter": "adapters",
    "lora_sha256": "fingerprint",
    "save_adapter": "adapters",
    "agree": "processes",
    "is_first": "processes",
    "joined": "processes",
    "make_mesh": "sharding",
    "num_row_shards": "sharding",
    "to_host": "processes",
    "Generator": "sampling",
    "generate": "sampling",
    "keep_programs": "programs",
    "decode_reply": "tokenization",
    "encode_chat": "tokenization",
    "encode_reply": "tokenization",
    "end_of_turn_id": "tokenization",
    "load_tokenizer": "tokenization",
    "stop_ids": "tokenization",
    "template_sha256": "tokenization",
}

__all__ = ["embedded_path", "student_folder", *_HOMES]


def embedded_path() -> Path:
    """The folder of the student that ships in the package (weights and tokenizer)."""
    path = Path(__file__).parent / "embedded"
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path} holds no model; make the embedded student with "
            "scripts/pretrain_embedded.py, or name another model folder."
        )
    return path


def student_folder(name: str) -> Path:
    """The checkpoint folder that `name` means: itself, or the one that ships for `embedded`."""
    return embedded_path() if name == EMBEDDED else Path(name)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
