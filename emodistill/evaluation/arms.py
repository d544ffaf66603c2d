"""What a study has run: its arms, one line of a table each, kept beside the dialogues.

runs/<run>/studies/<study>.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emodistill.files import write_json
from emodistill.untrusted import read_typed

TABLES_OF: Mapping[str, tuple[str, ...]] = {
    "signal": ("table-2", "table-11"),
    "kappa": ("table-6",),
    "kl": ("kl",),
    "rank": ("rank",),
    "iql": ("iql",),
    "transfer": ("table-4",),
    "counterparty": ("table-5", "table-10"),
    "emotion-free": ("table-3", "table-12", "table-15"),
    "refinement": ("table-14",),
    "dose": ("dose", "dose-response"),
    "emotions": ("figure-1", "emotions"),
    "leaderboard": ("leaderboard",),
}
"""Study -> the tables that come of it."""

ArmStatus = Literal["finished", "failed", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One setting of a study: what it is called, and where what came of it lies."""

    block: str
    """What heads its part of the table: a domain, a counterparty, a method, or nothing."""
    label: str
    """What its row says."""
    domain: str
    method: str | None
    """None for an arm that is only trained."""
    split: Literal["test", "validation"] = "test"
    path: str | None = None
    """Dialogues, or the metrics of an arm that is only trained; relative to the run."""
    status: ArmStatus = "missing"
    row: str = ""
    """The row of the table to which several arms belong; empty for a row of its own."""
    budget: int | None = None
    """Training dialogues, of an arm that is compared by them."""
    reason: str = ""
    """Why it failed; of a finished arm, why it could not be made again with other settings."""


def emotion_dir(run: Path, domain: str, emotion: str) -> Path:
    """Where the judge's file of the dialogues under one emotion is."""
    return run / domain / "emotions" / emotion


def study_path(run: Path, study: str) -> Path:
    return run / "studies" / f"{study}.json"


def write_arms(run: Path, study: str, arms: Sequence[Arm]) -> None:
    """Keep the arms of a study in place of those that are there."""
    write_json(study_path(run, study), [dataclasses.asdict(arm) for arm in arms])


def read_arms(run: Path, study: str) -> list[Arm]:
    """The arms of a study, none where it was not run.

    Raises:
      InputError: the file can't be read.
    """
    try:
        return read_typed(study_path(run, study), list[Arm], "Run the study again.")
    except FileNotFoundError:
        return []
