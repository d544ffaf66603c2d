"""Being asked to stop: Ctrl-C, or the SIGTERM with which schedulers announce a preemption."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a note; a second one acts as usual.

    A signal that this process was started to ignore stays ignored.

    Of several processes any may be asked (by SIGTERM); JAX then tells all of them the step at
    which to stop together.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self._before: dict[int, Any] = {}

    def is_due(self, step: int) -> bool:
        """Whether to stop after `step`; of several processes, all ask at every step."""
        if jax.process_count() == 1:
            return self._is_asked
        return multihost_utils.reached_preemption_sync_point(step)

    def __enter__(self) -> Self:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            handled = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_asked = True
        self._release()

    def _release(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
