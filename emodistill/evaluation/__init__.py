"""Held-out negotiations and what they say about a method.

Names are looked up on first use, so that importing the package costs no scipy.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "bootstrap_ci": "bootstrap",
    "clustered_ci": "bootstrap",
    "paired_difference_ci": "bootstrap",
    "summarize": "metrics",
    "emotion_tests": "comparisons",
    "paired_p_value": "comparisons",
    "bradley_terry": "ratings",
    "get_method": "methods",
    "run_matches": "matches",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
