"""Contenders that run the connector: up to Arrow by its own modules, from there with dlt, as a user does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"  # before dlt reads them
os.environ["DATA_WRITER__FILE_MAX_BYTES"] = "268435456"  # as in .dlt/config.toml
os.environ["DATA_WRITER__ROW_GROUP_SIZE"] = "10000"

import dlt

from benchmarks.floors import postgres_sums, sums
from benchmarks.job import NO_LIMIT, Job, Measured, peak_mb
from posthog_source import EventsConfig, PeopleConfig, posthog_source
from posthog_source.catalog import EVENTS
from posthog_source.client import Client
from posthog_source.config import build_settings
from posthog_source.pagination import Reader
from posthog_source.prefetch import ordered_prefetch
from posthog_source.query import Query
from posthog_source.runs import run_backfill, run_sync
from posthog_source.windows import Window

DATASET = "posthog_data"
LOADED = f"{DATASET}.events"


def connector_extract(job: Job, folder: Path) -> Measured:  # noqa: ARG001 - as the others
    """Bytes only, through the connector's client and look-ahead."""
    queries = [Query(asked["query"], asked["values"], asked["name"]) for asked in job.queries]
    started = time.monotonic()
    with Client(build_settings(**_access(job))) as client:

        def fetch(query: Query) -> int:
            return client.query(query, len)

        received = sum(size for _, size in ordered_prefetch(fetch, queries, depth=job.look_ahead))
    seconds = time.monotonic() - started
    return Measured(same=f"{received} bytes", seconds=seconds, peak_mb=peak_mb())


def connector_arrow(job: Job, folder: Path) -> Measured:  # noqa: ARG001 - as the others
    """Plan and pages -> Arrow, through the connector's reader."""
    started = time.monotonic()
    settings = build_settings(**_access(job), start_date=job.start, end_date=job.end)
    assert settings.start
    assert settings.end
    with Client(settings) as client:
        reader = Reader(
            client,
            EVENTS.without({"person_properties"}),
            project_id=job.project_id,
            page_rows=job.page_rows,
            look_ahead=job.look_ahead,
            may_repeat=True,
        )
        plans = reader.fetch_plans(Window(settings.start, settings.end))
        rows = sum(page.num_rows for plan in plans for page in reader.iter_pages(plan))
    seconds = time.monotonic() - started
    return Measured(same=f"{rows} rows", seconds=seconds, peak_mb=peak_mb())


def connector_read(job: Job, folder: Path) -> Measured:
    """Only dlt's extract step of a load that would replace its window: plan and pages -> Parquet."""
    started = time.monotonic()
    extracted = _pipeline(folder).extract(_events(job, "window"))
    seconds = time.monotonic() - started
    parts = [part["resource_metrics"] for load in extracted.metrics.values() for part in load]
    rows = sum((part["events"].custom_metrics or {}).get("rows", 0) for part in parts if "events" in part)
    return Measured(same=f"{rows} rows", seconds=seconds, peak_mb=peak_mb())


def connector_append(job: Job, folder: Path) -> Measured:
    """-> DuckDB, only adding."""
    return _load(_pipeline(folder), _events(job, "append"), folder)


def connector_window(job: Job, folder: Path) -> Measured:
    """-> DuckDB, in the default write mode."""
    return _load(_pipeline(folder), _events(job, "window"), folder)


def connector_replaced(job: Job, folder: Path) -> Measured:
    """The same once more, so that all rows are replaced."""
    connector_window(job, folder)
    return connector_window(job, folder)


def connector_parquet(job: Job, folder: Path) -> Measured:
    """-> Parquet files, through dlt's filesystem destination."""
    return _load(_pipeline(folder, is_files=True), _events(job, "append"), folder)


def connector_delta(job: Job, folder: Path) -> Measured:
    """-> A Delta table, through dlt's filesystem destination."""
    files = dlt.destinations.filesystem((folder / "files").as_uri(), preferred_table_format="delta")
    return _load(_pipeline(folder, files), _events(job, "append"), folder)


def connector_postgres(job: Job, folder: Path) -> Measured:
    """-> Postgres."""
    pipeline = _pipeline(folder, dlt.destinations.postgres(job.address))
    with pipeline.sql_client() as client:
        client.execute_sql(f"DROP SCHEMA IF EXISTS {DATASET} CASCADE")  # of the warm-up or an earlier run
    return _load(pipeline, _events(job, "append"), folder, lambda: postgres_sums(job.address, LOADED))


