"""Stage 2: a language model scores every focal turn of the sweep from 1 to 10.

python scripts/judge.py --domain hospital
python scripts/judge.py --level dialogue
python scripts/judge.py --judge openai:gpt-6-luna --batch
python scripts/judge.py --judge sim-judge --compare openai:gpt-6-luna
python scripts/judge.py --validate --labels labels.csv
"""

from emodistill import cli
from emodistill.configs import JudgeConfig
from emodistill.settings import Cell


def judge(cell: Cell) -> None:
    from emodistill import stages  # --help must not wait for what the stages import

    if cell.config.compare is not None:
        stages.compare_judges(cell.config)
    elif cell.config.validate or cell.config.labels is not None:
        stages.validate_judge(cell.config)
    else:
        print(f"next: {stages.run(cell).next_command}")


if __name__ == "__main__":
    cli.main(JudgeConfig, __doc__, judge)
