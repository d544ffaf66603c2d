"""What a training would learn from, checked before it takes hours; writes nothing.

    python scripts/preflight.py jpo --kappa 0.5
    python scripts/preflight.py sft --run runs/qwen --model /path/to/Qwen2.5-7B-Instruct

Takes the flags of train_sft.py, train_jpo.py, train_alol.py or train_dpo.py. Exit code 0 if all is
well, 3 if a check found a problem, 2 if something can't be used at all.
"""

import sys

from emodistill import cli
from emodistill.configs import PREFLIGHTS
from emodistill.settings import Cell

PROBLEM_CODE = 3


def preflight(cell: Cell) -> None:
    from emodistill.stages import preflight as checks  # --help must not wait for JAX

    if not checks.preflight(cell):
        raise SystemExit(PROBLEM_CODE)


if __name__ == "__main__":
    sys.argv[1:] = sys.argv[1:] or ["jpo"]
    cli.main(PREFLIGHTS, __doc__, preflight)
