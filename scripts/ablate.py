"""An ablation of the paper, from whatever the run holds to its table.

    python scripts/ablate.py kappa
    python scripts/ablate.py transfer --selector target
    python scripts/ablate.py counterparty --focal dashscope:qwen3.5-plus \\
        --counterparties deepseek:deepseek-flash openai:gpt-6-luna
"""

from emodistill import cli
from emodistill.configs import ABLATIONS

if __name__ == "__main__":
    cli.main(ABLATIONS, __doc__, cli.run_study)
