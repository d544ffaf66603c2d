"""The three files of the data set: scenarios, trajectories and judgements (docs/data.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from emodistill.domains.scenario import Scenario, is_split_given
from emodistill.errors import InputError, refuse
from emodistill.files import replacing
from emodistill.jsonl import read_lines
from emodistill.records import Judgement, Record, Trajectory

R = TypeVar("R", bound=Record)


def read_trajectories(path: Path) -> list[Trajectory]:
    """All dialogues of a file; a `trajectory_id` that comes twice is refused."""
    return [trajectory for trajectory, _ in locate_trajectories(path)]


def locate_trajectories(path: Path) -> list[tuple[Trajectory, str]]:
    """The same, each with where it is."""
    return unique(read_records(path, Trajectory), "trajectory_id")


def read_scenarios(path: Path) -> list[Scenario]:
    """All scenarios of a file; a `scenario_id` that comes twice is refused."""
    return [scenario for scenario, _ in locate_scenarios(path)]


def locate_scenarios(path: Path) -> list[tuple[Scenario, str]]:
    """The same, each with where it is; a file that names the split of some only is refused."""
    scenarios = unique(read_records(path, Scenario), "scenario_id")
    is_split_given([("split" in value, where) for value, where in read_lines(path)])
    return scenarios


def read_judgements(path: Path) -> list[Judgement]:
    """All judge calls of a file, in their order."""
    return [judgement for judgement, _ in read_records(path, Judgement)]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write all records at once: a reader sees the old file or the new one."""
    lines = (json.dumps(record.to_json(), ensure_ascii=False) for record in records)
    with replacing(path) as partial:
        partial.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))


def unique(records: Iterable[tuple[R, str]], id_field: str) -> list[tuple[R, str]]:
    """The records, each with where it is.

    Raises:
      InputError: two have the same id.
    """
    where_by_id: dict[str, str] = {}
    result = list(records)
    problems = []
    for record, where in result:
        name = getattr(record, id_field)
        if (first := where_by_id.setdefault(name, where)) != where:
            problems.append(
                f"{where}: {id_field} {name!r} was in {first} already; ids must be unique."
            )
    refuse(problems)
    return result


def read_records(path: Path, kind: type[R]) -> Iterator[tuple[R, str]]:
    """The records of a file, each with where it is.

    Raises:
      InputError: lines that hold no such record; all of them, once the last has been read.
    """
    problems: list[str] = []
    for value, where in read_lines(path):
        try:
            record = kind.from_json(value, where=where)
        except InputError as error:
            problems.append(str(error))
            continue
        yield record, where
    refuse(problems)
