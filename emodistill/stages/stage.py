"""What a stage is: one record with its settings, what it needs, what it writes, and how it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from emodistill.configs import DEFAULT_CELL, DEFAULT_RUN, EMBEDDED, Config, ExperimentConfig
from emodistill.runs import Job, Result
from emodistill.settings import Cell


class Requirement(NamedTuple):
    """An earlier stage that has to be finished."""

    stage: str
    shared: Mapping[str, Any] = {}
    """Settings that it must have, whatever file its other settings come from."""
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
    """The settings with which one that was interrupted is finished."""


def command(script: str, config: ExperimentConfig, flags: Mapping[str, Any] | None = None) -> str:
    """A command that goes on in the same run, with the same provider and student.

    Args:
      flags: further settings, by their names.
    """
    given: dict[str, Any] = {}
    if config.run != DEFAULT_RUN:
        given["run"] = config.run
    if config.domain != "crad":
        given["domain"] = config.domain
    if not config.is_simulated:
        given |= {"provider": config.provider, "base_url": config.base_url}
    student = getattr(config, config.student_field) if config.student_field else EMBEDDED
    flag = {"evaluate": "student", "train_sft": "model", "train_jpo": "model"}.get(script)
    if flag and student != EMBEDDED:
        given[flag] = student
    words = [f"python scripts/{script}.py"]
    for name, value in (given | dict(flags or {})).items():
        if value not in (None, False):
            shown = "" if value is True else f" {value}"
            words.append(f"--{name.replace('_', '-')}{shown}")
    return " ".join(words)
