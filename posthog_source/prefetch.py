"""Ordered, bounded look-ahead.

Works on the next few items while the caller uses the present one; results come back in order. Memory is
one result per item in flight. Not here: what the work is, and how it is stopped half-way (`client`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, wait
from contextvars import copy_context
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
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
    waiting: SimpleQueue[_Task[Item, Result] | None] = SimpleQueue()
    threads: list[threading.Thread] = []
    try:
        for item in islice(remaining, depth):
            in_flight.append(_Task(item, Future()))
            waiting.put(in_flight[-1])
            _start(work, waiting, threads)
        while in_flight:
            in_flight[0].result.result()
            task = in_flight.popleft()
            for following in islice(remaining, 1):
                in_flight.append(_Task(following, Future()))
                waiting.put(in_flight[-1])
            yield task.item, task.result.result()
            del task  # not kept while the next one is awaited
    finally:
        are_done = _take_leave(in_flight, cancel, farewell_s)
        waiting.put(None)
        for thread in filter(threading.Thread.is_alive, threads if are_done else ()):
            thread.join()


@dataclass(frozen=True)
class _Task(Generic[Item, Result]):
    item: Item
    result: Future[Result]


def _start(
    work: Callable[[Item], Result],
    waiting: SimpleQueue[_Task[Item, Result] | None],
    threads: list[threading.Thread],
) -> None:
    """One thread more, which works off what is waiting.

    It stays for all items: the heaps of threads that come and go hold on to what pages took. A daemon, unlike
    an executor's threads, which hold up the end of the process. In the context of whom it works for, where
    OpenTelemetry keeps the span that is open.
    """
    thread = threading.Thread(
        target=copy_context().run, args=(_work_off, work, waiting), name="posthog_source", daemon=True
    )
    threads.append(thread)  # before it starts: Ctrl-C may come in between
    thread.start()


def _work_off(work: Callable[[Item], Result], waiting: SimpleQueue[_Task[Item, Result] | None]) -> None:
    while (task := waiting.get()) is not None:
        try:
            task.result.set_result(work(task.item))
        except BaseException as error:  # noqa: BLE001  # raised in the item's turn
            task.result.set_exception(error)
        del task  # nor its result while the next one is awaited
    waiting.put(None)  # the end is for all threads, however many Ctrl-C let start


def _take_leave(
    tasks: Collection[_Task[Item, Result]], cancel: Callable[[], None], farewell_s: float
) -> bool:
    """Has tasks end, and waits for it, within bounds; whether they did."""
    if not all(task.result.done() for task in tasks):
        cancel()
    _, going_on = wait([task.result for task in tasks], timeout=farewell_s)
    return not going_on
