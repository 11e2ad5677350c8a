"""The resource cohort_people: who is in which cohort, replaced cohort by cohort.

PostHog calculates a cohort's members as a whole. So they are read when it has done so, and replace those in
the warehouse when all of them have come; until that is known they wait on disk. A cohort of which that
cannot be said keeps the members it had, with a warning, and the others go on. Not here: which cohorts are
due (`cohorts`), pages (`pagination`), how dlt is told (`destination`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from os import SEEK_END
from tempfile import TemporaryFile
from typing import IO, Any

import dlt
import pyarrow as pa
import pyarrow.compute as pc
from dlt.sources import DltResource

from posthog_source.arrow import schema_of, stored_to_table
from posthog_source.catalog import COHORT_HISTORY, COHORT_PEOPLE, COHORTS
from posthog_source.client import Client
from posthog_source.cohorts import (
    COHORTS_AT_ONCE,
    Cohort,
    CohortLedger,
    choose_replaced,
    find_entries,
    find_exits,
    halve_cohorts,
    take_cohorts,
    to_cohorts,
)
from posthog_source.config import PeopleSettings, Settings
from posthog_source.destination import NOTHING, Target, build_resource, claim_state, metered
from posthog_source.errors import (
    ExactnessError,
    LostQueryError,
    QueryRefusedError,
    ServerError,
    SettingsError,
    TooHeavyError,
    UnreadableAnswerError,
)
from posthog_source.pagination import Reader
from posthog_source.query import Keys
from posthog_source.rest import fetch_all
from posthog_source.windows import Count

OF_ITS_OWN = (
    ExactnessError,
    LostQueryError,
    QueryRefusedError,
    ServerError,
    TooHeavyError,
    UnreadableAnswerError,
)
"""What may be the matter with one cohort alone. Keys, quotas, deadlines and silence concern all."""

FAILURES_IN_A_ROW = 3
"""After so many that PostHog's state may explain, it is taken to be down for all."""

COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")

DYNAMIC, STATIC = COHORT_PEOPLE.sources

logger = logging.getLogger("posthog_source")


def build_membership(
    client: Client, settings: Settings, people: PeopleSettings, *, clock: Callable[[], datetime]
) -> DltResource:
    """Members of cohorts as a dlt resource.

    With `settings.rows_per_commit`, each evaluation reads one commit's worth of cohorts and says in the
    metric `rows_left` how much it has left for the next; `cohorts_failed` counts those that keep the
    members they had.
    """
    stream = _Stream(client, settings, people, clock)

    def members() -> Iterator[Any]:
        yield from stream.iter_commit()

    return build_resource(COHORT_PEOPLE, members)


class _Round:
    """What is remembered between the commits of one round.

    Attributes:
        at: When it began.
        counted: Members of each cohort that was due then.
        failed: Cohorts that keep the members they had.
        warnings: Cohorts that people were warned of, and no metric has counted yet.
    """

    def __init__(self, at: datetime) -> None:
        self.at = at
        self.counted: dict[int, int] = {}
        self.failed: set[int] = set()
        self.warnings = 0

    def fail(self, cohort: Cohort, why: object) -> None:
        """The cohort keeps the members it had; people are told."""
        self.failed.add(cohort.id)
        self.warn(cohort, f"keeps the members it had: {why}")

    def warn(self, cohort: Cohort, what: str) -> None:
        """One line about the cohort, which counts as failed."""
        self.warnings += 1
        logger.warning("cohort_people: cohort %d (%s) %s", cohort.id, cohort.name, what)

    def take_warnings(self) -> int:
        """Those since it was last asked."""
        found, self.warnings = self.warnings, 0
        return found


