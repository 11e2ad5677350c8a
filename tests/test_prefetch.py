"""prefetch: in order, bounded, and nothing is left running."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthog_source.prefetch import ordered_prefetch

PATIENCE_S = 20.0
"""Only a test that fails waits this long."""


@dataclass
class Gauge:
    """How many are at work, and how many at most ever were."""

    now: int = 0
    most: int = 0
    begun: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, item: int) -> None:
        with self._lock:
            self.begun.append(item)
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self._lock:
            self.now -= 1


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("posthog_source")]


@given(items=st.lists(st.integers()), depth=st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_every_item_comes_with_its_result_in_order(items: list[int], depth: int) -> None:
    assert list(ordered_prefetch(lambda item: item * 2, items, depth=depth)) == [(i, i * 2) for i in items]


def test_order_is_kept_when_later_items_are_done_first() -> None:
    done = [threading.Event() for _ in range(3)]

    def work(item: int) -> int:
        if item < 2:
            assert done[item + 1].wait(PATIENCE_S)  # the last is done first
        done[item].set()
        return item

    assert [item for item, _ in ordered_prefetch(work, range(3), depth=3)] == [0, 1, 2]


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_as_many_as_the_depth_are_worked_on_at_once_and_never_more(depth: int) -> None:
    gauge = Gauge()
    together = threading.Barrier(depth)

    def work(item: int) -> int:
        gauge.enter(item)
        together.wait(PATIENCE_S)  # passes only when `depth` are here at once
        gauge.leave()
        return item

    assert len(list(ordered_prefetch(work, range(4 * depth), depth=depth))) == 4 * depth
    assert gauge.most == depth


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_more_than_the_depth_is_begun_beyond_the_item_in_hand(depth: int) -> None:
    begun = [threading.Event() for _ in range(20)]
    count = itertools.count(1)
    numbers: list[int] = []

    def work(item: int) -> int:
        numbers.append(next(count))
        begun[item].set()
        return item

    for item, _ in ordered_prefetch(work, range(20), depth=depth):
        ahead = min(item + depth, 19)
        assert all(event.wait(PATIENCE_S) for event in begun[: ahead + 1])
        assert len(numbers) == ahead + 1


def test_items_are_taken_only_as_they_are_needed() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for number in itertools.count():
            taken.append(number)
            yield number

    with closing(ordered_prefetch(lambda item: item, endless(), depth=3)) as results:  # type: ignore[type-var]
        assert next(results) == (0, 0)

    assert taken == [0, 1, 2, 3]


def test_an_error_is_raised_in_its_items_turn() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("the third")
        return item

    results = ordered_prefetch(work, range(10), depth=4)
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(ValueError, match="the third"):
        next(results)

    assert our_threads() == []


def test_work_not_begun_before_an_error_is_dropped() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(ordered_prefetch(work, range(1_000), depth=2))

    assert len(begun) <= 2


def test_closing_early_cancels_what_has_begun_and_begins_nothing_new() -> None:
    gauge, is_cancelled = Gauge(), threading.Event()

    def work(item: int) -> int:
        gauge.enter(item)
        assert item == 0 or is_cancelled.wait(PATIENCE_S)
        return item

    with closing(ordered_prefetch(work, range(1_000), depth=4, cancel=is_cancelled.set)) as results:  # type: ignore[type-var]
        assert next(results) == (0, 0)
        assert our_threads() != []
        assert not is_cancelled.is_set()

    assert our_threads() == []
    assert max(gauge.begun) <= 4


def test_an_error_cancels_the_work_behind_it() -> None:
    is_cancelled = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            raise ValueError("the first")
        assert is_cancelled.wait(PATIENCE_S)
        return item

    with pytest.raises(ValueError, match="the first"):
        next(iter(ordered_prefetch(work, range(9), depth=3, cancel=is_cancelled.set)))

    assert our_threads() == []


def test_what_comes_to_its_end_is_not_cancelled() -> None:
    is_cancelled = threading.Event()

    assert len(list(ordered_prefetch(str, range(9), depth=3, cancel=is_cancelled.set))) == 9
    assert not is_cancelled.is_set()


def test_work_that_does_not_end_holds_up_neither_the_caller_for_long_nor_the_end_of_the_process() -> None:
    script = """if True:
        import threading
        from posthog_source.prefetch import ordered_prefetch

        def work(item):
            if item == 1:
                threading.Event().wait()
            return item

        results = ordered_prefetch(work, range(9), depth=2, farewell_s=0.01)
        print(next(results))
        results.close()
        print("closed")
    """

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S)

    assert (ended.stdout, ended.returncode) == ("(0, 0)\nclosed\n", 0)


def test_closing_waits_for_what_has_begun() -> None:
    has_begun, may_end = threading.Event(), threading.Event()
    ended: list[int] = []

    def work(item: int) -> int:
        if item == 1:
            has_begun.set()
            assert may_end.wait(PATIENCE_S)
            ended.append(item)
        return item

    results = ordered_prefetch(work, range(3), depth=2)
    assert next(results) == (0, 0)
    assert has_begun.wait(PATIENCE_S)
    closer = threading.Thread(target=results.close)  # type: ignore[attr-defined]
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    may_end.set()
    closer.join(PATIENCE_S)

    assert not closer.is_alive()
    assert ended == [1]
    assert our_threads() == []


def test_nothing_to_do_is_no_result_and_no_thread() -> None:
    assert list(ordered_prefetch(lambda item: item, [], depth=2)) == []
    assert our_threads() == []


def test_nothing_begins_before_the_first_result_is_asked_for() -> None:
    begun: list[int] = []

    ordered_prefetch(begun.append, range(3), depth=2)

    assert begun == []
