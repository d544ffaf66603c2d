"""The three files of the data set: scenarios, trajectories and judgements (docs/data.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError
from emodistill.files import replacing
from emodistill.jsonl import read_lines
from emodistill.records import Judgement, Record, Trajectory

R = TypeVar("R", bound=Record)


def read_trajectories(path: Path) -> list[Trajectory]:
    """All dialogues of a file; a `trajectory_id` that comes twice is refused."""
    return _read_unique(path, Trajectory, "trajectory_id")


def read_scenarios(path: Path) -> list[Scenario]:
    """All scenarios of a file; a `scenario_id` that comes twice is refused."""
    return _read_unique(path, Scenario, "scenario_id")


def read_judgements(path: Path) -> list[Judgement]:
    """All judge calls of a file, in the order in which they were made."""
    return [Judgement.from_json(value, where=where) for value, where in read_lines(path)]


def write_scenarios(path: Path, scenarios: Sequence[Scenario]) -> None:
    """Write all scenarios at once: a reader sees the old file or the new one."""
    lines = (json.dumps(scenario.to_json(), ensure_ascii=False) for scenario in scenarios)
    with replacing(path) as partial:
        partial.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))


def _read_unique(path: Path, kind: type[R], id_field: str) -> list[R]:
    records: list[R] = []
    places: dict[str, str] = {}
    for value, where in read_lines(path):
        record = kind.from_json(value, where=where)
        name = getattr(record, id_field)
        if name in places:
            raise InputError(
                f"{where}: {id_field} {name!r} was in {places[name]} already; ids must be unique."
            )
        places[name] = where
        records.append(record)
    return records
