"""People as ClickHouse holds them and as a warehouse does, and the events that make them.

Not here: how either came to hold them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tests.conftest import Project, Warehouse

Person = tuple[str, str, bool, int]
"""Id, properties, whether identified, version."""


def event(name: str, distinct_id: str, at: datetime | None = None, /, **properties: Any) -> dict[str, Any]:
    sent = {"event": name, "distinct_id": distinct_id, "properties": properties}
    return sent | ({"timestamp": at.isoformat()} if at else {})


def identify(distinct_id: str, anonymous: str) -> dict[str, Any]:
    return event("$identify", distinct_id, **{"$anon_distinct_id": anonymous})


def true_persons(project: Project) -> dict[str, Person]:
    """Who lives, as ClickHouse holds them."""
    rows = project.persons("toString(id), properties, is_identified, version, is_deleted")
    return {row[0]: (row[0], row[1], bool(row[2]), int(row[3])) for row in rows if not int(row[4])}


def true_owners(project: Project) -> dict[str, str]:
    """Whose each living distinct id is."""
    rows = project.server.sql(
        "SELECT distinct_id, toString(person_id), is_deleted FROM person_distinct_id2"
        f" WHERE team_id = {project.id} ORDER BY version DESC LIMIT 1 BY distinct_id"
    )
    return {row[0]: row[1] for row in rows if not int(row[2])}


def loaded_persons(warehouse: Warehouse, where: str = "deleted_at IS NULL") -> dict[str, Person]:
    rows = warehouse.query(f"SELECT id, properties::text, is_identified, version FROM persons WHERE {where}")
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: (row[0], row[1], row[2], row[3]) for row in rows}


def loaded_owners(warehouse: Warehouse, where: str = "deleted_at IS NULL") -> dict[str, str]:
    rows = warehouse.query(f"SELECT distinct_id, person_id FROM person_distinct_ids WHERE {where}")
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: row[1] for row in rows}


def check_exactly(project: Project, warehouse: Warehouse) -> None:
    assert loaded_persons(warehouse) == true_persons(project)
    assert loaded_owners(warehouse) == true_owners(project)


def names_of(project: Project) -> list[str]:
    """Of the queries asked."""
    return [
        request["name"].removeprefix("posthog_source ")
        for request in project.requests()
        if request.get("name")
    ]
