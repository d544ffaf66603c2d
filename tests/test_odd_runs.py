"""Runs that somebody else has written, or a disk has spoilt: a message, never a traceback."""

import dataclasses
import functools
import json
import shutil
import time

import pytest
from peak_memory import peak, reset_peak
from tiny_run import SETTINGS, copy_of

from emodistill import seeding, stages
from emodistill.configs import EvaluateConfig, IQLConfig, JPOConfig, JudgeConfig, ReportConfig
from emodistill.errors import EmodistillError
from emodistill.model import adapted, embedded_path, load_qwen2
from emodistill.offline.rewards import training_dialogues
from emodistill.offline.run_files import read_sweep
from emodistill.prompts import load_pack
from emodistill.reports import report
from emodistill.runs import begin_stage
from emodistill.selectors import IQLSelector
from emodistill.settings import Cell

VALUES = (None, [], {}, "", "x" * 5_000, -1, 10**18, 1.5, True, [[[]]], {"a": {"b": []}}, "\x1b[2J")
RAW = (b"", b"null", b"[]", b"\xff\xfe\x00", b"[" * 9_999, b"9" * 5_000, b'{"a": 1e999}', b"{" * 80)
MAX_GROWTH = 500 << 20
MAX_MESSAGE = 8_000  # twenty lines of a file, each with its path
MAX_S = 60


def mutate(rng, run, target):
    """Spoil one file of a run; says how."""
    files = sorted(p for p in run.rglob("*") if p.is_file() and p.stat().st_size)
    texts = [
        p
        for p in files
        if "tensorboard" not in p.parts and p.suffix in (".json", ".jsonl", ".yaml", ".safetensors")
    ]
    path = texts[rng.integers(len(texts))]
    kind = ("flip", "cut", "double", "value", "raw", "folder", "link", "loop")[rng.integers(8)]
    data = bytearray(path.read_bytes())
    if kind == "flip":
        for _ in range(int(rng.integers(1, 4))):
            data[rng.integers(len(data))] = rng.integers(256)
    elif kind == "cut":
        del data[rng.integers(len(data)) :]
    elif kind == "double":
        data = data * 2
    elif kind == "raw":
        data = bytearray(RAW[rng.integers(len(RAW))])
    elif kind == "value" and path.suffix in (".json", ".jsonl"):
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        number = int(rng.integers(len(lines)))
        lines[number] = json.dumps(with_other_value(rng, json.loads(lines[number])))
        data = bytearray("\n".join(lines).encode() + b"\n")
    if kind in ("folder", "link", "loop"):
        path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "loop":
        path.symlink_to(path.name)
    else:
        path.write_bytes(data)
    return f"{kind} {path.relative_to(run)}"


def with_other_value(rng, value):
    """The value with one of its parts replaced, left out or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = sorted(value)[rng.integers(len(value))]
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: with_other_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        i = int(rng.integers(len(value)))
        return [*value[:i], with_other_value(rng, value[i]), *value[i + 1 :]]
    return VALUES[rng.integers(len(VALUES))]


@functools.cache
def student():
    return load_qwen2(embedded_path())


def use(run):
    """What reads a received run: the report, how far each stage comes before it works, and what it
    loads then."""
    yield lambda: report(ReportConfig(run=run, num_resamples=20))
    configs = [SETTINGS.config(kind, run=run) for kind in (JudgeConfig, IQLConfig, JPOConfig)]
    configs.append(SETTINGS.config(EvaluateConfig, run=run, method="iql+sft+jpo"))
    for config in configs:
        yield functools.partial(prepare, Cell(config))
    home = run / "crad"
    scores = home / "judge/sim-judge.jsonl"
    yield lambda: training_dialogues(read_sweep(home, load_pack(), scores))
    yield lambda: IQLSelector.load(home / "iql/default")
    for stage in ("sft", "jpo"):
        yield functools.partial(adapted, student(), home / stage / "default/adapter")


def prepare(cell):
    """All that comes before a stage works."""
    stage = stages.STAGES[cell.config.stage]
    stage.needs(cell.config)
    begin_stage(stage.job(cell))


def check(run, target, what):
    before = {p: p.read_bytes() for p in target.parent.iterdir() if p.is_file()}
    memory = reset_peak()
    for action in use(run):
        started_s = time.monotonic()
        try:
            action()
        except EmodistillError as error:
            assert 10 < len(str(error)) < MAX_MESSAGE, (what, str(error))
        assert time.monotonic() - started_s < MAX_S, what
    assert {p: p.read_bytes() for p in target.parent.iterdir() if p.is_file()} == before, what
    assert peak() - memory < MAX_GROWTH, what


def spoil_and_use(tiny_run, tmp_path, seeds):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "bashrc").write_text("mine\n")
    for seed in seeds:
        run = copy_of(tiny_run, tmp_path / "run")
        what = mutate(seeding.stream(seed, "odd-run"), run, outside / "bashrc")
        try:
            check(run, outside / "bashrc", f"seed {seed}: {what}")
        except (AssertionError, EmodistillError):
            raise
        except Exception as error:
            raise AssertionError(f"seed {seed}: {what}") from error
        shutil.rmtree(run)


def test_spoilt_runs_end_in_a_message(tiny_run, tmp_path):
    spoil_and_use(tiny_run, tmp_path, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_many_spoilt_runs_end_in_a_message(tiny_run, tmp_path, block):
    spoil_and_use(tiny_run, tmp_path, range(50 * block, 50 * block + 50))


ODD_NAMES = ("a$b", "$x^{", "100%_&#", "two\nlines", "<b>|", "n" * 400, "\\alpha{}")


def test_odd_names_of_methods_are_shown_as_they_are(tiny_run, tmp_path):
    run = copy_of(tiny_run, tmp_path / "run")
    source = run / "crad" / "eval" / "random@sim-counterparty" / "default.jsonl"
    for number, name in enumerate(ODD_NAMES):
        folder = run / "crad" / "eval" / f"{name.replace('/', '')[:200]}@sim-counterparty"
        folder.mkdir()
        lines = [json.loads(line) for line in source.read_text().splitlines()]
        for line in lines:
            line["focal"]["method"] = name
            line["trajectory_id"] += f"-{number}"
        (folder / "default.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report(dataclasses.replace(ReportConfig(run=run), num_resamples=20))
    out = run / "report"
    page = (out / "index.html").read_text()
    assert "<b>|" not in page and "&lt;b&gt;|" in page
    tex = (out / "table-1.tex").read_text()
    assert r"a\$b" in tex and r"100\%\_\&\#" in tex and "two lines" in tex
    rows = [line for line in (out / "table-1.md").read_text().splitlines() if line.startswith("|")]
    assert len({row.replace("\\\\", "").replace("\\|", "").count("|") for row in rows}) == 1
