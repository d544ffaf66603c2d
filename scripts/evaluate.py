"""Stage 5: a method negotiates on the held-out scenarios.

python scripts/evaluate.py --method iql+sft+jpo --num-seeds 5
python scripts/evaluate.py --method iql --focal dashscope:qwen3.5-plus \\
    --counterparty deepseek:deepseek-flash
"""

from emodistill import cli
from emodistill.configs import EvaluateConfig

if __name__ == "__main__":
    cli.main(EvaluateConfig, __doc__)
