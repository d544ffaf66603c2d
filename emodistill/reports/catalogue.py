"""Every table of the report by its name, in the paper's numbering, and the script that it needs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from emodistill.configs import METHODS
from emodistill.evaluation.arms import TABLES_OF
from emodistill.reports import (
    costs,
    emotion_tables,
    given_tables,
    method_tables,
    policy_cost,
    stability_table,
    tournament_tables,
)
from emodistill.reports.run_data import RunData
from emodistill.reports.table import Table
from emodistill.reports.tables import TAUGHT

Maker = Callable[[RunData], Table | None]


def _study(study: str, name: str, title: str) -> Maker:
    return functools.partial(method_tables.study, study, name, title)


def _free(name: str, title: str, is_crad: bool) -> Maker:
    return functools.partial(method_tables.free, name, title, is_crad)


TABLES: Mapping[str, Maker] = {
    "table-1": method_tables.main("table-1", "Methods by domain", None),
    "table-2": _study("signal", "table-2", "Training signals"),
    "table-3": _free("table-3", "Without emotions", True),
    "table-4": _study("transfer", "table-4", "Transfer between domains"),
    "table-5": _study("counterparty", "table-5", "Unseen counterparties"),
    "table-6": _study("kappa", "table-6", "Weight of negative advantages"),
    "table-7": given_tables.table_7,
    "table-8": given_tables.table_8,
    "table-9": method_tables.main("table-9", "Outcomes by domain", METHODS),
    "table-10": _study("counterparty", "table-10", "Outcomes: counterparties"),
    "table-11": _study("signal", "table-11", "Outcomes: training signals"),
    "table-12": _free("table-12", "Without emotions, all domains", False),
    "table-13": tournament_tables.table_13,
    "table-14": method_tables.refined,
    "table-15": stability_table.table_15,
    "table-16": emotion_tables.table_16,
    "kl": _study("kl", "kl", "KL coefficient"),
    "rank": _study("rank", "rank", "Rank of LoRA"),
    "iql": _study("iql", "iql", "Settings of the selector"),
    "emotions": emotion_tables.emotions,
    "matches": emotion_tables.matches,
    "shift": emotion_tables.shift,
    "ratings": tournament_tables.ratings,
    "differences": method_tables.differences,
    "cost": costs.cost_table,
    "policy-cost": policy_cost.policy_cost_table,
}
"""Name -> what makes it; None where the run holds nothing for it."""

HINTS: Mapping[str, str] = {
    **{table: f"ablate.py {study}" for study, made in TABLES_OF.items() for table in made},
    **dict.fromkeys(("table-1", "table-9", "differences"), "evaluate.py"),
    **dict.fromkeys(("table-8", "table-16", "cost"), "sweep.py"),
    **dict.fromkeys(("table-13", "ratings"), "tournament.py"),
    **dict.fromkeys(("table-15", "matches"), "train_iql.py"),
    **dict.fromkeys(("figure-1", "emotions"), "emotion_study.py"),
    "policy-cost": "train_jpo.py",
    "shift": f"evaluate.py --method {TAUGHT}",
}
"""Table -> the script that makes what it is made from."""
