"""What a run's calls have used, stage by stage, beside the paper's cost table (Appendix N)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from emodistill.domains import DOMAINS
from emodistill.llm.usage import Usage
from emodistill.offline.budget import read_usage
from emodistill.offline.judging import judge_path
from emodistill.offline.run_files import OWN
from emodistill.reports.labels import DOMAIN_TITLES
from emodistill.reports.recipe import TableContent
from emodistill.reports.run_data import RunData

STAGES = ("sweep", "judge", "eval")
PAPER_USD = {"sweep": 31.0, "judge": 10.1, "eval": 3.5, "all but re-judging": 44.6}
"""Stage -> dollars of all four domains, with Qwen3.5-Plus at $0.26 and $0.78 a million tokens."""
REJUDGING, PAPER_REJUDGING_USD = "re-judging", 7.0
"""The scores of further judges; the paper's are GPT-4o mini's, which it counts as optional."""


class _Used(NamedTuple):
    domain: str
    stage: str
    name: str
    """The judge, or the method."""
    usage: Usage


def call_costs(data: RunData) -> TableContent:
    """Every count that a run holds, then their sums by stage and over all stages."""
    used = [*_used(data)]
    rows = [
        {"block": "By stage", "domain": DOMAIN_TITLES[domain], "stage": stage, "name": name}
        | usage._asdict()
        for domain, stage, name, usage in used
    ]
    for stage, usd in {**PAPER_USD, REJUDGING: PAPER_REJUDGING_USD}.items():
        summed = (stage,) if stage in (*STAGES, REJUDGING) else STAGES
        if counts := [one.usage for one in used if one.stage in summed]:
            row = {"block": "Sums", "domain": "all", "stage": stage, "name": "", "paper_usd": usd}
            rows.append(row | functools.reduce(Usage.plus, counts)._asdict())
    return TableContent(rows)


def _used(data: RunData) -> Iterator[_Used]:
    """Everything that was used, domains and stages in their order.

    A run's scores are those of the judge that the report is about; where nothing is scored yet, of
    the first one by name.
    """
    for domain in DOMAINS:
        home = data.run_dir / domain
        for path in sorted(data.run_dir.glob(f"{OWN}/*/{domain}/judge/*.usage.json")):
            results = path.with_name(path.name.removesuffix(".usage.json") + ".jsonl")
            yield _Used(domain, "judge", f"{results.stem}, own dialogues", read_usage(results))
        paths = {stage: sorted((home / stage).rglob("*.usage.json")) for stage in STAGES}
        judges = [path.name.removesuffix(".usage.json") for path in paths["judge"]]
        if judgements := data.judgements.get(domain):
            judges.insert(0, judge_path(home / "judge", judgements[0].judge).stem)
        for stage in STAGES:
            for path in paths[stage]:
                results = path.with_name(path.name.removesuffix(".usage.json") + ".jsonl")
                name = {"sweep": "", "judge": results.stem}.get(
                    stage, f"{path.parent.name} {results.stem}".removesuffix(" default")
                )
                is_first = stage != "judge" or name == judges[0]
                yield _Used(domain, stage if is_first else REJUDGING, name, read_usage(results))
