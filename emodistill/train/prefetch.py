"""Input that a thread prepares while the device works."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def prefetched(make: Callable[[K], T], numbers: Iterable[K], *, ahead: int) -> Iterator[T]:
    """`make(number)` for each, in order, up to `ahead` of them made before they are asked for.

    An error of `make` is raised where its result would have come. One thread, so that `make` need
    not be safe for several.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="input") as pool:
        pending: deque[Future[T]] = deque()
        try:
            for number in numbers:
                pending.append(pool.submit(make, number))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
