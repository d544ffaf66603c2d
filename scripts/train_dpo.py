"""In place of JPO: DPO on pairs of turns with the same scenario, turn index and emotion.

python scripts/train_dpo.py --beta 0.1
"""

from emodistill import cli, stages
from emodistill.configs import DPOConfig


def main() -> None:
    config, base = cli.parse_cell(DPOConfig, "dpo", description=__doc__, suits=stages.student_base)
    stages.say_next(stages.refine(config, base))


if __name__ == "__main__":
    cli.run(main)
