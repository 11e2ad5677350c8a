"""Which windows a sync of events reads: after changed settings, early ends, and late arrivals."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from dlt.pipeline.exceptions import PipelineStepFailed

from posthog_source import EventsConfig, find_cause, posthog_source
from posthog_source.errors import SettingsError
from tests.conftest import Project, Server, Warehouse, add_events

ALWAYS_LOOK = EventsConfig(late_arrival_every_s=0.0)


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
