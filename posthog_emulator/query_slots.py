"""How many queries a project runs at once: a query waits for a place, then gets a 429.

Not the rate limits per minute and hour: those are `throttle.py`.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from posthog_emulator.envelope import ApiError
from posthog_emulator.state import Project

TOO_MANY = "Too many queries are running right now. Please wait for them to finish, and try again."


class QuerySlots:
    """The running queries of every project."""

    def __init__(self) -> None:
        self._running: Counter[int] = Counter()
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def slot(self, project: Project) -> AsyncIterator[None]:
        """Hold a place for one query; a 429 without Retry-After when none gets free in time."""
        settings = project.settings
        async with self._freed:
            try:
                async with asyncio.timeout(settings.concurrency_wait_s):
                    await self._freed.wait_for(
                        lambda: self._running[project.id] < settings.max_concurrent_queries
                    )
            except TimeoutError:
                raise ApiError(429, TOO_MANY) from None
            self._running[project.id] += 1
        try:
            yield
        finally:
            async with self._freed:
                self._running[project.id] -= 1
                self._freed.notify_all()
