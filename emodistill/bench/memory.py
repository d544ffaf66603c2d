"""Memory of a 7B step by kind, from TPU compilers (extra `tpu-aot`); no TPU is needed.

One v6e chip stands in for a single GPU, which can't be compiled for without one: an estimate.
"""

from __future__ import annotations

from typing import Any

from emodistill.bench.report import Measured, result
from emodistill.configs import BenchMemoryConfig, MemoryConfig
from emodistill.stages.memory import GB, plan_memory

ONE, EIGHT = ("v6e:1x1", "1x1x1"), ("v5e:2x4", "1x2x4")
CASES = ((*ONE, 4_096), (*ONE, 16_384), (*EIGHT, 4_096))
UPSTREAM_GB = 19.5
"""Upstream's own estimate for JPO on rows of 2,048 tokens is 19 to 20 GB."""


def run(config: BenchMemoryConfig) -> None:
    """Compile every case for SFT and JPO, print the tables, then the result."""
    found: dict[str, Any] = {}
    for stage in ("sft", "jpo"):
        for topology, mesh, tokens in CASES:
            (plan,) = plan_memory(
                MemoryConfig(
                    model=config.model, stage=stage, topology=topology, mesh=mesh, tokens=tokens
                )
            )
            found[f"{stage} {topology} {mesh} {tokens}"] = {
                kind: size / GB for kind, size in plan.memory._asdict().items()
            } | {"all": plan.memory.total / GB, "compile_s": plan.compile_s}
    ours = Measured("emodistill", [found[f"jpo {ONE[0]} {ONE[1]} 4096"]["all"]])
    peers = [Measured("upstream's estimate, rows of 2,048", [UPSTREAM_GB])]
    extra = {"gb_per_device": found, "is_estimate_for_gpus": True}
    unit = "GB a device, JPO, rows of 4,096, one device"
    print(result(config, unit, ours, peers, extra, is_more_better=False))
