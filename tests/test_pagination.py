"""Every row once: whatever the ties, the page size, the caps and the lies."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest

from posthog_source.catalog import (
    COHORT_PEOPLE,
    EVENTS,
    GROUPS,
    PERSON_DISTINCT_IDS,
    PERSONS,
    SESSION_REPLAYS,
    SESSIONS,
    TABLES,
)
from posthog_source.client import Client
from posthog_source.errors import (
    MissingRowsError,
    QueryRefusedError,
    StaleAnswerError,
    StuckCursorError,
    TooHeavyError,
)
from posthog_source.pagination import Reader
from posthog_source.query import Keys
from posthog_source.tables import Column, HogqlTable
from posthog_source.windows import FILL, Window
from tests.conftest import (
    NO_LIMITS,
    PLAIN_EVENTS,
    FakeTime,
    Project,
    Server,
    add_events,
    client_of,
    reader_of,
)

END = datetime(2026, 2, 1, tzinfo=UTC)
START = END - timedelta(days=10)
ALL = Window(START, END)
TEST_DAY = Window(datetime(2026, 1, 10, tzinfo=UTC), datetime(2026, 1, 11, tzinfo=UTC))
"""Where `add_events` puts its events."""

PEOPLE = [table for table in TABLES if isinstance(table, HogqlTable) and table is not EVENTS]
ODD_TEXTS = [
    *("quote ' double \" tick `", "back \\ slash", "naïve 🦔 日本語", "", " ", "{v0}", "{{v1}}", "%s %d"),
    *(
        "tab\tline\nend",
        "-- comment",
        "/* comment */",
        "'; DROP TABLE events; --",
        "\x7f",
        "A",
        "a",
        "Z",
        "0",
    ),
    *("null", "None", "$pageview", "é", "e\u0301", "😀", "\ue000", "~", "x" * 200),
]


@pytest.fixture(scope="module")
def tied(server: Server) -> Project:
    """60,000 events over ten days, 37 at each instant."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    project.generate(
        events=60_000,
        persons=500,
        days=10,
        end=END.isoformat(),
        shape="dense",
        events_per_timestamp=37,
        properties_bytes=60,
        nasty=False,
    )
    return project


