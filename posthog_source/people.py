"""The resources persons and person_distinct_ids: all of them now and then, else whom events have touched.

PostHog rewrites people and has no cursor for it (query_api.md 4.2). What it changes, it changes as events
come in: so a sync asks for all distinct ids of the people who did something since the last one, compares them
with what the warehouse holds, and reads the persons whose version has grown. A sweep reads everything, and
finds who is gone. Not here: when to sweep (`sweeps`), pages (`pagination`), how dlt is told (`destination`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.compute as pc
from dlt.sources import DltResource

from posthog_source.arrow import schema_of, stamp, stored_to_table
from posthog_source.catalog import PERSON_DISTINCT_IDS, PERSONS
from posthog_source.client import Client
from posthog_source.config import EventsSettings, PeopleSettings, Settings
from posthog_source.destination import Target, build_resource, claim_state, metered
from posthog_source.pagination import Plan, Reader
from posthog_source.query import Keys, Seen
from posthog_source.sweeps import LateLook, Sweep, SweepLedger, join_late
from posthog_source.tables import Column, HogqlTable
from posthog_source.windows import Window

_NARROW = PERSONS.without({"is_identified", "properties", "last_seen_at"})
VERSIONS = replace(
    _NARROW,
    columns=(*_NARROW.columns, Column("is_deleted", "bool", "Whether the person is gone", is_required=True)),
    keeps_deleted=False,
)
"""Persons without what makes them wide. The dead are told too: else who is missing is counted again."""

PEOPLE_PER_EVENT = 2
"""People in a commit for each event that one may have: they are half as long, and their keys are not kept to
look for copies. 1,000,000 go into DuckDB an eighth faster than in two commits."""

FROM_THE_FUTURE = timedelta(days=1)
"""PostHog hides persons who begin later than so long after now (query_api.md 4.2)."""

ASKED_KEYS = 2_000
"""Ids in one HogQL query: 80 kB of text."""

STORED_KEYS = 1_000
"""Ids in one SQL statement."""

SWEEP_SHARE = 0.2
"""If those who did something own this share of all distinct ids, a full sweep costs little more."""

SHARED_FOR = timedelta(minutes=5)
"""How long the second table may use the answer that the first one got."""

logger = logging.getLogger("posthog_source")


def build_people(
    client: Client,
    settings: Settings,
    *,
    events: EventsSettings,
    people: PeopleSettings,
    clock: Callable[[], datetime],
) -> list[DltResource]:
    """Persons and their distinct ids as dlt resources.

    With `settings.rows_per_commit`, each evaluation reads one commit's worth of a sweep, `PEOPLE_PER_EVENT`
    times as many, and says in the metric `rows_left` how much it has left for the next.
    """
    shared = _Shared(client, settings, events, people, clock)
    streams = (
        _Stream(PERSONS, shared, _iter_changed_persons),
        _Stream(PERSON_DISTINCT_IDS, shared, _iter_changed_distinct_ids),
    )
    return [_build(stream) for stream in streams]


@dataclass(frozen=True)
class SeenPeople:
    """All distinct ids of the people who did something.

    Attributes:
        since: Beginning of the time that was asked for.
        until: Its end.
        late: Late arrivals that were asked for beside it.
        distinct_ids: Rows of person_distinct_ids; None where they are so many that a sweep costs no more.
    """

    since: datetime
    until: datetime
    late: LateLook
    distinct_ids: pa.Table | None


def _build(stream: _Stream) -> DltResource:
    def people() -> Iterator[Any]:
        yield from stream.iter_commit()

    return build_resource(stream.table, people)


class _Shared:
    """What both tables of a source have in common."""

    def __init__(
        self,
        client: Client,
        settings: Settings,
        events: EventsSettings,
        people: PeopleSettings,
        clock: Callable[[], datetime],
    ) -> None:
        self.client = client
        self.settings = settings
        self.events = events
        self.people = people
        self.clock = clock
        self.seen: SeenPeople | None = None


@dataclass(frozen=True)
class _Commit:
    """One commit of one table under way."""

    table: HogqlTable
    shared: _Shared
    client: Client
    target: Target
    now: datetime

    def reader(self, table: HogqlTable, absent: frozenset[str] | None = None) -> Reader:
        """Of one of the tables of people."""
        shared = self.shared
        may_repeat = self.target.can_merge
        return Reader.of(
            self.client, table, shared.settings, shared.people, may_repeat=may_repeat, absent=absent
        )

    def visible_until(self, at: datetime) -> datetime:
        """Up to when PostHog shows all events at that instant."""
        return at - timedelta(seconds=self.shared.events.lag_s)

    def fetch_seen(self, ledger: SweepLedger) -> SeenPeople:
        """Who did something since the last time, asked once for both tables."""
        # Whole minutes, since the two tables were not synced at the very same instant.
        since = ledger.seen_until - timedelta(seconds=self.shared.events.lookback_s)
        since = since.replace(second=0, microsecond=0)
        until = max(since, self.visible_until(self.now))
        late, known = join_late(ledger.late or ()), self.shared.seen
        is_known = known and (known.since, known.late) == (since, late)
        if not known or not is_known or not timedelta() <= until - known.until < SHARED_FOR:
            asked = Seen((Window(since, until), *late.windows), late.distinct_ids)
            found = self._fetch_distinct_ids(asked, ledger.swept_rows)
            self.shared.seen = known = SeenPeople(since, until, late, found)
        return known

    def _fetch_distinct_ids(self, asked: Seen, swept_rows: int) -> pa.Table | None:
        reader = self.reader(PERSON_DISTINCT_IDS)
        most = max(self.shared.people.page_rows, swept_rows * SWEEP_SHARE)
        pages: list[pa.Table] = []
        for page in reader.iter_pages(reader.plan_among(asked, rows=0)):
            pages.append(page)
            if sum(each.num_rows for each in pages) > most:
                return None
        return pa.concat_tables(pages) if pages else schema_of(PERSON_DISTINCT_IDS).empty_table()

    def iter_by_id(
        self, table: HogqlTable, ids: Sequence[str], absent: frozenset[str] = frozenset()
    ) -> Iterator[pa.Table]:
        """Rows of persons by their ids."""
        reader = self.reader(table, absent)
        for part in _parts(ids, ASKED_KEYS):
            yield from reader.iter_pages(reader.plan_among(Keys("id", tuple(part)), rows=len(part)))

    def iter_stored(
        self, table: HogqlTable, names: Sequence[str], keys: Sequence[str]
    ) -> Iterator[Sequence[Any]]:
        """The warehouse's rows by their keys, which the first of those columns holds."""
        project = self.target.is_project(self.shared.settings.project_id)
        for part in _parts(keys, STORED_KEYS):
            where = f"{project} AND {self.target.is_named(names[0], part)}"
            for rows in self.target.iter_stored(table, names, where):
                yield from rows

    def iter_gone(self, where: str) -> Iterator[pa.Table]:
        """The warehouse's rows under a condition that do not say yet that they are gone, saying so."""
        if self.shared.people.deletes == "ignore":
            return
        project = self.target.is_project(self.shared.settings.project_id)
        where = f"{project} AND {self.target.is_null('deleted_at')} AND {where}"
        for rows in self.target.iter_stored(self.table, [c.name for c in self.table.columns], where):
            yield stamp(stored_to_table(rows, self.table), deleted_at=self.now)

    def merge(
        self,
        reader: Reader,
        pages: Iterable[pa.Table],
        *,
        known: Iterable[pa.Table] = (),
        stored_rows: int = 0,
        rows: int = 0,
        rows_left: int = 0,
    ) -> Iterator[Any]:
        """The load of those rows, as `Target.merge` has it."""
        yield from self.target.merge(
            reader,
            pages,
            project_id=self.shared.settings.project_id,
            rows=rows,
            stored_rows=stored_rows,
            known=known,
            deletes=self.shared.people.deletes,
            metrics={"rows_left": rows_left},
        )


