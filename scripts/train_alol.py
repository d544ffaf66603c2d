"""In place of JPO: A-LoL, which weights the likelihood of good turns by their advantage.

python scripts/train_alol.py
"""

from emodistill import cli, stages
from emodistill.configs import ALoLConfig


def main() -> None:
    config, base = cli.parse_cell(
        ALoLConfig, "alol", description=__doc__, suits=stages.student_base
    )
    stages.say_next(stages.refine(config, base))


if __name__ == "__main__":
    cli.run(main)
