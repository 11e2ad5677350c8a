"""From PostHog's sockets to DuckDB's tables: every row, once, and again."""

from __future__ import annotations

import json
import logging
import re
import traceback
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dlt.common.runtime.collector_base import Collector
from dlt.pipeline.exceptions import PipelineStepFailed
from posthog import Posthog

from posthog_source import EventsConfig, PeopleConfig, PosthogSourceError, find_cause, posthog_source
from posthog_source.catalog import EVENTS
from posthog_source.errors import MissingRowsError
from posthog_source.tables import HogqlTable, RestTable
from tests.conftest import (
    NO_LIMITS,
    PLAIN_EVENTS,
    PROJECT_TABLES,
    Files,
    Project,
    Server,
    Warehouse,
    add_events,
)
from tests.exact import EVENT_FIELDS, duckdb_cells

SMALL = {"persons": 100, "days": 3, "properties_bytes": 200}
COMPARED = (
    "uuid", "event", "timestamp", "created_at", "distinct_id", "person_id", "properties", "elements_chain",
    "session_id", "window_id", "person_mode", "group_0", "group_1",
)  # fmt: skip
NO_TEXT = re.compile(r"\\ud83e(?!\\u)|\\u0000")
ALWAYS_LOOK = EventsConfig(late_arrival_every_s=0.0)
SWEEP = PeopleConfig(sweep_every_days=0, deletes="hard")


def ago(**parts: float) -> datetime:
    return datetime.now(UTC) - timedelta(**parts)


def uuids(count: int, kind: int = 0) -> list[str]:
    return [f"{kind:08x}-0000-4000-8000-{n:012x}" for n in range(count)]


@pytest.fixture
def product(project: Project) -> Project:
    """3,000 events of three days until an hour ago, odd ones and copies among them."""
    project.generate(events=3_000, end=ago(hours=1).isoformat(), **SMALL)
    return project


@pytest.fixture(scope="module")
def standing(server: Server) -> Project:
    """As `product`, for all tests that only read of it."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    project.generate(events=3_000, end=ago(hours=1).isoformat(), **SMALL)
    return project


@pytest.fixture(scope="module")
def nothing(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """What all tables of an empty project make, to be looked at."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    with Warehouse.at(tmp_path_factory.mktemp("nothing")).held() as warehouse:
        warehouse.sync(project)
        yield warehouse


def true_events(project: Project, where: str = "1") -> dict[str, tuple[Any, ...]]:
    """What ClickHouse holds until now, by uuid, with the changes that the README names."""
    cells = ", ".join(EVENT_FIELDS[name] for name in COMPARED)
    rows = project.server.sql(
        f"SELECT {cells} FROM events WHERE team_id = {project.id}"
        f" AND timestamp < now() AND {where} LIMIT 1 BY uuid"
    )
    return {row[0]: tuple(NO_TEXT.sub(r"\\ufffd", str(cell)) for cell in row) for row in rows}


def loaded_events(warehouse: Warehouse) -> dict[str, tuple[Any, ...]]:
    """What DuckDB holds, in the same words."""
    rows = warehouse.query(f"SELECT {', '.join(duckdb_cells(COMPARED))} FROM events")
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: tuple(row) for row in rows}


def cause_of(failure: pytest.ExceptionInfo[BaseException]) -> str:
    """The one line that a person gets."""
    cause = find_cause(failure.value)
    assert cause is not None
    return str(cause)


def test_all_events_land_as_clickhouse_holds_them(standing: Project, warehouse: Warehouse) -> None:
    warehouse.sync(standing, "events")

    found, truth = loaded_events(warehouse), true_events(standing)
    assert len(truth) > 2_900
    assert found == truth
    for _, _, _, _, _, _, properties, *_ in found.values():
        json.loads(properties)


def test_all_people_land_as_clickhouse_holds_them(standing: Project, warehouse: Warehouse) -> None:
    warehouse.sync(standing, "persons", "person_distinct_ids", "cohort_people")

    persons = warehouse.query("SELECT id, properties::text, is_identified, epoch_ms(created_at) FROM persons")
    truth = standing.persons(
        "toString(id), properties, toBool(is_identified), toUnixTimestamp64Milli(created_at)"
    )
    assert sorted(persons) == sorted(map(tuple, truth))
    owners = warehouse.query("SELECT distinct_id, person_id FROM person_distinct_ids")
    assert len(owners) == len(standing.person_ids())
    assert dict(owners) == standing.person_ids()
    members = warehouse.query("SELECT cohort_id, person_id FROM cohort_people")
    assert len(members) == len(standing.members()) > 0
    assert set(members) == standing.members()


