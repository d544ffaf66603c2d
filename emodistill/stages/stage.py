"""What a stage is: one record with its settings, what it needs, what it writes, and how it runs."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import shlex
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from emodistill.configs import DEFAULT_CELL, Config
from emodistill.runs import Job, Result
from emodistill.settings import Cell, Settings

C = TypeVar("C", bound=Config)


class Requirement(NamedTuple):
    """An earlier stage that has to be finished."""

    stage: str
    shared: Mapping[str, Any] = {}
    """Settings that it must have, whatever the file of its other settings says."""
    changes: Mapping[str, Any] = {}
    """Settings that make it another cell than `default`."""
    cell: str = DEFAULT_CELL
    domain: str | None = None
    """The domain, where it is another one than that of the stage that needs it."""


class Output(NamedTuple):
    """What a finished stage leaves behind."""

    path: Path
    next_command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A step on the way from scenarios to a report."""

    config: type[Config]
    """Its settings; `config.stage` is its name."""
    script: str
    """The script in `scripts/` that runs it."""
    needs: Callable[[Any], Sequence[Requirement]]
    """Says what it needs, and refuses what can't be used before anything is made for it."""
    job: Callable[[Cell], Job]
    """Says where it writes and what that is made from."""
    run: Callable[[Job], Result]
    run_together: Callable[[Sequence[Job]], Sequence[Result]] | None = None
    """Runs several jobs that differ in their seeds alone as one; if None, one after the other."""
    followed_by: Callable[[Cell], str]
    """The command that goes on from its output."""
    inherits: Sequence[str] = ()
    """Settings that it takes over from a stage that needs it."""
    own_files: Sequence[str] = ()
    """Files (within the domain's folder) that are used as they are where a user has put them."""
    is_data: bool = False
    """Whether another run's output of it may be read in its place (`data_from`)."""
    is_there: Callable[[Any, Requirement], bool] | None = None
    """Whether its output can be used; if None, whether its manifest says that it is finished."""
    resumed: Callable[[Any], Any] = lambda config: config
    """The settings to finish an interrupted run of the stage with."""


class StageTable(UserDict[str, Stage | str]):
    """Name -> stage. A stage may be given as `module.NAME` within this package; it is then imported
    when it is first asked for."""

    def __getitem__(self, name: str) -> Stage:
        stage = super().__getitem__(name)
        if isinstance(stage, str):
            module, _, constant = stage.partition(".")
            stage = getattr(importlib.import_module(f"{__package__}.{module}"), constant)
            self[name] = stage
        return stage


def named_file(cell: Cell) -> Settings:
    """What a printed command starts from: the file that the user has named, or the defaults."""
    settings = cell.settings
    return Settings() if settings is None or settings.path is None else settings


def pasted(config: Config, file: Settings) -> Cell:
    """The cell that the command line of `config` makes: it is named relative to the file."""
    field = config.student_field
    student = {} if field is None else {field: getattr(config, field)}
    return Cell(config, file.config(type(config), **student), file)


def command(script: str, config: Config, file: Settings) -> str:
    """The command line that gives a script these settings.

    Args:
      file: what it starts from; whatever `config` has otherwise becomes a flag.
    """
    words = ["python", f"scripts/{script}.py"]
    if file.path is not None:
        words += ["--config", str(file.path)]
    # What a file leaves to the student or the domain is the file's matter, whoever names these two.
    deciding = {
        name: getattr(config, name)
        for name in ("domain", config.student_field)
        if name is not None and hasattr(config, name)
    }
    alone, decided = file.config(type(config)), file.config(type(config), **deciding)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        usual = alone if field.name in deciding else decided
        if value == getattr(usual, field.name):
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mapping):
            words += [f"--{flag}", *itertools.chain.from_iterable(value.items())]
        elif value is None:
            words += [f"--{flag}", field.metadata.get("none", "None")]
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{flag}", *map(str, values)]
    return shlex.join(words)


def next_command(script: str, kind: type[Config], cell: Cell, **changes: Any) -> str:
    """The command of a script that goes on in the run of `cell`."""
    file = named_file(cell)
    return command(script, follow_up(kind, cell, **changes), file)


def follow_up(kind: type[C], cell: Cell, **changes: Any) -> C:
    """The settings with which a stage goes on in the run of `cell`.

    What the command line of `cell` has changed holds for it too, where it has such a setting; what
    the file says stays the file's matter.
    """
    config, file = cell.config, named_file(cell)
    own = {field.name: field.default for field in dataclasses.fields(config)}
    own |= file.values(type(config))
    names = {field.name for field in dataclasses.fields(kind)}
    given = {name: getattr(config, name) for name in ("run", "domain") if name in names}
    shared = ("seed", "provider", "base_url", "judge", "prompt_pack", "quantize", "data_from")
    for name in shared:
        if name in names and name in own and getattr(config, name) != own[name]:
            given[name] = getattr(config, name)
    if kind.stage == "judge":  # that run's turns are judged in it; the flag is for --validate
        given.pop("data_from", None)
    if kind.student_field is not None and config.student_field is not None:
        given[kind.student_field] = getattr(config, config.student_field)
    return file.config(kind, **given | changes)