@pytest.fixture(scope="module")
def people(server: Server) -> Project:
    """A product's people: 3,000 persons, 3,900 distinct ids, and cohorts."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    project.generate(events=1_000, persons=3_000, days=2, end=END.isoformat(), properties_bytes=10)
    for at in (END - timedelta(hours=50), END - timedelta(hours=26)):
        project.rows(
            "session_replay_events",
            session_id=[f"recording {n}" for n in range(1_200)],
            distinct_id=["somebody"] * 1_200,
            first_timestamp=pa.array([at] * 1_200, pa.timestamp("us", "UTC")),
        )
    return project


@pytest.fixture
def client(busy_project: Project, fake_time: FakeTime) -> Iterator[Client]:
    with client_of(busy_project, fake_time) as client:
        yield client


def read(reader: Reader, window: Window | None) -> list[pa.Table]:
    """All pages of all plans."""
    return [page for plan in reader.fetch_plans(window) for page in reader.iter_pages(plan)]


def column(pages: list[pa.Table], name: str = "uuid") -> list[Any]:
    return [value for page in pages for value in page.column(name).to_pylist()]


def events_in(project: Project, window: Window) -> int:
    """Different events that ClickHouse holds there."""
    start, end = (f"'{at:%Y-%m-%d %H:%M:%S.%f}'" for at in (window.start, window.end))
    return int(project.measure("uniqExact(uuid)", f"AND timestamp >= {start} AND timestamp < {end}")[0][0])


def keys(pages: list[pa.Table], table: HogqlTable) -> list[tuple[Any, ...]]:
    columns = [column(pages, name) for name in table.primary_key if name != "project_id"]
    return list(zip(*columns, strict=True))


def true_keys(project: Project, table: HogqlTable) -> set[tuple[Any, ...]]:
    """Keys that ClickHouse holds, found without the connector."""
    if table is PERSONS:
        return {(person_id,) for (person_id,) in project.persons("toString(id)")}
    if table is PERSON_DISTINCT_IDS:
        return {(distinct_id,) for distinct_id in project.person_ids()}
    if table is GROUPS:
        rows = project.server.sql(
            f"SELECT DISTINCT group_type_index, group_key FROM groups WHERE team_id = {project.id}"
        )
        return {(int(index), key) for index, key in rows}
    if table is SESSIONS:
        rows = project.server.sql(
            "SELECT DISTINCT toString(`$session_id`) FROM events"
            f" WHERE team_id = {project.id} AND `$session_id` != ''"
        )
        return {(session_id,) for (session_id,) in rows}
    if table is SESSION_REPLAYS:
        rows = project.server.sql(
            f"SELECT DISTINCT session_id FROM session_replay_events WHERE team_id = {project.id}"
        )
        return {(session_id,) for (session_id,) in rows}
    assert table is COHORT_PEOPLE
    return set(project.members())


@pytest.mark.parametrize(
    ("page_rows", "window", "expected"),
    [
        (7, Window(START, START + timedelta(hours=1)), None),
        (37, Window(START + timedelta(hours=22), START + timedelta(hours=26)), None),
        (1_000, Window(START, START + timedelta(days=3)), None),
        (25_000, ALL, 60_000),
        (50_000, ALL, 60_000),
    ],
)
def test_events_that_share_an_instant_come_once_each_at_any_page_size(
    tied: Project, fake_time: FakeTime, page_rows: int, window: Window, expected: int | None
) -> None:
    expected = expected or events_in(tied, window)
    assert expected > page_rows

    with client_of(tied, fake_time) as client:
        uuids = column(read(reader_of(client, tied, page_rows=page_rows), window))

    assert (len(uuids), len(set(uuids))) == (expected, expected)


@pytest.mark.parametrize("is_one_person", [True, False])
def test_more_events_at_one_instant_than_fit_a_page_come_once_each(
    busy_project: Project, client: Client, is_one_person: bool
) -> None:
    at = datetime(2026, 1, 10, 12, 0, 0, 123_456, tzinfo=UTC)
    people = ["someone"] * 100 if is_one_person else [f"user-{n}" for n in range(100)]
    expected = add_events(busy_project, 100, timestamp=[at] * 100, distinct_id=people)

    uuids = column(read(reader_of(client, busy_project, page_rows=10), TEST_DAY))

    assert sorted(uuids) == sorted(expected)


def test_uuids_are_paged_in_the_servers_order_and_not_in_the_order_of_their_text(
    busy_project: Project, client: Client
) -> None:
    # ClickHouse compares a uuid's second half first: these run backwards there.
    uuids = [f"{n:08x}-0000-4000-8000-{999 - n:012x}" for n in range(60)]
    add_events(busy_project, 60, uuid=uuids, timestamp=[TEST_DAY.start] * 60, distinct_id=["a"] * 60)

    found = column(read(reader_of(client, busy_project, page_rows=7), TEST_DAY))

    assert sorted(found) == uuids


def test_a_window_holds_its_first_microsecond_and_not_its_last(busy_project: Project, client: Client) -> None:
    microsecond = timedelta(microseconds=1)
    start, end = TEST_DAY.start + timedelta(hours=6), TEST_DAY.start + timedelta(hours=7)
    instants = [start - microsecond, start, end - microsecond, end]
    uuids = add_events(busy_project, 4, timestamp=instants)
    reader = reader_of(client, busy_project, page_rows=100)

    assert column(read(reader, Window(start, end))) == uuids[1:3]
    assert column(read(reader, Window(end, end + microsecond))) == uuids[3:]


def test_a_server_that_lowers_the_limit_in_silence_changes_nothing(
    tied: Project, fake_time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    window = Window(START, START + timedelta(days=1))
    expected = events_in(tied, window)
    tied.settings(max_rows=1_000)
    try:
        with client_of(tied, fake_time) as client:
            uuids = column(read(reader_of(client, tied, page_rows=25_000), window))
    finally:
        tied.settings(max_rows=50_000)

    assert (len(uuids), len(set(uuids))) == (expected, expected)
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        "events: PostHog hands out 1000 rows at most instead of the 25000 asked for; asking for no more."
    ]


def test_a_plan_that_the_server_cuts_in_silence_is_asked_for_to_its_end(
    tied: Project, fake_time: FakeTime
) -> None:
    # Some 30 names on each of three days: more labels than the answer may have rows.
    window = Window(START, START + timedelta(days=3))
    expected = events_in(tied, window)
    tied.settings(max_rows=20)
    try:
        with client_of(tied, fake_time) as client:
            reader = reader_of(client, tied, page_rows=10_000)
            (plan,) = reader.fetch_plans(window)
    finally:
        tied.settings(max_rows=50_000)

    assert plan.rows == expected


@pytest.mark.parametrize("max_rows", [150, 50_000])
@pytest.mark.parametrize("page_rows", [500, 25_000])
@pytest.mark.parametrize("table", PEOPLE, ids=lambda table: table.name)
def test_each_row_of_every_table_of_people_comes_once(
    people: Project, fake_time: FakeTime, table: HogqlTable, page_rows: int, max_rows: int
) -> None:
    people.settings(max_rows=max_rows)
    try:
        with client_of(people, fake_time) as client:
            found = keys(read(reader_of(client, people, page_rows=page_rows, table=table), None), table)
    finally:
        people.settings(max_rows=50_000)

    assert len(found) == len(set(found)) > 0
    assert set(found) == true_keys(people, table)


@pytest.mark.parametrize("may_repeat", [True, False])
def test_a_limit_lowered_to_a_little_less_than_a_page_loses_nothing(
    people: Project, fake_time: FakeTime, may_repeat: bool
) -> None:
    people.settings(max_rows=400)
    try:
        with client_of(people, fake_time) as client:
            reader = reader_of(client, people, page_rows=500, table=PERSONS, may_repeat=may_repeat)
            found = keys(read(reader, None), PERSONS)
    finally:
        people.settings(max_rows=50_000)

    assert set(found) == true_keys(people, PERSONS)
    assert reader.has_copies or len(found) == len(set(found))


def test_a_day_with_one_name_and_one_user_for_almost_all_comes_whole(
    busy_project: Project, client: Client
) -> None:
    busy_project.generate(
        events=10_000, persons=500, days=1, end=END.isoformat(), shape="skewed", properties_bytes=10
    )
    window = Window(END - timedelta(days=1), END)
    (most,) = busy_project.measure("event, count() AS n", "GROUP BY event ORDER BY n DESC LIMIT 1")
    (who,) = busy_project.measure("distinct_id, count() AS n", "GROUP BY distinct_id ORDER BY n DESC LIMIT 1")
    assert most[1] > 9_000
    assert who[1] > 1_900

    uuids = column(read(reader_of(client, busy_project, page_rows=1_000), window))

    assert len(uuids) == len(set(uuids)) == events_in(busy_project, window)


@pytest.mark.parametrize("page_rows", [5, 25_000])
def test_events_of_any_name_come_once_each(busy_project: Project, client: Client, page_rows: int) -> None:
    names = [name for name in ODD_TEXTS for _ in range(2)]
    add_events(busy_project, len(names), event=names, distinct_id=names)

    pages = read(reader_of(client, busy_project, page_rows=page_rows), TEST_DAY)

    assert Counter(column(pages, "event")) == Counter(names)
    assert Counter(column(pages, "distinct_id")) == Counter(names)


def test_distinct_ids_of_any_spelling_come_once_each(busy_project: Project, client: Client) -> None:
    person = "00000000-0000-4000-8000-000000000001"
    busy_project.rows(
        "person_distinct_id2",
        distinct_id=ODD_TEXTS,
        person_id=[person] * len(ODD_TEXTS),
        version=[0] * len(ODD_TEXTS),
    )

    pages = read(reader_of(client, busy_project, page_rows=5, table=PERSON_DISTINCT_IDS), None)

    assert sorted(column(pages, "distinct_id")) == sorted(ODD_TEXTS)


@pytest.mark.parametrize("table", [PLAIN_EVENTS, *PEOPLE], ids=lambda table: table.name)
def test_a_table_that_fits_a_page_costs_two_questions_a_source(
    busy_project: Project, client: Client, table: HogqlTable
) -> None:
    busy_project.settings(person_last_seen=True)
    busy_project.generate(events=500, persons=50, days=1, end=END.isoformat(), properties_bytes=10)
    busy_project.forget_requests()

    pages = read(
        reader_of(client, busy_project, page_rows=1_000, table=table), ALL if table.time_column else None
    )

    assert sum(page.num_rows for page in pages) > 0
    assert len(busy_project.requests()) == 2 * len(table.sources)


def test_every_question_has_a_limit_that_the_server_keeps_and_never_an_offset(
    busy_project: Project, client: Client
) -> None:
    add_events(busy_project, 100)

    read(reader_of(client, busy_project, page_rows=30), TEST_DAY)

    for request in busy_project.requests():
        assert int(request["query"].rsplit("LIMIT ", 1)[1]) <= 50_000
        assert "OFFSET" not in request["query"].upper()


def test_every_question_is_answered_live_though_it_was_asked_before(
    busy_project: Project, client: Client
) -> None:
    uuids = add_events(busy_project, 3)
    reader = reader_of(client, busy_project, page_rows=100)
    assert sorted(column(read(reader, TEST_DAY))) == uuids
    more = add_events(busy_project, 1, uuid=["00000000-0000-4000-9000-000000000000"])

    assert sorted(column(read(reader, TEST_DAY))) == uuids + more


def test_small_questions_that_are_too_heavy_are_asked_in_the_background(
    busy_project: Project, client: Client
) -> None:
    reader = reader_of(client, busy_project, page_rows=100, table=SESSIONS)
    busy_project.faults("query", {"status": 512})
    assert reader.fetch_columns()

    people = [f"00000000-0000-4000-8000-{n:012x}" for n in range(120)]
    busy_project.rows("person", id=people, version=[0] * 120)
    busy_project.settings(person_last_seen=True)
    reader = reader_of(client, busy_project, page_rows=1_000, table=PERSONS)
    busy_project.faults("query", {"pass": True}, {"status": 512})
    plan = reader.plan_among(Keys("id", tuple(people)), rows=0)
    assert column(list(reader.iter_pages(plan)), "id") == people


def test_rows_missing_from_an_answer_are_noticed_and_read_again(
    busy_project: Project, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    expected = add_events(busy_project, 100)
    busy_project.faults("query", {"pass": True}, {"kind": "drop_rows", "rows": 3})
    reader = reader_of(client, busy_project, page_rows=1_000)

    uuids = column(read(reader, TEST_DAY))

    assert set(uuids) == set(expected)
    assert reader.has_copies
    assert "events: 97 rows came where PostHog counts 100; reading that part again." in caplog.messages


def test_copies_do_not_hide_that_rows_are_missing(busy_project: Project, client: Client) -> None:
    expected = add_events(busy_project, 100)
    add_events(busy_project, 100)
    busy_project.faults("query", {"pass": True}, {"kind": "drop_rows", "rows": 30})

    assert set(column(read(reader_of(client, busy_project, page_rows=1_000), TEST_DAY))) == set(expected)


def test_rows_missing_where_a_commit_ends_between_counts_are_noticed(
    busy_project: Project, client: Client
) -> None:
    first = 1 << 63  # the variant's bits
    evenly, more_in_the_first = [n << 52 for n in range(1_024)], range(1, 9)
    ids = [str(UUID(int=first + n)) for n in (*evenly, *more_in_the_first)]
    busy_project.rows("person", id=ids, version=[0] * len(ids))
    busy_project.settings(person_last_seen=True)
    reader = reader_of(client, busy_project, page_rows=300, table=PERSONS)
    commit, rest = reader.fetch_rest(None).take(300)
    assert commit.slices
    assert rest.slices
    busy_project.faults("query", {"kind": "drop_rows", "rows": 3})

    found = column([page for plan in (commit, rest) for page in reader.iter_pages(plan)], "id")

    assert set(found) == set(ids)


def test_an_answer_cut_to_less_than_it_should_hold_is_followed_to_its_end(
    busy_project: Project, client: Client
) -> None:
    expected = add_events(busy_project, 100)
    busy_project.faults("query", {"pass": True}, {"kind": "drop_rows", "rows": 60})

    uuids = column(read(reader_of(client, busy_project, page_rows=1_000), TEST_DAY))

    assert sorted(uuids) == expected


def test_rows_that_stay_missing_are_an_error(busy_project: Project, client: Client) -> None:
    add_events(busy_project, 100)
    drop = {"kind": "drop_rows", "rows": 3}
    busy_project.faults("query", {"pass": True}, drop, {"pass": True}, drop, drop, {"pass": True})

    with pytest.raises(MissingRowsError, match="97 rows came where PostHog counts 100, twice"):
        read(reader_of(client, busy_project, page_rows=1_000), TEST_DAY)


def test_rows_missing_where_copies_would_stay_are_an_error_at_once(
    busy_project: Project, client: Client
) -> None:
    add_events(busy_project, 100)
    drop = {"kind": "drop_rows", "rows": 3}
    busy_project.faults("query", {"pass": True}, drop, {"pass": True}, drop)

    with pytest.raises(MissingRowsError, match="would double the others"):
        read(reader_of(client, busy_project, page_rows=1_000, may_repeat=False), TEST_DAY)


def test_rows_deleted_between_count_and_reading_are_not_missed(busy_project: Project, client: Client) -> None:
    people = [f"00000000-0000-4000-8000-{n:012x}" for n in range(50)]
    busy_project.rows("person", id=people, version=[0] * 50)
    reader = reader_of(client, busy_project, page_rows=1_000, table=PERSONS)
    (plan,) = reader.fetch_plans(None)
    busy_project.rows("person", id=people[:5], version=[1] * 5, is_deleted=[1] * 5)

    assert column(list(reader.iter_pages(plan)), "id") == people[5:]


def test_rows_that_arrive_between_count_and_reading_come_too(busy_project: Project, client: Client) -> None:
    first = add_events(busy_project, 100)
    reader = reader_of(client, busy_project, page_rows=100)
    (plan,) = reader.fetch_plans(TEST_DAY)
    later = [f"00000000-0000-4000-9000-{n:012x}" for n in range(150)]
    add_events(busy_project, 150, uuid=later, event=["new name"] * 150)

    assert sorted(column(list(reader.iter_pages(plan)))) == first + later


@pytest.mark.parametrize("status", [504, 512, 513])
def test_a_slice_too_heavy_is_read_in_smaller_parts_and_never_asked_for_again_as_it_was(
    busy_project: Project, client: Client, fake_time: FakeTime, status: int
) -> None:
    expected = add_events(busy_project, 900)
    busy_project.faults("query", {"status": status, "over_rows": 150, "times": 100})
    reader = reader_of(client, busy_project, page_rows=500)

    uuids = column(read(reader, TEST_DAY))

    assert sorted(uuids) == expected
    requests = busy_project.requests()
    assert {request["status"] for request in requests} == {200, status}
    assert fake_time.slept_s == []


def test_a_single_label_too_heavy_is_read_in_smaller_pages(busy_project: Project, client: Client) -> None:
    expected = add_events(busy_project, 300, distinct_id=["someone"] * 300)
    busy_project.faults("query", {"status": 504, "over_rows": 40, "times": 100})

    uuids = column(read(reader_of(client, busy_project, page_rows=1_000), TEST_DAY))

    assert sorted(uuids) == expected


def test_a_window_too_heavy_to_be_counted_is_counted_in_halves(tied: Project, fake_time: FakeTime) -> None:
    tied.faults("query", {"status": 504})
    with client_of(tied, fake_time) as client:
        reader = reader_of(client, tied, page_rows=25_000)
        plans = reader.fetch_plans(ALL)
        uuids = column([page for plan in plans for page in reader.iter_pages(plan)])

    assert len(plans) == 2
    assert (len(uuids), len(set(uuids))) == (60_000, 60_000)


def test_what_stays_too_heavy_at_one_row_a_page_is_an_error(busy_project: Project, client: Client) -> None:
    add_events(busy_project, 3)
    busy_project.faults("query", {"pass": True}, {"status": 504, "times": 100})

    with pytest.raises(TooHeavyError):
        read(reader_of(client, busy_project, page_rows=100), TEST_DAY)


def test_a_page_that_ends_where_it_should_begin_is_an_error(busy_project: Project, client: Client) -> None:
    add_events(busy_project, 2)
    reader = reader_of(client, busy_project, page_rows=2)
    (plan,) = reader.fetch_plans(TEST_DAY)
    names = [c.name for c in PLAIN_EVENTS.columns if c.name != "project_id"]
    known = {"uuid": "00000000-0000-4000-8000-000000000001", "event": "page", "distinct_id": "user-1"}
    known["timestamp"] = "2026-01-10T00:00:01Z"
    same_again = {"results": [[known.get(name) for name in names]], "columns": names, "is_cached": False}
    busy_project.faults("query", {"pass": True}, {"status": 200, "body": same_again})

    with pytest.raises(StuckCursorError):
        list(reader.iter_pages(plan))


def test_a_cache_that_stays_stale_is_an_error(busy_project: Project, client: Client) -> None:
    busy_project.faults("query", {"kind": "stale", "times": 100})

    with pytest.raises(StaleAnswerError):
        read(reader_of(client, busy_project, page_rows=100), TEST_DAY)


OPTIONAL = [c for c in PLAIN_EVENTS.columns if c.is_optional]


@pytest.mark.parametrize("hidden", [[c] for c in OPTIONAL] + [OPTIONAL], ids=lambda found: found[-1].name)
def test_a_column_that_the_server_does_not_know_yet_is_null_with_one_warning(
    busy_project: Project, client: Client, caplog: pytest.LogCaptureFixture, hidden: list[Column]
) -> None:
    expected = add_events(busy_project, 30)
    busy_project.settings(hidden_columns=[f"events.{c.source}" for c in hidden])
    reader = reader_of(client, busy_project, page_rows=20)

    pages = read(reader, TEST_DAY)

    assert sorted(column(pages)) == expected
    warnings = [message for message in caplog.messages if "does not know" in message]
    assert len(warnings) == len(hidden)
    for absent in hidden:
        assert set(column(pages, absent.name)) == {None}
        assert any(f"events.{absent.name} stays empty" in message for message in warnings)
    assert len({page.schema for page in pages}) == 1


def test_a_column_that_every_server_must_know_is_an_error_when_unknown(
    busy_project: Project, client: Client
) -> None:
    add_events(busy_project, 3)
    busy_project.settings(hidden_columns=["events.distinct_id"])

    with pytest.raises(QueryRefusedError, match="distinct_id"):
        read(reader_of(client, busy_project, page_rows=100), TEST_DAY)


@pytest.fixture
def copied(busy_project: Project) -> Project:
    """400 events, 200 of them twice, which ClickHouse has not merged yet."""
    busy_project.generate(events=1_000, persons=10, days=1, end="2020-01-01", properties_bytes=10)
    add_events(busy_project, 400)
    add_events(busy_project, 200)
    ((rows, events),) = busy_project.measure("count(), uniqExact(uuid)", "AND timestamp > '2025-01-01'")
    assert (rows, events) == (600, 400)
    return busy_project


@pytest.mark.parametrize("page_rows", [50, 1_000])
def test_rows_not_merged_yet_come_once_each(copied: Project, client: Client, page_rows: int) -> None:
    uuids = column(read(reader_of(client, copied, page_rows=page_rows), TEST_DAY))

    assert (len(uuids), len(set(uuids))) == (400, 400)


@pytest.mark.parametrize("page_rows", [50, 1_000])
def test_rows_merged_between_plan_and_reading_are_not_missed(
    copied: Project, client: Client, page_rows: int
) -> None:
    reader = reader_of(client, copied, page_rows=page_rows)
    (plan,) = reader.fetch_plans(TEST_DAY)
    assert plan.rows == 600

    copied.server.optimize()

    uuids = column(list(reader.iter_pages(plan)))
    assert (len(uuids), len(set(uuids))) == (400, 400)


def test_an_event_sent_again_under_another_name_is_one_event(busy_project: Project, client: Client) -> None:
    one = "00000000-0000-4000-8000-000000000000"
    add_events(busy_project, 3, uuid=[one] * 3, event=["a", "b", "c"])

    pages = read(reader_of(client, busy_project, page_rows=100), TEST_DAY)

    assert column(pages, "event") == ["c"]


@pytest.mark.parametrize("has_copy", [False, True])
def test_copies_on_different_pages_are_told_and_no_others(
    busy_project: Project, client: Client, has_copy: bool
) -> None:
    uuids = [f"00000000-0000-4000-8000-{n:012x}" for n in range(60)]
    if has_copy:
        uuids[-1] = uuids[0]
    add_events(busy_project, 60, uuid=uuids, event=["a"] * 30 + ["b"] * 30)
    reader = reader_of(client, busy_project, page_rows=20)

    read(reader, TEST_DAY)

    assert reader.has_copies is has_copy


def test_never_more_questions_are_open_than_look_ahead_allows(tied: Project, fake_time: FakeTime) -> None:
    window = Window(START, START + timedelta(days=1))
    peaks = {}
    for look_ahead in (1, 2, 3):
        tied.forget_requests()
        with client_of(tied, fake_time, look_ahead=look_ahead) as client:
            read(reader_of(client, tied, page_rows=1_000, look_ahead=look_ahead), window)
        peaks[look_ahead] = tied.stats()["max_concurrent_queries"]

    assert peaks == {1: 1, 2: 2, 3: 3}


def test_days_are_utc_days_whatever_the_projects_zone(server: Server, fake_time: FakeTime) -> None:
    """Counted by local days and read by UTC days, parts would seem to miss rows."""
    project = server.project(timezone="America/New_York", settings={"rate_limits": NO_LIMITS})
    project.generate(events=3_000, persons=50, days=4, end=END.isoformat(), nasty=False, properties_bytes=10)
    with client_of(project, fake_time) as client:
        uuids = column(read(reader_of(client, project, page_rows=500), ALL))

    assert (len(uuids), len(set(uuids))) == (3_000, 3_000)
    names = [request["name"] for request in project.requests()]
    assert "posthog_source events plan" in names
    assert "posthog_source events recount" not in names


def test_pages_of_a_plan_come_in_the_order_of_the_sort_key(tied: Project, fake_time: FakeTime) -> None:
    with client_of(tied, fake_time) as client:
        pages = read(reader_of(client, tied, page_rows=2_000), Window(START, START + timedelta(days=2)))

    days = [at.date() for at in column(pages, "timestamp")]
    last_of_page = [page.column("timestamp")[-1].as_py().date() for page in pages]
    assert len(set(days)) == 2
    assert last_of_page == sorted(last_of_page)


def test_posthog_reads_little_more_than_is_exported(busy_project: Project, client: Client) -> None:
    busy_project.generate(
        events=100_000, persons=10_000, days=1, end=END.isoformat(), nasty=False, properties_bytes=900
    )
    busy_project.server.optimize()
    busy_project.forget_requests()

    pages = read(reader_of(client, busy_project, page_rows=25_000), Window(END - timedelta(days=1), END))

    exported = sum(page.nbytes for page in pages)
    assert sum(page.num_rows for page in pages) == 100_000
    assert busy_project.stats()["read_bytes"] <= 1.3 * exported


def test_memory_holds_pages_and_not_the_table(tied: Project, fake_time: FakeTime) -> None:
    """Pages are handed on as they come: when the first is here, most have not been asked for."""
    with client_of(tied, fake_time) as client:
        reader = reader_of(client, tied, page_rows=1_000)
        (plan,) = reader.fetch_plans(Window(START, START + timedelta(days=3)))
        tied.forget_requests()
        pages = reader.iter_pages(plan)
        next(pages)
        asked = len(tied.requests())
        pages.close()  # type: ignore[attr-defined]

    assert len(plan.slices) >= 18
    assert asked <= 4


def test_an_event_of_mostly_one_distinct_id_is_read_a_page_at_a_time(
    server: Server, fake_time: FakeTime
) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    add_events(project, 3_000, distinct_id=["server" if i % 4 else f"user {i}" for i in range(3_000)])
    with client_of(project, fake_time) as client:
        reader = reader_of(client, project, page_rows=200)
        (plan,) = reader.fetch_plans(TEST_DAY)
        pages = list(reader.iter_pages(plan))

    assert len(set(column(pages))) == 3_000
    assert len(pages) == len(plan.slices) <= 3_000 / 200 / FILL + 1
    assert max(page.num_rows for page in pages) < 200