class _Stream:
    """One table of one source, commit by commit; keeps the slices of a sweep between its commits.

    Args:
        table: Which.
        shared: With the other one.
        iter_changed: Of the people seen, the table's rows that differ from the warehouse's.
    """

    def __init__(
        self,
        table: HogqlTable,
        shared: _Shared,
        iter_changed: Callable[[_Commit, SweepLedger, pa.Table], Iterator[pa.Table]],
    ) -> None:
        self.table = table
        self._shared = shared
        self._iter_changed = iter_changed
        self._left: Plan | None = None

    def iter_commit(self) -> Iterator[Any]:
        """What the next commit loads."""
        settings, now = self._shared.settings, self._shared.clock()
        with metered(self._shared.client, settings) as client:
            commit = _Commit(self.table, self._shared, client, Target.current(settings), now)
            if not commit.target.can_merge:
                yield from self._iter_snapshot(commit)
                return
            ledger = SweepLedger(claim_state(settings), dlt.current.source_state())
            sweep = ledger.unfinished
            if sweep is None and not ledger.is_due(now, every_days=self._shared.people.sweep_every_days):
                seen = commit.fetch_seen(ledger)
                if seen.distinct_ids is not None:
                    changed = self._iter_changed(commit, ledger, seen.distinct_ids)
                    yield from commit.merge(commit.reader(self.table), changed)
                    ledger.record_seen(seen.until)
                    return
                logger.info("%s: so many did something that all are read.", self.table.name)
            yield from self._iter_sweep(commit, ledger, sweep or Sweep(now))

    def _iter_snapshot(self, commit: _Commit) -> Iterator[Any]:
        """All rows, where none can be replaced."""
        reader = commit.reader(self.table)
        plan = reader.fetch_rest(None)
        yield from commit.target.load(
            reader,
            (stamp(page, synced_at=commit.now) for page in reader.iter_pages(plan)),
            lambda: commit.target.replace(self._shared.settings.project_id),
            rows=plan.rows,
        )

    def _iter_sweep(self, commit: _Commit, ledger: SweepLedger, sweep: Sweep) -> Iterator[Any]:
        """One commit of everything; the last one also tells who is gone, and who changed meanwhile."""
        reader = commit.reader(self.table)
        rest = reader.fetch_rest(sweep.lower, known=self._left)
        most = self._shared.settings.rows_per_commit
        plan, left = rest.take(most and most * PEOPLE_PER_EVENT)
        read = _Read(self.table.page_key[0], keeps=not left.slices)
        yield from commit.merge(
            reader,
            (stamp(page, synced_at=commit.now) for page in read.passing(reader.iter_pages(plan))),
            # A first sweep's earlier commits: they and this one have no row in common.
            stored_rows=sweep.rows,
            known=() if left.slices else self._iter_end(commit, ledger, sweep, read),
            rows=plan.rows,
            rows_left=left.rows,
        )
        seen_until = commit.visible_until(sweep.started_at)
        ledger.record_sweep(sweep, rows=read.rows, left=left.slices, seen_until=seen_until)
        ledger.absent = reader.absent
        self._left = left

    def _iter_end(
        self, commit: _Commit, ledger: SweepLedger, sweep: Sweep, read: _Read
    ) -> Iterator[pa.Table]:
        for page in commit.iter_gone(commit.target.is_before("synced_at", sweep.started_at)):
            yield read.without(page)
        if sweep.lower is not None:
            seen = commit.fetch_seen(ledger)
            if seen.distinct_ids is not None:
                yield from self._iter_changed(commit, ledger, seen.distinct_ids)


