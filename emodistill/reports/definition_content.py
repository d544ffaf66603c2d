"""What is read off the code and the scenarios: what methods learn (7), the data sets (8)."""

from __future__ import annotations

import numpy as np

from emodistill.domains import DOMAINS, get_domain
from emodistill.evaluation.methods import METHODS
from emodistill.offline.run_files import SCENARIOS
from emodistill.offline.store import read_scenarios
from emodistill.reports.labels import DOMAIN_TITLES
from emodistill.reports.recipe import TableContent
from emodistill.reports.run_data import RunData

EMOTION_WORDS = {
    "none": "no block",
    "neutral": "neutral",
    "random": "uniform",
    "fixed": "one label",
    "iql": "IQL policy",
    "oracle": "the planted best",
}
ADAPTER_WORDS = {
    "sft": "best quarter by hybrid score",
    "jpo": "turn judge, clipped",
    "alol": "A times likelihood, A > 0",
    "grpo": "clipped surrogate on own turns, A within the group",
    "ppo": "clipped surrogate on own turns, A by a critic",
    "dpo": "pairs of turns",
}
SPLITS = ("train", "validation", "test")


def method_definitions(_: RunData) -> TableContent:
    """Table 7: what each method learns, from the definitions that run it."""
    return TableContent(
        [
            {
                "method": name,
                "writer": "language model" if method.writer == "llm" else "student",
                "selector": "terminal R(τ)" if method.selector == "iql" else "–",
                "adapter": ", ".join(ADAPTER_WORDS[s] for s in method.stages if s != "iql") or "–",
                "emotion": EMOTION_WORDS[method.selector],
            }
            for name, method in METHODS.items()
        ]
    )


def data_sets(data: RunData) -> TableContent:
    """Table 8: size, direction and quantity of each domain's scenarios."""
    rows = []
    files = data.files(SCENARIOS)
    for domain, path in files.items():
        scenarios = read_scenarios(path)
        gaps = np.array([s.focal_target - s.counterparty_anchor for s in scenarios])
        is_lower = float(np.mean(gaps < 0)) > 0.5
        shared = float(np.mean(np.sign(gaps) == np.sign(np.median(gaps))))
        rows.append(
            {
                "domain": DOMAIN_TITLES[domain],
                "num_scenarios": len(scenarios),
                **{split: sum(s.split == split for s in scenarios) for split in SPLITS},
                "gap_sign": "target < anchor" if is_lower else "target > anchor",
                "gap_sign_share": 100 * shared,
                "quantity": f"{get_domain(domain).quantity}, {get_domain(domain).unit}",
                "paper_num_scenarios": 100,
            }
        )
    missing = [DOMAIN_TITLES[domain] for domain in DOMAINS if domain not in files]
    return TableContent(rows, missing=missing)
