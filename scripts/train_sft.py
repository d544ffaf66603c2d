"""Stage 4a: a LoRA adapter imitates the best quarter of the sweep's turns.

python scripts/train_sft.py --top-fraction 0.1
python scripts/train_sft.py --model /path/to/Qwen2.5-7B-Instruct
"""

from emodistill import cli
from emodistill.configs import SFTConfig

if __name__ == "__main__":
    cli.main(SFTConfig, __doc__)
