"""A table and its three forms: Markdown for reading, CSV at full precision, LaTeX (booktabs).

A row is a mapping from keys to values. None is shown as a dash (there is nothing to say), NaN as
N/A (there is nothing to average).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import pandas as pd

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
            return self._value_text(first)
        joint = " ± " if self.spread == "std" else " to "
        return self._value_text(first) + joint + self._value_text(second[0])

    def _value_text(self, value: object) -> str:
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
        with a single value has no best one.
        """
        columns = []
        for column in self.columns:
            numbers = [row.get(column.key) if column.best else None for row in rows]
            shown = [
                None if n is None or math.isnan(n) else round(n, column.digits) for n in numbers
            ]
            values = [number for number in shown if number is not None]
            top = {"max": max, "min": min}[column.best or "max"](values) if values else None
            columns.append(
                [
                    FormattedValue(column.text(row), len(values) > 1 and number == top)
                    for row, number in zip(rows, shown, strict=True)
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
    parts = [f"# {table.title}", *table.notes]
    heads = [f"{c.group}: {c.title}" if c.group else c.title for c in table.columns]
    for heading, rows in table.blocks.items():
        if heading:
            parts.append(f"## {' '.join(heading.split())}")
        texts = [
            [f"**{cell.text}**" if cell.is_best else cell.text for cell in cells]
            for cells in table.cells(rows)
        ]
        parts.append(_pipes([heads, *texts]))
    return "\n\n".join(parts) + "\n"


def _escape_markdown(cell: str) -> str:
    """A cell that ends no column and is no HTML; its asterisks at the ends are ours."""
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _pipes(lines: Sequence[Sequence[str]]) -> str:
    """Aligned lines of a Markdown table, the head first; the first column is set to the left."""
    lines = [[_escape_markdown(cell) for cell in line] for line in lines]
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
    groups = [column.group for column in table.columns]
    body = [] if any(table.blocks) else [r"\midrule"]
    for heading, rows in table.blocks.items():
        if heading:
            title = rf"\multicolumn{{{len(groups)}}}{{l}}{{\textit{{{escape_latex(heading)}}}}}"
            body.append(rf"\midrule {title} \\")
        for cells in table.cells(rows):
            texts = [
                rf"\textbf{{{escape_latex(text)}}}" if is_best else escape_latex(text)
                for text, is_best in cells
            ]
            body.append(" & ".join(texts) + r" \\")
    return "\n".join(
        [
            *(f"% {' '.join(note.split())}" for note in (table.title, *table.notes)),
            rf"\begin{{tabular}}{{l{'r' * (len(groups) - 1)}}}",
            r"\toprule",
            *(_latex_groups(groups) if any(groups) else ()),
            " & ".join(escape_latex(column.title) for column in table.columns) + r" \\",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_groups(groups: Sequence[str]) -> list[str]:
    """The line of the groups' titles, and the rules below them."""
    cells, rules, first = [], [], 1
    for group, width in spans(groups):
        title = escape_latex(group)
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{title}}}" if group else "& " * (width - 1))
        if group:
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [" & ".join(cells).replace("  ", " ") + r" \\", "".join(rules)]
