"""Scenario cost: requests, and bytes that ClickHouse reads, which PostHog bills: counted, so once is enough.

Bytes read are ClickHouse's own statistics, as the emulator's journal has them, of every request there was:
plan, counts and whatever else. Bytes exported are those of the answers' columns as Arrow, which the
connector counts (metric `bytes`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
from dlt.sources import DltSource

from benchmarks.bench import END, PAGE_QUERY, Bench
from benchmarks.connectors import DATASET
from benchmarks.job import NO_LIMIT
from benchmarks.naive import Asker, NaiveCost, hourly, open_keyset
from benchmarks.programs import Project
from benchmarks.report import Claim, Result
from posthog_source import EventsConfig
from posthog_source.client import Client
from posthog_source.config import EventsSettings, build_settings
from posthog_source.events import build_events
from posthog_source.report import RunReport
from posthog_source.runs import run_backfill, run_sync

MILLION = 1_000_000
PROPERTIES_BYTES = 1000
SHAPES: Mapping[str, tuple[float, Mapping[str, Any]]] = {
    "dense": (1.0, {"shape": "dense", "days": 1, "event_names": 30}),
    "skewed": (1.0, {"shape": "skewed", "days": 1}),
    "sparse": (0.0913, {"shape": "dense", "days": 1826}),
    "bursty": (1.0, {"shape": "bursty", "days": 30}),
}
"""Projects: how many million events, and the emulator's plan."""

PAGE_ROWS = (25_000, 50_000)
TINY_PAGE_ROWS = (400,)
SAMPLE, TINY_SAMPLE = 8, 2
"""Of the ways by hand: hours of a kind, or pages, that are measured."""

MOST_READ = 1.3
MOST_REQUESTS = 25
"""Per million rows begun, at the larger pages."""

DAY = datetime(2026, 1, 30, tzinfo=UTC)
NEW_SHARE = 0.005
MOST_SYNC_REQUESTS = 4
MOST_SYNC_READ = 1.05


@dataclass(frozen=True)
class Cost:
    """What something cost; `names` are requests and bytes read by the queries' name."""

    rows: int
    requests: int
    read_bytes: int
    exported_bytes: int
    names: Mapping[str, tuple[int, int]]

    @property
    def ratio(self) -> float:
        """Bytes read for each byte exported."""
        return self.read_bytes / self.exported_bytes


def cost(bench: Bench) -> Result:
    """Backfills of four projects, beside two ways to do it by hand; and the hourly sync of a busy day."""
    events = bench.size(MILLION)
    projects = {name: _make(bench, name, events) for name in SHAPES}
    bench.emulator.optimize()
    lines, claims, runs = [], [], dict[str, Any]()
    for name, project in projects.items():
        for rows in TINY_PAGE_ROWS if bench.is_tiny else PAGE_ROWS:
            project.control("PATCH", "", {"settings": {"query_timeout_s": 10}})
            ours = _backfill(project, name, rows)
            asker = _asker(project, rows, sample=TINY_SAMPLE if bench.is_tiny else SAMPLE)
            by_hand = {
                "hourly windows": hourly(asker, *_span(name)),
                "open keyset": open_keyset(asker, ours.rows),
            }
            runs[f"{name}, {rows}"] = {"connector": asdict(ours)} | {
                how: asdict(naive) for how, naive in by_hand.items()
            }
            lines += list(_lines(f"{name}, {rows:,}", ours, by_hand))
            claims += list(_claims(f"{name}, {rows:,}", ours, has_large_pages=rows >= PAGE_ROWS[-1]))
            claims.append(_all_rows(name, project, ours))
    for name, synced in _sync_hourly(bench, events).items():
        runs[name] = asdict(synced.cost) | {"day_bytes": synced.day_bytes}
        lines.append(synced.line(name))
        claims += synced.claims(name)
    return Result(
        "cost",
        f"{events:,} events (sparse: {round(events * SHAPES['sparse'][0]):,}), ~1 kB each, all parts merged "
        "but where it says otherwise. By hand: the connector's columns; where only some requests were "
        "measured, they are scaled to all. read/out: bytes read for each byte exported.",
        ("project, page rows", "how", "requests", "per million rows", "GB read per million rows", "read/out"),
        lines,
        claims,
        runs,
    )


