"""Choice of rows and columns of events: what PostHog makes of it, and what is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dlt.pipeline.exceptions import PipelineStepFailed

from posthog_source import EventsConfig, find_cause
from posthog_source.catalog import events_table
from posthog_source.client import Client
from posthog_source.config import EventsSettings, PromotedKind
from posthog_source.errors import SettingsError
from posthog_source.pagination import Reader
from posthog_source.windows import Window
from tests.conftest import FakeTime, Project, Warehouse, add_events, client_of, reader_of
from tests.test_pipeline import ago, uuids

DAY = Window(datetime(2026, 1, 10, tzinfo=UTC), datetime(2026, 1, 11, tzinfo=UTC))
NAMES = ['it\'s "a" `test`', "naïve \N{GRINNING FACE}", "%s {v0}", "'; DROP TABLE events; --", "back\\slash"]


@pytest.fixture
def client(project: Project, fake_time: FakeTime) -> Iterator[Client]:
    with client_of(project, fake_time) as client:
        yield client


def chosen_reader(client: Client, project: Project, config: EventsSettings, page_rows: int = 1_000) -> Reader:
    return reader_of(client, project, page_rows=page_rows, table=events_table(config))


def rows_of(reader: Reader) -> list[dict[str, Any]]:
    """All rows of the day, in order."""
    return [
        row
        for plan in reader.fetch_plans(DAY)
        for page in reader.iter_pages(plan)
        for row in page.to_pylist()
    ]


def promoted(
    client: Client, project: Project, values: list[object], kind: PromotedKind, name: str = "x"
) -> list[object]:
    """What becomes of values of one property, each of an event of its own."""
    texts = [value if isinstance(value, bytes) else json.dumps({name: value}) for value in values]
    add_events(project, len(values), properties=texts)
    reader = chosen_reader(client, project, EventsSettings(promote=((name, kind),)))
    return [list(row.values())[-1] for row in rows_of(reader)]


def test_only_events_of_the_chosen_names_are_counted_and_read(client: Client, project: Project) -> None:
    add_events(project, 60, event=["a", "b", "c"] * 20)
    config = EventsSettings(event_names=("a", "c"), exclude_event_names=("b",))

    reader = chosen_reader(client, project, config, page_rows=7)

    assert reader.fetch_first_instant() == DAY.start
    assert sum(plan.rows for plan in reader.fetch_plans(DAY)) == 40
    assert [row["event"] for row in rows_of(reader)].count("a") == 20
    assert {row["event"] for row in rows_of(reader)} == {"a", "c"}


def test_excluded_events_are_left_out_and_all_others_read(client: Client, project: Project) -> None:
    add_events(project, 6, event=["a", "b", "c"] * 2)

    reader = chosen_reader(client, project, EventsSettings(exclude_event_names=("a",)))

    assert [row["event"] for row in rows_of(reader)] == ["b", "c"] * 2


@pytest.mark.parametrize("name", NAMES)
def test_an_event_name_may_be_any_text(client: Client, project: Project, name: str) -> None:
    add_events(project, 2, event=[name, "other"])

    only = chosen_reader(client, project, EventsSettings(event_names=(name,)))
    never = chosen_reader(client, project, EventsSettings(exclude_event_names=(name,)))

    assert [row["event"] for row in rows_of(only)] == [name]
    assert [row["event"] for row in rows_of(never)] == ["other"]


def test_posthog_reads_little_more_than_the_chosen_events(client: Client, busy_project: Project) -> None:
    rows = 100_000
    names = ["rare" if n % 100 == 0 else "common" for n in range(rows)]
    at = [DAY.start + timedelta(milliseconds=n) for n in range(rows)]
    add_events(busy_project, rows, event=names, timestamp=at)
    busy_project.server.optimize()
    with client_of(busy_project, FakeTime()) as busy:
        reader = chosen_reader(busy, busy_project, EventsSettings(event_names=("rare",)))
        assert len(rows_of(reader)) == rows // 100

    assert max(request["read_rows"] for request in busy_project.requests()) < rows / 4


def test_only_events_that_meet_the_condition_are_read_whatever_its_or(
    client: Client, project: Project
) -> None:
    add_events(project, 30, properties=['{"plan": "pro"}', '{"plan": "free"}', "{}"] * 10)
    config = EventsSettings(where="properties.plan = 'pro' OR distinct_id = 'user-2'")

    rows = rows_of(chosen_reader(client, project, config, page_rows=4))

    assert len(rows) == 11
    assert all('"pro"' in row["properties"] or row["distinct_id"] == "user-2" for row in rows)


def test_a_name_in_a_condition_means_posthogs_field_and_not_our_column(
    client: Client, project: Project
) -> None:
    add_events(project, 3, properties=['{"elements_chain_href": "/x"}'] * 3)
    config = EventsSettings(where="elements_chain_href = ''", promote=(("elements_chain_href", "text"),))

    rows = rows_of(chosen_reader(client, project, config))

    assert [row["elements_chain_href"] for row in rows] == ["/x"] * 3


@pytest.mark.parametrize(
    ("where", "word"),
    [
        ("evnt = 'a'", "evnt"),
        ("event = ", ""),
        ("count() > 1", "ggregat"),
        ("event", "type"),
        ("toIntt(distinct_id) = 1", "toIntt"),
        ("1 = 1 LIMIT 5", ""),
    ],
)
def test_a_condition_that_posthog_refuses_stops_the_sync_with_its_words_and_where_to_set_it(
    project: Project, warehouse: Warehouse, where: str, word: str
) -> None:
    add_events(project, 3)

    with pytest.raises(PipelineStepFailed) as failure:
        warehouse.sync(project, "events", events=EventsConfig(where=where))

    cause = find_cause(failure.value)
    assert isinstance(cause, SettingsError)
    assert str(cause).startswith("events.where is no condition that PostHog takes. Set it under")
    assert "PostHog says: " in str(cause)
    assert word in str(cause)
    assert "\n" not in str(cause)
    assert len(project.requests()) == 1


def test_a_condition_is_tried_out_without_reading_a_row(client: Client, project: Project) -> None:
    add_events(project, 100)
    reader = chosen_reader(client, project, EventsSettings(where="event = 'page'"))
    project.forget_requests()

    reader.check_condition()

    (request,) = project.requests()
    assert (request["status"], request["result_rows"], request["read_rows"]) == (200, 0, 0)


def test_without_a_condition_nothing_is_tried_out(client: Client, project: Project) -> None:
    chosen_reader(client, project, EventsSettings(event_names=("a",))).check_condition()

    assert project.requests() == []


def test_a_promoted_text_is_what_was_captured(client: Client, project: Project) -> None:
    same = ["", " ", "null", "true", "01234", "1.50", "2026-01-02", *NAMES, "two\nlines", 'say "hi" \\ /']
    others = {1: "1", 1.5: "1.5", -0.25: "-0.25", 2**53 + 1: "9007199254740993"}
    values: list[object] = [*same, *others, True, False, None, {"a": [1, "x"]}, []]

    assert promoted(client, project, values, "text") == [
        *same,
        *others.values(),
        "true",
        "false",
        None,
        '{"a":[1,"x"]}',
        "[]",
    ]


def test_a_promoted_double_is_the_number_or_null(client: Client, project: Project) -> None:
    fitting = {1: 1.0, 1.5: 1.5, "12.5": 12.5, "1e3": 1e3, "-4": -4.0, 2**70: 2.0**70}
    misfits = ["", " ", "abc", "12 EUR", "1,5", "NaN", "inf", "-Infinity", True, None, {"n": 1}, [1]]

    found = promoted(client, project, [*fitting, *misfits], "double")

    assert found == [*fitting.values(), *[None] * len(misfits)]


def test_a_promoted_bigint_is_the_whole_number_or_null(client: Client, project: Project) -> None:
    fitting = {0: 0, 2**63 - 1: 2**63 - 1, -(2**63): -(2**63), 2**53 + 1: 2**53 + 1, "42": 42, 7.0: 7}
    misfits = [1.5, "1.5", "", "abc", 2**63, 10**30, str(2**63), "0x1F", True, None, {"n": 1}, [1]]

    found = promoted(client, project, [*fitting, *misfits], "bigint")

    assert found == [*fitting.values(), *[None] * len(misfits)]


def test_a_promoted_bool_is_true_or_false_or_null(client: Client, project: Project) -> None:
    misfits = ["True", "yes", "", "trueish", "a true", 1, 0, None, [True], {"true": 1}]

    found = promoted(client, project, [True, False, "true", "false", *misfits], "bool")

    assert found == [True, False, True, False, *[None] * len(misfits)]


def test_a_promoted_timestamp_is_the_instant_in_utc_or_null(client: Client, project: Project) -> None:
    fitting = {
        "2026-01-02": datetime(2026, 1, 2, tzinfo=UTC),
        "2026-01-02T03:04:05Z": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "2026-01-02 03:04": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        "2026-01-02 03:04:05.123456": datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC),
        "2026-01-02T03:04:05.123Z": datetime(2026, 1, 2, 3, 4, 5, 123000, tzinfo=UTC),
        "2026-01-02T03:04:05+02:00": datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC),
        "2026-01-02T03:04:05.5-0530": datetime(2026, 1, 2, 8, 34, 5, 500000, tzinfo=UTC),
    }
    misfits = ["", "soon", "12", 1.5, 1700000000, "1700000000", "2026-13-45", "2026-01-02 or so", True, None]
    misfits += ["Jan 2, 2026", "02/01/2026", "20260102", {"at": "2026-01-02"}, ["2026-01-02"]]

    found = promoted(client, project, [*fitting, *misfits], "timestamp")

    assert found == [*fitting.values(), *[None] * len(misfits)]


@pytest.mark.parametrize("name", ["$browser", "a.b", "a b", "x" * 300, "Größe", *NAMES])
def test_a_promoted_property_may_have_any_name(client: Client, project: Project, name: str) -> None:
    assert promoted(client, project, ["yes", 1], "text", name) == ["yes", "1"]


def test_a_promoted_property_that_is_not_there_is_null(client: Client, project: Project) -> None:
    add_events(project, 3, properties=["{}", '{"b": {"a": 1}}', "no json"])
    reader = chosen_reader(client, project, EventsSettings(promote=(("a", "text"), ("b.a", "bigint"))))

    assert [(row["a"], row["b_a"]) for row in rows_of(reader)] == [(None, None)] * 3


def test_a_promoted_property_is_what_was_captured_whatever_posthog_takes_it_for(
    client: Client, project: Project
) -> None:
    add_events(project, 2, properties=['{"zip": "01234"}', '{"zip": "none"}'])
    config = EventsSettings(promote=(("zip", "text"),), where="properties.zip != 'x'")

    assert [row["zip"] for row in rows_of(chosen_reader(client, project, config))] == ["01234", "none"]


def test_properties_that_are_not_wanted_are_not_asked_for(client: Client, project: Project) -> None:
    add_events(project, 2)

    rows = rows_of(chosen_reader(client, project, EventsSettings(properties=False)))

    assert len(rows) == 2
    assert "properties" not in rows[0]
    assert not any("properties" in request["query"] for request in project.requests())


def test_a_choice_ends_in_typed_columns_of_the_warehouse(project: Project, warehouse: Warehouse) -> None:
    texts = ['{"plan": "pro", "n": 1.5, "k": 3, "paying": true, "ends": "2026-03-01T00:00:00Z"}', "{}", "{}"]
    add_events(
        project,
        3,
        uuid=uuids(3),
        timestamp=[ago(minutes=10 + n) for n in range(3)],
        event=["buy", "buy", "look"],
        properties=texts,
    )
    config = EventsConfig(
        event_names=["buy"],
        properties=False,
        promote={"plan": "text", "n": "double", "k": "bigint", "paying": "bool", "ends": "timestamp"},
    )

    for _ in range(2):
        warehouse.sync(project, "events", events=config)

    assert warehouse.query("SELECT plan, n, k, paying, ends FROM events ORDER BY plan NULLS LAST") == [
        ("pro", 1.5, 3, True, datetime(2026, 3, 1, tzinfo=UTC)),
        (None, None, None, None, None),
    ]
    columns = dict(
        warehouse.query(
            "SELECT column_name, data_type FROM information_schema.columns"
            " WHERE table_schema = 'posthog_data' AND table_name = 'events'"
        )
    )
    assert "properties" not in columns
    assert [columns[name] for name in ("plan", "n", "k", "paying", "ends")] == [
        "VARCHAR",
        "DOUBLE",
        "BIGINT",
        "BOOLEAN",
        "TIMESTAMP WITH TIME ZONE",
    ]


def test_a_column_promoted_later_is_there_from_then_on(project: Project, warehouse: Warehouse) -> None:
    add_events(project, 2, uuid=uuids(2), timestamp=[ago(days=2)] * 2, properties=['{"plan": "old"}'] * 2)
    warehouse.sync(project, "events")
    add_events(project, 1, uuid=uuids(1, 50), timestamp=[ago(minutes=9)], properties=['{"plan": "new"}'])

    warehouse.sync(project, "events", events=EventsConfig(promote={"plan": "text"}))

    assert warehouse.query("SELECT plan, count(*) FROM events GROUP BY 1 ORDER BY 1 NULLS LAST") == [
        ("new", 1),
        (None, 2),
    ]


def test_a_backfill_applies_a_changed_choice_to_rows_already_loaded(
    project: Project, warehouse: Warehouse
) -> None:
    add_events(
        project,
        4,
        uuid=uuids(4),
        timestamp=[ago(days=2)] * 4,
        event=["a", "b"] * 2,
        properties=['{"plan": "pro"}'] * 4,
    )
    warehouse.sync(project, "events")
    config = EventsConfig(event_names=["a"], promote={"plan": "text"})

    warehouse.sync(project, "events", events=config, start_date=ago(days=3), end_date=ago(days=1))

    assert warehouse.query("SELECT event, plan FROM events") == [("a", "pro")] * 2
