"""The way from a script to its work is short, and a stage is defined in one place."""

import runpy
import shutil
import sys
import threading
from pathlib import Path

import pytest
from tiny_run import copy_of

from emodistill import stages
from emodistill.configs import CONFIGS, JPOConfig, PairConfig

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("scripts/", "emodistill/cli.py", "emodistill/configs/", "emodistill/settings.py")
SHELL += ("emodistill/runs.py", "emodistill/files.py", "emodistill/logs.py", "emodistill/stages/")
TINY_FLAGS = ["--max-tokens", "512", "--max-samples", "2", "--max-steps", "1"]
IS_FUNCTION = 2  # CO_NEWLOCALS, which the bodies of classes and modules lack


@pytest.fixture
def run(tiny_run, tmp_path):
    """A run that lacks JPO alone."""
    run = copy_of(tiny_run, tmp_path / "short")
    shutil.rmtree(run / "crad/jpo")
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
