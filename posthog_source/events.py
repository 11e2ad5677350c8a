"""The events resource: which windows a run reads, in which commits, what arrived late, and what is replaced.

Not here: pages (`pagination`), what was read before (`ledger`), how dlt is told (`destination`).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.compute as pc
from dlt.sources import DltResource

from posthog_source.catalog import events_table
from posthog_source.client import Client
from posthog_source.config import EventsSettings, Settings, WriteMode, explain_change
from posthog_source.destination import NOTHING, Target, build_resource, claim_state, metered
from posthog_source.errors import SettingsError
from posthog_source.ledger import Backlog, Chunk, Ledger
from posthog_source.pagination import Reader
from posthog_source.query import Late
from posthog_source.sweeps import LateLook, remember_late
from posthog_source.windows import (
    EPOCH,
    FULLEST,
    Count,
    Window,
    clip,
    join,
    pack_days,
    touches,
    windows_of_days,
)

CHUNK_ROWS = 1_000_000
"""Rows whose counts by day and name are held in memory at once."""

NAMED_DAYS = 31
"""A window as long is counted by day and name at once: a question less than by day first, and a moderate
answer even for a project of a thousand names."""

MAX_LATE_ROWS = 1_000
"""Late events replaced one by one. More are replaced by whole days: their uuids would have to stand in
the merge's SQL, which dlt keeps in the stored schema."""

ARRIVAL_OVERLAP = timedelta(hours=6)
"""PostHog sets created_at before a row can be seen, so arrivals are looked for again this far back."""

EMPTY_INTERVAL = (
    "events: the scheduler's interval begins and ends at {}, so there is nothing to read. Airflow 3 gives "
    "such ones for '@daily': schedule with CronDataIntervalTimetable, or set "
    "AIRFLOW__SCHEDULER__CREATE_CRON_DATA_INTERVALS=True."
)

CHOICE = "choice"
"""Key of the state: the rows and columns chosen when events were last synced."""

logger = logging.getLogger("posthog_source")


@dataclass(frozen=True)
class LateArrivals:
    """Events that happened before a sync's window and arrived since the last look.

    Attributes:
        window: Where they were looked for.
        rows: They themselves, when they are few.
        days: Windows to read again whole, when they are many.
        is_first: Whether the window is a first read's own, after a sync that found nothing to read: people
            may have been read then, and who came late since is among its events.
    """

    window: Window
    rows: tuple[pa.Table, ...] = ()
    days: tuple[Window, ...] = ()
    is_first: bool = False

    def as_look(self) -> LateLook:
        """For the tables of people: who did it."""
        names = [name for page in self.rows for name in pc.unique(page.column("distinct_id")).to_pylist()]
        return LateLook((self.window,) if self.is_first else self.days, tuple(sorted(set(names))))

    @property
    def row_count(self) -> int:
        """How many are replaced one by one."""
        return sum(page.num_rows for page in self.rows)


def utc_now() -> datetime:
    """The present, by this machine's clock."""
    return datetime.now(UTC)


def build_events(
    client: Client, settings: Settings, config: EventsSettings, *, clock: Callable[[], datetime] = utc_now
) -> DltResource:
    """Events as a dlt resource, incremental by windows of time.

    With `settings.rows_per_commit`, each evaluation reads one commit's worth and says in the metric
    `rows_left` how much it has left for the next.
    """
    stream = _Stream(client, settings, config, clock)

    def events(
        cursor: dlt.sources.incremental[datetime] = dlt.sources.incremental(  # noqa: B008
            "timestamp", initial_value=settings.start or EPOCH, end_value=settings.end
        ),
    ) -> Iterator[Any]:
        yield from stream.iter_commit(cursor)

    return build_resource(stream.table, events)


