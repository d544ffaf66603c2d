"""Start a simulator for the length of a stage, on a free port of this machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from emodistill.errors import ApiError


@contextmanager
def running_simulator() -> Iterator[str]:
    """Yield the base URL of a fresh simulator; it ends with the block, or with this process.

    The child watches its standard input, which closes when this process ends in any way, SIGKILL
    included. Ctrl-C does not reach it: it is for this process to say when the simulator ends.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "emodistill.simulator"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        encoding="utf-8",
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        try:
            url = child.stdout.readline().strip()
            if not url:
                raise ApiError(
                    "the simulator did not start; try `python -m emodistill.simulator` to see why."
                )
            yield url
        finally:
            child.stdin.close()
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:  # the end of the block waits on
                child.terminate()
