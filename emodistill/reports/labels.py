"""What domains and methods are called in a report, and the order in which they stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from emodistill.domains import DOMAINS

DOMAIN_TITLES = {
    "crad": "CRAD",
    "disaster": "Disaster",
    "hospital": "Hospital",
    "student": "Student",
}
"""Domains as the paper's tables head them."""
PAPER_DOMAIN = "crad"
"""The domain of the paper's experiments that were run in one domain only."""
UNTRAINED, FULLY_TRAINED = "vanilla-slm", "iql+sft+jpo"
"""The student before the first and after the last stage of training."""
REFINEMENTS = ("jpo", "alol", "dpo", "grpo", "ppo")
TRAINED = frozenset({"iql+sft", "iql+jpo", *(f"iql+sft+{stage}" for stage in REFINEMENTS)})
"""Methods whose student is trained; the page and the figures show them in blue."""


def in_order(names: Iterable[str], order: Sequence[str] = DOMAINS) -> list[str]:
    """Names in a given order, unknown ones after them in alphabetical order."""
    return sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))
