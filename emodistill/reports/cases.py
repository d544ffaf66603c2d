"""The case studies as a Markdown file (paper, Appendix Q)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from emodistill.domains import DOMAINS
from emodistill.evaluation.cases import (
    Case,
    SelectorCase,
    best_utterance,
    largest_flip,
    quickest_close,
    selector_difference,
)
from emodistill.offline.judging import scores_by_turn
from emodistill.records import Trajectory, Turn
from emodistill.reports.dialogues import outcome_line
from emodistill.reports.run_data import RunData
from emodistill.reports.table import plain, signed
from emodistill.reports.tables import TAUGHT, TITLES, order_of

WITHOUT = "iql+sft+jpo-stripped"


def cases_markdown(data: RunData) -> str | None:
    """What a run can show, a section a domain; None where it shows nothing."""
    parts = []
    for domain in sorted({*data.trajectories, *data.evaluations}, key=order_of(DOMAINS)):
        found = _of_domain(domain, data)
        if found:
            parts += [f"## {TITLES[domain]}", *found]
    if not parts:
        return None
    notes = [f"**{data.caveat}**"] if data.caveat else []
    return "\n\n".join(["# Case studies, found by query", *notes, *parts]) + "\n"


def _of_domain(domain: str, data: RunData) -> list[str]:
    sweep = data.trajectories.get(domain, ())
    scores = scores_by_turn(data.judgements.get(domain, ()))
    most = data.cap(domain)
    parts = []
    if (closed := quickest_close(sweep)) is not None:
        parts.append(
            _case(
                "Emotions that close the gap",
                "Of the dialogues with the highest savings the one with the fewest turns; beside "
                "each turn how much of the gap its offer asks for.",
                closed,
                ["no offer" if math.isnan(v) else f"{plain(100 * v, 0)} %" for v in closed.values],
            )
        )
    if scores and (said := best_utterance(sweep, scores, max_turns=most)) is not None:
        shown = [f"q = {plain(value, 2)}" for value in said.values]
        text = "The turn that ranks highest for SFT, by q = r + R/2."
        parts.append(_case("An utterance worth learning", text, said, shown))
    if scores and (flip := largest_flip(sweep, scores, max_turns=most)) is not None:
        shown = [f"A = {signed(value, 2)}" for value in flip.values]
        text = "The two turns of one dialogue whose advantages, of either sign, are furthest apart."
        parts.append(_case("A turn liked and a turn disliked", text, flip, shown))
    played = data.evaluations.get(domain, {})
    pair = selector_difference(played.get(TAUGHT, ()), played.get(WITHOUT, ()))
    if pair is not None:
        parts.append(_pair(pair))
    return parts


def _case(title: str, why: str, case: Case, values: Sequence[str]) -> str:
    lines = [_line(turn, value) for turn, value in zip(case.turns, values, strict=True)]
    return "\n\n".join([f"### {title}", f"{why} {_where(case.trajectory)}", "\n".join(lines)])


def _pair(pair: SelectorCase) -> str:
    parts = [
        "### The same scenario with the selector and without",
        "The scenario and seed on which the selector gains most; adapter and counterparty are the "
        "same.",
    ]
    for name, dialogue in ((TAUGHT, pair.with_selector), (WITHOUT, pair.without)):
        lines = [_line(turn, None) for turn in dialogue.focal_turns]
        parts += [f"**{name}**: {_where(dialogue)}", "\n".join(lines)]
    return "\n\n".join(parts)


def _where(dialogue: Trajectory) -> str:
    return f"`{dialogue.trajectory_id}`: {outcome_line(dialogue)}."


def _line(turn: Turn, value: str | None) -> str:
    marks = ", ".join(filter(None, (f"turn {turn.index + 1}", turn.emotion, value)))
    return f"- ({marks}) {_quoted(turn.text)}"


def _quoted(text: str) -> str:
    """An utterance as text, whatever it holds."""
    for character in "\\`*_[]<>#|":
        text = text.replace(character, f"\\{character}")
    return f"“{text}”"
