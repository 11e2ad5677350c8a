"""Which windows a sync of events reads: after changed settings, early ends, and late arrivals."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.common.schema import Schema
from dlt.pipeline.exceptions import PipelineStepFailed
from dlt.sources import DltSource

from posthog_source import EventsConfig, RunReport, find_cause, posthog_source, run_sync
from posthog_source.client import Client
from posthog_source.config import EventsSettings, build_settings
from posthog_source.errors import SettingsError
from posthog_source.events import build_events
from tests.conftest import Project, Server, Warehouse, add_events
from tests.test_pipeline import loaded_events, true_events

ALWAYS_LOOK = EventsConfig(late_arrival_every_s=0.0)
DAY = timedelta(days=1)
MIDNIGHT = datetime(2026, 3, 10, tzinfo=UTC)
STRANGE_NAMES = (
    *("", "'quoted'", '"double"', "back\\slash", "{x} {{y}} %s", "nul \0 name", "-- comment", "a", "A"),
    *("naïve", "日本語", "🦔", "new\nline", "$pageview"),
)


def ago(**parts: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) - timedelta(**parts)


def cause_of(failure: pytest.ExceptionInfo[BaseException]) -> str:
    cause = find_cause(failure.value)
    assert isinstance(cause, SettingsError)
    return str(cause)


def add_recent(
    project: Project, count: int, *, first: int = 0, age: timedelta, late: bool = False
) -> list[str]:
    """Events a second apart that happened `age` ago, and arrived then, or just now."""
    happened = [datetime.now(UTC) - age + timedelta(seconds=n) for n in range(count)]
    return add_events(
        project,
        count,
        uuid=[f"00000000-0000-4000-8000-{first + n:012x}" for n in range(count)],
        timestamp=happened,
        created_at=happened,
    )


def test_a_pipeline_refuses_another_project_than_it_began_with(
    server: Server, project: Project, warehouse: Warehouse
) -> None:
    add_recent(project, 3, age=timedelta(hours=2))
    other = server.project()
    add_recent(other, 5, age=timedelta(days=2))
    warehouse.sync(project, "events", "insights")

    for table in ("events", "insights"):
        with pytest.raises(PipelineStepFailed) as failure:
            warehouse.sync(other, table)
        assert f"project {other.id}. Use another pipeline_name" in cause_of(failure)

    assert warehouse.query("SELECT DISTINCT project_id FROM events") == [(project.id,)]


def test_a_start_date_moved_back_brings_the_earlier_events(project: Project, warehouse: Warehouse) -> None:
    old = add_recent(project, 5, age=timedelta(days=5))
    new = add_recent(project, 5, first=100, age=timedelta(hours=2))
    warehouse.sync(project, "events", start_date=ago(days=1))
    assert warehouse.uuids() == new

    warehouse.sync(project, "events", start_date=ago(days=6))
    assert warehouse.uuids() == old + new

    warehouse.sync(project, "events")
    assert warehouse.uuids() == old + new


def test_a_start_date_moved_back_is_refused_where_it_would_double_rows(
    project: Project, warehouse: Warehouse
) -> None:
    add_recent(project, 5, age=timedelta(hours=2))
    append = EventsConfig(write_mode="append")
    warehouse.sync(project, "events", start_date=ago(days=1), events=append)

    with pytest.raises(PipelineStepFailed) as failure:
        warehouse.sync(project, "events", start_date=ago(days=2), events=append)

    assert "start_date was moved back" in cause_of(failure)
    assert len(warehouse.uuids()) == 5


def test_a_start_date_in_the_future_is_refused(project: Project, warehouse: Warehouse) -> None:
    with pytest.raises(PipelineStepFailed) as failure:
        warehouse.sync(project, "events", start_date=ago(days=-1))

    assert "lies in the future" in cause_of(failure)


def test_a_run_that_ended_early_does_not_move_the_cursor(project: Project, warehouse: Warehouse) -> None:
    expected = add_recent(project, 60, age=timedelta(hours=3))
    source = posthog_source(
        project_id=project.id,
        api_key=project.api_key,
        host=project.server.url,
        events=EventsConfig(page_rows=10),
    )
    warehouse.pipeline.run(source.with_resources("events").add_limit(3))
    assert 0 < len(warehouse.uuids()) < 60

    warehouse.sync(project, "events")

    assert warehouse.uuids() == expected


def test_events_on_time_are_not_taken_for_late_ones(project: Project, warehouse: Warehouse) -> None:
    add_recent(project, 500, age=timedelta(hours=5))
    warehouse.sync(project, "events", events=ALWAYS_LOOK)
    project.forget_requests()

    warehouse.sync(project, "events", events=ALWAYS_LOOK)

    asked = [request for request in project.requests() if request["name"].startswith("posthog_source events")]
    assert any(request["name"] == "posthog_source events late" for request in asked)
    assert sum(request["result_rows"] for request in asked if request["name"] == "posthog_source events") == 0


def test_nul_in_text_and_in_json_is_replaced(project: Project, warehouse: Warehouse) -> None:
    when = [ago(hours=2)]
    add_events(
        project,
        1,
        timestamp=when,
        event=["a\0b"],
        distinct_id=["\0"],
        properties=[r'{"n":"\u0000","m":"\\u0000"}'],
    )

    warehouse.sync(project, "events")

    found = warehouse.query("SELECT event, distinct_id, properties::text FROM events")
    assert found == [("a\ufffdb", "\ufffd", r'{"n":"\ufffd","m":"\\u0000"}')]


def source_at(
    now: datetime,
    *,
    rows_per_commit: int | None = None,
    meter_reads: bool | None = None,
    events: EventsSettings | None = None,
    **settings: Any,
) -> DltSource:
    """Events alone, as if it were that time."""
    made = build_settings(rows_per_commit=rows_per_commit, **settings)
    resource = build_events(Client(made), made, events or EventsSettings(), clock=lambda: now)
    return DltSource(Schema("posthog"), "posthog", [resource])


def sync_at(
    now: datetime, project: Project, warehouse: Warehouse, *, rows_per_commit: int, **settings: Any
) -> RunReport:
    """A whole sync in commits, as if it were that time."""
    return run_sync(
        warehouse.pipeline,
        partial(source_at, now),
        rows_per_commit=rows_per_commit,
        **project.credentials | settings,
    )


def commit(pipeline: dlt.Pipeline, source: DltSource, *, times: int) -> None:
    """The first commits of a sync that is stopped then."""
    for _ in range(times):
        pipeline.run(source)


def add_named(project: Project, *named: tuple[str, datetime], first: int = 0, **columns: Any) -> list[str]:
    """Events of those names and times, arrived at once unless told otherwise."""
    times = [time for _, time in named]
    return add_events(
        project,
        len(named),
        uuid=[f"00000000-0000-4000-8000-{first + n:012x}" for n in range(len(named))],
        event=[name for name, _ in named],
        timestamp=times,
        **{"created_at": times} | columns,
    )


def two_days(project: Project) -> list[str]:
    """Three events each of a, b and c on one day, and three of a on the next."""
    six = MIDNIGHT + DAY / 4
    first = [(name, six + timedelta(seconds=n)) for name in "abc" for n in range(3)]
    return add_named(project, *first, *(("a", six + DAY + timedelta(seconds=n)) for n in range(3)))


def names_of(project: Project) -> Counter[str]:
    """How often each kind of query was asked."""
    return Counter(request["name"] for request in project.requests())


@pytest.mark.parametrize("rows_per_commit", [300, 10**6])
def test_any_rows_per_commit_gives_the_table_that_clickhouse_holds(
    busy_project: Project, warehouse: Warehouse, rows_per_commit: int
) -> None:
    end = ago(hours=1).isoformat()
    busy_project.generate(events=1_500, persons=50, days=3, end=end, properties_bytes=100)

    report = run_sync(
        warehouse.pipeline, tables=["events"], rows_per_commit=rows_per_commit, **busy_project.credentials
    )

    # Unmerged copies of an event have no groups in the emulator: either copy is right.
    found, truth = loaded_events(warehouse), true_events(busy_project)
    assert {uuid: row[:-2] for uuid, row in found.items()} == {uuid: row[:-2] for uuid, row in truth.items()}
    assert (report.commits > 5) is (rows_per_commit == 300)
    assert report.rows_left == 0


@pytest.mark.parametrize("write_mode", ["window", "upsert", "append"])
def test_names_of_any_kind_are_told_apart_where_a_day_is_read_in_parts(
    busy_project: Project, warehouse: Warehouse, write_mode: str
) -> None:
    noon = MIDNIGHT + DAY / 2
    expected = add_named(busy_project, *((name, noon) for name in STRANGE_NAMES), ("A", noon))
    sync = partial(
        sync_at,
        project=busy_project,
        warehouse=warehouse,
        rows_per_commit=6,
        events=EventsSettings(write_mode=write_mode),  # type: ignore[arg-type]
    )

    assert sync(MIDNIGHT + DAY).commits == 3
    sync(MIDNIGHT + 2 * DAY)

    assert warehouse.uuids() == expected
    found = dict(warehouse.query("SELECT event, count(*) FROM events GROUP BY ALL"))
    assert found == {name.replace("\0", "\ufffd"): 2 if name == "A" else 1 for name in STRANGE_NAMES}


@pytest.mark.parametrize(("stop_after", "folder"), [(1, "kept"), (2, "wiped"), (3, "wiped")])
def test_a_sync_stopped_after_any_commit_goes_on_there(
    busy_project: Project, tmp_path: Path, stop_after: int, folder: str
) -> None:
    expected = two_days(busy_project)
    settings = busy_project.credentials | {"rows_per_commit": 4}
    commit(Warehouse.at(tmp_path).pipeline, source_at(MIDNIGHT + 3 * DAY, **settings), times=stop_after)
    if folder == "wiped":
        shutil.rmtree(tmp_path / "pipelines")
    warehouse = Warehouse.at(tmp_path)
    before = len(warehouse.uuids())
    busy_project.forget_requests()

    report = sync_at(MIDNIGHT + 3 * DAY, busy_project, warehouse, rows_per_commit=4)

    assert warehouse.uuids() == expected
    assert before == 3 * stop_after
    pages = [request for request in busy_project.requests() if request["name"] == "posthog_source events"]
    assert sum(page["result_rows"] for page in pages) == report.rows == len(expected) - before


def test_events_that_came_for_names_already_read_are_found_by_the_next_sync(
    busy_project: Project, warehouse: Warehouse
) -> None:
    expected = two_days(busy_project)
    now = MIDNIGHT + 3 * DAY
    always = EventsSettings(late_arrival_every_s=0.0)
    source = source_at(now, rows_per_commit=4, events=always, **busy_project.credentials)
    commit(warehouse.pipeline, source, times=2)
    late = [(name, MIDNIGHT + timedelta(hours=7)) for name in ("Z", "a", "aa", "b", "c", "d")]
    expected += add_named(busy_project, *late, first=100, created_at=[now] * 6)

    for minutes in (30, 60):
        then = now + timedelta(minutes=minutes)
        sync_at(then, busy_project, warehouse, rows_per_commit=9, events=always)

    assert warehouse.uuids() == sorted(expected)


@pytest.mark.parametrize("stop_after", [0, 2])
def test_a_start_date_moved_back_in_commits_brings_the_earlier_events_and_no_copies(
    busy_project: Project, warehouse: Warehouse, stop_after: int
) -> None:
    expected = two_days(busy_project)
    now = MIDNIGHT + 3 * DAY
    warehouse.pipeline.run(source_at(now, start_date=MIDNIGHT + DAY, **busy_project.credentials))
    assert warehouse.uuids() == expected[9:]

    earlier = busy_project.credentials | {"start_date": MIDNIGHT - DAY, "rows_per_commit": 4}
    commit(warehouse.pipeline, source_at(now, **earlier), times=stop_after)
    sync_at(now, busy_project, warehouse, rows_per_commit=4, start_date=MIDNIGHT - DAY)

    assert warehouse.uuids() == expected


@pytest.mark.parametrize("count", [40, 1_010])
def test_events_late_by_days_arrive_be_they_rows_or_days_in_syncs_of_small_commits(
    busy_project: Project, warehouse: Warehouse, count: int
) -> None:
    expected = two_days(busy_project)
    now = MIDNIGHT + 3 * DAY
    warehouse.pipeline.run(source_at(now, **busy_project.credentials))
    happened = [MIDNIGHT + timedelta(hours=n % 48, seconds=n) for n in range(count)]
    named = [(f"late {n % 2}", at) for n, at in enumerate(happened)]
    expected += add_named(busy_project, *named, first=1_000, created_at=[now + timedelta(hours=2)] * count)
    expected += add_named(busy_project, *[("new", now + n * DAY) for n in range(3)], first=5_000)

    report = sync_at(now + 3 * DAY, busy_project, warehouse, rows_per_commit=600 if count > 40 else 2)

    assert warehouse.uuids() == sorted(expected)
    assert report.commits > 1
    assert report.late_rows == (count if count == 40 else 0)


def test_many_late_events_that_were_not_all_read_are_looked_for_again(
    busy_project: Project, warehouse: Warehouse
) -> None:
    expected = two_days(busy_project)
    now = MIDNIGHT + 3 * DAY
    warehouse.pipeline.run(source_at(now, **busy_project.credentials))
    late = [("late", MIDNIGHT + timedelta(hours=n % 48, seconds=n)) for n in range(1_010)]
    expected += add_named(busy_project, *late, first=1_000, created_at=[now] * 1_010)
    source = source_at(now + 2 * DAY, rows_per_commit=600, **busy_project.credentials)
    commit(warehouse.pipeline, source, times=1)
    assert 12 < len(warehouse.uuids()) < len(expected)

    sync_at(now + 2 * DAY, busy_project, warehouse, rows_per_commit=600)

    assert warehouse.uuids() == sorted(expected)


def test_future_events_stay_out_of_all_commits_until_their_time(
    busy_project: Project, warehouse: Warehouse
) -> None:
    expected = two_days(busy_project)
    now = MIDNIGHT + 3 * DAY
    future = add_named(
        busy_project, ("c", now + DAY), ("d", now + 900 * DAY), first=100, created_at=[MIDNIGHT] * 2
    )
    sync_at(now, busy_project, warehouse, rows_per_commit=4)
    assert warehouse.uuids() == expected

    soon = add_named(busy_project, ("new", now + timedelta(minutes=5)), first=200)
    sync_at(now + timedelta(hours=1), busy_project, warehouse, rows_per_commit=4)
    assert warehouse.uuids() == sorted([*expected, *soon])
    sync_at(now + 2 * DAY, busy_project, warehouse, rows_per_commit=4)
    assert warehouse.uuids() == sorted([*expected, *soon, future[0]])


@pytest.mark.parametrize("rows_per_commit", [4, None])
def test_future_events_come_at_once_where_that_is_chosen(
    busy_project: Project, warehouse: Warehouse, rows_per_commit: int | None
) -> None:
    expected = two_days(busy_project)
    now = MIDNIGHT + 3 * DAY
    future = add_named(
        busy_project, ("c", now + DAY), ("d", now + 900 * DAY), first=100, created_at=[MIDNIGHT] * 2
    )
    soon_enough = EventsSettings(future_days=2)
    for hours in (0, 1, 30):
        at = now + timedelta(hours=hours)
        source = source_at(
            at, events=soon_enough, rows_per_commit=rows_per_commit, **busy_project.credentials
        )
        commit(warehouse.pipeline, source, times=5)
        assert warehouse.uuids() == sorted([*expected, future[0]])

    soon = add_named(busy_project, ("new", now + timedelta(hours=30)), first=200)
    sync_at(now + timedelta(hours=31), busy_project, warehouse, rows_per_commit=4)
    assert warehouse.uuids() == sorted([*expected, *soon, future[0]])


@pytest.mark.parametrize("rows_per_commit", [40, 10**6])
def test_a_sparse_project_of_five_years_is_planned_in_commits_and_never_by_name_as_a_whole(
    busy_project: Project, warehouse: Warehouse, rows_per_commit: int
) -> None:
    start = datetime(2021, 1, 1, tzinfo=UTC)
    add_named(busy_project, *((f"name {n % 40}", start + n * 18.25 * DAY) for n in range(100)))

    report = sync_at(
        start + 5 * 366 * DAY,
        busy_project,
        warehouse,
        rows_per_commit=rows_per_commit,
        events=EventsSettings(page_rows=10),
    )

    assert len(warehouse.uuids()) == report.rows == 100
    plans = [
        request for request in busy_project.requests() if request["name"] == "posthog_source events plan"
    ]
    assert names_of(busy_project)["posthog_source events count"] == 1
    assert len(plans) == report.commits == (3 if rows_per_commit == 40 else 1)
    if rows_per_commit == 40:
        bounds = [re.findall(r"timestamp [<>]= toDateTime64\('([^']+)'", plan["query"]) for plan in plans]
        spans = [datetime.fromisoformat(end) - datetime.fromisoformat(first) for first, end in bounds]
        assert max(spans) < 1_000 * DAY
        assert [plan["result_rows"] for plan in plans] == [40, 40, 20]


def test_a_second_sync_asks_for_a_count_and_a_page(busy_project: Project, warehouse: Warehouse) -> None:
    two_days(busy_project)
    now = MIDNIGHT + 3 * DAY
    warehouse.pipeline.run(source_at(now, **busy_project.credentials))
    busy_project.forget_requests()

    sync_at(now + timedelta(hours=1), busy_project, warehouse, rows_per_commit=4)

    asked = {name: count for name, count in names_of(busy_project).items() if "events" in name}
    assert asked == {"posthog_source events count": 1, "posthog_source events": 1}


def test_an_event_larger_than_a_commit_is_read_once_and_the_rest_of_its_day_after_it(
    busy_project: Project, warehouse: Warehouse
) -> None:
    noon = MIDNIGHT + DAY / 2
    expected = add_named(busy_project, *((name, noon) for name in "a" * 3 + "b" * 20 + "c" * 3))
    source = source_at(MIDNIGHT + 3 * DAY, rows_per_commit=5, **busy_project.credentials)

    commit(warehouse.pipeline, source, times=3)

    assert warehouse.uuids() == expected


def test_a_source_that_is_run_again_after_a_failed_commit_reads_that_commit_again(
    busy_project: Project, warehouse: Warehouse
) -> None:
    expected = two_days(busy_project)
    source = source_at(MIDNIGHT + 3 * DAY, rows_per_commit=4, **busy_project.credentials)
    commit(warehouse.pipeline, source, times=1)
    busy_project.faults("query", {"status": 402})
    with pytest.raises(Exception, match="402"):
        commit(warehouse.pipeline, source, times=1)

    commit(warehouse.pipeline, source, times=4)

    assert warehouse.uuids() == expected


def test_names_that_become_the_same_without_nul_are_all_kept(
    busy_project: Project, warehouse: Warehouse
) -> None:
    noon = MIDNIGHT + DAY / 2
    expected = add_named(
        busy_project, *((name, noon) for name in ["a\0b"] * 3 + ["m"] * 3 + ["a\ufffdb"] * 3)
    )

    sync_at(MIDNIGHT + 3 * DAY, busy_project, warehouse, rows_per_commit=3)

    assert warehouse.uuids() == expected


def test_what_came_just_before_a_half_read_days_end_is_found_by_the_next_sync(
    busy_project: Project, warehouse: Warehouse
) -> None:
    """The day is today: its window ends at the lag, and the lookback has to cover it again."""
    now = MIDNIGHT + DAY / 2
    expected = add_named(busy_project, *((name, now - timedelta(hours=2)) for name in "aaabbbccc"))
    first = source_at(now, rows_per_commit=3, **busy_project.credentials)
    commit(warehouse.pipeline, first, times=1)
    happened, arrived = now - timedelta(minutes=6), now + timedelta(minutes=1)
    expected += add_named(busy_project, ("a", happened), first=100, created_at=[arrived])

    for hours in (2, 4, 30, 60):
        then = now + timedelta(hours=hours)
        warehouse.pipeline.run(source_at(then, **busy_project.credentials))

    assert warehouse.uuids() == expected


def test_late_events_of_a_half_read_day_are_not_forgotten_by_the_look_before_it(
    busy_project: Project, warehouse: Warehouse
) -> None:
    """Read in part, event arrives, a look is due and looks only before the day, the next one only later."""
    expected = two_days(busy_project)
    now = MIDNIGHT + 3 * DAY
    commit(warehouse.pipeline, source_at(now, rows_per_commit=4, **busy_project.credentials), times=1)
    late = ("a", MIDNIGHT + DAY / 4)
    expected += add_named(busy_project, late, first=100, created_at=[now + timedelta(hours=1)])

    for days in (2, 4, 6):
        warehouse.pipeline.run(source_at(now + days * DAY, **busy_project.credentials))

    assert warehouse.uuids() == sorted(expected)


def test_a_sync_in_commits_ends_at_its_windows_end_though_its_last_days_are_empty(
    busy_project: Project, warehouse: Warehouse
) -> None:
    noon = MIDNIGHT + DAY / 2
    add_named(busy_project, *(("a", noon + n * DAY) for n in range(2) for _ in range(5)))
    now = MIDNIGHT + 10 * DAY
    sync_at(now, busy_project, warehouse, rows_per_commit=4)

    resources: Any = warehouse.pipeline.state["sources"]["posthog"]["resources"]
    cursor = resources["events"]["incremental"]["timestamp"]["last_value"]
    assert str(cursor)[:16] == "2026-03-19 23:55"


def test_a_start_date_moved_back_in_commits_is_remembered_though_the_last_days_are_empty(
    busy_project: Project, warehouse: Warehouse
) -> None:
    expected = two_days(busy_project)
    expected += add_named(busy_project, *[("a", MIDNIGHT + 1.5 * DAY)] * 5, first=100)
    now = MIDNIGHT + 3 * DAY
    warehouse.pipeline.run(source_at(now, start_date=MIDNIGHT + DAY, **busy_project.credentials))
    earlier: dict[str, Any] = {"start_date": MIDNIGHT - DAY}
    sync_at(now, busy_project, warehouse, rows_per_commit=4, **earlier)
    assert warehouse.uuids() == expected
    busy_project.forget_requests()

    warehouse.pipeline.run(source_at(now + DAY / 2, **busy_project.credentials | earlier))

    assert [request["result_rows"] for request in busy_project.requests()] == [0, 0]


def test_a_start_date_moved_back_goes_on_after_a_stop_where_it_was(
    busy_project: Project, warehouse: Warehouse
) -> None:
    two_days(busy_project)
    now = MIDNIGHT + 3 * DAY
    warehouse.pipeline.run(source_at(now, start_date=MIDNIGHT + DAY, **busy_project.credentials))
    earlier = busy_project.credentials | {"start_date": MIDNIGHT - DAY}
    commit(warehouse.pipeline, source_at(now, rows_per_commit=4, **earlier), times=2)
    busy_project.forget_requests()

    warehouse.pipeline.run(source_at(now, **earlier))

    pages = [r["result_rows"] for r in busy_project.requests() if r["name"] == "posthog_source events"]
    assert sum(pages) < 12  # the rest, and the last hour of what was read
