"""What PostHog's ClickHouse holds of the story, under the same schema as what is read back from a warehouse.

Not here: what a warehouse holds (`reading`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from posthog_source.arrow import ARROW_TYPES
from posthog_source.tables import HogqlTable
from tests.conftest import Project
from tests.exact import EVENT_FIELDS
from tests.warehouses import story
from tests.warehouses.reading import canonical

PERSON_FIELDS = {
    "project_id": "team_id",
    "id": "toString(id)",
    "created_at": "toString(created_at)",
    "is_identified": "is_identified",
    "properties": "properties",
    "version": "version",
}
GROUP_FIELDS = {
    "project_id": "team_id",
    "index": "group_type_index",
    "key": "group_key",
    "created_at": "toString(created_at)",
    "properties": "group_properties",
}


def true_events(project: Project, table: HogqlTable) -> pa.Table:
    """Each event, with the columns that its promoted properties are to have."""
    rows = project.server.sql(
        f"SELECT {', '.join(EVENT_FIELDS.values())} FROM events WHERE team_id = {project.id} LIMIT 1 BY uuid"
    )
    events = [dict(zip(EVENT_FIELDS, row, strict=True)) for row in rows]
    return _to_table(table, [event | _promoted(event["uuid"], event["properties"]) for event in events])


def true_persons(project: Project, table: HogqlTable) -> pa.Table:
    """The newest version of everyone who lives."""
    fields = ", ".join(PERSON_FIELDS.values())
    return _to_table(table, _named(PERSON_FIELDS, project.persons(f"{fields}, is_deleted")))


def true_owners(project: Project, table: HogqlTable) -> pa.Table:
    """Whose each living distinct id is."""
    rows = project.server.sql(
        "SELECT team_id, distinct_id, toString(person_id), is_deleted FROM person_distinct_id2"
        f" WHERE team_id = {project.id} ORDER BY version DESC LIMIT 1 BY distinct_id"
    )
    return _to_table(table, _named(("project_id", "distinct_id", "person_id"), rows))


def true_groups(project: Project, table: HogqlTable) -> pa.Table:
    """The newest version of each."""
    fields = ", ".join(GROUP_FIELDS.values())
    rows = project.server.sql(
        f"SELECT {fields}, 0 FROM groups WHERE team_id = {project.id}"
        " ORDER BY _timestamp DESC LIMIT 1 BY group_type_index, group_key"
    )
    return _to_table(table, _named(GROUP_FIELDS, rows))


def true_members(project: Project, table: HogqlTable) -> pa.Table:
    """Who is in which cohort."""
    members = [
        {"project_id": project.id, "cohort_id": cohort, "person_id": person}
        for cohort, person in project.members()
    ]
    return _to_table(table, members)


def _named(names: Iterable[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows as dictionaries, less those whose last cell says that they are deleted."""
    return [dict(zip(names, row[:-1], strict=True)) for row in rows if not int(row[-1])]


def _promoted(uuid: str, properties: str) -> dict[str, Any]:
    number = int(uuid[-12:], 16)
    if json.loads(properties) == story.LATE:
        return dict(story.LATE)
    is_odd = number < story.DAYS * story.OF_A_DAY
    values = story.PROMOTED_VALUES.get(number % len(story.ODD_VALUES) if is_odd else -1)
    return dict(zip(story.PROMOTED, values, strict=True)) if values else {}


def _to_table(table: HogqlTable, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Of the columns that the rows have, in the order of their keys."""
    known = {name for row in rows for name in row}
    columns = [column for column in table.columns if column.name in known]
    cells = [tuple(canonical(_typed(row.get(c.name), c.kind), c.kind) for c in columns) for row in rows]
    cells.sort(key=lambda row: [str(cell) for cell in row])
    return pa.Table.from_arrays(
        [pa.array([row[n] for row in cells], ARROW_TYPES[column.kind]) for n, column in enumerate(columns)],
        names=[column.name for column in columns],
    )


def _typed(value: Any, kind: str) -> Any:
    """ClickHouse says large numbers as text."""
    return int(value) if kind == "bigint" and value is not None else value