class _Stream:
    """Events of one source, commit by commit; keeps the plan of what is left between its commits."""

    def __init__(
        self, client: Client, settings: Settings, config: EventsSettings, clock: Callable[[], datetime]
    ) -> None:
        self.table = events_table(config)
        self._client = client
        self._settings = settings
        self._config = config
        self._clock = clock
        self._backlog = Backlog()

    def iter_commit(self, cursor: dlt.sources.incremental[datetime]) -> Iterator[Any]:
        """What the next commit loads: all that there is, or `rows_per_commit`."""
        with metered(self._client, self._settings) as client:
            yield from self._iter_metered(client, cursor)

    def _iter_metered(self, client: Client, cursor: dlt.sources.incremental[datetime]) -> Iterator[Any]:
        target = Target.current(self._settings)
        write_mode = target.write_mode(self._config)
        reader = Reader.of(
            client, self.table, self._settings, self._config, may_repeat=write_mode == "window"
        )
        start = cursor.start_value or EPOCH
        if cursor.end_value == start:
            raise SettingsError(EMPTY_INTERVAL.format(start.isoformat()))
        cursor.advance(start)  # PostHog applies the range; dlt is not to filter again
        if cursor.end_value and start == EPOCH:
            start = min(reader.fetch_first_instant() or cursor.end_value, cursor.end_value)
        backfill = Window(start, cursor.end_value) if cursor.end_value else None
        state = claim_state(self._settings)
        ledger = Ledger(state, cursor=start, backfill=backfill)
        late = None
        if self._backlog.position != ledger.position:
            reader.check_condition()
            if backfill is None and (change := explain_change(state.get(CHOICE), self._config.choice())):
                logger.warning("%s", change)
            can_replace = write_mode != "append"
            planner = _Planner(reader, ledger, self._settings, self._config, self._clock(), can_replace)
            is_new = start == cursor.initial_value and ledger.unfinished is None
            self._backlog, late = planner.plan(backfill, is_new=is_new)
        self._backlog.position = None  # until what is taken off it is read
        chunks = self._take(reader, can_cut=target.tells_case)
        yield from self._load(target, write_mode, reader, chunks, late)
        # Only now: a generator that is closed early has not read its chunks.
        for chunk in chunks:
            ledger.record(chunk)
        if late and (late.rows or late.days or late.is_first):
            remember_late(dlt.current.source_state(), late.as_look())
        if backfill is None:
            state[CHOICE] = self._config.choice()
            ledger.remember(self._backlog)
            cursor.advance(ledger.cursor)
        self._backlog.position = ledger.position

    def _take(self, reader: Reader, *, can_cut: bool) -> list[Chunk]:
        """The next commit's chunks, off the backlog; empty ones go along with the one before."""
        limit, chunks = self._settings.rows_per_commit, self._backlog.chunks
        is_whole = can_cut and bool(chunks) and chunks[0].part is None
        if is_whole and (chunks[0].first_event or chunks[0].rows > (limit or float("inf")) * FULLEST):
            chunks.extendleft(reversed(_cut(reader, chunks.popleft(), limit)))
        taken = [chunks.popleft()] if chunks else []
        while chunks and (limit is None or not chunks[0].rows):
            taken.append(chunks.popleft())
        return taken

    def _load(
        self,
        target: Target,
        write_mode: WriteMode,
        reader: Reader,
        chunks: list[Chunk],
        late: LateArrivals | None,
    ) -> Iterator[Any]:
        """The chunks' rows, after those late ones that are replaced one by one."""
        received = [{name.replace("\0", "\ufffd") for name in chunk.event_names or ()} for chunk in chunks]

        def disposition() -> Any:
            scope = _scope(target, self._settings.project_id, chunks, received, late)
            return target.disposition(write_mode, scope)

        metrics = {
            "windows": len(chunks),
            "rows_left": self._backlog.rows,
            "late_rows": late.row_count if late else 0,
        }
        target.show("windows", total=len(chunks))
        pages = chain(
            late.rows if late else (),
            *(
                _logged(reader, target, chunk.window, _iter_chunk(reader, chunk, names))
                for chunk, names in zip(chunks, received, strict=True)
            ),
        )
        rows = sum(chunk.rows for chunk in chunks) + metrics["late_rows"]
        yield from target.load(
            reader,
            pages,
            disposition,
            rows=rows,
            json_columns=self._config.json_columns,
            metrics=metrics,
        )


