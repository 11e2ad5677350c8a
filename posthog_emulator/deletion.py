"""Deleting data, as PostHog does: events vanish without a trace, persons leave a newer version that says so.

PostHog queues deletions and executes them days later, in bulk; here they are done when the call returns.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.envelope import ApiError
from posthog_emulator.persons import DELETED_VERSION_STEP
from posthog_emulator.state import Project

# Marks the rows at once, without rewriting parts: those that are there twice stay there twice.
AT_ONCE = "SETTINGS lightweight_delete_mode = 'lightweight_update_force'"
PERSONS = (
    "SELECT id, argMax(created_at, version) AS created_at, argMax(properties, version) AS properties,"
    " argMax(is_identified, version) AS is_identified, argMax(is_deleted, version) AS is_deleted,"
    " max(version) AS newest FROM person WHERE team_id = {team_id} GROUP BY id"
)
DISTINCT_IDS = (
    "SELECT distinct_id, argMax(person_id, version) AS person_id,"
    " argMax(is_deleted, version) AS is_deleted, max(version) AS newest"
    " FROM person_distinct_id2 WHERE team_id = {team_id} GROUP BY distinct_id"
)


def condition(body: Mapping[str, Any], column: str, ids: str) -> str:
    """Which rows a control call means: SQL as it is, or a list of ids."""
    if ("where" in body) == (ids in body):
        raise ApiError(400, f"Say which: either where, a condition in ClickHouse's SQL, or {ids}.")
    if "where" in body:
        return str(body["where"])
    return f"{column} IN ({uuids_sql(body[ids])})" if body[ids] else "0"


def delete_events(clickhouse: ClickHouse, project: Project, where: str) -> int:
    """Delete a project's events; gives the rows that went, copies and all."""
    where = f"team_id = {project.id} AND ({where})"
    rows = clickhouse.number(f"SELECT count() FROM events WHERE {where}")
    if rows:
        clickhouse.execute(f"DELETE FROM events WHERE {where} {AT_ONCE}")
    return rows


def delete_persons(
    clickhouse: ClickHouse, project: Project, where: str, *, with_events: bool
) -> dict[str, int]:
    """Delete a project's persons and their distinct ids; their events only if asked to."""
    persons = PERSONS.format(team_id=project.id)
    chosen = f"SELECT id FROM ({persons}) WHERE is_deleted = 0 AND ({where})"
    ids = [str(row[0]) for row in orjson.loads(clickhouse.run(chosen).rows_json)]
    if not ids:
        return {"persons": 0, "distinct_ids": 0, "events": 0}
    listed = uuids_sql(ids)
    events = delete_events(clickhouse, project, f"person_id IN ({listed})") if with_events else 0
    # posthog/models/person/util.py: 100 versions ahead, so that nothing still on its way in comes after it.
    distinct_ids = (
        f"FROM ({DISTINCT_IDS.format(team_id=project.id)}) WHERE is_deleted = 0 AND person_id IN ({listed})"
    )
    count = clickhouse.number(f"SELECT count() {distinct_ids}")
    # An override is dead with its distinct id: posthog/models/person/sql.py, …_OVERRIDES_MV_SQL.
    for table in ("person_distinct_id_overrides", "person_distinct_id2"):
        clickhouse.execute(
            f"INSERT INTO {table} (team_id, distinct_id, person_id, is_deleted, version)"
            f" SELECT {project.id}, distinct_id, person_id, 1, newest + {DELETED_VERSION_STEP} {distinct_ids}"
        )
    clickhouse.execute(
        "INSERT INTO person (team_id, id, created_at, properties, is_identified, is_deleted, version)"
        f" SELECT {project.id}, id, created_at, '{{}}', is_identified, 1, newest + {DELETED_VERSION_STEP}"
        f" FROM ({persons}) WHERE id IN ({listed})"
    )
    return {"persons": len(ids), "distinct_ids": count, "events": events}


def checked_uuids(values: Any) -> list[str]:
    """Uuids as ClickHouse writes them; anything else is refused."""
    try:
        return [str(uuid.UUID(str(one))) for one in values]
    except (TypeError, ValueError) as error:
        raise ApiError(400, f"Not a list of uuids: {error}") from error


def uuids_sql(values: Any) -> str:
    """Uuids as the inside of an IN (…)."""
    return ", ".join(f"'{one}'" for one in checked_uuids(values))
