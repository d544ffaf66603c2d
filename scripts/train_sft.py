"""Stage 4a: a LoRA adapter imitates the best quarter of the sweep's turns.

python scripts/train_sft.py --top-fraction 0.1
python scripts/train_sft.py --model /path/to/Qwen2.5-7B-Instruct
"""

from emodistill import cli, stages
from emodistill.configs import SFTConfig


def main() -> None:
    config, base = cli.parse_cell(SFTConfig, "sft", description=__doc__, suits=stages.student_base)
    stages.say_next(stages.sft(config, base))


if __name__ == "__main__":
    cli.run(main)
