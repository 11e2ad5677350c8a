"""session_replays: a recording is one row with right sums, however PostHog keeps its parts."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from posthog_source import PeopleConfig, RunReport, run_sync
from posthog_source.catalog import SESSION_REPLAYS
from tests.conftest import Project, Warehouse
from tests.test_changing import sync_at

NOW = datetime.now(UTC).replace(microsecond=0)
MIDNIGHT = NOW.replace(hour=0, minute=0, second=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def recording(number: int) -> str:
    return str(uuid.UUID(int=number + 1, version=4))


def record(project: Project, numbers: list[int], at: datetime, written_at: datetime, **cells: Any) -> None:
    """One part of each of those recordings, of five minutes."""
    count = len(numbers)
    moments, seconds = pa.timestamp("us", "UTC"), pa.timestamp("s", "UTC")
    columns: dict[str, Any] = {
        "session_id": [recording(number) for number in numbers],
        "distinct_id": [f"user-{number}" for number in numbers],
        "first_timestamp": pa.array([at + timedelta(seconds=n % 60) for n in numbers], moments),
        "last_timestamp": pa.array([at + timedelta(minutes=5)] * count, moments),
        "first_url": [f"https://a.example/{at:%H}"] * count,
        "click_count": pa.array([n % 7 for n in numbers], pa.int64()),
        "keypress_count": pa.array([3] * count, pa.int64()),
        "size": pa.array([1_000] * count, pa.int64()),
        "snapshot_source": ["web"] * count,
        "_timestamp": pa.array([written_at] * count, seconds),
    }
    columns |= {name: pa.array([cell] * count) for name, cell in cells.items()}
    project.rows("session_replay_events", **columns)


def true_recordings(project: Project) -> dict[str, tuple[Any, ...]]:
    """As ClickHouse sums them."""
    rows = project.server.sql(
        "SELECT session_id, toUnixTimestamp64Micro(min(min_first_timestamp)),"
        " toUnixTimestamp64Micro(max(max_last_timestamp)), toUnixTimestamp(max(_timestamp)),"
        " sum(click_count), sum(keypress_count), sum(size), sum(message_count),"
        " argMax(distinct_id, max_last_timestamp), argMinMerge(first_url), argMinMerge(snapshot_source),"
        " max(retention_period_days), arraySort(groupUniqArrayArray(all_urls)), max(is_deleted)"
        f" FROM session_replay_events WHERE team_id = {project.id} GROUP BY session_id"
    )
    return {
        row[0]: (
            *(int(cell) for cell in row[1:8]),
            *row[8:11],
            row[11] and int(row[11]),
            row[12],
            bool(row[13]),
        )
        for row in rows
    }


def loaded_recordings(warehouse: Warehouse) -> dict[str, tuple[Any, ...]]:
    rows = warehouse.query(
        "SELECT session_id, epoch_us(start_time), epoch_us(end_time), epoch_us(last_written_at) // 1000000,"
        " click_count, keypress_count, size, message_count, distinct_id, first_url, snapshot_source,"
        " retention_period_days, all_urls::text, is_deleted FROM session_replays"
    )
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: (*row[1:12], json.loads(row[12]), row[13]) for row in rows}


def check(project: Project, warehouse: Warehouse) -> None:
    assert loaded_recordings(warehouse) == true_recordings(project)


def sync(project: Project, warehouse: Warehouse, *, page_rows: int = 25_000, **settings: Any) -> RunReport:
    return run_sync(
        warehouse.pipeline,
        tables=["session_replays"],
        people=PeopleConfig(page_rows=page_rows),
        **project.credentials | settings,
    )


@pytest.fixture
def recorded(busy_project: Project) -> Project:
    """A hundred recordings on each of three days, of which half go on: some over midnight."""
    for day in range(3):
        numbers = list(range(day * 100, day * 100 + 100))
        evening = MIDNIGHT - (day + 2) * DAY + 23 * HOUR + timedelta(minutes=50)
        record(busy_project, numbers, evening, evening)
        record(busy_project, numbers[:50], evening + timedelta(minutes=8), evening)
        record(busy_project, numbers[:20], evening + HOUR, evening + HOUR, click_count=5, keypress_count=0)
    return busy_project


@pytest.mark.parametrize("page_rows", [25_000, 150, 13])
@pytest.mark.parametrize("is_merged", [False, True], ids=["in parts", "merged"])
def test_each_recording_is_one_row_with_the_sums_of_its_parts(
    recorded: Project, warehouse: Warehouse, page_rows: int, is_merged: bool
) -> None:
    if is_merged:
        recorded.server.optimize()

    report = sync(recorded, warehouse, page_rows=page_rows)

    check(recorded, warehouse)
    assert report.rows == len(true_recordings(recorded)) == 300


def test_recordings_whose_parts_disagree_are_one_row_all_the_same(
    busy_project: Project, warehouse: Warehouse
) -> None:
    record(
        busy_project, [1], NOW - 3 * HOUR, NOW - 3 * HOUR, distinct_id="anonymous", retention_period_days=30
    )
    record(busy_project, [1], NOW - 2 * HOUR, NOW - 2 * HOUR, distinct_id="ada", snapshot_source="mobile")
    record(busy_project, [1], NOW - HOUR, NOW - HOUR, distinct_id="ada", retention_period_days=90)

    sync(busy_project, warehouse)

    check(busy_project, warehouse)
    assert warehouse.query(
        "SELECT distinct_id, retention_period_days, snapshot_source FROM session_replays"
    ) == [("ada", 90, "web")]


def test_recordings_that_grow_are_replaced_and_others_left_alone(
    recorded: Project, warehouse: Warehouse
) -> None:
    sync_at(recorded, warehouse, NOW, table=SESSION_REPLAYS)
    record(recorded, [0, 30], MIDNIGHT - DAY + HOUR, NOW + HOUR)
    record(recorded, [900], NOW, NOW + HOUR)

    assert sync_at(recorded, warehouse, NOW + 2 * HOUR, table=SESSION_REPLAYS)["rows"] == 3
    check(recorded, warehouse)
    assert sync_at(recorded, warehouse, NOW + 3 * HOUR, table=SESSION_REPLAYS)["rows"] == 0


def test_parts_that_come_weeks_late_change_their_recording_within_a_day(
    busy_project: Project, warehouse: Warehouse
) -> None:
    old = NOW - 20 * DAY
    record(busy_project, [1], old, old)
    sync_at(busy_project, warehouse, NOW, table=SESSION_REPLAYS)
    record(busy_project, [1], old + HOUR, NOW + HOUR)

    assert sync_at(busy_project, warehouse, NOW + 2 * HOUR, table=SESSION_REPLAYS)["rows"] == 0
    assert sync_at(busy_project, warehouse, NOW + 25 * HOUR, table=SESSION_REPLAYS)["rows"] == 1
    check(busy_project, warehouse)


def test_a_backfill_of_events_reads_no_recordings_from_before_start_date(
    recorded: Project, warehouse: Warehouse
) -> None:
    start = (MIDNIGHT - 2 * DAY).isoformat()
    sync_at(recorded, warehouse, NOW, table=SESSION_REPLAYS, start_date=start)
    loaded = loaded_recordings(warehouse)
    assert 0 < len(loaded) < 300

    span: dict[str, Any] = {"start_date": MIDNIGHT - DAY, "end_date": MIDNIGHT}
    sync_at(recorded, warehouse, NOW + HOUR, table=SESSION_REPLAYS, **span)
    assert loaded_recordings(warehouse) == loaded

    recorded.forget_requests()
    sync_at(recorded, warehouse, NOW + 2 * HOUR, table=SESSION_REPLAYS, start_date=start)
    assert not [one for one in recorded.requests() if one["name"] == "posthog_source session_replays"]


def test_a_first_read_in_commits_goes_on_where_it_was_stopped(
    recorded: Project, warehouse: Warehouse
) -> None:
    recorded.faults("query", {"pass": True, "times": 9}, {"status": 402})
    with pytest.raises(Exception, match="402"):
        sync(recorded, warehouse, page_rows=20, rows_per_commit=60)
    before = warehouse.counts()["session_replays"]
    assert 0 < before < 300

    report = sync(recorded, warehouse, page_rows=20, rows_per_commit=60)

    check(recorded, warehouse)
    assert report.rows == 300 - before


def test_columns_that_an_older_posthog_does_not_have_stay_empty(
    recorded: Project, warehouse: Warehouse
) -> None:
    recorded.settings(
        hidden_columns=[f"raw_session_replay_events.{name}" for name in ("event_count", "snapshot_library")]
    )

    sync(recorded, warehouse)

    check(recorded, warehouse)


def test_a_sync_reads_a_few_days_of_recordings_whatever_there_is(
    busy_project: Project, warehouse: Warehouse
) -> None:
    for day in range(1, 60):
        record(busy_project, list(range(day * 500, day * 500 + 500)), NOW - day * DAY, NOW - day * DAY)
    busy_project.server.optimize()
    sync_at(busy_project, warehouse, NOW, table=SESSION_REPLAYS)
    whole = busy_project.stats()["read_bytes"]
    record(busy_project, [600], NOW - DAY + HOUR, NOW + HOUR)
    busy_project.forget_requests()

    assert sync_at(busy_project, warehouse, NOW + 2 * HOUR, table=SESSION_REPLAYS)["rows"] == 1
    usual = busy_project.stats()["read_bytes"]
    print("bytes read: whole, usual", whole, usual)
    assert usual < whole / 5
