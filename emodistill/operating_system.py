"""The operating system around the program: its streams, signals and open files."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

BROKEN_PIPE_CODE = 128 + signal.SIGPIPE
"""The exit code that a shell gives a program which writes where nobody reads any more."""
WANTED_FILES = 8192
"""Open files that thousands of calls at once take; many systems begin at 256 or 1,024."""
RESERVED_FILES = 24
"""Open files that a job takes beside its connections: its own data, logs and late imports."""


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end by `signal_number`; as with Ctrl-C, nothing catches it but the
    command line."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def open_streams() -> None:
    """Make the standard streams fit to print on, whatever the locale and whoever closed them.

    What the terminal's encoding has no character for is written as an escape. A closed stream is
    opened on nothing, since the next file to be opened would take its number, and whatever a
    library prints would then go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def tell(text: str) -> None:
    """Print a line on stderr, if anybody can still read it."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def is_output_closed() -> bool:
    """Whether whoever read stdout or stderr, as `head` does, has gone."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)  # errors are always told
    return any(event & select.POLLERR for _, event in poll.poll(0))


def finish_output(code: int) -> int:
    """Write out all that was printed; the exit code, which tells if that failed on success."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            is_closed = isinstance(error, BrokenPipeError)
            if not is_closed:
                tell(f"error: the output can't be written: {error.strerror}.")
            code = code or (BROKEN_PIPE_CODE if is_closed else 2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)  # where the rest goes when Python ends
            os.close(nowhere)
    return code


def _end(number: int, frame: FrameType | None) -> None:
    raise TerminatedError(number)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block with TerminatedError, so that what is finished is kept.

    The kernel's own reaction to them, which is to end the process, is not there for process 1, as
    which a program runs in a container. A signal that is ignored or handled already stays so.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGHUP) if is_main else ()
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def raise_file_limit() -> None:
    """Let this process and its children open as many files as it may allow itself, up to
    WANTED_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower bound of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def num_connections() -> int:
    """How many connections this process can hold beside its files, at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, soft - len(list(Path("/dev/fd").iterdir())) - RESERVED_FILES)
