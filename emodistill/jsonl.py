"""Files of JSON lines: whole lines in; values out, each with its file and line.

A process may be killed at any moment: a line is written by one call, a torn last one is cut off
when the file is next opened for writing, and only one process writes at a time.
"""

from __future__ import annotations

import contextlib
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


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
"""How a file system says that it has no locks, as some network file systems don't."""


class Line(NamedTuple):
    """A parsed line; `where` is `file:number`."""

    value: Any
    where: str


class JsonlAppender:
    """Appends records to a file of JSON lines; a context manager, also usable with `close`.

    Opening locks the file itself (until close, or until the process dies) and repairs a torn last
    line. Every line is handed to the kernel whole, at once; the disk is synchronised every second
    and at the end.

    Raises:
      InputError: another process writes to the file, it is a symbolic link, the disk is full
        (nothing torn remains), or the file was deleted, moved or changed while it is open here.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._fd = _open_locked(self.path)
            stack.callback(os.close, self._fd)
            stack.callback(os.fsync, self._fd)
            self._size = _repair(self._fd, self.path)
            self._on_close = stack.pop_all()
        self._num_lines = 0
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
        is_sync_due = time.monotonic() - self._synced_s >= SYNC_EVERY_S
        self._check_in_place(is_path_asked=is_sync_due)
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
        self._num_lines += 1
        if is_sync_due:
            os.fsync(self._fd)
            self._synced_s = time.monotonic()

    def _check_in_place(self, *, is_path_asked: bool) -> None:
        """Refuse to write where nobody would find it, or between another writer's lines."""
        if is_gone(self._fd, self.path, is_path_asked=is_path_asked):
            raise InputError(
                f"{self.path} was deleted or moved while this job was writing to it, and with it "
                f"{self._size:,} bytes, among them the {self._num_lines:,} lines that the job had "
                "added. Put it back if it was moved; start again to make what is missing."
            )
        if os.fstat(self._fd).st_size != self._size:
            raise InputError(
                f"{self.path} was changed by something else while this job was writing to it. Look "
                "for another job with the same --run; then check the end of the file, and start "
                "again."
            )

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


def num_lines(path: Path) -> int:
    """How many whole lines a file has; none where it isn't there."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def is_gone(fd: int, path: Path, *, is_path_asked: bool = True) -> bool:
    """Whether the open file is no longer the one at `path`, as after its folder was deleted.

    Args:
      is_path_asked: whether to look for a file that was moved as well, or replaced.
    """
    ours = os.fstat(fd)
    if ours.st_nlink == 0 or not is_path_asked:
        return ours.st_nlink == 0
    try:
        return not os.path.samestat(ours, path.stat())
    except FileNotFoundError:
        return True


def _open_locked(path: Path) -> int:
    """The file, created if need be, open for this process alone.

    The lock is on the data, so that it holds whatever else is deleted; who has it is noted in a
    hidden file, for the message alone.
    """
    while True:
        fd = open_unlinked(path, os.O_RDWR | os.O_APPEND)
        try:
            _lock(fd, path)
            if not is_gone(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its last writer has deleted it between opening and locking


def _lock(fd: int, path: Path) -> None:
    note = path.with_name(f".{path.name}.lock")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            log.warning(
                "%s: its file system has no locks (%s), so that nothing keeps a second job from "
                "writing there; start one job at a time for a --run.",
                path,
                error.strerror,
            )
        elif error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            error.filename = str(path)
            raise
        else:
            try:
                holder = note.read_bytes()[:200].decode("utf-8", "replace").strip()
            except OSError:
                holder = ""
            raise InputError(
                f"{path} is being written by {holder or 'another process'}. Wait for it or end it; "
                "one writer at a time."
            ) from None
    words = f"process {os.getpid()} on {socket.gethostname()}\n"
    with contextlib.suppress(OSError, InputError):  # as where another user has left one of theirs
        note_fd = open_unlinked(note, os.O_WRONLY | os.O_TRUNC)
        os.write(note_fd, words.encode())
        os.close(note_fd)


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
