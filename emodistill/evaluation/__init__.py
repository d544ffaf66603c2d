"""Held-out negotiations and what they say about a method.

Names are looked up on first use, so that importing the package costs no scipy.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Interval": "bootstrap",
    "bootstrap_ci": "bootstrap",
    "clustered_ci": "bootstrap",
    "paired_difference_ci": "bootstrap",
    "MethodSummary": "metrics",
    "summarize": "metrics",
    "EmotionTest": "comparisons",
    "emotion_tests": "comparisons",
    "holm": "comparisons",
    "paired_p_value": "comparisons",
    "scenario_differences": "comparisons",
    "scenarios_needed": "comparisons",
    "EmotionSequence": "sequences",
    "FeatureShift": "sequences",
    "MatchRate": "sequences",
    "match_rates": "sequences",
    "state_shift": "sequences",
    "top_sequences": "sequences",
    "Stability": "stability",
    "stability_row": "stability",
    "Bout": "ratings",
    "Rating": "ratings",
    "bradley_terry": "ratings",
    "pair_scores": "tournament",
    "tournament_matrix": "tournament",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