def test_all_definitions_land_as_posthog_lists_them(standing: Project, warehouse: Warehouse) -> None:
    warehouse.sync(standing, "cohorts", "insights")

    cohorts = standing.get("cohorts/", limit=1000).json()["results"]
    found = warehouse.query("SELECT id, name, count, is_static, filters::text FROM cohorts")
    assert sorted((n, name, count, static, json.loads(text)) for n, name, count, static, text in found) == (
        sorted((c["id"], c["name"], c["count"], c["is_static"], c["filters"]) for c in cohorts)
    )
    insights = standing.get("insights/", limit=1000, basic="true").json()["results"]
    found = warehouse.query("SELECT id, short_id, last_modified_at, query::text FROM insights")
    assert sorted((n, short_id, at, json.loads(text or "null")) for n, short_id, at, text in found) == sorted(
        (i["id"], i["short_id"], datetime.fromisoformat(i["last_modified_at"]), i["query"]) for i in insights
    )


def test_a_second_run_adds_nothing(standing: Project, warehouse: Warehouse) -> None:
    warehouse.sync(standing)
    first, events = warehouse.counts(), loaded_events(warehouse)

    warehouse.sync(standing)

    assert set(first) == {table.name for table in PROJECT_TABLES}
    assert warehouse.counts() == first
    assert loaded_events(warehouse) == events


def test_a_sync_asks_for_the_new_window_only(product: Project, warehouse: Warehouse) -> None:
    warehouse.sync(product, "events")
    (late,) = add_events(product, 1, uuid=uuids(1, 1), timestamp=[ago(minutes=10)])
    product.forget_requests()

    warehouse.sync(product, "events")

    assert loaded_events(warehouse) == true_events(product)
    assert late in warehouse.uuids()
    requests = product.requests()
    assert [r["name"] for r in requests] == ["posthog_source events count", "posthog_source events"]
    for request in requests:
        (start, end) = re.findall(r"timestamp [<>]= toDateTime64\('([^']+)', 6, 'UTC'\)", request["query"])
        # From an hour and the lag before the first sync, to the lag before this one.
        assert ago(minutes=70) < datetime.fromisoformat(f"{start}+00:00") < ago(minutes=60)
        assert ago(minutes=7) < datetime.fromisoformat(f"{end}+00:00") < ago(minutes=4)
    assert requests[1]["result_rows"] < 30  # of 3,000


def test_the_newest_events_wait_for_the_lag(project: Project, warehouse: Warehouse) -> None:
    old, new = add_events(project, 2, timestamp=[ago(seconds=90), ago(seconds=20)])

    warehouse.sync(project, "events", events=EventsConfig(lag_s=60))
    assert warehouse.uuids() == [old]

    warehouse.sync(project, "events", events=EventsConfig(lag_s=0))
    assert warehouse.uuids() == [old, new]


def test_an_event_later_than_now_neither_loads_nor_moves_the_cursor(
    project: Project, warehouse: Warehouse
) -> None:
    now, future = add_events(project, 2, timestamp=[ago(minutes=20), ago(days=-700)])
    warehouse.sync(project, "events")
    later = add_events(project, 1, uuid=uuids(1, 1), timestamp=[ago(minutes=10)])
    warehouse.sync(project, "events")

    assert warehouse.uuids() == sorted([now, *later])
    assert future not in warehouse.uuids()


def test_events_late_within_the_lookback_arrive_with_the_next_sync(
    product: Project, warehouse: Warehouse
) -> None:
    warehouse.sync(product, "events")
    late = add_events(product, 3, uuid=uuids(3, 1), timestamp=[ago(minutes=m) for m in (10, 40, 60)])

    warehouse.sync(product, "events")

    assert set(late) <= set(warehouse.uuids())
    assert loaded_events(warehouse) == true_events(product)


@pytest.mark.parametrize("write_mode", ["window", "upsert"])
@pytest.mark.parametrize("count", [40, 1_200])
def test_events_late_by_days_arrive_be_they_few_or_many(
    product: Project, warehouse: Warehouse, count: int, write_mode: str
) -> None:
    look = EventsConfig(late_arrival_every_s=0.0, write_mode=write_mode)
    warehouse.sync(product, "events", events=look)
    late = [ago(days=29 * (n + 1) / count) for n in range(count)]
    add_events(product, count, uuid=uuids(count, 1), timestamp=late, created_at=[ago()] * count)

    warehouse.sync(product, "events", events=look)

    assert loaded_events(warehouse) == true_events(product)


