"""The body of an answered query, joined around the rows as bytes.

Rows come from ClickHouse as finished JSON of up to 100 MB; nothing here parses or copies them twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson

from posthog_emulator.clickhouse import Answer
from posthog_emulator.hogql.printer import Printed
from posthog_emulator.query_request import QueryRequest

CACHE_TARGET_AGE = timedelta(hours=6)


@dataclass(frozen=True)
class QueryAnswer:
    """One computed answer: its rows, and every other member of the response."""

    rows_json: bytes
    members: Mapping[str, Any]
    computed_at: datetime
    row_count: int
    read_rows: int
    read_bytes: int

    @property
    def size(self) -> int:
        """Bytes of its rows."""
        return len(self.rows_json)

    def body(self, *, is_cached: bool, query_status: Mapping[str, Any] | None = None) -> bytes:
        """Write the response."""
        members = {**self.members, "is_cached": is_cached, "query_status": query_status}
        return join_json(members, "results", self.rows_json)


def join_json(members: Mapping[str, Any], name: str, value: bytes) -> bytes:
    """Write an object with one more member, whose JSON is already there."""
    rest = orjson.dumps(dict(members), option=orjson.OPT_UTC_Z)
    return b"".join([b"{", orjson.dumps(name), b":", value, b"," if len(rest) > 2 else b"", rest[1:]])


def build_answer(request: QueryRequest, printed: Printed, answer: Answer, now: datetime) -> QueryAnswer:
    """Put a response together, without one row too many."""
    rows, row_count, has_more = answer.rows_json, answer.row_count, None
    if printed.page_rows is not None:
        has_more = row_count > printed.page_rows
        if has_more:
            rows = orjson.dumps(orjson.loads(rows)[: printed.page_rows])  # a hundred rows
            row_count = printed.page_rows
    members = {
        "cache_key": request.cache_key,
        "cache_target_age": now + CACHE_TARGET_AGE,
        "calculation_trigger": None,
        "clickhouse": printed.sql,
        "columns": printed.columns,
        "error": None,
        "explain": None,
        "hasMore": has_more,
        "hogql": printed.hogql,
        "last_refresh": now,
        "limit": printed.page_rows,
        "metadata": None,
        "modifiers": dict(request.modifiers),
        "next_allowed_client_refresh": now,
        "offset": None if printed.page_rows is None else 0,
        "query": request.query,
        "query_metadata": None,
        "timezone": request.project.timezone,
        "timings": [{"k": "./clickhouse_execute", "t": answer.elapsed_s}],
        "types": [list(pair) for pair in zip(answer.columns, answer.types, strict=True)],
    }
    return QueryAnswer(rows, members, now, row_count, answer.read_rows, answer.read_bytes)
