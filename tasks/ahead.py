"""Threads that work on items a bounded number ahead of the reader, so that storage is not waited for item by item."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int, window: int | None = None) -> Iterator[R]:
    """`function(item)` in the order of the items, done by threads; what it raises is raised here.

    window: results that may wait for the reader, by default two for each thread.
    """
    window = 2 * threads if window is None else window
    waiting: collections.deque[Future[R]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
