"""The published scenario tables (CSV): a row becomes a scalar game, or says why it can't.

How a row becomes a game, and which numbers are moved to leave room to bargain, is in `_play`.
A row that gives no number where one is needed, or whose cells can't be told apart, is left out and
named by its line. Where only neighbouring texts can't be told apart, they are kept as one text.
`strict` refuses the file in both cases. Ids count the rows of the file.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from emodistill.domains.cells import (
    CsvColumn,
    conventional_cells,
    plain_cells,
    read_cells,
    read_joined,
    read_number,
)
from emodistill.domains.registry import DOMAINS, Domain, get_domain
from emodistill.domains.scenario import Scenario, Split, is_split_given, refuse_leaks
from emodistill.errors import InputError, refuse

_LOG = logging.getLogger("emodistill")
_MAX_LINES_PER_ROW = 20  # a quote left open must not swallow the rest of the file
REPOSITORY = "https://github.com/Yunbo-max/EmoMAS"
"""Where the tables are published, in its folder data/."""
NOT_STATED = "not stated"
"""What a field holds where the table's cell is empty or missing."""


class Table(NamedTuple):
    """The scenarios of a file."""

    scenarios: list[Scenario]
    is_split: bool
    """Whether the file says of each which split it belongs to."""
    where: Sequence[str]
    """Where each is: its file and line."""


class _Row(NamedTuple):
    """A row's first line, and its cells by column or the `problem` with it.

    `lacks` names a column that the row does not have and the table can do without, `joined` columns
    whose texts can't be told apart.
    """

    line_number: int
    cells: Mapping[str, str]
    problem: str = ""
    lacks: str = ""
    joined: str = ""


def read_table(path: Path, domain: str, *, strict: bool = False) -> Table:
    """The scenarios of a published table, in the order of the file.

    A column `split`, which the published files don't have, says which split a row belongs to.

    Args:
      strict: refuse a file of which a row would be left out or read without one of its columns.

    Raises:
      InputError: the file can't be read, is not this domain's table, holds a row with nothing
        to bargain over or no playable row at all.
    """
    spec = get_domain(domain)
    advice = (
        f" The published one is {spec.table['name']} in the folder data/ of {REPOSITORY}; "
        "--scenarios generated plays built-in scenarios instead."
    )
    lines = read_text(path, advice).split("\n")
    if not lines[0].strip():
        raise InputError(f"{path}:1 is empty; the first line must be the header of {_table(spec)}.")
    columns = _columns(path, lines[0], spec)
    split_column = next((c.name for c in columns if _is_split(c.name)), "")
    rows = list(_rows(lines, columns, spec))
    scenarios, left_out, splits = [], [], []
    for number, row in enumerate(rows, start=1):
        outcome = row.problem or _scenario(spec, number, row, path)
        if isinstance(outcome, Scenario):
            name = row.cells.get(split_column, "").strip().lower()
            splits.append((name, f"{path}:{row.line_number}"))
            scenarios.append(outcome)
        else:
            left_out.append(f"line {row.line_number}: {outcome}")
    short = [f"line {row.line_number} has no {row.lacks}" for row in rows if row.lacks]
    joined = [f"line {row.line_number}: {row.joined}" for row in rows if row.joined]
    if strict and (left_out or short or joined):
        apart = [f"{one} can't be told apart" for one in joined]
        raise InputError(
            f"{path}: --strict refuses rows that can't be used in full. "
            f"{'; '.join([*left_out, *short, *apart])}. Correct these lines (texts with commas "
            "belong in double quotes) or leave out --strict."
        )
    if not scenarios:
        reasons = "; ".join(left_out[:5]) or "there is no row below the header"
        raise InputError(f"{path} holds no playable row. {reasons}.")
    parts = []
    if left_out:
        parts.append(f"{len(left_out)} of {len(rows)} rows left out ({'; '.join(left_out)})")
    if short:
        parts.append(f"read as {NOT_STATED!r}: {'; '.join(short)}")
    if joined:
        parts.append(
            f"{len(joined)} of {len(rows)} rows read with texts that can't be told apart as one "
            f"text, the other fields as {NOT_STATED!r} ({'; '.join(joined)})"
        )
    if parts:
        _LOG.warning("%s: %s.", path, ". ".join(parts))
    text = "%s: %d scenarios, %d of them with a number moved to leave room to bargain."
    _LOG.info(text, path, len(scenarios), sum(scenario.repaired for scenario in scenarios))
    is_split = any(name for name, _ in splits)
    return Table(_in_their_splits(scenarios, splits), is_split, [where for _, where in splits])


