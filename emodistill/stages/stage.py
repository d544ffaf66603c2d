"""What a stage is: one record with its settings, what it needs, what it writes, and how it runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.configs import DEFAULT_CELL, DEFAULT_RUN, EMBEDDED, Config
from emodistill.runs import Job, Result
from emodistill.settings import Cell


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
    followed_by: Callable[[Cell], str]
    """The command that goes on from its output."""
    inherits: Sequence[str] = ()
    """Settings that it takes over from a stage that needs it."""
    own_files: Sequence[str] = ()
    """Files (within the domain's folder) that are used as they are where a user has put them."""
    is_there: Callable[[Any, Requirement], bool] | None = None
    """Whether its output can be used; if None, whether its manifest says that it is finished."""
    resumed: Callable[[Any], Any] = lambda config: config
    """The settings to finish an interrupted run of the stage with."""


def command(script: str, cell: Cell, flags: Mapping[str, Any] | None = None) -> str:
    """A command that goes on in the run of `cell`, with its file, provider and student.

    Args:
      flags: further settings, by their names.
    """
    config = cell.config
    path = None if cell.settings is None else cell.settings.path
    given: dict[str, Any] = {"config": path} | {
        name: getattr(config, name)
        for name, default in (("run", DEFAULT_RUN), ("domain", "crad"), ("seed", 0))
        if getattr(config, name) != default
    }
    if script not in ("sweep", "judge"):
        given["data_from"] = getattr(config, "data_from", None)
    if not config.is_simulated:
        given |= {"provider": config.provider, "base_url": config.base_url}
    if config.student_field is not None and script != "train_iql":
        student = getattr(config, config.student_field)
        flag = "model" if script.startswith("train_") else "student"
        given |= {} if student == EMBEDDED else {flag: student}
    words = [f"python scripts/{script}.py"]
    for name, value in (given | dict(flags or {})).items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            values = value if isinstance(value, tuple) else (value,)
            words += [shlex.quote(str(one)) for one in values]
    return " ".join(words)
