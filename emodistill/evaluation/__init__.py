"""Held-out negotiations and what they say about a method."""

from emodistill.evaluation.bootstrap import (
    Interval,
    bootstrap_ci,
    clustered_ci,
    paired_difference_ci,
)
from emodistill.evaluation.metrics import MethodSummary, summarize

__all__ = [
    "Interval",
    "MethodSummary",
    "bootstrap_ci",
    "clustered_ci",
    "paired_difference_ci",
    "summarize",
]
