"""Make the student that ships in the package: tokenizer and weights, from simulated dialogues.

    python scripts/pretrain_embedded.py --out /tmp/student

A run takes about forty minutes on two cores; docs/notes.md says how the shipped files were made.
"""

import sys
from pathlib import Path

from emodistill import cli
from emodistill.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    if not (ROOT / "pretraining").is_dir():
        raise InputError(f"{ROOT} has no folder pretraining/: run this script from a checkout.")
    sys.path.insert(0, str(ROOT))
    from pretraining.config import PretrainConfig  # the checkout has only now been put on the path

    config = cli.parse(PretrainConfig, "pretrain", description=__doc__)
    from pretraining.pretrain import make_embedded  # loads jax, which `--help` does without

    print(f"the student is in {make_embedded(config)}")


if __name__ == "__main__":
    cli.run(main)
