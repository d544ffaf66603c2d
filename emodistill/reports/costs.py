"""What a run's calls have used, stage by stage, beside the paper's cost table (Appendix N)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emodistill.domains import DOMAINS
from emodistill.llm.client import Usage
from emodistill.offline.budget import read_usage
from emodistill.reports.run_data import RunData, notes
from emodistill.reports.table import Block, Column, Table
from emodistill.reports.tables import TITLES

PAPER_USD = {"sweep": 31.0, "judge": 10.1, "eval": 3.5}
"""All four domains together, with Qwen3.5-Plus at $0.26 and $0.78 per million tokens."""

NOTE = (
    "Counted call by call, those that were repeated or came to nothing included; tokens are what "
    "the servers reported. Beside it the paper's own figures for its four domains (Appendix N)."
)


class Cost(NamedTuple):
    """One stage's use of one file of results."""

    domain: str
    stage: str
    """`sweep`, `judge` or `eval`."""
    name: str
    """The judge, or the method and its cell; empty for the sweep."""
    usage: Usage


def read_costs(run_dir: Path) -> list[Cost]:
    """Every count that a run holds, domains and stages in their order."""
    found = []
    for domain in DOMAINS:
        for stage in PAPER_USD:
            for path in sorted((run_dir / domain / stage).rglob("*.usage.json")):
                results = path.with_name(path.name.removesuffix(".usage.json") + ".jsonl")
                name = {"sweep": "", "judge": results.stem}.get(
                    stage, f"{path.parent.name} {results.stem}".removesuffix(" default")
                )
                found.append(Cost(domain, stage, name, read_usage(results)))
    return found


def sums(costs: Sequence[Cost]) -> list[tuple[str, Usage, float]]:
    """(stage, what it used over all domains, the paper's dollars), and of all stages in the end."""
    found = [
        (stage, _sum([cost.usage for cost in costs if cost.stage == stage]), usd)
        for stage, usd in PAPER_USD.items()
        if any(cost.stage == stage for cost in costs)
    ]
    return [*found, ("", _sum([cost.usage for cost in costs]), sum(PAPER_USD.values()))]


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage._make(map(sum, zip(*usages, strict=True)))


def _counts(usage: Usage) -> tuple[float, ...]:
    """All but the seconds, which no two runs have in common."""
    return usage[:-1]


COST_COLUMNS = (
    Column(key="domain", title="domain"),
    Column(key="stage", title="stage"),
    Column(key="name", title="what"),
    Column(key="num_calls", title="calls"),
    Column(key="num_retries", title="repeated"),
    Column(key="prompt_tokens", title="prompt tokens"),
    Column(key="completion_tokens", title="completion tokens"),
    Column(key="cost_usd", title="USD", digits=2),
    Column(key="paper_usd", title="USD, four domains", digits=2, group="paper"),
)


def cost_table(data: RunData) -> Table | None:
    """What the calls used (Appendix N)."""
    used = read_costs(data.run_dir)
    if not used:
        return None
    rows = [(TITLES[c.domain], c.stage, c.name, *_counts(c.usage), None) for c in used]
    total = [("all", stage, "", *_counts(usage), usd) for stage, usage, usd in sums(used)]
    return Table(
        name="cost",
        title="Cost of the calls",
        columns=COST_COLUMNS,
        blocks=(Block(title="By stage", rows=tuple(rows)), Block(title="Sums", rows=tuple(total))),
        notes=(NOTE, *notes(data, (), ())),
    )
