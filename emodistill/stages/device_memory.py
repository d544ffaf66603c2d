"""What training needs on each device, as a table for the terminal."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

from emodistill.configs import MemoryConfig
from emodistill.errors import InputError
from emodistill.model.config import read_architecture

if TYPE_CHECKING:
    from emodistill.train.memory_plan import MemoryPlan

GB = 1e9


def plan_memory(config: MemoryConfig) -> list[MemoryPlan]:
    """Compile the step, and further ones where a limit is given; print what they need.

    Returns: the plans, in the order in which they were made.
    """
    from emodistill.train import memory_plan  # JAX

    def plan(tokens: int) -> MemoryPlan:
        where = config.topology or "CPU"
        print(f"plan: compiling a row of {tokens:,} tokens for {where} …", file=sys.stderr)
        return memory_plan.plan_memory(dataclasses.replace(config, tokens=tokens))

    plans = [plan(config.tokens)]
    longest = 0
    if config.fit_gb is not None:
        most = read_architecture(config.model).max_positions
        longest, plans = memory_plan.longest_row(plans[0], config.fit_gb * GB, plan, most)
    print(_title(config, plans[0].mesh))
    print(_table(plans))
    if config.topology is None:
        print(
            "CPUs hold float32, and their compiler is generous with temporaries; name a --topology "
            "(extra `gpu-aot` or `tpu-aot`) for what an accelerator needs."
        )
    if config.fit_gb is not None:
        if not longest:
            # For GPUs the step takes less memory with eight bits than with four (docs/scale.md).
            form = "int8" if plans[0].counts is not None else "nf4"
            raise InputError(
                f"no row fits into {config.fit_gb:g} GB; use more devices (--mesh), --quantize "
                f"{form} or a smaller --model."
            )
        print(f"the longest row that fits into {config.fit_gb:g} GB has {longest:,} tokens.")
    return plans


def _title(config: MemoryConfig, mesh: str) -> str:
    form = config.quantize or ("float32" if config.topology is None else "bfloat16")
    return (
        f"plan: {config.objective} of {config.model} in {form}, LoRA r = {config.lora_rank}, on "
        f"{config.topology or 'CPU'}, mesh {mesh} (data x fsdp x tensor); GB (1e9 bytes) "
        "on each device"
    )


def _table(plans: list[MemoryPlan]) -> str:
    """Kinds of memory down, row lengths across."""
    plans = sorted(plans, key=lambda plan: plan.num_tokens)
    rows = [("tokens of a row", [f"{plan.num_tokens:,}" for plan in plans])]
    for kind in plans[0].memory._fields:
        rows.append((kind, [f"{getattr(plan.memory, kind) / GB:.2f}" for plan in plans]))
    rows.append(("all", [f"{plan.memory.total / GB:.2f}" for plan in plans]))
    rows.append(
        ("trace and compile, s", [f"{plan.trace_s + plan.compile_s:.0f}" for plan in plans])
    )
    rows += _launches(plans)
    return "\n".join(
        f"{name:22}" + "".join(f"{cell:>10}" for cell in cells) for name, cells in rows
    )


def _launches(plans: list[MemoryPlan]) -> list[tuple[str, list[str]]]:
    """What a step of one micro-batch launches on a GPU, as rows of the table."""
    counts = [plan.counts for plan in plans if plan.counts is not None]
    if not counts:
        return []
    rows = [
        ("kernels", [f"{one.num_kernels:,}" for one in counts]),
        ("… of attention", [f"{one.num_attention_kernels:,}" for one in counts]),
    ]
    for kind in sorted({kind for one in counts for kind in one.collectives}):
        found = [one.collectives.get(kind) for one in counts]
        rows.append((kind, [f"{one.number:,}" if one else "0" for one in found]))
        sizes = [f"{one.num_bytes / GB:.2f}" if one else "0" for one in found]
        rows.append(("… GB", sizes))
    return rows
