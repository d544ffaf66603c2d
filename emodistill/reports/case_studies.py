"""The case studies as a Markdown file (paper, Appendix Q)."""

from __future__ import annotations

import math
import re

from emodistill.evaluation.cases import (
    best_utterance,
    largest_flip,
    quickest_close,
    selector_difference,
)
from emodistill.offline.judging import scores_by_turn
from emodistill.offline.rewards import FocalTurns
from emodistill.offline.run_files import max_turns
from emodistill.records import Trajectory, Turn
from emodistill.reports.labels import DOMAIN_TITLES, FULLY_TRAINED, in_order
from emodistill.reports.report_table import plain, signed
from emodistill.reports.run_data import RunData
from emodistill.reports.shown_dialogues import outcome_line

STRIPPED = "iql+sft+jpo-stripped"
"""The same adapter without the selector's emotions."""


def cases_markdown(data: RunData) -> str | None:
    """What a run can show, a section a domain; None where it shows nothing."""
    parts = []
    for domain in in_order(data.dialogues.domain.unique()):
        if of_domain := _of_domain(domain, data):
            parts += [f"## {DOMAIN_TITLES[domain]}", *of_domain]
    if not parts:
        return None
    notes = [f"**{data.caveat}**"] if data.caveat else []
    return "\n\n".join(["# Case studies, found by query", *notes, *parts]) + "\n"


def _of_domain(domain: str, data: RunData) -> list[str]:
    sweep = data.records("sweep", domain=domain)
    scores = scores_by_turn(data.judgements.get(domain, ()))
    cap = max_turns(data.run_dir / domain)
    table = FocalTurns.from_trajectories(sweep, scores, max_turns=cap)
    parts: list[str] = []

    def add(title: str, why: str, case, show) -> None:
        if case is not None:
            lines = map(_line, case.turns, map(show, case.values))
            parts.extend([f"### {title}", f"{why} {_where(case.trajectory)}", "\n".join(lines)])

    add(
        "Emotions that close the gap",
        "Of the dialogues with the highest savings the one with the fewest turns; beside each turn "
        "how much of the gap its offer asks for.",
        quickest_close(sweep),
        lambda v: "no offer" if math.isnan(v) else f"{plain(100 * v, 0)} %",
    )
    add(
        "An utterance worth learning",
        "The turn that ranks highest for SFT, by q = r + R/2.",
        best_utterance(sweep, table),
        lambda v: f"q = {plain(v, 2)}",
    )
    add(
        "A turn liked and a turn disliked",
        "The two turns of one dialogue whose advantages, of either sign, are furthest apart.",
        largest_flip(sweep, table),
        lambda v: f"A = {signed(v, 2)}",
    )
    pair = selector_difference(
        *(
            data.records("evaluation", domain=domain, label=name)
            for name in (STRIPPED, FULLY_TRAINED)
        )
    )
    if pair is not None:
        parts += [
            "### The same scenario with the selector and without",
            "The scenario and seed on which the selector gains most; adapter and counterparty are "
            "the same.",
        ]
        for name, dialogue in ((FULLY_TRAINED, pair.after), (STRIPPED, pair.before)):
            parts += [
                f"**{name}**: {_where(dialogue)}",
                "\n".join(map(_line, dialogue.focal_turns)),
            ]
    return parts


def _where(dialogue: Trajectory) -> str:
    return f"`{dialogue.trajectory_id}`: {outcome_line(dialogue)}."


def _line(turn: Turn, value: str | None = None) -> str:
    marks = ", ".join(filter(None, (f"turn {turn.index + 1}", turn.emotion, value)))
    return f"- ({marks}) {_quoted(turn.text)}"


def _quoted(text: str) -> str:
    """An utterance as text, whatever it holds."""
    return "“" + re.sub(r"[\\`*_\[\]<>#|]", r"\\\g<0>", text) + "”"
