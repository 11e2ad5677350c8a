"""What a run did, as plain values: counted commit by commit, printed, and kept as a row of `_posthog_runs`.

Not here: running (`runs`), what a resource counts (`destination`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal

import orjson
import pyarrow as pa

Kind = Literal["sync", "backfill"]
Status = Literal["done", "budget_spent", "stopped", "failed"]

SUMS = (
    "rows", "rows_left", "windows", "late_rows", "copies_dropped", "parts_read_again", "requests", "retries",
    "waited_s", "received_bytes",
)  # fmt: skip
"""What the metrics of all tables add up to."""


SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("pipeline", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        ("error", pa.string()),
        ("started_at", pa.timestamp("us", "UTC")),
        ("finished_at", pa.timestamp("us", "UTC")),
        *((name, pa.int64()) for name in ("commits", "rows", "rows_left", "windows", "late_rows")),
        *((name, pa.int64()) for name in ("copies_dropped", "parts_read_again", "requests", "retries")),
        ("waited_s", pa.float64()),
        ("received_bytes", pa.int64()),
        ("read_bytes", pa.int64()),
        ("tables", pa.string()),
    ]
)
"""Of a row of `_posthog_runs`: the report's attributes."""


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run did.

    Attributes:
        run_id: Unique.
        kind: `sync` or `backfill`.
        pipeline: Its pipeline's name.
        status: `done`; `budget_spent` when it stopped at a commit's end because max_queries or
            max_read_bytes was reached; `stopped` by a signal; `failed`.
        error: Why, when it failed.
        started_at: Aware UTC.
        finished_at: Aware UTC.
        commits: Loads that the destination has.
        rows: Of all tables.
        rows_left: Events counted and not yet read.
        windows: Of events.
        late_rows: Events that arrived late and were replaced one by one.
        copies_dropped: Rows that PostHog handed out twice under one key.
        parts_read_again: Parts in which rows were missing at first.
        requests: Sent, retries included.
        retries: Of them.
        waited_s: Seconds that PostHog's limits imposed.
        received_bytes: On the wire.
        read_bytes: What PostHog read for them and bills; None where the key may not read query_log.
        tables: All of this by table.
    """

    run_id: str
    kind: Kind
    pipeline: str
    status: Status = "done"
    error: str | None = None
    started_at: datetime
    finished_at: datetime | None = None
    commits: int = 0
    rows: int = 0
    rows_left: int = 0
    windows: int = 0
    late_rows: int = 0
    copies_dropped: int = 0
    parts_read_again: int = 0
    requests: int = 0
    retries: int = 0
    waited_s: float = 0.0
    received_bytes: int = 0
    read_bytes: int | None = None
    tables: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Some lines for people: what was done, by table, and what it cost."""
        seconds = ((self.finished_at or self.started_at) - self.started_at).total_seconds()
        lines = [
            f"{self.kind} {self.status.replace('_', ' ')}: {self.rows:,} rows in {self.commits} commits, "
            f"{seconds:.1f} s" + (f"; {self.rows_left:,} events left" if self.rows_left else ""),
            *(f"  {name}: {int(found['rows']):,}" for name, found in self.tables.items() if "rows" in found),
            f"  {self.requests:,} requests ({self.retries:,} of them again), {self.waited_s:.0f} s waited "
            f"for limits, {self.received_bytes:,} bytes received"
            + (f", {self.read_bytes:,} read by PostHog" if self.read_bytes is not None else ""),
        ]
        if failed := sum(int(found.get("cohorts_failed", 0)) for found in self.tables.values()):
            lines.append(f"  {failed:,} cohorts failed; the log says why")
        if self.late_rows or self.parts_read_again or self.copies_dropped:
            lines.append(
                f"  {self.late_rows:,} events arrived late, {self.copies_dropped:,} copies were dropped, "
                f"{self.parts_read_again:,} parts were read again"
            )
        return "\n".join(lines)

    def with_commit(self, tables: Mapping[str, Mapping[str, float]]) -> RunReport:
        """The report after one more commit, of which `tables` are the metrics."""
        merged = {name: dict(metrics) for name, metrics in self.tables.items()}
        for name, metrics in tables.items():
            known = merged.setdefault(name, {})
            for key, value in metrics.items():
                known[key] = value if key == "rows_left" else known.get(key, 0) + value
        return replace(self, commits=self.commits + 1, tables=merged)._summed()

    def joined(self, other: RunReport) -> RunReport:
        """Both as one, for the ranges of a backfill."""
        left = self.rows_left + other.rows_left
        return replace(self.with_commit(other.tables), commits=self.commits + other.commits, rows_left=left)

    def as_json(self) -> dict[str, Any]:
        """For machines; times as ISO text."""
        plain: dict[str, Any] = orjson.loads(orjson.dumps(self))
        return plain

    def as_table(self) -> pa.Table:
        """One row, with the tables' metrics as JSON text."""
        row = {each.name: getattr(self, each.name) for each in fields(self)}
        row["tables"] = orjson.dumps(self.tables).decode()
        return pa.Table.from_pylist([row], schema=SCHEMA)

    def _summed(self) -> RunReport:
        sums: dict[str, Any] = {
            name: sum(metrics.get(name, 0) for metrics in self.tables.values()) for name in SUMS
        }
        reads = [metrics["read_bytes"] for metrics in self.tables.values() if "read_bytes" in metrics]
        return replace(self, **sums, read_bytes=int(sum(reads)) if reads else None)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run may spend; it stops at the end of the commit that has spent it."""

    max_queries: int | None = None
    max_read_bytes: int | None = None

    def is_spent(self, report: RunReport) -> bool:
        """Whether a run with that report has to stop."""
        if self.max_queries is not None and report.requests >= self.max_queries:
            return True
        return self.max_read_bytes is not None and (report.read_bytes or 0) >= self.max_read_bytes