@dataclass(frozen=True)
class _Planner:
    """Decides what a run reads."""

    reader: Reader
    ledger: Ledger
    settings: Settings
    config: EventsSettings
    now: datetime
    can_replace: bool

    def plan(self, backfill: Window | None, *, is_new: bool) -> tuple[Backlog, LateArrivals | None]:
        """The chunks of a whole run, and the late events that its first commit replaces one by one."""
        unfinished = self._count_unfinished()
        if backfill:
            is_resumable = self.settings.rows_per_commit is not None
            windows = self.ledger.left_of(backfill) if is_resumable else [backfill]
            return self._backlog(unfinished if is_resumable else [], windows), None
        first_start = self.settings.start or EPOCH
        if first_start > self.now:
            raise SettingsError(
                f"start_date {first_start.isoformat()} lies in the future. Set an earlier one."
            )
        begins_later = self.ledger.start is not None and first_start < self.ledger.start
        if begins_later:
            self._start_again()
            self.ledger.cursor, unfinished = first_start, []
        window = self._next_window(unfinished, reads_all=is_new or begins_later)
        if window is None:
            return Backlog(looked_at=self.now if is_new else None), None
        logger.info("events: %s to %s", window.start.isoformat(), window.end.isoformat())
        late = None
        if is_new and self.ledger.looked_at:
            days = timedelta(days=self.config.late_arrival_days)
            late = LateArrivals(Window(max(window.start, window.end - days), window.end), is_first=True)
        elif self.can_replace and not is_new and not begins_later:
            late = self._fetch_late(window)
        beside = [*(late.days if late else ()), *self._future(window)]
        backlog = self._backlog(unfinished, [window], beside=beside)
        backlog.start = first_start
        backlog.looked_at = self.now if late or is_new else None
        return backlog, late

    def _count_unfinished(self) -> list[Chunk]:
        chunk = self.ledger.unfinished
        if chunk is None:
            return []
        return [replace(chunk, rows=sum(self.reader.fetch_day_counts(chunk.window).values()))]

    def _next_window(self, unfinished: list[Chunk], *, reads_all: bool) -> Window | None:
        """A sync's own window, after a day that an earlier run has not finished."""
        end = (self.now - timedelta(seconds=self.config.lag_s)).replace(microsecond=0)
        first_start = self.settings.start or EPOCH
        if unfinished:
            start = unfinished[0].window.end
            if self.can_replace:  # what came meanwhile for names already read
                start = max(first_start, start - timedelta(seconds=self.config.lookback_s))
        elif reads_all:
            start = first_start
        elif self.can_replace:
            start = max(first_start, self.ledger.cursor - timedelta(seconds=self.config.lookback_s))
        else:
            start = self.ledger.cursor
        if start == EPOCH:
            first_at = self.reader.fetch_first_instant()
            if first_at is None:
                return None
            logger.info("events: the project's first event is of %s", first_at.isoformat())
            start = first_at
        return Window(start, max(start, end)) if start < end or unfinished else None

    def _future(self, window: Window) -> list[Window]:
        """Days to come, of which clients whose clocks are fast have sent events; read again each time."""
        end = self.now + timedelta(days=self.config.future_days)
        return [Window(window.end, end)] if self.config.future_days and self.can_replace else []

    def _start_again(self) -> None:
        """Reads everything from an earlier start_date on, where the load sorts out what is there already."""
        if not self.can_replace:
            raise SettingsError(
                "start_date was moved back, and write_mode append would double what is loaded. Load the "
                "earlier events once with start_date and end_date, and set start_date as it was."
            )
        logger.warning("events: start_date was moved back; reading again from there.")

    def _fetch_late(self, window: Window) -> LateArrivals | None:
        """Looks for late events when it is time to; None when it is not."""
        looked_at = self.ledger.looked_at
        if looked_at and self.now - looked_at < timedelta(seconds=self.config.late_arrival_every_s):
            return None
        first_start = self.settings.start or EPOCH
        oldest = window.start - timedelta(days=self.config.late_arrival_days)
        before = Window(min(window.start, max(first_start, oldest)), window.start)
        late = Late((looked_at or before.start) - ARRIVAL_OVERLAP, self.config.late_by_s)
        counts = self.reader.fetch_day_counts(before, late) if before.start < before.end else {}
        rows = sum(counts.values())
        logger.info("events: %d arrived late since %s, on %d days", rows, late.since.isoformat(), len(counts))
        if rows > MAX_LATE_ROWS:
            return LateArrivals(before, days=tuple(clip(day, before) for day in windows_of_days(counts)))
        pages = self.reader.iter_pages(self.reader.plan_among(late, rows=rows, window=before)) if rows else ()
        return LateArrivals(before, rows=tuple(pages))

    def _backlog(
        self, unfinished: list[Chunk], windows: Iterable[Window], *, beside: Iterable[Window] = ()
    ) -> Backlog:
        chunks = [*self._chunks(beside, is_main=False), *unfinished, *self._chunks(windows, is_main=True)]
        return Backlog(chunks=deque(chunks))

    def _chunks(self, windows: Iterable[Window], *, is_main: bool) -> Iterator[Chunk]:
        for window in windows:
            if window.start == window.end:
                continue
            names = self._fetch_names(window)
            if names is None:
                days = self.reader.fetch_day_counts(window)
            else:
                days = {day: sum(count.rows for count in counts) for day, counts in names.items()}
            for part, rows in pack_days(days, window, rows=self.settings.rows_per_commit or CHUNK_ROWS):
                yield Chunk(part, rows, is_main, counts=_counts_of(part, names))

    def _fetch_names(self, window: Window) -> dict[date, tuple[Count, ...]] | None:
        """Rows by day and name, where that may be one question."""
        is_short = window.end - window.start <= timedelta(days=NAMED_DAYS)
        return self.reader.fetch_day_labels(window) if is_short else None


