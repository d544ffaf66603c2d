"""Fit the weights of the simulated judge anew: what its rubric's points say of a turn's worth.

    python scripts/fit_judge.py --out runs/judge_fit

Some minutes on two cores, most of them for forks; docs/simulator.md says how the shipped weights
came about.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the fitting is part of the checkout, not of the package

import pretraining  # noqa: E402
from emodistill import cli  # noqa: E402
from pretraining.config import JudgeFitConfig  # noqa: E402

if __name__ == "__main__":
    cli.main(JudgeFitConfig, __doc__, lambda cell: pretraining.fit_judge(cell.config))
