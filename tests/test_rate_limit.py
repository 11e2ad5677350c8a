"""rate_limit: no window of time ever holds more calls than allowed, whoever calls whenever."""

from __future__ import annotations

import heapq
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthog_emulator.throttle import Throttle
from posthog_source.rate_limit import (
    GOOD_ANSWERS_PER_PLACE,
    SHARE_KEPT_S,
    Gate,
    Rate,
    Share,
    learn_share,
    next_call_at,
    shared_gate,
)

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


def gate_on(clock: FakeClock, rates: Sequence[Rate], *, places: int = 10**6) -> Gate:
    return Gate({"calls": rates}, places=places, clock=clock.read, sleep=clock.sleep)


def assert_kept(sent: Sequence[float], rates: Sequence[Rate]) -> None:
    """No half-open window of `per_s` seconds holds more than `calls` calls."""
    for rate in rates:
        for first, beyond in zip(sent, sent[rate.calls :], strict=False):
            assert beyond - first >= rate.per_s


@given(rates=rates_lists, gaps=st.lists(st.integers(0, 40), max_size=60))
@settings(deadline=None)
def test_no_window_of_time_holds_more_calls_than_its_rate_allows(rates: list[Rate], gaps: list[int]) -> None:
    clock = FakeClock()
    gate = gate_on(clock, rates)
    sent = []
    for gap in gaps:
        clock.now += gap
        gate.enter("calls")
        sent.append(clock.now)

    assert_kept(sent, rates)


@given(rates=rates_lists, gaps=st.lists(st.integers(0, 40), max_size=60))
@settings(deadline=None)
def test_no_call_waits_longer_than_the_rates_demand(rates: list[Rate], gaps: list[int]) -> None:
    clock = FakeClock()
    gate = gate_on(clock, rates)
    sent: list[float] = []
    for gap in gaps:
        clock.now += gap
        asked = clock.now
        waited_s = gate.enter("calls").waited_s
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
    gate = gate_on(clock, rates)
    paused_until = 0.0
    sent = []
    for what, seconds in steps:
        if what == "tick":
            clock.now += seconds
        elif what == "pause":
            gate.pause("calls", seconds)
            paused_until = max(paused_until, clock.now + seconds)
        else:
            gate.enter("calls")
            sent.append(clock.now)
            assert clock.now >= paused_until

    assert_kept(sent, rates)


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = FakeClock()
    gate = gate_on(clock, [Rate(100, 1)])
    gate.pause("calls", 60)
    gate.pause("calls", 5)

    assert gate.enter("calls").waited_s == 60


def test_a_pause_that_has_passed_holds_nobody() -> None:
    clock = FakeClock()
    gate = gate_on(clock, [Rate(100, 1)])
    gate.pause("calls", 60)
    clock.now += 60

    assert gate.enter("calls").waited_s == 0
    assert clock.slept == []


def test_a_pause_set_during_a_wait_holds_the_one_who_waits() -> None:
    clock = FakeClock()

    def sleep_while_another_is_told_to_wait(seconds: float) -> None:
        if not clock.slept:
            gate.pause("calls", 100)
        clock.sleep(seconds)

    gate = Gate(
        {"calls": [Rate(1, 10)]}, places=9, clock=clock.read, sleep=sleep_while_another_is_told_to_wait
    )
    gate.enter("calls")

    assert gate.enter("calls").waited_s == 100
    assert clock.slept == [10, 90]


def test_without_rates_nobody_waits() -> None:
    clock = FakeClock()
    gate = gate_on(clock, [])

    assert [gate.enter("calls").waited_s for _ in range(5)] == [0] * 5


def test_what_is_left_of_the_longest_rate_is_told_and_comes_back_with_time() -> None:
    clock = FakeClock()
    gate = gate_on(clock, [Rate(2, 10), Rate(5, 100)])
    for _ in range(3):  # the third one waits for the shorter rate
        gate.leave(gate.enter("calls"))

    assert gate.calls_left("calls") == 2
    clock.now = 105
    assert gate.calls_left("calls") == 4
    clock.now = 200
    assert gate.calls_left("calls") == 5


def test_of_two_rates_of_the_same_time_the_stricter_one_says_what_is_left() -> None:
    gate = gate_on(FakeClock(), [Rate(9, 100), Rate(5, 100)])
    gate.leave(gate.enter("calls"))

    assert gate.calls_left("calls") == 4


def test_posthogs_own_limits_of_a_key_spread_an_hour_of_calls_over_an_hour() -> None:
    clock = FakeClock()
    rates = [Rate(240, 60), Rate(2_400, 3_600)]
    gate = gate_on(clock, rates)
    sent = []
    for _ in range(2_401):
        gate.enter("calls")
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
    gate = gate_on(clock, rates)
    sent: list[float] = []

    def call() -> None:
        for _ in range(12):
            gate.enter("calls")
            sent.append(clock.last_read())

    run_in_threads(call, threads=8)

    assert len(sent) == 8 * 12
    assert_kept(sorted(sent), rates)


