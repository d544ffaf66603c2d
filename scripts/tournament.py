"""Methods play each other on the held-out scenarios, each in both roles (Table 13).

python scripts/tournament.py --num-seeds 5
python scripts/tournament.py --methods vanilla-llm random iql+sft --num-scenarios 6
"""

from emodistill import cli
from emodistill.configs import TournamentConfig
from emodistill.settings import Cell


def tournament(cell: Cell) -> None:
    from emodistill import stages  # --help must not wait for what the stages import

    print(f"next: {stages.tournament(cell.config, cell.settings).next_command}")


if __name__ == "__main__":
    cli.main(TournamentConfig, __doc__, tournament)
