"""What all benchmarks share: rounds in which the contenders alternate, and the result.

The machine's own figures are Linux's. The last line on stdout is the result as one JSON object.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from emodistill.configs import Config
from emodistill.errors import EmodistillError

Result = TypeVar("Result")
OURS = "emodistill"
GB = 1e9

Figures = Mapping[str, float]
"""What is measured of one contender in one round, by name."""
Rounds = Mapping[str, Sequence[Figures]]
"""Every contender's rounds; ours comes first."""


def alternate(
    contenders: Mapping[str, Callable[[int], Figures]], num_rounds: int, line: str
) -> Rounds:
    """Measure every contender in every round, so that no contender has the machine's best hour.

    Args:
      contenders: by name, each called with the number of the round.
      line: the format in which a round's figures are printed.
    """
    rounds: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(num_rounds):
        for name, measure in contenders.items():
            figures = measure(number)
            rounds[name].append(figures)
            print(f"round {number + 1}, {name}: {line.format(**figures)}", flush=True)
    return rounds


def medians(rounds: Rounds, figure: str) -> dict[str, float]:
    """Every contender's median of one figure."""
    return {name: median(one[figure] for one in figures) for name, figures in rounds.items()}


def report(
    config: Config,
    unit: str,
    rounds: Rounds,
    figure: str,
    extra: Mapping[str, Any],
    *,
    is_more_better: bool = True,
) -> None:
    """Print the median and the range of each contender's `figure`, then the result.

    `ratio` is ours ÷ peer, or peer ÷ ours where less is better, so that more is always better. It
    counts at the default size alone, whatever the peers and the number of rounds; at another size
    it is in `extra`.
    """
    print(unit)
    values = medians(rounds, figure)
    for name, figures in rounds.items():
        each = [one[figure] for one in figures]
        print(f"{name:16}{values[name]:>10,.3g}   ({min(each):,.3g} to {max(each):,.3g})")
    ours = values.pop(OURS)

    def ratio(peer: float) -> float | None:
        over, under = (ours, peer) if is_more_better else (peer, ours)
        return over / under if under else None

    ratios = {name: ratio(peer) for name, peer in values.items()}
    is_default_size = config.identity() == type(config)().identity()
    result = {
        "name": config.stage.removeprefix("bench-"),
        "unit": unit,
        "ours": ours,
        "peers": values,
        "ratio": ratios if is_default_size else {},
        "extra": extra if is_default_size or not values else {**extra, "ratio": ratios},
        "rounds": len(rounds[OURS]),
        "machine": machine(),
    }
    print(json.dumps(result))


def machine() -> str:
    """The processor and how much of it this process may use."""
    named = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    model = named[1] if named else platform.machine()
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def kernel_bytes(path: str, name: str) -> int:
    """One of the kernel's figures, which are in KiB."""
    figure = re.search(rf"^{name}:\s*(\d+)", Path(path).read_text(encoding="ascii"), re.MULTILINE)
    if figure is None:
        raise EmodistillError(f"{path} has no {name}; this benchmark takes Linux.")
    return 1024 * int(figure[1])


def peak_bytes() -> int:
    """The most memory that this process has held so far, files that it mapped included."""
    return kernel_bytes("/proc/self/status", "VmHWM")


def in_own_process(function: Callable[..., Result], *args: object) -> Result:
    """Call a function of some module in a new process, which has loaded nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