def test_late_events_are_looked_for_once_a_day(product: Project, warehouse: Warehouse) -> None:
    warehouse.sync(product, "events")
    (late,) = add_events(product, 1, uuid=uuids(1, 1), timestamp=[ago(days=2)])
    warehouse.sync(product, "events")
    assert late not in warehouse.uuids()

    warehouse.sync(product, "events", events=ALWAYS_LOOK)
    assert loaded_events(warehouse) == true_events(product)


def test_a_window_replaces_what_posthog_no_longer_has_and_nothing_outside_it(
    product: Project, warehouse: Warehouse
) -> None:
    warehouse.sync(product, "events")
    for name, age in (("gone-in-window", "30 minutes"), ("gone-before", "3 hours")):
        warehouse.query(
            "INSERT INTO events (project_id, uuid, event, timestamp, distinct_id)"
            f" VALUES ({product.id}, '{name}', 'x', now() - INTERVAL {age}, 'x')"
        )

    warehouse.sync(product, "events")

    assert set(warehouse.uuids()) - set(true_events(product)) == {"gone-before"}


@pytest.mark.parametrize("write_mode", ["window", "upsert", "append"])
def test_two_syncs_in_any_write_mode_hold_each_event_once(
    product: Project, warehouse: Warehouse, write_mode: str
) -> None:
    before = EventsConfig(write_mode=write_mode, lag_s=60)
    after = EventsConfig(write_mode=write_mode, lag_s=0)
    warehouse.sync(product, "events", events=before)
    add_events(product, 1, uuid=uuids(1, 1), timestamp=[ago(seconds=30)])
    warehouse.sync(product, "events", events=after)

    assert uuids(1, 1)[0] in warehouse.uuids()
    assert loaded_events(warehouse) == true_events(product)


def test_a_write_mode_may_be_changed_between_syncs(standing: Project, warehouse: Warehouse) -> None:
    for write_mode in ("window", "upsert", "window", "append"):
        warehouse.sync(standing, "events", events=EventsConfig(write_mode=write_mode))

    assert loaded_events(warehouse) == true_events(standing)


def test_a_backfill_loads_its_window_and_leaves_the_cursor_alone(
    standing: Project, warehouse: Warehouse
) -> None:
    warehouse.sync(standing, "events", start_date=ago(days=1))
    resources = warehouse.pipeline.state["sources"]["posthog"]["resources"]
    state = json.loads(json.dumps(resources["events"], default=str))

    start, end = ago(days=3), ago(days=2)
    warehouse.sync(standing, "events", start_date=start, end_date=end)

    resources = warehouse.pipeline.state["sources"]["posthog"]["resources"]
    assert json.loads(json.dumps(resources["events"], default=str)) == state
    in_backfill = f"timestamp >= '{start:%Y-%m-%d %H:%M:%S.%f}' AND timestamp < '{end:%Y-%m-%d %H:%M:%S.%f}'"
    expected = true_events(standing, in_backfill)
    assert len(expected) > 100
    assert expected.items() <= loaded_events(warehouse).items()
    before = {row[2] for row in loaded_events(warehouse).values() if row[2] < f"{start:%Y-%m-%d %H:%M:%S.%f}"}
    assert before == set()


def test_a_backfill_over_loaded_days_adds_nothing(standing: Project, warehouse: Warehouse) -> None:
    warehouse.sync(standing, "events")

    warehouse.sync(standing, "events", start_date=ago(days=2), end_date=ago(days=1))

    assert loaded_events(warehouse) == true_events(standing)


def test_a_start_date_leaves_out_what_is_before_it(standing: Project, warehouse: Warehouse) -> None:
    start = ago(days=1)
    warehouse.sync(standing, "events", start_date=start.isoformat())

    assert loaded_events(warehouse) == true_events(standing, f"timestamp >= '{start:%Y-%m-%d %H:%M:%S.%f}'")


