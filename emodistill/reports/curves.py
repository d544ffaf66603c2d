"""The metrics that a training run has logged, as curves over its steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emodistill.errors import InputError
from emodistill.reports.labels import DOMAIN_TITLES
from emodistill.train.metrics_log import read_metrics


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
    for row in read_metrics(path):
        step = row.pop("step")
        for name, value in row.items():
            points.setdefault(name, []).append((step, value))
    metrics = {}
    for name, of_metric in points.items():
        steps, values = np.array(of_metric).T
        metrics[name] = steps, values
    return Curve(domain, stage, cell, metrics)
