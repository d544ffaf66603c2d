"""Many API jobs, a bounded number at once: the queue behind the sweep, the judge and evaluation."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeVar

from emodistill.errors import ApiError
from emodistill.llm.client import CeilingError, ExhaustedError, RefusedError
from emodistill.negotiation.writers import EmptyReplyError

log = logging.getLogger("emodistill.offline")

NUM_FAILURES_IN_A_ROW = 20
TICK_S = 5.0
GC_THRESHOLDS = (20_000, 20, 20)

Job = TypeVar("Job")


async def run_bounded(
    jobs: Iterable[Job],
    work: Callable[[Job], Awaitable[None]],
    *,
    concurrency: int,
    on_failure: Callable[[Job, ApiError], None],
    admits: Callable[[], bool] = lambda: True,
    on_tick: Callable[[], None] = lambda: None,
) -> bool:
    """Do all jobs, `concurrency` at a time, each taken from `jobs` only when a worker is free.

    A job that the server refuses, or that gets no text, has failed for good: `on_failure`. One
    whose attempts are exhausted gets a second round after all others; then it has failed too.
    Other errors stop everything at once, as do many failures in a row. `admits` is asked before
    each job; once it says no, what is in flight is finished and nothing more begun. `on_tick` is
    called every few seconds in which no worker has come to an end.

    Returns:
      False where SIGINT or SIGTERM cut it short; jobs in flight are then given up.

    Raises:
      ApiError: nothing works (no live key, nobody there, failure after failure).
    """
    deferred: list[Job] = []
    in_a_row = 0
    ceiling = max(NUM_FAILURES_IN_A_ROW, 3 * concurrency)

    def fail(error: ApiError) -> None:
        nonlocal in_a_row
        in_a_row += 1
        if in_a_row >= ceiling:
            raise ApiError(f"{ceiling} calls in a row failed, so this stops. The last: {error}")

    async def attempt(job: Job, is_last: bool) -> None:
        nonlocal in_a_row
        try:
            await work(job)
        except (RefusedError, EmptyReplyError) as error:
            on_failure(job, error)
            fail(error)
        except CeilingError:
            pass  # `admits` says so too; what the job has got so far is kept
        except ExhaustedError as error:
            if is_last:
                on_failure(job, error)
            else:
                deferred.append(job)
                log.warning("put off to the end: %s", error)
            fail(error)
        else:
            in_a_row = 0

    with _interruptible() as stop, _settled_heap():
        for is_last, queue in ((False, jobs), (True, deferred)):
            admitted = itertools.takewhile(lambda job: admits(), queue)
            drained = await _drain(
                admitted, functools.partial(attempt, is_last=is_last), concurrency, stop, on_tick
            )
            if not drained:
                return False
            in_a_row = 0
        return True


async def _drain(
    jobs: Iterable[Job],
    work: Callable[[Job], Awaitable[None]],
    concurrency: int,
    stop: asyncio.Event,
    on_tick: Callable[[], None],
) -> bool:
    source = iter(jobs)

    async def worker() -> None:
        for job in source:
            await work(job)

    workers = [asyncio.create_task(worker()) for _ in range(concurrency)]
    stopped = asyncio.create_task(stop.wait())
    try:
        running = set(workers)
        while running and not stop.is_set():
            done, _ = await asyncio.wait(
                {*running, stopped}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                on_tick()
            for task in done & running:
                task.result()  # raises what went wrong there
            running -= done
        return not running
    finally:
        tasks: list[asyncio.Task[Any]] = [*workers, stopped]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _settled_heap() -> Iterator[None]:
    """What is loaded by now stays anyway, so the garbage collector need not look at it again; and
    calls come and go by the thousand, so it looks less often at those."""
    gc.collect()
    gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


@contextlib.contextmanager
def _interruptible() -> Iterator[asyncio.Event]:
    """Turns the first SIGINT or SIGTERM into an event; a second one acts as usual."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def release() -> None:
        for number in signals:
            if loop.remove_signal_handler(number) and before[number] is not None:
                signal.signal(number, before[number])

    def on_signal() -> None:
        stop.set()
        release()

    if threading.current_thread() is threading.main_thread():
        for number in signals:
            loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        release()
