"""What the endpoint has done, in Prometheus' text format."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""From a small student with its prompt kept to a long queue before a large one."""


class Metric(NamedTuple):
    """A number with its name, its kind and what it says; `emodistill_` goes before the name."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    values: Mapping[str, float]
    """Labels, `status="200"` or nothing -> value."""


class Histogram:
    """How often a duration stayed within each bound."""

    def __init__(self, bounds_s: Sequence[float]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def add(self, duration_s: float) -> None:
        self._counts[bisect.bisect_left(self._bounds_s, duration_s)] += 1
        self._sum_s += duration_s

    def lines(self, name: str) -> list[str]:
        bounds = [*(f"{bound:g}" for bound in self._bounds_s), "+Inf"]
        totals = [*itertools.accumulate(self._counts)]
        buckets = zip(bounds, totals, strict=True)
        return [
            *(f'{name}_bucket{{le="{bound}"}} {total}' for bound, total in buckets),
            f"{name}_sum {self._sum_s:.6f}",
            f"{name}_count {totals[-1]}",
        ]


class Metrics:
    """What is counted where requests are handled."""

    def __init__(self) -> None:
        self.answers: Counter[int] = Counter()
        """Requests to /v1 by the status of their answers."""
        self.first_token_s = Histogram(FIRST_TOKEN_BUCKETS_S)

    def text(self, others: Sequence[Metric]) -> str:
        """All of them, and `others`, which are known elsewhere."""
        answers = {f'status="{status}"': n for status, n in sorted(self.answers.items())}
        answered = Metric("requests_total", "counter", "Requests by HTTP status.", answers)
        lines = []
        for metric in (answered, *others):
            lines += _head(metric.name, metric.kind, metric.help)
            for labels, value in metric.values.items():
                shown = f"{{{labels}}}" if labels else ""
                lines.append(f"emodistill_{metric.name}{shown} {value:.15g}")
        name = "time_to_first_token_seconds"
        lines += _head(name, "histogram", "From a request's arrival to its first token.")
        return "\n".join([*lines, *self.first_token_s.lines(f"emodistill_{name}"), ""])


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP emodistill_{name} {text}", f"# TYPE emodistill_{name} {kind}"]
