"""Locales, closed streams and pipes, few open files, signals to process 1: the program ends as its
user expects, and says why."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import copy_of

from emodistill import cli, operating_system
from emodistill.configs import SimulatorConfig, SweepConfig
from emodistill.stages.language_models import endpoint_of, open_clients

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
SWEEP = ("scripts/sweep.py", "--num-scenarios", "1", "--num-seeds", "1", "--max-turns", "4")
LOCALES = {
    "ISO-8859-1": ("en_US", "ISO-8859-1"),
    "GBK": ("zh_CN", "GBK"),
    "C": ("C", "ANSI_X3.4-1968"),
}
"""Name of an encoding -> the language whose locale has it, and what Python calls it there."""

IN_LOCALE = """
import locale, runpy, sys
assert locale.getpreferredencoding() == sys.argv[1], locale.getpreferredencoding()
assert not sys.flags.utf8_mode
scripts, words = sys.argv[2].split(), sys.argv[3:]
for script in scripts:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        assert not stop.code, (script, stop.code)
sys.argv = words
runpy.run_path(words[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def environment_of(tmp_path_factory):
    """`environment_of("GBK")`: the environment of a child in a locale of that encoding."""
    folder = tmp_path_factory.mktemp("locales")

    def make(name):
        language, encoding = LOCALES[name]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        for variable in ("LANG", "LC_CTYPE", "PYTHONIOENCODING"):
            environment.pop(variable, None)
        if language == "C":
            return environment | {
                **{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            }
        made = folder / f"{language}.{encoding}"
        if not made.exists():
            if shutil.which("localedef") is None:
                pytest.skip("there is no localedef")
            command = ["localedef", "-i", language, "-f", encoding, str(made)]
            subprocess.run(command, capture_output=True)
        if not made.exists():
            pytest.skip(f"localedef lacks the sources of {made.name}")
        return environment | {"LC_ALL": made.name, "LOCPATH": str(folder)}

    return make


def in_locale(name, environment_of, scripts, *words):
    arguments = [LOCALES[name][1], " ".join(map(str, scripts)), *map(str, words)]
    return subprocess.run(
        [sys.executable, "-c", IN_LOCALE, *arguments],
        capture_output=True,
        cwd=ROOT,
        env=environment_of(name),
    )


@pytest.mark.parametrize(
    ("name", "scripts"),
    [
        ("GBK", [ROOT / "scripts/evaluate.py"]),  # the minus sign of its help is not in GBK
        *(pytest.param(name, SCRIPTS, marks=pytest.mark.slow) for name in LOCALES),
    ],
    ids=["one help in GBK", *LOCALES],
)
def test_help_and_a_sweep_in_a_locale_without_the_characters(
    name, scripts, environment_of, tmp_path
):
    done = in_locale(name, environment_of, scripts, *SWEEP, "--run", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"next: python scripts/judge.py" in done.stdout
    (tmp_path / "crad/sweep/trajectories.jsonl").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCALES)
def test_a_quickstart_in_a_locale_without_the_characters(name, environment_of, tmp_path):
    words = ("scripts/quickstart.py", "--fast", "--run", tmp_path)
    done = in_locale(name, environment_of, (), *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "±" in (tmp_path / "report/table-1.md").read_text(encoding="utf-8")
    shown = done.stdout.decode(LOCALES[name][1], "replace")
    assert re.search(r"^vanilla-slm \(CRAD\) .* to ", shown, re.MULTILINE)


def shell(command):
    """A command line of bash, in the checkout."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, encoding="utf-8", cwd=ROOT, env=environment
    )


def program(body):
    """A shell word: Python that runs `body` as the action of a script."""
    code = (
        "from emodistill import cli; from emodistill.configs import SimulatorConfig\n"
        f"def action(cell):\n    import os, sys\n    {body}\n"
        "cli.main(SimulatorConfig, '', action, args=[])"
    )
    return f'{sys.executable} -c "{code}"'


def test_closed_streams_lend_their_numbers_to_no_file(tmp_path):
    """What a library prints on stderr must not end up in the data."""
    path = tmp_path / "data"
    body = f"file = open('{path}', 'wb', 0); os.write(2, b'noise'); print('x'); file.write(b'data')"
    done = shell(f"{program(body)} <&- >&- 2>&-")
    assert done.returncode == 0
    assert path.read_bytes() == b"data"


@pytest.mark.slow
def test_a_sweep_with_stdout_and_stderr_closed(tmp_path):
    done = shell(f"{sys.executable} {' '.join(SWEEP)} --run {tmp_path} >&- 2>&-")
    assert done.returncode == 0
    lines = (tmp_path / "crad/sweep/trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    assert len([json.loads(line) for line in lines]) == 1


@pytest.mark.parametrize("pipe", ["|", "2>&1 |"])
def test_a_pipe_that_nobody_reads_any_more_is_a_quiet_end(pipe):
    body = "[print('line', n, file=(sys.stdout, sys.stderr)[n % 2]) for n in range(50_000)]"
    stderr = "" if "&" in pipe else " 2>/dev/null"
    done = shell(f"{program(body)}{stderr} {pipe} head -1; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 141
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.slow
def test_a_sweep_into_head_keeps_its_work(tmp_path):
    command = f"{sys.executable} {' '.join(SWEEP)} --run {tmp_path}"
    done = shell(f"{command} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 141 and done.stdout.startswith("sweep: split drawn by")
    assert done.stderr == ""
    assert shell(command).returncode == 0


def test_output_that_can_not_be_written_is_told():
    done = shell(f"{program('print(1)')} >/dev/full")
    assert done.returncode == 2
    assert re.match("error: .*No space left on device.*\n$", done.stderr)


def ended(error):
    def action(cell):
        raise error

    with pytest.raises(SystemExit) as stop:
        cli.main(SimulatorConfig, "", action, args=[])
    return stop.value.code


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EMFILE, "ulimit -n 1024), or lower --concurrency"),
        (errno.ENFILE, "ulimit -n 1024), or lower --concurrency"),
        (errno.EROFS, "name a folder that can be written to"),
        (errno.EACCES, "get the rights to it"),
        (errno.EPIPE, "Broken pipe (x)"),
        (errno.EIO, "once that is mended"),
    ],
)
def test_each_error_of_the_system_has_its_own_advice(number, words, capsys):
    assert ended(OSError(number, os.strerror(number), "x")) == 2
    told = capsys.readouterr().err
    assert words in told and "space" not in told


def test_where_nobody_hears_it_a_message_is_no_error(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    operating_system.tell("error: x")


# Open files


def test_calls_wait_where_few_files_may_be_open(monkeypatch, capsys, tmp_path):
    import asyncio

    monkeypatch.setattr("emodistill.stages.language_models.num_connections", lambda: 6)
    (tmp_path / "calls.jsonl").touch()

    async def ceilings(concurrency):
        config = SweepConfig(concurrency=concurrency, replay=tmp_path)
        roles = [endpoint_of(config, role) for role in ("focal", "counterparty")]
        async with open_clients(config, "sweep", roles) as client_of:
            return [client_of(endpoint).gate.ceiling for endpoint in roles]

    assert asyncio.run(ceilings(2)) == [2, 2]
    assert "open files" not in capsys.readouterr().out
    assert asyncio.run(ceilings(64)) == [3, 3], "together they have what there is"
    assert "--concurrency 64 takes more open files" in capsys.readouterr().out


def test_the_limit_is_raised_and_what_is_left_is_counted():
    code = (
        "import resource, sys; from emodistill import operating_system as o\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))\n"
        "before = o.num_connections(); o.raise_file_limit()\n"
        "print(before, o.num_connections(), resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (8, 128)); print(o.num_connections())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    before, after, *limits = re.findall(r"\d+", done.stdout)
    assert 0 < int(before) < 64 - 24 and int(after) == int(before) + 64
    assert limits == ["128", "128", "1"]


@pytest.mark.slow
def test_a_sweep_with_few_open_files(tmp_path):
    words = " ".join(SWEEP).replace("--num-scenarios 1", "--num-scenarios 80")
    command = f"{sys.executable} {words} --concurrency 80 --run {tmp_path}"
    done = shell(f"ulimit -n 64; {command}")
    assert done.returncode == 0, done.stderr
    assert "80 of 80 dialogues finished" in done.stdout


@pytest.mark.slow
def test_a_quickstart_with_few_open_files(tmp_path):
    command = f"{sys.executable} scripts/quickstart.py --fast --run {tmp_path}"
    done = shell(f"ulimit -n 64; {command}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report/index.html").is_file()


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program_with_its_own_code(number, capsys):
    cleaned = []

    def action(cell):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            cleaned.append(True)

    before = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main(SimulatorConfig, "", action, args=[])
        assert stop.value.code == 128 + number and cleaned
        assert capsys.readouterr().err.startswith("stopped; finished work is kept")
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_or_handled_stays_so():
    heard = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        with operating_system.ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert heard


def as_process_1(*words):
    """Start a script as process 1 of a namespace, and the process id that we know it by."""
    namespace = ["unshare", "--fork", "--pid", "--kill-child"]
    for options in ([], ["--user", "--map-root-user"]):
        command = [*namespace, *options]
        if shutil.which("unshare") and subprocess.run([*command, "true"]).returncode == 0:
            break
    else:
        pytest.skip("unshare makes no namespace of processes here")
    started = subprocess.Popen(
        [*command, sys.executable, "-u", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    return started


def ask_to_end(started, words):
    """Send SIGTERM once the script has printed a line with `words`; what it printed."""
    printed = ""
    for line in started.stdout:
        printed += line
        if words in line:
            break
    (child,) = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    rest, _ = started.communicate(timeout=60)
    return printed + rest


def test_a_server_that_is_process_1_ends_when_asked():
    with as_process_1("scripts/simulate_api.py", "--port", "0") as started:
        printed = ask_to_end(started, "serving")
    assert started.returncode == 143, printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_training_that_is_process_1_ends_when_asked(tiny_run, tmp_path):
    run = copy_of(tiny_run, tmp_path / "run")
    shutil.rmtree(run / "crad/iql")
    words = ("scripts/train_iql.py", "--run", run, "--num-steps", "20000")
    with as_process_1(*words) as started:
        printed = ask_to_end(started, "20,000 steps")
    assert started.returncode == 143, printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_a_quickstart_that_is_process_1_ends_between_its_stages(tmp_path):
    with as_process_1("scripts/quickstart.py", "--fast", "--run", tmp_path) as started:
        printed = ask_to_end(started, "items scored")
    assert started.returncode == 143, printed
    assert "Traceback" not in printed
    manifest = json.loads((tmp_path / "crad/sweep/manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "finished"
