"""The page of a run: one offline HTML file that says in plain words whether the student improved.

Everything in it is escaped by Jinja; the styles and drawings are inside, a content policy forbids
any request, and no script runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from emodistill.domains import DOMAINS, format_value, get_domain
from emodistill.reports.figures import COLOURS
from emodistill.reports.labels import (
    DOMAIN_TITLES,
    FULLY_TRAINED,
    TRAINED,
    UNTRAINED,
    in_order,
)
from emodistill.reports.page_facts import run_facts, stage_manifests
from emodistill.reports.report_table import ReportTable, plain, signed, spans
from emodistill.reports.results import by_domain
from emodistill.reports.run_data import RunData
from emodistill.reports.shown_dialogues import offer_track, outcome_line, typical_pair
from emodistill.reports.templates import render

LEADING = ("table-1", "differences")
"""Tables with a section of their own on the page."""


class Headline(NamedTuple):
    """The page's first words."""

    title: str
    lead: str
    gains: Sequence[Mapping[str, Any]]
    """The rows of `results.paired_differences` that it speaks of, one a domain."""


def headline(differences: Sequence[Mapping[str, Any]]) -> Headline:
    """By how much the trained student beats the untrained one, in words that claim no more."""
    gains = [d for d in differences if (d["method"], d["baseline"]) == (FULLY_TRAINED, UNTRAINED)]
    if not gains:
        return Headline(
            "A run without its two ends",
            f"To say by how much the student got better, evaluate both {UNTRAINED} and "
            f"{FULLY_TRAINED} on the same scenarios.",
            gains,
        )
    if len(gains) == 1:
        return Headline(*_of_one_domain(gains[0]), gains)
    readings = [gain["reading"] for gain in gains]
    higher, lower, unclear = map(readings.count, ("higher", "lower", "unclear"))
    total = len(gains)
    if higher == total:
        title = f"The student got better in all {total} domains"
    elif higher:
        title = f"The student got better in {higher} of {total} domains"
    elif lower:
        title = f"The student got worse in {lower} of {total} domains"
    else:
        title = f"No clear gain in any of {total} domains"
    lead = (
        f"Change of utility from the untrained student ({UNTRAINED}) to the trained one "
        f"({FULLY_TRAINED}) on the same held-out scenarios, with 95 % intervals paired by scenario."
    )
    others = [f"{unclear} can't be told from no change"] if unclear else []
    others += [f"{lower} got worse"] if lower and higher else []
    if others:
        whom = "Of the others" if higher else "Of these"
        lead += f" {whom}, {' and '.join(others)}."
    return Headline(title, lead, gains)


def success_rates(data: RunData) -> dict[str, tuple[float, float]]:
    """Domain -> per cent of the talks that end in a deal before training, and after it.

    Those are counted whose scenario both the untrained and the trained student have played.
    """
    rates = {}
    for domain, played in by_domain(data.played_in("evaluation")):
        before, after = (played[played.label == label] for label in (UNTRAINED, FULLY_TRAINED))
        before = before[before.scenario_id.isin(after.scenario_id)]
        after = after[after.scenario_id.isin(before.scenario_id)]
        if len(before):
            rates[domain] = 100 * before.success.mean(), 100 * after.success.mean()
    return rates


def _of_one_domain(gain: Mapping[str, Any]) -> tuple[str, str]:
    points, before = gain["difference"], gain["baseline_mean"]
    title = {
        "higher": f"The student got better, by {points:.1f} points of utility",
        "lower": f"The student got worse, by {-points:.1f} points of utility",
        "unclear": f"Can't tell yet whether the student got better{_more(gain)}",
    }[gain["reading"]]
    lead = (
        f"On {gain['num_scenarios']} held-out scenarios of {DOMAIN_TITLES[gain['block']]}, the "
        f"trained student ({FULLY_TRAINED}) wins {plain(before + points)} % of the gap between the "
        f"opening positions; before training it won {plain(before)} %. The difference, "
        f"{signed(points)} points, has a 95 % interval of {signed(gain['interval_low'])} to "
        f"{signed(gain['interval_high'])}, paired by scenario."
    )
    return title, lead


def _more(gain: Mapping[str, Any]) -> str:
    """How many scenarios would tell, as the end of a sentence; nothing where that is unknown."""
    num_more = gain["num_to_tell"] - gain["num_scenarios"]
    if math.isnan(num_more):
        return ""
    number = f"{num_more:,} more" if num_more > 0 else "more"
    return f"; {number} scenarios would, if the difference stays as it is"


def inline_svg(text: str, name: str) -> str:
    """A figure's SVG as an element of the page: own ids, the page's colours, no fixed size."""
    head, _, rest = text[text.index("<svg") :].partition(">")
    head = re.sub(r'\s+(width|height)="[^"]*"', "", head)
    rest = re.sub(r"<metadata>.*?</metadata>\s*", "", rest, flags=re.S)
    rest = re.sub(r'\bid="|href="#|url\(#', rf"\g<0>{name}-", rest)
    for variable, colour in COLOURS.items():
        rest = rest.replace(colour, f"var(--{variable})")
    return f'{head} role="img" aria-label="{name}">{rest}'


def render_page(
    data: RunData,
    tables: Sequence[ReportTable],
    figures: Mapping[str, str],
    narrow: Sequence[str],
) -> str:
    """The page as HTML text; what a run lacks is left out.

    Args:
      figures: SVG text by name.
      narrow: figures with a single panel, which need half the page's width.
    """
    pairs = [
        typical_pair(
            data.records("evaluation", domain=domain, label=UNTRAINED),
            data.records("evaluation", domain=domain, label=FULLY_TRAINED),
        )
        for domain in in_order(data.dialogues.domain.unique())
    ]
    return render(
        "report.html.j2",
        *(plain, signed, spans, format_value, offer_track, outcome_line),
        css=Markup(Path(__file__).with_name("report.css").read_text(encoding="utf-8")),
        run_name=data.run_dir.resolve().name,
        headline=headline(data.differences),
        success=success_rates(data),
        caveat=data.caveat,
        tables={table.name: table for table in tables},
        further=[table for table in tables if table.name not in LEADING],
        pairs=[pair for pair in pairs if pair],
        figures={name: Markup(inline_svg(text, name)) for name, text in figures.items()},
        narrow=narrow,
        facts=run_facts(data),
        stages=stage_manifests(data.run_dir),
        titles=DOMAIN_TITLES,
        trained=TRAINED,
        domains={name: get_domain(name) for name in DOMAINS},
    )
