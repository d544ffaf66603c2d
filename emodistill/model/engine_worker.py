"""The thread that generates: an engine for each model in use, stepped in turn.

Everything that touches an engine happens in that thread. The event loop hands it work and gets the
tokens back, as many as a request may have at most, so that whoever reads slowly holds up no step.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from emodistill.errors import EmodistillError

if TYPE_CHECKING:
    from emodistill.model.engine import Engine, GenerationRequest, NewTokens

log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
"""What names a model: an adapter, or None for the base."""


class GenerationFailedError(EmodistillError):
    """An engine has failed, and what it served is lost; the next request gets a new one."""


@dataclasses.dataclass(slots=True)
class Totals:
    """What all engines have done so far, those that are gone among them."""

    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0

    def plus(self, counters: Any) -> Totals:
        names = [field.name for field in dataclasses.fields(self)]
        return Totals(*(getattr(self, name) + getattr(counters, name) for name in names))


class _Ticket(Generic[Key]):
    """A request that an engine serves, and where the event loop gets its tokens."""

    def __init__(self, key: Key, on_end: Callable[[], None]) -> None:
        self.key = key
        self.updates: asyncio.Queue[NewTokens | Exception] = asyncio.Queue()
        self.handle: int | None = None
        self.has_begun = self.has_ended = False
        self._on_end = on_end

    def end(self) -> None:
        """The engine has done with it; called in the event loop."""
        if not self.has_ended:
            self.has_ended = True
            self._on_end()

    def give(self, update: NewTokens | Exception) -> None:
        self.updates.put_nowait(update)
        if isinstance(update, Exception) or update.generated is not None:
            self.end()


class EngineWorker(Generic[Key]):
    """Engines in a thread of their own. An async context manager.

    Args:
      make_engine: which model -> its engine, in the thread; raises InputError where that can't be.
      max_loaded: engines that are kept; of more, those go that were used least recently. None keeps
        them all.
    """

    def __init__(self, make_engine: Callable[[Key], Engine], max_loaded: int | None = None) -> None:
        self._make_engine = make_engine
        self._max_loaded = max_loaded
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._engines: dict[Key, Engine] = {}  # the one used last at the end
        self._tickets: dict[tuple[Key, int], _Ticket[Key]] = {}
        self._forgotten: set[Key] = set()
        self._gone = Totals()
        self._num_begun = 0
        self._counting = threading.Lock()  # a counter that falls for a moment would be read as anew
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="engines", daemon=True)
        self._loop: asyncio.AbstractEventLoop

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._jobs.put(self._close)
        await asyncio.to_thread(self._thread.join)

    def totals(self) -> Totals:
        """Counts for the metrics, as they are about now."""
        with self._counting:
            counted = [engine.counters for engine in self._engines.values()]
            totals = functools.reduce(Totals.plus, counted, self._gone)
        # The last token of a prompt enters with the first step of decoding.
        return dataclasses.replace(
            totals, prefilled_tokens=totals.prefilled_tokens + self._num_begun
        )

    async def load(self, key: Key) -> None:
        """Make the engine of `key`, unless it is there.

        Raises:
          InputError: the model can't be used.
        """
        done: asyncio.Future[None] = self._loop.create_future()

        def job() -> None:
            try:
                self._engine(key)
            except Exception as error:  # handed to the one who waits
                self._tell(_settle, done, error)
            else:
                self._tell(_settle, done, None)

        self._jobs.put(job)
        await done

    def forget(self, key: Key) -> None:
        """Drop the engine of `key` once what it serves is finished."""
        self._jobs.put(functools.partial(self._forget, key))

    async def generate(
        self, key: Key, request: GenerationRequest, on_end: Callable[[], None] = lambda: None
    ) -> AsyncGenerator[NewTokens, None]:
        """The tokens of a request as they come; to close the iterator cancels the request.

        Args:
          on_end: called once the engine has done with it, however slowly its tokens are read.

        Raises:
          InputError: the model can't be used, or the request.
          GenerationFailedError: the engine has failed.
        """
        ticket = _Ticket(key, on_end)
        self._jobs.put(functools.partial(self._add, ticket, request))
        try:
            while True:
                update = await ticket.updates.get()
                if isinstance(update, Exception):
                    raise update
                yield update
                if update.generated is not None:
                    return
        finally:
            if not ticket.has_ended:
                self._jobs.put(functools.partial(self._cancel, ticket))
                ticket.end()

    # What follows runs in the thread.

    def _work(self) -> None:
        while not self._is_closed:
            is_busy = any(engine.num_unfinished for engine in self._engines.values())
            with contextlib.suppress(queue.Empty):
                self._jobs.get(block=not is_busy)()
                while True:
                    self._jobs.get_nowait()()
            for key, engine in [*self._engines.items()]:
                if engine.num_unfinished:
                    self._step(key, engine)
            self._drop_unused()

    def _close(self) -> None:
        self._is_closed = True

    def _forget(self, key: Key) -> None:
        self._forgotten.add(key)
        self._drop_unused()

    def _engine(self, key: Key) -> Engine:
        made = self._engines.get(key) or self._make_engine(key)
        with self._counting:
            self._engines.pop(key, None)
            self._engines[key] = made
        return made

    def _add(self, ticket: _Ticket[Key], request: GenerationRequest) -> None:
        if ticket.has_ended:  # cancelled before it was seen
            return
        try:
            ticket.handle = self._engine(ticket.key).add(request)
        except Exception as error:  # handed to the one who waits
            self._tell(ticket.give, error)
        else:
            self._tickets[ticket.key, ticket.handle] = ticket

    def _cancel(self, ticket: _Ticket[Key]) -> None:
        engine = self._engines.get(ticket.key)
        # An engine that was made anew counts its handles anew; the ticket tells whose this one is.
        if ticket.handle is None or engine is None:
            return
        if self._tickets.get((ticket.key, ticket.handle)) is ticket:
            engine.cancel(ticket.handle)
            del self._tickets[ticket.key, ticket.handle]

    def _step(self, key: Key, engine: Engine) -> None:
        try:
            progress: Sequence[NewTokens] = engine.step()
        except Exception as error:  # such as memory that has run out; the others' engines go on
            name = "the base" if key is None else key
            log.exception("%s: its engine failed; the next request gets a new one.", name)
            failure = GenerationFailedError(f"generation failed with {name}: {error}")
            failure.__cause__ = error
            for place in [place for place in self._tickets if place[0] == key]:
                self._tell(self._tickets.pop(place).give, failure)
            self._drop(key)
            return
        given = []
        for one in progress:
            place = key, one.handle
            ticket = self._tickets.get(place) if one.generated is None else self._tickets.pop(place)
            if ticket is not None:
                self._num_begun += not ticket.has_begun
                ticket.has_begun = True
                given.append((ticket, one))
        self._tell(_give_all, given)

    def _drop(self, key: Key) -> None:
        with self._counting:
            engine = self._engines.pop(key, None)
            if engine is not None:
                self._gone = self._gone.plus(engine.counters)

    def _drop_unused(self) -> None:
        idle = [key for key, engine in self._engines.items() if not engine.num_unfinished]
        most = len(self._engines) if self._max_loaded is None else self._max_loaded
        for key in idle:
            is_too_many = len(self._engines) > most and key != idle[-1]
            if is_too_many or key in self._forgotten:
                self._drop(key)
        self._forgotten &= self._engines.keys()

    def _tell(self, what: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(what, *args)


def _give_all(given: Sequence[tuple[_Ticket, NewTokens]]) -> None:
    for ticket, progress in given:
        ticket.give(progress)


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():  # whoever waited was cancelled
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
