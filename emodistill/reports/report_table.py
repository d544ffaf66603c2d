"""A table and its three forms: Markdown for reading, CSV at full precision, LaTeX (booktabs).

A row is a mapping from keys to values. None is shown as a dash (there is nothing to say), NaN as
N/A (there is nothing to average).
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import pandas as pd

from emodistill.reports.templates import render
from emodistill.untrusted import printable

TableRow = Mapping[str, Any]
"""Key -> value; `block` is the heading under which the row stands, if it has one."""


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: `key` says which values of the rows it shows and heads it in CSV."""

    key: str
    title: str = ""
    """Heads the column in all forms but CSV; the key does without it."""
    _: KW_ONLY
    spread: Literal["std", "interval"] | None = None
    """`std` shows `key` ± `<key>_std`; `interval` shows `<key>_low` to `<key>_high`."""
    digits: int = 1
    is_signed: bool = False
    """Whether the values are differences, which are shown with a plus or a minus."""
    best: Literal["max", "min"] | None = None
    """Which value of a block is set in bold."""
    group: str = ""
    """Heads several columns together."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.key)

    @property
    def keys(self) -> tuple[str, ...]:
        """The values of a row that the column shows."""
        if self.spread is None:
            return (self.key,)
        ends = {"std": ("", "_std"), "interval": ("_low", "_high")}[self.spread]
        return tuple(self.key + end for end in ends)

    def text(self, row: TableRow) -> str:
        """The column's cell of a row, for reading."""
        first, *second = (row.get(key) for key in self.keys)
        if not second or first is None or second[0] is None or math.isnan(second[0]):
            return self.value_text(first)
        joint = " ± " if self.spread == "std" else " to "
        return self.value_text(first) + joint + self.value_text(second[0])

    def value_text(self, value: object) -> str:
        """A value of the column without its spread."""
        if value is None:
            return "–"
        if not isinstance(value, Real):
            return " ".join(printable(str(value)).split())
        if isinstance(value, Integral):
            return f"{value:,}"
        number = float(value)
        if math.isnan(number):
            return "N/A"
        return signed(number, self.digits) if self.is_signed else plain(number, self.digits)


class FormattedValue(NamedTuple):
    """A cell of a table as text, and whether it is set in bold."""

    text: str
    is_best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportTable:
    """A table of the report."""

    name: str
    """The name of its files: `table-6`."""
    title: str
    columns: Sequence[TableColumn]
    rows: Sequence[TableRow]
    notes: Sequence[str] = ()

    @property
    def blocks(self) -> dict[str, list[TableRow]]:
        """Heading -> rows, in the order in which the headings first come."""
        blocks: dict[str, list[TableRow]] = {}
        for row in self.rows:
            blocks.setdefault(row.get("block", ""), []).append(row)
        return blocks

    def cells(self, rows: Sequence[TableRow]) -> list[list[FormattedValue]]:
        """The cells of a block's rows; its best values are marked, equal ones all.

        Values are compared as they are shown, since what looks equal must be set alike; a block
        of a single value, or of equal ones, has no best one.
        """
        columns = []
        for column in self.columns:
            values = [row.get(column.key) for row in rows]
            best = None
            if column.best:
                numbers = [n for n in values if n is not None and not math.isnan(n)]
                first = {"max": max, "min": min}[column.best]
                shown = {column.value_text(number) for number in numbers}
                best = column.value_text(first(numbers)) if len(shown) > 1 else None
            columns.append(
                [
                    FormattedValue(column.text(row), column.value_text(value) == best)
                    for row, value in zip(rows, values, strict=True)
                ]
            )
        return [list(cells) for cells in zip(*columns, strict=True)]


def plain(value: float, digits: int = 1) -> str:
    """A number with so many decimals; never `-0.0`."""
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A number with a true plus or minus sign."""
    text = plain(value, digits)
    return f"+{text}" if round(value, digits) > 0 else text


def spans(groups: Iterable[str]) -> list[tuple[str, int]]:
    """Neighbours of the same group as (group, number of columns)."""
    return [(group, len(list(same))) for group, same in itertools.groupby(groups)]


def markdown(table: ReportTable) -> str:
    """The notes, then one block after the other."""
    return render("table.md.j2", pipes, table=table)


def pipes(table: ReportTable, rows: Sequence[TableRow]) -> str:
    """The rows of a block as aligned lines, the head first; the first column is set to the left."""
    heads = [f"{c.group}: {c.title}" if c.group else c.title for c in table.columns]
    texts = [
        [f"**{text}**" if best else text for text, best in cells] for cells in table.cells(rows)
    ]
    # A cell ends no column and is no HTML; the asterisks at its ends are ours.
    lines = [
        [cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in line]
        for line in (heads, *texts)
    ]
    first, *others = (max(3, *map(len, column)) for column in zip(*lines, strict=True))
    rule = ["-" * first, *("-" * (width - 1) + ":" for width in others)]
    padded = [
        [line[0].ljust(first), *map(str.rjust, line[1:], others)]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def csv_text(table: ReportTable) -> str:
    """One line a row, every number in full; nothing where there is no number.

    A column of which no row has a spread takes one column of the file.
    """
    keys: list[str] = []
    for column in table.columns:
        has_spread = any(row.get(column.keys[-1]) is not None for row in table.rows)
        keys += column.keys if has_spread else [column.key]
    heads = ["block", *keys] if any(table.blocks) else keys
    lines = [[row.get(key) for key in heads] for rows in table.blocks.values() for row in rows]
    # dtype=object keeps counts from becoming floats where a row has none
    return pd.DataFrame(lines, columns=heads, dtype=object).to_csv(index=False, lineterminator="\n")


def terminal_text(csv: str) -> str:
    """A table of methods, from its CSV, in lines that fit a terminal: what each reached."""
    frame = pd.read_csv(io.StringIO(csv))
    heads = ["method", "success, %", "utility, %", "95 % interval", "rounds"]
    lines = [heads]
    for row in frame.to_dict("records"):
        ends = (plain(row[f"utility_clustered_{end}"]) for end in ("low", "high"))
        name = f"{row['method']} ({row['block']})"
        numbers = [plain(row["success"]), plain(row["utility"])]
        lines.append([name, *numbers, " to ".join(ends), plain(row["rounds"])])
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]) for line in lines
    )


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "_": r"\_",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
        "±": r"$\pm$",
        "–": "--",
        "→": r"$\to$",
        "κ": r"$\kappa$",
        "λ": r"$\lambda$",
        "τ": r"$\tau$",
        "β": r"$\beta$",
        "γ": r"$\gamma$",
        "ρ": r"$\rho$",
        "≥": r"$\geq$",
    }
)


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    return text.translate(_LATEX)


def latex(table: ReportTable) -> str:
    """A `tabular` for \\input; needs the package booktabs. Notes are comments."""
    return render("table.tex.j2", spans, escape_latex, table=table) + "\n"
