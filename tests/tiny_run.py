"""The smallest whole run: a judged sweep, a selector, two adapters and three evaluations.

The fixture `tiny_run` (conftest.py) makes it once in a session for all that read it; a test that
changes a run works on a copy.
"""

import shutil
from pathlib import Path

from emodistill import stages
from emodistill.configs import (
    EvaluateConfig,
    IQLConfig,
    JPOConfig,
    JudgeConfig,
    SFTConfig,
    SweepConfig,
)
from emodistill.settings import Cell, Settings

ADAPTER = {"max_tokens": 512, "max_samples": 2, "max_steps": 1, "learning_rate": 1e-3}
SECTIONS = {
    "sweep": {"num_scenarios": 6, "num_seeds": 2, "concurrency": 8},
    "judge": {"concurrency": 8},
    "iql": {"num_steps": 20},
    **dict.fromkeys(("sft", "jpo", "alol", "dpo"), ADAPTER),
    "evaluate": {"num_scenarios": 2, "num_seeds": 1, "max_turns": 4, "concurrency": 8},
    "report": {"num_resamples": 50},
}
SETTINGS = Settings(SECTIONS)
EVALUATED = ("vanilla-slm", "random", "iql+sft+jpo")


def run_stage(config, base=None, settings=None):
    """Run the stage of `config`."""
    return stages.run(Cell(config, base, settings))


def make_tiny_run(run: Path) -> None:
    for kind in (SweepConfig, JudgeConfig, IQLConfig, SFTConfig, JPOConfig):
        run_stage(SETTINGS.config(kind, run=run))
    for method in EVALUATED:
        run_stage(SETTINGS.config(EvaluateConfig, run=run, method=method))


def copy_of(run: Path, copy: Path) -> Path:
    """A copy of a run that a test may change; without the hidden files, which are locks."""
    return Path(shutil.copytree(run, copy, ignore=shutil.ignore_patterns(".*")))
