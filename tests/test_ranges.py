"""plan_backfill: the parts are the whole, and workers that read them at once load it, each row once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from posthog_source import BackfillRange, PosthogSourceError, plan_backfill, run_backfill
from tests.conftest import Project, Warehouse, add_events

START = datetime(2026, 1, 1, 6, tzinfo=UTC)
END = START + timedelta(days=8)


def a_week(project: Project) -> list[str]:
    """Ten events on each of six days, eighty on one."""
    days = [0, 1, 2, *[3] * 8, 4, 5, 6]
    times = [START + timedelta(days=day, seconds=n) for day in days for n in range(10)]
    return add_events(project, len(times), timestamp=times)


def test_ranges_meet_at_midnights_are_the_whole_and_about_equal(project: Project) -> None:
    a_week(project)

    ranges = plan_backfill(START, END, rows_per_range=30, **project.credentials)

    assert [each.start for each in ranges] == [START, *(each.end for each in ranges[:-1])]
    assert ranges[-1].end == END
    assert all(each.end == each.end.replace(hour=0) for each in ranges[:-1])
    assert [each.rows for each in ranges] == [30, 80, 30]
    assert len(project.requests()) == 1


def test_events_that_are_not_chosen_are_not_counted(project: Project) -> None:
    add_events(project, 40, event=["page", "click"] * 20, timestamp=[START] * 40)

    (only,) = plan_backfill(
        START, END, rows_per_range=100, events={"event_names": ["click"]}, **project.credentials
    )

    assert only == BackfillRange(START, END, 20)


@pytest.mark.parametrize(("start", "end", "rows"), [(END, START, 1), (START, END, 0)])
def test_what_cannot_be_planned_is_refused_before_anything_is_asked(
    project: Project, start: datetime, end: datetime, rows: int
) -> None:
    with pytest.raises(PosthogSourceError):
        plan_backfill(start, end, rows_per_range=rows, **project.credentials)

    assert project.requests() == []


def test_ranges_that_pipelines_of_their_own_read_are_the_whole_and_leave_no_staging(
    project: Project, warehouse: Warehouse
) -> None:
    expected = sorted(a_week(project))
    for number, each in enumerate(plan_backfill(START, END, rows_per_range=30, **project.credentials)):
        worker = Warehouse.at(warehouse.path, f"worker_{number}")
        run_backfill(worker.pipeline, each.start, each.end, **project.credentials)

    assert sorted(warehouse.uuids()) == expected
    assert [
        name
        for (name,) in warehouse.query("SELECT schema_name FROM information_schema.schemata")
        if "worker" in name
    ] == []
