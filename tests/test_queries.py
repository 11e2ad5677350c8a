"""Any HogQL query as a table: its columns, its rows exactly once, what is new of it, and what is refused."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dlt.pipeline.exceptions import PipelineStepFailed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posthog_source import PosthogSourceError, find_cause, posthog_query, posthog_source, run_sync
from posthog_source.config import MAX_PAGE_ROWS
from posthog_source.errors import SettingsError, UnexpectedAnswerError
from posthog_source.query_pages import fetch_table, iter_pages
from posthog_source.query_tables import build_query_settings, parse_queries
from tests.conftest import (
    NO_LIMITS,
    FakeTime,
    Files,
    Project,
    Server,
    Warehouse,
    add_events,
    client_of,
    run_program,
)

DAY = datetime(2026, 1, 10, tzinfo=UTC)
ALL = "SELECT distinct_id, event, timestamp AS at FROM events"
BY_DAY = "SELECT toDate(timestamp) AS day, toInt(count()) AS events FROM events GROUP BY day"


def sync(warehouse: Warehouse, project: Project, name: str, query: str, **options: Any) -> None:
    """One load of one query."""
    warehouse.pipeline.run(posthog_query(name, query, **project.credentials | options))


def read(project: Project, query: str, **options: Any) -> list[dict[str, Any]]:
    """All rows of a query, without a warehouse."""
    settings = build_query_settings({"name": "odd", "query": query} | options)
    with client_of(project, FakeTime()) as client:
        table = fetch_table(client, settings)
        pages = iter_pages(client, table, project_id=project.id, page_rows=settings.page_rows)
        return [row for page in pages for row in page.to_pylist()]


def refusal(warehouse: Warehouse, project: Project, name: str, query: str, **options: Any) -> str:
    """The one line that a query is refused with; nothing of it is loaded."""
    with pytest.raises(PipelineStepFailed) as failure:
        sync(warehouse, project, name, query, **options)
    cause = find_cause(failure.value)
    assert isinstance(cause, SettingsError)
    return str(cause)


def pages_of(project: Project, name: str) -> list[str]:
    """The page questions of one query."""
    return [r["query"] for r in project.requests() if r["name"] == f"posthog_source {name}"]


def at(days: float = 0, **times: float) -> datetime:
    return DAY + timedelta(days=days, **times)


def uuids(first: int, count: int) -> list[str]:
    return [f"00000000-0000-4000-8000-{n:012x}" for n in range(first, first + count)]


TYPES: dict[str, tuple[str, str, list[Any]]] = {
    "texts": ("any(event)", "VARCHAR", ["", "a\ufffdb", "\u00fc\U0001f600\"'\n", "\\"]),
    "maybe": ("if(n = 0, '', NULL)", "VARCHAR", ["", None, None, None]),
    "uuid": ("if(n = 0, toUUID('00000000-0000-0000-0000-000000000000'), NULL)", "VARCHAR",
             ["00000000-0000-0000-0000-000000000000", None, None, None]),
    "enum": ("any(person_mode)", "VARCHAR", ["full"] * 4),
    "interval": ("toIntervalDay(n)", "VARCHAR", ["0", "1", "2", "3"]),
    "nothing": ("NULL", "VARCHAR", [None] * 4),
    "bool": ("multiIf(n = 0, toBool(0), n = 1, toBool(1), NULL)", "BOOLEAN", [False, True, None, None]),
    "whole": ("multiIf(n = 0, -5, n = 1, 9223372036854775807, NULL)", "BIGINT", [-5, 2**63 - 1, None, None]),
    "small": ("n = 0", "BIGINT", [1, 0, 0, 0]),
    "low": ("-9223372036854775807 - 1", "BIGINT", [-(2**63)] * 4),
    "unsigned": ("bitNot(bitXor(cityHash64('a'), cityHash64('a')))", "DECIMAL(20,0)",
                 [Decimal(2**64 - 1)] * 4),
    "count": ("count()", "DECIMAL(20,0)", [Decimal(1)] * 4),
    "money": ("multiIf(n = 0, toDecimal('-12345678901234.5678', 4), n = 1, toDecimal('0.1', 4), NULL)",
              "DECIMAL(18,4)", [Decimal("-12345678901234.5678"), Decimal("0.1000"), None, None]),
    "sums": ("sum(toDecimal('99999999999999.9999', 4))", "DECIMAL(38,4)",
             [Decimal("99999999999999.9999")] * 4),
    "large": ("multiplyDecimal(toDecimal('99999999.5', 4), toDecimal('-99999999.5', 4))", "DECIMAL(38,4)",
              [Decimal("-9999999900000000.2500")] * 4),
    "float": ("multiIf(n = 0, 0.1, n = 1, 1 / 0, n = 2, -1 / 0, 0 / 0)", "DOUBLE",
              ["0.1", "inf", "-inf", "nan"]),
    "tiny": ("multiIf(n = 0, 5e-324, n = 1, 1.7976931348623157e308, n = 2, -0.5, NULL)", "DOUBLE",
             ["5e-324", "1.7976931348623157e+308", "-0.5", "None"]),
    "day": ("multiIf(n = 0, toDate('1970-01-01'), n = 1, toDate('2149-06-06'), NULL)", "DATE",
            [date(1970, 1, 1), date(2149, 6, 6), None, None]),
    "time": ("multiIf(n = 0, toDateTime64('1900-01-01 00:00:00.000001', 6), NULL)",
             "TIMESTAMP WITH TIME ZONE",
             [datetime(1900, 1, 1, 0, 0, 0, 1, UTC), None, None, None]),
    "late": ("toDateTime64('2262-01-01 00:00:00', 6)", "TIMESTAMP WITH TIME ZONE",
             [datetime(2262, 1, 1, tzinfo=UTC)] * 4),
    "there": ("toTimeZone(toDateTime64('2026-07-01 12:00:00.5', 6, 'UTC'), 'Asia/Tokyo')",
              "TIMESTAMP WITH TIME ZONE", [datetime(2026, 7, 1, 12, 0, 0, 500_000, UTC)] * 4),
    "nested": ("[tuple(n, 'a\"b', NULL)]", "JSON", [f'[[{n},"a\\"b",null]]' for n in range(4)]),
    "empty": ("arrayFilter(x -> x > 5, [1, 2])", "JSON", ["[]"] * 4),
    "map": ("map('a', n)", "JSON", [f'{{"a":{n}}}' for n in range(4)]),
    "numbered": ("map(n, 'a')", "JSON", [f'{{"{n}":"a"}}' for n in range(4)]),
}  # fmt: skip
"""An expression of n, what DuckDB makes of its type, and the values for n = 0 … 3."""


@pytest.fixture
def project(busy_project: Project) -> Project:
    return busy_project


def test_every_type_arrives_as_the_warehouses_own_with_its_extremes(
    project: Project, warehouse: Warehouse
) -> None:
    names = ["", "a\0b", "\u00fc\U0001f600\"'\n", "\\"]
    add_events(project, 4, event=names, properties=[f'{{"n": {n}}}' for n in range(4)])
    columns = ", ".join(f"{expression} AS {name}" for name, (expression, _, _) in TYPES.items())
    query = f"SELECT JSONExtractInt(properties, 'n') AS n, {columns} FROM events GROUP BY n"

    sync(warehouse, project, "types", query)

    kinds = {name: kind for name, kind, *_ in warehouse.query("DESCRIBE types")}
    assert {name: kinds[name] for name in TYPES} == {name: kind for name, (_, kind, _) in TYPES.items()}
    for name, (_, kind, expected) in TYPES.items():
        found: list[Any] = [cell for (cell,) in warehouse.query(f'SELECT "{name}" FROM types ORDER BY n')]
        assert ([str(cell) for cell in found] if kind == "DOUBLE" else found) == expected, name


def test_a_number_too_large_for_json_arrives_and_one_too_large_for_a_warehouse_is_told(
    project: Project, warehouse: Warehouse
) -> None:
    session = "01890000-0000-7000-8000-000000000001"
    project.capture({"event": "a", "distinct_id": "d", "properties": {"$session_id": session}})
    sync(warehouse, project, "visits", "SELECT session_id_v7 AS id, session_id FROM sessions")
    assert warehouse.query("SELECT id, session_id FROM visits") == [
        (int(session.replace("-", ""), 16), session)
    ]
    nines = "toDecimal('99999999999999.9999', 4)"
    query = f"SELECT multiplyDecimal(multiplyDecimal({nines}, {nines}), {nines}) AS much FROM events"

    with pytest.raises(
        UnexpectedAnswerError, match=r"vast\.much: PostHog answered a value that is no decimal"
    ):
        read(project, query, name="vast")


def test_a_query_of_no_rows_makes_its_table_and_empties_it_again(
    project: Project, warehouse: Warehouse
) -> None:
    sync(warehouse, project, "plans", ALL)
    names = [name for name, *_ in warehouse.query("DESCRIBE plans")]
    assert names[:4] == ["project_id", "distinct_id", "event", "at"]
    add_events(project, 3)
    sync(warehouse, project, "plans", ALL)
    assert len(warehouse.query("SELECT * FROM plans")) == 3

    sync(warehouse, project, "plans", f"{ALL} WHERE event = 'nothing'")

    assert warehouse.query("SELECT * FROM plans") == []


def test_projects_that_share_a_dataset_replace_only_their_own_rows(
    server: Server, warehouse: Warehouse
) -> None:
    projects = [server.project(), server.project()]
    for count, project in zip((2, 3), projects, strict=True):
        add_events(project, count)
        sync(warehouse, project, "plans", ALL)

    sync(warehouse, projects[0], "plans", ALL)

    found = Counter(project_id for (project_id,) in warehouse.query("SELECT project_id FROM plans"))
    assert found == {projects[0].id: 2, projects[1].id: 3}


@pytest.fixture(scope="module")
def tied(server: Server) -> tuple[Project, Counter[Any]]:
    """Rows of which many share a time, a day or a text."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    add_events(
        project,
        44,
        timestamp=[at(seconds=n // 5) for n in range(44)],
        event=[f"{n % 5}\u00fc'\\" for n in range(44)],
        properties=[f'{{"n": {n % 9}}}' for n in range(44)],
    )
    return project, Counter(f"user-{n}" for n in range(44))


KEYS: tuple[tuple[str, list[str]], ...] = (
    ("", ["distinct_id"]),
    ("", ["event", "distinct_id"]),
    ("", ["uuid"]),
    ("at", ["uuid"]),
    ("at", ["event", "n", "uuid"]),
    ("day", ["hash"]),
    ("n", ["distinct_id"]),
    ("half", ["hash", "uuid"]),
    ("hash", []),
    ("event", ["distinct_id"]),
    ("at", []),
    ("n", []),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(KEYS),
    page_rows=st.integers(1, 50),
    cap=st.one_of(st.none(), st.integers(2, 50)),
)
def test_whatever_the_pages_ties_and_caps_each_row_comes_exactly_once(
    tied: tuple[Project, Counter[Any]], key: tuple[str, list[str]], page_rows: int, cap: int | None
) -> None:
    project, expected = tied
    cursor, primary_key = key
    query = build_query_settings(
        {
            "name": "rows",
            "query": "SELECT *, toDate(at) AS day, n / 2 AS half FROM (SELECT uuid, distinct_id, event, "
            "cityHash64(uuid) AS hash, timestamp AS at, JSONExtractInt(properties, 'n') AS n FROM events)",
            "cursor": cursor,
            "primary_key": primary_key,
            "page_rows": page_rows,
        }
    )
    project.settings(max_rows=cap or MAX_PAGE_ROWS)
    most_alike = {"at": 5, "n": 5}.get(cursor, 1) if not primary_key else 1

    found: Counter[Any] = Counter()
    with client_of(project, FakeTime()) as client:
        table = fetch_table(client, query)
        pages = iter_pages(client, table, project_id=project.id, page_rows=page_rows)
        try:
            for page in pages:
                found.update(page.column("distinct_id").to_pylist())
        except SettingsError:
            assert min(page_rows, cap or MAX_PAGE_ROWS) <= most_alike
            return

    assert min(page_rows, cap or MAX_PAGE_ROWS) > most_alike
    assert found == expected


def test_a_query_costs_one_question_for_its_types_and_one_for_each_page(project: Project) -> None:
    add_events(project, 120)
    query = build_query_settings(
        {"name": "rows", "query": ALL, "primary_key": "distinct_id", "page_rows": 50}
    )
    project.forget_requests()

    with client_of(project, FakeTime()) as client:
        table = fetch_table(client, query)
        rows = [p.num_rows for p in iter_pages(client, table, project_id=project.id, page_rows=50)]

    assert rows == [49, 49, 22]
    assert [request["name"].split()[-1] for request in project.requests()] == [
        "types",
        "rows",
        "rows",
        "rows",
    ]
    types, first, *_ = project.requests()
    assert types["read_bytes"] == 0 < first["read_bytes"]


def test_neither_posthogs_default_limit_nor_its_cap_cuts_a_query_and_its_own_limit_does(
    busy_project: Project,
) -> None:
    query = build_query_settings(
        {"name": "rows", "query": "SELECT number FROM numbers(120000)", "primary_key": "number"}
    )
    with client_of(busy_project, FakeTime()) as client:
        table = fetch_table(client, query)
        pages = iter_pages(client, table, project_id=busy_project.id, page_rows=query.page_rows)
        assert sum(page.num_rows for page in pages) == 120_000

    limited = f"{query.query} ORDER BY number DESC LIMIT 10"
    found = read(busy_project, limited, primary_key="number", page_rows=10)
    assert [row["number"] for row in found] == list(range(119_990, 120_000))


def test_a_server_that_hands_out_fewer_rows_than_asked_for_is_found_out_without_asking_the_query_again(
    project: Project, warehouse: Warehouse
) -> None:
    add_events(project, 130)
    project.settings(max_rows=60)

    sync(warehouse, project, "rows", ALL, primary_key=["distinct_id"])
    sync(warehouse, project, "few", f"{ALL} WHERE distinct_id <= 'user-12'", primary_key=["distinct_id"])

    assert warehouse.query("SELECT count(*), count(DISTINCT distinct_id) FROM rows") == [(130, 130)]
    assert len(pages_of(project, "rows")) == 3
    assert len(pages_of(project, "few")) == 1


def test_a_query_too_heavy_to_wait_for_is_asked_in_the_background(
    project: Project, warehouse: Warehouse
) -> None:
    add_events(project, 120)
    project.faults("query", {"pass": True}, {"status": 504})

    sync(warehouse, project, "rows", ALL, primary_key=["distinct_id"], page_rows=50)

    assert warehouse.query("SELECT count(*), count(DISTINCT distinct_id) FROM rows") == [(120, 120)]


def test_with_a_cursor_and_a_key_a_sync_reads_what_is_new_and_replaces_what_changed(
    project: Project, warehouse: Warehouse
) -> None:
    """The cursor's last value is read again; rows that change further back only within the look-back."""
    add_events(project, 4, timestamp=[at(0), at(1), at(2), at(2)])
    options: dict[str, Any] = {"cursor": "day", "primary_key": "day", "lookback_s": 3_600}
    sync(warehouse, project, "days", BY_DAY, **options)
    add_events(project, 4, uuid=uuids(10, 4), timestamp=[at(0.5), at(1.5), at(2.5), at(3)])
    project.forget_requests()

    sync(warehouse, project, "days", BY_DAY, **options)

    found = warehouse.query("SELECT day, events FROM days ORDER BY day")
    assert [events for _, events in found] == [1, 2, 3, 1]  # an hour back is the day before, the first stays
    (page,) = pages_of(project, "days")
    assert "`day` >= toDate('2026-01-11')" in page


def test_with_a_cursor_and_no_key_a_sync_replaces_all_rows_from_its_start_on(
    project: Project, warehouse: Warehouse
) -> None:
    query = "SELECT event, timestamp AS at FROM events"
    add_events(project, 5, timestamp=[at(0), at(1), at(1), at(2), at(2)])
    sync(warehouse, project, "rows", query, cursor="at", lookback_s=86_400)
    project.control("POST", "delete/events", uuids=[uuids(0, 1)[0], uuids(1, 1)[0], uuids(3, 1)[0]])
    add_events(project, 2, uuid=uuids(10, 2), event=["new", "new"], timestamp=[at(2), at(3)])

    sync(warehouse, project, "rows", query, cursor="at", lookback_s=86_400)

    found = warehouse.query('SELECT "at", event FROM rows ORDER BY "at", event')
    expected = [(at(0), "page"), (at(1), "page"), (at(2), "new"), (at(2), "page"), (at(3), "new")]
    assert found == expected  # what is gone goes too, but not before the look-back


@pytest.mark.parametrize(
    ("expression", "lookback_s"),
    [
        ("toDate(timestamp)", 0),
        ("timestamp", 0.5),
        ("toStartOfHour(timestamp)", 0),
        ("toUnixTimestamp(timestamp)", 0),
        ("toInt(toUnixTimestamp(timestamp))", 0),
        ("bitXor(bitXor(cityHash64('a'), cityHash64('a')), toUnixTimestamp(timestamp))", 0),
        ("toUnixTimestamp(timestamp) / 8", 0),
        ("toString(timestamp)", 0),
        ("nullIf(timestamp, toDateTime64('1999-01-01 00:00:00', 6, 'UTC'))", 0),
    ],
)
def test_dates_times_numbers_and_texts_are_cursors(
    project: Project, warehouse: Warehouse, expression: str, lookback_s: float
) -> None:
    query = f"SELECT {expression} AS seen, distinct_id, event FROM events"
    options: dict[str, Any] = {"cursor": "seen", "primary_key": ["distinct_id"], "lookback_s": lookback_s}
    add_events(project, 6, timestamp=[at(n, microseconds=n) for n in range(6)])
    sync(warehouse, project, "rows", query, **options)
    (before,) = warehouse.query("SELECT count(*), max(seen) FROM rows")
    add_events(
        project,
        4,
        uuid=uuids(10, 4),
        distinct_id=["user-5", "late", "user-3", "new"],
        event=["changed"] * 4,
        timestamp=[at(5, microseconds=5), at(1), at(8), at(9)],
    )
    project.control("POST", "delete/events", uuids=[uuids(3, 1)[0], uuids(5, 1)[0]])
    project.forget_requests()

    sync(warehouse, project, "rows", query, **options)

    found = dict(warehouse.query("SELECT distinct_id, event FROM rows"))
    assert found == dict.fromkeys(["user-0", "user-1", "user-2", "user-4"], "page") | dict.fromkeys(
        ["user-3", "user-5", "new"], "changed"
    )
    assert len(warehouse.query("SELECT * FROM rows")) == 7
    assert before[0] == 6
    assert len(pages_of(project, "rows")) == 1


def test_a_clock_that_runs_ahead_does_not_hide_what_comes_until_then(
    project: Project, warehouse: Warehouse
) -> None:
    now = datetime.now(UTC)
    add_events(project, 2, timestamp=[now + timedelta(days=30), now - timedelta(days=1)])
    sync(warehouse, project, "rows", ALL, cursor="at", primary_key="distinct_id")
    add_events(project, 1, uuid=uuids(10, 1), distinct_id=["next"], timestamp=[now + timedelta(minutes=10)])

    sync(warehouse, project, "rows", ALL, cursor="at", primary_key="distinct_id")

    assert len(warehouse.query("SELECT * FROM rows")) == 3


def test_a_sync_that_fails_moves_no_cursor(project: Project, warehouse: Warehouse) -> None:
    add_events(project, 2, timestamp=[at(0), at(1)])
    options: dict[str, Any] = {"cursor": "at", "primary_key": "distinct_id", "page_rows": 2}
    sync(warehouse, project, "rows", ALL, **options)
    add_events(project, 3, uuid=uuids(10, 3), distinct_id=["a", "b", "c"], timestamp=[at(2), at(3), at(4)])
    project.faults("query", {"pass": True, "times": 2}, {"status": 400})

    with pytest.raises(Exception, match="400") as failure:
        sync(warehouse, project, "rows", ALL, **options)
    assert isinstance(find_cause(failure.value), PosthogSourceError)
    assert len(warehouse.query("SELECT * FROM rows")) == 2

    sync(warehouse, project, "rows", ALL, **options)
    assert len(warehouse.query("SELECT * FROM rows")) == 5


@pytest.fixture(scope="module")
def busy_days(server: Server) -> Project:
    """Twenty events, a day apart."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    add_events(project, 20, timestamp=[at(n) for n in range(20)])
    return project


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown column": ("SELECT nope AS a FROM events", {}, "no query that PostHog takes.*nope"),
    "syntax": ("SELECT event AS a FROM events WHERE", {}, "no query that PostHog takes"),
    "aggregate state": ("SELECT pageview_uniq AS a FROM raw_sessions", {}, "a of type AggregateFunction"),
    "alike in a warehouse": ("SELECT event AS `$a`, event AS A FROM events", {}, r"called a in a warehouse"),
    "no name": ("SELECT event AS `1st` FROM events", {}, "column 1st, which is no name"),
    "taken name": ("SELECT event AS project_id FROM events", {}, "project_id, which the connector adds"),
    "no order": (ALL, {"page_rows": 10}, "10 rows or more, and no order"),
    "a limit on many pages": (
        f"{ALL} ORDER BY at LIMIT 20",
        {"page_rows": 10, "primary_key": "at"},
        "a LIMIT of",
    ),
    "key that is none": (ALL, {"primary_key": "event"}, "two rows with event = page"),
    "key that is missing": (ALL, {"primary_key": "plan"}, "no column plan"),
    "cursor that is missing": (ALL, {"cursor": "day"}, "no column day"),
    "ties without a key": (ALL, {"cursor": "event", "primary_key": "event"}, "two rows with event = page"),
    "null in a key": (
        "SELECT nullIf(distinct_id, 'user-9') AS id, event FROM events",
        {"primary_key": "id", "page_rows": 5},
        "answers null for id",
    ),
    "null in a cursor": (
        "SELECT if(distinct_id = 'user-9', NULL, timestamp) AS at, distinct_id FROM events",
        {"cursor": "at", "primary_key": "distinct_id", "page_rows": 5},
        "answers null for at",
    ),
    "NaN in a key": (
        "SELECT if(distinct_id = 'user-9', 0 / 0, 0.5) AS f, distinct_id FROM events",
        {"primary_key": ["f", "distinct_id"], "page_rows": 5},
        "answers NaN or infinity for f",
    ),
    "a key by whose order none can go on": (
        "SELECT person_mode, count() AS n FROM events GROUP BY person_mode",
        {"primary_key": "person_mode"},
        "Enum8.*toString",
    ),
    "a cursor that does not grow": (
        "SELECT uuid FROM events",
        {"cursor": "uuid"},
        "kind uuid, which does not grow",
    ),
    "a text without a key": ("SELECT event FROM events", {"cursor": "event"}, "no primary_key"),
    "seconds of a number": (
        "SELECT toInt(1) AS n FROM events",
        {"cursor": "n", "primary_key": "n", "lookback_s": 5},
        "a cursor n that is no time",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_loaded_exactly_is_refused_with_the_way_out(busy_days: Project, name: str) -> None:
    query, options, said = REFUSED[name]

    with pytest.raises(SettingsError, match=said) as failure:
        read(busy_days, query, **options)

    assert str(failure.value).startswith("The query odd ")
    assert "\n" not in str(failure.value)
    assert busy_days.api_key not in str(failure.value)


def test_a_refused_query_loads_nothing(busy_days: Project, warehouse: Warehouse) -> None:
    assert "two rows" in refusal(warehouse, busy_days, "odd", ALL, primary_key="event")
    assert (
        warehouse.pipeline.default_schema_name is None or not warehouse.pipeline.default_schema.data_tables()
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "Signups"}, "no name of a table"),
        ({"name": "2026"}, "no name of a table"),
        ({"name": ""}, "no name of a table"),
        ({"name": "events"}, "as a table of PostHog's"),
        ({"query": f"{ALL} LIMIT 10", "cursor": "at"}, "a LIMIT and a cursor"),
        ({"query": f"{ALL} LIMIT 10 OFFSET 5"}, "OFFSET"),
        ({"query": "SELECT count() FROM events"}, "gives no name"),
        ({"lookback_s": 5}, "no cursor to look"),
        ({"lookback_s": -1, "cursor": "at"}, "not 0 or more"),
        ({"lookback_s": "an hour"}, "lookback_s"),
        ({"page_rows": 50_001}, "page_rows"),
        ({"primary_key": {"a": 1}}, "no list of columns"),
        ({"cursor": 5}, "cursor that is no text"),
    ],
)
def test_settings_that_cannot_be_right_are_refused_before_anything_is_sent(
    project: Project, options: dict[str, Any], said: str
) -> None:
    given = {"name": "odd", "query": ALL} | options
    with pytest.raises(SettingsError, match=said):
        posthog_query(**project.credentials | given)
    with pytest.raises(SettingsError, match=said):
        posthog_source(**project.credentials, queries=[given])

    assert project.requests() == []


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("SELECT 1", "list"),
        ([5], "list"),
        ([{"name": "a", "query": ALL, "key": "b"}], "no setting key"),
        ([{"name": "a", "query": ALL}, {"name": "a", "query": ALL}], "Two queries are called a"),
    ],
)
def test_a_list_of_queries_that_cannot_be_right_is_refused(written: object, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_queries(written)


def test_a_query_that_changes_is_told_what_becomes_of_the_rows_that_are_there(
    project: Project, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    add_events(project, 3)
    options: dict[str, Any] = {"cursor": "at", "primary_key": "distinct_id"}
    sync(warehouse, project, "rows", ALL, **options)

    text = refusal(warehouse, project, "rows", ALL.replace("event,", "length(event) AS event,"), **options)
    assert "column event of the query rows was text and is decimal(20,0) now" in text
    assert "The primary_key of the query rows was" in refusal(warehouse, project, "rows", ALL, cursor="at")
    assert "The cursor of the query rows was at and is None now" in refusal(
        warehouse, project, "rows", ALL, primary_key="distinct_id"
    )
    assert len(warehouse.query("SELECT * FROM rows")) == 3

    with caplog.at_level(logging.WARNING):
        sync(warehouse, project, "rows", ALL.replace("event,", "event, 1 AS one,"), **options)
    assert "rows: the query changed. Rows already loaded stay as they were" in caplog.text
    assert warehouse.query("SELECT DISTINCT one FROM rows ORDER BY one NULLS FIRST") == [(None,), (1,)]


def test_a_destination_that_cannot_replace_rows_gets_all_of_them_each_time(
    project: Project, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    add_events(project, 3)
    for _ in range(2):
        files.pipeline.run(
            posthog_query("rows", ALL, cursor="at", primary_key="distinct_id", **project.credentials)
        )

    assert "so all of them are read each time" in caplog.text
    assert len(pages_of(project, "rows")) == 2
    assert len(files.rows("rows")) == 3


def test_queries_come_from_toml_beside_the_other_tables(project: Project, tmp_path: Path) -> None:
    add_events(project, 5)
    (tmp_path / ".dlt").mkdir()
    toml = f"""
        [[sources.posthog.queries]]
        name = "first_ones"
        query = '''
            {ALL} -- all
            WHERE event = 'page';
        '''
        cursor = "at"
        primary_key = ["distinct_id"]

        [[sources.posthog.queries]]
        name = "totals"
        query = "SELECT toInt(count()) AS n FROM events"
    """
    (tmp_path / ".dlt" / "config.toml").write_text(toml, encoding="utf-8")
    (tmp_path / "sync.py").write_text(
        "import dlt\n"
        "from posthog_source import posthog_source\n"
        "pipeline = dlt.pipeline('posthog', destination='duckdb', dataset_name='posthog_data')\n"
        "pipeline.run(posthog_source().with_resources('first_ones', 'totals'))\n"
        "with pipeline.sql_client() as client:\n"
        "    for name in ('first_ones', 'totals'):\n"
        "        print(name, client.execute_sql(f'SELECT count(*) FROM {name}')[0][0])\n",
        encoding="utf-8",
    )

    done = run_program("sync.py", cwd=tmp_path, project=project)
    assert (done.returncode, done.stdout.split()) == (0, ["first_ones", "5", "totals", "1"]), done.stderr


def test_queries_come_from_the_environment_as_json(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "SOURCES__POSTHOG__QUERIES", '[{"name": "from_env", "query": "SELECT event FROM events"}]'
    )

    assert "from_env" in posthog_source(**project.credentials).resources


def test_run_sync_commits_queries_and_reports_them(project: Project, warehouse: Warehouse) -> None:
    add_events(project, 30)
    queries = [
        {"name": "rows", "query": ALL, "cursor": "at", "primary_key": "distinct_id", "page_rows": 12},
        {"name": "totals", "query": "SELECT toInt(count()) AS n FROM events"},
    ]

    report = run_sync(warehouse.pipeline, tables=["rows", "totals"], queries=queries, **project.credentials)
    again = run_sync(
        warehouse.pipeline,
        partial(posthog_query, "rows", ALL, cursor="at", primary_key="distinct_id"),
        **project.credentials,
    )

    assert (report.commits, report.rows, report.rows_left) == (1, 31, 0)
    assert report.tables["rows"]["pages"] == 3
    assert report.tables["rows"]["requests"] == 4
    assert again.rows == 1  # the cursor's last value
    assert warehouse.query("SELECT count(*), count(DISTINCT distinct_id) FROM rows") == [(30, 30)]
    assert warehouse.query("SELECT n FROM totals") == [(30,)]


def test_a_query_may_be_a_union_and_have_a_with_clause_of_its_own(
    project: Project, warehouse: Warehouse
) -> None:
    add_events(project, 10, event=["a", "b"] * 5)
    query = """
        WITH some AS (SELECT event, distinct_id FROM events WHERE event = 'a'), -- the first
             'x' AS mark -- and a name
        SELECT distinct_id AS id, mark AS kind FROM some
        UNION ALL
        SELECT distinct_id, 'y' FROM events WHERE event = 'b' // the others
        ;
    """

    sync(warehouse, project, "rows", query, primary_key="id", page_rows=3)

    assert warehouse.query("SELECT kind, count(*) FROM rows GROUP BY kind ORDER BY kind") == [
        ("x", 5),
        ("y", 5),
    ]


def test_the_days_of_a_query_are_utcs_wherever_the_project_is(server: Server, warehouse: Warehouse) -> None:
    project = server.project(timezone="America/Los_Angeles")
    add_events(project, 1, timestamp=[at(hours=3)])

    sync(warehouse, project, "days", f"{BY_DAY.replace('GROUP BY day', 'GROUP BY day ORDER BY day LIMIT 5')}")

    assert warehouse.query("SELECT day FROM days") == [(date(2026, 1, 10),)]