def _in_their_splits(
    scenarios: Sequence[Scenario], splits: Sequence[tuple[str, str]]
) -> list[Scenario]:
    """The scenarios in the splits that their rows name, each given with where it is."""
    if not is_split_given([(bool(name), where) for name, where in splits]):
        return [*scenarios]
    refuse(
        [
            f"{where}: split {name!r} is none of {', '.join(Split._fields)}."
            for name, where in splits
            if name not in Split._fields
        ]
    )
    named = [
        (msgspec.structs.replace(scenario, split=name), where)
        for scenario, (name, where) in zip(scenarios, splits, strict=True)
    ]
    refuse_leaks(named)
    return [scenario for scenario, _ in named]


def read_text(path: Path, advice: str = "") -> str:
    """The text of a scenario file, without a byte-order mark.

    Args:
      advice: what to say of a file that isn't there.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check --scenarios.{advice}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; --scenarios takes one file.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        ) from None
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from None


def _plain_name(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _is_split(name: str) -> bool:
    """Whether a column of that name says which split a row belongs to."""
    return _plain_name(name) == "split"


def _table(spec: Domain) -> str:
    return f"the {spec.name} table ({spec.table['name']})"


def _columns_of(spec: Domain) -> list[CsvColumn]:
    return [CsvColumn(name=name, **about) for name, about in spec.table["columns"].items()]


def _columns(path: Path, header: str, spec: Domain) -> list[CsvColumn]:
    """The file's columns in their order, recognised by name; unknown ones are plain text."""
    names = plain_cells(header)
    while names and not names[-1]:
        names.pop()
    present = {_plain_name(name) for name in names}

    def missing(candidate: Domain) -> list[str]:
        needed = (column.name for column in _columns_of(candidate) if column.is_needed)
        return [name for name in needed if _plain_name(name) not in present]

    if absent := missing(spec):
        for other in map(get_domain, DOMAINS):
            if not missing(other):  # never of this domain, whose columns are absent
                raise InputError(
                    f"{path} is {_table(other)}, not {_table(spec)}; its columns are "
                    f"{', '.join(names)}. Use --domain {other.name}, or give the other file."
                )
        raise InputError(
            f"{path} is not {_table(spec)}: its header lacks {', '.join(absent)} "
            f"(it has {', '.join(names) or 'none'}). Give the comma-separated table as it is "
            f"published in the folder data/ of {REPOSITORY}, or scenarios as .jsonl. The table "
            f"has the columns {', '.join(c.name for c in _columns_of(spec) if c.is_needed)}."
        )
    if len(present) < len(names):
        raise InputError(f"{path}:1: two columns of the header have the same name; rename one.")
    known = {_plain_name(column.name): column for column in _columns_of(spec)}
    return [known.get(_plain_name(name)) or CsvColumn(name=name, kind="text") for name in names]


def _rows(lines: Sequence[str], columns: Sequence[CsvColumn], spec: Domain) -> Iterator[_Row]:
    is_spaced = ", " in lines[0]  # the separator itself has a space: no repair is possible

    def cells_of(text: str) -> list[str] | None:
        if not is_spaced:
            return read_cells(text, columns)
        cells = plain_cells(text)
        return cells if len(cells) == len(columns) and not _misfit(cells, columns) else None

    start = 0
    while (start := start + 1) < len(lines):
        line, line_number = lines[start], start + 1
        if not line.strip(" \t,"):
            continue
        cells = cells_of(line)
        if cells is None and line.count('"') % 2:  # a quoted cell may go on in the next lines
            for stop in range(start + 2, min(start + _MAX_LINES_PER_ROW, len(lines)) + 1):
                joined = "\n".join(lines[start:stop])
                if len(plain_cells(joined)) == len(columns) and (cells := cells_of(joined)):
                    start = stop - 1
                    break
        if cells is not None:
            yield _Row(line_number, _named(columns, cells))
        else:
            row = _short_row(line, columns, spec, line_number)
            if row is None and not is_spaced:
                row = _joined_row(line, columns, spec, line_number)
            yield row or _Row(line_number, {}, problem=_why_unreadable(line, columns))


def _named(columns: Iterable[CsvColumn], cells: Sequence[str]) -> dict[str, str]:
    return dict(zip((column.name for column in columns), cells, strict=True))


def _misfit(cells: Sequence[str], columns: Sequence[CsvColumn]) -> str:
    """What can't stand in its column, said; empty where all cells can."""
    for column, cell in zip(columns, cells, strict=True):
        if not column.fits(cell):
            return f"{column.name} can't be {cell!r}"
    return ""


