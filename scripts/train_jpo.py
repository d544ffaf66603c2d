"""Stage 4b: Judge Policy Optimization of the student's adapter.

python scripts/train_jpo.py --kappa 0.5
python scripts/train_jpo.py --reference base
"""

from emodistill import cli
from emodistill.configs import JPOConfig

if __name__ == "__main__":
    cli.main(JPOConfig, __doc__)
