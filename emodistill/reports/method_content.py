"""What tables of methods and of studies show: Tables 1 to 6, 9 to 12 and 14, and differences."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import pandas as pd

from emodistill.configs import DEFAULT_CELL, METHODS
from emodistill.domains import DOMAINS
from emodistill.reports.labels import DOMAIN_TITLES, PAPER_DOMAIN
from emodistill.reports.recipe import TableContent
from emodistill.reports.results import differences_from, method_rows
from emodistill.reports.run_data import RunData, arm_block

REFINED = ("iql+sft+alol", "iql+sft+jpo", "iql+sft+dpo")
FREE_TRAINED = ("free-sft", "free-jpo", "free-sft+jpo")
FREE = ("vanilla-slm-free", *FREE_TRAINED, "iql+sft+jpo", "iql+sft+jpo-stripped")


def all_methods(data: RunData) -> TableContent:
    """Table 1: every method that has been evaluated."""
    frame = data.played_in("evaluation")
    return TableContent(
        data.method_rows,
        players_of=frame,
        missing=_missing_methods(data, frame, METHODS),
        notes=_learned_from_own(data, frame),
    )


def _learned_from_own(data: RunData, frame: pd.DataFrame) -> list[str]:
    """Says which students have learned from other dialogues than those of the sweep."""
    found = []
    for (domain, label), played in frame.groupby(["domain", "label"], sort=False):
        stage = str(label).partition(" ")[0].rpartition("+")[2]
        cell = played.dialogue.iloc[0].focal.cells.get(stage, DEFAULT_CELL)
        if (own := data.own_dialogues(domain, stage, cell)) is not None:
            found.append(f"{label} in {DOMAIN_TITLES[domain]} ({len(own.dialogues):,})")
    if not found:
        return []
    return [
        "Refined on dialogues that the SFT student has played on training scenarios, not on the "
        f"sweep's: {'; '.join(found)}."
    ]


def of_methods(
    table: str,
    methods: Sequence[str],
    *,
    needs: Collection[str] = (),
    only_paper_domain: bool = False,
) -> Callable[[RunData], TableContent]:
    """The content of a table of some methods, in their order.

    Args:
      needs: leaves out domains in which none of these methods has been evaluated.
      only_paper_domain: shows the paper's domain alone, or the first one where that is missing.
    """

    def content(data: RunData) -> TableContent:
        frame = data.played_in("evaluation")
        domains = {*frame.domain[frame.label.isin(needs)]} if needs else {*frame.domain}
        if only_paper_domain:
            domains &= {PAPER_DOMAIN} if PAPER_DOMAIN in {*frame.domain} else {*frame.domain[:1]}
        frame = frame.query("domain in @domains and label in @methods")
        order = [*DOMAINS, *methods]
        frame = frame.sort_values(["domain", "label"], key=lambda column: column.map(order.index))
        return TableContent(
            method_rows(table, frame, *data.statistics),
            players_of=frame,
            missing=_missing_methods(data, frame, methods),
        )

    return content


def against_other_run(data: RunData) -> TableContent:
    """This run's methods less another run's of the same names."""
    if data.against is None:
        return TableContent([])
    frame = data.played_in("evaluation")
    rows = differences_from(frame, data.against, data.resampling)
    return TableContent(rows, players_of=frame)


def _missing_methods(data: RunData, frame: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    evaluated = {*zip(frame.domain, frame.label, strict=True)}
    return [
        f"{method} in {DOMAIN_TITLES[domain]}"
        for domain in frame.domain.unique()
        for method in methods
        if (domain, method) not in evaluated
    ] + [
        f"some dialogues of {method} in {DOMAIN_TITLES[domain]} (go on with {command})"
        for (domain, method), command in data.unfinished.items()
        if (domain, method) in evaluated
    ]


def of_study(table: str, study: str) -> Callable[[RunData], TableContent]:
    """The content of a table of a study's arms."""

    def content(data: RunData) -> TableContent:
        frame = data.played_in("study", study=study)
        missing = data.unplayed(study) + [
            f"{arm_block(arm)} {arm.label} with other settings, so that its row is of those before "
            f"({arm.reason.rstrip('.')})"
            for arm in data.arms.get(study, ())
            if arm.reason and arm.path in {*frame.arm}
        ]
        return TableContent(
            method_rows(table, frame, *data.statistics), players_of=frame, missing=missing
        )

    return content
