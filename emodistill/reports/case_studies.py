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
from emodistill.offline.run_files import turn_limit
from emodistill.reports.labels import DOMAIN_TITLES, FULLY_TRAINED, in_order
from emodistill.reports.report_table import plain, signed
from emodistill.reports.run_data import RunData
from emodistill.reports.shown_dialogues import outcome_line
from emodistill.reports.templates import render

STRIPPED = "iql+sft+jpo-stripped"
"""The same adapter without the selector's emotions."""


def cases_markdown(data: RunData) -> str | None:
    """What a run can show, a section a domain; None where it shows nothing."""
    domains = {}
    for domain in in_order(data.dialogues.domain.unique()):
        sweep = data.records("sweep", domain=domain)
        turns = FocalTurns.from_trajectories(
            sweep,
            scores_by_turn(data.judgements.get(domain, ())),
            max_turns=turn_limit(data.data_dir / domain).horizon,
        )
        trained, stripped = (
            data.records("evaluation", domain=domain, label=name)
            for name in (FULLY_TRAINED, STRIPPED)
        )
        found = {
            "close": quickest_close(sweep),
            "utterance": best_utterance(sweep, turns),
            "flip": largest_flip(sweep, turns),
            "selector": selector_difference(stripped, trained),
        }
        if any(found.values()):
            domains[DOMAIN_TITLES[domain]] = found
    if not domains:
        return None
    return render(
        "cases.md.j2",
        *(plain, signed, math.isnan, outcome_line, quoted),
        domains=domains,
        caveat=data.caveat,
        methods=(FULLY_TRAINED, STRIPPED),
    )


def quoted(text: str) -> str:
    """An utterance as text, whatever it holds."""
    return "“" + re.sub(r"[\\`*_\[\]<>#|]", r"\\\g<0>", text) + "”"
