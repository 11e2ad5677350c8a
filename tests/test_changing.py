"""changing: tables whose rows say when they changed are whole, and a sync costs what changed."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import dlt
import pyarrow as pa
import pytest
from dlt.sources import DltResource

from posthog_source import PeopleConfig, RunReport, run_sync
from posthog_source.catalog import GROUPS, SESSIONS
from posthog_source.changing import build_changing
from posthog_source.config import PeopleSettings, build_settings
from posthog_source.tables import HogqlTable
from tests.conftest import FakeTime, Project, Warehouse, client_of

NOW = datetime.now(UTC)
Rows = dict[tuple[Any, ...], tuple[Any, ...]]


def sync(project: Project, warehouse: Warehouse, *tables: str, **settings: Any) -> RunReport:
    """As people do it, in commits."""
    return run_sync(warehouse.pipeline, tables=tables or ("groups",), **project.credentials | settings)


def sync_at(
    project: Project,
    warehouse: Warehouse,
    now: datetime,
    *,
    table: HogqlTable = GROUPS,
    page_rows: int = 25_000,
    **settings: Any,
) -> dict[str, Any]:
    """One load of one table, as if it were then; its metrics."""
    with client_of(project, FakeTime()) as client:

        @dlt.source(name="posthog", section="posthog")
        def source() -> Iterable[DltResource]:
            made = build_settings(**project.credentials | settings)
            config = PeopleSettings(page_rows=page_rows)
            yield build_changing(client, made, table, config, clock=lambda: now)

        info = warehouse.pipeline.extract(source())
        warehouse.pipeline.normalize()
        warehouse.pipeline.load()
    found = [part["resource_metrics"] for load in info.metrics.values() for part in load]
    return next(dict(part[table.name].custom_metrics or {}) for part in found if table.name in part)


def add_groups(
    project: Project, count: int, at: datetime, *, first: int = 0, index: int = 0, **properties: Any
) -> None:
    """Groups, or newer versions of them."""
    seconds = pa.timestamp("s", "UTC")
    project.rows(
        "groups",
        group_type_index=pa.array([index] * count, pa.uint8()),
        group_key=[f"org '{n}'" for n in range(first, first + count)],
        created_at=pa.array([NOW - timedelta(days=9)] * count, pa.timestamp("ms", "UTC")),
        group_properties=[json.dumps({"n": n} | properties) for n in range(first, first + count)],
        _timestamp=pa.array([at.replace(microsecond=0)] * count, seconds),
    )


def true_groups(project: Project) -> Rows:
    rows = project.server.sql(
        "SELECT group_type_index, group_key, argMax(group_properties, _timestamp),"
        f" toUnixTimestamp(max(_timestamp)) FROM groups WHERE team_id = {project.id}"
        " GROUP BY group_type_index, group_key"
    )
    return {(int(row[0]), row[1]): (json.loads(row[2]), int(row[3])) for row in rows}


def loaded_groups(warehouse: Warehouse, project: Project) -> Rows:
    rows = warehouse.query(
        f"SELECT index, key, properties::text, updated_at FROM groups WHERE project_id = {project.id}"
    )
    assert len({row[:2] for row in rows}) == len(rows)
    return {(row[0], row[1]): (json.loads(row[2]), int(row[3].timestamp())) for row in rows}


def asked(project: Project) -> list[str]:
    """Names of the questions."""
    names = [str(request.get("name") or request["path"]) for request in project.requests()]
    return [name.removeprefix("posthog_source ") for name in names]


def test_all_groups_land_as_clickhouse_has_them(busy_project: Project, warehouse: Warehouse) -> None:
    add_groups(busy_project, 700, NOW - timedelta(days=3))
    add_groups(busy_project, 500, NOW - timedelta(days=2), index=1)
    add_groups(busy_project, 90, NOW - timedelta(days=1), first=50, seen="again")

    sync(busy_project, warehouse, people=PeopleConfig(page_rows=100))

    assert loaded_groups(warehouse, busy_project) == true_groups(busy_project)
    assert len(true_groups(busy_project)) == 1_200


def test_a_sync_without_a_change_asks_once_and_writes_nothing(
    busy_project: Project, warehouse: Warehouse
) -> None:
    add_groups(busy_project, 50, NOW - timedelta(days=3))
    sync(busy_project, warehouse)
    busy_project.forget_requests()

    report = sync(busy_project, warehouse)

    assert report.rows == 0
    assert asked(busy_project) == ["groups count"]


def test_only_groups_that_changed_are_read_again(busy_project: Project, warehouse: Warehouse) -> None:
    add_groups(busy_project, 300, NOW - timedelta(days=3))
    sync(busy_project, warehouse)
    add_groups(busy_project, 7, datetime.now(UTC), first=10, plan="pro")
    add_groups(busy_project, 3, datetime.now(UTC), first=1_000)

    report = sync(busy_project, warehouse)

    assert report.rows == 10
    assert loaded_groups(warehouse, busy_project) == true_groups(busy_project)


def test_a_group_that_is_seen_late_within_the_overlap_is_not_lost(
    busy_project: Project, warehouse: Warehouse
) -> None:
    add_groups(busy_project, 3, NOW - timedelta(hours=2))
    sync_at(busy_project, warehouse, NOW)
    add_groups(busy_project, 3, NOW - timedelta(seconds=GROUPS.overlap_s - 5), late=True)

    sync_at(busy_project, warehouse, NOW + timedelta(hours=1))

    assert loaded_groups(warehouse, busy_project) == true_groups(busy_project)


def test_what_a_sync_of_groups_reads_follows_the_changes(busy_project: Project, warehouse: Warehouse) -> None:
    add_groups(busy_project, 60_000, NOW - timedelta(days=3), text="x" * 300)
    busy_project.server.optimize()
    sync(busy_project, warehouse)
    whole = busy_project.stats()["read_bytes"]
    add_groups(busy_project, 5, datetime.now(UTC))
    busy_project.forget_requests()

    sync(busy_project, warehouse)

    assert busy_project.stats()["read_bytes"] < whole / 10
    assert loaded_groups(warehouse, busy_project) == true_groups(busy_project)


def test_a_first_read_stopped_between_commits_goes_on(busy_project: Project, warehouse: Warehouse) -> None:
    add_groups(busy_project, 500, NOW - timedelta(days=3))
    left = sync_at(busy_project, warehouse, NOW, page_rows=50, rows_per_commit=200)["rows_left"]
    assert 250 <= left <= 350
    # Read already, and changed since: the read that goes on does not see it, the next one does.
    add_groups(busy_project, 2, NOW + timedelta(seconds=30), changed=True)

    rows = sync_at(busy_project, warehouse, NOW + timedelta(minutes=20), page_rows=50)["rows"]
    assert rows == left
    assert sync_at(busy_project, warehouse, NOW + timedelta(minutes=30))["rows"] == 2
    assert loaded_groups(warehouse, busy_project) == true_groups(busy_project)


def test_many_changes_come_in_commits_too(busy_project: Project, warehouse: Warehouse) -> None:
    add_groups(busy_project, 400, NOW - timedelta(days=3))
    sync(busy_project, warehouse)
    add_groups(busy_project, 300, datetime.now(UTC), first=200, changed=True)

    report = sync(busy_project, warehouse, people=PeopleConfig(page_rows=40), rows_per_commit=100)

    assert report.commits >= 3
    assert report.rows == 300
    assert loaded_groups(warehouse, busy_project) == true_groups(busy_project)


def test_rows_that_were_dropped_on_the_way_are_read_again_and_land_once(
    busy_project: Project, warehouse: Warehouse
) -> None:
    add_groups(busy_project, 100, NOW - timedelta(days=3))
    busy_project.faults("query", {"pass": True}, {"kind": "drop_rows", "rows": 3})

    sync(busy_project, warehouse)

    assert loaded_groups(warehouse, busy_project) == true_groups(busy_project)


def test_two_projects_share_a_dataset(busy_project: Project, warehouse: Warehouse) -> None:
    other = busy_project.server.project()
    beside = Warehouse.at(warehouse.path, "beside")
    add_groups(busy_project, 5, NOW - timedelta(days=3))
    add_groups(other, 6, NOW - timedelta(days=3), mine=False)

    for _ in range(2):
        sync(busy_project, warehouse, "groups", "group_types")
        sync(other, beside, "groups", "group_types")

    assert loaded_groups(beside, busy_project) == true_groups(busy_project)
    assert loaded_groups(beside, other) == true_groups(other)


def test_group_types_land_as_posthog_lists_them(busy_project: Project, warehouse: Warehouse) -> None:
    busy_project.control(
        "POST",
        "group_types",
        items=[{"group_type": "company", "name_plural": "companies"}, {"group_type": "team"}],
    )

    sync(busy_project, warehouse, "group_types")

    assert warehouse.query(
        "SELECT group_type_index, group_type, name_plural FROM group_types ORDER BY group_type_index"
    ) == [(0, "company", "companies"), (1, "team", None)]


def test_a_posthog_without_group_types_leaves_them_out_with_one_warning(
    busy_project: Project, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    busy_project.control("POST", "group_types", items=[{"group_type": "company"}])
    sync(busy_project, warehouse, "group_types")
    busy_project.settings(group_types_api=False)

    with caplog.at_level(logging.WARNING, "posthog_source"):
        sync(busy_project, warehouse, "people")

    assert len([text for text in caplog.messages if text.startswith("group_types is left as it is")]) == 1
    assert warehouse.counts()["group_types"] == 1


BOTH = pytest.mark.parametrize("version", ["v2", "v3"])
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def session_id(at: datetime, number: int = 1) -> str:
    """A UUIDv7 of that time."""
    value = (int(at.timestamp() * 1000) << 80) | (0x7 << 76) | (0b10 << 62) | number
    return str(uuid.UUID(int=value))


def visit(project: Project, session: str, *times: datetime, stored_at: datetime, **properties: Any) -> None:
    """Pages of a session, which PostHog stored at that time."""
    moment = pa.timestamp("us", "UTC")
    project.rows(
        "events",
        uuid=[str(uuid.uuid4()) for _ in times],
        event=["$pageview"] * len(times),
        distinct_id=["ada"] * len(times),
        timestamp=pa.array(times, moment),
        created_at=pa.array([stored_at] * len(times), moment),
        inserted_at=pa.array([stored_at] * len(times), moment),
        properties=[json.dumps({"$session_id": session} | properties)] * len(times),
    )


def true_sessions(project: Project) -> Rows:
    """Start, end and pages of every session, by its events."""
    rows = project.server.sql(
        "SELECT `$session_id`, toUnixTimestamp64Micro(min(timestamp)),"
        " toUnixTimestamp64Micro(max(timestamp)), uniqExactIf(uuid, event = '$pageview')"
        f" FROM events WHERE team_id = {project.id} AND `$session_id` != '' GROUP BY `$session_id`"
    )
    return {(row[0],): (int(row[1]), int(row[2]), int(row[3])) for row in rows}


def loaded_sessions(warehouse: Warehouse, project: Project) -> Rows:
    rows = warehouse.query(
        "SELECT session_id, epoch_us(start_timestamp), epoch_us(end_timestamp), pageview_count"
        f" FROM sessions WHERE project_id = {project.id}"
    )
    assert len({row[0] for row in rows}) == len(rows)
    return {(row[0],): row[1:] for row in rows}


def check_sessions(project: Project, warehouse: Warehouse) -> None:
    assert loaded_sessions(warehouse, project) == true_sessions(project)


def columns_of(warehouse: Warehouse, table: str) -> dict[str, str]:
    return dict(
        warehouse.query(
            f"SELECT column_name, data_type FROM information_schema.columns WHERE table_name = '{table}'"
            " AND table_schema = 'posthog_data'"
        )
    )


@BOTH
def test_all_sessions_land_as_their_events_make_them(
    busy_project: Project, warehouse: Warehouse, version: str
) -> None:
    busy_project.settings(session_table_version=version)
    busy_project.control("PATCH", "", timezone="Asia/Tokyo")
    busy_project.generate(events=4_000, persons=300, days=12, end=NOW.isoformat(), properties_bytes=10)

    report = sync(busy_project, warehouse, "sessions", people=PeopleConfig(page_rows=70), rows_per_commit=200)

    check_sessions(busy_project, warehouse)
    assert report.commits > 2
    assert report.rows == len(true_sessions(busy_project)) > 400


@BOTH
def test_columns_are_those_that_the_server_has_with_their_types(
    busy_project: Project, warehouse: Warehouse, version: str
) -> None:
    busy_project.settings(session_table_version=version)
    at = NOW - HOUR
    urls = {"$current_url": "https://a.example/in?x=1", "msclkid": "m1", "gclid": "g1"}
    visit(busy_project, session_id(at), at, stored_at=at, **urls)

    sync(busy_project, warehouse, "sessions")

    found = columns_of(warehouse, "sessions")
    assert found["urls"] == "JSON"
    assert found["is_bounce"] == "BOOLEAN"
    assert found["session_duration"] == "BIGINT"
    own = {"v2": ("vitals_lcp", "DOUBLE"), "v3": ("has_replay_events", "BOOLEAN")}
    for each, (name, kind) in own.items():
        assert found.get(name) == (kind if each == version else None)
    assert warehouse.query(
        "SELECT urls->>0, entry_msclkid, entry_gclid, entry_pathname, is_bounce, num_uniq_urls FROM sessions"
    ) == [("https://a.example/in?x=1", "m1", "g1", "/in", True, 1)]


def test_a_project_that_moves_to_the_other_generation_keeps_its_columns(
    busy_project: Project, warehouse: Warehouse
) -> None:
    visit(busy_project, session_id(NOW - DAY), NOW - DAY, stored_at=NOW - DAY)
    sync_at(busy_project, warehouse, NOW, table=SESSIONS)
    busy_project.settings(session_table_version="v3")
    visit(busy_project, session_id(NOW, 2), NOW, stored_at=NOW)

    sync_at(busy_project, warehouse, NOW + HOUR, table=SESSIONS)

    check_sessions(busy_project, warehouse)
    assert {"vitals_lcp", "has_replay_events"} <= set(columns_of(warehouse, "sessions"))


@BOTH
def test_sessions_that_grow_are_replaced_and_others_left_alone(
    busy_project: Project, warehouse: Warehouse, version: str
) -> None:
    busy_project.settings(session_table_version=version)
    midnight = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
    over_midnight, long = session_id(midnight - HOUR), session_id(NOW - 2 * DAY, 2)
    visit(busy_project, over_midnight, midnight - HOUR, stored_at=NOW - DAY)
    visit(busy_project, long, NOW - 2 * DAY, stored_at=NOW - 2 * DAY)
    visit(busy_project, session_id(NOW - 9 * DAY, 3), NOW - 9 * DAY, stored_at=NOW - 9 * DAY)
    assert sync_at(busy_project, warehouse, NOW, table=SESSIONS)["rows"] == 3

    visit(busy_project, over_midnight, midnight + HOUR, stored_at=NOW + HOUR)
    visit(busy_project, long, NOW, NOW - 2 * DAY - HOUR, stored_at=NOW + HOUR)
    visit(busy_project, session_id(NOW, 4), NOW, stored_at=NOW + HOUR)

    assert sync_at(busy_project, warehouse, NOW + 2 * HOUR, table=SESSIONS)["rows"] == 3
    check_sessions(busy_project, warehouse)
    assert sync_at(busy_project, warehouse, NOW + 3 * HOUR, table=SESSIONS)["rows"] == 0


@BOTH
def test_events_that_come_weeks_late_change_their_session_within_a_day(
    busy_project: Project, warehouse: Warehouse, version: str
) -> None:
    busy_project.settings(session_table_version=version)
    old = NOW - 20 * DAY
    visit(busy_project, session_id(old), old, stored_at=old)
    sync_at(busy_project, warehouse, NOW, table=SESSIONS)
    visit(busy_project, session_id(old), old + HOUR, stored_at=NOW + HOUR)

    assert sync_at(busy_project, warehouse, NOW + 2 * HOUR, table=SESSIONS)["rows"] == 0
    assert sync_at(busy_project, warehouse, NOW + 25 * HOUR, table=SESSIONS)["rows"] == 1
    check_sessions(busy_project, warehouse)


def test_sessions_begin_with_the_day_of_the_start_date_and_moving_it_back_reads_more(
    busy_project: Project, warehouse: Warehouse
) -> None:
    for days in (2, 5, 9):
        at = NOW - days * DAY
        visit(busy_project, session_id(at, days), at, stored_at=at)

    def sync_from(days: int, passed: timedelta) -> int:
        start = (NOW - days * DAY).isoformat()
        sync_at(busy_project, warehouse, NOW + passed, table=SESSIONS, start_date=start)
        return warehouse.counts()["sessions"]

    assert [sync_from(3, HOUR), sync_from(6, 2 * HOUR), sync_from(6, 3 * HOUR)] == [1, 2, 2]


def test_what_a_sync_of_sessions_reads_does_not_grow_with_history(
    busy_project: Project, warehouse: Warehouse
) -> None:
    busy_project.generate(
        events=150_000, persons=5_000, days=300, end=(NOW - HOUR).isoformat(), properties_bytes=10
    )
    busy_project.server.optimize()
    sync_at(busy_project, warehouse, NOW + HOUR, table=SESSIONS)
    read = [busy_project.stats()["read_bytes"]]
    for passed in (2 * HOUR, 30 * HOUR):
        visit(busy_project, session_id(NOW, 5), NOW, stored_at=NOW + passed)
        busy_project.forget_requests()
        sync_at(busy_project, warehouse, NOW + passed + HOUR, table=SESSIONS)
        read.append(busy_project.stats()["read_bytes"])

    whole, usual, late = read
    print("bytes read: whole, usual, late", read)
    assert usual < whole / 2
    assert late < whole / 2
