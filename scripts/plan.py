"""Forecast before spending.

What a sweep and its judging will take, from a few dialogues that the sweep then uses:

    python scripts/plan.py sweep --domain hospital
    DASHSCOPE_API_KEY=… python scripts/plan.py sweep --provider dashscope --pilot 160

What a training step needs on each device, without weights and without the device:

    python scripts/plan.py memory --model qwen2.5-7b --topology v5e:2x4 --mesh 1x2x4 --tokens 4096
    python scripts/plan.py memory --model qwen2.5-1.5b --topology v6e:1x1 --fit-gb 24
"""

import sys

from emodistill import cli
from emodistill.configs import MemoryConfig, PlanConfig
from emodistill.settings import Cell


def plan(cell: Cell) -> None:
    from emodistill import stages  # --help must not wait for what the stages import

    if isinstance(cell.config, MemoryConfig):
        stages.plan_memory(cell.config)
    else:
        stages.plan(cell)


if __name__ == "__main__":
    sys.argv[1:] = sys.argv[1:] or ["sweep"]
    cli.main({"sweep": PlanConfig, "memory": MemoryConfig}, __doc__, plan)
