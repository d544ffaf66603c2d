"""Make the student of the package: tokenizer and weights, from simulated dialogues.

    python scripts/pretrain_embedded.py --out /tmp/student

It takes less than an hour on two cores. A run that was stopped goes on when it
is called again, and ends with the same files. At the end one table says how well the student
reads its prompt, another how well it places figures in the teacher's words.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the pretraining is part of the checkout, not of the package

import pretraining  # noqa: E402
from emodistill import cli  # noqa: E402
from emodistill.settings import Cell  # noqa: E402
from pretraining.config import PretrainConfig  # noqa: E402


def pretrain(cell: Cell) -> None:
    config = cell.config
    folder = pretraining.make_embedded(config)
    print(f"the student is in {folder}")
    if config.check_scenarios:
        for table in (pretraining.reading_table, pretraining.voice_table):
            print(table(folder, config.check_temperatures, config.check_scenarios))


if __name__ == "__main__":
    cli.main(PretrainConfig, __doc__, pretrain)
