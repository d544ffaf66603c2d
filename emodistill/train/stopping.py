"""Being asked to stop: Ctrl-C, or the SIGTERM with which schedulers announce a preemption."""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from types import FrameType
from typing import Self

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest(ExitStack):
    """Turns the first SIGINT or SIGTERM into a note; a second one acts as usual.

    A signal that this process was started to ignore stays ignored.

    Of several processes any may be asked (by SIGTERM); JAX then tells all of them the step at
    which to stop together.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_asked = False

    def is_due(self, step: int) -> bool:
        """Whether to stop after `step`; of several processes, all ask at every step."""
        if jax.process_count() == 1:
            return self._is_asked
        return multihost_utils.reached_preemption_sync_point(step)

    def __enter__(self) -> Self:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                    signal.signal(number, self._note)
                    self.callback(signal.signal, number, before)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True
        self.close()  # from now on the signals act as they did before
