"""verify: compares the warehouse with PostHog, table by table, and has the days that differ read again.

Both sides add up the same checksums, one query each for all days of events, and only what differs is listed.
Not here: what a difference is (`comparison`), what is compared of a row (`fingerprint`), how either side is
asked (`checksums`, `stored`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import dlt
from dlt.sources import DltSource

from posthog_source.catalog import EVENTS, TABLES, events_table
from posthog_source.changing import START, UNTIL
from posthog_source.checksums import Asked
from posthog_source.client import Client
from posthog_source.comparison import (
    KINDS,
    NAMED_ROWS,
    Checksum,
    Compared,
    Difference,
    Found,
    Marked,
    Verification,
    choose_buckets,
    classify,
    count_buckets,
    events_span,
    find_differing,
    join_moved,
    names_of_day,
    one_sided,
    to_compared,
)
from posthog_source.config import explain_change, parse_instant
from posthog_source.destination import can_merge
from posthog_source.errors import AccessDeniedError, NotFoundError, QuotaSpentError, SettingsError
from posthog_source.events import CHOICE
from posthog_source.fingerprint import Fingerprint, fingerprint_of
from posthog_source.pagination import Reader
from posthog_source.pipeline import destination_of
from posthog_source.resolved import Resolved, name_of, replacing, resolve
from posthog_source.rest import fetch_all, iter_changed
from posthog_source.runs import run_backfill
from posthog_source.source import posthog_source
from posthog_source.stored import Choice, Stored, Warehouse
from posthog_source.sweeps import SEEN_UNTIL
from posthog_source.tables import HogqlTable, RestTable, Table
from posthog_source.windows import Bound, Slice, Window, clip, windows_of_days

logger = logging.getLogger("posthog_source")


def verify(
    pipeline: dlt.Pipeline,
    source: Callable[..., DltSource] = posthog_source,
    *,
    start: object = None,
    end: object = None,
    tables: Sequence[str] = (),
    by_event: bool = False,
    repair: bool = False,
    **settings: Any,
) -> Verification:
    """Says which rows the warehouse lacks, has too many of, or has otherwise than PostHog.

    Of events, those are compared that a sync should have read by now: up to its cursor, and without late
    ones that are not due yet. Days are UTC's. A changed time, name, distinct id or size of the properties is
    noticed, if not everything is; `posthog_source.fingerprint` says what is not. Rows that PostHog has in
    several copies count once. Without `start`, what earlier backfills have loaded from before the syncs'
    beginning is not looked at.

    Of other tables only keys are compared, as PostHog has them now: what is new there since the last sync is
    not missing where the table tells when a row came. Rows marked with `deleted_at` count as gone.

    Args:
        pipeline: One that has loaded the tables. Nothing of it is changed, unless `repair`.
        source: `posthog_source`, or a clone of it.
        start: First instant of events that are compared, ISO text or datetime; naive means UTC.
        end: First instant that is not.
        tables: Which, as `tables` of the source; all that are loaded by default.
        by_event: Tell each day's events apart by name.
        repair: Read the days of events that differ again, as `run_backfill` does, which leaves the cursor of
            syncs alone and replaces just those days; then compare again.
        settings: Arguments of the source.

    Raises:
        SettingsError: A setting cannot be right, nothing is loaded, or the warehouse refuses.
        ApiError, ConnectionFailedError, …: As PostHog answers; see `errors`.
    """
    bounds = _Bounds(parse_instant(start, "start"), parse_instant(end, "end"), by_event=by_event)
    if bounds.start and bounds.end and bounds.start >= bounds.end:
        raise SettingsError(f"start (--from) {bounds.start} is not before end (--to) {bounds.end}.")
    asked = {"tables": list(tables)} if tables else {}
    pipeline.activate()  # settings may stand below its name
    chosen = resolve(source, **settings | asked)
    if repair and not can_merge(destination_of(pipeline).capabilities()):
        raise SettingsError(
            f"{destination_of(pipeline).destination_name} cannot replace rows, so that nothing can be "
            "repaired there. Load the days anew into another dataset, or leave out --repair (repair)."
        )
    warehouse = Warehouse(pipeline, name_of(source))
    with Client(chosen.settings) as client:
        comparison = _Comparison(client, warehouse, chosen, bounds)
        found = comparison.compare(_wanted(warehouse, chosen))
        if not (repair and found.days and found.window):
            return found
        days = windows_of_days(found.days)
        for part in (clip(day, found.window) for day in days):
            events = {"events": replacing(chosen.events)}
            run_backfill(pipeline, part.start, part.end, source, **settings | events)
        span = clip(Window(days[0].start, days[-1].end), found.window)
        again = replace(comparison, bounds=replace(bounds, start=span.start, end=span.end))
        return found.after(again.compare([events_table(chosen.events)]))


@dataclass(frozen=True)
class _Bounds:
    """What a person asks of events."""

    start: datetime | None
    end: datetime | None
    by_event: bool = False


@dataclass(frozen=True)
class _Comparison:
    """One comparison under way."""

    client: Client
    warehouse: Warehouse
    chosen: Resolved
    bounds: _Bounds

    def compare(self, tables: Iterable[Table]) -> Verification:
        """All of those tables."""
        rows: list[Compared] = []
        differences: list[Difference] = []
        window, skipped = None, list[tuple[str, str]]()
        for table in tables:
            logger.info("%s: comparing", table.name)
            if isinstance(table, HogqlTable) and table.time_column:
                window, found, named = self._compare_events(table)
            else:
                try:
                    found, named = self._compare_table(table)
                except (AccessDeniedError, NotFoundError, QuotaSpentError) as error:
                    if table.name in self.chosen.named or not getattr(table, "is_optional", False):
                        raise
                    skipped.append((table.name, str(error)))
                    continue
            rows += found
            differences += named
        return Verification(tuple(rows), tuple(differences), window, skipped=tuple(skipped))

    def _compare_events(self, table: HogqlTable) -> tuple[Window, list[Compared], list[Difference]]:
        state = self.warehouse.state.get(table.name, {})
        self._check_origin(state)
        if change := explain_change(state.get(CHOICE), self.chosen.events.choice()):
            logger.warning("%s", change)
        window, settled = events_span(state, self.chosen.events, start=self.bounds.start, end=self.bounds.end)
        fingerprint = fingerprint_of(table, without=self.warehouse.rewritten(table))
        reader = self._reader(table)
        reader.check_condition()
        sides = _Sides(
            Asked(reader, fingerprint, among=settled, slice_=Slice()),
            self.warehouse.table(table, fingerprint, self.chosen.settings.project_id),
            Choice(window, settled),
        )
        by_name = self.bounds.by_event
        posthog = sides.asked.fetch_days(window, by_name=by_name)
        warehouse = sides.stored.fetch_days(sides.choice, by_name=by_name)
        days = sorted({day for day, _ in find_differing(posthog, warehouse)})
        found = {day: self._look_at_day(sides, day, window, posthog, warehouse) for day in days}
        found = join_moved(found, sides.stored.fetch_times(_moved(found)), window)
        named = [one for day, each in found.items() for one in each.named(table.name, day)]
        return window, to_compared(table.name, posthog, warehouse, found), named

    def _look_at_day(
        self,
        sides: _Sides,
        day: date,
        window: Window,
        posthog: Mapping[tuple[date, str], Checksum],
        warehouse: Mapping[tuple[date, str], Checksum],
    ) -> Found:
        theirs, ours = names_of_day(posthog, day), names_of_day(warehouse, day)
        rows = max(sum(found.rows for found in side.values()) for side in (theirs, ours))
        part = clip(windows_of_days([day])[0], window)
        return one_sided(theirs, ours) or sides.within(part).look(rows)

    def _compare_table(self, table: Table) -> tuple[list[Compared], list[Difference]]:
        """One that has no days."""
        if isinstance(table, HogqlTable):
            posthog, warehouse, found = self._look_into(table)
        else:
            theirs, ours = self._list(table), self._stored(table, Fingerprint(())).fetch_keys()
            found = Found(tuple(classify(theirs, ours, until=self._synced_until(table))))
            posthog, warehouse = len(theirs), len(ours)
        counts = {kind: sum(n for (own, _), n in found.counts.items() if own == kind) for kind in KINDS}
        row = Compared(table.name, None, "", posthog, warehouse, **counts, is_complete=found.is_complete)
        return [row], found.named(table.name, None)

    def _look_into(self, table: HogqlTable) -> tuple[int, int, Found]:
        fingerprint = fingerprint_of(table)
        slice_, choice = self._begun(table)
        sides = _Sides(
            Asked(self._reader(table), fingerprint, among=None, slice_=slice_),
            self._stored(table, fingerprint),
            choice,
        )
        posthog = sides.asked.fetch_buckets(None, buckets=1).get(0, Checksum())
        warehouse = sides.stored.fetch_buckets(choice, buckets=1).get(0, Checksum())
        if posthog == warehouse:
            return posthog.rows, warehouse.rows, Found()
        found = sides.look(
            max(posthog.rows, warehouse.rows), arrival=_arrival(table), until=self._synced_until(table)
        )
        return posthog.rows, warehouse.rows, found

    def _list(self, table: Table) -> list[Marked]:
        """The keys of a REST list, and when their rows were made."""
        if not isinstance(table, RestTable):
            raise TypeError(f"{table.name} is no table that PostHog is asked for")
        project_id = self.chosen.settings.project_id
        if table.cursor:
            pages = [p for p, _ in iter_changed(self.client, table, project_id=project_id, since=None)]
        else:
            pages = [fetch_all(self.client, table, project_id=project_id)[1]]
        arrival = _arrival(table)
        asked = [*table.primary_key[1:], *filter(None, (arrival, table.deleted_flag))]
        rows = {
            tuple(str(row[name]) for name in table.primary_key[1:]): row
            for page in pages
            for row in page.select(asked).to_pylist()
        }
        living = {key: row for key, row in rows.items() if not row.get(table.deleted_flag or "")}
        return [Marked(key, at=row[arrival] if arrival else None) for key, row in living.items()]

    def _reader(self, table: HogqlTable) -> Reader:
        return Reader.of(self.client, table, self.chosen.settings, self.chosen.events, may_repeat=True)

    def _stored(self, table: Table, fingerprint: Fingerprint) -> Stored:
        return self.warehouse.table(table, fingerprint, self.chosen.settings.project_id)

    def _begun(self, table: HogqlTable) -> tuple[Slice, Choice]:
        """From when on a table's rows are loaded, on both sides."""
        begun = self.warehouse.state.get(table.name, {}).get(START)
        if not begun:
            return Slice(), Choice()
        day = datetime.fromisoformat(begun).astimezone(UTC).date()
        label = table.sort_key.labels[0]
        column = next(c.name for c in table.columns if c.source == label.field)
        return Slice(Bound((day,))), Choice(since=(column, datetime.combine(day, time(), UTC)))

    def _synced_until(self, table: Table) -> datetime | None:
        """Rows that came before should be loaded; what PostHog shows late may still be missing then."""
        state = self.warehouse.state.get(table.name, {})
        known = state.get(UNTIL) or state.get(SEEN_UNTIL)
        at = datetime.fromisoformat(known) if known else self.warehouse.last_load_at
        return at - timedelta(seconds=getattr(table, "overlap_s", 0.0)) if at else None

    def _check_origin(self, state: Mapping[str, Any]) -> None:
        origin = self.chosen.settings.origin
        if state.get("origin", origin) != origin:
            raise SettingsError(
                f"This pipeline has synced {state['origin']}, and cannot be compared with {origin}. Set "
                "project_id and host under [sources.posthog] to what it syncs."
            )


