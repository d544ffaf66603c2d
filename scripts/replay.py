"""What a recorded turn is worth, or another emotion in its place: forks of the sweep's dialogues.

python scripts/replay.py --num-turns 100 --continuations 16
python scripts/replay.py --turn crad/debt_001/seed_0007#4
python scripts/replay.py --continue student --method iql+sft
python scripts/replay.py --emotions all --num-turns 40 --continuations 4
python scripts/replay.py --num-turns 1600 --scores truth
"""

from emodistill import cli
from emodistill.configs import ReplayConfig

if __name__ == "__main__":
    cli.main(ReplayConfig, __doc__)
