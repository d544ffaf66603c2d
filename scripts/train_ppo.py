"""In place of JPO, on-policy: the student plays, is judged, and learns from its own turns by PPO.

python scripts/train_ppo.py
python scripts/train_ppo.py --signal utility --gae-lambda 1
"""

from emodistill import cli
from emodistill.configs import PPOConfig

if __name__ == "__main__":
    cli.main(PPOConfig, __doc__)
