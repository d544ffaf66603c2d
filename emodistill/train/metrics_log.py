"""`metrics.jsonl` and its TensorBoard copy: one line a step, continued where a run was cut off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from emodistill.files import replacing

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends `{"step": n, name: value, …}`; lines after step `num_steps` are dropped on opening.

    With `is_writer=False`, for processes that another one writes for, it only reads.

    Attributes:
      last: the values of the newest line that was kept, empty without one.
    """

    def __init__(self, cell_dir: Path, *, num_steps: int, is_writer: bool = True) -> None:
        path = cell_dir / METRICS
        kept = _lines_until(path, num_steps)
        self.last = {key: value for key, value in kept[-1].items() if key != "step"} if kept else {}
        self._file = self._board = None
        if not is_writer:
            return
        from tensorboardX import SummaryWriter

        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(cell_dir / "tensorboard"), purge_step=num_steps + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of `step`, counted from 1."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()


def _lines_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The whole lines up to `step`; a torn last one is no line."""
    kept = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if line["step"] > step:
            break
        kept.append(line)
    return kept