def _short_row(
    line: str, columns: Sequence[CsvColumn], spec: Domain, line_number: int
) -> _Row | None:
    """A row without the table's optional column, if its words leave no doubt about that."""
    optional = spec.table.get("optional")
    others = [column for column in columns if column.name != optional]
    if optional is None or (cells := read_cells(line, others)) is None:
        return None
    (lacking,) = [column for column in columns if column.name == optional]
    for column, cell in zip(others, cells, strict=True):
        if column.words and not column.speaks(cell):
            return None
        # A text behind the gap without words of its own might be the lacking one's.
        is_behind = columns.index(column) > columns.index(lacking)
        is_open = column.kind == "text" and column.is_needed and not column.words
        if is_behind and is_open and lacking.speaks(cell):
            return None
    return _Row(line_number, _named(others, cells) | {optional: ""}, lacks=optional)


def _joined_row(
    line: str, columns: Sequence[CsvColumn], spec: Domain, line_number: int
) -> _Row | None:
    """A row of which no more than the borders between neighbouring texts are uncertain."""
    read = read_joined(line, columns, optional=spec.table.get("optional"))
    if read is None or any(map(_is_split, itertools.chain(*read.joined))):
        return None
    joined = "; ".join(f"{names[0]} to {names[-1]}" for names in read.joined)
    return _Row(line_number, _named(columns, read.cells), joined=joined)


def _why_unreadable(line: str, columns: Sequence[CsvColumn]) -> str:
    cells = conventional_cells(line)
    if len(cells) == len(columns) and (misfit := _misfit(cells, columns)):
        return misfit
    return (
        f"{len(cells)} cells for {len(columns)} columns, and no certain way to tell its cells "
        f"apart; put texts with commas in double quotes"
    )


def _scenario(spec: Domain, number: int, row: _Row, path: Path) -> Scenario | str:
    """The scenario of a row, or the reason why it can't be played."""
    numbers: dict[str, float] = {}
    fields: dict[str, str | int | float] = {}
    for column in _columns_of(spec):
        cell = " ".join(row.cells.get(column.name, "").split())
        if column.number:
            if (value := column.read(cell)) is None:
                expected = "clock time" if column.kind == "clock" else "number"
                return f"{column.name} is {cell!r}, no {expected}"
            numbers[column.number] = value
        elif column.field:
            fields[column.field] = _fact(cell, column.kind)
    target, anchor, is_moved = _play(spec, numbers, fields)
    if (target - anchor) * spec.direction <= 0:
        below = "above" if spec.direction > 0 else "below"
        raise InputError(
            f"{path}:{row.line_number}: the {spec.focal_role}'s target ({target:g} {spec.unit}) "
            f"must lie {below} the {spec.counterparty_role}'s ({anchor:g}), or there is nothing to "
            f"negotiate. Correct the row."
        )
    return Scenario(
        scenario_id=spec.scenario_id(number),
        domain=spec.name,
        focal_target=target,
        counterparty_anchor=anchor,
        unit=spec.unit,
        fields={name: fields[name] for name in spec.fields},
        repaired=is_moved,
    )


def _fact(cell: str, kind: str) -> str | int | float:
    if kind == "figure" and (number := read_number(cell)) is not None:
        return int(number) if number.is_integer() else number
    if kind == "speech" and cell[:1] in '“„«"' and cell[-1:] in '”“»"':
        cell = cell[1:-1].strip()
    return cell or NOT_STATED


def _play(
    spec: Domain, numbers: Mapping[str, float], fields: Mapping[str, object]
) -> tuple[float, float, bool]:
    """Target and anchor in the domain's unit, and whether a number had to be moved for them."""
    match spec.name:
        case "disaster":  # half an hour of room
            eta, anchor = numbers["eta"], numbers["endurance"]
            target = max(eta, anchor + 30)
            return target, anchor, target != eta
        case "hospital":  # a week of room; who is not in a hurry may be asked for a month more
            waitlist, reduction = numbers["waitlist"], numbers["reduction"]
            anchor = max(waitlist - reduction, 1.0)
            wanted = waitlist + (30 if str(fields["urgency_level"]).lower() == "low" else 0)
            target = wanted if wanted > anchor else anchor + 7
            return target, anchor, target != wanted or anchor != waitlist - reduction
        case "student":  # three hours of room
            target, wanted = (
                _hours_past_origin(spec, numbers[name]) for name in ("requested", "wanted")
            )
            anchor = max(wanted, target + 3)
            return target, anchor, anchor != wanted
    return numbers["target"], numbers["anchor"], False


def _hours_past_origin(spec: Domain, hour: float) -> float:
    """A bedtime in hours past 9 PM; from noon on it belongs to the evening, before to the night."""
    assert spec.clock_origin_h is not None
    return hour - spec.clock_origin_h + (24 if hour < 12 else 0)
