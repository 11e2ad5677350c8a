"""What PostHog's ClickHouse holds and what a warehouse holds, every column, in the same words.

Not here: how either came to hold it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import duckdb

from tests.conftest import ROOT, Project

Row = tuple[str, ...]
EVENTS_PAGE = ROOT / "docs" / "events.md"

EVENT_FIELDS: Mapping[str, str] = {
    "uuid": "toString(uuid)",
    "project_id": "toString(team_id)",
    "event": "event",
    "timestamp": "toString(timestamp)",
    "created_at": "toString(created_at)",
    "distinct_id": "distinct_id",
    "person_id": "toString(person_id)",
    "properties": "properties",
    "elements_chain": "elements_chain",
    "session_id": "`$session_id`",
    "window_id": "`$window_id`",
    "person_mode": "toString(person_mode)",
    **{f"group_{n}": f"`$group_{n}`" for n in range(5)},
}
"""The columns of the warehouse's events, as ClickHouse says them."""


def duckdb_cells(names: Iterable[str]) -> list[str]:
    """Columns of the warehouse's events as texts, in ClickHouse's words."""
    micros = "strftime({} AT TIME ZONE 'UTC', '%Y-%m-%d %H:%M:%S.%f')"
    return [micros.format(name) if name in ("timestamp", "created_at") else f"{name}::text" for name in names]


def true_events(project: Project, where: str = "1") -> Counter[Row]:
    """What ClickHouse holds: each event once."""
    rows = project.server.sql(
        f"SELECT {', '.join(EVENT_FIELDS.values())} FROM events WHERE team_id = {project.id} AND {where}"
        " LIMIT 1 BY uuid"
    )
    return Counter(tuple(str(cell) for cell in row) for row in rows)


def loaded_events(path: Path, *, schema: str = "posthog_data", table: str = "events") -> Counter[Row]:
    """What a DuckDB file holds: each row as often as it is there."""
    cells = ", ".join(duckdb_cells(EVENT_FIELDS))
    with duckdb.connect(str(path)) as connection:
        rows = connection.execute(f"SELECT {cells} FROM {schema}.{table}").fetchall()
    return Counter(rows)


def documented_view() -> str:
    """The view in docs/events.md of what was appended, each event once."""
    (view,) = re.findall(
        r"```sql\n(CREATE OR REPLACE VIEW unique_events .*?)```",
        EVENTS_PAGE.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    return str(view)


def differences(found: Mapping[Row, int], truth: Mapping[Row, int]) -> str:
    """Some of what is wrong, for a message; empty when nothing is."""
    missing, odd = Counter(truth) - Counter(found), Counter(found) - Counter(truth)
    return "; ".join(_some(name, rows) for name, rows in (("missing", missing), ("too many", odd)) if rows)


def _some(name: str, rows: Counter[Row]) -> str:
    shown: Iterable[Row] = sorted(rows)[:3]
    return f"{rows.total()} {name}, such as {[row[0::2][:3] for row in shown]}"
