"""The rows of HogQL's `query_log`: what each query of the API read and how it ended.

PostHog's log is filled a little later than the query ends; this one is filled when someone reads it, so that
queries are not slowed down by logging.
"""

import threading
from datetime import datetime
from typing import Any

import pyarrow as pa

from posthog_emulator.clickhouse import Answer, ClickHouse, ClickHouseError

FLUSH_ROWS = 1_000


class QueryLog:
    """Collects rows, and writes them to ClickHouse."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def add(
        self, started_at: datetime, ended_at: datetime, outcome: Answer | ClickHouseError, **facts: object
    ) -> None:
        """Note one query; `facts` are team_id, query_id, query, name and endpoint."""
        seconds = (ended_at - started_at).total_seconds()
        row = {
            **facts,
            "event_time": int(ended_at.timestamp()),
            "query_start_time": int(started_at.timestamp()),
            "query_duration_ms": int(1000 * seconds),
            "created_by": 1,
            "is_personal_api_key_request": True,
            **_outcome(outcome),
        }
        with self._lock:
            self._rows.append(row)
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        with self._lock:
            rows, self._rows = self._rows, []
        if rows:
            self._clickhouse.insert("query_log", pa.Table.from_pylist(rows))


def _outcome(outcome: Answer | ClickHouseError) -> dict[str, object]:
    if isinstance(outcome, ClickHouseError):
        return {
            "status": "ExceptionWhileProcessing",
            "exception_code": outcome.code,
            **dict.fromkeys(COSTS, 0),
        }
    return {
        "status": "QueryFinish",
        "exception_code": 0,
        "read_rows": outcome.read_rows,
        "read_bytes": outcome.read_bytes,
        "result_rows": outcome.row_count,
        "result_bytes": len(outcome.rows_json),
    }


COSTS = ("read_rows", "read_bytes", "result_rows", "result_bytes")
