"""A table and its three forms: Markdown for reading, CSV at full precision, LaTeX (booktabs).

What a cell holds decides how it looks: a number by its column's digits, `PlusMinus` and `Range` as
two numbers, None as a dash (nothing to say), NaN as N/A (nothing to average).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple


class PlusMinus(NamedTuple):
    """A mean and its deviation; a NaN deviation is left out."""

    mean: float
    std: float


class Range(NamedTuple):
    """An interval."""

    low: float
    high: float


Cell = str | int | float | PlusMinus | Range | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: `key` heads it in CSV, `title` elsewhere."""

    key: str
    title: str
    digits: int = 1
    is_signed: bool = False
    """A difference: with a plus or a minus."""
    best: Literal["max", "min"] | None = None
    """Which value of a block is set in bold."""
    group: str = ""
    """What heads several columns together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows under a heading; an empty title needs none."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    name: str
    """Of its files: `table-6`."""
    title: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()

    def best(self, block: Block) -> set[tuple[int, int]]:
        """(row, column) of the best values of a block, equal ones all; none of a single row."""
        found = set()
        for j, column in enumerate(self.columns):
            values = {i: _number(row[j]) for i, row in enumerate(block.rows)}
            shown = {i: round(v, column.digits) for i, v in values.items() if not math.isnan(v)}
            if column.best is None or len(shown) < 2:
                continue
            top = max(shown.values()) if column.best == "max" else min(shown.values())
            found |= {(i, j) for i, value in shown.items() if value == top}
        return found


def show(cell: Cell, column: Column) -> str:
    """A cell as text."""
    if cell is None:
        return "–"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, PlusMinus):
        if math.isnan(cell.std):
            return show(cell.mean, column)
        return f"{show(cell.mean, column)} ± {show(cell.std, column)}"
    if isinstance(cell, Range):
        if math.isnan(cell.low):
            return "N/A"
        return f"{show(cell.low, column)} to {show(cell.high, column)}"
    if isinstance(cell, int):
        return f"{cell:,}"
    if math.isnan(cell):
        return "N/A"
    return signed(cell, column.digits) if column.is_signed else plain(cell, column.digits)


def plain(value: float, digits: int = 1) -> str:
    """So many decimals; never `-0.0`."""
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """With a true plus or minus sign."""
    rounded = round(value, digits) + 0.0
    sign = "+" if rounded > 0 else "−" if rounded < 0 else ""
    return f"{sign}{abs(rounded):,.{digits}f}"


def _number(cell: Cell) -> float:
    """What a cell is compared by."""
    if isinstance(cell, PlusMinus):
        return cell.mean
    return float(cell) if isinstance(cell, int | float) else math.nan


def markdown(table: Table) -> str:
    """The notes, then a block after the other."""
    parts = [f"# {table.title}", *table.notes]
    heads = [f"{c.group}: {c.title}" if c.group else c.title for c in table.columns]
    for block in table.blocks:
        if block.title:
            parts.append(f"## {block.title}")
        best = table.best(block)
        lines = [
            [
                f"**{show(cell, column)}**" if (i, j) in best else show(cell, column)
                for j, (cell, column) in enumerate(zip(row, table.columns, strict=True))
            ]
            for i, row in enumerate(block.rows)
        ]
        parts.append(_pipes(heads, lines))
    return "\n\n".join(parts) + "\n"


def _pipes(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *lines)]
    widths = [max(3, *map(len, column)) for column in zip(*escaped, strict=True)]

    def line(row: Sequence[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return f"| {' | '.join((row[0].ljust(widths[0]), *rest))} |"

    rule = " | ".join(("-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])))
    return "\n".join([line(escaped[0]), f"| {rule} |", *map(line, escaped[1:])])


def csv_text(table: Table) -> str:
    """One line a row, every number in full; nothing where there is no number."""
    rows = [row for block in table.blocks for row in block.rows]
    suffixes = [_suffixes(row[j] for row in rows) for j in range(len(table.columns))]
    has_blocks = any(block.title for block in table.blocks)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = [c.key + end for c, ends in zip(table.columns, suffixes, strict=True) for end in ends]
    writer.writerow(["block", *head] if has_blocks else head)
    for block in table.blocks:
        for row in block.rows:
            cells = [
                v for cell, ends in zip(row, suffixes, strict=True) for v in _spread(cell, ends)
            ]
            writer.writerow([block.title, *cells] if has_blocks else cells)
    return out.getvalue()


def _suffixes(cells) -> tuple[str, ...]:
    """The CSV columns that a column of the table needs."""
    for cell in cells:
        if isinstance(cell, PlusMinus):
            return ("", "_std")
        if isinstance(cell, Range):
            return ("_low", "_high")
    return ("",)


def _spread(cell: Cell, suffixes: tuple[str, ...]) -> list[object]:
    values: tuple[object, ...] = cell if isinstance(cell, PlusMinus | Range) else (cell,)
    values += ("",) * (len(suffixes) - len(values))
    return ["" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in values]


_LATEX: Mapping[str, str] = {
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


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """A `tabular` for \\input; needs the package booktabs. Notes are comments."""
    groups = [column.group for column in table.columns]
    head = [" & ".join(escape_latex(column.title) for column in table.columns) + r" \\"]
    if any(groups):
        head = [*_latex_groups(groups), *head]
    body = []
    for block in table.blocks:
        if block.title:
            title = rf"\multicolumn{{{len(groups)}}}{{l}}{{\textit{{{escape_latex(block.title)}}}}}"
            body.append(rf"\midrule {title} \\")
        elif not body:
            body.append(r"\midrule")
        best = table.best(block)
        for i, row in enumerate(block.rows):
            cells = []
            for j, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
                text = escape_latex(show(cell, column))
                cells.append(rf"\textbf{{{text}}}" if (i, j) in best else text)
            body.append(" & ".join(cells) + r" \\")
    return "\n".join(
        [
            *(f"% {' '.join(note.split())}" for note in (table.title, *table.notes)),
            rf"\begin{{tabular}}{{l{'r' * (len(groups) - 1)}}}",
            r"\toprule",
            *head,
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def spans(groups: Sequence[str]) -> list[tuple[str, int]]:
    """Neighbours of the same group as (group, number of columns)."""
    found: list[tuple[str, int]] = []
    for group in groups:
        if found and found[-1][0] == group:
            found[-1] = group, found[-1][1] + 1
        else:
            found.append((group, 1))
    return found


def _latex_groups(groups: Sequence[str]) -> list[str]:
    cells, rules, column = [], [], 1
    for group, width in spans(groups):
        title = escape_latex(group)
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{title}}}" if group else "& " * (width - 1))
        if group:
            rules.append(rf"\cmidrule(lr){{{column}-{column + width - 1}}}")
        column += width
    return [" & ".join(cells).replace("  ", " ") + r" \\", "".join(rules)]
