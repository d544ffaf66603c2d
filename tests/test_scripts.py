"""Every script answers `--help` without jax, and says what is wrong instead of a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))

HELP = """
import runpy, sys
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path({script!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {{"jax", "flax", "transformers", "matplotlib", "torch", "aiohttp"}} & set(sys.modules)
assert not heavy, f"--help imports {{sorted(heavy)}}"
"""


def python(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=options.pop("cwd", ROOT),
        env=environment | options.pop("env", {}),
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_costs_no_heavy_import(script):
    shown = python("-c", HELP.format(script=str(script)))
    assert shown.returncode == 0, shown.stderr
    assert "--config FILE.yaml" in shown.stdout
    example = f"scripts/{script.name}"
    assert example in script.read_text(), "the docstring needs an example call"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_jpo.py", "--clip", "1.5"], "clip=1.5 must lie in (0, 1); the paper uses"),
        (["train_jpo.py", "--kappa", "2"], "kappa=2.0 must lie in [0, 1]"),
        (["evaluate.py", "--method", "iql+magic"], "--method iql+magic is not known; use one of"),
        (["tournament.py", "--methods", "iql+magic"], "iql+magic is not known; use one of"),
        (["tournament.py", "--methods", "oracle"], "--methods oracle: it knows who sits in"),
        (["sweep.py", "--provider", "nowhere"], "--provider nowhere is none of"),
        (["sweep.py", "--provider", "dashscope"], "set DASHSCOPE_API_KEY"),
        (
            ["sweep.py", "--base-url", "http://bob:hunter2@h/v1", "--model", "a"],
            "the base URL of h must hold no credentials",
        ),
        (["sweep.py", "--counterparty", "deepseek-v3"], "needs a --provider or --base-url"),
        (["judge.py", "--judge", "gpt-4o"], "needs a --provider or --base-url"),
        (["sweep.py", "--num-seeds", "0"], "num_seeds=0 must be at least 1"),
        (["sweep.py", "--scenarios", "missing.csv"], "missing.csv"),
        (["sweep.py", "--prompt-pack", "no-pack"], "no-pack"),
        (["sweep.py", "--config", "no.yaml"], "--config no.yaml"),
        (["train_sft.py", "--model", "no-model"], "no-model"),
        (["train_sft.py", "--model", "."], "config.json"),
        (["evaluate.py", "--student", "no-model"], "student no-model: there is no such folder"),
        (["evaluate.py", "--max-turns", "0"], "max_turns=0 must be at least 2"),
        (["report.py", "--run", "no-run"], "holds nothing for a report yet"),
        (["train_iql.py", "--provider", "dashscope"], "python scripts/sweep.py"),
        (["train_jpo.py", "--provider", "dashscope"], "python scripts/judge.py"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_code_2(arguments, message, tmp_path):
    script, *flags = arguments
    if script not in ("report.py",):
        flags += ["--run", str(tmp_path / "run")]
    environment = {"DASHSCOPE_API_KEY": "", "EMODISTILL_PROVIDERS": ""}
    failed = python(ROOT / "scripts" / script, *flags, cwd=tmp_path, env=environment)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_unreachable_api_is_named(tmp_path):
    failed = python(
        ROOT / "scripts" / "sweep.py",
        *("--base-url", "http://127.0.0.1:9/v1", "--model", "a", "--counterparty", "b"),
        *("--run", tmp_path, "--num-seeds", "1"),
    )
    assert failed.returncode == 2
    assert "127.0.0.1:9" in failed.stderr
    assert "Traceback" not in failed.stderr
