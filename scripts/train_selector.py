"""A selector of related work learns which emotion to express from dialogues that it plays.

python scripts/train_selector.py --method evoemo --dialogues 240
python scripts/train_selector.py --method emomas --faults no_history
python scripts/train_selector.py --method eq-negotiator --focal dashscope:qwen3.5-plus \\
    --counterparty deepseek:deepseek-flash --reader deepseek:deepseek-flash
"""

from emodistill import cli
from emodistill.configs import SelectorConfig

if __name__ == "__main__":
    cli.main(SelectorConfig, __doc__)
