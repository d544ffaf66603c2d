"""Make the student that ships in the package: tokenizer and weights, from simulated dialogues.

    python scripts/pretrain_embedded.py --out /tmp/student

A run takes about forty minutes on two cores; docs/notes.md says how the shipped files were made.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the pretraining is part of the checkout, not of the package

from emodistill import cli  # noqa: E402
from emodistill.settings import Cell  # noqa: E402
from pretraining.config import PretrainConfig  # noqa: E402


def pretrain(cell: Cell) -> None:
    from pretraining.pretrain import make_embedded  # JAX, which --help does without

    print(f"the student is in {make_embedded(cell.config)}")


if __name__ == "__main__":
    cli.main(PretrainConfig, __doc__, pretrain)