def test_two_projects_in_one_dataset_leave_each_others_rows_alone(
    server: Server, product: Project, warehouse: Warehouse
) -> None:
    other = server.project()
    other.generate(events=1_000, end=ago(hours=1).isoformat(), seed=2, **SMALL)
    ours, theirs = Warehouse.at(warehouse.path, "ours"), Warehouse.at(warehouse.path, "theirs")
    ours.sync(product)
    theirs.sync(other)
    add_events(product, 1, uuid=uuids(1, 1), timestamp=[ago(minutes=20)])
    compared = ("events", "persons", "person_distinct_ids", "cohorts", "cohort_people", "insights")
    ours.sync(product, *compared)
    theirs.sync(other, *compared)

    both = dict(ours.query("SELECT project_id, count(DISTINCT uuid) FROM events GROUP BY ALL"))
    assert both == {product.id: len(true_events(product)), other.id: len(true_events(other))}
    for table, truth in (("persons", "persons"), ("person_distinct_ids", "person_ids")):
        found = dict(ours.query(f"SELECT project_id, count(*) FROM {table} GROUP BY ALL"))
        args = ["id"] if truth == "persons" else []
        assert found == {p.id: len(getattr(p, truth)(*args)) for p in (product, other)}
    for table in ("cohorts", "cohort_people", "insights"):
        assert len(ours.query(f"SELECT DISTINCT project_id FROM {table}")) == 2


