"""The demo: an emulated PostHog with a product's data, synced twice into DuckDB, and what it cost.

Everything between the emulator's door and the database is what a real project would use. Not here: the
emulator (`posthog_emulator`, a program of its own), the command line (`cli`).
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import httpx
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from posthog_source.catalog import TABLES
from posthog_source.definitions import DEFINITIONS
from posthog_source.errors import SettingsError
from posthog_source.progress import RichProgress
from posthog_source.source import EventsConfig, posthog_source
from posthog_source.tables import RestTable, Table

DATASET = "posthog_data"
DEMO_MODULES = ("posthog_emulator", "chdb", "hogql_parser", "starlette", "uvicorn", "posthog")
NEW_EVENTS = 500
LATE_EVENTS = 40

OTHERS = "definitions"
"""The line of all tables of what people have defined."""

SHOWN = tuple(table for table in TABLES if table not in DEFINITIONS)
CAPTION = (
    f"definitions: {len(DEFINITIONS)} tables, such as insights and feature_flags\n"
    "read/out: bytes that ClickHouse read for each byte exported; much where\n"
    "little is new, since it reads 8,192 rows at once"
)

QUICK_START = f"""
Look at it:
  duckdb {{database}}
  SELECT event, count(*) FROM {DATASET}.events GROUP BY ALL ORDER BY 2 DESC;
  SELECT timestamp::date AS day, count(DISTINCT person_id) FROM {DATASET}.events GROUP BY ALL ORDER BY 1;
  SELECT name, count(*) FROM {DATASET}.cohorts JOIN {DATASET}.cohort_people ON cohort_id = id GROUP BY ALL;

The same with your project:
  export SOURCES__POSTHOG__PROJECT_ID=12345      # the number in PostHog's address bar
  export SOURCES__POSTHOG__API_KEY=phx_…         # scopes query:read, group:read, cohort:read, insight:read
  posthog-source check
  posthog-source sync --destination duckdb
"""


@dataclass(frozen=True)
class Emulator:
    """A running emulated PostHog."""

    url: str
    project_id: int
    project_token: str
    api_key: str

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Calls the emulator's control API."""
        response = httpx.request(method, f"{self.url}/_emulator/{path}", json=body, timeout=300)
        response.raise_for_status()
        return response.json() if response.content else None


@dataclass(frozen=True)
class TableCost:
    """What one table's sync did."""

    bytes_exported: int
    requests: int
    bytes_read: int
    seconds: float


def run_demo(*, database: Path, events: int, persons: int, days: int, console: Console) -> None:
    """Runs the whole demo and prints what it found.

    Raises:
        SettingsError: The demo extra is not installed.
    """
    check_installed()
    with running_emulator() as emulator, tempfile.TemporaryDirectory() as working_dir:
        with console.status("An emulated PostHog takes in a product's data …"):
            made = generate(emulator, events=events, persons=persons, days=days)
            capture_live_traffic(emulator)
        console.print(
            f"An emulated PostHog at {emulator.url}: {made['events']:,} events over {days} days, "
            f"{made['persons']:,} persons, and some live traffic from PostHog's own SDK."
        )
        pipeline = dlt.pipeline(
            "posthog_demo",
            pipelines_dir=working_dir,
            destination=dlt.destinations.duckdb(str(database)),
            dataset_name=DATASET,
            progress=RichProgress(console),
        )
        drop_dataset(pipeline)
        first = sync(pipeline, emulator)
        first_rows = count_rows(pipeline)
        print_costs(console, "First sync: everything", first, first_rows, first_rows)
        capture_more(emulator)
        second = sync(pipeline, emulator)
        second_rows = count_rows(pipeline)
        new_rows = {name: second_rows[name] - first_rows[name] for name in second_rows}
        title = f"Second sync: {NEW_EVENTS} new events and {LATE_EVENTS} late ones, up to three weeks old"
        print_costs(console, title, second, second_rows, new_rows)
    console.print(QUICK_START.format(database=database), highlight=False, soft_wrap=True)


def check_installed() -> None:
    """Raises SettingsError when the demo's own packages are missing."""
    missing = [name for name in DEMO_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"The demo needs {', '.join(missing)}. Install them: pip install 'posthog-source[demo]'."
        )


