"""Stage 4b: Judge Policy Optimization of the student's adapter.

python scripts/train_jpo.py --kappa 0.5
python scripts/train_jpo.py --reference base
"""

from emodistill import cli, stages
from emodistill.configs import JPOConfig


def main() -> None:
    config, base = cli.parse_cell(JPOConfig, "jpo", description=__doc__, suits=stages.student_base)
    stages.say_next(stages.refine(config, base))


if __name__ == "__main__":
    cli.run(main)
