"""Files of JSON lines: whole lines in; values out, each with its file and line.

A process may be killed at any moment: a line is written by one call, a torn last one is cut off
when the file is next opened for writing, and only one process writes at a time.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import mmap
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from emodistill.errors import InputError
from emodistill.records import Record
from emodistill.untrusted import MAX_BYTES, brief, open_unlinked, parse_json

log = logging.getLogger("emodistill.jsonl")

SYNC_EVERY_S = 1.0
"""A power cut costs a second of work at most; syncing every line would slow a sweep down."""


class Line(NamedTuple):
    """A parsed line; `where` is `file:number`."""

    value: Any
    where: str


class JsonlAppender:
    """Appends records to a file of JSON lines; a context manager, also usable with `close`.

    Opening takes a lock (held until close, or until the process dies) and repairs a torn last
    line. Every line is handed to the kernel whole, at once; the disk is synchronised every second
    and at the end.

    Raises:
      InputError: another process writes to the file, it is a symbolic link, or the disk is full
        (nothing torn remains).
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.callback(os.close, _lock(self.path))
            self._fd = open_unlinked(self.path, os.O_RDWR | os.O_APPEND)
            stack.callback(os.close, self._fd)
            stack.callback(os.fsync, self._fd)
            self._size = _repair(self._fd, self.path)
            self._on_close = stack.pop_all()
        self._synced_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def append(self, record: Record | Mapping[str, Any]) -> None:
        """Write one line."""
        value = record.to_json() if isinstance(record, Record) else record
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8", "replace") + b"\n"
        try:
            written = os.write(self._fd, data)
            if written < len(data):
                os.write(self._fd, data[written:])
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise InputError(
                    f"{self.path}: no room left on the disk. All lines before are whole; free "
                    "some space and start again to go on."
                ) from None
            raise
        self._size += len(data)
        if time.monotonic() - self._synced_s >= SYNC_EVERY_S:
            os.fsync(self._fd)
            self._synced_s = time.monotonic()

    def clear(self) -> None:
        """Drop all lines."""
        os.ftruncate(self._fd, 0)
        self._size = 0

    def close(self) -> None:
        """Synchronise, close and release the lock."""
        self._on_close.close()


def read_lines(path: Path) -> Iterator[Line]:
    """The JSON values of a file, blank lines skipped.

    Raises:
      InputError: the file is missing, or a line is no JSON or cut off; the message names it.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is missing. Run the stage that makes it, or put your own file there "
            "(docs/data.md says what it must hold)."
        )
    with path.open("rb") as file:
        # A line is bounded, so that a file without line feeds is never held whole.
        for number, raw in enumerate(iter(lambda: file.readline(MAX_BYTES + 1), b""), 1):
            if not raw.strip():
                continue
            where = f"{path}:{number}"
            try:
                yield Line(parse_json(raw), where)
            except ValueError as error:
                if not raw.endswith(b"\n") and len(raw) <= MAX_BYTES:
                    raise InputError(
                        f"{where}: the last line is cut off. Start the stage that writes this "
                        "file again: it drops that line and completes what is missing."
                    ) from None
                raise InputError(f"{where}: not valid JSON ({brief(error)}).") from None


def _lock(path: Path) -> int:
    lock_path = path.with_name(f".{path.name}.lock")
    fd = open_unlinked(lock_path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip() or "another process"
        os.close(fd)
        raise InputError(
            f"{path} is being written by {holder}. Wait for it or end it; one writer at a time."
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return fd


def _repair(fd: int, path: Path) -> int:
    """Make the file end with a whole line; its size in bytes."""
    size = os.fstat(fd).st_size
    if size == 0:
        return 0
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as content:  # reads the end of it only
        last = content[content.rfind(b"\n") + 1 :]
    if not last:
        return size
    try:
        is_whole = isinstance(parse_json(last), dict)
    except ValueError:
        is_whole = False
    if is_whole:  # somebody's own file, without a newline at its end
        return size + os.write(fd, b"\n")
    size -= len(last)
    os.ftruncate(fd, size)
    log.warning("%s: a torn last line of %d bytes is cut off.", path, len(last))
    return size
