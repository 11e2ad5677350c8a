"""What dlt is told of each table, and what a resource hands on without a pipeline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
from dlt.sources import DltSource

from posthog_source import EventsConfig, posthog_source
from posthog_source.arrow import schema_of
from posthog_source.catalog import EVENTS, ON_REQUEST, TABLES
from posthog_source.tables import HogqlTable, RestTable, Table
from tests.conftest import PLAIN_EVENTS, Project, Warehouse, add_events

BY_NAME = {table.name: table for table in (PLAIN_EVENTS, *TABLES[1:])}


def source_of(project: Project, **settings: Any) -> DltSource:
    return posthog_source(**project.credentials | settings)


@pytest.fixture
def small(project: Project) -> Project:
    project.settings(organization_id=str(uuid4()))
    end = datetime.now(UTC) - timedelta(hours=1)
    project.generate(events=300, persons=40, days=2, end=end.isoformat(), properties_bytes=50)
    survey, export = (
        project.get(f"{path}/").json()["results"][0]["id"] for path in ("surveys", "batch_exports")
    )
    answer = {"event": "survey sent", "distinct_id": "somebody", "properties": {"$survey_id": survey}}
    project.capture(answer)
    project.control("POST", "definitions/batch_exports/{parent}/runs", items=[{"_parent": export}])
    return project.with_full_key()


def test_there_is_a_resource_for_every_table_and_no_other(project: Project) -> None:
    source = source_of(project)
    assert list(source.resources) == [table.name for table in (*TABLES, *ON_REQUEST)]
    assert list(source.selected_resources) == [table.name for table in TABLES]


@pytest.mark.parametrize("table", BY_NAME.values(), ids=lambda table: table.name)
def test_a_resource_hands_on_arrow_under_the_tables_schema(small: Project, table: Table) -> None:
    pages = list(source_of(small).resources[table.name])

    assert sum(page.num_rows for page in pages) > 0
    for page in pages:
        assert isinstance(page, pa.Table)
        names = [column.name for column in table.columns]
        is_open = isinstance(table, HogqlTable | RestTable) and table.is_open
        assert (page.schema.names[: len(names)] if is_open else page.schema.names) == names
        assert page.select(names).schema.equals(schema_of(table))


@pytest.mark.parametrize("table", BY_NAME.values(), ids=lambda table: table.name)
def test_keys_and_requirements_reach_the_warehouse(
    small: Project, warehouse: Warehouse, table: Table
) -> None:
    warehouse.sync(small, table.name)

    columns = warehouse.pipeline.default_schema.tables[table.name]["columns"]
    keys = [name for name, column in columns.items() if column.get("primary_key")]
    assert sorted(keys) == sorted(table.primary_key)
    for column in table.columns:
        assert columns[column.name].get("nullable", True) is not column.is_required
    rows = warehouse.query(f"SELECT DISTINCT {', '.join(table.primary_key)} FROM {table.name}")
    assert len(rows) == warehouse.counts()[table.name]


@pytest.mark.parametrize(
    ("json_columns", "expected"), [("auto", "JSON"), ("json", "JSON"), ("text", "VARCHAR")]
)
def test_properties_are_json_or_text_as_chosen(
    small: Project, warehouse: Warehouse, json_columns: str, expected: str
) -> None:
    warehouse.sync(small, "events", events=EventsConfig(json_columns=json_columns))

    ((kind,),) = warehouse.query(
        "SELECT data_type FROM information_schema.columns WHERE table_name = 'events'"
        " AND column_name = 'properties' AND table_schema = 'posthog_data'"
    )
    assert kind == expected


@pytest.mark.parametrize(
    "table",
    [table for table in BY_NAME.values() if isinstance(table, HogqlTable)],
    ids=lambda table: table.name,
)
def test_the_schema_of_a_table_is_the_same_whatever_it_holds(
    small: Project, warehouse: Warehouse, table: HogqlTable
) -> None:
    """An empty table and a full one, so that no column changes its type one day."""
    empty = small.server.project()
    Warehouse.at(warehouse.path, "other").sync(empty, table.name)
    before = warehouse.query(f"DESCRIBE {table.name}")

    warehouse.sync(small, table.name)

    assert warehouse.query(f"DESCRIBE {table.name}") == before
    assert warehouse.counts()[table.name] > 0


def test_a_load_without_copies_is_not_sorted_for_them_and_one_with_copies_is(
    project: Project, warehouse: Warehouse
) -> None:
    at = [datetime.now(UTC) - timedelta(minutes=20 + n) for n in range(100)]
    add_events(project, 100, timestamp=at)
    told = []
    scripts: list[list[dict[str, Any]]] = [
        [],
        [{"pass": True}, {"kind": "drop_rows", "rows": 3}],
        [],
    ]
    for faults in scripts:
        if faults:
            project.faults("query", *faults)
        days = {"start_date": at[-1] - timedelta(days=1), "end_date": at[0] + timedelta(1)}
        warehouse.sync(project, "events", rows_per_commit=1_000, **days)
        assert project.control("GET", "faults") == {"remaining": 0, "fired": 1 if faults else 0}
        project.control("DELETE", "faults")
        tables: dict[str, Any] = dict(warehouse.pipeline.default_schema.tables)
        told.append(tables["events"]["x-stage-data-deduplicated"])
        assert warehouse.counts() == {"events": 100}
    assert told == [True, False, True]

    warehouse.sync(project, "events", **days)  # dlt may resume it by itself, and copy a file twice
    tables = dict(warehouse.pipeline.default_schema.tables)
    assert tables["events"]["x-stage-data-deduplicated"] is False


def test_events_without_person_properties_are_the_catalogues_events_less_one_column() -> None:
    assert {c.name for c in EVENTS.columns} - {c.name for c in PLAIN_EVENTS.columns} == {"person_properties"}
