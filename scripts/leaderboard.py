"""Whoever learns to choose emotions, at equal budgets of training dialogues, on the same held-out
dialogues: IQL, its controls, other systems with emotions.

python scripts/leaderboard.py --budgets 60 240
python scripts/leaderboard.py --targets crad --methods iql cql best-fixed
"""

from emodistill import cli
from emodistill.configs import LeaderboardStudy

if __name__ == "__main__":
    cli.main(LeaderboardStudy, __doc__, cli.run_study)
