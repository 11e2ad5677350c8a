"""Two simple ways to read events, for comparison: a query per hour, and keyset pages without a time bound.

The connector's columns, none of its code. Where a full read takes too long, a sample of the requests is
measured and scaled.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import orjson

from benchmarks.programs import Project

MODIFIERS = {"convertToProjectTimezone": False}


@dataclass(frozen=True)
class NaiveCost:
    """What reading a project that way costs; scaled from what was measured."""

    requests: float
    read_bytes: float
    measured: str


@dataclass(frozen=True)
class Asker:
    """Asks one project for pages.

    Attributes:
        project: Whom.
        select: `SELECT … FROM events`, the connector's.
        page_rows: LIMIT.
        sample: Hours of a kind, or pages, that are measured.
    """

    project: Project
    select: str
    page_rows: int
    sample: int = 8

    def page(self, where: str) -> list[dict[str, Any]]:
        """One page, in order of time."""
        order = f"ORDER BY timestamp, uuid LIMIT {self.page_rows}"
        text = f"{self.select} WHERE {where} {order}" if where else f"{self.select} {order}"
        query = {"kind": "HogQLQuery", "query": text, "modifiers": MODIFIERS}
        answer = self.project.emulator.http.post(
            f"/api/projects/{self.project.id}/query/",
            json={"query": query, "refresh": "force_blocking"},
            headers={"Authorization": f"Bearer {self.project.api_key}"},
        )
        body = orjson.loads(answer.raise_for_status().content)
        return [dict(zip(body["columns"], row, strict=True)) for row in body["results"]]

    def choose(self, items: Sequence[Any]) -> list[Any]:
        """At most `sample` of them, evenly spread."""
        step = max(1.0, len(items) / self.sample)
        return [items[int(step * i)] for i in range(min(self.sample, len(items)))]

    def hour(self, start: datetime) -> None:
        """All pages of an hour."""
        bounds = f"timestamp >= {_utc(start)} AND timestamp < {_utc(start + timedelta(hours=1))}"
        where = bounds
        while len(page := self.page(where)) == self.page_rows:
            last = page[-1]
            where = f"{bounds} AND {_after(datetime.fromisoformat(last['timestamp']), last['uuid'])}"


def hourly(asker: Asker, start: datetime, end: datetime) -> NaiveCost:
    """One window an hour, paged where it is larger than a page."""
    groups = _alike(asker, start, end)
    hours = [hour for group in groups for hour in group]
    sampled = [asker.choose(group) for group in groups]
    parts = [
        _measure(asker.project, partial(asker.hour, hour), len(group) / len(chosen))
        for group, chosen in zip(groups, sampled, strict=True)
        for hour in chosen
    ]
    return _total(parts, f"{sum(map(len, sampled)):,} of {len(hours):,} hours")


def open_keyset(asker: Asker, rows: int) -> NaiveCost:
    """Always the next page after the last row."""
    pages = range(rows // asker.page_rows + 1)
    chosen = asker.choose(pages)
    places = [_after_row(asker.project, number * asker.page_rows) for number in chosen]
    parts = [
        _measure(asker.project, partial(asker.page, where), len(pages) / len(chosen)) for where in places
    ]
    return _total(parts, f"{len(chosen):,} of {len(pages):,} pages")


def _alike(asker: Asker, start: datetime, end: datetime) -> list[list[datetime]]:
    """All hours, in groups of those that should cost the same: pages to ask for, and size of the day.

    Within a day rows lie by name and not by time, so an hour costs what its day has.
    """
    found = asker.project.select(
        "toUnixTimestamp(toStartOfHour(timestamp)) AS hour, count()", "GROUP BY hour"
    )
    counts = {datetime.fromtimestamp(int(hour), UTC): int(rows) for hour, rows in found}
    days = Counter[object]()
    for hour, rows in counts.items():
        days[hour.date()] += rows
    groups = defaultdict[tuple[int, int, bool], list[datetime]](list)
    for hour in _hours(start, end):
        rows = counts.get(hour, 0)
        groups[rows // asker.page_rows, days[hour.date()].bit_length(), rows == 0].append(hour)
    return list(groups.values())


def _hours(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += timedelta(hours=1)


def _measure(project: Project, ask: Callable[[], object], weight: float) -> tuple[float, float]:
    """Requests and bytes read, times how many others it stands for."""
    project.control("DELETE", "requests")
    ask()
    stats = project.control("GET", "stats")
    return stats["requests"] * weight, stats["read_bytes"] * weight


def _total(parts: Iterable[tuple[float, float]], measured: str) -> NaiveCost:
    requests, read_bytes = (sum(values) for values in zip(*parts, strict=True))
    return NaiveCost(requests, read_bytes, measured)


def _after_row(project: Project, number: int) -> str:
    """The condition of the rows after the first `number`; none for 0."""
    if number == 0:
        return ""
    offset = f"ORDER BY timestamp, uuid LIMIT 1 OFFSET {number - 1}"
    ((at, uuid),) = project.select("toString(toTimeZone(timestamp, 'UTC')), toString(uuid)", offset)
    return _after(datetime.fromisoformat(at).replace(tzinfo=UTC), uuid)


def _after(at: datetime, uuid: str) -> str:
    return f"(timestamp, uuid) > ({_utc(at)}, toUUID('{uuid}'))"


def _utc(at: datetime) -> str:
    text = at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    return f"toDateTime64('{text}', 6, 'UTC')"
