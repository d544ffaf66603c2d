"""Stage 2: a language model scores every focal turn of the sweep from 1 to 10.

python scripts/judge.py --domain hospital
python scripts/judge.py --level dialogue
"""

from emodistill import cli, stages
from emodistill.configs import JudgeConfig


def main() -> None:
    stages.say_next(stages.judge(cli.parse(JudgeConfig, "judge", description=__doc__)))


if __name__ == "__main__":
    cli.run(main)
