"""run_sync and run_backfill: one `pipeline.run` for each commit of bounded size, and a report of it all.

A stop, wanted or not, costs at most the open commit: the next run goes on after the last one. Not here:
what a commit reads (`events`, `resources`), settings (`source`).
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import dlt
from dlt.common import json
from dlt.common.schema import Schema
from dlt.sources import DltSource

from posthog_source.catalog import TABLES
from posthog_source.config import parse_instant
from posthog_source.destination import can_merge
from posthog_source.errors import InterruptedRunError, SettingsError, find_cause, iter_causes
from posthog_source.pipeline import beside, database_file, require_whole
from posthog_source.prefetch import ordered_prefetch
from posthog_source.progress import shared_progress
from posthog_source.report import Budget, Kind, RunReport, Status
from posthog_source.source import posthog_source
from posthog_source.tracing import Value, span
from posthog_source.windows import Window, cut_days

ROWS_PER_COMMIT = 500_000
"""Below 200,000 the fixed costs of a commit show, above 1,000,000 nothing is won (dlt.md 0 and 2.2), and a
stop costs a commit."""

RUNS_TABLE = "_posthog_runs"

LOGGED = ("rows", "rows_left", "waited_s", "requests", "retries", "received_bytes")
"""Metrics whose sums over a commit's tables are logged."""

RANGES_PER_WORKER = 4
"""Ranges of a parallel backfill: more than workers, since busy months are not evenly spread."""

logger = logging.getLogger("posthog_source")

_loading = threading.Lock()
"""One load at a time in a process: loads into one dataset share dlt's staging tables."""


def run_sync(
    pipeline: dlt.Pipeline,
    source: Callable[..., DltSource] = posthog_source,
    *,
    tables: Sequence[str] = (),
    rows_per_commit: int = ROWS_PER_COMMIT,
    budget: Budget | None = None,
    **settings: Any,
) -> RunReport:
    """Brings the warehouse up to now, in commits of bounded size.

    Args:
        pipeline: Where to; its working directory may be new each time.
        source: `posthog_source`, or a clone of it.
        tables: Which, as `tables` of the source; all by default.
        rows_per_commit: Events in one load, at most; a day may have a tenth more, one event is not cut.
        budget: When to stop early, at the end of a commit.
        settings: Arguments of the source.

    Raises:
        SettingsError: A setting cannot be right; nothing was sent.
        InterruptedRunError: Ctrl-C or SIGTERM; what was committed stays.
        dlt.pipeline.exceptions.PipelineStepFailed: See `find_cause`.
    """
    require_whole(database_file(pipeline))
    pipeline.activate()  # settings may stand below its name
    chosen = {"tables": list(tables)} if tables else {}
    run = _Run("sync", pipeline, source(**settings | chosen | _committing(rows_per_commit, budget)))
    with run.reported(), _stoppable():
        run.commit_all(budget or Budget())
    return run.report


