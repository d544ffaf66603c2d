"""The way from a script to its work is short, and a stage is defined in one place."""

import runpy
import sys
import threading
from pathlib import Path

import pytest

from emodistill import stages
from emodistill.configs import (
    CONFIGS,
    JPOConfig,
    JudgeConfig,
    PairConfig,
    SFTConfig,
    SweepConfig,
)
from emodistill.settings import Cell

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("scripts/", "emodistill/cli.py", "emodistill/configs/", "emodistill/settings.py")
SHELL += ("emodistill/runs.py", "emodistill/files.py", "emodistill/logs.py", "emodistill/stages/")
TINY_FLAGS = ["--max-tokens", "512", "--max-samples", "2", "--max-steps", "1"]
IS_FUNCTION = 2  # CO_NEWLOCALS, which the bodies of classes and modules lack


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that lacks JPO alone."""
    run = tmp_path_factory.mktemp("runs") / "short"
    tiny = {"max_tokens": 512, "max_samples": 2, "max_steps": 1, "learning_rate": 1e-3}
    stages.run(Cell(SweepConfig(run=run, num_scenarios=4, num_seeds=3, max_turns=8)))
    stages.run(Cell(JudgeConfig(run=run)))
    stages.run(Cell(SFTConfig(run=run, **tiny)))
    return run


def test_from_the_script_to_the_first_optimiser_step(run, monkeypatch, capsys):
    entered: set[tuple[str, str]] = set()
    is_training = threading.Event()

    def profile(frame, event, arg):
        code = frame.f_code
        if event != "call" or is_training.is_set():
            return
        if code.co_name == "step" and code.co_filename.endswith("train/trainer.py"):
            is_training.set()
        elif code.co_filename.startswith(str(ROOT)) and code.co_flags & IS_FUNCTION:
            name = Path(code.co_filename).relative_to(ROOT).as_posix()
            if name.startswith(SHELL) and not code.co_name.startswith("<"):
                entered.add((name, getattr(code, "co_qualname", code.co_name)))

    monkeypatch.setattr(sys, "argv", ["train_jpo.py", "--run", str(run), *TINY_FLAGS])
    sys.setprofile(profile)
    threading.setprofile(profile)
    try:
        runpy.run_path(str(ROOT / "scripts/train_jpo.py"), run_name="__main__")
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert is_training.is_set()
    assert "scripts/evaluate.py" in capsys.readouterr().out
    listed = "\n".join(f"{file} {name}" for file, name in sorted(entered))
    assert 10 < len(entered) <= 30, f"{len(entered)} functions:\n{listed}"


def test_every_stage_is_in_the_table_under_the_name_of_its_settings():
    for name, stage in stages.STAGES.items():
        assert stage.config.stage == name
        assert (ROOT / f"scripts/{stage.script}.py").is_file()
        assert name in CONFIGS
    assert stages.STAGES["tournament"].config is PairConfig
    assert stages.STAGES["jpo"].config is JPOConfig