def connector_persons(job: Job, folder: Path) -> Measured:
    """A first sweep of persons -> DuckDB."""
    return _sync(_pipeline(folder), job, "persons")


def connector_persons_parquet(job: Job, folder: Path) -> Measured:
    """The same -> Parquet files."""
    return _sync(_pipeline(folder, is_files=True), job, "persons")


def connector_person_distinct_ids(job: Job, folder: Path) -> Measured:
    """A first sweep of distinct ids -> DuckDB."""
    return _sync(_pipeline(folder), job, "person_distinct_ids")


def _sync(pipeline: dlt.Pipeline, job: Job, table: str) -> Measured:
    started = time.monotonic()
    report = run_sync(
        pipeline,
        tables=[table],
        rows_per_commit=job.rows_per_commit,
        people=PeopleConfig(page_rows=job.page_rows),
        look_ahead=job.look_ahead,
        **_access(job),
    )
    seconds = time.monotonic() - started
    extra = {name: int(report.tables[table][name]) for name in ("rows", "bytes")}
    same = f"{extra['rows']} rows"
    return Measured(same=same, seconds=seconds, peak_mb=peak_mb(), extra=extra)


def backfill_duckdb(job: Job, folder: Path) -> Measured:
    """`run_backfill` -> DuckDB."""
    return _backfill(_pipeline(folder), job, folder)


def backfill_parquet(job: Job, folder: Path) -> Measured:
    """`run_backfill` -> Parquet files: no database's memory counts."""
    return _backfill(_pipeline(folder, is_files=True), job, folder)


def _backfill(pipeline: dlt.Pipeline, job: Job, folder: Path) -> Measured:
    started = time.monotonic()
    report = run_backfill(
        pipeline,
        job.start,
        job.end,
        rows_per_commit=job.rows_per_commit,
        events=EventsConfig(page_rows=job.page_rows),
        look_ahead=job.look_ahead,
        **_access(job),
    )
    seconds = time.monotonic() - started
    extra = {"commits": report.commits, "requests": report.requests, "rows": report.rows}
    peak = peak_mb()
    return Measured(same=_sums(folder), seconds=seconds, peak_mb=peak, extra=extra)


def _load(
    pipeline: dlt.Pipeline, source: Any, folder: Path, sums_of: Callable[[], str] | None = None
) -> Measured:
    started = time.monotonic()
    pipeline.extract(source)
    pipeline.normalize()
    before_load_mb = peak_mb()
    pipeline.load()
    seconds = time.monotonic() - started
    peak = peak_mb()
    trace = pipeline.last_trace
    steps = {
        f"{step.step}_s": round((step.finished_at - step.started_at).total_seconds(), 3)
        for step in (trace.steps if trace else ())
        if step.finished_at
    }
    return Measured(
        same=sums_of() if sums_of else _sums(folder),
        seconds=seconds,
        peak_mb=peak,
        before_load_mb=before_load_mb,
        extra=steps,
    )


def _sums(folder: Path) -> str:
    """Of what was loaded, files or database."""
    database = folder / "connector.duckdb"
    if database.exists():
        return sums(f"{DATASET}.events", database)
    return sums(f"read_parquet('{folder}/files/{DATASET}/events/**/*.parquet')")


def _pipeline(folder: Path, destination: Any = None, *, is_files: bool = False) -> dlt.Pipeline:
    files = dlt.destinations.filesystem((folder / "files").as_uri())
    database = dlt.destinations.duckdb(str(folder / "connector.duckdb"))
    return dlt.pipeline(
        "benchmark",
        pipelines_dir=str(folder / "pipelines"),
        destination=destination or (files if is_files else database),
        dataset_name=DATASET,
    )


def _events(job: Job, write_mode: str) -> Any:
    source = posthog_source(
        **_access(job),
        start_date=job.start,
        end_date=job.end,
        look_ahead=job.look_ahead,
        rows_per_commit=NO_LIMIT,  # one commit of run_sync's, which dlt is not to resume
        events=EventsConfig(page_rows=job.page_rows, write_mode=write_mode),
    )
    return source.with_resources("events")


def _access(job: Job) -> dict[str, Any]:
    return {
        "project_id": job.project_id,
        "api_key": job.api_key,
        "host": job.url,
        "queries_per_minute": NO_LIMIT,
        "queries_per_hour": NO_LIMIT,
    }
