"""The events resource: which windows a sync reads, what arrived late, and what the load replaces.

Not here: pages (`pagination`), how dlt is told (`destination`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.compute as pc
from dlt.sources import DltResource

from posthog_source.catalog import EVENTS, HogqlTable
from posthog_source.client import Client
from posthog_source.config import EventsSettings, Settings
from posthog_source.destination import NOTHING, Target, build_resource
from posthog_source.pagination import Reader
from posthog_source.windows import Window, clip, windows_of_days

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Cursor of a table that was never synced."""

MAX_LATE_ROWS = 1_000
"""Late events replaced one by one. More are replaced by whole days: their uuids would have to stand in
the merge's SQL, which dlt keeps in the stored schema."""

ARRIVAL_OVERLAP = timedelta(hours=1)
"""PostHog sets created_at before a row can be seen, so arrivals are looked for again this far back."""

LOOKED_AT = "looked_for_arrivals_at"
"""Key of the resource's state: when arrivals were last looked for."""

logger = logging.getLogger("posthog_source")


@dataclass(frozen=True)
class LateArrivals:
    """Events that happened before a sync's window and arrived since the last look.

    Attributes:
        window: Where they were looked for.
        rows: They themselves, when they are few.
        days: Windows to read again whole, when they are many.
    """

    window: Window
    rows: tuple[pa.Table, ...] = ()
    days: tuple[Window, ...] = ()


def build_events(client: Client, settings: Settings, config: EventsSettings) -> DltResource:
    """Events as a dlt resource, incremental by windows of time."""
    table = events_table(config)

    def events(
        cursor: dlt.sources.incremental[datetime] = dlt.sources.incremental(  # noqa: B008
            "timestamp", initial_value=settings.start or EPOCH, end_value=settings.end
        ),
    ) -> Iterator[Any]:
        target = Target.current()
        write_mode = target.write_mode(config)
        reader = Reader(
            client,
            table,
            project_id=settings.project_id,
            page_rows=config.page_rows,
            look_ahead=settings.look_ahead,
            may_repeat=write_mode == "window",
        )
        now = datetime.now(UTC)
        window = _next_window(reader, cursor, config, now, is_mergeable=write_mode != "append")
        if window is None:
            yield from target.load(reader, [], target.disposition(write_mode, NOTHING), config.json_columns)
            return
        logger.info("events: %s to %s", window.start.isoformat(), window.end.isoformat())
        late = None
        if cursor.end_value is None and write_mode != "append":
            late = _fetch_late(reader, window, config, now, earliest=settings.start or EPOCH)
        cursor.advance(window.end)
        windows = [*(late.days if late else ()), window]
        yield from target.load(
            reader,
            [plan for each in windows for plan in reader.fetch_plans(each)],
            target.disposition(write_mode, _scope(target, settings.project_id, windows, late)),
            config.json_columns,
            first=late.rows if late else (),
        )

    return build_resource(table, events)


def events_table(config: EventsSettings) -> HogqlTable:
    """The events table as chosen."""
    table = EVENTS if config.person_properties else EVENTS.without({"person_properties"})
    return table.reading({"person_id": "person_id"}) if config.person_id == "current" else table


def _next_window(
    reader: Reader,
    cursor: dlt.sources.incremental[datetime],
    config: EventsSettings,
    now: datetime,
    *,
    is_mergeable: bool,
) -> Window | None:
    """What to read now; None when there is nothing yet."""
    start, end = cursor.start_value or EPOCH, cursor.end_value
    if end is None:
        end = (now - timedelta(seconds=config.lag_s)).replace(microsecond=0)
        if start != cursor.initial_value and is_mergeable:
            start = max(cursor.initial_value or EPOCH, start - timedelta(seconds=config.lookback_s))
    if start == EPOCH:
        first_at = reader.fetch_first_instant()
        if first_at is None:
            return None
        logger.info("events: the project's first event is of %s", first_at.isoformat())
        start = first_at
    return Window(start, end) if start < end else None


def _fetch_late(
    reader: Reader, window: Window, config: EventsSettings, now: datetime, *, earliest: datetime
) -> LateArrivals | None:
    """Looks for late events when it is time to; remembers, with the load, when it looked."""
    state = dlt.current.resource_state()
    looked_at = datetime.fromisoformat(state[LOOKED_AT]) if LOOKED_AT in state else None
    if looked_at is not None and now - looked_at < timedelta(seconds=config.late_arrival_every_s):
        return None
    state[LOOKED_AT] = now.isoformat()
    before = Window(max(earliest, window.start - timedelta(days=config.late_arrival_days)), window.start)
    if looked_at is None or before.start >= before.end:
        return None  # the first sync has read everything
    since = looked_at - ARRIVAL_OVERLAP
    counts = reader.fetch_arrival_counts(before, since=since)
    rows = sum(counts.values())
    logger.info("events: %d arrived late since %s, on %d days", rows, since.isoformat(), len(counts))
    if rows > MAX_LATE_ROWS:
        return LateArrivals(before, days=tuple(clip(day, before) for day in windows_of_days(counts)))
    pages = reader.iter_pages(reader.plan_arrivals(before, since=since, rows=rows)) if rows else ()
    return LateArrivals(before, rows=tuple(pages))


def _scope(target: Target, project_id: int, windows: list[Window], late: LateArrivals | None) -> str:
    """SQL condition of the rows that the load replaces: its windows, and late events by uuid.

    All of it lies within one span of time, told first, so that a warehouse can prune.
    """
    parts = [target.in_window("timestamp", window) for window in windows]
    if late and late.rows:
        uuids = pa.chunked_array([chunk for page in late.rows for chunk in page.column("uuid").chunks])
        parts.append(target.is_one_of("uuid", pc.unique(uuids).to_pylist()))
    start = late.window.start if late else min(window.start for window in windows)
    span = target.in_window("timestamp", Window(start, windows[-1].end))
    replaced = f" AND ({' OR '.join(parts)})" if parts != [span] else ""
    return f"{target.is_project(project_id)} AND {span}{replaced}"
