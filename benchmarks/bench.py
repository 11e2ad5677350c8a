"""What the scenarios of one run share: options, an emulator and pages to replay, made when needed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import httpx

from benchmarks.job import Job
from benchmarks.programs import Emulator, Project, replaying, run_contender, running_emulator

START, WARM_UP_END, END = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-31T00:00:00Z"
DAYS = 30
PROPERTIES_BYTES = 900
"""Of an event's properties; a row is about 300 more."""

PAGE_QUERY = "posthog_source events"
TINY_EVENTS = 2_000
TINY_PAGE_ROWS = 150


@dataclass(frozen=True)
class Replayed:
    """A replaying server that knows all the answers.

    Attributes:
        url: Its address.
        job: What to ask it, with the page queries.
        rows: Events there are.
    """

    url: str
    job: Job
    rows: int

    def wait_longer(self, seconds: float) -> None:
        """Makes each answer wait so long."""
        httpx.put(f"{self.url}/_latency", params={"seconds": seconds}).raise_for_status()


@dataclass
class Bench:
    """One run of the benchmarks; a context manager."""

    runs: int
    events: int | None = None
    is_tiny: bool = False
    _stack: ExitStack = field(default_factory=ExitStack)
    _replayed: dict[int, Replayed] = field(default_factory=dict)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def size(self, events: int, *, tiny: int = TINY_EVENTS) -> int:
        """A scenario's events, unless told otherwise."""
        return self.events or (tiny if self.is_tiny else events)

    def page_rows(self, rows: int) -> int:
        """Rows of a page; a tiny run has as many pages as a real one."""
        return TINY_PAGE_ROWS if self.is_tiny else rows

    def job(self, url: str, project: Project, *, page_rows: int = 25_000) -> Job:
        """All events of a project, without a warm-up."""
        return Job(
            url=url,
            project_id=project.id,
            api_key=project.api_key,
            start=START,
            end=END,
            page_rows=self.page_rows(page_rows),
        )

    @cached_property
    def emulator(self) -> Emulator:
        """With its tables on disk."""
        return self._stack.enter_context(running_emulator())

    def replayed(self, events: int) -> Replayed:
        """That many events over 30 days, from memory."""
        if events not in self._replayed:
            self._replayed[events] = self._prepare(events)
        return self._replayed[events]

    def _prepare(self, events: int) -> Replayed:
        project = self.emulator.project(
            events=events,
            persons=max(1, events // 10),
            days=DAYS,
            end=END,
            properties_bytes=PROPERTIES_BYTES,
        )
        self.emulator.optimize()
        url = self._stack.enter_context(replaying(self.emulator.url))
        job = self.job(url, project)
        run_contender("connector_read", job)
        asked: list[dict[str, Any] | None] = httpx.get(f"{url}/_questions", timeout=60).json()
        queries = [query for query in asked if query and query["name"] == PAGE_QUERY]
        warm_up = None if self.is_tiny else {"end": WARM_UP_END, "queries": queries[:1]}
        job = replace(job, warm_up=warm_up, queries=queries)
        return Replayed(url, job, project.count_rows(START, END))
