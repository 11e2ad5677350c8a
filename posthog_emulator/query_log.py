"""The rows of HogQL's `query_log`: what each query of the API read and how it ended.

What was asked is collected here; what it cost is read from ClickHouse's own log when someone wants to know,
so that queries are not slowed down by logging. Who may see a row, and how soon, is said in hogql/.
"""

import threading
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

import pyarrow as pa

from posthog_emulator.clickhouse import ClickHouse, ClickHouseError, Cost

FLUSH_ROWS = 1_000
# A query that ClickHouse refused before it ran, such as one with an unknown function.
NOT_STARTED = "ExceptionBeforeStart"


class QueryLog:
    """Collects rows, and writes them to ClickHouse."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def add(
        self, started_at: datetime, ended_at: datetime, error: ClickHouseError | None, **facts: object
    ) -> None:
        """Note one query; `facts` are the further columns of the row, such as query and name."""
        row = {
            **facts,
            "event_time": int(ended_at.timestamp()),
            "ended_at_us": int(ended_at.timestamp() * 1_000_000),
            "query_start_time": int(started_at.timestamp()),
            "created_by": 1,
            "is_personal_api_key_request": True,
            "exception_name": error.name if error else "",
            "exception_code": error.code if error else 0,
            "status": NOT_STARTED,
        }
        with self._lock:
            self._rows.append(row)
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what was collected, with its costs."""
        with self._lock:
            rows, self._rows = self._rows, []
        if rows:
            costs = self._clickhouse.costs([row["query_id"] for row in rows])
            table = pa.Table.from_pylist([row | _known(costs.get(row["query_id"])) for row in rows])
            self._clickhouse.insert("query_log", table)


def _known(cost: Cost | None) -> dict[str, object]:
    return asdict(cost) if cost else dict.fromkeys(NUMBERS, 0)


NUMBERS = [item.name for item in fields(Cost) if item.name not in {"status", "exception_code"}]
