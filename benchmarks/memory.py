"""Memory of a 7B step by kind, from the compiler for H100s (extra `gpu-aot`); no GPU is needed."""

from __future__ import annotations

import itertools
from typing import Literal

from benchmarks.configs import MemoryBenchmark
from benchmarks.rounds import GB, OURS, report
from emodistill.configs import MemoryConfig
from emodistill.train.memory_plan import plan_memory

CASES = (
    ("h100:1", "1x1x1", 4_096),
    ("h100:1", "1x1x1", 16_384),
    ("h100:8", "1x2x4", 4_096),
)
"""(topology, mesh, tokens of a row); the first is the result."""
UPSTREAM_GB = 19.5
"""Upstream's own estimate for JPO on rows of 2,048 tokens is 19 to 20 GB."""


def run(config: MemoryBenchmark) -> None:
    """Compile every case for SFT and JPO, print a line each, then the result."""
    gb: dict[str, dict[str, float]] = {}
    objectives: tuple[Literal["sft", "jpo"], ...] = ("sft", "jpo")
    for objective, (topology, mesh, tokens) in itertools.product(objectives, CASES):
        settings = MemoryConfig(
            model=config.model, objective=objective, topology=topology, mesh=mesh, tokens=tokens
        )
        plan = plan_memory(settings)
        figures = {kind: size / GB for kind, size in plan.memory._asdict().items()}
        figures |= {"all": plan.memory.total / GB, "compile_s": plan.compile_s}
        case = f"{objective} {topology} {mesh} {tokens}"
        gb[case] = figures
        print(f"{case}: {figures['all']:.2f} GB a device", flush=True)
    rounds = {
        OURS: [list(gb.values())[len(CASES)]],  # JPO's first case
        "upstream's estimate, rows of 2,048": [{"all": UPSTREAM_GB}],
    }
    extra = {"gb_per_device": gb}
    unit = "GB a device, JPO, rows of 4,096, one device"
    report(config, unit, rounds, "all", extra, is_more_better=False)
