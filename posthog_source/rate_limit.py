"""When the next call may go.

One gate for all that one key asks of one host: rates, a pause that holds everyone when PostHog says so,
and places for the calls that are open at once. All clients of a key in a process share it; other processes
show in refusals, which teach what share of a rate is this one's. Clock and sleep are parameters. Not here:
what to do about an error (`client`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from weakref import WeakValueDictionary

GOOD_ANSWERS_PER_PLACE = 20
"""Good answers after which a gate that was narrowed opens one more place."""

SHARE_KEPT_S = 600.0
"""How long a share is kept to: then the others may be gone, and the whole rate is tried again."""

SHARE_MARGIN_S = 1.0
"""A share's window is so much longer than PostHog's, which counts calls when they come, not when they go."""

SMALLEST_SHARE = 1 / 16
"""Least share of a rate that a process keeps, though others had used it up when it began."""

Check = Callable[[float], None]
"""Called before each wait with the seconds of pause that are left, 0 or less for none; raises to end it."""


@dataclass(frozen=True)
class Rate:
    """At most `calls` in any `per_s` seconds."""

    calls: int
    per_s: float


@dataclass(eq=False)
class Turn:
    """A call that was let through. Give it back with `Gate.leave`.

    Attributes:
        waited_s: Seconds it waited for rates and pauses, not for a place.
        at: Instant at which it was let through.
    """

    waited_s: float = 0.0
    at: float = float("-inf")


@dataclass(frozen=True)
class Share:
    """What is kept of a rate whose rest others use, and until when."""

    rate: Rate
    until: float


def learn_share(sent: Sequence[float], rate: Rate, known: Share | None, now: float) -> Share:
    """What a refusal says of a rate that is shared with others who do not know of each other.

    The calls that were let through in the window are all that there was for this one beside them: if each
    keeps to its own, all together keep the rate, however many they are. Refused again, it takes less.

    Args:
        sent: As for `next_call_at`, without the refused call.
        rate: The one that is used up.
        known: What was learned of it before.
        now: The present.
    """
    if known and now < known.until:
        calls = known.rate.calls * 7 // 8
    else:
        calls = min(rate.calls, sum(at > now - rate.per_s for at in sent))
    calls = max(calls, ceil(rate.calls * SMALLEST_SHARE))
    return Share(Rate(calls, rate.per_s + SHARE_MARGIN_S), now + SHARE_KEPT_S)


def next_call_at(sent: Sequence[float], rates: Sequence[Rate], now: float) -> float:
    """The earliest instant at which one more call keeps every rate.

    Args:
        sent: Instants of past calls, ascending; at least the newest `calls` of the largest rate.
        rates: The rates to keep.
        now: The present, on the same clock.
    """
    earliest = now
    for rate in rates:
        if len(sent) >= rate.calls:
            earliest = max(earliest, sent[-rate.calls] + rate.per_s)
    return earliest


class Gate:
    """Lets calls through. Thread-safe; fair enough, not first come first served.

    Rate, pause and place are looked at and taken in one step, so that nobody who waited for one of them
    goes through against another.

    Args:
        rates: What to keep, by the name that calls are made under.
        places: Calls open at once, of all names together.
        clock: Monotonic seconds.
        sleep: Waits that many seconds. Without it waits end early when `wake` is called.
    """

    def __init__(
        self,
        rates: Mapping[str, Sequence[Rate]],
        *,
        places: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._lanes = {name: _Lane(tuple(limits)) for name, limits in rates.items()}
        self._places = places
        self._open_places = places
        self._good_answers = 0
        self._inside: set[Turn] = set()
        self._changed = threading.Condition()
        self._clock = clock
        self._sleep = sleep

    def enter(self, name: str, *, check: Check = lambda _: None, takes_place: bool = True) -> Turn:
        """Waits until a call may go and lets it through.

        Raises:
            Exception: What `check` raises.
        """
        lane = self._lanes[name]
        turn = Turn()
        with self._changed:
            while True:
                now = self._clock()
                check(lane.paused_until - now)
                wait_s = max(next_call_at(lane.sent, lane.rates_at(now), now), lane.paused_until) - now
                if wait_s > 0:
                    self._wait(wait_s)
                    turn.waited_s += self._clock() - now
                elif takes_place and len(self._inside) >= self._open_places:
                    self._changed.wait()
                else:
                    lane.sent.append(now)
                    turn.at = now
                    if takes_place:
                        self._inside.add(turn)
                    return turn

    def leave(self, turn: Turn) -> None:
        """Frees a call's place. Once is enough; more does no harm."""
        with self._changed:
            self._inside.discard(turn)
            self._changed.notify_all()

    def count(self, name: str) -> None:
        """Counts a call that goes without waiting."""
        with self._changed:
            self._lanes[name].sent.append(self._clock())

    def calls_left(self, name: str) -> int:
        """How many more calls its longest rate lets through now."""
        with self._changed:
            lane, now = self._lanes[name], self._clock()
            longest_s = max(rate.per_s for rate in lane.rates)
            sent = sum(at > now - longest_s for at in lane.sent)
            return min(rate.calls for rate in lane.rates if rate.per_s == longest_s) - sent

    def pause(self, name: str, seconds: float) -> None:
        """Lets nobody through for `seconds` from now. A longer pause already set stands."""
        with self._changed:
            lane = self._lanes[name]
            lane.paused_until = max(lane.paused_until, self._clock() + seconds)

    def refuse(self, name: str, turn: Turn, seconds: float) -> None:
        """Takes in that PostHog has refused a call for its rate: nobody goes for `seconds`, then a share."""
        with self._changed:
            self._lanes[name].refuse(turn.at, self._clock(), seconds)
        self.pause(name, seconds)

    def narrow(self) -> None:
        """Leaves one place open, until good answers open the others again."""
        with self._changed:
            self._open_places = 1
            self._good_answers = 0

    def widen(self) -> None:
        """Counts a good answer; every so many of them open one more place."""
        with self._changed:
            self._good_answers += 1
            if self._good_answers >= GOOD_ANSWERS_PER_PLACE and self._open_places < self._places:
                self._open_places += 1
                self._good_answers = 0
                self._changed.notify_all()

    def tighten(self, rates: Mapping[str, Sequence[Rate]], *, places: int) -> None:
        """Keeps these limits too; the stricter one counts."""
        with self._changed:
            for name, limits in rates.items():
                self._lanes[name].keep(limits)
            self._places = min(self._places, places)
            self._open_places = min(self._open_places, places)

    def wait(self, seconds: float, *, check: Check) -> None:
        """Waits, without a place. Raises what `check` raises."""
        with self._changed:
            until, left_s = self._clock() + seconds, seconds
            while left_s > 0:
                check(0.0)
                self._wait(left_s)
                left_s = until - self._clock()

    def wake(self) -> None:
        """Has everyone who waits look around again."""
        with self._changed:
            self._changed.notify_all()

    def _wait(self, seconds: float) -> None:
        """Waits with the lock given up."""
        if self._sleep is None:
            self._changed.wait(seconds)
            return
        self._changed.release()
        try:
            self._sleep(seconds)
        finally:
            self._changed.acquire()