def _make(bench: Bench, name: str, events: int) -> Project:
    millions, plan = SHAPES[name]
    count = max(1, round(events * millions))
    return bench.emulator.project(
        **plan, events=count, persons=max(1, count // 20), end=END, properties_bytes=PROPERTIES_BYTES
    )


def _span(name: str) -> tuple[datetime, datetime]:
    end = datetime.fromisoformat(END)
    return end - timedelta(days=SHAPES[name][1]["days"]), end


def _backfill(project: Project, name: str, page_rows: int) -> Cost:
    start, end = _span(name)
    with _pipeline() as pipeline:
        project.control("DELETE", "requests")
        report = run_backfill(
            pipeline, start, end, events=EventsConfig(page_rows=page_rows), **_access(project)
        )
    return _cost(project, report)


def _asker(project: Project, page_rows: int, *, sample: int) -> Asker:
    """Asks for the columns that the connector has just asked for."""
    pages = [request for request in project.control("GET", "requests") if request.get("name") == PAGE_QUERY]
    select = pages[0]["query"].partition(" WHERE ")[0]
    project.control("PATCH", "", {"settings": {"query_timeout_s": 600}})
    return Asker(project, select, page_rows, sample)


def _lines(label: str, ours: Cost, by_hand: Mapping[str, NaiveCost]) -> Iterator[list[str]]:
    costs = {"**connector**": (float(ours.requests), float(ours.read_bytes))}
    for how, naive in by_hand.items():
        costs[f"{how} ({naive.measured})"] = (naive.requests, naive.read_bytes)
    for how, (requests, read_bytes) in costs.items():
        millions = ours.rows / MILLION
        yield [
            label,
            how,
            f"{requests:,.0f}",
            f"{requests / millions:,.0f}",
            f"{read_bytes / millions / 1e9:,.2f}",
            f"{read_bytes / ours.exported_bytes:,.2f}",
        ]


def _claims(label: str, ours: Cost, *, has_large_pages: bool) -> Iterator[Claim]:
    text = f"{label}: reads at most {MOST_READ} times what it exports"
    yield Claim(text, f"{ours.ratio:.2f}", ours.ratio <= MOST_READ)
    if has_large_pages:
        most = MOST_REQUESTS * -(-ours.rows // MILLION)
        text = f"{label}: at most {MOST_REQUESTS} requests for each million rows begun"
        yield Claim(text, str(ours.requests), ours.requests <= most)


def _all_rows(name: str, project: Project, ours: Cost) -> Claim:
    expected = project.count_rows(*(at.isoformat() for at in _span(name)))
    return Claim(f"{name}: rows are equal", f"{ours.rows:,} of {expected:,}", ours.rows == expected)


@dataclass(frozen=True)
class Synced:
    """What one hourly sync cost, and what the columns of the day so far are worth."""

    cost: Cost
    day_bytes: float

    @property
    def ratio(self) -> float:
        """Bytes read for each byte of the day so far."""
        return self.cost.read_bytes / self.day_bytes

    def line(self, name: str) -> list[str]:
        """Of the table."""
        share = f"{self.ratio:.2f} of the day so far"
        return [
            name,
            "**connector**",
            str(self.cost.requests),
            "",
            f"{self.cost.read_bytes / 1e9:.2f} in all",
            share,
        ]

    def claims(self, name: str) -> list[Claim]:
        """Of requests and bytes read."""
        text = f"{name}: at most {MOST_SYNC_REQUESTS} requests"
        read = f"{name}: reads at most {MOST_SYNC_READ} times the day so far"
        return [
            Claim(text, str(self.cost.requests), self.cost.requests <= MOST_SYNC_REQUESTS),
            Claim(read, f"{self.ratio:.2f}", self.ratio <= MOST_SYNC_READ),
        ]


def _sync_hourly(bench: Bench, events: int) -> dict[str, Synced]:
    """A day until 22:00, and two hours of few events more, each synced at five past.

    The first of them once it has been merged into the day, the second while it lies by itself.
    """
    hour, new = DAY + timedelta(hours=22), max(1, round(events * NEW_SHARE))
    project = bench.emulator.project(
        shape="dense",
        events=round((events - new) * 24 / 22),
        persons=max(1, events // 20),
        days=1,
        end=hour.isoformat(),
        properties_bytes=PROPERTIES_BYTES,
    )
    bench.emulator.optimize()
    synced = {}
    with _pipeline() as pipeline:
        first = _sync(pipeline, project, hour)
        for label in ("merged", "not yet merged"):
            _append(project, hour, new)
            if label == "merged":
                bench.emulator.optimize()
            hour += timedelta(hours=1)
            day_rows = project.count_rows(DAY.isoformat(), hour.isoformat())
            name = f"hourly sync of {new:,} new events in a day of {day_rows:,}, {label}"
            day_bytes = first.exported_bytes / first.rows * day_rows
            synced[name] = Synced(_sync(pipeline, project, hour), day_bytes)
    return synced


def _sync(pipeline: dlt.Pipeline, project: Project, hour: datetime) -> Cost:
    """A sync of events at five past the hour."""

    def source(**settings: Any) -> DltSource:
        built = build_settings(**settings)
        events = build_events(
            Client(built), built, EventsSettings(), clock=lambda: hour + timedelta(minutes=5, seconds=1)
        )
        return DltSource(dlt.Schema("posthog"), "posthog", [events])

    project.control("DELETE", "requests")
    return _cost(project, run_sync(pipeline, source, start_date=DAY, **_access(project)))


def _append(project: Project, hour: datetime, rows: int) -> None:
    """Events of one hour, of the usual size, under a few names."""
    step = timedelta(hours=1) / rows
    at = pa.array([hour + step * i for i in range(rows)], pa.timestamp("us", "UTC"))
    text = '{"plan": "' + "x" * (PROPERTIES_BYTES - 12) + '"}'
    columns = {
        "uuid": [f"{hour:%Y%m%d}-{hour:%H%M}-4000-8000-{i:012x}" for i in range(rows)],
        "event": [("$pageview", "$autocapture", "sign up")[i % 3] for i in range(rows)],
        "distinct_id": [f"new-{i % 100}" for i in range(rows)],
        "timestamp": at,
        "created_at": at,
        "properties": [text] * rows,
    }
    data = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data)
    url = f"/_emulator/projects/{project.id}/rows/events"
    project.emulator.http.post(url, content=sink.getvalue().to_pybytes()).raise_for_status()


def _cost(project: Project, report: RunReport) -> Cost:
    requests = project.control("GET", "requests")
    names: dict[str, tuple[int, int]] = {}
    for request in requests:
        name = request.get("name") or f"{request['method']} {request['path']}"
        count, read = names.get(name, (0, 0))
        names[name] = (count + 1, read + (request.get("read_bytes") or 0))
    metrics = report.tables["events"]
    return Cost(
        rows=int(metrics["rows"]),
        requests=len(requests),
        read_bytes=sum(read for _, read in names.values()),
        exported_bytes=int(metrics["bytes"]),
        names=names,
    )


@contextmanager
def _pipeline() -> Iterator[dlt.Pipeline]:
    """Into a DuckDB file of its own."""
    with tempfile.TemporaryDirectory(prefix="posthog-benchmark-") as folder:
        pipeline = dlt.pipeline(
            "benchmark",
            pipelines_dir=str(Path(folder) / "pipelines"),
            destination=dlt.destinations.duckdb(str(Path(folder) / "cost.duckdb")),
            dataset_name=DATASET,
        )
        yield pipeline


def _access(project: Project) -> dict[str, Any]:
    return {
        "project_id": project.id,
        "api_key": project.api_key,
        "host": project.emulator.url,
        "queries_per_minute": NO_LIMIT,
        "queries_per_hour": NO_LIMIT,
    }
