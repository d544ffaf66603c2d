"""Jobs and manifests: what a stage was made from, and whether that still holds.

    runs/<run>/<domain>/<stage>/[<cell>/]manifest.json
    runs/<run>/<domain>/<stage>/…/<output>.manifest.json   where several outputs share a folder

A manifest names the configuration, the code version and every input file with its SHA-256. A
stage that is started again finds it: finished and unchanged means nothing to do, unfinished and
unchanged means resume, changed means refuse, naming what changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

import emodistill
from emodistill.errors import InputError, StaleInputError
from emodistill.files import canonical_json, write_json
from emodistill.settings import Cell, write_settings
from emodistill.untrusted import read_typed, refuse_links, shown

MANIFEST = "manifest.json"
Status = Literal["running", "finished"]


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
    cost_usd: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_manifest(directory: Path, name: str = MANIFEST) -> Manifest | None:
    """The manifest in `directory`, None where there is none."""
    path = directory / name
    made = directory if name == MANIFEST else f"it and the {path.name.split('.')[0]} files here"
    try:
        return read_typed(path, Manifest, f"Delete {made} to make the stage again.")
    except FileNotFoundError:
        return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Where a stage is about to write, and what its output is made from."""

    cell: Cell
    name: str
    """What the terminal calls it."""
    directory: Path
    output: Path
    """As long as this file is missing or empty, nothing has been made, and all may still change."""
    path: Path
    """What it hands on to the next stage or to the user."""
    inputs: Mapping[str, str]
    """Name -> hash of all that it reads; `input_hashes` makes them for files."""
    identity: Mapping[str, Any]
    """The settings that change the result (without the likes of `concurrency`)."""
    manifest: str = MANIFEST
    """The manifest's file, where several outputs share a folder."""
    config_file: str = "config.yaml"
    growing: Sequence[str] = ()
    """Settings that may change without spoiling the output (a sweep's number of seeds); when one
    changes, a finished stage is unfinished again."""
    is_repeated: bool = False
    """Whether to run once more although it is finished."""
    leftovers: Sequence[Path] = ()
    """Other files of an attempt that made nothing, which are removed once its settings change."""
    details: Any = None
    """What the stage has looked up already, for its own use."""


class Result(NamedTuple):
    """The outcome of a stage."""

    text: str
    """A line for the terminal."""
    cost_usd: float = 0.0
    summary: Mapping[str, Any] = {}
    is_complete: bool = True
    """False if it was stopped; the same command goes on."""
    is_part: bool = False
    """Whether no more than a part was asked for, which leaves the stage unfinished."""


def begin_stage(job: Job) -> bool:
    """Open a stage, or find it as it was left; whether it is finished.

    Raises:
      StaleInputError: an input file or a setting is not what it was; the message names it.
    """
    identity = json.loads(canonical_json(job.identity))
    fresh = Manifest(
        stage=job.cell.config.stage,
        status="running",
        config=identity,
        config_sha256=hashlib.sha256(canonical_json(identity).encode()).hexdigest(),
        code_version=emodistill.__version__,
        seed=job.cell.config.seed,
        inputs=dict(job.inputs),
    )
    existing = read_manifest(job.directory, job.manifest)
    if existing is None or existing.status != "finished" or job.is_repeated:
        refuse_links(job.directory, job.cell.config.run)
    if existing is not None and not (job.output.is_file() and job.output.stat().st_size):
        if existing.config_sha256 != fresh.config_sha256:
            for path in job.leftovers:
                path.unlink(missing_ok=True)
        existing = None
    if existing is not None:
        is_alone = job.manifest == MANIFEST
        made = job.directory if is_alone else job.output
        manifest_path = job.directory / job.manifest
        to_delete = "that folder" if is_alone else f"that file and {manifest_path}"
        elsewhere = "use another --run"
        if hasattr(job.cell.config, "data_from"):
            elsewhere += " (--data-from reads the sweep and scores of this one there)"
        # A setting that has changed may bring other inputs with it, and another student other
        # defaults, so settings come before inputs and the student before all others.
        student = job.cell.config.student_field
        changes = [
            f"{key}={shown(existing.config.get(key))}, now {key}={shown(identity.get(key))}"
            for key in sorted({*existing.config, *identity}, key=lambda key: (key != student, key))
            if key not in job.growing and existing.config.get(key) != identity.get(key)
        ]
        if changes:
            raise StaleInputError(
                f"{made} was made with {'; '.join(changes)}. Delete {to_delete}, or {elsewhere}."
            )
        for source in sorted({*existing.inputs, *job.inputs}):
            before, now = existing.inputs.get(source), job.inputs.get(source)
            if before != now:
                what = (
                    f"{source} has changed since {made} was made from it"
                    if before and now
                    else f"{made} was made without {source}"
                    if now
                    else f"{made} was made from {source}, which is not read now"
                )
                raise StaleInputError(
                    f"{what}. Delete {to_delete} to make the {fresh.stage} stage again, or "
                    f"{elsewhere}."
                )
    if existing is None or existing.config_sha256 != fresh.config_sha256:
        refuse_links(job.directory, job.cell.config.run)
        existing = fresh
        write_json(job.directory / job.manifest, dataclasses.asdict(fresh))
    is_finished = existing.status == "finished"
    if not is_finished:
        write_settings(job.directory / job.config_file, job.cell)
    return is_finished


def finish_stage(job: Job, result: Result) -> None:
    """Mark a stage that was begun as finished."""
    begun = read_manifest(job.directory, job.manifest)
    if begun is None:
        raise InputError(f"{job.directory / job.manifest} has vanished; start the stage again.")
    summary = {"text": result.text, **result.summary}
    done = dataclasses.replace(begun, status="finished", cost_usd=result.cost_usd, summary=summary)
    write_json(job.directory / job.manifest, dataclasses.asdict(done))


def input_hashes(paths: Iterable[Path], run: Path) -> dict[str, str]:
    """`{path relative to the run: SHA-256}` of the files; names the one that is missing."""
    hashes = {}
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is missing; run the stage that makes it first.")
        with path.open("rb") as file:
            hashes[name_in_run(path, run)] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def name_in_run(path: Path, run: Path) -> str:
    """A file as manifests name it: relative to the run, so that a run can be moved; else whole.

    Raises:
      InputError: its links lead in a circle.
    """
    try:
        whole, home = path.resolve(), run.resolve()
    except RuntimeError as error:  # before Python 3.13
        raise InputError(
            f"{path} is a link that leads in a circle; put the file there, or run the stage that "
            "makes it again."
        ) from error
    return str(whole.relative_to(home) if whole.is_relative_to(home) else whole)
