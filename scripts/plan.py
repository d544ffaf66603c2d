"""Forecast what a sweep and its judging will take, from a few dialogues that the sweep then uses.

python scripts/plan.py sweep --domain hospital
DASHSCOPE_API_KEY=… python scripts/plan.py sweep --provider dashscope --pilot 160
"""

import sys

from emodistill import cli, stages
from emodistill.configs import PlanConfig
from emodistill.errors import InputError


def main() -> None:
    args = sys.argv[1:]
    if args and not args[0].startswith("-") and args.pop(0) != "sweep":
        raise InputError(f"plan.py {sys.argv[1]}: what can be planned is a `sweep`.")
    stages.plan(cli.parse(PlanConfig, "sweep", description=__doc__, args=args))


if __name__ == "__main__":
    cli.run(main)
