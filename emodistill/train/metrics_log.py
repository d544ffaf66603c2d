"""`metrics.jsonl` and its TensorBoard copy: one line a step, continued where a run was cut off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from emodistill.errors import InputError
from emodistill.files import replacing
from emodistill.jsonl import is_gone

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
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
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
            file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers or ():
            writer.close()


def _lines_until(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The whole lines up to `last_step`; a torn line, which only the last can be, is dropped."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if line["step"] > last_step:
            break
        lines.append(line)
    return lines
