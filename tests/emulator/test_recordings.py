"""Session recording tables."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from tests.emulator.asking import answer, ask, column, refusal, rows
from tests.emulator.conftest import Project, Server

START = datetime(2026, 1, 10, 12, tzinfo=UTC)
ID = "019ba7e5-6c00-7000-8000-000000000001"  # of START


def add(project: Project, *batches: dict[str, Any]) -> None:
    """Append batches of recordings, one after the other."""
    for batch in batches:
        given = {"session_id": ID, "distinct_id": "ada", "first_timestamp": START, **batch}
        columns = {name: pa.array([value]) for name, value in given.items()}
        for name in ("first_timestamp", "last_timestamp"):
            if name in given:
                columns[name] = pa.array([given[name]], pa.timestamp("us", "UTC"))
        if "_timestamp" in given:
            columns["_timestamp"] = pa.array([given["_timestamp"]], pa.timestamp("s", "UTC"))
        assert project.rows("session_replay_events", **columns) == 1


def test_the_batches_of_a_recording_add_up(server: Server, project: Project) -> None:
    add(
        project,
        {
            "first_timestamp": START + timedelta(minutes=5),
            "last_timestamp": START + timedelta(minutes=7),
            "first_url": "https://a/second",
            "click_count": 2,
            "size": 100,
            "console_error_count": 1,
        },
        {
            "last_timestamp": START + timedelta(minutes=1),
            "first_url": "https://a/first",
            "urls": ["https://a/first", "https://a/second"],
            "click_count": 3,
            "size": 50,
            "keypress_count": 4,
            "message_count": 2,
        },
    )
    query = (
        "SELECT session_id, distinct_id, start_time, end_time, first_url, arraySort(all_urls), click_count,"
        " keypress_count, mouse_activity_count, active_milliseconds, console_log_count, console_warn_count,"
        " console_error_count, size, message_count, event_count FROM session_replay_events"
    )
    urls = ["https://a/first", "https://a/second"]
    times = ["2026-01-10T12:00:00Z", "2026-01-10T12:07:00Z"]
    expected = [[ID, "ada", *times, urls[0], urls, 5, 4, 0, 0, 0, 0, 1, 150, 3, 0]]
    assert rows(project, query) == expected
    assert rows(project, query.replace("session_replay", "grouped_session_replay")) == expected
    server.optimize()
    assert rows(project, query) == expected


def test_a_retention_that_changed_splits_a_recording_but_not_the_grouped_one(project: Project) -> None:
    add(project, {"retention_period_days": 30}, {"retention_period_days": 90})
    split = "SELECT session_id, retention_period_days FROM session_replay_events ORDER BY 2"
    assert rows(project, split) == [[ID, 30], [ID, 90]]
    grouped = "SELECT session_id, retention_period_days FROM grouped_session_replay_events"
    assert rows(project, grouped) == [[ID, 90]]


def test_without_its_id_all_recordings_are_one_row_but_for_the_grouped_ones(project: Project) -> None:
    add(project, {"click_count": 1}, {"click_count": 2, "session_id": "another"})
    assert rows(project, "SELECT click_count FROM session_replay_events") == [[3]]
    grouped = "SELECT click_count FROM grouped_session_replay_events ORDER BY click_count"
    assert rows(project, grouped) == [[1], [2]]


def test_the_source_of_a_recording_can_be_read_only_where_it_is_grouped(project: Project) -> None:
    add(project, {"snapshot_source": "mobile", "snapshot_library": "posthog-ios"})
    for name in ("snapshot_source", "*"):
        assert ask(project, f"SELECT {name} FROM session_replay_events").status_code == 500
    assert rows(project, "SELECT snapshot_source, snapshot_library FROM grouped_session_replay_events") == [
        ["mobile", "posthog-ios"]
    ]


def test_only_the_stored_rows_tell_when_they_were_written(project: Project) -> None:
    add(
        project,
        {"_timestamp": START + timedelta(seconds=9), "click_count": 1},
        {"_timestamp": START + timedelta(days=1), "click_count": 2, "first_url": "https://a/"},
    )
    for table in ("session_replay_events", "grouped_session_replay_events"):
        assert refusal(project, f"SELECT _timestamp FROM {table}") == (400, "hogql_query_error")
        assert refusal(project, f"SELECT min_first_timestamp FROM {table}") == (400, "hogql_query_error")
    changed = (
        "SELECT session_id, max(_timestamp), min(min_first_timestamp), sum(click_count),"
        " argMinMerge(first_url), arrayDistinct(arrayFlatten(groupArray(all_urls)))"
        " FROM raw_session_replay_events GROUP BY session_id HAVING max(_timestamp) >= '2026-01-11'"
    )
    assert rows(project, changed) == [
        [ID, "2026-01-11T12:00:00Z", "2026-01-10T12:00:00Z", 3, "https://a/", ["https://a/"]]
    ]
    assert answer(project, "SELECT _timestamp FROM raw_session_replay_events")["types"] == [
        ["_timestamp", "DateTime('UTC')"]
    ]


def test_a_project_sees_only_its_own_recordings(server: Server) -> None:
    mine, other = server.project(), server.project()
    add(mine, {})
    for table in ("session_replay_events", "raw_session_replay_events", "grouped_session_replay_events"):
        assert column(mine, f"SELECT session_id FROM {table}") == [ID]
        assert column(other, f"SELECT session_id FROM {table}") == []


def test_a_recording_marks_its_session_and_makes_one_without_events_in_v3_only(project: Project) -> None:
    add(project, {}, {"session_id": str(uuid.uuid4())})
    query = (
        "SELECT session_id, $start_timestamp, max_inserted_at, $pageview_count, $channel_type FROM sessions"
    )
    assert rows(project, query) == []
    assert rows(project, query, modifiers={"sessionTableVersion": "v3"}) == [
        [ID, "2026-01-10T12:00:00Z", "1970-01-01T00:00:00Z", 0, "Unknown"]
    ]
    events = {
        "uuid": [str(uuid.uuid4())],
        "event": ["$pageview"],
        "distinct_id": ["ada"],
        "timestamp": pa.array([START], pa.timestamp("us", "UTC")),
        "properties": [f'{{"$session_id":"{ID}","$current_url":"https://a/"}}'],
    }
    project.rows("events", **events)
    found = "SELECT $has_replay_events, $entry_current_url, distinct_id FROM sessions"
    assert rows(project, found, modifiers={"sessionTableVersion": "v3"}) == [[True, "https://a/", "ada"]]


def test_a_fifth_of_the_generated_sessions_is_recorded(project: Project) -> None:
    made = project.generate(events=4000, persons=300, end="2026-03-01T00:00:00Z", nasty=False)
    sessions = project.measure("uniqExact(`$session_id`)")[0][0]
    assert 0.12 * sessions < made["recordings"] < 0.28 * sessions
    found = rows(
        project,
        "SELECT uniq(session_id), count(), countIf(end_time < start_time), countIf(first_url = '')"
        " FROM session_replay_events",
    )
    assert found == [[made["recordings"], made["recordings"], 0, 0]]
    strangers = column(
        project,
        "SELECT session_id FROM session_replay_events"
        " WHERE session_id NOT IN (SELECT session_id FROM sessions)",
    )
    assert strangers == []
    size = "SELECT sum(size) FROM raw_session_replay_events"
    before = rows(project, size)
    again = project.generate(events=4000, persons=300, end="2026-03-01T00:00:00Z", nasty=False)
    assert again["recordings"] == made["recordings"]
    assert rows(project, size) == before
