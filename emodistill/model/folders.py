"""The folders of checkpoints: the one that ships in the package, and those that users name."""

from __future__ import annotations

from pathlib import Path

from emodistill.configs import EMBEDDED
from emodistill.errors import InputError


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
