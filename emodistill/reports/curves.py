"""The metrics that a training run has logged, as curves over its steps."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emodistill.errors import InputError
from emodistill.reports.labels import DOMAIN_TITLES


class Curve(NamedTuple):
    """The metrics of one training run: name -> (steps, values)."""

    domain: str
    stage: str
    cell: str
    metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def name(self) -> str:
        """The domain, and what is special about the cell."""
        title = DOMAIN_TITLES.get(self.domain, self.domain)
        special = re.sub(r"-[0-9a-f]{4}$", "", self.cell)
        return title if self.cell == "default" else f"{title} {special}"


def read_curve(path: Path) -> Curve:
    """Read `<run>/<domain>/<stage>/<cell>/metrics.jsonl`; lines hold `step` and numbers.

    A last line torn by a kill is left out; any other unreadable line raises InputError.
    """
    domain, stage, cell = path.parts[-4:-1]
    if not path.is_file():
        raise InputError(f"{path} is missing; train that stage first.")
    points: dict[str, list[tuple[float, float]]] = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = float(row.pop("step"))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path}:{number}: not a line of metrics ({error!r}).") from None
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                points.setdefault(name, []).append((step, float(value)))
    columns = {name: np.array(of_metric).T for name, of_metric in points.items()}
    metrics = {name: (steps, values) for name, (steps, values) in columns.items()}
    return Curve(domain, stage, cell, metrics)