class _Read:
    """Rows that pass by: how many, and their keys where they are wanted."""

    def __init__(self, key: str, *, keeps: bool) -> None:
        self.rows = 0
        self._key = key
        self._keeps = keeps
        self._keys: list[pa.Array] = []

    def passing(self, pages: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The same pages."""
        for page in pages:
            self.rows += page.num_rows
            if self._keeps:
                self._keys.extend(page.column(self._key).chunks)
            yield page

    def without(self, page: pa.Table) -> pa.Table:
        """The page less the rows whose keys have passed."""
        keys = pa.concat_arrays(self._keys) if self._keys else pa.array([], pa.string())
        return page.filter(pc.invert(pc.is_in(page.column(self._key), value_set=keys)))


def _iter_changed_distinct_ids(commit: _Commit, _: SweepLedger, found: pa.Table) -> Iterator[pa.Table]:
    """Those that are new, or belong to somebody else than in the warehouse."""
    known = _fetch_owners(commit, found)
    pairs = zip(found.column("distinct_id").to_pylist(), found.column("person_id").to_pylist(), strict=True)
    is_changed = pa.array([known.get(distinct_id) != owner for distinct_id, owner in pairs], pa.bool_())
    yield stamp(found.filter(is_changed), synced_at=commit.now)


def _iter_changed_persons(commit: _Commit, ledger: SweepLedger, found: pa.Table) -> Iterator[pa.Table]:
    """Those whose version has grown; and those who are gone, whose ids are somebody else's now.

    Asked for in the order in which ClickHouse keeps them, so that each of its granules is read once.
    """
    owners = {owner for owner in _fetch_owners(commit, found).values() if owner}
    asked = sorted(owners | set(found.column("person_id").to_pylist()), key=lambda one: one[19:])
    rows = commit.iter_stored(PERSONS, ("id", "version", "deleted_at"), asked)
    stored = {str(row[0]): None if row[2] else int(row[1]) for row in rows}
    living: dict[str, int] = {}
    for page in commit.iter_by_id(VERSIONS, asked):
        shown = page.filter(_is_shown(page, commit.now))
        living |= dict(zip(shown.column("id").to_pylist(), shown.column("version").to_pylist(), strict=True))
    changed = [one for one in asked if one in living and stored.get(one) != living[one]]
    for page in commit.iter_by_id(PERSONS, changed, ledger.absent):
        yield stamp(page, synced_at=commit.now)
    for part in _parts([one for one in stored if one not in living], STORED_KEYS):
        yield from commit.iter_gone(commit.target.is_named("id", part))


def _is_shown(versions: pa.Table, now: datetime) -> pa.Array:
    """Whether PostHog's `persons` has them."""
    begins_later = pc.greater_equal(versions.column("created_at"), pa.scalar(now + FROM_THE_FUTURE))
    return pc.invert(pc.or_(versions.column("is_deleted"), pc.fill_null(begins_later, fill_value=False)))


def _fetch_owners(commit: _Commit, found: pa.Table) -> Mapping[str, str | None]:
    """Whose those distinct ids are in the warehouse; None where they are marked as gone."""
    names = ("distinct_id", "person_id", "deleted_at")
    rows = commit.iter_stored(PERSON_DISTINCT_IDS, names, found.column("distinct_id").to_pylist())
    return {str(row[0]): None if row[2] else str(row[1]) for row in rows}


def _parts(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[first : first + size] for first in range(0, len(keys), size))
