"""`metrics.jsonl` and its TensorBoard copy: one line a step, continued where a run was cut off."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import msgspec

from emodistill.errors import InputError
from emodistill.files import replacing
from emodistill.jsonl import is_gone
from emodistill.untrusted import brief, parse_json

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends `{"step": n, name: value, …}`; lines after step `num_steps` are dropped on opening.

    With `is_writer=False`, for processes that another one writes for, it only reads.

    Attributes:
      last: the values of the newest line that stays, empty without one.
    """

    def __init__(self, cell_dir: Path, *, num_steps: int, is_writer: bool = True) -> None:
        self._path = path = cell_dir / METRICS
        lines = _lines_until(path, num_steps)
        self.last = {key: value for key, value in (lines or [{}])[-1].items() if key != "step"}
        self._writers: tuple[TextIO, SummaryWriter] | None = None
        if not is_writer:
            return
        from tensorboardX import SummaryWriter  # imports protobuf, which only a writer needs

        with replacing(path) as partial:
            partial.write_text("".join(map(_text, lines)), encoding="utf-8")
        board = SummaryWriter(str(cell_dir / "tensorboard"), purge_step=num_steps + 1)
        self._writers = path.open("a", buffering=1, encoding="utf-8"), board

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of `step`, counted from 1."""
        if self._writers is not None:
            file, board = self._writers
            if is_gone(file.fileno(), self._path):
                raise InputError(
                    f"{self._path} was deleted or moved while this training was writing to it, and "
                    f"with it whatever was beside it before step {step:,}. Put it back if it was "
                    "moved; start again to make what is missing."
                )
            file.write(_text({"step": step, **values}))
            for name, value in values.items():
                board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers or ():
            writer.close()


def _text(line: Mapping[str, float]) -> str:
    """A line of the file; JSON has no NaN."""
    finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
    return json.dumps(finite | {"step": int(line["step"])}) + "\n"


def _lines_until(path: Path, last_step: int) -> list[dict[str, Any]]:
    lines = list(read_metrics(path)) if path.exists() else []
    return [line for line in lines if line["step"] <= last_step]


def read_metrics(path: Path) -> Iterator[dict[str, float]]:
    """The lines of a `metrics.jsonl`, NaN where there is null; a torn last one is left out.

    Raises:
      InputError: another line holds no `step`, or something else than numbers.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, text in enumerate(lines, start=1):
        try:
            line = msgspec.convert(parse_json(text), dict[str, float | None])
            if line.get("step") is None:
                raise ValueError("no step")
        except ValueError as error:
            if number == len(lines):
                return
            raise InputError(
                f"{path}:{number}: not a line of metrics ({brief(error)}). Delete that line."
            ) from None
        yield {name: math.nan if value is None else value for name, value in line.items()}
