"""In place of JPO: DPO on pairs of turns with the same scenario, turn index and emotion.

python scripts/train_dpo.py --beta 0.1
"""

from emodistill import cli
from emodistill.configs import DPOConfig

if __name__ == "__main__":
    cli.main(DPOConfig, __doc__)
