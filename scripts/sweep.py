"""Stage 1: two language models negotiate, the focal one under random emotions.

python scripts/sweep.py --domain hospital --concurrency 6
DASHSCOPE_API_KEY=… python scripts/sweep.py --provider dashscope --max-cost-usd 10
"""

from emodistill import cli, stages
from emodistill.configs import SweepConfig


def main() -> None:
    stages.say_next(stages.sweep(cli.parse(SweepConfig, "sweep", description=__doc__)))


if __name__ == "__main__":
    cli.run(main)
