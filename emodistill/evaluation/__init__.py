"""Held-out negotiations and what they say about a method.

The intervals are looked up on first use, so that importing the package costs no pandas.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["bootstrap_ci", "clustered_ci", "paired_difference_ci"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.bootstrap"), name)


def __dir__() -> list[str]:
    return __all__