def run_backfill(
    pipeline: dlt.Pipeline,
    start: object,
    end: object,
    source: Callable[..., DltSource] = posthog_source,
    *,
    parallel: int = 1,
    rows_per_commit: int = ROWS_PER_COMMIT,
    budget: Budget | None = None,
    **settings: Any,
) -> RunReport:
    """Reads the events of `[start, end)` again, whatever a sync has read.

    A pipeline of its own beside the given one does it, with its own state and staging tables, so that a
    sync may run meanwhile and its cursor is left alone. Its progress is kept: started again with the same
    bounds, it goes on; once it is done, the same bounds are read anew.

    Args:
        pipeline: Where to.
        start: ISO text or datetime; naive means UTC.
        end: The same; not itself included.
        source: `posthog_source`, or a clone of it.
        parallel: How many ranges of the window are read at once. PostHog allows a team three queries at
            once, whatever their number, so that more helps only while the warehouse is loading.
        rows_per_commit: As `run_sync`.
        budget: As `run_sync`; of each range.
        settings: Arguments of the source.

    Raises:
        SettingsError: `start` is not before `end`, or another setting; nothing was sent.
        InterruptedRunError: As `run_sync`.
        dlt.pipeline.exceptions.PipelineStepFailed: See `find_cause`.
    """
    window = parse_window(start, end)
    require_whole(database_file(pipeline))
    if parallel < 1:
        raise SettingsError(f"parallel is {parallel}. Let at least 1 range be read at once.")

    def make(part: Window) -> DltSource:
        pipeline.activate()  # settings may stand below its name, not below those of the others here
        days = {"start_date": part.start, "end_date": part.end}
        return source(**settings | days | _committing(rows_per_commit, budget)).with_resources("events")

    whole = make(window)
    run = _Run("backfill", beside(pipeline, "backfill"), whole)
    try:
        with run.reported(), _stoppable():
            if parallel == 1:
                run.commit_all(budget or Budget())
            else:
                _commit_ranges(run, window, make, parallel, budget or Budget())
        _drop_staging(run.pipeline)
    finally:
        pipeline.activate()  # dlt's current one is the one made last
    return run.report


def parse_window(start: object, end: object) -> Window:
    """A backfill's bounds.

    Raises:
        SettingsError: They are none.
    """
    first, last = parse_instant(start, "start"), parse_instant(end, "end")
    if first is None or last is None or first >= last:
        raise SettingsError(f"A backfill goes from a start to a later end, not from {first} to {last}.")
    return Window(first, last)