def test_a_second_instance_has_settings_and_a_cursor_of_its_own(
    server: Server, product: Project, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = server.project()
    add_events(other, 5, timestamp=[ago(days=5)] * 5)
    for name, value in (("PROJECT_ID", other.id), ("API_KEY", other.api_key), ("HOST", server.url)):
        monkeypatch.setenv(f"SOURCES__POSTHOG_EU__{name}", str(value))
    warehouse.sync(product, "events")

    clone = posthog_source.clone(name="posthog_eu", section="posthog_eu")
    warehouse.pipeline.run(clone().with_resources("events"))

    found = dict(warehouse.query("SELECT project_id, count(*) FROM events GROUP BY ALL"))
    assert found == {product.id: len(true_events(product)), other.id: 5}
    assert set(warehouse.pipeline.state["sources"]) == {"posthog", "posthog_eu"}


def test_only_the_chosen_tables_are_asked_for_and_loaded(product: Project, warehouse: Warehouse) -> None:
    product.settings(person_last_seen=True)

    warehouse.sync(product, "persons", "cohorts")

    assert set(warehouse.counts()) == {"persons", "cohorts"}
    asked = {request.get("name") or request["path"] for request in product.requests()}
    assert asked == {
        *("posthog_source persons count", "posthog_source persons"),
        f"/api/projects/{product.id}/cohorts/",
    }


def test_the_projects_timezone_changes_nothing(server: Server, tmp_path: Path) -> None:
    found = []
    for zone in ("UTC", "America/New_York"):
        project = server.project(timezone=zone)
        project.generate(events=2_000, end=ago(hours=1).isoformat()[:19] + "+00:00", seed=7, **SMALL)
        with Warehouse.at(tmp_path / zone.replace("/", "_")).held() as warehouse:
            warehouse.sync(project, "events", "persons")
            warehouse.sync(project, "events", "persons")
            assert loaded_events(warehouse) == true_events(project)
            found.append(sorted(loaded_events(warehouse)))
    assert len(found[0]) > 1_900


def test_text_of_any_kind_lands_whole(project: Project, warehouse: Warehouse) -> None:
    megabyte = json.dumps({"blob": "ü🦔 " * 250_000}, ensure_ascii=False)
    texts = [
        '{"a":"naïve 🦔 日本語"}',
        r'{"pair":"\ud83e\udd94","escaped":"\\ud83e"}',
        "{}",
        r'{"quote":"\" \\ \n \t"}',
        megabyte,
    ]
    add_events(project, len(texts), properties=texts, timestamp=[ago(minutes=9 + n) for n in range(5)])

    warehouse.sync(project, "events")

    found = [text for (text,) in warehouse.query("SELECT properties::text FROM events ORDER BY uuid")]
    assert len(megabyte.encode()) > 1_000_000
    assert found == texts


def test_what_warehouses_refuse_becomes_the_replacement_character(
    project: Project, warehouse: Warehouse
) -> None:
    odd = r'{"cut":"half \ud83e","nul":"a\u0000b","kept":"\\u0000 \\ud83e"}'
    add_events(
        project, 1, properties=[odd], event=["nul \0 name"], distinct_id=["who\0"], timestamp=[ago(minutes=9)]
    )

    warehouse.sync(project, "events")

    names = "properties->>'cut', properties->>'nul', properties->>'kept', event, distinct_id"
    ((cut, nul, kept, event, who),) = warehouse.query(f"SELECT {names} FROM events")
    assert (cut, nul, kept) == ("half \ufffd", "a\ufffdb", r"\u0000 \ud83e")
    assert (event, who) == ("nul \ufffd name", "who\ufffd")


def test_an_empty_project_gives_empty_tables_with_types(nothing: Warehouse) -> None:
    assert nothing.counts() == dict.fromkeys([table.name for table in PROJECT_TABLES], 0)
    types = dict(
        nothing.query("SELECT table_name || '.' || column_name, data_type FROM information_schema.columns")
    )
    expected = {
        "timestamp": "TIMESTAMP WITH TIME ZONE",
        "json": "JSON",
        "bigint": "BIGINT",
        "double": "DOUBLE",
        "bool": "BOOLEAN",
    }
    for table in (PLAIN_EVENTS, *PROJECT_TABLES[1:]):
        for column in table.columns:
            assert types[f"{table.name}.{column.name}"] == expected.get(column.kind, "VARCHAR")


def test_an_empty_project_that_fills_up_later_is_loaded_whole(project: Project, warehouse: Warehouse) -> None:
    warehouse.sync(project)
    project.generate(events=1_000, end=ago(hours=1).isoformat(), **SMALL)

    warehouse.sync(project)

    assert loaded_events(warehouse) == true_events(project)
    assert warehouse.counts()["cohorts"] == 6


def test_people_who_are_gone_leave_the_warehouse(project: Project, warehouse: Warehouse) -> None:
    people = uuids(20)
    project.rows("person", id=people, version=[0] * 20)
    warehouse.sync(project, "persons", people=SWEEP)
    project.rows("person", id=people[:5], version=[1] * 5, is_deleted=[1] * 5)

    warehouse.sync(project, "persons", people=SWEEP)

    assert sorted(warehouse.query("SELECT id FROM persons")) == [(one,) for one in people[5:]]


def test_the_last_person_who_is_gone_leaves_an_empty_table(project: Project, warehouse: Warehouse) -> None:
    project.rows("person", id=uuids(1), version=[0])
    warehouse.sync(project, "persons", people=SWEEP)
    project.rows("person", id=uuids(1), version=[1], is_deleted=[1])

    warehouse.sync(project, "persons", people=SWEEP)

    assert warehouse.counts() == {"persons": 0}


def test_an_insight_edited_since_is_loaded_again_and_the_others_are_not(
    project: Project, warehouse: Warehouse
) -> None:
    first = [{"name": f"insight {n}", "last_modified_at": ago(days=9 - n).isoformat()} for n in range(5)]
    ids = project.control("POST", "insights", items=first)["ids"]
    warehouse.sync(project, "insights")
    renamed = {"id": ids[0], "name": "renamed", "last_modified_at": ago(minutes=1).isoformat()}
    project.control("POST", "insights", items=[renamed])
    project.forget_requests()

    warehouse.sync(project, "insights")

    assert dict(warehouse.query("SELECT id, name FROM insights")) == {
        **{number: f"insight {n}" for n, number in enumerate(ids)},
        ids[0]: "renamed",
    }
    assert len([one for one in project.requests() if one["path"].endswith("/insights/")]) == 1


def test_rows_missing_from_an_answer_are_loaded_all_the_same_and_once(
    project: Project, warehouse: Warehouse
) -> None:
    add_events(project, 100, timestamp=[ago(minutes=10 + n) for n in range(100)])
    # What is asked: the first instant, the count, the page.
    project.faults("query", {"pass": True, "times": 2}, {"kind": "drop_rows", "rows": 3})

    warehouse.sync(project, "events")

    assert project.control("GET", "faults") == {"remaining": 0, "fired": 1}
    assert loaded_events(warehouse) == true_events(project)


def test_rows_that_stay_missing_stop_the_run_and_nothing_is_loaded(
    project: Project, warehouse: Warehouse
) -> None:
    add_events(project, 50, timestamp=[ago(minutes=10 + n) for n in range(50)])
    warehouse.sync(project, "events")
    more = uuids(50, 1)
    add_events(project, 50, uuid=more, timestamp=[ago(minutes=10 + n) for n in range(50)])
    drop = {"kind": "drop_rows", "rows": 3}
    project.faults("query", {"pass": True}, drop, {"pass": True}, drop, drop, {"pass": True})

    with pytest.raises(PipelineStepFailed) as failure:
        warehouse.sync(project, "events")

    assert isinstance(find_cause(failure.value), MissingRowsError)
    assert warehouse.counts() == {"events": 50}

    warehouse.sync(project, "events")
    assert loaded_events(warehouse) == true_events(project)


@pytest.mark.parametrize("write_mode", ["window", "upsert"])
@pytest.mark.parametrize("differs", ["time", "name"])
def test_copies_on_different_pages_are_loaded_once(
    project: Project, warehouse: Warehouse, differs: str, write_mode: str
) -> None:
    """A client that sent an event again, later or under another name: PostHog keeps both for a while."""
    start = ago(minutes=59)
    events = uuids(42)
    events[-1] = events[0]
    minutes = [n if differs == "time" else min(n, 40) for n in range(42)]
    names = ["page"] * 42 if differs == "time" else ["a"] * 21 + ["b"] * 21
    add_events(
        project,
        42,
        uuid=events,
        event=names,
        distinct_id=["someone"] * 42,
        timestamp=[start + timedelta(minutes=n) for n in minutes],
    )
    config = EventsConfig(page_rows=20, write_mode=write_mode)

    warehouse.sync(project, "events", events=config)
    warehouse.sync(project, "events", events=config)

    assert warehouse.uuids() == uuids(41)


@pytest.mark.slow
def test_a_storm_of_faults_changes_nothing_but_the_time(product: Project, warehouse: Warehouse) -> None:
    storm: list[dict[str, Any]] = [
        *({"kind": "reset"}, {"status": 502}, {"pass": True}, {"kind": "cut", "after_bytes": 50}),
        *({"status": 503}, {"kind": "not_json"}, {"pass": True}, {"kind": "stale"}, {"status": 500}),
        *({"kind": "drip", "seconds": 0.2}, {"status": 504, "over_rows": 700}, {"kind": "reset"}),
        {"status": 429, "headers": {"Retry-After": "1"}},
    ]
    product.faults("query", *storm)
    product.faults("cohorts", {"kind": "cut", "after_bytes": 20}, {"status": 502})
    product.faults("insights", {"kind": "reset"}, {"kind": "not_json"})

    warehouse.sync(product, events=EventsConfig(page_rows=1_500))

    assert product.control("GET", "faults")["remaining"] == 0
    assert loaded_events(warehouse) == true_events(product)
    assert len(warehouse.query("SELECT DISTINCT id FROM persons")) == warehouse.counts()["persons"] == 115


def test_a_failed_run_loads_nothing_and_the_next_one_everything(
    product: Project, warehouse: Warehouse
) -> None:
    product.faults("query", {"pass": True, "times": 3}, {"status": 402})
    with pytest.raises(PipelineStepFailed):
        warehouse.sync(product, events=EventsConfig(page_rows=500))
    assert warehouse.pipeline.default_schema_name is None or warehouse.counts() == {}

    warehouse.sync(product)

    assert loaded_events(warehouse) == true_events(product)


def test_the_official_sdk_captures_identifies_and_aliases_and_it_arrives(
    server: Server, project: Project, warehouse: Warehouse
) -> None:
    sdk = Posthog(project.token, host=server.url, disable_geoip=True)
    at = ago(minutes=30)
    sdk.capture("$pageview", distinct_id="visitor-1", timestamp=at, properties={"path": "/", "n": 1.5})
    sdk.alias("visitor-1", "ada@example.com", timestamp=at)
    sdk.capture(
        "signed up", distinct_id="ada@example.com", timestamp=at, properties={"$set": {"plan": "free"}}
    )
    sdk.shutdown()

    warehouse.sync(project, "events", "persons", "person_distinct_ids")

    events = warehouse.query("SELECT event, distinct_id, properties->>'path' FROM events")
    assert ("$pageview", "visitor-1", "/") in events
    assert ("signed up", "ada@example.com", None) in events
    assert {name for name, _, _ in events} == {"$pageview", "$create_alias", "signed up"}
    owners = dict(warehouse.query("SELECT distinct_id, person_id FROM person_distinct_ids"))
    assert set(owners) == {"visitor-1", "ada@example.com"}
    assert len(set(owners.values())) == 1
    ((person, plan),) = warehouse.query("SELECT id, properties->>'plan' FROM persons")
    assert (person, plan) == (owners["visitor-1"], "free")


def test_the_person_of_an_event_is_the_one_at_ingestion_unless_the_current_one_is_asked_for(
    project: Project, tmp_path: Path
) -> None:
    """Two persons become one: the events of the one merged away keep its id, or follow it."""
    then = ago(minutes=30).isoformat()
    for name in ("ada", "bob"):
        project.capture(
            {"event": "hello", "distinct_id": name, "timestamp": then, "properties": {"$set": {"n": 1}}}
        )
    people = project.person_ids()
    merge = {"alias": "bob"}
    project.capture(
        {"event": "$merge_dangerously", "distinct_id": "ada", "timestamp": then, "properties": merge}
    )
    found = {}
    for person_id in ("ingested", "current"):
        with Warehouse.at(tmp_path / person_id).held() as warehouse:
            warehouse.sync(project, "events", "person_distinct_ids", events=EventsConfig(person_id=person_id))
            found[person_id] = dict(
                warehouse.query("SELECT distinct_id, person_id FROM events WHERE event = 'hello'")
            )
            now = dict(warehouse.query("SELECT distinct_id, person_id FROM person_distinct_ids"))
        assert now["ada"] == now["bob"]

    assert found["ingested"] == people
    assert found["current"] == {"ada": people["ada"], "bob": people["ada"]}


def test_person_properties_as_stored_on_the_event_come_when_asked_for(
    standing: Project, warehouse: Warehouse
) -> None:
    warehouse.sync(standing, "events", events=EventsConfig(person_properties=True))

    found = dict(warehouse.query("SELECT uuid, person_properties::text FROM events"))
    truth = standing.events("toString(uuid), person_properties", "timestamp < now()")
    assert found == dict(truth)


def test_plain_files_are_appended_to_with_a_warning_and_snapshots_are_replaced(
    standing: Project, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        files.pipeline.run(posthog_source(**standing.credentials), loader_file_format="parquet")

    assert sorted(row["uuid"] for row in files.rows("events")) == sorted(true_events(standing))
    assert len(files.rows("persons")) == len(standing.persons("id"))
    assert {row["distinct_id"] for row in files.rows("person_distinct_ids")} == set(standing.person_ids())
    assert any("cannot replace rows, so they are appended" in message for message in caplog.messages)


def test_every_table_and_column_is_described_in_the_schema(nothing: Warehouse) -> None:
    tables = nothing.pipeline.default_schema.tables
    for table in PROJECT_TABLES:
        assert tables[table.name].get("description") == table.description
        for column in (PLAIN_EVENTS if table is EVENTS else table).columns:
            assert tables[table.name]["columns"][column.name].get("description") == column.description


def test_nothing_is_added_to_the_tables_but_what_the_catalogue_names(nothing: Warehouse) -> None:
    for table in (PLAIN_EVENTS, *PROJECT_TABLES[1:]):
        names = [
            name
            for (name,) in nothing.query(
                f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table.name}'"
                " AND table_schema = 'posthog_data' ORDER BY ordinal_position"
            )
        ]
        own = [column.name for column in table.columns]
        is_open = (
            isinstance(table, HogqlTable | RestTable) and table.is_open
        )  # it also has what this server has
        assert (names[: len(own)] if is_open else names) == own


class Totals(Collector):
    """Remembers what dlt is told."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.rows: dict[str, int] = {}

    def update(
        self,
        name: str,
        inc: int = 1,
        total: int | None = None,
        inc_total: int | None = None,
        message: str | None = None,
        label: str | None = None,
    ) -> None:
        if self.step.startswith("Extract") and total is not None:
            self.totals[name] = total
        if self.step.startswith("Extract") and label is None:
            self.rows[name] = self.rows.get(name, 0) + inc

    def __deepcopy__(self, memo: dict[int, object]) -> Totals:
        return self

    def _start(self, step: str) -> None:
        self.step = step

    def _stop(self) -> None:
        pass


def test_progress_knows_the_total_before_the_rows(standing: Project, tmp_path: Path) -> None:
    seen = Totals()
    warehouse = Warehouse.at(tmp_path, progress=seen)
    tables = ("events", "persons", "person_distinct_ids", "cohort_people")

    warehouse.sync(standing, *tables)

    for table, rows in warehouse.counts().items():
        copies = 50 if table == "events" else 0  # not merged yet
        assert rows <= seen.totals[table] <= rows + copies
        assert seen.rows[table] == rows


def test_pages_rows_and_bytes_are_told_as_dlt_metrics(standing: Project, warehouse: Warehouse) -> None:
    warehouse.sync(standing, "events", "persons", events=EventsConfig(page_rows=1_000))

    trace = warehouse.pipeline.last_trace
    assert trace is not None
    extract = next(step for step in trace.steps if step.step == "extract")
    assert extract.step_info is not None
    parts = [part for load in extract.step_info.metrics.values() for part in load]
    (told,) = [
        part["resource_metrics"]["events"].custom_metrics  # type: ignore[typeddict-item]
        for part in parts
        if "events" in part["resource_metrics"]  # type: ignore[typeddict-item]
    ]
    assert told["rows"] == warehouse.counts()["events"]
    assert told["pages"] >= 3
    assert told["bytes"] > 100 * told["rows"]


class Everything(logging.Handler):
    """Keeps every log line of every logger."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def everything() -> Iterator[Everything]:
    handler = Everything()
    loggers = [logging.getLogger(name) for name in ("", "dlt", "posthog_source", "httpx", "httpcore")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


def shown(error: BaseException) -> str:
    """An error and its causes, with the locals of all frames but the tests' own."""
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    links = [trace]
    while (inner := links[-1].__cause__ or links[-1].__context__) is not None:
        links.append(inner)
    for link in links:
        link.stack[:] = [frame for frame in link.stack if "/tests/" not in frame.filename]
    return "".join(trace.format())


def test_the_key_is_in_no_log_line_no_trace_and_no_file_of_a_run_with_failures(
    product: Project, warehouse: Warehouse, everything: Everything, tmp_path: Path
) -> None:
    product.faults("query", {"status": 500}, {"kind": "reset"}, {"kind": "not_json"}, {"status": 401})
    with pytest.raises(PipelineStepFailed) as failure:
        warehouse.sync(product)
    warehouse.sync(product)

    secret = product.api_key
    assert len(everything.lines) > 50
    assert any(line.startswith("httpcore") for line in everything.lines)
    assert [line for line in everything.lines if secret in line] == []
    assert secret not in shown(failure.value)
    assert secret not in repr(warehouse.pipeline.last_trace)
    source = posthog_source(project_id=1, api_key=secret, host=product.server.url)
    assert secret not in f"{source!r} {source} {vars(source)!r}"
    assert secret not in str(product.requests())
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert [path for path in written if secret.encode() in path.read_bytes()] == []


def refusals(server: Server, project: Project) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """Settings that cannot work, and words that the line about them must have."""
    revoked = server.key(["*"], [project.id])
    server.control("POST", "keys/revoke", api_key=revoked)
    elsewhere = server.project()
    return {
        "scope": ({"api_key": server.key(["query:read", "group:read"])}, ("403", "cohorts", "'cohort:read'")),
        "no scope": ({"api_key": server.key(["insight:read"])}, ("403", "query", "'query:read'")),
        "revoked": ({"api_key": revoked}, ("401", "revoked", "region")),
        "another project": ({"api_key": elsewhere.api_key}, ("403", f"ID {project.id}")),
        "no such project": ({"project_id": 987_654}, ("404", "project_id")),
        "project token": ({"api_key": project.token}, ("phc_", "phx_", "SOURCES__POSTHOG__API_KEY")),
        "no key": ({"api_key": None}, ("api_key is not set", "SOURCES__POSTHOG__API_KEY")),
        "no project": ({"project_id": None}, ("project_id is not set", "SOURCES__POSTHOG__PROJECT_ID")),
        "capture host": ({"host": "https://us.i.posthog.com"}, ("host", "'us'")),
        "its other": ({"host": "https://eu.i.posthog.com"}, ("host", "'eu'")),
        "order": ({"start_date": "2026-02-01", "end_date": "2026-01-01"}, ("start_date", "end_date")),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("scope", "no scope", "revoked", "another project", "no such project", "project token"),
        *("no key", "no project", "capture host", "its other", "order"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_loaded(
    server: Server, standing: Project, warehouse: Warehouse, case: str
) -> None:
    settings, words = refusals(server, standing)[case]

    with pytest.raises((PosthogSourceError, PipelineStepFailed)) as failure:
        warehouse.sync(standing, **settings)

    line = cause_of(failure)
    assert "\n" not in line
    assert [word for word in words if word not in line] == []
    assert not (warehouse.path / "warehouse.duckdb").exists() or warehouse.counts() == {}


def test_ids_of_two_runs_are_never_the_same(standing: Project, warehouse: Warehouse) -> None:
    """PostHog may answer a used id with its old result."""
    standing.forget_requests()
    warehouse.sync(standing, "events")
    warehouse.sync(standing, "events")

    ids = [request["client_query_id"] for request in standing.requests()]
    assert len(set(ids)) == len(ids) > 4
    assert all(uuid.UUID(one).version == 4 for one in ids)
