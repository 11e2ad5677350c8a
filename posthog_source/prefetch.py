"""Ordered, bounded look-ahead.

Works on the next few items while the caller uses the present one; results come back in order. Memory is
one result per item in flight. Not here: what the work is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_prefetch(
    work: Callable[[Item], Result], items: Iterable[Item], *, depth: int
) -> Iterator[tuple[Item, Result]]:
    """Yields `(item, work(item))` in the items' order, with up to `depth` items being worked on.

    An error is raised in its item's turn; work not begun by then is dropped. Closing the generator
    drops it too, and waits for what has begun.
    """
    remaining = iter(items)
    in_flight: deque[tuple[Item, Future[Result]]] = deque()
    executor = ThreadPoolExecutor(depth, thread_name_prefix="posthog_source")
    try:
        for item in islice(remaining, depth):
            in_flight.append((item, executor.submit(work, item)))
        while in_flight:
            item, future = in_flight.popleft()
            result = future.result()
            for following in islice(remaining, 1):
                in_flight.append((following, executor.submit(work, following)))
            yield item, result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