class _Stream:
    """The table of one source, commit by commit."""

    def __init__(
        self, client: Client, settings: Settings, people: PeopleSettings, clock: Callable[[], datetime]
    ) -> None:
        self._client = client
        self._settings = settings
        self._people = people
        self._clock = clock
        self._round: _Round | None = None

    def iter_commit(self) -> Iterator[Any]:
        """What the next commit loads."""
        target = Target.current(self._settings)
        with metered(self._client, self._settings) as client, TemporaryFile() as file:
            reader = Reader.of(
                client, COHORT_PEOPLE, self._settings, self._people, may_repeat=target.can_merge
            )
            if not target.can_merge and self._people.cohort_history:
                raise SettingsError(
                    f"people.cohort_history needs a destination that can replace rows, which "
                    f"{target.destination} cannot. Set it to false under [sources.posthog.people]."
                )
            if target.can_merge:
                yield from self._iter_members(client, reader, target, _Shelf(file))
            else:
                yield from self._iter_snapshot(reader, target)

    def _iter_snapshot(self, reader: Reader, target: Target) -> Iterator[Any]:
        """All members, where none can be replaced."""
        plans = reader.fetch_plans(None)
        yield from target.load(
            reader,
            chain.from_iterable(reader.iter_pages(plan) for plan in plans),
            lambda: target.replace(self._settings.project_id),
            rows=sum(plan.rows for plan in plans),
        )

    def _iter_members(self, client: Client, reader: Reader, target: Target, shelf: _Shelf) -> Iterator[Any]:
        """The members of those cohorts that are due, as many as a commit may hold."""
        keeps_history = self._people.cohort_history
        now, ledger = self._clock(), CohortLedger(claim_state(self._settings), has_history=keeps_history)
        cohorts = self._fetch_cohorts(client)
        round_ = self._join_round(ledger, reader, cohorts, now)
        due = [cohort for number in round_.counted if (cohort := cohorts.get(number))]
        due = [cohort for cohort in due if self._is_due(cohort, ledger, round_)]
        taken, left = take_cohorts(due, round_.counted, rows=self._settings.rows_per_commit)
        read = _read(reader, taken, round_, shelf)
        there = self._fetch_cohorts(client) if read else cohorts
        whole = _unmoved(read, there, round_)
        gone = ledger.known - there.keys()
        scope = self._scope(target, ledger, {cohort.id for cohort in whole} | gone, there.keys())
        yield from target.load(
            reader,
            shelf.iter_pages(cohort.id for cohort in whole),
            lambda: target.disposition("window", scope),
            rows=sum(round_.counted[cohort.id] for cohort in whole),
            metrics={
                "cohorts_read": len(whole),
                "cohorts_failed": round_.take_warnings(),
                "rows_left": sum(max(1, round_.counted[cohort.id]) for cohort in left),
            },
        )
        if keeps_history:
            members = shelf.to_table(cohort.id for cohort in whole)
            at = {cohort.id: ledger.changed_at(cohort, now) for cohort in whole}
            where = self._stays(target, at.keys(), there.keys())
            yield from target.merge_beside(COHORT_HISTORY, _find_moves(target, members, where, at, now))
        ledger.record(whole, gone, read_at=now)
        ledger.end_commit(round_.at, is_last=not left)
        self._round = round_ if left else None

    def _fetch_cohorts(self, client: Client) -> dict[int, Cohort]:
        return to_cohorts(fetch_all(client, COHORTS, project_id=self._settings.project_id)[1])

    def _is_due(self, cohort: Cohort, ledger: CohortLedger, round_: _Round) -> bool:
        is_due = ledger.is_due(cohort, round_.at, every_days=self._people.sweep_every_days)
        return is_due and cohort.id not in round_.failed

    def _join_round(
        self, ledger: CohortLedger, reader: Reader, cohorts: Mapping[int, Cohort], now: datetime
    ) -> _Round:
        """The round under way, or a new one, for which the members of all that are due are counted."""
        at = ledger.round_at or now
        if self._round is not None and self._round.at == at:
            return self._round
        round_ = _Round(at)
        due = [cohort for cohort in cohorts.values() if self._is_due(cohort, ledger, round_)]
        for source, theirs in _by_source(due):
            among = _among(theirs) if len(theirs) <= COHORTS_AT_ONCE else None
            counts = {count.label[0]: count.rows for count in reader.fetch_counts(source, among)}
            round_.counted |= {cohort.id: counts.get(cohort.id, 0) for cohort in theirs}
        round_.counted = dict(sorted(round_.counted.items()))
        for cohort in cohorts.values():
            if cohort.errors:
                round_.warn(
                    cohort, f"has its members of {cohort.calculated_at}: PostHog fails to calculate it."
                )
        return round_

    def _scope(
        self, target: Target, ledger: CohortLedger, replaced: Collection[int], there: Collection[int]
    ) -> str:
        """SQL condition of the members that a load replaces."""
        chosen = choose_replaced(replaced, set(there) - set(replaced), is_first=not ledger.known)
        project = target.is_project(self._settings.project_id)
        if not chosen.numbers:
            return project if chosen.are_kept else NOTHING
        condition = target.is_number("cohort_id", chosen.numbers)
        return f"{project} AND {'NOT ' if chosen.are_kept else ''}{condition}"

    def _stays(self, target: Target, read: Collection[int], there: Collection[int]) -> str:
        """SQL condition of stays that may be over: in cohorts read, and in whatever cohort is no more."""
        over = [target.is_number("cohort_id", read)] if read else []
        over.append(f"NOT {target.is_number('cohort_id', there)}" if there else "1 = 1")
        project = target.is_project(self._settings.project_id)
        return f"{project} AND {target.is_null('left_at')} AND ({' OR '.join(over)})"


