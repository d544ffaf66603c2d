"""A stage's log as lines of JSON, beside what the stage makes.

    {"time": "2026-03-01T12:00:00.123Z", "level": "DEBUG", "logger": "emodistill.llm",
     "message": "HTTP 429: …; attempt 2 follows.", "event": "retry", "key": "key …a1b2", …}

It has more than the terminal shows: every attempt that failed, with the dialogue, the fault and
the key's label. Whoever logs names its fields by `extra=fields(event="retry", …)`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from emodistill.errors import InputError
from emodistill.untrusted import open_unlinked

_ROOT = logging.getLogger("emodistill")
STAGE_LOG = "stage.log"
"""The file of a stage's log, in its folder."""


def log_to_terminal() -> None:
    """Warnings of all, and what the package has to say; the rest is for the log file of a stage."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.INFO)
    _ROOT.setLevel(logging.INFO)
    logging.getLogger("stamina").setLevel(logging.ERROR)


def fields(**values: Any) -> dict[str, Any]:
    """The `extra` of a log call: what its line says beside the message."""
    return {"fields": {name: value for name, value in values.items() if value is not None}}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(line | getattr(record, "fields", {}), ensure_ascii=False)


class _QuietHandler(logging.FileHandler):
    """A log that can't be written must not end the work that it tells of."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except (OSError, InputError):  # of opening it
            self.handleError(record)

    def _open(self) -> Any:
        descriptor = open_unlinked(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND)
        # Half a surrogate pair in a message is no reason to lose what comes after it.
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        self.setLevel(logging.CRITICAL + 1)


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append what the package logs, debug level included, to `path`; no file before there is a
    line."""
    handler = _QuietHandler(path, encoding="utf-8", delay=True)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(_JsonFormatter())
    before = _ROOT.level
    _ROOT.addHandler(handler)
    _ROOT.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)
        _ROOT.setLevel(before)
        handler.close()
