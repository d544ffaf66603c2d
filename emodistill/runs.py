"""Run folders, cells and manifests: what a stage was made from, and whether that still holds.

    runs/<run>/<domain>/<stage>/[<cell>/]manifest.json

A manifest names the configuration, the code version and every input file with its SHA-256. A
stage that is started again finds it: finished and unchanged means nothing to do, unfinished and
unchanged means resume, changed means refuse, naming what changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import emodistill
from emodistill.errors import InputError, StaleInputError

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "manifest.json"
Status = Literal["running", "finished"]


def stage_dir(run: Path, domain: str, stage: str, cell: str | None = None) -> Path:
    """The folder of a stage (and cell) of one domain within a run."""
    return run / domain / stage / cell if cell else run / domain / stage


def canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def config_sha256(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cell_name(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """`default`, or what differs from the defaults and a short hash of it (`kappa=0.5-1f3c`)."""
    changed = {key: config[key] for key in sorted(config) if config[key] != defaults.get(key)}
    if not changed:
        return "default"
    words = "_".join(f"{key}={value}" for key, value in changed.items())
    readable = "".join(c if c.isalnum() or c in "=._-" else "-" for c in words)[:60]
    return f"{readable}-{config_sha256(changed)[:4]}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a stage was made from (`inputs`: path relative to the run -> SHA-256)."""

    stage: str
    status: Status
    config: Mapping[str, Any]
    config_sha256: str
    code_version: str
    seed: int
    inputs: Mapping[str, str]
    cost_usd: float = 0.0
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        return self.status == "finished"


def read_manifest(directory: Path, name: str = MANIFEST) -> Manifest | None:
    """The manifest in `directory`, None where there is none."""
    path = directory / name
    if not path.exists():
        return None
    try:
        return Manifest(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(
            f"{path} can't be read ({error}). Delete {directory} to make the stage again."
        ) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, whose place it takes at the end; no trace of it on an error.

    A reader sees the old file or the new one, never half of one. The name is the writer's own:
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


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    with replacing(path) as partial:
        partial.write_text(text)


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write safetensors so that a reader sees the old file or the new one, never half of one.

    Equal tensors and metadata give equal bytes.

    Raises:
      InputError: the disk is full, or the folder can't be written to.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

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


def begin_stage(
    directory: Path,
    *,
    stage: str,
    config: Mapping[str, Any],
    seed: int,
    inputs: Mapping[str, str],
    growing: Iterable[str] = (),
    name: str = MANIFEST,
    output: Path | None = None,
    leftovers: Iterable[Path] = (),
) -> Manifest:
    """Open a stage, or find it as it was left.

    Args:
      config: all settings that change the result (leave out the likes of `concurrency`).
      inputs: name -> hash of all it reads; `input_hashes` makes them for files.
      growing: settings that may change without spoiling what is there (a sweep's number of
        seeds); changing one of them makes a finished stage unfinished again.
      name: of the manifest's file, where several stages share a folder.
      output: the file that results go to; as long as it is missing or empty, nothing has been
        made, and anything may still change.
      leftovers: what else an attempt leaves that made nothing; removed once its settings change.

    Raises:
      StaleInputError: an input file or a setting is not what it was; the message names it.
    """
    fresh = Manifest(
        stage=stage,
        status="running",
        config=dict(config),
        config_sha256=config_sha256(config),
        code_version=emodistill.__version__,
        seed=seed,
        inputs=dict(inputs),
    )
    found = read_manifest(directory, name)
    if output is not None and not (output.is_file() and output.stat().st_size):
        if found is not None and found.config_sha256 != fresh.config_sha256:
            for path in leftovers:
                path.unlink(missing_ok=True)
        found = None
    made = directory if name == MANIFEST else output or directory / name
    to_delete = "that folder" if name == MANIFEST else f"that file and {directory / name}"
    if found is not None:
        for source in sorted({*found.inputs, *inputs}):
            if found.inputs.get(source) != inputs.get(source):
                raise StaleInputError(
                    f"{source} has changed since {made} was made from it. Delete {to_delete} "
                    f"to make the {stage} stage again, or use another --run."
                )
        grown = set(growing)
        for key in sorted({*found.config, *config}):
            if key not in grown and _plain(found.config.get(key)) != _plain(config.get(key)):
                raise StaleInputError(
                    f"{made} was made with {key}={found.config.get(key)!r}, now "
                    f"{key}={config.get(key)!r}. Delete {to_delete}, or use another --run."
                )
        if found.config_sha256 == fresh.config_sha256:
            return found
    write_json(directory / name, dataclasses.asdict(fresh))
    return fresh


def finish_stage(
    directory: Path,
    *,
    cost_usd: float = 0.0,
    summary: Mapping[str, Any] | None = None,
    name: str = MANIFEST,
) -> Manifest:
    """Mark a stage as finished; `summary` is what its last line on the terminal says."""
    found = read_manifest(directory, name)
    if found is None:
        raise InputError(f"{directory} has no {name}; begin_stage comes before finish_stage.")
    done = dataclasses.replace(
        found, status="finished", cost_usd=cost_usd, summary=dict(summary or {})
    )
    write_json(directory / name, dataclasses.asdict(done))
    return done


def input_hashes(paths: Iterable[Path], run: Path) -> dict[str, str]:
    """`{path relative to the run: SHA-256}` of the files; names the one that is missing."""
    hashes = {}
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is missing; run the stage that makes it first.")
        inside = path.resolve().is_relative_to(run.resolve())
        name = path.resolve().relative_to(run.resolve()) if inside else path
        hashes[str(name)] = file_sha256(path)
    return hashes


def _plain(value: Any) -> Any:
    return json.loads(canonical_json(value))
