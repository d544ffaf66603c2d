"""Someone who looks at the student while it is trained; who that is, later layers decide."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from emodistill.model import Qwen2


class Watcher(Protocol):
    """Looks at a student at the start, every so many steps, and after the last one.

    A checkpoint is saved before each look, so that a training that is stopped within a look takes
    it up again.
    """

    every: int
    """Steps between two looks; 0 for none."""

    def begin(self, step: int) -> None:
        """Forget whatever was seen after `step`, from which a run goes on."""
        ...

    def look(self, step: int, model: Qwen2) -> bool:
        """Look at the student after `step` steps, unless that was done; whether to stop there.

        The model's weights are valid until the next step.
        """
        ...

    def kept(self, last_step: int) -> tuple[int, Path | None]:
        """The step whose adapter is to be kept, and its folder; None for that of the last step."""
        ...


class Unwatched:
    """Nobody looks, and the last step's adapter is kept."""

    every = 0

    def begin(self, step: int) -> None:
        """Nothing has been seen."""

    def look(self, step: int, model: Qwen2) -> bool:
        return False

    def kept(self, last_step: int) -> tuple[int, Path | None]:
        return last_step, None


UNWATCHED: Watcher = Unwatched()


def is_due(watcher: Watcher, step: int, last_step: int) -> bool:
    """Whether `watcher` looks at the student after `step` steps."""
    return watcher.every > 0 and (step % watcher.every == 0 or step == last_step)