@dataclass
class _Lane:
    """The calls of one name."""

    rates: tuple[Rate, ...]
    paused_until: float = float("-inf")
    shares: dict[Rate, Share] = field(default_factory=dict)
    sent: deque[float] = field(init=False)

    def __post_init__(self) -> None:
        self.sent = deque(maxlen=max((rate.calls for rate in self.rates), default=1))

    def rates_at(self, now: float) -> list[Rate]:
        """What is to be kept now."""
        return [*self.rates, *(share.rate for share in self.shares.values() if now < share.until)]

    def refuse(self, at: float, now: float, seconds: float) -> None:
        """Learns from the refusal of a call, which PostHog does not count; it is asked to wait so long."""
        if at in self.sent:
            self.sent.remove(at)
        rate = min((each for each in self.rates if seconds <= each.per_s), key=_length, default=None)
        if rate:
            self.shares[rate] = learn_share(self.sent, rate, self.shares.get(rate), now)

    def keep(self, rates: Sequence[Rate]) -> None:
        self.rates = tuple(dict.fromkeys((*self.rates, *rates)))
        self.sent = deque(self.sent, maxlen=max((rate.calls for rate in self.rates), default=1))


def _length(rate: Rate) -> float:
    return rate.per_s


_gates: WeakValueDictionary[str, Gate] = WeakValueDictionary()
_gates_lock = threading.Lock()


def calls_left(name: str) -> int | None:
    """The fewest calls that an owner in this process may still make now; None where there is no owner."""
    with _gates_lock:
        gates = list(_gates.values())
    return min((gate.calls_left(name) for gate in gates), default=None)


def shared_gate(owner: str, rates: Mapping[str, Sequence[Rate]], *, places: int) -> Gate:
    """The one gate of an owner in this process, for as long as anyone holds it.

    Who comes with other limits tightens it for all: PostHog counts a key's calls, whoever makes them.

    Args:
        owner: What names the owner without giving it away, such as a hash.
        rates: As for `Gate`.
        places: As for `Gate`.
    """
    with _gates_lock:
        gate = _gates.get(owner)
        if gate is None:
            gate = _gates[owner] = Gate(rates, places=places)
        else:
            gate.tighten(rates, places=places)
        return gate
