"""What is read off the code and the scenarios: what methods learn (7), the data sets (8)."""

from __future__ import annotations

import numpy as np

from emodistill.domains import DOMAINS, get_domain
from emodistill.evaluation.methods import METHODS as KNOWN_METHODS
from emodistill.reports.run_data import RunData, notes
from emodistill.reports.table import Block, Cell, Column, Table
from emodistill.reports.tables import (
    TITLES,
    order_of,
)

EMOTION_WORDS = {
    "none": "no block",
    "neutral": "neutral",
    "random": "uniform",
    "fixed": "one label",
    "iql": "IQL policy",
    "oracle": "the planted best",
}
ADAPTER_WORDS = {
    None: "–",
    "sft": "best quarter by hybrid score",
    "jpo": "turn judge, clipped",
    "alol": "A times likelihood, A > 0",
    "dpo": "pairs of turns",
}


def table_7(data: RunData) -> Table:
    """What each method learns, from the definitions that run it."""
    rows = []
    for name, method in KNOWN_METHODS.items():
        adapters = [stage for stage in method.stages if stage != "iql"]
        rows.append(
            (
                name,
                "language model" if method.writer == "llm" else "student",
                "terminal R(τ)" if method.selector == "iql" else "–",
                ", ".join(ADAPTER_WORDS[stage] for stage in adapters) or "–",
                EMOTION_WORDS[method.selector],
            )
        )
    columns = (
        Column(key="method", title="method"),
        Column(key="writer", title="writer"),
        Column(key="selector", title="selector learns from"),
        Column(key="adapter", title="adapter learns from"),
        Column(key="emotion", title="emotion at inference"),
    )
    return Table(
        name="table-7",
        title="What each method learns",
        columns=columns,
        blocks=(Block(title="", rows=tuple(rows)),),
    )


def table_8(data: RunData) -> Table | None:
    """The data sets: size, direction, quantity."""
    if not data.scenarios:
        return None
    rows: list[tuple[Cell, ...]] = []
    for domain in sorted(data.scenarios, key=order_of(DOMAINS)):
        found = data.scenarios[domain]
        gaps = np.array([s.focal_target - s.counterparty_anchor for s in found])
        is_lower = float(np.mean(gaps < 0))
        sign = "target < anchor" if is_lower > 0.5 else "target > anchor"
        splits = [sum(s.split == name for s in found) for name in ("train", "validation", "test")]
        quantity = f"{get_domain(domain).quantity}, {get_domain(domain).unit}"
        shared = float(np.mean(np.sign(gaps) == np.sign(np.median(gaps))))
        rows.append((TITLES[domain], len(found), *splits, sign, 100 * shared, quantity, 100))
    columns = (
        Column(key="domain", title="data set"),
        Column(key="num_scenarios", title="N"),
        *(Column(key=name, title=name) for name in ("train", "validation", "test")),
        Column(key="gap_sign", title="gap sign"),
        Column(key="gap_sign_share", title="of scenarios %"),
        Column(key="quantity", title="quantity"),
        Column(key="paper_num_scenarios", title="N", group="paper"),
    )
    missing = [TITLES[domain] for domain in DOMAINS if domain not in data.scenarios]
    return Table(
        name="table-8",
        title="Data sets",
        columns=columns,
        blocks=(Block(title="", rows=tuple(rows)),),
        notes=tuple(notes(data, (), missing)),
    )
