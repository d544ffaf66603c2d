"""Stage 1: two language models negotiate, the focal one under random emotions.

python scripts/sweep.py --domain hospital --concurrency 6
DASHSCOPE_API_KEY=… python scripts/sweep.py --provider dashscope --max-cost-usd 10
"""

from emodistill import cli
from emodistill.configs import SweepConfig

if __name__ == "__main__":
    cli.main(SweepConfig, __doc__)