def test_a_pause_holds_all_threads() -> None:
    clock = FakeClock()
    gate = gate_on(clock, [Rate(1_000, 1)])
    gate.pause("calls", 45)
    sent: list[float] = []

    def call() -> None:
        gate.enter("calls")
        sent.append(clock.last_read())

    run_in_threads(call, threads=8)

    assert len(sent) == 8
    assert min(sent) >= 45


PATIENCE_S = 20.0
"""Only a test that fails waits this long."""


class GivenUpError(Exception):
    """What the checks of these tests raise."""


@dataclass
class Watch:
    """A check that says when someone is about to wait, and ends the wait when told to."""

    looked: threading.Event = field(default_factory=threading.Event)
    is_over: bool = False

    def __call__(self, pause_s: float) -> None:
        if self.is_over:
            raise GivenUpError
        self.looked.set()


def test_a_pause_set_while_someone_waits_for_a_place_holds_them_too() -> None:
    clock, watch = FakeClock(), Watch()
    gate = gate_on(clock, [Rate(100, 1)], places=1)
    inside = gate.enter("calls")
    sent: list[float] = []

    def wait_for_a_place() -> None:
        gate.enter("calls", check=watch)
        sent.append(clock.last_read())

    thread = threading.Thread(target=wait_for_a_place)
    thread.start()
    assert watch.looked.wait(PATIENCE_S)
    gate.pause("calls", 50)
    gate.leave(inside)
    thread.join(PATIENCE_S)

    assert sent == [50]


@pytest.mark.parametrize("places", [1, 2, 5])
def test_no_more_are_inside_than_there_are_places_whatever_they_are_called(places: int) -> None:
    clock = FakeClock()
    rates = {"calls": [Rate(10**6, 1)], "others": [Rate(10**6, 1)]}
    gate = Gate(rates, places=places, clock=clock.read, sleep=clock.sleep)
    lock = threading.Lock()
    inside, most = 0, 0
    names = iter(["calls", "others"] * 4)

    def call() -> None:
        nonlocal inside, most
        with lock:
            name = next(names)
        for _ in range(50):
            turn = gate.enter(name)
            with lock:
                inside += 1
                most = max(most, inside)
            with lock:
                inside -= 1
            gate.leave(turn)

    run_in_threads(call, threads=8)

    assert most <= places


def can_enter(gate: Gate) -> bool:
    """Whether there is a place just now; takes it."""

    def only_once(pause_s: float) -> None:
        if entered:
            raise GivenUpError
        entered.append(True)

    entered: list[bool] = []
    outcome: list[bool] = []

    def enter() -> None:
        try:
            gate.enter("calls", check=only_once)
        except GivenUpError:
            outcome.append(False)
        else:
            outcome.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    while thread.is_alive():
        gate.wake()
    return outcome[0]


def test_a_narrowed_gate_has_one_place_and_good_answers_open_the_others_one_by_one() -> None:
    gate = gate_on(FakeClock(), [Rate(10**6, 1)], places=3)
    gate.leave(gate.enter("calls"))
    gate.narrow()

    assert [can_enter(gate), can_enter(gate)] == [True, False]
    for open_places in (2, 3):
        for _ in range(GOOD_ANSWERS_PER_PLACE - 1):
            gate.widen()
        assert not can_enter(gate), open_places
        gate.widen()
        assert [can_enter(gate), can_enter(gate)] == [True, False]
    for _ in range(3 * GOOD_ANSWERS_PER_PLACE):
        gate.widen()
    assert not can_enter(gate)


def test_those_who_are_inside_when_a_gate_is_narrowed_count() -> None:
    gate = gate_on(FakeClock(), [Rate(10**6, 1)], places=3)
    turns = [gate.enter("calls"), gate.enter("calls")]
    gate.narrow()

    gate.leave(turns[0])
    assert not can_enter(gate)
    gate.leave(turns[1])
    assert can_enter(gate)


def test_a_place_is_freed_once_however_often_it_is_given_back() -> None:
    gate = gate_on(FakeClock(), [Rate(10**6, 1)], places=1)
    turn = gate.enter("calls")
    gate.leave(turn)
    gate.leave(turn)

    assert [can_enter(gate), can_enter(gate)] == [True, False]


@pytest.mark.parametrize("what", ["pause", "rate", "place", "wait"])
def test_a_wait_of_an_hour_ends_at_once_when_it_is_given_up(what: str) -> None:
    gate = Gate({"calls": [Rate(1 if what == "rate" else 9, 3_600)]}, places=1 if what == "place" else 9)
    watch = Watch()
    if what == "pause":
        gate.pause("calls", 3_600)
    elif what in ("rate", "place"):
        gate.enter("calls")
    ended: list[str] = []

    def wait() -> None:
        try:
            if what == "wait":
                gate.wait(3_600, check=watch)
            else:
                gate.enter("calls", check=watch)
        except GivenUpError:
            ended.append(what)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert watch.looked.wait(PATIENCE_S)
    watch.is_over = True
    gate.wake()
    thread.join(PATIENCE_S)

    assert ended == [what]


