"""Every table of the report, in the paper's numbering: `tables.toml`, and what finds the rows."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from emodistill.configs import METHODS
from emodistill.evaluation.arms import TABLES_OF
from emodistill.reports import (
    cost_content,
    definition_content,
    emotion_content,
    leaderboard_content,
    tournament_content,
    training_content,
)
from emodistill.reports.dose_content import doses
from emodistill.reports.emotion_content import NUM_SHIFTS
from emodistill.reports.method_content import (
    FREE,
    FREE_TRAINED,
    REFINED,
    against_other_run,
    all_methods,
    of_methods,
    of_study,
)
from emodistill.reports.recipe import Recipe, TableContent
from emodistill.reports.report_table import TableColumn
from emodistill.reports.results import EFFECT_POINTS, POWER
from emodistill.reports.run_data import RunData

CONTENT: Mapping[str, Callable[[RunData], TableContent]] = {
    **{name: of_study(name, study) for study, names in TABLES_OF.items() for name in names},
    "dose": doses,
    "watch": training_content.watched_checkpoints,
    "table-1": all_methods,
    "table-3": of_methods("table-3", FREE, needs=FREE_TRAINED, only_paper_domain=True),
    "table-7": definition_content.method_definitions,
    "table-8": definition_content.data_sets,
    "table-9": of_methods("table-9", METHODS),
    "table-12": of_methods("table-12", FREE, needs=FREE_TRAINED),
    "table-13": tournament_content.pairings,
    "table-14": of_methods("table-14", REFINED, needs=("iql+sft+alol", "iql+sft+dpo")),
    "table-15": training_content.stability,
    "table-16": emotion_content.emotion_sequences,
    "emotions": emotion_content.emotions_against_neutral,
    "matches": emotion_content.selector_matches,
    "shift": emotion_content.shifted_features,
    "ratings": tournament_content.strengths,
    "leaderboard": leaderboard_content.leaderboard,
    "differences": lambda data: TableContent(data.differences),
    "against": against_other_run,
    "cost": cost_content.call_costs,
    "policy-cost": training_content.step_times,
}
"""Table -> what finds its rows: that of a study shows the study's arms, unless it is named here."""
NUMBERS = {
    "effect_points": f"{EFFECT_POINTS:g}",
    "power": f"{POWER:g}",
    "num_shifts": str(NUM_SHIFTS),
}
"""What the notes of `tables.toml` name as `$name`; what they name in braces, `Readings` has."""


def _recipes() -> Iterator[Recipe]:
    text = Path(__file__).with_name("tables.toml").read_text(encoding="utf-8")
    catalogue = tomllib.loads(text)
    for table in catalogue["tables"]:
        columns = table.get("columns", ())
        columns = catalogue["columns"][columns] if isinstance(columns, str) else columns
        changes: dict[str, Any] = {"columns": [TableColumn(**column) for column in columns]}
        if "notes" in table:
            notes = [catalogue["notes"].get(note, note) for note in table["notes"]]
            changes["notes"] = [Template(note).safe_substitute(NUMBERS) for note in notes]
        yield Recipe(content=CONTENT[table["name"]], **table | changes)


RECIPES = tuple(_recipes())
"""The tables in the order in which the page shows them."""