class _Run:
    """A run under way, and its report so far."""

    def __init__(
        self,
        kind: Kind,
        pipeline: dlt.Pipeline,
        source: DltSource,
        is_stopped: threading.Event | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.source = source
        self._is_stopped = is_stopped or threading.Event()
        self.report = RunReport(
            run_id=str(uuid.uuid4()),
            kind=kind,
            pipeline=pipeline.pipeline_name,
            started_at=datetime.now(UTC),
        )

    def commit_all(self, budget: Budget) -> None:
        """Commits until nothing is left to read or the budget is spent."""
        _recover(self.pipeline)
        if self.report.kind == "backfill":
            _learn_tables(self.pipeline, self.source)
        for names in _phases(self.source.selected_resources):
            left = names
            while left:
                if self.report.commits and budget.is_spent(self.report):
                    self.report = replace(self.report, status="budget_spent")
                    return
                began_s = time.monotonic()
                found = _commit(self.pipeline, _only(self.source, left), self._is_stopped)
                self.report = self.report.with_commit(found)
                self._log(found, seconds=time.monotonic() - began_s)
                left = [name for name in left if found.get(name, {}).get("rows_left")]

    def _log(self, found: Mapping[str, Mapping[str, float]], *, seconds: float) -> None:
        """A line of the log about the last commit, of which `found` are the metrics."""
        sums = {name: sum(each.get(name, 0) for each in found.values()) for name in LOGGED}
        told = {
            "run_id": self.report.run_id,
            "kind": self.report.kind,
            "pipeline": self.report.pipeline,
            "commit": self.report.commits,
            "seconds": round(seconds, 3),
            **{name: round(value, 3) for name, value in sums.items()},
        }
        logger.info(
            "%(kind)s: commit %(commit)d: %(rows)d rows in %(seconds).1f s, %(waited_s).1f s of them waited, "
            "%(requests)d requests, %(rows_left)d events left",
            told,
            extra=told,
        )

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Writes the report into the destination, however the run ends."""
        with span(f"posthog_source.{self.report.kind}", self._attributes("run_id", "pipeline")) as opened:
            try:
                yield
            except BaseException as error:
                is_stopped = _is_stop(error)
                said = str(find_cause(error) or error).splitlines() or [type(error).__name__]
                self._finish("stopped" if is_stopped else "failed", said[0])
                if is_stopped:
                    raise InterruptedRunError(
                        f"Stopped after {self.report.commits} commits with {self.report.rows} rows, which "
                        "stay. Run the same again to go on."
                    ) from None
                raise
            else:
                self._finish(self.report.status, None)
            finally:
                opened.tell(self._attributes("status", "commits", "rows", "requests", "waited_s"))

    def _attributes(self, *names: str) -> dict[str, Value]:
        """What a span tells of the run."""
        return {f"posthog_source.run.{name}": getattr(self.report, name) for name in names}

    def _finish(self, status: Status, error: str | None) -> None:
        self.report = replace(self.report, status=status, error=error, finished_at=datetime.now(UTC))
        row = dlt.resource([self.report.as_table()], name=RUNS_TABLE, write_disposition="append")
        try:
            if not self.pipeline.has_pending_data:  # else the run would load that instead
                _commit(self.pipeline, DltSource(self.source.schema, self.source.section, [row]))
        except Exception:
            if error is None:
                raise
            logger.debug("The report of the failed run could not be written.", exc_info=True)


class _Done:
    """Numbers of the ranges of a parallel backfill that are done, in the state of its pipeline."""

    def __init__(self, run: _Run, key: str) -> None:
        self._run = run
        self._key = key
        self._lock = threading.Lock()
        self.numbers: set[int] = set()
        _recover(run.pipeline)
        self._change(lambda state: self.numbers.update(state.get(key, ())))

    def add(self, number: int) -> None:
        """One more."""
        with self._lock:
            self.numbers.add(number)
            self._change(lambda state: state.update({self._key: sorted(self.numbers)}))

    def clear(self) -> None:
        """All are done; the same backfill, asked for again, reads again."""
        self._change(lambda state: state.pop(self._key, None))

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        def ranges() -> Iterator[Any]:
            change(dlt.current.resource_state())
            yield from ()

        source = self._run.source
        _commit(self._run.pipeline, DltSource(source.schema, source.section, [dlt.resource(ranges)]))


def _commit_ranges(
    run: _Run, window: Window, make: Callable[[Window], DltSource], parallel: int, budget: Budget
) -> None:
    """Reads ranges of the window at once, each by a pipeline of its own, and remembers which are done."""
    done = _Done(run, f"{window.start.isoformat()}/{window.end.isoformat()}/{parallel}")
    ranges = dict(enumerate(cut_days(window, parts=parallel * RANGES_PER_WORKER), 1))
    left = [number for number in ranges if number not in done.numbers]
    sources = {number: make(ranges[number]) for number in left}
    pipelines: dict[int, dlt.Pipeline] = {}
    is_stopped = threading.Event()
    errors: list[BaseException] = []

    def commit(number: int) -> RunReport:
        source = _stopping(sources[number], is_stopped)
        part = _Run("backfill", pipelines[number], source, is_stopped)
        try:
            part.commit_all(budget)
        except BaseException as error:
            errors.append(error)
            is_stopped.set()
            raise
        _drop_staging(part.pipeline)
        if part.report.status == "done":
            done.add(number)
        return part.report

    with _shared_progress_of(run.pipeline):
        # Before the threads start: dlt empties a pipeline's schema for a moment when it commits; `done` does.
        pipelines |= {number: beside(run.pipeline, f"range_{number}") for number in left}
        try:
            for _, report in ordered_prefetch(commit, left, depth=parallel, cancel=is_stopped.set):
                run.report = run.report.joined(report)
        except BaseException as error:
            if error not in errors:
                raise
            raise errors[0]  # noqa: B904 - it has stopped the others, and has a cause of its own
    if len(done.numbers) == len(ranges):
        done.clear()
    else:
        run.report = replace(run.report, status="budget_spent")


def _stopping(source: DltSource, is_stopped: threading.Event) -> DltSource:
    """The source, which ends with the page at hand once that is set: threads cannot be ended."""

    def pass_on(page: Any) -> Any:
        if is_stopped.is_set():
            raise InterruptedRunError("Stopped while reading; the next run reads it again.")
        return page

    for resource in source.resources.values():
        resource.add_map(pass_on)
    return source


@contextmanager
def _shared_progress_of(pipeline: dlt.Pipeline) -> Iterator[None]:
    """A pipeline, and those made beside it meanwhile, may run at once."""
    own = pipeline.collector
    with shared_progress(own) as shared:
        pipeline.collector = shared
        try:
            yield
        finally:
            pipeline.collector = own


def _only(source: DltSource, names: Sequence[str]) -> DltSource:
    """The source less its other selected tables, so that it does not look as if somebody chose these."""
    others = set(source.selected_resources) - set(names)
    made = source.with_resources(*names)
    kept = [resource for name, resource in made.resources.items() if name not in others]
    return DltSource(made.schema, made.section, kept)


def _phases(names: Iterable[str]) -> list[list[str]]:
    """What is committed before what: people after the events, whose late arrivals tell of them."""
    people = {table.name for table in TABLES if table.disposition == "sweep"}
    return [[name for name in names if name not in people], [name for name in names if name in people]]


def _committing(rows_per_commit: int, budget: Budget | None) -> dict[str, Any]:
    """The source's settings that commits need, and a budget of bytes."""
    needs_meter = budget is not None and budget.max_read_bytes is not None
    return {"rows_per_commit": rows_per_commit} | ({"meter_reads": True} if needs_meter else {})


def _recover(pipeline: dlt.Pipeline) -> None:
    """Learns from the destination what is committed; what a killed run has left behind is read again.

    dlt would load it, but a job that was killed after its copy into staging copies it there again, and a
    package killed on its way into the load folder blocks all that follow (dlt 1.31).
    """
    with _loading:
        if pipeline.has_pending_data and pipeline.config.restore_from_destination:
            pipeline.drop()
        pipeline.run()


def _learn_tables(pipeline: dlt.Pipeline, source: DltSource) -> None:
    """Lets a source know what others have loaded: what it stores is all that is known of their tables then.

    dlt keeps one newest schema by a source's name, whichever pipeline stored it (dlt 1.31).
    """
    client: Any = pipeline.destination_client()
    with _loading, client:
        found = client.get_stored_schema(source.schema.name) if client.is_storage_initialized() else None
    if found is not None:
        for table in Schema.from_stored_schema(json.loads(found.schema)).data_tables():
            source.schema.update_table(table)


def _commit(
    pipeline: dlt.Pipeline, source: DltSource, is_stopped: threading.Event | None = None
) -> dict[str, dict[str, float]]:
    """One load of what the source has now; the metrics of its tables."""
    extracted = pipeline.extract(source)
    pipeline.normalize()
    with _loading:
        if is_stopped and is_stopped.is_set():
            raise InterruptedRunError("Stopped before the load; the next run reads it again.")
        pipeline.load()
    parts = [part["resource_metrics"] for load in extracted.metrics.values() for part in load]
    ours = ((name, found) for part in parts for name, found in part.items() if not name.startswith("_dlt"))
    return {name: _numbers(found.custom_metrics) for name, found in ours}


def _numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Those that count; dlt adds others of its own."""
    return {name: value for name, value in (metrics or {}).items() if isinstance(value, int | float)}


def _drop_staging(pipeline: dlt.Pipeline) -> None:
    """The staging tables of a pipeline that is done, where there are any: plain files have none."""
    if not can_merge(pipeline.destination.capabilities()):
        return
    with _loading, pipeline.sql_client() as client, client.with_staging_dataset():
        if client.has_dataset():
            client.drop_dataset()


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does; only a process's main thread is told of either."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_stop(error: BaseException) -> bool:
    """Whether Ctrl-C or SIGTERM is behind it."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in iter_causes(error))
