"""Ordered, bounded look-ahead.

Works on the next few items while the caller uses the present one; results come back in order. Memory is
one result per item in flight. Not here: what the work is, and how it is stopped half-way (`client`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

FAREWELL_S = 5.0
"""Longer than it takes to cancel a query at PostHog and to read the answer to it."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_prefetch(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    depth: int,
    cancel: Callable[[], None] = lambda: None,
    farewell_s: float = FAREWELL_S,
) -> Iterator[tuple[Item, Result]]:
    """Yields `(item, work(item))` in the items' order, with up to `depth` items being worked on.

    An error is raised in its item's turn. Then, and when the generator is closed, work in flight is
    cancelled and dropped.

    Args:
        work: Runs in threads of its own, which do not keep the process alive.
        items: Taken only as they are needed.
        depth: Items worked on at once.
        cancel: Has work in flight end soon; called when it is wanted no more.
        farewell_s: How long to wait for that end; then the threads are left behind.
    """
    remaining = iter(items)
    in_flight: deque[_Task[Item, Result]] = deque()
    try:
        for item in islice(remaining, depth):
            _begin(work, item, in_flight)
        while in_flight:
            in_flight[0].result.result()
            task = in_flight.popleft()
            task.thread.join()
            for following in islice(remaining, 1):
                _begin(work, following, in_flight)
            yield task.item, task.result.result()
            del task  # not kept while the next one is awaited
    finally:
        _take_leave(in_flight, cancel, farewell_s)


@dataclass(frozen=True)
class _Task(Generic[Item, Result]):
    item: Item
    result: Future[Result]
    thread: threading.Thread


def _begin(work: Callable[[Item], Result], item: Item, in_flight: deque[_Task[Item, Result]]) -> None:
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(work(item))
        except BaseException as error:  # noqa: BLE001  # raised in the item's turn
            result.set_exception(error)

    # A daemon, unlike an executor's threads, which hold up the end of the process.
    thread = threading.Thread(target=run, name="posthog_source", daemon=True)
    in_flight.append(_Task(item, result, thread))  # first, since Ctrl-C may come while the thread starts
    thread.start()


def _take_leave(
    tasks: Collection[_Task[Item, Result]], cancel: Callable[[], None], farewell_s: float
) -> None:
    """Has tasks end, and waits for it, within bounds."""
    if not all(task.result.done() for task in tasks):
        cancel()
    ended, _ = wait([task.result for task in tasks], timeout=farewell_s)
    for task in tasks:
        if task.result in ended and task.thread.is_alive():
            task.thread.join()
