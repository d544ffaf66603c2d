"""Stage 3: discrete IQL learns which of 28 emotions to express next.

python scripts/train_iql.py --expectile 0.8 --advantage-scale 10
"""

from emodistill import cli, stages
from emodistill.configs import IQLConfig


def main() -> None:
    config, base = cli.parse_cell(IQLConfig, "iql", description=__doc__)
    stages.say_next(stages.iql(config, base))


if __name__ == "__main__":
    cli.run(main)
