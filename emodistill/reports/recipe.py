"""How a table is made: which rows, which columns of them, which notes.

A `Recipe` says it, `make_table` does it. The tables of the report are listed in `catalogue.py`; a
table of one's own is one more recipe (docs/extending.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import pandas as pd

from emodistill.reports.labels import DOMAIN_TITLES
from emodistill.reports.report_table import ReportTable, TableColumn, TableRow
from emodistill.reports.results import Readings, models
from emodistill.reports.run_data import RunData

ABOUT_RUN = "about the run"
"""Among a recipe's notes: who played on which scenarios, what is missing, and where the figures
come from."""


@dataclass(frozen=True, slots=True)
class TableContent:
    """What a table shows of a run."""

    rows: Sequence[TableRow]
    """Without any there is no table. `block` heads a row; domains are shown by their titles.

    `published` are the paper's numbers for it, in the order of the columns with a `paper_` before
    their keys (None for none); these, and ours less the paper's as `less_<key>`, join the row.
    """
    _: KW_ONLY
    columns: Sequence[TableColumn] = ()
    """What is shown of the rows where that hangs on the data, in place of the recipe's columns."""
    players_of: pd.DataFrame | None = None
    """Dialogues whose language models are to be named."""
    missing: Sequence[str] = ()
    """What the table would have if the run were complete."""
    notes: Sequence[str] = ()
    """What only the data can say, ahead of the other lines about the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A table of the report."""

    name: str
    """The name of its files, and what `report.py --only` calls it."""
    title: str
    content: Callable[[RunData], TableContent]
    """The rows; keys are those of the columns."""
    columns: Sequence[TableColumn]
    """What is shown of the rows, in this order."""
    notes: Sequence[str] = (ABOUT_RUN,)
    """What stands below the title; ABOUT_RUN is replaced."""
    made_by: str = ""
    """The script that makes what the table needs."""


def make_table(recipe: Recipe, data: RunData) -> ReportTable | None:
    """The table of a run, None where the run holds nothing for it."""
    content = recipe.content(data)
    if not content.rows:
        return None
    columns = content.columns or recipe.columns
    notes: list[str] = []
    for note in recipe.notes:
        notes += _about_run(data, content) if note == ABOUT_RUN else [filled(note, data.readings)]
    rows = [
        {**row, "block": DOMAIN_TITLES.get(row.get("block", ""), row.get("block", ""))}
        | _beside(row, columns)
        for row in content.rows
    ]
    return ReportTable(
        name=recipe.name, title=recipe.title, columns=columns, rows=rows, notes=notes
    )


def filled(note: str, readings: Readings) -> str:
    """The note with the words for `{deviation}`, `{interval}` and `{average}`."""
    for name, word in readings.words().items():
        note = note.replace(f"{{{name}}}", word)
    return note


def _beside(row: TableRow, columns: Sequence[TableColumn]) -> dict[str, float]:
    """The paper's values for a row, and ours less the paper's.

    A NaN among the paper's is none; a deviation (`<key>_std`) may be NaN where its mean is not.
    """
    keys = [key for column in columns for key in column.keys if key.startswith("paper_")]
    theirs: dict[str, float] = dict(zip(keys, row.get("published") or (), strict=False))
    beside: dict[str, float] = {}
    for key, value in theirs.items():
        if not math.isnan(theirs.get(key.removesuffix("_std"), value)):
            name = key.removeprefix("paper_")
            beside |= {key: value, f"less_{name}": row[name] - value}
    return beside


def _about_run(data: RunData, content: TableContent) -> list[str]:
    lines = [*content.notes]
    frame = content.players_of
    if frame is not None and len(frame):
        focal, counterparty = models(frame)
        lines.append(f"Focal side: {focal}. Counterparty: {counterparty}.")
    played = {*data.scenario_sources} if frame is None or not len(frame) else {*frame.domain}
    sources = [
        f"{DOMAIN_TITLES.get(domain, domain)}: {source}"
        for domain, source in data.scenario_sources.items()
        if domain in played
    ]
    if sources:
        lines.append(f"Scenarios: {'; '.join(sources)}.")
    if content.missing:
        lines.append(f"Missing: {'; '.join(content.missing)}.")
    if data.caveat:
        lines.append(f"**{data.caveat}**")
    return lines
