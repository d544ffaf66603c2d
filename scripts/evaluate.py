"""Stage 5: a method negotiates on the held-out scenarios.

python scripts/evaluate.py --method iql+sft+jpo --num-seeds 5
python scripts/evaluate.py --method iql+sft --provider deepseek --counterparty deepseek-chat
"""

from emodistill import cli, stages
from emodistill.configs import EvaluateConfig


def main() -> None:
    config, base = cli.parse_cell(EvaluateConfig, "evaluate", description=__doc__)
    stages.say_next(stages.evaluate(config, base))


if __name__ == "__main__":
    cli.run(main)
