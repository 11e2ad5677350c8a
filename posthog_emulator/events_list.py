"""PostHog's deprecated list of events, `GET events/`, with the events that it loses.

It is neither HogQL nor the query endpoint. Facts: PostHog/posthog `posthog/api/event.py` and
`posthog/models/event/legacy_events_query.py` (2026). Newest first, a page is looked for in a window of time
before `before`, which grows until it holds half a page; whether there is more is asked of that window alone.
`next` goes on strictly beyond the last timestamp of the page. Oldest first, there are no windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from posthog_emulator.auth import Gate
from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.envelope import ApiError, json_response
from posthog_emulator.hogql import literals
from posthog_emulator.rest import parse_date
from posthog_emulator.state import Project, State

MAX_ROWS = 1_000
DEFAULT_ROWS = 100
WINDOWS_S = (60, 300, 900, 3_600, 21_600, 86_400)
AHEAD = timedelta(seconds=5)
"""Without `before`, a list ends so long after now."""

UNTOLD = ("action_id", "person_id", "properties", "select", "where", "format", "include_person")
"""Parameters that PostHog knows and that are not emulated."""


@dataclass(frozen=True)
class Asked:
    """What one request wants; both bounds are strict."""

    project_id: int
    before: datetime
    after: datetime | None
    limit: int
    offset: int
    is_descending: bool
    event: str | None
    distinct_id: str | None

    def within(self, window_s: int) -> Asked | None:
        """The last seconds of it, or nothing where it is no longer than that, or goes the other way."""
        after = self.before - timedelta(seconds=window_s)
        if not self.is_descending or (self.after is not None and after <= self.after):
            return None
        return replace(self, after=after)

    def sql(self) -> str:
        """One row more than the page tells whether there is more; equal timestamps come in any order."""
        where = [f"team_id = {self.project_id}", f"timestamp < {_literal(self.before)}"]
        if self.after is not None:
            where.append(f"timestamp > {_literal(self.after)}")
        where += [
            f"{name} = {literals.text(value)}"
            for name, value in (("event", self.event), ("distinct_id", self.distinct_id))
            if value
        ]
        return (
            "SELECT toString(uuid), distinct_id, properties, event, toUnixTimestamp64Micro(timestamp),"
            f" elements_chain FROM events WHERE {' AND '.join(where)}"
            f" ORDER BY timestamp {'DESC' if self.is_descending else 'ASC'}"
            f" LIMIT {self.limit + 1} OFFSET {self.offset}"
        )


@dataclass(frozen=True)
class Good:
    """A window that held half a page, and how many rows were shown of it."""

    window_s: int
    rows: int


class EventsList:
    """The route of one server; it remembers for its life which windows were good, PostHog for a day."""

    def __init__(self, clickhouse: ClickHouse, state: State, gate: Gate) -> None:
        self._clickhouse = clickhouse
        self._state = state
        self._gate = gate
        self._good: dict[tuple[object, ...], Good] = {}

    def routes(self) -> list[Route]:
        """The one list."""
        endpoint = self._gate.project(self._list, ["query:read"], "clickhouse")
        return [Route("/api/projects/{project_id}/events", endpoint)]

    async def _list(self, request: Request) -> Response:
        asked = _read(request, self._state.now())
        rows, has_more = await self._page(asked, _span_s(request, asked))
        following = _next(request, _time(rows[-1])) if rows and has_more else None
        return json_response({"next": following, "results": [_item(row) for row in rows]})

    async def _page(self, asked: Asked, span_s: float | None) -> tuple[list[list[Any]], bool]:
        key = (asked.project_id, bool(asked.event), bool(asked.distinct_id), asked.limit >= MAX_ROWS)
        half = max(asked.limit // 2, 1)
        for window_s in windows_to_try(span_s, self._good.get(key), half):
            narrowed = asked.within(window_s)
            if narrowed is None:
                break
            rows, has_more = await self._rows(narrowed)
            if len(rows) >= half:
                self._good[key] = Good(window_s, len(rows))
                return rows, has_more
        return await self._rows(asked)

    async def _rows(self, asked: Asked) -> tuple[list[list[Any]], bool]:
        answer = await run_in_threadpool(self._clickhouse.run, asked.sql())
        rows: list[list[Any]] = orjson.loads(answer.rows_json)
        return rows[: asked.limit], len(rows) > asked.limit


def windows_to_try(span_s: float | None, good: Good | None, half: int) -> list[int]:
    """Those shorter than what is asked for, the one that was good last time first."""
    windows = [window_s for window_s in WINDOWS_S if span_s is None or window_s < span_s]
    if good and good.rows >= half and good.window_s in windows:
        windows.remove(good.window_s)
        windows.insert(0, good.window_s)
    return windows


def _read(request: Request, now: datetime) -> Asked:
    query, project = request.query_params, request.state.project
    for name in UNTOLD:
        if query.get(name):
            raise ApiError(400, f"posthog_emulator does not know {name} of events/.", attr=name)
    offset = query.get("offset", "")
    return Asked(
        project_id=project.id,
        before=_bound(query, "before", project, now) or now + AHEAD,
        after=_bound(query, "after", project, now),
        limit=_limit(query.get("limit")),
        offset=int(offset) if offset.isdecimal() else 0,
        is_descending=_order(query) == ["-timestamp"],
        event=query.get("event"),
        distinct_id=query.get("distinct_id"),
    )


def _limit(text: str | None) -> int:
    if not text:
        return DEFAULT_ROWS
    if not text.isdecimal():
        raise ApiError(500)
    if not int(text):
        raise ApiError(400, "posthog_emulator does not know a limit of 0.", attr="limit")
    return min(int(text), MAX_ROWS)


def _bound(query: Mapping[str, str], name: str, project: Project, now: datetime) -> datetime | None:
    if not query.get(name):
        return None
    bound = parse_date(query[name], project.zone, now)
    if bound is None:
        raise ApiError(400, f"posthog_emulator cannot read this time: {query[name]}.", attr=name)
    return bound


def _order(query: Mapping[str, str]) -> Sequence[Any]:
    if not query.get("orderBy"):
        return ["-timestamp"]
    try:
        return list(orjson.loads(query["orderBy"]))
    except (orjson.JSONDecodeError, TypeError):
        raise ApiError(500) from None


def _span_s(request: Request, asked: Asked) -> float | None:
    """How long a time is asked for, known where both bounds were sent."""
    if not request.query_params.get("before") or asked.after is None:
        return None
    return (asked.before - asked.after).total_seconds()


def _next(request: Request, last: datetime) -> str:
    """All that was sent, `offset` too, with one bound moved to the last row."""
    bound = "before" if "-timestamp" in _order(request.query_params) else "after"
    parameters = {**request.query_params, bound: last.isoformat()}
    host = request.headers.get("host", "localhost")
    return f"{request.url.scheme}://{host}{request.scope['posthog.path']}?{urlencode(parameters)}"


def _item(row: list[Any]) -> dict[str, Any]:
    uuid, distinct_id, properties, event, _, elements_chain = row
    return {
        "id": uuid,
        "distinct_id": distinct_id,
        "properties": orjson.Fragment(properties or "{}"),
        "event": event,
        "timestamp": _time(row).isoformat(),
        "person": None,
        "elements": [],
        "elements_chain": elements_chain,
    }


def _time(row: list[Any]) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=row[4])


def _literal(at: datetime) -> str:
    return f"toDateTime64('{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}', 6, 'UTC')"
