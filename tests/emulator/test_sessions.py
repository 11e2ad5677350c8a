"""HogQL's `sessions`, v2 and v3: values, and rows read."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from tests.emulator.asking import answer, ask, column, last_read, refusal, rows
from tests.emulator.conftest import Project, Server

START = datetime(2026, 1, 10, 12, tzinfo=UTC)
MONTH = 40 * 1440
GRANULE = 8192
V3 = {"sessionTableVersion": "v3"}
BOTH = pytest.mark.parametrize("modifiers", [{}, V3], ids=["v2", "v3"])


def session_id(at: datetime = START, number: int = 1) -> str:
    """A UUIDv7 of that time."""
    value = (int(at.timestamp() * 1000) << 80) | (0x7 << 76) | (0b10 << 62) | number
    return str(uuid.UUID(int=value))


def add(project: Project, *events: dict[str, Any], **columns: Sequence[Any]) -> None:
    """Append events of one session unless told otherwise; all but the known members are properties."""
    given = [{"event": "$pageview", "at": START, "distinct_id": "ada"} | event for event in events]
    moment = pa.timestamp("us", "UTC")
    properties = [
        {"$session_id": session_id()}
        | {name: value for name, value in one.items() if name not in ("event", "at", "distinct_id", "uuid")}
        for one in given
    ]
    data = {
        "uuid": [one.get("uuid", str(uuid.uuid4())) for one in given],
        "event": [one["event"] for one in given],
        "distinct_id": [one["distinct_id"] for one in given],
        "timestamp": pa.array([one["at"] for one in given], moment),
        "properties": [json.dumps(one) for one in properties],
        **{name: pa.array(values, moment) for name, values in columns.items()},
    }
    assert project.rows("events", **data) == len(events)


def later(**passed: float) -> datetime:
    return START + timedelta(**passed)


# --- what a session is


@BOTH
def test_a_session_adds_up_its_events(project: Project, modifiers: dict[str, str]) -> None:
    add(
        project,
        {"at": START, "$current_url": "https://a.example/in?x=1", "utm_source": "google", "gclid": "g1"},
        {"at": later(seconds=5), "event": "$autocapture", "distinct_id": "ada"},
        {"at": later(seconds=9), "$current_url": "https://b.example/out", "distinct_id": "lovelace"},
        {"at": later(seconds=4), "event": "$screen"},
    )
    found = answer(
        project,
        "SELECT session_id, distinct_id, $start_timestamp, $end_timestamp, $num_uniq_urls, arraySort($urls),"
        " $entry_current_url, $entry_pathname, $entry_hostname, $end_current_url, $end_pathname,"
        " $end_hostname, $exit_current_url, $entry_utm_source, $entry_utm_medium, $entry_gclid,"
        " $pageview_count, $autocapture_count, $screen_count, $session_duration, duration, $is_bounce"
        " FROM sessions",
        modifiers=modifiers,
    )
    entry, end = "https://a.example/in?x=1", "https://b.example/out"
    times = ["2026-01-10T12:00:00Z", "2026-01-10T12:00:09Z"]
    began, ended = [entry, "/in", "a.example"], [end, "/out", "b.example", end]
    counted = [2, 1, 1, 9, 9, 0]
    ids = [session_id(), "lovelace"]
    expected = [*ids, *times, 2, [entry, end], *began, *ended, "google", None, "g1", *counted]
    assert found["results"] == [expected]


@BOTH
def test_only_uuids_of_version_7_make_a_session(project: Project, modifiers: dict[str, str]) -> None:
    add(project, {"$session_id": str(uuid.uuid4())}, {"$session_id": "not a uuid"}, {"$session_id": ""})
    assert rows(project, "SELECT session_id FROM sessions", modifiers=modifiers) == []


@BOTH
def test_an_event_that_comes_twice_is_one_page(project: Project, modifiers: dict[str, str]) -> None:
    for _ in range(2):
        add(project, {"uuid": "00000000-0000-4000-8000-000000000001"})
    assert rows(project, "SELECT $pageview_count FROM sessions", modifiers=modifiers) == [[1]]


def test_the_first_event_tells_the_source_in_v2_and_the_first_page_in_v3(project: Project) -> None:
    add(
        project,
        {"event": "identified", "at": START},
        {"event": "clicked", "at": later(seconds=1), "utm_source": "late", "$current_url": "https://x/click"},
        {
            "event": "$pageview",
            "at": later(seconds=2),
            "utm_source": "page",
            "$current_url": "https://x/page",
        },
    )
    query = "SELECT $entry_utm_source, $entry_current_url FROM sessions"
    assert rows(project, query) == [[None, None]]
    assert rows(project, query, modifiers=V3) == [["page", "https://x/page"]]


@BOTH
def test_a_session_is_one_row_however_many_times_it_was_written(
    server: Server, project: Project, modifiers: dict[str, str]
) -> None:
    for n in range(3):
        add(project, {"at": later(minutes=n), "$current_url": f"https://a/{n}"})
    query = "SELECT $pageview_count, $num_uniq_urls, $session_duration FROM sessions"
    assert rows(project, query, modifiers=modifiers) == [[3, 3, 120]]
    server.optimize()
    assert rows(project, query, modifiers=modifiers) == [[3, 3, 120]]


@BOTH
def test_max_inserted_at_is_the_newest_arrival(project: Project, modifiers: dict[str, str]) -> None:
    query = "SELECT max_inserted_at FROM sessions"
    add(project, {}, {}, inserted_at=[later(days=2, microseconds=7), later(seconds=3)])
    assert column(project, query, modifiers=modifiers) == ["2026-01-12T12:00:00.000007Z"]
    add(project, {"at": later(seconds=1)}, inserted_at=[later(days=9)])
    assert column(project, query, modifiers=modifiers) == ["2026-01-19T12:00:00Z"]


@BOTH
def test_deleting_events_changes_no_session(project: Project, modifiers: dict[str, str]) -> None:
    add(project, {}, {"at": later(seconds=1)})
    project.control("POST", "delete/events", where="1")
    assert rows(project, "SELECT count() FROM events") == [[0]]
    assert rows(project, "SELECT $pageview_count FROM sessions", modifiers=modifiers) == [[2]]


@BOTH
def test_captured_and_generated_events_make_sessions_too(project: Project, modifiers: dict[str, str]) -> None:
    now = datetime.now(UTC)
    properties = {"$session_id": session_id(now), "$current_url": "https://captured/"}
    project.capture(
        {
            "event": "$pageview",
            "distinct_id": "ada",
            "timestamp": now.isoformat(),
            "properties": properties,
        }
    )
    found = rows(project, "SELECT session_id, $entry_current_url FROM sessions", modifiers=modifiers)
    assert found == [[session_id(now), "https://captured/"]]
    project.generate(events=500, persons=50, end="2026-03-01T00:00:00Z", nasty=False)
    expected = project.measure("uniqExact(`$session_id`)")
    assert rows(project, "SELECT count() FROM sessions", modifiers=modifiers) == expected


def test_a_project_sees_only_its_own_sessions(server: Server) -> None:
    mine, other = server.project(), server.project()
    add(mine, {})
    assert rows(other, "SELECT session_id FROM sessions") == []
    assert rows(other, "SELECT session_id FROM sessions", modifiers=V3) == []
    assert rows(other, "SELECT urls FROM raw_sessions") == rows(other, "SELECT urls FROM raw_sessions_v3")


@pytest.mark.parametrize(
    ("event", "channel"),
    [
        ({"$referring_domain": "$direct"}, "Direct"),
        ({"$referring_domain": "www.google.com"}, "Organic Search"),
        ({"utm_source": "Google", "utm_medium": "cpc"}, "Paid Search"),
        ({"gad_source": "1"}, "Paid Search"),
        ({"utm_source": "facebook", "$referring_domain": "l.facebook.com"}, "Organic Social"),
        ({"utm_medium": "email"}, "Email"),
        ({"utm_campaign": "spring-cross-network"}, "Cross Network"),
        ({"gclid": "g", "utm_campaign": "best shoes shopping"}, "Paid Shopping"),
        ({"$referring_domain": "blog.example.org"}, "Referral"),
        ({}, "Unknown"),
    ],
)
@BOTH
def test_the_channel_follows_from_how_a_session_began(
    project: Project, event: dict[str, str], channel: str, modifiers: dict[str, str]
) -> None:
    add(project, event)
    assert column(project, "SELECT $channel_type FROM sessions", modifiers=modifiers) == [channel]


@BOTH
def test_a_bounce_is_one_page_without_a_click_for_less_than_ten_seconds(
    project: Project, modifiers: dict[str, str]
) -> None:
    pages: list[list[dict[str, Any]]] = [
        [{}],
        [{}, {"at": later(seconds=1)}],
        [{}, {"event": "$autocapture"}],
        [{}, {"event": "left", "at": later(seconds=10)}],
        [{"event": "of the server"}],
    ]
    for number, events in enumerate(pages):
        add(project, *({"$session_id": session_id(number=number), **event} for event in events))
    query = "SELECT $is_bounce FROM sessions ORDER BY session_id"
    assert column(project, query, modifiers=modifiers) == [1, 0, 0, 0, None]


# --- which columns there are


def test_v2_is_read_unless_v3_is_asked_for(project: Project) -> None:
    add(project, {"$web_vitals_LCP_value": 812.5}, {"at": later(seconds=1), "msclkid": "m"})
    assert rows(project, "SELECT $vitals_lcp FROM sessions") == [[812.5]]
    assert rows(project, "SELECT $vitals_lcp FROM sessions", modifiers={"sessionTableVersion": "auto"})
    assert refusal(project, "SELECT $vitals_lcp FROM sessions", modifiers=V3)[0] == 400
    query = "SELECT session_timestamp, $entry_has_gclid, $entry_has_msclkid, $entry_msclkid FROM sessions"
    assert rows(project, query, modifiers=V3) == [["2026-01-10T12:00:00", False, 0, ""]]
    assert refusal(project, query)[0] == 400
    project.settings(session_table_version="v3")
    assert rows(project, query)
    refused = project.server.http.patch(
        f"/_emulator/projects/{project.id}", json={"settings": {"session_table_version": "v4"}}
    )
    assert refused.status_code == 400


@BOTH
def test_sessions_have_no_person_and_no_unknown_column(project: Project, modifiers: dict[str, str]) -> None:
    for name in ("person_id", "$entry_nothing", "inserted_at"):
        assert refusal(project, f"SELECT {name} FROM sessions", modifiers=modifiers) == (
            400,
            "hogql_query_error",
        )


def test_a_star_leaves_out_what_has_no_form_in_an_answer(project: Project) -> None:
    add(project, {})
    hidden = {"session_id_v7", "id", "team_id", "duration", "$exit_current_url", "$exit_pathname"}
    v2 = answer(project, "SELECT * FROM sessions")["columns"]
    v3 = answer(project, "SELECT * FROM sessions", modifiers=V3)["columns"]
    assert not hidden & {*v2, *v3}
    assert {"$entry_gclid", "$entry_gad_source"} <= set(v2)
    assert not {"$entry_gclid", "$entry_gad_source"} & set(v3)
    assert ask(project, "SELECT session_id_v7 FROM sessions").status_code == 500
    assert column(project, "SELECT toString(session_id_v7) FROM sessions")[0].isdecimal()


@BOTH
def test_the_types_of_a_sessions_columns(project: Project, modifiers: dict[str, str]) -> None:
    query = (
        "SELECT session_id, $start_timestamp, max_inserted_at, $urls, $num_uniq_urls, $entry_current_url,"
        " $pageview_count, $session_duration, $is_bounce, $channel_type FROM sessions"
    )
    types = [kind for _, kind in answer(project, query, modifiers=modifiers)["types"]]
    moment = "DateTime64(6, 'UTC')"
    assert types == [
        *("String", moment, moment, "Array(String)", "UInt64", "Nullable(String)", "UInt64", "Int64"),
        *("Nullable(UInt8)", "String"),
    ]


def test_times_of_sessions_are_the_projects_unless_the_modifier_says_utc(server: Server) -> None:
    project = server.project(timezone="America/New_York")
    add(project, {})
    query = "SELECT $start_timestamp, toString($end_timestamp) FROM sessions"
    assert rows(project, query) == [["2026-01-10T07:00:00-05:00", "2026-01-10 07:00:00.000000"]]
    in_utc = rows(project, query, modifiers={"convertToProjectTimezone": False})
    assert in_utc == [["2026-01-10T12:00:00Z", "2026-01-10 12:00:00.000000"]]
    assert rows(project, "SELECT 1 FROM sessions WHERE $start_timestamp >= '2026-01-10 07:00:00'")
    assert not rows(project, "SELECT 1 FROM sessions WHERE $start_timestamp >= '2026-01-10 07:00:01'")


@pytest.mark.parametrize("table", ["raw_sessions", "raw_sessions_v3"])
def test_stored_rows_can_be_seen_and_their_states_merged(project: Project, table: str) -> None:
    add(project, {"$current_url": "https://a/"})
    add(project, {"$current_url": "https://b/", "at": later(seconds=1)})
    found = rows(project, f"SELECT min_timestamp, urls, toString(session_id_v7) FROM {table} ORDER BY 1")
    assert [row[:2] for row in found] == [
        ["2026-01-10T12:00:00Z", ["https://a/"]],
        ["2026-01-10T12:00:01Z", ["https://b/"]],
    ]
    merged = "argMinMerge(entry_url), argMaxMerge(end_url), argMaxMerge(distinct_id)"
    assert rows(project, f"SELECT {merged} FROM {table}") == [["https://a/", "https://b/", "ada"]]
    assert ask(project, f"SELECT entry_url FROM {table}").status_code == 500


# --- what is read


@pytest.fixture(scope="module")
def month(server: Server) -> Project:
    """A session each minute for forty days."""
    project = server.project(settings={"rate_limits": {"api_queries": [10**6, 10**6]}})
    starts = [START + timedelta(minutes=n) for n in range(MONTH)]
    add(project, *({"at": at, "$session_id": session_id(at)} for at in starts))
    server.optimize()
    return project


def read_by(project: Project, condition: str, modifiers: dict[str, str]) -> tuple[int, int]:
    query = f"SELECT session_id FROM sessions WHERE {condition} LIMIT 50000"
    rows(project, query, modifiers=modifiers)
    return last_read(project)


@BOTH
@pytest.mark.parametrize("name", ["$start_timestamp", "$end_timestamp"])
def test_a_condition_on_time_reads_what_began_within_three_days_of_it(
    month: Project, name: str, modifiers: dict[str, str]
) -> None:
    read, found = read_by(
        month, f"{name} >= '2026-02-01' AND {name} < toDateTime64('2026-02-02', 6, 'UTC')", modifiers
    )
    assert found == 1440
    within_three_days = 7 * 1440
    assert within_three_days <= read <= within_three_days + 3 * GRANULE


@BOTH
def test_a_session_that_ends_three_days_after_its_id_is_lost_to_a_condition_on_its_end(
    project: Project, modifiers: dict[str, str]
) -> None:
    add(project, {"at": START}, {"at": later(days=4)})
    query = "SELECT session_id FROM sessions WHERE $end_timestamp >= '2026-01-14'"
    assert rows(project, query, modifiers=modifiers) == []
    by_arrival = (
        "SELECT session_id FROM sessions WHERE greatest(max_inserted_at, $end_timestamp) >= '2026-01-14'"
    )
    assert rows(project, by_arrival, modifiers=modifiers) == [[session_id()]]
    assert rows(project, f"{query} OR $pageview_count = 2", modifiers=modifiers) == [[session_id()]]


@BOTH
def test_rows_of_one_session_outside_the_bound_are_not_cut_off(
    project: Project, modifiers: dict[str, str]
) -> None:
    add(project, {"at": START}, {"at": later(days=2)})
    query = "SELECT $pageview_count FROM sessions WHERE $end_timestamp >= '2026-01-12 00:00:00'"
    assert rows(project, query, modifiers=modifiers) == [[2]]


def test_an_id_reads_one_moment_in_v3_and_everything_in_v2(month: Project) -> None:
    wanted = session_id(START + timedelta(minutes=5000))
    everything, _ = read_by(month, f"session_id = '{wanted}'", {})
    one, found = read_by(month, f"session_id = '{wanted}'", V3)
    assert found == 1
    assert one <= 2 * GRANULE < MONTH <= everything


@BOTH
def test_arrival_alone_reads_every_session(month: Project, modifiers: dict[str, str]) -> None:
    assert read_by(month, "max_inserted_at >= '2026-02-01'", modifiers)[0] >= MONTH


@pytest.mark.parametrize(
    "condition",
    [
        "NOT ($is_bounce = 1)",
        "not($is_bounce = 1)",
        "if($is_bounce = 1, 0, 1)",
        "$start_timestamp BETWEEN '2026-01-01' AND '2026-02-01'",
    ],
)
def test_conditions_of_unknown_effect_on_what_is_read_are_refused(project: Project, condition: str) -> None:
    assert refusal(project, f"SELECT session_id FROM sessions WHERE {condition}") == (400, "hogql_error")


@BOTH
def test_sessions_can_be_joined_and_paged(month: Project, modifiers: dict[str, str]) -> None:
    query = (
        "SELECT s.session_id, e.event FROM events AS e JOIN sessions AS s ON e.$session_id = s.session_id"
        " WHERE e.timestamp >= '2026-02-01' AND e.timestamp < '2026-02-02' LIMIT 5000"
    )
    assert len(rows(month, query, modifiers=modifiers)) == 1440
    found: list[str] = []
    last = ""
    while page := column(
        month,
        "SELECT session_id FROM sessions WHERE $start_timestamp >= '2026-02-01' AND session_id > {last}"
        " AND $start_timestamp < '2026-02-02' ORDER BY session_id LIMIT 500",
        values={"last": last},
        modifiers=modifiers,
    ):
        found += page
        last = page[-1]
    assert len(found) == len(set(found)) == 1440
