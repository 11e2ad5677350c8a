"""When the next call may go.

A sliding window per rate, shared by all threads, and a pause that holds everyone when PostHog says so.
Clock and sleep are parameters. Not here: what to do about an error (`client`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """At most `calls` in any `per_s` seconds."""

    calls: int
    per_s: float


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


class RateLimiter:
    """Lets calls through at the allowed rate. Thread-safe; fair enough, not first come first served."""

    def __init__(
        self,
        rates: Sequence[Rate],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._rates = tuple(rates)
        self._sent: deque[float] = deque(maxlen=max((rate.calls for rate in rates), default=1))
        self._paused_until = float("-inf")
        self._lock = threading.Lock()
        self._clock = clock
        self._sleep = sleep

    def acquire(self) -> float:
        """Waits for a free place, takes it, and returns the seconds waited."""
        waited_s = 0.0
        while (wait_s := self._take_or_wait_s()) > 0:
            self._sleep(wait_s)
            waited_s += wait_s
        return waited_s

    def pause(self, seconds: float) -> None:
        """Lets nobody through for `seconds` from now. A longer pause already set stands."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _take_or_wait_s(self) -> float:
        with self._lock:
            now = self._clock()
            at = max(next_call_at(self._sent, self._rates, now), self._paused_until)
            if at <= now:
                self._sent.append(now)
            return max(0.0, at - now)
