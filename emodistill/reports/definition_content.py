"""What is read off the code and the scenarios: what methods learn (7), the data sets (8)."""

from __future__ import annotations

import numpy as np

from emodistill.domains import DOMAINS, get_domain
from emodistill.evaluation.methods import METHODS, Method
from emodistill.offline.run_files import SCENARIOS
from emodistill.offline.store import read_scenarios
from emodistill.reports.labels import DOMAIN_TITLES
from emodistill.reports.recipe import TableContent
from emodistill.reports.run_data import RunData

EMOTION_WORDS = {
    "none": "no block",
    "neutral": "neutral",
    "random": "uniform",
    "random-7": "uniform over seven",
    "fixed": "one label",
    "iql": "IQL policy",
    "trained": "a system of related work",
    "oracle": "the planted best",
}
LEARNER_WORDS = {
    "cloning": "the sweep's own",
    "cql": "largest Q (CQL)",
    "dqn": "largest Q (double Q)",
    "bandit": "Thompson's draw",
    "best-fixed": "one label",
}
"""What IQL's controls choose by."""
ADAPTER_WORDS = {
    "sft": "best quarter by hybrid score",
    "jpo": "turn judge, clipped",
    "alol": "A times likelihood, A > 0",
    "grpo": "clipped surrogate on own turns, A within the group",
    "ppo": "clipped surrogate on own turns, A by a critic",
    "dpo": "pairs of turns",
}
SELECTOR_WORDS = {"iql": "terminal R(τ)", "trained": "dialogues of its own"}
SPLITS = ("train", "validation", "test")


def method_definitions(_: RunData) -> TableContent:
    """Table 7: what each method learns, from the definitions that run it."""
    rows = []
    for name, method in METHODS.items():
        adapters = [ADAPTER_WORDS[s] for s in method.stages if s != method.selector_stage]
        rows.append(
            {
                "method": name,
                "writer": "language model" if method.writer == "llm" else "student",
                "selector": SELECTOR_WORDS.get(method.selector, "–"),
                "adapter": ", ".join(adapters) or "–",
                "emotion": _emotion_words(method),
            }
        )
    return TableContent(rows)


def _emotion_words(method: Method) -> str:
    """Who picks a method's emotions."""
    training = method.settings.get("iql", {})
    words = LEARNER_WORDS.get(training.get("learner", ""), EMOTION_WORDS[method.selector])
    return f"{words}, of seven" if training.get("emotions") == "ekman" else words


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
