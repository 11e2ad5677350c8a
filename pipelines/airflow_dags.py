"""Airflow 2.11 and 3: PostHog into the warehouse every hour, and a backfill over workers, to copy and adapt.

The connection `posthog_default` says what is read (host; password, the API key; extra, the project_id), and
without it dlt's own places do. The Variables `posthog_destination` and `posthog_dataset` say where to.
See docs/airflow.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

try:
    from airflow.sdk import Asset, BaseHook, CronDataIntervalTimetable, Param, dag, task
    from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException
except ImportError:  # Airflow 2
    from airflow.datasets import Dataset as Asset
    from airflow.decorators import dag, task
    from airflow.exceptions import AirflowFailException, AirflowNotFoundException
    from airflow.hooks.base import BaseHook
    from airflow.models.param import Param
    from airflow.timetables.interval import CronDataIntervalTimetable

TARGET = {
    "destination": "{{ var.value.get('posthog_destination', 'duckdb') }}",
    "dataset": "{{ var.value.get('posthog_dataset', 'posthog_data') }}",
}
RETRIES = {"retries": 3, "retry_delay": timedelta(minutes=5), "retry_exponential_backoff": True}
LATEST = timedelta(days=1)
"""A run whose interval ended longer ago is one that somebody runs again, for the interval's sake."""


@task(outlets=[Asset("posthog://events")], **RETRIES)
def sync_events(
    destination: str,
    dataset: str,
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
) -> dict[str, Any]:
    """All events that are new; those of the interval, in a run of the past that is run again."""
    from posthog_source import run_backfill, run_sync

    if data_interval_start and data_interval_start == data_interval_end:
        raise AirflowFailException(
            f"The data interval begins and ends at {data_interval_end}: schedule with "
            "CronDataIntervalTimetable, or set AIRFLOW__SCHEDULER__CREATE_CRON_DATA_INTERVALS=True."
        )
    with failing_at_once():
        target = pipeline("posthog", destination, dataset)
        if data_interval_end and data_interval_end < datetime.now(UTC) - LATEST:
            report = run_backfill(target, data_interval_start, data_interval_end, **connection())
        else:
            report = run_sync(target, tables=["events"], **connection())
    return report.as_json()


@task(**RETRIES)
def sync(tables: list[str], destination: str, dataset: str) -> dict[str, Any]:
    """Other tables, up to now."""
    from posthog_source import run_sync

    with failing_at_once():
        target = pipeline("posthog", destination, dataset)
        return run_sync(target, tables=tables, **connection()).as_json()


@task(**RETRIES)
def plan(start: str, end: str, rows_per_task: int) -> list[dict[str, str]]:
    """Ranges of about equal rows, a task each; one question to PostHog."""
    from posthog_source import plan_backfill

    with failing_at_once():
        ranges = plan_backfill(start, end, rows_per_range=int(rows_per_task), **connection())
    return [{"start": each.start.isoformat(), "end": each.end.isoformat()} for each in ranges]


@task(max_active_tis_per_dagrun=2, **RETRIES)
def backfill(start: str, end: str, destination: str, dataset: str) -> dict[str, Any]:
    """A range, by a pipeline of its own: state and working directory go by the name."""
    from posthog_source import run_backfill

    with failing_at_once():
        target = pipeline(f"posthog_{datetime.fromisoformat(start):%Y%m%d}", destination, dataset)
        return run_backfill(target, start, end, **connection()).as_json()


@task(outlets=[Asset("posthog://events")], **RETRIES)
def compare(start: str, end: str, destination: str, dataset: str) -> dict[str, Any]:
    """Fails if the warehouse has not what PostHog has."""
    from posthog_source import verify

    with failing_at_once():
        target = pipeline("posthog", destination, dataset)
        found = verify(target, start=start, end=end, tables=["events"], **connection())
    if not found.is_equal:
        days = ", ".join(day.isoformat() for day in found.days)
        raise AirflowFailException(f"events differ from PostHog's on {days}. Backfill these days.")
    return found.as_json()


@dag(
    schedule=CronDataIntervalTimetable("7 * * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,  # a sync goes by its own cursor: it misses nothing, whenever it runs
    max_active_runs=1,
    max_active_tasks=1,  # loads into one dataset take turns
    tags=["posthog"],
)
def posthog_sync() -> None:
    """Brings the warehouse up to now; events, people and definitions fail apart."""
    people = sync.override(task_id="sync_people", outlets=[Asset("posthog://people")])(["people"], **TARGET)
    sync_events(**TARGET) >> people
    sync.override(task_id="sync_definitions", outlets=[Asset("posthog://definitions")])(
        ["definitions"], **TARGET
    )


@dag(
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    max_active_runs=1,
    params={
        "from": Param("2026-01-01", type="string", format="date", description="First day."),
        "to": Param("2026-02-01", type="string", format="date", description="First day not to be read."),
        "rows_per_task": Param(5_000_000, type="integer", minimum=1, description="Events of a task, about."),
    },
    tags=["posthog"],
)
def posthog_backfill() -> None:
    """Reads a span of events again, in ranges of equal rows, and compares the whole with PostHog."""
    span = {"start": "{{ params['from'] }}", "end": "{{ params['to'] }}"}
    ranges = plan(**span, rows_per_task="{{ params['rows_per_task'] }}")
    backfill.partial(**TARGET).expand_kwargs(ranges) >> compare(**span, **TARGET)


def pipeline(name: str, destination: str, dataset: str) -> Any:
    """Dlt is imported in tasks alone: the scheduler reads this file twice a minute."""
    import dlt

    return dlt.pipeline(name, destination=destination, dataset_name=dataset)


def connection() -> dict[str, Any]:
    """Whose data; nothing where Airflow knows no connection, so that dlt looks it up."""
    try:
        known = BaseHook.get_connection("posthog_default")
    except AirflowNotFoundException:
        return {}
    given = {"host": known.host, "api_key": known.password, **known.extra_dejson}
    return {name: value for name, value in given.items() if value}


@contextmanager
def failing_at_once() -> Iterator[None]:
    """Ends a task in one line, and for good, where trying again would not help, such as with a wrong key."""
    from posthog_source import find_cause

    try:
        yield
    except Exception as error:
        cause = find_cause(error)
        if cause is None or cause.transient:
            raise
        raise AirflowFailException(str(cause)) from None


posthog_sync()
posthog_backfill()
