"""Tables, figures and the page of a run.

Names are looked up on first use, so that importing the package costs no pandas.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "report": "build",
    "report_study": "build",
    "write_report": "build",
    "RECIPES": "catalogue",
    "Recipe": "recipe",
    "TableContent": "recipe",
    "TableColumn": "report_table",
    "RunData": "run_data",
    "read_run": "run_data",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
