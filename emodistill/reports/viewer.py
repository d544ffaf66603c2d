"""The page of a run: one offline HTML file that says in plain words whether the student improved.

Everything in it is escaped by Jinja; the styles and drawings are inside, a content policy forbids
any request, and no script runs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from emodistill.domains import DOMAINS, format_value, get_domain
from emodistill.reports.dialogues import Pair, offer_track, outcome_line
from emodistill.reports.facts import Stage
from emodistill.reports.table import Table, plain, show, signed, spans
from emodistill.reports.tables import STUDENT, TAUGHT, TITLES, TRAINED, Difference

CAVEAT = (
    "These figures come from the built-in simulator. They show the machinery at work and claim "
    "nothing about real models, people or negotiations."
)

LEADING = ("table-1", "differences")
"""Tables with a section of their own on the page."""

INK_VARIABLES = {
    "#1f2328": "var(--ink)",
    "#6a737d": "var(--muted)",
    "#d9dee3": "var(--line)",
    "#ffffff": "var(--card)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--vermillion)",
    "#009e73": "var(--green)",
    "#aa4499": "var(--purple)",
    "#b87a00": "var(--orange)",
}
"""Colours of the figures -> colours of the page, so that a drawing follows light and dark."""


class Tile(NamedTuple):
    """The gain of one domain."""

    domain: str
    num_scenarios: int
    before: float
    after: float
    gain: float
    low: float
    high: float
    verdict: str


class Headline(NamedTuple):
    """The page's first words."""

    title: str
    lead: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the page shows; empty parts are left out. `figures` hold SVG text by name."""

    run_name: str
    tables: Mapping[str, Table]
    differences: Sequence[Difference] = ()
    pairs: Sequence[Pair] = ()
    figures: Mapping[str, str]
    num_domains: int = 0
    num_rankings: int = 0
    num_supports: int = 0
    facts: Sequence[tuple[str, str]] = ()
    stages: Sequence[Stage] = ()
    caveat: str = ""


def headline(differences: Sequence[Difference]) -> Headline:
    """By how much the trained student beats the untrained one, in words that claim no more."""
    tiles = tuple(
        Tile(
            d.domain,
            d.num_scenarios,
            d.baseline_mean,
            d.baseline_mean + d.mean,
            d.mean,
            d.low,
            d.high,
            d.verdict,
        )
        for d in differences
        if (d.method, d.baseline) == (TAUGHT, STUDENT)
    )
    if not tiles:
        return Headline(
            "A run without its two ends",
            f"To say by how much the student got better, evaluate both {STUDENT} and {TAUGHT} on "
            "the same scenarios.",
            (),
        )
    count = {v: sum(tile.verdict == v for tile in tiles) for v in ("higher", "lower", "unclear")}
    total = len(tiles)
    if total == 1:
        (tile,) = tiles
        title = {
            "higher": f"The student got better, by {tile.gain:.1f} points of utility",
            "lower": f"The student got worse, by {-tile.gain:.1f} points of utility",
            "unclear": "The student may not have changed: the interval includes zero",
        }[tile.verdict]
        lead = (
            f"On {tile.num_scenarios} held-out scenarios of {TITLES[tile.domain]}, the trained "
            f"student ({TAUGHT}) wins {plain(tile.after)} % of the gap between the opening "
            f"positions; before training it won {plain(tile.before)} %. The difference, "
            f"{signed(tile.gain)} points, has a 95 % interval of {signed(tile.low)} to "
            f"{signed(tile.high)}, paired by scenario."
        )
        return Headline(title, lead, tiles)
    if count["higher"] == total:
        title = f"The student got better in all {total} domains"
    elif count["higher"]:
        title = f"The student got better in {count['higher']} of {total} domains"
    elif count["lower"]:
        title = f"The student got worse in {count['lower']} of {total} domains"
    else:
        title = f"No clear gain in any of {total} domains"
    others = [
        f"{count['unclear']} can't be told from no change" if count["unclear"] else "",
        f"{count['lower']} got worse" if count["lower"] and count["higher"] else "",
    ]
    lead = (
        f"Change of utility from the untrained student ({STUDENT}) to the trained one ({TAUGHT}) "
        "on the same held-out scenarios, with 95 % intervals paired by scenario."
    )
    if any(others):
        whom = "Of the others" if count["higher"] else "Of these"
        lead += f" {whom}, {' and '.join(filter(None, others))}."
    return Headline(title, lead, tiles)


def inline_svg(text: str, name: str) -> str:
    """A figure's SVG as an element of the page: own ids, the page's colours, no fixed size."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?)\s+height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?)\s+width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"(<svg[^>]*?)>", rf'\1 role="img" aria-label="{name}">', text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    for colour, variable in INK_VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def render(page: Page) -> str:
    """The page as HTML text."""
    from markupsafe import Markup

    figures = {name: Markup(inline_svg(text, name)) for name, text in page.figures.items()}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            css=Markup(_resource("report.css")),
            run_name=page.run_name,
            headline=headline(page.differences),
            caveat=page.caveat,
            tables=page.tables,
            further=[table for name, table in page.tables.items() if name not in LEADING],
            num_domains=page.num_domains,
            pairs=page.pairs,
            figures=figures,
            num_rankings=page.num_rankings,
            num_supports=page.num_supports,
            facts=page.facts,
            stages=page.stages,
            titles=TITLES,
            trained=TRAINED,
            roles={
                name: {
                    "focal": get_domain(name).focal_role,
                    "counterparty": get_domain(name).counterparty_role,
                }
                for name in DOMAINS
            },
        )
    )


def _resource(name: str) -> str:
    return resources.files("emodistill.reports").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": plain,
        "signed": signed,
        "show": show,
        "spans": lambda columns: spans([column.group for column in columns]),
        "value": lambda value, domain: format_value(domain, value),
        "track": offer_track,
        "outcome_line": outcome_line,
    }
    return environment
