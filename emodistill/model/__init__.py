"""The language model: Qwen2 in Flax NNX, its files, LoRA, generation and tokenization.

Names are looked up on first use, so that importing the package costs no jax.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from emodistill.configs import EMBEDDED
from emodistill.errors import InputError

_EXPORTS = {
    "adapters": "adapted load_adapter save_adapter",
    "config": "Qwen2Config",
    "fingerprint": "base_fingerprint lora_sha256",
    "lora": "LoRAParam add_lora",
    "processes": "agree is_first joined to_host",
    "programs": "keep_programs",
    "qwen2": "Qwen2",
    "sampling": "generate",
    "sharding": "make_mesh num_row_shards",
    "tokenization": (
        "decode_reply encode_chat encode_reply load_tokenizer stop_ids template_sha256"
    ),
    "weights": "load_qwen2 save_qwen2",
}
_MODULES = {name: module for module, names in _EXPORTS.items() for name in names.split()}

__all__ = ["embedded_path", "student_folder", *_MODULES]


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
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
