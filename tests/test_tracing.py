"""tracing: spans of runs, windows and requests lie within each other, also over threads; they tell no key."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from posthog_source import EventsConfig, run_backfill, run_sync
from posthog_source.errors import AuthenticationError, find_cause
from posthog_source.prefetch import ordered_prefetch
from posthog_source.tracing import span, spanned
from tests.conftest import Project, Warehouse, add_events, run_program

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
SMALL_PAGES = {"events": EventsConfig(page_rows=10, where="event != 'a private word'")}


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """Of this process's only provider: OpenTelemetry lets nobody set another."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [one for one in spans.get_finished_spans() if one.name == name]


def parents(spans: InMemorySpanExporter, name: str) -> set[str | None]:
    """Names of what the spans of a name lie within."""
    names = {one.context.span_id: one.name for one in spans.get_finished_spans() if one.context}
    return {names[one.parent.span_id] if one.parent else None for one in named(spans, name)}


def two_days(project: Project) -> None:
    days = [START + n % 2 * DAY + timedelta(seconds=n) for n in range(100)]
    add_events(project, 100, timestamp=days, created_at=[START] * 100)


def test_requests_of_look_ahead_threads_lie_within_their_window_and_that_within_the_run(
    project: Project, warehouse: Warehouse, spans: InMemorySpanExporter
) -> None:
    two_days(project)

    report = run_sync(warehouse.pipeline, tables=["events"], **project.credentials | SMALL_PAGES)

    assert len({one.context.trace_id for one in spans.get_finished_spans() if one.context}) == 1
    assert parents(spans, "posthog_source.sync") == {None}
    assert parents(spans, "posthog_source.window") == {"posthog_source.sync"}
    assert parents(spans, "POST") == {"posthog_source.sync", "posthog_source.window"}  # counts, and pages
    assert len(named(spans, "POST")) == report.requests >= 10


def test_windows_of_a_backfills_parallel_ranges_lie_within_the_run(
    project: Project, warehouse: Warehouse, spans: InMemorySpanExporter
) -> None:
    two_days(project)

    run_backfill(warehouse.pipeline, START, START + 2 * DAY, parallel=2, **project.credentials)

    assert len(named(spans, "posthog_source.window")) == 2
    assert parents(spans, "posthog_source.window") == {"posthog_source.backfill"}
    assert warehouse.query("SELECT count(*) FROM events") == [(100,)]


def test_a_request_is_told_by_the_conventions_for_http_clients(
    project: Project, warehouse: Warehouse, spans: InMemorySpanExporter
) -> None:
    two_days(project)

    run_sync(warehouse.pipeline, tables=["events", "cohorts"], **project.credentials)

    host, _, port = project.server.url.removeprefix("http://").partition(":")
    for method, path in (("POST", "query/"), ("GET", "cohorts/")):
        one = named(spans, method)[-1]
        assert one.kind == trace.SpanKind.CLIENT
        assert {**(one.attributes or {}), "http.response.body.size": 1, "posthog_source.query": ""} == {
            "http.request.method": method,
            "http.response.body.size": 1,
            "http.response.status_code": 200,
            "posthog_source.query": "",
            "server.address": host,
            "server.port": int(port),
            "url.full": f"{project.server.url}/api/projects/{project.id}/{path}",
        }


def test_a_window_and_a_run_tell_their_bounds_and_what_came_of_them(
    project: Project, warehouse: Warehouse, spans: InMemorySpanExporter
) -> None:
    two_days(project)

    report = run_sync(
        warehouse.pipeline, tables=["events"], **project.credentials | {"end_date": START + 2 * DAY}
    )

    (window,), (run,) = named(spans, "posthog_source.window"), named(spans, "posthog_source.sync")
    assert window.attributes == {
        "posthog_source.window.table": "events",
        "posthog_source.window.rows": 100,
        "posthog_source.window.slices": 1,
        "posthog_source.window.start": START.isoformat(),
        "posthog_source.window.end": (START + 2 * DAY).isoformat(),
    }
    assert run.attributes == {
        f"posthog_source.run.{name}": getattr(report, name)
        for name in ("run_id", "pipeline", "status", "commits", "rows", "requests", "waited_s")
    }


def test_faults_are_told_by_their_kind_and_no_span_holds_the_key_or_hogql_or_what_an_error_says(
    project: Project, warehouse: Warehouse, spans: InMemorySpanExporter
) -> None:
    two_days(project)
    project.faults("query", {"kind": "reset"}, {"status": 401})

    with pytest.raises(Exception, match="401") as failure:
        run_sync(warehouse.pipeline, tables=["events"], **project.credentials | SMALL_PAGES)

    assert isinstance(find_cause(failure.value), AuthenticationError)
    failed = [(one.name, (one.attributes or {}).get("error.type")) for one in spans.get_finished_spans()]
    assert failed[:2] == [("POST", "ReadError"), ("POST", "401")]
    assert failed[-1] == ("posthog_source.sync", "PipelineStepFailed")
    assert all(one.status.status_code == trace.StatusCode.ERROR for one in spans.get_finished_spans()[:2])
    told = "".join(one.to_json() for one in spans.get_finished_spans())
    assert not [word for word in (project.api_key, "SELECT", "private", "revoked") if word in told]


def current() -> trace.Span:
    return trace.get_current_span()


def test_what_is_done_with_a_generators_items_lies_outside_of_its_span(spans: InMemorySpanExporter) -> None:
    inside: list[trace.Span] = []

    def numbers() -> Generator[int]:
        for number in range(3):
            inside.append(current())
            yield number

    with span("outer", {}):
        outer = current()
        outside = [current() for _ in spanned("inner", {}, numbers())]

    assert outside == [outer] * 3
    assert len({id(one) for one in inside}) == 1
    assert inside[0] is not outer
    assert parents(spans, "inner") == {"outer"}


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_generator_that_is_left_early_is_closed_and_its_span_ends(
    spans: InMemorySpanExporter, taken: int
) -> None:
    was_open: list[bool] = []

    def numbers() -> Generator[int]:
        try:
            yield from range(3)
        finally:
            was_open.append(current().is_recording())

    items = spanned("inner", {}, numbers())
    for _ in range(taken):
        next(items)
    del items

    assert was_open == [True] * min(taken, 1)
    assert [one.status.status_code for one in named(spans, "inner")] == [trace.StatusCode.UNSET] * min(
        taken, 1
    )


def test_each_thread_of_the_look_ahead_works_within_the_span_of_whom_it_works_for(
    spans: InMemorySpanExporter,
) -> None:
    with span("outer", {}):
        outer = current()
        found = list(ordered_prefetch(lambda _: current(), range(20), depth=4))

    assert [each for _, each in found] == [outer] * 20


def test_importing_the_package_does_not_import_opentelemetry(tmp_path: Path) -> None:
    program = "import sys, posthog_source; print('opentelemetry' in sys.modules)"

    assert run_program("-c", program, cwd=tmp_path).stdout == "False\n"


def test_where_opentelemetry_is_not_installed_a_sync_runs_without_it(
    project: Project, tmp_path: Path
) -> None:
    add_events(project, 3)
    program = (
        "import sys\nsys.modules['opentelemetry'] = None\nimport dlt\nfrom posthog_source import run_sync\n"
        "pipeline = dlt.pipeline('posthog', destination='duckdb', dataset_name='posthog_data')\n"
        "print(run_sync(pipeline, tables=['events']).rows)"
    )

    done = run_program("-c", program, cwd=tmp_path, project=project)

    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
