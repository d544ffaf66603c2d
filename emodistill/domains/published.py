"""The published scenario tables (CSV): a row becomes a scalar game, or says why it can't.

How a row becomes a game, and which numbers are moved to leave room to bargain, is in `_play`.
A row that gives no number where one is needed, or whose texts can't be told apart, is left out
and named by its line; `strict` refuses the file instead. Ids count the rows of the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from emodistill.domains.cells import (
    Column,
    conventional_cells,
    plain_cells,
    read_cells,
    read_clock,
    read_number,
)
from emodistill.domains.registry import DOMAINS, Domain, get_domain
from emodistill.domains.scenario import Scenario
from emodistill.errors import InputError

_LOG = logging.getLogger("emodistill")
_MAX_LINES_PER_ROW = 20
NOT_STATED = "not stated"
"""What a field holds where the table's cell is empty or missing."""


class _Row(NamedTuple):
    line_number: int
    cells: Mapping[str, str] | None
    problem: str = ""
    lacks: str = ""


class _Game(NamedTuple):
    focal_target: float
    counterparty_anchor: float
    repaired: bool


def read_table(path: Path, domain: str, *, strict: bool = False) -> list[Scenario]:
    """The scenarios of a published table, in the order of the file.

    Args:
      strict: refuse a file of which a row would be left out or read without one of its columns.

    Raises:
      InputError: the file can't be read, is not this domain's table, holds a row with nothing
        to bargain over or no playable row at all.
    """
    spec = get_domain(domain)
    lines = read_text(path).split("\n")
    if not lines[0].strip():
        raise InputError(f"{path}:1 is empty; the first line must be the header of {_table(spec)}.")
    columns = _columns(path, lines[0], spec)
    rows = list(_rows(lines, columns, spec))
    scenarios, left_out = [], []
    for number, row in enumerate(rows, start=1):
        where = f"{path}:{row.line_number}"
        outcome = _scenario(spec, number, row, where)
        if isinstance(outcome, Scenario):
            scenarios.append(outcome)
        else:
            left_out.append(f"line {row.line_number}: {outcome}")
    _report(path, scenarios, rows, left_out, strict=strict)
    return scenarios


def read_text(path: Path) -> str:
    """The text of a scenario file, without a byte-order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check --scenarios.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; --scenarios takes one file.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from None


def _report(
    path: Path,
    scenarios: Sequence[Scenario],
    rows: Sequence[_Row],
    left_out: Sequence[str],
    *,
    strict: bool,
) -> None:
    short = [f"line {row.line_number} has no {row.lacks}" for row in rows if row.lacks]
    if strict and (left_out or short):
        raise InputError(
            f"{path}: --strict refuses rows that can't be used in full. "
            f"{'; '.join([*left_out, *short])}. Correct these lines or leave out --strict."
        )
    if not scenarios:
        reasons = "; ".join(left_out[:5]) or "there is no row below the header"
        raise InputError(f"{path} holds no playable row. {reasons}.")
    parts = []
    if left_out:
        parts.append(f"{len(left_out)} of {len(rows)} rows left out ({'; '.join(left_out)})")
    if short:
        parts.append(f"read as {NOT_STATED!r}: {'; '.join(short)}")
    if parts:
        _LOG.warning("%s: %s.", path, ". ".join(parts))
    text = "%s: %d scenarios, %d of them with a number moved to leave room to bargain."
    _LOG.info(text, path, len(scenarios), sum(scenario.repaired for scenario in scenarios))


def _plain_name(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _table(spec: Domain) -> str:
    return f"the {spec.name} table ({spec.table['name']})"


def _needed(spec: Domain) -> list[str]:
    """The columns that a scenario is made of."""
    columns = spec.table["columns"]
    return [name for name, about in columns.items() if "field" in about or "number" in about]


def _columns(path: Path, header: str, spec: Domain) -> list[Column]:
    """The file's columns in their order, recognised by name; unknown ones are plain text."""
    found = plain_cells(header)
    while found and not found[-1]:
        found.pop()
    present = {_plain_name(name) for name in found}

    def missing(candidate: Domain) -> list[str]:
        return [name for name in _needed(candidate) if _plain_name(name) not in present]

    if absent := missing(spec):
        for other in map(get_domain, DOMAINS):
            if other is not spec and not missing(other):
                raise InputError(
                    f"{path} is {_table(other)}, not {_table(spec)}; its columns are "
                    f"{', '.join(found)}. Use --domain {other.name}, or give the other file."
                )
        raise InputError(
            f"{path} is not {_table(spec)}: its header lacks {', '.join(absent)} "
            f"(it has {', '.join(found) or 'none'}). Give the comma-separated published table, "
            f"or scenarios as .jsonl."
        )
    if len(present) < len(found):
        raise InputError(f"{path}:1: two columns of the header have the same name; rename one.")
    known = {_plain_name(name): (name, about) for name, about in spec.table["columns"].items()}
    columns = []
    for name in found:
        own_name, about = known.get(_plain_name(name), (name, {"kind": "text"}))
        words = tuple(about.get("words", ()))
        choices = tuple(about.get("choices", ()))
        columns.append(Column(name=own_name, kind=about["kind"], choices=choices, words=words))
    return columns


