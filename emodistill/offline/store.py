"""The three files of the data set: scenarios, trajectories and judgements (docs/data.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
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
    return unique(read_records(path, Trajectory), "trajectory_id")


def read_scenarios(path: Path) -> list[Scenario]:
    """All scenarios of a file; a `scenario_id` that comes twice is refused."""
    return unique(read_records(path, Scenario), "scenario_id")


def read_judgements(path: Path) -> list[Judgement]:
    """All judge calls of a file, in their order."""
    return [judgement for judgement, _ in read_records(path, Judgement)]


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write all records at once: a reader sees the old file or the new one."""
    lines = (json.dumps(record.to_json(), ensure_ascii=False) for record in records)
    with replacing(path) as partial:
        partial.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))


def unique(records: Iterable[tuple[R, str]], id_field: str | None) -> list[R]:
    """The records, each given with where it is; any may come twice where `id_field` is None.

    Raises:
      InputError: two have the same id.
    """
    where_by_id: dict[str, str] = {}
    result: list[R] = []
    for record, where in records:
        name = where if id_field is None else getattr(record, id_field)
        if name in where_by_id:
            raise InputError(
                f"{where}: {id_field} {name!r} was in {where_by_id[name]} already; ids must be "
                "unique."
            )
        where_by_id[name] = where
        result.append(record)
    return result


def read_records(path: Path, kind: type[R]) -> Iterator[tuple[R, str]]:
    """The records of a file, each with where it is."""
    for value, where in read_lines(path):
        yield kind.from_json(value, where=where), where
