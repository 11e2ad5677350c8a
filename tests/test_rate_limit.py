"""rate_limit: no window of time ever holds more calls than allowed, whoever calls whenever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthog_source.rate_limit import Rate, RateLimiter, next_call_at

rates_lists = st.lists(st.builds(Rate, st.integers(1, 6), st.integers(1, 60)), min_size=1, max_size=3)


@dataclass
class FakeClock:
    """Whole seconds that pass only when someone sleeps; it remembers what each thread read last."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: threading.local = field(default_factory=threading.local)

    def read(self) -> float:
        with self._lock:
            self._seen.at = self.now
            return self.now

    def sleep(self, seconds: float) -> None:
        """Until `seconds` after what this thread read; others may have moved the clock there already."""
        with self._lock:
            self.slept.append(seconds)
            self.now = max(self.now, self._seen.at + seconds)

    def last_read(self) -> float:
        at: float = self._seen.at
        return at


def limiter_on(clock: FakeClock, rates: Sequence[Rate]) -> RateLimiter:
    return RateLimiter(rates, clock=clock.read, sleep=clock.sleep)


def assert_kept(sent: Sequence[float], rates: Sequence[Rate]) -> None:
    """No half-open window of `per_s` seconds holds more than `calls` calls."""
    for rate in rates:
        for first, beyond in zip(sent, sent[rate.calls :], strict=False):
            assert beyond - first >= rate.per_s


@given(rates=rates_lists, gaps=st.lists(st.integers(0, 40), max_size=60))
@settings(deadline=None)
def test_no_window_of_time_holds_more_calls_than_its_rate_allows(rates: list[Rate], gaps: list[int]) -> None:
    clock = FakeClock()
    limiter = limiter_on(clock, rates)
    sent = []
    for gap in gaps:
        clock.now += gap
        limiter.acquire()
        sent.append(clock.now)

    assert_kept(sent, rates)


@given(rates=rates_lists, gaps=st.lists(st.integers(0, 40), max_size=60))
@settings(deadline=None)
def test_no_call_waits_longer_than_the_rates_demand(rates: list[Rate], gaps: list[int]) -> None:
    clock = FakeClock()
    limiter = limiter_on(clock, rates)
    sent: list[float] = []
    for gap in gaps:
        clock.now += gap
        asked = clock.now
        waited_s = limiter.acquire()
        free = max([asked, *(sent[-rate.calls] + rate.per_s for rate in rates if len(sent) >= rate.calls)])
        sent.append(clock.now)
        assert clock.now == free
        assert waited_s == free - asked


@given(
    rates=rates_lists,
    steps=st.lists(st.tuples(st.sampled_from(["call", "pause", "tick"]), st.integers(0, 50)), max_size=60),
)
@settings(deadline=None)
def test_nobody_goes_through_while_a_pause_lasts(rates: list[Rate], steps: list[tuple[str, int]]) -> None:
    clock = FakeClock()
    limiter = limiter_on(clock, rates)
    paused_until = 0.0
    sent = []
    for what, seconds in steps:
        if what == "tick":
            clock.now += seconds
        elif what == "pause":
            limiter.pause(seconds)
            paused_until = max(paused_until, clock.now + seconds)
        else:
            limiter.acquire()
            sent.append(clock.now)
            assert clock.now >= paused_until

    assert_kept(sent, rates)


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = FakeClock()
    limiter = limiter_on(clock, [Rate(100, 1)])
    limiter.pause(60)
    limiter.pause(5)

    assert limiter.acquire() == 60


def test_a_pause_that_has_passed_holds_nobody() -> None:
    clock = FakeClock()
    limiter = limiter_on(clock, [Rate(100, 1)])
    limiter.pause(60)
    clock.now += 60

    assert limiter.acquire() == 0
    assert clock.slept == []


def test_a_pause_set_during_a_wait_holds_the_one_who_waits() -> None:
    clock = FakeClock()

    def sleep_while_another_is_told_to_wait(seconds: float) -> None:
        if not clock.slept:
            limiter.pause(100)
        clock.sleep(seconds)

    limiter = RateLimiter([Rate(1, 10)], clock=clock.read, sleep=sleep_while_another_is_told_to_wait)
    limiter.acquire()

    assert limiter.acquire() == 100
    assert clock.slept == [10, 90]


def test_without_rates_nobody_waits() -> None:
    clock = FakeClock()
    limiter = limiter_on(clock, [])

    assert [limiter.acquire() for _ in range(5)] == [0] * 5


def test_posthogs_own_limits_of_a_key_spread_an_hour_of_calls_over_an_hour() -> None:
    clock = FakeClock()
    rates = [Rate(240, 60), Rate(2_400, 3_600)]
    limiter = limiter_on(clock, rates)
    sent = []
    for _ in range(2_401):
        limiter.acquire()
        sent.append(clock.now)

    assert_kept(sent, rates)
    assert sent[239] == 0
    assert sent[240] == 60
    assert sent[2_400] == 3_600


@pytest.mark.parametrize(
    ("sent", "now", "at"),
    [
        ([], 7.0, 7.0),
        ([7.0], 7.0, 7.0),
        ([7.0, 7.0], 7.0, 17.0),
        ([0.0, 7.0], 7.0, 10.0),
        ([0.0, 7.0], 10.0, 10.0),
        ([0.0, 7.0], 100.0, 100.0),
        ([0.0, 1.0, 2.0], 3.0, 11.0),
    ],
)
def test_the_next_call_goes_when_the_oldest_that_counts_has_left_the_window(
    sent: list[float], now: float, at: float
) -> None:
    assert next_call_at(sent, [Rate(2, 10.0)], now) == at


def run_in_threads(work: Callable[[], None], *, threads: int) -> None:
    """Runs `work` in so many threads at once, and raises what any of them raised."""
    start = threading.Barrier(threads)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            start.wait(timeout=10)
            work()
        except BaseException as error:  # noqa: BLE001  # handed on below
            failures.append(error)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in running)
    if failures:
        raise failures[0]


@pytest.mark.parametrize("rates", [[Rate(3, 10)], [Rate(5, 7), Rate(20, 100)], [Rate(1, 1)]])
def test_eight_threads_together_keep_the_rates(rates: list[Rate]) -> None:
    clock = FakeClock()
    limiter = limiter_on(clock, rates)
    sent: list[float] = []

    def call() -> None:
        for _ in range(12):
            limiter.acquire()
            sent.append(clock.last_read())

    run_in_threads(call, threads=8)

    assert len(sent) == 8 * 12
    assert_kept(sorted(sent), rates)


def test_a_pause_holds_all_threads() -> None:
    clock = FakeClock()
    limiter = limiter_on(clock, [Rate(1_000, 1)])
    limiter.pause(45)
    sent: list[float] = []

    def call() -> None:
        limiter.acquire()
        sent.append(clock.last_read())

    run_in_threads(call, threads=8)

    assert len(sent) == 8
    assert min(sent) >= 45
