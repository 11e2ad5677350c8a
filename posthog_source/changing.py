"""The resources groups, sessions and session_replays: HogQL tables read by a cursor and merged by key.

The first sync reads everything, in slices of the sort key and, where a run commits in parts, a few of them
a commit. Later ones ask for what has changed since the last began, and replace those rows by key: among
sessions of the last days, and once a day of the last month, since to look is to read. What is deleted in
PostHog leaves no change, and stays. Not here: tables without such a cursor (`people`, `events`), pages
(`pagination`), how dlt is told (`destination`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dlt.sources import DltResource

from posthog_source.client import Client
from posthog_source.config import Settings, TableSettings
from posthog_source.destination import Target, build_resource, claim_state, metered
from posthog_source.pagination import Plan, Reader
from posthog_source.query import Changed
from posthog_source.tables import HogqlTable
from posthog_source.windows import Bound, Slice

UNTIL, LOOKED_AT, START, UNFINISHED = "changed_until", "looked_for_late_changes_at", "start", "unfinished"
"""Keys of the state: up to when changes are loaded, among late rows too; the start_date from which on rows
are; a read that earlier commits have begun."""

LATE_EVERY = timedelta(days=1)
"""How often changes are looked for among old rows."""


def build_changing(
    client: Client,
    settings: Settings,
    table: HogqlTable,
    config: TableSettings,
    *,
    clock: Callable[[], datetime],
) -> DltResource:
    """A table with a cursor as a dlt resource.

    With `settings.rows_per_commit`, each evaluation reads one commit's worth and says in the metric
    `rows_left` how much it has left for the next.
    """
    stream = _Stream(client, settings, table, config, clock)

    def changing() -> Iterator[Any]:
        yield from stream.iter_commit()

    return build_resource(table, changing)


@dataclass(frozen=True)
class Read:
    """What one sync reads, in one commit or several.

    Attributes:
        started_at: Changes from then on belong to the next.
        since: Changes from then on belong to this one; None for all rows there are.
        lower: Where it goes on; None is the table's beginning.
        is_late: Whether it looks among old rows too.
    """

    started_at: datetime
    since: datetime | None = None
    lower: Bound | None = None
    is_late: bool = True

    @property
    def among(self) -> Changed | None:
        """Which rows."""
        return Changed(self.since) if self.since else None


class _Ledger:
    """What has been read of one table, in dlt's state of its resource, which is changed in place."""

    def __init__(self, state: dict[str, Any], table: HogqlTable, settings: Settings) -> None:
        self._state = state
        self._table = table
        self._known_start = datetime.fromisoformat(state[START]) if state.get(START) else None
        # end_date makes a run a backfill of events, and start_date its beginning.
        start = self._known_start if settings.end else settings.start
        self._start = start if table.lookback_days is not None else None

    def next_read(self, now: datetime) -> Read:
        """What is to be read now."""
        if found := self._state.get(UNFINISHED):
            begins_with_day = self._table.sort_key.labels[0].kind == "day"
            return Read(
                datetime.fromisoformat(found["started_at"]),
                datetime.fromisoformat(found["since"]) if found["since"] else None,
                Bound.of_texts(found, begins_with_day=begins_with_day),
                found["is_late"],
            )
        if UNTIL not in self._state or self._starts_earlier():
            return Read(now, lower=self._day(self._start))
        looked_at, until = (datetime.fromisoformat(self._state[key]) for key in (LOOKED_AT, UNTIL))
        is_late = now - looked_at >= LATE_EVERY
        days = self._table.late_lookback_days if is_late else self._table.lookback_days
        since = (looked_at if is_late else until) - timedelta(seconds=self._table.overlap_s)
        if self._table.lookback_days is None or days is None:
            return Read(now, since)
        floor = max(filter(None, (since - timedelta(days=days), self._start)))
        return Read(now, since, self._day(floor), is_late)

    def _starts_earlier(self) -> bool:
        known = self._known_start
        return known is not None and (self._start is None or self._start < known)

    def _day(self, at: datetime | None) -> Bound | None:
        """The place of a day; rows before it are not read."""
        return Bound((at.astimezone(UTC).date(),)) if at else None

    def record(self, read: Read, left: Sequence[Slice]) -> None:
        """That a read has come as far as what is left of it."""
        if left and (lower := left[0].lower):
            self._state[UNFINISHED] = {
                "started_at": read.started_at.isoformat(),
                "since": read.since.isoformat() if read.since else None,
                "is_late": read.is_late,
            } | lower.as_texts()
            return
        self._state.pop(UNFINISHED, None)
        self._state[UNTIL] = read.started_at.isoformat()
        if read.is_late:
            self._state[LOOKED_AT] = read.started_at.isoformat()
        if read.since is None:
            self._state[START] = self._start.isoformat() if self._start else None


class _Stream:
    """One table of one source, commit by commit; keeps the slices of a read between its commits."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        table: HogqlTable,
        config: TableSettings,
        clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._settings = settings
        self._table = table
        self._config = config
        self._clock = clock
        self._left: Plan | None = None
        self._is_complete = not table.is_open

    def iter_commit(self) -> Iterator[Any]:
        """What the next commit loads."""
        with metered(self._client, self._settings) as client:
            target = Target.current(self._settings)
            reader = Reader.of(client, self._table, self._settings, self._config, may_repeat=target.can_merge)
            if not self._is_complete:
                more = reader.fetch_columns()
                reader.table = self._table = replace(self._table, columns=self._table.columns + more)
                self._is_complete = True
            if target.can_merge:
                yield from self._iter_read(target, reader)
            else:
                yield from self._iter_snapshot(target, reader)

    def _iter_snapshot(self, target: Target, reader: Reader) -> Iterator[Any]:
        """All rows, where none can be replaced: adding those that changed would leave them twice."""
        plan = reader.fetch_rest(None)
        project_id = self._settings.project_id
        yield from target.load(
            reader, reader.iter_pages(plan), lambda: target.replace(project_id), rows=plan.rows
        )

    def _iter_read(self, target: Target, reader: Reader) -> Iterator[Any]:
        """One commit of what there is to read."""
        ledger = _Ledger(claim_state(self._settings), self._table, self._settings)
        read = ledger.next_read(self._clock())
        rest = reader.fetch_rest(read.lower, read.among, known=self._left)
        plan, left = rest.take(self._settings.rows_per_commit)
        may_move = self._table.lookback_days is not None  # into another slice, when an earlier event comes
        yield from target.merge(
            reader,
            reader.iter_pages(plan) if plan.rows else (),
            project_id=self._settings.project_id,
            rows=plan.rows,
            metrics={"rows_left": left.rows},
            may_repeat=may_move and len(plan.slices) > 1,
        )
        ledger.record(read, left.slices)
        self._left = left
