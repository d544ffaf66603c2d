"""Stage 2: a language model scores every focal turn of the sweep from 1 to 10.

python scripts/judge.py --domain hospital
python scripts/judge.py --level dialogue
python scripts/judge.py --judge deepseek-chat --compare gpt-4o-mini
"""

from emodistill import cli, stages
from emodistill.configs import JudgeConfig


def main() -> None:
    config = cli.parse(JudgeConfig, "judge", description=__doc__)
    if config.compare is not None:
        stages.compare_judges(config)
    else:
        stages.say_next(stages.judge(config))


if __name__ == "__main__":
    cli.run(main)
