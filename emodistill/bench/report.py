"""What every benchmark ends with: a line for people a figure, and one JSON object."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """The rounds of one contender, in the benchmark's unit."""

    name: str
    rounds: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def text(self) -> str:
        low, high = min(self.rounds), max(self.rounds)
        return f"{self.name:16}{self.median:>10,.3g}   ({low:,.3g} to {high:,.3g})"


def machine() -> str:
    """The processor and how much of it this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def is_default_size(config: Any) -> bool:
    """Whether all but the number of rounds and the peers are as they come."""
    usual = type(config)()
    free = {name: getattr(usual, name) for name in ("rounds", "peers") if hasattr(usual, name)}
    return dataclasses.replace(config, **free) == usual


def result(
    config: Any,
    unit: str,
    ours: Measured,
    peers: Sequence[Measured],
    extra: Mapping[str, Any],
    *,
    is_more_better: bool = True,
) -> str:
    """The last line on stdout.

    `ratio` is ours ÷ peer, or peer ÷ ours where little is good, so that more is always better. At
    another size than the default it is in `extra`.
    """

    def ratio(peer: Measured) -> float | None:
        over, under = (ours, peer) if is_more_better else (peer, ours)
        return over.median / under.median if under.median else None

    ratios = {peer.name: ratio(peer) for peer in peers}
    is_usual = is_default_size(config)
    return json.dumps(
        {
            "name": config.name,
            "unit": unit,
            "ours": ours.median,
            "peers": {peer.name: peer.median for peer in peers},
            "ratio": ratios if is_usual else {},
            "extra": {**extra, **({} if is_usual or not peers else {"ratio": ratios})},
            "rounds": len(ours.rounds),
            "machine": machine(),
        }
    )