@dataclass(frozen=True)
class _Sides:
    """Both sides of a table, or of a day of it."""

    asked: Asked
    stored: Stored
    choice: Choice

    def within(self, window: Window) -> _Sides:
        """Those of a part of the time."""
        return replace(self, choice=replace(self.choice, window=window))

    def look(
        self,
        rows: int,
        *,
        arrival: str | None = None,
        until: datetime | None = None,
    ) -> Found:
        """What differs: by buckets where there are many rows, then row by row."""
        buckets = count_buckets(rows)
        chosen, is_complete = [0], True
        if buckets > 1:
            theirs = self.asked.fetch_buckets(self.choice.window, buckets=buckets)
            ours = self.stored.fetch_buckets(self.choice, buckets=buckets)
            chosen, is_complete = choose_buckets(sorted(find_differing(theirs, ours)), theirs, ours)
        if not chosen:
            return Found()  # it was equal when it was looked at again
        return Found(
            tuple(
                classify(
                    self.asked.fetch_rows(
                        self.choice.window, buckets=buckets, chosen=chosen, arrival=arrival
                    ),
                    self.stored.fetch_rows(self.choice, buckets=buckets, chosen=chosen),
                    until=until,
                )
            ),
            is_complete=is_complete,
        )


def _wanted(warehouse: Warehouse, chosen: Resolved) -> list[Table]:
    """The tables of the catalogue that are asked for and loaded."""
    wanted = [table for table in TABLES if table.name in chosen.wanted]
    loaded = [table for table in wanted if warehouse.has(table)]
    absent = [table.name for table in wanted if table not in loaded and table.name in chosen.named]
    if absent or not loaded:
        names = ", ".join(absent) or "Nothing"
        raise SettingsError(
            f"{names} is not loaded there yet, or cannot be compared. Sync it first: run_sync."
        )
    return [events_table(chosen.events) if table is EVENTS else table for table in loaded]


def _moved(days: Mapping[date, Found]) -> list[str]:
    """Events that may be on another day, unless they are too many to have moved there one by one."""
    rows = [(kind, row) for found in days.values() for kind, row in found.rows]
    uuids = [row.key[0] for kind, row in rows if kind in ("missing", "extra")]
    return uuids if len(uuids) <= NAMED_ROWS else []


def _arrival(table: Table) -> str | None:
    """The column that says when a row came or last changed, where there is one."""
    cursor = table.cursor if isinstance(table, HogqlTable) else None
    names = {column.name for column in table.columns if column.kind == "timestamp"}
    return cursor or ("created_at" if "created_at" in names else None)