class _Shelf:
    """Pages that wait on disk until it is known whose have all come: a cohort may be larger than memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: list[int] = []

    def put(self, pages: Iterable[pa.Table]) -> None:
        """Keeps all of those pages, or none where one does not come."""
        place = self._file.seek(0, SEEK_END)
        try:
            with pa.ipc.new_stream(self._file, schema_of(COHORT_PEOPLE), options=COMPRESSED) as sink:
                for page in pages:
                    sink.write_table(page)
        except BaseException:
            self._file.truncate(place)
            raise
        self._places.append(place)

    def iter_pages(self, cohort_ids: Iterable[int]) -> Iterator[pa.Table]:
        """The rows of those cohorts."""
        wanted = pa.array(sorted(cohort_ids), pa.int64())
        for place in self._places:
            self._file.seek(place)
            for batch in pa.ipc.open_stream(self._file):
                page = pa.Table.from_batches([batch])
                yield page.filter(pc.is_in(page.column("cohort_id"), value_set=wanted))

    def to_table(self, cohort_ids: Iterable[int]) -> pa.Table:
        """The rows of those cohorts, in memory."""
        return pa.concat_tables([schema_of(COHORT_PEOPLE).empty_table(), *self.iter_pages(cohort_ids)])


class _Reading:
    """Reads cohorts onto a shelf, and finds out which of several it is that cannot be read."""

    def __init__(self, reader: Reader, round_: _Round, shelf: _Shelf) -> None:
        self._reader = reader
        self._round = round_
        self._shelf = shelf
        self._failed_in_a_row = 0

    def read(self, source: str, cohorts: Sequence[Cohort]) -> None:
        """All of them, or else all but those that fail by themselves.

        Raises:
            PosthogSourceError: It concerns all of them, or may.
        """
        counts = [Count((cohort.id,), self._round.counted[cohort.id]) for cohort in cohorts]
        plan = self._reader.plan_counts(source, counts, _among(cohorts))
        try:
            self._shelf.put(self._reader.iter_pages(plan))
        except OF_ITS_OWN as error:
            if len(cohorts) > 1:
                for half in halve_cohorts(cohorts):
                    self.read(source, half)
                return
            self._failed_in_a_row += 1
            if error.transient and self._failed_in_a_row >= FAILURES_IN_A_ROW:
                raise
            self._round.fail(cohorts[0], error)
        else:
            self._failed_in_a_row = 0


def _read(reader: Reader, cohorts: Iterable[Cohort], round_: _Round, shelf: _Shelf) -> list[Cohort]:
    """Puts the cohorts' members on the shelf; gives those cohorts of which all have come."""
    reading, sound = _Reading(reader, round_, shelf), list[Cohort]()
    for cohort in cohorts:
        if trouble := cohort.trouble(round_.counted[cohort.id]):
            round_.fail(cohort, trouble)
        else:
            sound.append(cohort)
    for source, theirs in _by_source(cohort for cohort in sound if round_.counted[cohort.id]):
        for first in range(0, len(theirs), COHORTS_AT_ONCE):
            reading.read(source, theirs[first : first + COHORTS_AT_ONCE])
    return [cohort for cohort in sound if cohort.id not in round_.failed]


def _unmoved(read: Iterable[Cohort], there: Mapping[int, Cohort], round_: _Round) -> list[Cohort]:
    """Those of which PostHog says after reading what it said before: pages are of one calculation."""
    whole: list[Cohort] = []
    for cohort in read:
        now = there.get(cohort.id)
        if now is not None and now.mark == cohort.mark:
            whole.append(cohort)
        elif now is not None:
            round_.fail(cohort, "PostHog calculated it while it was read. The next run reads it again.")
    return whole


def _find_moves(
    target: Target, members: pa.Table, where: str, at: Mapping[int, datetime], now: datetime
) -> Iterator[pa.Table]:
    """What the history says otherwise than the members do: entries, and exits."""
    names = [column.name for column in COHORT_HISTORY.columns]
    stored = target.iter_stored(COHORT_HISTORY, names, where)
    known = [stored_to_table(rows, COHORT_HISTORY) for rows in stored]
    staying = pa.concat_tables([schema_of(COHORT_HISTORY).empty_table(), *known])
    moves = find_entries(members, staying, at), find_exits(members, staying, at, now)
    dlt.current.resource_metrics().update({"entered": moves[0].num_rows, "left": moves[1].num_rows})
    yield from moves


def _by_source(cohorts: Iterable[Cohort]) -> list[tuple[str, list[Cohort]]]:
    """The cohorts by the HogQL table that has their members."""
    sides: dict[str, list[Cohort]] = {DYNAMIC: [], STATIC: []}
    for cohort in cohorts:
        sides[STATIC if cohort.is_static else DYNAMIC].append(cohort)
    return [(source, theirs) for source, theirs in sides.items() if theirs]


def _among(cohorts: Iterable[Cohort]) -> Keys:
    return Keys("cohort_id", tuple(cohort.id for cohort in cohorts))
