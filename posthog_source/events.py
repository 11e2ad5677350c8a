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
from posthog_source.destination import NOTHING, Target, build_resource, claim_state
from posthog_source.errors import SettingsError
from posthog_source.pagination import Reader
from posthog_source.query import Late
from posthog_source.windows import Window, clip, windows_of_days

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Cursor of a table that was never synced."""

MAX_LATE_ROWS = 1_000
"""Late events replaced one by one. More are replaced by whole days: their uuids would have to stand in
the merge's SQL, which dlt keeps in the stored schema."""

ARRIVAL_OVERLAP = timedelta(hours=6)
"""PostHog sets created_at before a row can be seen, so arrivals are looked for again this far back."""

VISIBILITY_S = 900
"""How long after created_at a row may be seen and still be read by an ordinary sync's lookback."""

LOOKED_AT, START = "looked_for_arrivals_at", "start"
"""Keys of the resource's state: when arrivals were last looked for, and from when on events were read."""

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
        history = None if cursor.end_value else _History(claim_state(settings), settings, cursor)
        window = _next_window(reader, cursor, config, now, history, is_mergeable=write_mode != "append")
        if window is None:
            yield from target.load(reader, [], target.disposition(write_mode, NOTHING), config.json_columns)
            return
        logger.info("events: %s to %s", window.start.isoformat(), window.end.isoformat())
        late = None
        if history and write_mode != "append":
            late = _fetch_late(reader, window, config, now, history)
        cursor.advance(cursor.start_value or EPOCH)  # PostHog applies the range; dlt is not to filter again
        windows = [*(late.days if late else ()), window]
        yield from target.load(
            reader,
            [plan for each in windows for plan in reader.fetch_plans(each)],
            target.disposition(write_mode, _scope(target, settings.project_id, windows, late)),
            config.json_columns,
            first=late.rows if late else (),
        )
        # Only now: a generator that is closed early has not read its window.
        cursor.advance(window.end)
        if history:
            history.remember(now if late or history.is_new else None)

    return build_resource(table, events)


def events_table(config: EventsSettings) -> HogqlTable:
    """The events table as chosen."""
    table = EVENTS if config.person_properties else EVENTS.without({"person_properties"})
    return table.reading({"person_id": "person_id"}) if config.person_id == "current" else table


class _History:
    """What earlier syncs of this table have read, as kept in the resource's state."""

    def __init__(
        self, state: dict[str, Any], settings: Settings, cursor: dlt.sources.incremental[datetime]
    ) -> None:
        self._state = state
        self.start = settings.start or EPOCH
        self.is_new = cursor.start_value == cursor.initial_value

    @property
    def looked_at(self) -> datetime | None:
        """When arrivals were last looked for."""
        return datetime.fromisoformat(self._state[LOOKED_AT]) if LOOKED_AT in self._state else None

    @property
    def begins_later(self) -> bool:
        """Whether start_date has been moved to before what was ever read."""
        return not self.is_new and self.start < datetime.fromisoformat(
            self._state.get(START, str(self.start))
        )

    def remember(self, looked_at: datetime | None) -> None:
        """What this sync adds."""
        self._state[START] = self.start.isoformat()
        if looked_at is not None:
            self._state[LOOKED_AT] = looked_at.isoformat()


def _next_window(
    reader: Reader,
    cursor: dlt.sources.incremental[datetime],
    config: EventsSettings,
    now: datetime,
    history: _History | None,
    *,
    is_mergeable: bool,
) -> Window | None:
    """What to read now; None when there is nothing yet."""
    start, end = cursor.start_value or EPOCH, cursor.end_value
    if history is not None:
        end = (now - timedelta(seconds=config.lag_s)).replace(microsecond=0)
        if history.start > now:
            raise SettingsError(
                f"start_date {history.start.isoformat()} lies in the future. Set an earlier one."
            )
        if history.begins_later:
            start = _start_again(history, is_mergeable=is_mergeable)
        elif not history.is_new and is_mergeable:
            start = max(history.start, start - timedelta(seconds=config.lookback_s))
    if start == EPOCH:
        first_at = reader.fetch_first_instant()
        if first_at is None:
            return None
        logger.info("events: the project's first event is of %s", first_at.isoformat())
        start = first_at
    return Window(start, end) if end and start < end else None


def _start_again(history: _History, *, is_mergeable: bool) -> datetime:
    """Reads everything from an earlier start_date on, where the load sorts out what is there already."""
    if not is_mergeable:
        raise SettingsError(
            "start_date was moved back, and write_mode append would double what is loaded. Load the earlier "
            "events once with start_date and end_date, and set start_date as it was."
        )
    logger.warning("events: start_date was moved back; reading again from there.")
    return history.start


def _fetch_late(
    reader: Reader, window: Window, config: EventsSettings, now: datetime, history: _History
) -> LateArrivals | None:
    """Looks for late events when it is time to; None when it is not."""
    if history.is_new or history.begins_later:
        return None  # this sync reads everything
    looked_at = history.looked_at
    if looked_at and now - looked_at < timedelta(seconds=config.late_arrival_every_s):
        return None
    before = Window(
        min(window.start, max(history.start, window.start - timedelta(days=config.late_arrival_days))),
        window.start,
    )
    # An event that was visible before lag and lookback had passed was read by an ordinary sync.
    by_s = max(0, int(config.lag_s + config.lookback_s - VISIBILITY_S))
    late = Late((looked_at or before.start) - ARRIVAL_OVERLAP, by_s)
    counts = reader.fetch_arrival_counts(before, late) if before.start < before.end else {}
    rows = sum(counts.values())
    logger.info("events: %d arrived late since %s, on %d days", rows, late.since.isoformat(), len(counts))
    if rows > MAX_LATE_ROWS:
        return LateArrivals(before, days=tuple(clip(day, before) for day in windows_of_days(counts)))
    pages = reader.iter_pages(reader.plan_arrivals(before, late, rows=rows)) if rows else ()
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
