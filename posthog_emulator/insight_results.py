"""Results of saved insights: when one is computed, and what is remembered of it.

Facts: rest_api.md 4.4, and posthog/caching/utils.py in PostHog/posthog. Not here: how a kind of query is
computed (`insight_queries`), routes (`rest`). Nothing is computed in the background.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import orjson

from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.envelope import ApiError
from posthog_emulator.hogql.printer import PRINTER_SETTINGS, print_query
from posthog_emulator.insight_dates import read_dates
from posthog_emulator.insight_queries import compute
from posthog_emulator.memory import Shelf, is_kept
from posthog_emulator.query_answer import build_answer
from posthog_emulator.query_errors import to_api_error
from posthog_emulator.query_request import QueryRequest, read_request
from posthog_emulator.state import Project, State

BACKGROUND = {"async", "lazy_async", "force_async", "async_except_on_cache_miss"}
ALWAYS = {"force_blocking", "true", ""}
"""The last two are older ways to say it."""

STALE_AFTER: Mapping[str, timedelta] = {
    "minute": timedelta(minutes=5),
    "hour": timedelta(hours=1),
    "day": timedelta(hours=6),
    "week": timedelta(days=1),
    "month": timedelta(days=2),
}
CLOCK_BUFFER = timedelta(seconds=10)
ALL_ROWS = 10**9


@dataclass(frozen=True)
class Result:
    """A computed result.

    Attributes:
        json: The members that it adds to its insight.
        computed_at: When.
        stale_at: When it begins to be too old.
        tells_until: End of the reported period; None means now.
    """

    json: bytes
    computed_at: datetime
    stale_at: datetime
    tells_until: datetime | None = None

    def is_stale(self, now: datetime) -> bool:
        """Whether it is too old: never, if what it tells of was over when it was computed.

        So PostHog never sees by itself what has arrived late since (posthog/caching/utils.py, is_stale).
        """
        was_over = self.tells_until is not None and self.tells_until < self.computed_at - CLOCK_BUFFER
        return not was_over and now > self.stale_at

    @property
    def size(self) -> int:
        """Bytes of it."""
        return len(self.json)

    def members(self, *, is_cached: bool) -> dict[str, Any]:
        """What it adds to its insight."""
        found: dict[str, Any] = orjson.loads(self.json)
        return found | {
            "is_cached": is_cached,
            "last_refresh": self.computed_at,
            "cache_target_age": self.stale_at,
            "next_allowed_client_refresh": self.computed_at,
        }


class InsightResults:
    """The results of all projects' insights."""

    def __init__(self, clickhouse: ClickHouse, state: State) -> None:
        self._clickhouse = clickhouse
        self._state = state
        self._kept: Shelf[str, Result] = Shelf()

    def last_refresh(self, insight: Mapping[str, Any], project: Project) -> datetime | None:
        """When the result that is remembered was computed."""
        kept = self._find(insight, project)
        return kept.computed_at if kept else None

    def answer(self, insight: Mapping[str, Any], project: Project, refresh: str | None) -> dict[str, Any]:
        """The members of its result; nothing where there is none. Blocks: call it from a thread.

        Args:
            insight: A saved one.
            project: Its.
            refresh: The parameter as given. What PostHog does not know means the cache only.

        Raises:
            ApiError: The query fails, or is more than this emulator computes.
        """
        if refresh in BACKGROUND:
            raise ApiError(400, f"posthog_emulator does not compute insights by {refresh!r}.")
        kept = self._find(insight, project)
        is_stale = kept is None or kept.is_stale(self._state.now())
        query = _definition(insight)
        if query and (refresh in ALWAYS or (refresh == "blocking" and is_stale)):
            return self._compute(insight, query, project).members(is_cached=False)
        return kept.members(is_cached=True) if kept else {}

    def _find(self, insight: Mapping[str, Any], project: Project) -> Result | None:
        kept = self._kept.get(_key(insight, project))
        return kept if kept and is_kept(kept.computed_at, self._state.now()) else None

    def _compute(self, insight: Mapping[str, Any], query: Mapping[str, Any], project: Project) -> Result:
        now = self._state.now()
        if query.get("kind") == "HogQLQuery":
            members, stale_after, end = self._hogql(query, project), STALE_AFTER["minute"], None
        else:
            dates = read_dates(query, project.zone, now)
            members = compute(query, dates, lambda text: self._rows(text, project))
            stale_after, end = STALE_AFTER[dates.interval], dates.end
        result = Result(orjson.dumps(members), now, now + stale_after, end)
        self._kept.put(_key(insight, project), result)
        return result

    def _hogql(self, query: Mapping[str, Any], project: Project) -> dict[str, Any]:
        request = _request(query, project)
        try:
            printed = print_query(request.query, request.context())
            found = self._clickhouse.run(printed.sql, settings=PRINTER_SETTINGS)
            answer = build_answer(request, printed, found, self._state.now())
        except Exception as error:
            raise to_api_error(error) from error
        shown = ("columns", "types", "hasMore", "hogql")
        return {"result": orjson.loads(answer.rows_json)} | {name: answer.members[name] for name in shown}

    def _rows(self, text: str, project: Project) -> list[list[Any]]:
        request = _request({"kind": "HogQLQuery", "query": f"{text} LIMIT {ALL_ROWS}"}, project)
        try:
            printed = print_query(request.query, replace(request.context(), max_rows=ALL_ROWS))
            found = self._clickhouse.run(printed.sql, settings=PRINTER_SETTINGS)
            rows: list[list[Any]] = orjson.loads(found.rows_json)
        except Exception as error:
            raise to_api_error(error) from error
        return rows


def _definition(insight: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The query without the nodes that say how it is shown; older definitions are not understood."""
    query = insight["query"]
    while isinstance(query, dict) and isinstance(query.get("source"), dict):
        query = query["source"]
    return query if isinstance(query, dict) else None


def _key(insight: Mapping[str, Any], project: Project) -> str:
    shown = orjson.dumps([_definition(insight), project.id, project.timezone], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(shown).hexdigest()


def _request(query: Mapping[str, Any], project: Project) -> QueryRequest:
    return read_request(orjson.dumps({"query": query}), project)
