"""Forecast before spending.

What a sweep and its judging will take, from a few dialogues that the sweep then uses:

    python scripts/plan.py sweep --domain hospital
    DASHSCOPE_API_KEY=… python scripts/plan.py sweep --provider dashscope --pilot 160

What a training step needs on each device, without weights and without the device:

    python scripts/plan.py memory --model qwen2.5-7b --topology v5e:2x4 --mesh 1x2x4 --tokens 4096
    python scripts/plan.py memory --model qwen2.5-1.5b --topology v6e:1x1 --fit-gb 24
"""

import sys

from emodistill import cli, stages
from emodistill.configs import MemoryConfig, PlanConfig
from emodistill.errors import InputError


def main() -> None:
    name, *args = sys.argv[1:] or ["sweep"]
    if name.startswith("-"):
        name, args = "sweep", sys.argv[1:]
    if name == "memory":
        stages.plan_memory(cli.parse(MemoryConfig, "memory", description=__doc__, args=args))
    elif name == "sweep":
        stages.plan(cli.parse(PlanConfig, "sweep", description=__doc__, args=args))
    else:
        raise InputError(f"plan.py {name}: what can be planned is a `sweep` or the `memory`.")


if __name__ == "__main__":
    cli.run(main)
