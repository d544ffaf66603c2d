"""What a run's calls have used, stage by stage, beside the paper's cost table (Appendix N)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from emodistill.domains import DOMAINS
from emodistill.llm.usage import Usage
from emodistill.offline.budget import read_usage
from emodistill.reports.labels import DOMAIN_TITLES
from emodistill.reports.recipe import TableContent
from emodistill.reports.run_data import RunData

PAPER_USD = {"sweep": 31.0, "judge": 10.1, "eval": 3.5}
"""Stage -> dollars of all four domains, with Qwen3.5-Plus at $0.26 and $0.78 a million tokens."""


def call_costs(data: RunData) -> TableContent:
    """Every count that a run holds, then their sums by stage and over all stages."""
    used = [*_used(data.run_dir)]
    rows = [
        {"block": "By stage", "domain": DOMAIN_TITLES[domain], "stage": stage, "name": name}
        | usage._asdict()
        for domain, stage, name, usage in used
    ]
    for stage, usd in {**PAPER_USD, "": sum(PAPER_USD.values())}.items():
        counts = [usage for _, s, _, usage in used if stage in (s, "")]
        if counts:
            row = {"block": "Sums", "domain": "all", "stage": stage, "name": "", "paper_usd": usd}
            rows.append(row | functools.reduce(Usage.plus, counts)._asdict())
    return TableContent(rows)


def _used(run_dir: Path) -> Iterator[tuple[str, str, str, Usage]]:
    """(domain, stage, judge or method, what was used), domains and stages in their order."""
    for domain in DOMAINS:
        for stage in PAPER_USD:
            for path in sorted((run_dir / domain / stage).rglob("*.usage.json")):
                results = path.with_name(path.name.removesuffix(".usage.json") + ".jsonl")
                name = {"sweep": "", "judge": results.stem}.get(
                    stage, f"{path.parent.name} {results.stem}".removesuffix(" default")
                )
                yield domain, stage, name, read_usage(results)