def _rows(lines: Sequence[str], columns: Sequence[Column], spec: Domain) -> Iterator[_Row]:
    names = [column.name for column in columns]
    is_spaced = ", " in lines[0]  # the separator itself has a space: no repair is possible
    place = 1
    while place < len(lines):
        start, place = place, place + 1
        if not lines[start].strip(" \t,"):
            continue
        cells = _cells(lines[start], columns, is_spaced=is_spaced)
        if cells is None and lines[start].count('"') % 2:
            for stop in range(start + 2, min(start + _MAX_LINES_PER_ROW, len(lines)) + 1):
                joined = "\n".join(lines[start:stop])
                if len(plain_cells(joined)) == len(columns):
                    cells = _cells(joined, columns, is_spaced=is_spaced)
                if cells is not None:
                    place = stop
                    break
        if cells is not None:
            yield _Row(start + 1, dict(zip(names, cells, strict=True)))
            continue
        yield _short_row(lines[start], columns, spec, start + 1) or _Row(
            start + 1, None, _why_unreadable(lines[start], columns)
        )


def _cells(line: str, columns: Sequence[Column], *, is_spaced: bool) -> list[str] | None:
    if not is_spaced:
        return read_cells(line, columns)
    cells = plain_cells(line)
    fits = len(cells) == len(columns) and all(
        column.fits(cell) for column, cell in zip(columns, cells, strict=True)
    )
    return cells if fits else None


def _short_row(line: str, columns: Sequence[Column], spec: Domain, line_number: int) -> _Row | None:
    """A row without the table's optional column, if its words leave no doubt about that."""
    if (optional := spec.table.get("optional")) is None:
        return None
    (lacking,) = [column for column in columns if column.name == optional]
    others = [column for column in columns if column.name != optional]
    if (cells := read_cells(line, others)) is None:
        return None
    place = columns.index(lacking)
    for position, (column, cell) in enumerate(zip(others, cells, strict=True)):
        if column.words and not column.speaks(cell):
            return None
        is_neighbour = column.kind == "text" and position >= place and not column.words
        if is_neighbour and column.name in _needed(spec) and lacking.speaks(cell):
            return None
    named = dict(zip((column.name for column in others), cells, strict=True))
    return _Row(line_number, named | {optional: ""}, lacks=optional)


def _why_unreadable(line: str, columns: Sequence[Column]) -> str:
    cells = conventional_cells(line)
    if len(cells) == len(columns):
        for column, cell in zip(columns, cells, strict=True):
            if not column.fits(cell):
                return f"{column.name} can't be {cell!r}"
    return (
        f"{len(cells)} cells for {len(columns)} columns, and no certain way to tell its texts "
        f"apart; put texts with commas in double quotes"
    )


def _scenario(spec: Domain, number: int, row: _Row, where: str) -> Scenario | str:
    """The scenario of a row, or the reason why it can't be played."""
    if row.cells is None:
        return row.problem
    numbers: dict[str, float] = {}
    fields: dict[str, str | int | float] = {}
    for name, about in spec.table["columns"].items():
        cell = " ".join(row.cells.get(name, "").split())
        if "number" in about:
            is_clock = about["kind"] == "clock"
            value = read_clock(cell) if is_clock else read_number(cell)
            if value is None:
                return f"{name} is {cell!r}, no {'clock time' if is_clock else 'number'}"
            numbers[about["number"]] = value
        elif "field" in about:
            fields[about["field"]] = _fact(cell, about["kind"])
    game = _play(spec, numbers, fields)
    if (game.focal_target - game.counterparty_anchor) * spec.direction <= 0:
        below = "above" if spec.direction > 0 else "below"
        raise InputError(
            f"{where}: the {spec.focal_role}'s target ({game.focal_target:g} {spec.unit}) must "
            f"lie {below} the {spec.counterparty_role}'s ({game.counterparty_anchor:g}), or there "
            f"is nothing to negotiate. Correct the row."
        )
    return Scenario(
        scenario_id=spec.scenario_id(number),
        domain=spec.name,
        focal_target=game.focal_target,
        counterparty_anchor=game.counterparty_anchor,
        unit=spec.unit,
        fields={name: fields[name] for name in spec.fields},
        repaired=game.repaired,
    )


def _fact(cell: str, kind: str) -> str | int | float:
    if kind == "figure" and (number := read_number(cell)) is not None:
        return int(number) if number.is_integer() else number
    if kind == "speech" and cell[:1] in '“„«"' and cell[-1:] in '”“»"':
        cell = cell[1:-1].strip()
    return cell or NOT_STATED


def _play(spec: Domain, numbers: Mapping[str, float], fields: Mapping[str, object]) -> _Game:
    """Target and anchor, in the domain's unit; `repaired` where a number had to be moved."""
    match spec.name:
        case "disaster":
            eta, endurance = numbers["eta"], numbers["endurance"]
            target = max(eta, endurance + 30)
            return _Game(target, endurance, target != eta)
        case "hospital":
            waitlist = numbers["waitlist"]
            reduced = waitlist - numbers["reduction"]
            anchor = max(reduced, 1.0)
            wanted = waitlist + (30 if str(fields["urgency_level"]).lower() == "low" else 0)
            target = wanted if wanted > anchor else anchor + 7
            return _Game(target, anchor, target != wanted or anchor != reduced)
        case "student":
            target = _hours_past_origin(spec, numbers["requested"])
            wanted = _hours_past_origin(spec, numbers["wanted"])
            anchor = max(wanted, target + 3)
            return _Game(target, anchor, anchor != wanted)
    return _Game(numbers["target"], numbers["anchor"], False)


def _hours_past_origin(spec: Domain, hour: float) -> float:
    """A bedtime in hours past 9 PM; from noon on it belongs to the evening, before to the night."""
    assert spec.clock_origin_h is not None
    return hour - spec.clock_origin_h + (24 if hour < 12 else 0)
