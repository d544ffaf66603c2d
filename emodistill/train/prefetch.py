"""Input that is made by a thread while the device works."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def prefetched(make: Callable[[K], T], numbers: Iterable[K], *, ahead: int) -> Iterator[T]:
    """`make(number)` for each, in order, up to `ahead` of them made before they are asked for.

    An error of `make` is raised where its result would have come.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="input") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for number in numbers:
                waiting.append(pool.submit(make, number))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
