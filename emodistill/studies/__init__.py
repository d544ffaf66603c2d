"""All stages in order, and grids of them: the quickstart, and the studies behind the tables.

The names are looked up on first use, so that `--help` doesn't load what they run.
"""

from importlib import import_module
from typing import Any

_HOMES = {"quickstart": "pipeline", "run_study": "arm_runner"}

__all__ = ["quickstart", "run_study"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