@contextmanager
def running_emulator() -> Iterator[Emulator]:
    """An emulated PostHog on a free loopback port; it ends with this process, however that ends."""
    command = [sys.executable, "-m", "posthog_emulator", "--stop-with-stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603
        try:
            ready = json.loads(process.stdout.readline() if process.stdout else b"")
            yield Emulator(**ready)
        finally:
            process.terminate()


def generate(emulator: Emulator, *, events: int, persons: int, days: int) -> Mapping[str, int]:
    """Fills the project with a seeded product's data that ends an hour ago."""
    end = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    body = {"seed": 1, "events": events, "persons": persons, "days": days, "end": end.isoformat()}
    made: Mapping[str, int] = emulator.control("POST", f"projects/{emulator.project_id}/generate", body)
    return made


def capture_live_traffic(emulator: Emulator) -> None:
    """A few visitors arrive, browse, and sign up, through PostHog's own SDK."""
    with _sdk(emulator) as sdk:
        at = datetime.now(UTC) - timedelta(minutes=50)
        for i in range(20):
            anonymous, known = f"demo-anonymous-{i}", f"demo-user-{i}@example.com"
            sdk.capture("$pageview", distinct_id=anonymous, timestamp=at, properties={"path": "/"})
            sdk.alias(anonymous, known, timestamp=at)
            sdk.capture(
                "signed up", distinct_id=known, timestamp=at, properties={"$set": {"plan": "free", "n": i}}
            )


def capture_more(emulator: Emulator) -> None:
    """Between two syncs: new events, and events whose clients were offline for up to three weeks."""
    with _sdk(emulator) as sdk:
        now = datetime.now(UTC)
        for i in range(NEW_EVENTS):
            at = now - timedelta(minutes=10, milliseconds=i)
            sdk.capture("new", distinct_id=f"demo-user-{i % 20}@example.com", timestamp=at)
        for i in range(LATE_EVENTS):
            at = now - timedelta(days=21 * (i + 1) / LATE_EVENTS)
            sdk.capture("late", distinct_id=f"demo-user-{i % 20}@example.com", timestamp=at)


def drop_dataset(pipeline: dlt.Pipeline) -> None:
    """Starts afresh: the dataset of that name goes, the rest of the database stays."""
    with pipeline.destination_client() as client:
        if client.is_storage_initialized():
            client.drop_storage()


def sync(pipeline: dlt.Pipeline, emulator: Emulator) -> dict[str, TableCost]:
    """One sync as in production, and what it cost by table."""
    emulator.control("DELETE", f"projects/{emulator.project_id}/requests")
    started = time.monotonic()
    source = posthog_source(
        project_id=emulator.project_id,
        api_key=emulator.api_key,
        host=emulator.url,
        events=EventsConfig(late_arrival_every_s=0),  # the demo's second sync stands for the next day's
    )
    pipeline.run(source)
    seconds = time.monotonic() - started
    requests = emulator.control("GET", f"projects/{emulator.project_id}/requests")
    metrics = _custom_metrics(pipeline)
    costs = {table.name: _cost(table, requests, metrics.get(table.name, {})) for table in SHOWN}
    others = [one for one in requests if not any(_is_about(one, table) for table in SHOWN)]
    costs[OTHERS] = TableCost(
        bytes_exported=0, requests=len(others), bytes_read=0, seconds=sum(one["seconds"] for one in others)
    )
    costs["all"] = TableCost(
        bytes_exported=sum(cost.bytes_exported for cost in costs.values()),
        requests=len(requests),
        bytes_read=sum(cost.bytes_read for cost in costs.values()),
        seconds=seconds,
    )
    return costs


def count_rows(pipeline: dlt.Pipeline) -> dict[str, int]:
    """Rows in the warehouse by table, those of definitions together."""
    rows = {}
    with pipeline.sql_client() as client:
        for table in TABLES:
            name = client.make_qualified_table_name(table.name)
            ((rows[table.name],),) = client.execute_sql(f"SELECT count(*) FROM {name}") or [(0,)]
    others = sum(rows.pop(table.name) for table in DEFINITIONS)
    return rows | {OTHERS: others, "all": sum(rows.values()) + others}


def print_costs(
    console: Console,
    title: str,
    costs: Mapping[str, TableCost],
    rows: Mapping[str, int],
    new_rows: Mapping[str, int],
) -> None:
    """The summary of one sync."""
    table = RichTable(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.caption = CAPTION
    table.caption_justify = "left"
    table.add_column("table", no_wrap=True)
    for heading in ("rows", "new rows", "seconds", "requests", "read/out"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, cost in costs.items():
        is_measured = cost.bytes_exported and cost.bytes_read
        table.add_row(
            name,
            f"{rows[name]:,}",
            f"{new_rows[name]:+,}",
            f"{cost.seconds:.1f}",
            str(cost.requests),
            f"{cost.bytes_read / cost.bytes_exported:.2f}" if is_measured else "",
            end_section=name == OTHERS,
        )
    console.print(table, "")


@contextmanager
def _sdk(emulator: Emulator) -> Iterator[Any]:
    from posthog import Posthog  # the demo extra's: the rest of the package does without

    sdk = Posthog(emulator.project_token, host=emulator.url, disable_geoip=True)
    try:
        yield sdk
    finally:
        sdk.shutdown()


def _cost(table: Table, requests: list[Mapping[str, Any]], metrics: Mapping[str, int]) -> TableCost:
    mine = [request for request in requests if _is_about(request, table)]
    return TableCost(
        bytes_exported=metrics.get("bytes", 0),
        requests=len(mine),
        bytes_read=sum(request.get("read_bytes") or 0 for request in mine),
        seconds=sum(request["seconds"] for request in mine),
    )


def _is_about(request: Mapping[str, Any], table: Table) -> bool:
    if isinstance(table, RestTable):
        return f"/{table.path}" in f"{request['path'].rstrip('/')}/"
    return f"{request.get('name') or ''} ".startswith(f"posthog_source {table.name} ")


def _custom_metrics(pipeline: dlt.Pipeline) -> dict[str, Mapping[str, int]]:
    found: dict[str, Mapping[str, int]] = {}
    for step in pipeline.last_trace.steps if pipeline.last_trace else ():
        if step.step != "extract" or step.step_info is None:
            continue
        for load in step.step_info.metrics.values():
            for part in load:
                for name, metrics in part["resource_metrics"].items():  # type: ignore[typeddict-item]
                    found[name] = metrics.custom_metrics or {}
    return found
