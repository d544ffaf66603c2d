"""Files that are replaced whole: a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def canonical_json(value: object) -> str:
    """JSON that is the same text for equal values, to be hashed and compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def file_name(text: str) -> str:
    """A text as a name of files: characters that no such name should have become dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, whose place it takes at the end; no trace of it on an error.

    A reader sees the old file or the new one, never half of one. A symbolic link there is replaced
    as well, and what it leads to stays as it is. The name is the writer's own:
    cells that run side by side may make the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk doesn't say where
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside `path`, which becomes `path` at the end; no trace of it on an error.

    What an earlier process that was killed has left there is removed.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    # JSON has no NaN; a number that isn't finite becomes null.
    plain = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
    text = json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