def _counts_of(window: Window, names: dict[date, tuple[Count, ...]] | None) -> tuple[Count, ...] | None:
    """What was counted of a window of whole days, ascending."""
    if names is None:
        return None
    return tuple(count for day in sorted(names) if touches(window, day) for count in names[day])


def _cut(reader: Reader, day: Chunk, rows: int | None) -> list[Chunk]:
    """A day, or what is left of it, in parts of at most `rows` rows that differ in their events' names."""
    start = (day.window.start.date(), day.first_event) if day.first_event else None
    labels = reader.fetch_labels(day.window, day.rows, day.counts, start=start)
    names = {str(part.label[-1]).replace("\0", "\ufffd") for part in labels.parts}
    distinct = {part.label for part in labels.parts}
    if len(names) < len(distinct):  # without NUL, as they are loaded, some are the same
        return [replace(day, first_event=None)]
    return day.cut(labels, rows=rows or labels.rows)


def _iter_chunk(reader: Reader, chunk: Chunk, names: set[str]) -> Iterator[pa.Table]:
    """Its pages, planned when their turn comes; adds the event names that came to `names`."""
    if chunk.part is None:
        for plan in reader.fetch_plans(chunk.window, chunk.rows, chunk.counts):
            yield from reader.iter_pages(plan)
        return
    for page in reader.iter_pages(reader.plan_slice(chunk.window, chunk.part)):
        names.update(pc.unique(page.column("event")).to_pylist())
        yield page


def _logged(reader: Reader, target: Target, window: Window, pages: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The pages of a window; when all have been handed on, it is counted, and a line of the log."""
    began_s, waited_s, rows = time.monotonic(), reader.waited_s, 0
    for page in pages:
        rows += page.num_rows
        yield page
        del page  # not kept while the next one is awaited
    target.show("windows", done=1)
    told = {
        "table": reader.table.name,
        "window_start": window.start.isoformat(),
        "window_end": window.end.isoformat(),
        "rows": rows,
        "seconds": round(time.monotonic() - began_s, 3),
        "waited_s": round(reader.waited_s - waited_s, 3),
    }
    logger.info(
        "%(table)s: %(window_start)s to %(window_end)s: %(rows)d rows in %(seconds).1f s, "
        "%(waited_s).1f s of them waited",
        told,
        extra=told,
    )


def _scope(
    target: Target,
    project_id: int,
    chunks: list[Chunk],
    names: list[set[str]],
    late: LateArrivals | None,
) -> str:
    """SQL condition of the rows that the load replaces: its windows, and late events by uuid.

    All of it lies within one span of time, told first, so that a warehouse can prune.
    """
    if not chunks:
        return NOTHING
    windows = join(chunk.window for chunk in chunks if chunk.part is None)
    parts = [target.in_window("timestamp", window) for window in windows]
    for chunk, found in zip(chunks, names, strict=True):
        if chunk.part is not None and found:
            day = target.in_window("timestamp", chunk.window)
            parts.append(f"({day} AND {target.is_named('event', sorted(found))})")
    if late and late.rows:
        uuids = pa.chunked_array([chunk for page in late.rows for chunk in page.column("uuid").chunks])
        parts.append(target.is_one_of("uuid", pc.unique(uuids).to_pylist()))
    starts = [chunk.window.start for chunk in chunks] + ([late.window.start] if late else [])
    span = target.in_window("timestamp", Window(min(starts), max(chunk.window.end for chunk in chunks)))
    replaced = f" AND ({' OR '.join(parts or [NOTHING])})" if parts != [span] else ""
    return f"{target.is_project(project_id)} AND {span}{replaced}"
