"""In place of JPO, on-policy: the student plays, is judged, and learns from its own turns by GRPO.

python scripts/train_grpo.py
python scripts/train_grpo.py --signal utility --num-rounds 30 --max-minutes 60
"""

from emodistill import cli
from emodistill.configs import GRPOConfig

if __name__ == "__main__":
    cli.main(GRPOConfig, __doc__)
