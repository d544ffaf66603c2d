"""Many API jobs, a bounded number at once: what the sweep, the judge and evaluation have in common.

Each keeps a job's result as soon as there is one, so that a later run does what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from emodistill.errors import ApiError
from emodistill.llm.client import CeilingError, ExhaustedError, RefusedError
from emodistill.llm.client_group import ClientGroup
from emodistill.llm.usage import Usage
from emodistill.negotiation.writers import EmptyReplyError
from emodistill.offline.budget import Budget
from emodistill.offline.readability import OfferShares
from emodistill.progress import Progress

log = logging.getLogger("emodistill.offline")

NUM_FAILURES_IN_A_ROW = 20
"""More than bad luck with single requests brings about; what follows would fail as well."""
TICK_S = 1.0
GC_THRESHOLDS = (20_000, 20, 20)
"""Above Python's own (700, 10, 10), at which the collector would be at work all the time."""

Job = TypeVar("Job")
StopReason = Literal["interrupted", "cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsResult:
    """What jobs have come to; counts are over all that were planned.

    `finished`, `failed` and `on_interrupt` are the stage's words for the line on the terminal.
    """

    num_planned: int
    num_finished: int
    num_failed: int
    num_new: int
    """Dialogues, or calls of a judge, that this run has added."""
    cost_usd: float
    """Of this run and of earlier ones."""
    stopped: StopReason | None
    """Why the run has ended before everything was done."""
    path: Path
    finished: str
    failed: str
    on_interrupt: str
    usage: Usage
    """Of this run and of earlier ones."""
    failure_rates: Mapping[str, float] = field(default_factory=dict)
    """Of a judging: failed over judged items, by focal method."""
    offers: OfferShares | None = None
    """Of dialogues: how many utterances have a readable offer."""

    @property
    def is_complete(self) -> bool:
        return self.num_finished + self.num_failed == self.num_planned

    def check(self, advice: str) -> None:
        """Refuse to go on from nothing.

        Raises:
          ApiError: everything that was planned has failed.
        """
        if self.num_failed and self.num_failed == self.num_planned:
            raise ApiError(f"{self.summary} Nothing can go on from this: {advice}.")

    @property
    def summary(self) -> str:
        """A line for the terminal."""
        text = f"{self.num_finished:,} of {self.num_planned:,} {self.finished}"
        if self.num_failed:
            text += f", {self.num_failed:,} {self.failed}"
        if self.cost_usd:
            text += f", ${self.cost_usd:.2f} spent"
        if thoughts := self.usage.reasoning_tokens:
            text += (
                f", {thoughts:,} of {self.usage.completion_tokens:,} written tokens were thoughts"
            )
        if unusual := self.usage.unusual:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in unusual.items())
            text += f" (answers: {kinds})"
        if self.stopped == "interrupted":
            text += f". Stopped as asked: {self.on_interrupt}"
        elif self.stopped == "cost":
            text += ". Stopped by --max-cost-usd; raise it and start again to go on"
        if self.offers is not None and self.offers.num_turns:
            text += f". {self.offers.text}"
        return f"{text}. They are in {self.path}." if self.num_finished else f"{text}."

    @property
    def shares(self) -> dict[str, Any]:
        """Of dialogues: what manifests keep of `offers`."""
        if self.offers is None:
            return {}
        return {"without_offer": self.offers.without, "far_offers": self.offers.far}


async def run_jobs(
    jobs: Iterable[Job],
    work: Callable[[Job], Awaitable[None]],
    *,
    on_failure: Callable[[Job, ApiError], None],
    clients: ClientGroup,
    budget: Budget,
    bar: Progress,
    concurrency: int,
    status: Callable[[], str],
    is_ordered: bool = False,
) -> StopReason | None:
    """Do all jobs within a budget, and show how far they are; see `run_bounded`.

    Args:
      bar: counts these jobs and those that were done before; not entered yet.
      status: what the progress line says of the results, before what it says of API and money.
      is_ordered: see `run_bounded`.

    Returns:
      Why it has ended with jobs undone; None where none is.
    """

    def advance(num_done: int) -> None:
        bar.advance(num_done, ", ".join(filter(None, (status(), clients.health, budget.note))))

    async def one(job: Job) -> None:
        budget.num_running += 1
        try:
            await work(job)
        finally:
            budget.num_running -= 1
        advance(1)

    def fail(job: Job, error: ApiError) -> None:
        on_failure(job, error)
        advance(1)

    def tick() -> None:
        budget.save_now_and_then()
        advance(0)

    with budget, bar:
        ran_through = await run_bounded(
            jobs,
            one,
            concurrency=concurrency,
            on_failure=fail,
            admits=budget.admits,
            on_tick=tick,
            is_ordered=is_ordered,
        )
    if not ran_through:
        return "interrupted"
    return None if bar.done == bar.total else "cost"


async def run_bounded(
    jobs: Iterable[Job],
    work: Callable[[Job], Awaitable[None]],
    *,
    concurrency: int,
    on_failure: Callable[[Job, ApiError], None],
    admits: Callable[[], bool] = lambda: True,
    on_tick: Callable[[], None] = lambda: None,
    is_ordered: bool = False,
) -> bool:
    """Do all jobs, `concurrency` at a time, each taken from `jobs` only when a worker is free.

    A job that the server refuses, or that gets no text, has failed for good: `on_failure`. One
    whose attempts are exhausted gets a second round after all others; then it has failed too.
    Other errors stop everything at once, as do many failures in a row. `admits` is asked before
    each job; once it says no, what is in flight is finished and nothing more begun. `on_tick` is
    called about every second. Where jobs wait for earlier ones (`is_ordered`), none is put off.

    Returns:
      False where SIGINT or SIGTERM cut it short; jobs in flight are then given up.

    Raises:
      ApiError: nothing works (no live key, nobody there, failure after failure).
    """
    deferred: list[Job] = []
    in_a_row = 0
    ceiling = max(NUM_FAILURES_IN_A_ROW, 3 * concurrency)

    async def attempt(job: Job, is_last: bool) -> None:
        nonlocal in_a_row
        try:
            await work(job)
        except CeilingError:
            pass  # `admits` says so too; what the job has got so far is kept
        except (RefusedError, EmptyReplyError, ExhaustedError) as error:
            if is_last or is_ordered or not isinstance(error, ExhaustedError):
                on_failure(job, error)
            else:
                deferred.append(job)
                log.warning("put off to the end: %s", error)
            in_a_row += 1
            if in_a_row >= ceiling:
                raise ApiError(
                    f"{ceiling} calls in a row failed, so this stops. The last: {error}"
                ) from error
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
            await asyncio.sleep(0)  # simulated models answer at once, and signals need the loop

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
    is_ours = gc.get_freeze_count() == 0  # whoever has frozen the heap before will unfreeze it
    if is_ours:
        gc.collect()
        gc.freeze()
    thresholds = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if is_ours:
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
