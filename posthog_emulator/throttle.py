"""Rate limits: a burst and a sustained one per API key and throttle class, as Django REST framework counts.

Not the limit on concurrent queries: that is query_slots.py.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

WINDOWS_S = (60.0, 3600.0)


class Throttle:
    """Remembers when each key called, and says how long it must wait."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls: defaultdict[tuple[str, str, float], deque[float]] = defaultdict(deque)

    def wait_s(self, key: str, throttle_class: str, limits: Sequence[int]) -> int | None:
        """Count a call; whole seconds to wait if it is one too many, else None.

        `limits` are those of a minute and of an hour; without the second only the burst counts.
        """
        now = self._clock()
        waits = [
            self._take(self._calls[key, throttle_class, window_s], window_s, limit, now)
            for window_s, limit in zip(WINDOWS_S, limits, strict=False)
        ]
        refused = [wait for wait in waits if wait is not None]
        return math.ceil(max(refused)) if refused else None

    @staticmethod
    def _take(calls: deque[float], window_s: float, limit: int, now: float) -> float | None:
        while calls and calls[0] <= now - window_s:
            calls.popleft()
        if len(calls) < limit:
            calls.append(now)
            return None
        # rest_framework.throttling.SimpleRateThrottle.wait: refused calls are not counted.
        return window_s - (now - calls[0]) if calls else window_s
