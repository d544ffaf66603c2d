"""Studies: grids of trainings and evaluations, each behind one command and one table.

`run_study` is looked up on first use, so that settings can be read without what runs them.
"""

from __future__ import annotations

from typing import Any

__all__ = ["run_study"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from emodistill.studies import runner

    return getattr(runner, name)
