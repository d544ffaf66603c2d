"""Progress in lines without a terminal, as a bar on one."""

import contextlib
import os
import pty
import subprocess
import sys

import pytest

from emodistill import progress as module
from emodistill.progress import Progress, duration


def test_lines_come_every_few_seconds_and_at_the_end(capsys, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    with Progress("sweep", total=2_000, unit="dialogues") as bar:
        for _ in range(1_000):
            now_s[0] += 0.011
            bar.advance(1, "$0.12")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[-1] == ("sweep: 1,000 of 2,000 dialogues (50%), 90.9/s, 11 s left, $0.12")


def test_what_was_there_before_is_told_and_left_out_of_the_rate(capsys, monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s[0])
    with Progress("judge", total=100, unit="turns", done=90) as bar:
        now_s[0] += 10.0
        bar.advance(5)
    assert capsys.readouterr().err.splitlines() == [
        "judge: 90 of 100 turns (90%) are there already",
        "judge: 95 of 100 turns (95%), 0.5/s, 10 s left",
    ]


def test_an_unknown_total(capsys):
    with Progress("reading", total=None, unit="lines") as bar:
        bar.advance(3)
    assert capsys.readouterr().err.startswith("reading: 3 lines")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_bar_on_a_terminal():
    code = (
        "from emodistill.progress import Progress\n"
        "with Progress('sweep', total=8, unit='dialogues') as bar:\n"
        "    bar.advance(8, '[61%] accepted')\n"
        "    bar.say('a line [with brackets]')\n"
    )
    master, terminal = pty.openpty()
    with os.fdopen(master, "rb", closefd=True) as screen:
        environ = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, env=environ)
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # EIO is how a terminal ends
            while chunk := os.read(screen.fileno(), 100_000):
                shown += chunk
        shown = shown.decode()
    assert "8/8" in shown and "[61%] accepted" in shown and "a line [with brackets]" in shown
