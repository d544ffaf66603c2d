"""Every script answers `--help` without heavy imports, and says what is wrong in one message."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from emodistill import cli
from emodistill.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
HEAVY = ("jax", "flax", "transformers", "matplotlib", "torch", "aiohttp", "pandas", "datasets")

HELP = """
import runpy, sys
for script in sys.argv[1:]:
    print("###", script)
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, stop.code
print("heavy:", *sorted(set({heavy}) & set(sys.modules)))
"""


def python(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        **options,
    )


@pytest.fixture(scope="module")
def helps():
    """What each script says to --help, and what all of it has imported; a real launch."""
    shown = python("-c", HELP.format(heavy=HEAVY), *SCRIPTS)
    assert shown.returncode == 0, shown.stderr
    text, _, heavy = shown.stdout.rpartition("heavy:")
    texts = text.split("### ")[1:]
    return {Path(text.split(maxsplit=1)[0]).name: text for text in texts}, heavy.split()


def test_help_costs_no_heavy_import(helps):
    texts, heavy = helps
    assert set(texts) == {script.name for script in SCRIPTS}
    assert not heavy


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_shows_the_examples_whole_and_one_a_line(script, helps):
    text = helps[0][script.name]
    docstring = runpy.run_path(str(script), run_name="imported")["__doc__"]
    examples = [line.strip() for line in docstring.splitlines() if "python scripts/" in line]
    assert any(f"scripts/{script.name}" in line for line in examples), "it needs an example call"
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if "python scripts/" in line] == examples
    assert "--config FILE.yaml" in text


def run(script, *flags, monkeypatch, capsys):
    """Run a script in this process; its exit code and what it says on stderr and stdout."""
    monkeypatch.setattr(sys, "argv", [script, *flags])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
    shown = capsys.readouterr()
    return code, shown.err, shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_jpo.py", "--clip", "1.5"], "clip=1.5 must lie in (0, 1); the paper uses"),
        (["train_jpo.py", "--kappa", "2"], "kappa=2.0 must lie in [0, 1]"),
        (["train_grpo.py", "--group-size", "1"], "group_size=1 must be at least 2; a single"),
        (["train_ppo.py", "--coordinator", "auto"], "--coordinator auto: ppo plays its dialogues"),
        (["evaluate.py", "--method", "iql+magic"], "--method iql+magic is not known; use one of"),
        (["tournament.py", "--methods", "iql+magic"], "iql+magic is not known; use one of"),
        (["tournament.py", "--methods", "oracle"], "--methods oracle: it knows who plays the"),
        (["sweep.py", "--provider", "nowhere"], "--provider nowhere is none of"),
        (["sweep.py", "--provider", "dashscope"], "set DASHSCOPE_API_KEY"),
        (
            ["sweep.py", "--base-url", "http://bob:hunter2@h/v1", "--focal", "a"],
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
def test_bad_input_is_one_message_and_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    script, *flags = arguments
    if script != "report.py":
        flags += ["--run", str(tmp_path / "run")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DASHSCOPE_API_KEY", "")
    monkeypatch.delenv("EMODISTILL_PROVIDERS", raising=False)
    code, err, _ = run(script, *flags, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert message in err and "Traceback" not in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def documented_commands():
    """Every command of the README, the docs, the presets and the scripts: (file, script, words)."""
    files = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.yaml")]
    for path in sorted([*files, *SCRIPTS]):
        text = re.sub(r"\\\\?\n[ #]*", " ", path.read_text(encoding="utf-8"))
        for script, rest in re.findall(r"python scripts/(\w+\.py)([^\n`;]*)", text):
            flags = rest.partition("  #")[0].partition(" # ")[0]
            if not set("|$…") & set(flags) and "PATH" not in flags:
                yield path.name, script, shlex.split(flags.rstrip('.,:)"*'))


def test_every_documented_command_can_be_read(monkeypatch):
    """Nothing is run: each command line is read by its script's own settings."""
    commands = {(script, *words): file for file, script, words in documented_commands()}
    assert len(commands) > 80
    monkeypatch.chdir(ROOT)
    wrong = []
    for (script, *words), file in commands.items():
        seen = []

        def main(classes, description, action=None, *, args=words, preset=None, seen=seen):
            seen.append(cli.parse(classes, description, args, preset=preset))

        monkeypatch.setattr(cli, "main", main)
        monkeypatch.setattr(sys, "argv", [script, *words])
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except (SystemExit, InputError) as error:
            wrong.append(f"{file}: {script} {' '.join(words)}: {error}")
        else:
            assert len(seen) == 1
    assert not wrong, "\n".join(wrong)


def test_an_unreachable_api_is_named(tmp_path, monkeypatch, capsys):
    code, err, _ = run(
        "sweep.py",
        *("--base-url", "http://127.0.0.1:9/v1", "--focal", "a", "--counterparty", "b"),
        *("--run", str(tmp_path), "--num-seeds", "1"),
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert code == 2
    assert "127.0.0.1:9" in err and "Traceback" not in err


def test_a_script_that_is_launched_ends_with_code_2_and_no_traceback(tmp_path):
    (tmp_path / "own.yaml").write_text("prot: 8000")
    failed = python(ROOT / "scripts/simulate_api.py", "--config", "own.yaml", cwd=tmp_path)
    assert failed.returncode == 2
    assert "no stage has a setting 'prot'" in failed.stderr and "Traceback" not in failed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["own.yaml"]
