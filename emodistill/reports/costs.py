"""What a run's calls have used, stage by stage, beside the paper's cost table (Appendix N)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emodistill.domains import DOMAINS
from emodistill.llm.client import Usage
from emodistill.offline.budget import read_usage

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
