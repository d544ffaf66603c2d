"""Safetensors files: replaced whole, and equal bytes for equal tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from emodistill.errors import InputError
from emodistill.files import replacing


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write safetensors so that a reader sees the old file or the new one, never half of one.

    Equal tensors and metadata give equal bytes.

    Raises:
      InputError: the disk is full, or the folder can't be written to.
    """
    try:
        with replacing(path) as partial:
            partial.touch()
            mode = partial.stat().st_mode
            save_file(dict(tensors), partial, metadata=dict(metadata or {}))
            _sort_metadata(partial)
            partial.chmod(mode)  # safetensors makes files that nobody else can read
    except SafetensorError as error:
        raise InputError(
            f"{path} could not be written ({error}); free space or rights, then start again."
        ) from None


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order; the library leaves it to a hash map."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            file.seek(8)
            file.write(text.ljust(length))
