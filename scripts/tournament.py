"""Methods play each other on the held-out scenarios, each in both seats (Table 13).

python scripts/tournament.py --num-seeds 5
python scripts/tournament.py --methods vanilla-llm random iql+sft --num-scenarios 6
"""

from emodistill import cli, stages
from emodistill.configs import TournamentConfig


def main() -> None:
    config = cli.parse(TournamentConfig, "tournament", description=__doc__)
    stages.say_next(stages.tournament(config))


if __name__ == "__main__":
    cli.run(main)
