"""Stage 3: discrete IQL, or one of its controls, learns which of 28 emotions to express next.

python scripts/train_iql.py --expectile 0.8 --advantage-scale 10
python scripts/train_iql.py --learner cql --num-dialogues 240 --signal utility
"""

from emodistill import cli
from emodistill.configs import IQLConfig

if __name__ == "__main__":
    cli.main(IQLConfig, __doc__)