def test_who_waits_is_told_how_long_the_pause_is() -> None:
    gate = gate_on(FakeClock(), [Rate(9, 1)])
    gate.pause("calls", 2_202)
    told: list[float] = []

    gate.enter("calls", check=told.append)

    assert told == [2_202, 0]


def test_an_owner_has_one_gate_and_another_owner_another() -> None:
    rates = {"calls": [Rate(9, 60)]}
    me, you = str(uuid.uuid4()), str(uuid.uuid4())
    mine, again, other = (shared_gate(owner, rates, places=2) for owner in (me, me, you))

    assert mine is again
    assert mine is not other


def test_a_gate_that_nobody_holds_is_forgotten() -> None:
    owner = str(uuid.uuid4())
    gate = shared_gate(owner, {"calls": [Rate(9, 60)]}, places=1)
    assert can_enter(gate)
    del gate

    assert can_enter(shared_gate(owner, {"calls": [Rate(9, 60)]}, places=1))


@pytest.mark.parametrize("comes_first", ["the milder", "the stricter"])
@pytest.mark.parametrize(("rate", "places", "fit"), [(Rate(2, 60), 9, 2), (Rate(9, 60), 3, 3)])
def test_of_two_who_share_a_gate_the_stricter_limits_count(
    comes_first: str, rate: Rate, places: int, fit: int
) -> None:
    owner = str(uuid.uuid4())
    limits = [(Rate(9, 60), 9), (rate, places)]
    if comes_first == "the stricter":
        limits.reverse()
    gates = [shared_gate(owner, {"calls": [each]}, places=places) for each, places in limits]

    assert [can_enter(gates[n % 2]) for n in range(fit + 1)] == [True] * fit + [False]


def test_calls_made_before_the_limits_were_tightened_count() -> None:
    clock = FakeClock()
    gate = gate_on(clock, [Rate(2, 60)])
    gate.leave(gate.enter("calls"))
    gate.tighten({"calls": [Rate(3, 3_600)]}, places=9)
    sent = []
    for _ in range(4):
        gate.leave(gate.enter("calls"))
        sent.append(clock.now)

    assert sent == [0, 60, 3_600, 3_600]


class MustWaitError(Exception):
    """Raised in place of a wait, so that one thread can play many workers."""


def must_wait(seconds: float) -> None:
    raise MustWaitError(seconds)


@dataclass
class Workers:
    """Processes that know nothing of each other and always have more to ask, under one limit of PostHog's."""

    count: int
    limit: int
    seed: int = 1
    now: float = 0.0

    def play(self, until_s: float) -> Iterator[tuple[float, int, bool]]:
        """Each attempt: when it is sent, whose it is, and whether it is let in. Answers come in any order."""
        chance = random.Random(self.seed)
        throttle = Throttle(lambda: self.now)
        gates = [
            Gate({"queries": [Rate(self.limit, 60)]}, places=2, clock=lambda: self.now, sleep=must_wait)
            for _ in range(self.count)
        ]
        due: list[tuple[float, int, Any]] = [
            (chance.random(), n % self.count, None) for n in range(2 * self.count)
        ]
        heapq.heapify(due)
        while due and due[0][0] < until_s:
            self.now, worker, turn = heapq.heappop(due)
            gate = gates[worker]
            if turn is None:
                try:
                    heapq.heappush(due, (self.now + chance.uniform(0.01, 0.1), worker, gate.enter("queries")))
                except MustWaitError as wait:
                    heapq.heappush(due, (self.now + wait.args[0], worker, None))
                continue
            wait_s = throttle.wait_s("key", "queries", (self.limit,))
            yield turn.at, worker, wait_s is None
            if wait_s is not None:
                gate.refuse("queries", turn, wait_s)
            gate.leave(turn)
            heapq.heappush(due, (self.now + (wait_s or chance.uniform(0.1, 0.5)), worker, None))


@pytest.mark.parametrize("workers", [1, 2, 8, 15])
def test_workers_who_do_not_know_of_each_other_keep_one_limit_together_after_a_minute(workers: int) -> None:
    attempts = list(Workers(workers, limit=240).play(until_s=SHARE_KEPT_S))

    a_minute = Counter(int(at // 60) for at, *_ in attempts)
    assert max(a_minute[minute] for minute in range(1, 9)) <= 240
    assert min(a_minute[minute] for minute in range(1, 9)) >= 200
    refused_later = [at for at, _, is_let_in in attempts if at >= 120 and not is_let_in]
    assert refused_later == []
    assert {worker for _, worker, is_let_in in attempts if is_let_in} == set(range(workers))


def test_what_others_leave_is_used_again_after_a_while() -> None:
    known = learn_share([float(n) for n in range(30)], Rate(240, 60), None, now=59.0)

    assert known.rate.calls == 30
    assert known.until == 59 + SHARE_KEPT_S


def test_who_is_refused_again_takes_less_but_never_next_to_nothing() -> None:
    share: Share | None = None
    calls = []
    for now in range(0, 500, 20):
        share = learn_share([], Rate(240, 60), share or Share(Rate(64, 61), 600), float(now))
        calls.append(share.rate.calls)

    assert calls[:3] == [56, 49, 42]
    assert calls[-1] == 15
