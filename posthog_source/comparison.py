"""What differs between PostHog and the warehouse, and how: plain values and the decisions about them. Pure.

Not here: how either side is asked (`checksums`, `stored`), in which order (`verification`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, TypeVar

from posthog_source.config import VISIBILITY_S, EventsSettings
from posthog_source.errors import SettingsError
from posthog_source.query import Settled
from posthog_source.windows import EPOCH, Window

BUCKET_ROWS = 100
"""Rows of a bucket, about: what one differing row makes both sides list."""

LISTED_ROWS = 10_000
"""Rows of a day that are listed at most. PostHog answers with 50,000, and buckets vary."""

NAMED_ROWS = 1_000
"""Differences of a day that are told by key; more are counted."""


Kind = Literal["missing", "extra", "duplicate", "changed"]
"""missing: in PostHog alone; extra: in the warehouse alone, such as what PostHog has deleted since;
duplicate: a row more of a key; changed: the same key, another content."""

KINDS: tuple[Kind, ...] = ("missing", "extra", "duplicate", "changed")

Key = TypeVar("Key")


@dataclass(frozen=True)
class Checksum:
    """Rows, and the sum of their fingerprints."""

    rows: int = 0
    total: int = 0

    def __add__(self, other: Checksum) -> Checksum:
        return Checksum(self.rows + other.rows, self.total + other.total)


@dataclass(frozen=True)
class Marked:
    """A row as far as it is compared.

    Attributes:
        key: Its key's cells as text.
        fingerprint: See `fingerprint`.
        name: The event's name; empty for other tables.
        at: Of PostHog's rows, when it came or last changed, where that is known.
    """

    key: tuple[str, ...]
    fingerprint: int = 0
    name: str = ""
    at: datetime | None = None


@dataclass(frozen=True)
class Difference:
    """One row that is not the same on both sides.

    Attributes:
        table: Its table.
        kind: In which way.
        key: Its key; several columns with a slash between.
        day: Its UTC day, for events: PostHog's, if it is there.
        event: The event's name, likewise.
    """

    table: str
    kind: Kind
    key: str
    day: date | None = None
    event: str = ""


@dataclass(frozen=True)
class Compared:
    """A table, or a day of events, or one event of a day.

    Attributes:
        table: The table.
        day: UTC day, for events.
        event: Name of the event, where that was asked for; else empty.
        posthog_rows: Rows of different keys that PostHog has.
        warehouse_rows: Rows that the warehouse has, without those marked as deleted.
        missing: Of keys that are only in PostHog.
        extra: Of keys that are only in the warehouse.
        duplicate: Further rows of a key.
        changed: Of the same key and another content; of another time, on the day that PostHog has.
        moved: Rows that are changed so, on the day that the warehouse has.
        is_complete: Whether all rows that may differ were looked at. A day with very many is looked at in
            part: it has at least as many differences as are counted.
    """

    table: str
    day: date | None
    event: str
    posthog_rows: int
    warehouse_rows: int
    missing: int = 0
    extra: int = 0
    duplicate: int = 0
    changed: int = 0
    moved: int = 0
    is_complete: bool = True

    @property
    def differences(self) -> int:
        """Rows that differ, as far as they were looked at."""
        return self.missing + self.extra + self.duplicate + self.changed

    @property
    def is_equal(self) -> bool:
        """Whether both sides have the same."""
        return self.differences == 0 and self.moved == 0 and self.is_complete


@dataclass(frozen=True)
class Verification:
    """What was compared, and what differs.

    Attributes:
        rows: For events a row a day, or a day and event; for other tables a row.
        differences: The rows that differ, by their keys; of a day or table the first thousand.
        window: The times of events that were compared; None where they were not.
        repaired: Days of events that were read again.
        skipped: Tables that could not be compared, and why.
    """

    rows: tuple[Compared, ...]
    differences: tuple[Difference, ...] = ()
    window: Window | None = None
    repaired: tuple[date, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether both sides have the same."""
        return all(row.is_equal for row in self.rows)

    @property
    def days(self) -> tuple[date, ...]:
        """Days of events that differ, ascending."""
        return tuple(sorted({row.day for row in self.rows if row.day and not row.is_equal}))

    def after(self, again: Verification) -> Verification:
        """This, with what was found when its differing days had been read again."""
        days = set(self.days)
        kept = [row for row in self.rows if row.day not in days]
        new = [row for row in again.rows if row.day in days]
        left = [one for one in self.differences if one.day not in days]
        return replace(
            self,
            rows=tuple(sorted([*kept, *new], key=_place)),
            differences=(*left, *(one for one in again.differences if one.day in days)),
            repaired=self.days,
        )

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "is_equal": self.is_equal,
            "window": self.window.as_texts() if self.window else None,
            "rows": [_plain(row) | {"is_equal": row.is_equal} for row in self.rows],
            "differences": [_plain(one) for one in self.differences],
            "repaired": [day.isoformat() for day in self.repaired],
            "skipped": dict(self.skipped),
        }


@dataclass(frozen=True)
class Found:
    """What differs in one table or day.

    Attributes:
        rows: The rows that differ, and how.
        more: Further ones by kind and event, which nobody has listed.
        moved: Rows, by event, that PostHog has on another day.
        is_complete: As of `Compared`.
    """

    rows: tuple[tuple[Kind, Marked], ...] = ()
    more: Counter[tuple[Kind, str]] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    is_complete: bool = True

    @property
    def counts(self) -> Counter[tuple[Kind, str]]:
        """By kind and event."""
        return self.more + Counter((kind, row.name) for kind, row in self.rows)

    def named(self, table: str, day: date | None) -> list[Difference]:
        """The first of them, for people."""
        return [
            Difference(table, kind, "/".join(row.key), day, row.name) for kind, row in self.rows[:NAMED_ROWS]
        ]


def events_span(
    state: Mapping[str, Any],
    config: EventsSettings,
    *,
    start: datetime | None,
    end: datetime | None,
    can_replace: bool = True,
) -> tuple[Window, Settled | None]:
    """The times of events that a sync has read, and which of the rows in them.

    Rows that PostHog got too late for the last sync, or for its last look for late ones, are not due yet.

    Args:
        state: Of the resource events, as dlt keeps it.
        config: Settings of events.
        start: As asked for; None for the beginning of what was synced.
        end: As asked for; None for its end.
        can_replace: Whether syncs look for late rows: where rows are only added, no sync will bring them.

    Raises:
        SettingsError: None of that has been read, or it is not known what has.
    """
    texts = state.get("incremental", {}).get("timestamp", {})
    cursor = _instant(texts.get("last_value"))
    if cursor is None or cursor == EPOCH:
        if end is None:
            raise SettingsError(
                "events: this pipeline has synced none, so that it is not known up to when they are loaded. "
                "Say which: --from and --to (start, end), as in the backfill."
            )
        return _window(start or EPOCH, end), None
    window = _window(
        start or _instant(state.get("start")) or EPOCH, min(end or cursor, cursor), synced=cursor
    )
    looked_at = _instant(state.get("looked_for_arrivals_at")) or EPOCH
    visible = timedelta(seconds=VISIBILITY_S)
    # An unfinished first sync has read rows as of when it looked; a later one, as of its end.
    last = max(cursor + timedelta(seconds=config.lag_s), looked_at)
    return window, Settled(last - visible, (looked_at if can_replace else last) - visible, config.late_by_s)


def find_differing(left: Mapping[Key, Checksum], right: Mapping[Key, Checksum]) -> list[Key]:
    """Where two sides have not the same rows or sums; what one side lacks has none."""
    keys = dict.fromkeys((*left, *right))
    return [key for key in keys if left.get(key, Checksum()) != right.get(key, Checksum())]


def names_of_day(checksums: Mapping[tuple[date, str], Checksum], day: date) -> dict[str, Checksum]:
    """A day's rows by the event's name."""
    return {name: found for (on, name), found in checksums.items() if on == day}


def one_sided(posthog: Mapping[str, Checksum], warehouse: Mapping[str, Checksum]) -> Found | None:
    """What differs where all rows of a day or table do, and are too many to be listed; else None.

    Args:
        posthog: Its rows by the event's name, or under an empty one.
        warehouse: The same.
    """
    there = posthog or warehouse
    if (posthog and warehouse) or sum(found.rows for found in there.values()) <= LISTED_ROWS:
        return None
    kind: Kind = "missing" if posthog else "extra"
    return Found(more=Counter({(kind, name): found.rows for name, found in there.items()}))


def count_buckets(rows: int) -> int:
    """Into how many buckets that many rows are dealt out: few enough for one answer."""
    return 1 if rows <= LISTED_ROWS else min(LISTED_ROWS, -(-rows // BUCKET_ROWS))


def choose_buckets(
    differing: Iterable[int], left: Mapping[int, Checksum], right: Mapping[int, Checksum]
) -> tuple[list[int], bool]:
    """Buckets whose rows are listed, and whether that is all that differ."""
    chosen: list[int] = []
    rows = 0
    for bucket in differing:
        rows += max(left.get(bucket, Checksum()).rows, right.get(bucket, Checksum()).rows)
        if chosen and rows > LISTED_ROWS:
            return chosen, False
        chosen.append(bucket)
    return chosen, True


def classify(
    posthog: Iterable[Marked], warehouse: Iterable[Marked], *, until: datetime | None = None
) -> list[tuple[Kind, Marked]]:
    """How rows differ.

    Of copies of one key that PostHog has with different contents, the warehouse may hold any.

    Args:
        posthog: PostHog's rows.
        warehouse: The warehouse's, of the same buckets.
        until: Rows that PostHog has since then are not missing; None knows of no such time.
    """
    theirs, ours = _by_key(posthog), _by_key(warehouse)
    found: list[tuple[Kind, Marked]] = []
    for key, rows in theirs.items():
        stored = ours.pop(key, [])
        found += [("duplicate", rows[0])] * (len(stored) - 1)
        if not stored:
            is_due = until is None or any(row.at is None or row.at < until for row in rows)
            found += [("missing", rows[0])] if is_due else []
        elif not {row.fingerprint for row in rows} & {row.fingerprint for row in stored}:
            found.append(("changed", rows[0]))
    for rows in ours.values():
        found.append(("extra", rows[0]))
        found += [("duplicate", rows[0])] * (len(rows) - 1)
    return sorted(found, key=lambda one: (KINDS.index(one[0]), one[1].key))


def join_moved(
    days: Mapping[date, Found], elsewhere: Mapping[str, Collection[datetime]], window: Window
) -> dict[date, Found]:
    """What is left when events that are on several days, or on another than in PostHog, are told apart.

    A client that sends an event again at another time makes a copy, which PostHog keeps; of both, the
    warehouse needs one. An event that is missing on one day and extra on another has changed its time.

    Args:
        days: What differs, by day.
        elsewhere: Times at which the warehouse has the events that are missing or extra.
        window: The times that are compared.
    """
    missing = _days_of("missing", days)
    extra = _days_of("extra", days)
    joined: dict[date, Found] = {}
    for day, found in days.items():
        rows: list[tuple[Kind, Marked]] = []
        moved: Counter[str] = Counter()
        for kind, row in found.rows:
            (uuid,) = row.key
            others = [at for at in elsewhere.get(uuid, ()) if at.date() != day]
            if kind == "missing" and uuid in extra:
                rows.append(("changed", row))
            elif kind == "extra" and uuid in missing:
                moved[row.name] += 1
            elif kind == "missing" and others:
                is_copy = any(window.start <= at < window.end for at in others)
                rows += [] if is_copy else [("changed", row)]
            elif kind == "extra" and others:
                rows.append(("duplicate", row))
            else:
                rows.append((kind, row))
        joined[day] = replace(found, rows=tuple(rows), moved=moved)
    return joined


def to_compared(
    table: str,
    posthog: Mapping[tuple[date, str], Checksum],
    warehouse: Mapping[tuple[date, str], Checksum],
    days: Mapping[date, Found],
) -> list[Compared]:
    """A row for each day, or day and event, that either side has."""
    by_name = any(name for _, name in (*posthog, *warehouse))
    counts: dict[tuple[date, str], Counter[str]] = {}
    for day, found in days.items():
        several = [*found.counts.items(), *((("moved", name), n) for name, n in found.moved.items())]
        for (kind, name), count in several:
            counts.setdefault((day, name if by_name else ""), Counter())[kind] += count
    return [
        Compared(
            table,
            day,
            name,
            posthog.get((day, name), Checksum()).rows,
            warehouse.get((day, name), Checksum()).rows,
            **{kind: counts.get((day, name), Counter())[kind] for kind in (*KINDS, "moved")},
            is_complete=day not in days or days[day].is_complete,
        )
        for day, name in sorted({*posthog, *warehouse, *counts})
    ]


def _by_key(rows: Iterable[Marked]) -> dict[tuple[str, ...], list[Marked]]:
    groups: dict[tuple[str, ...], list[Marked]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return groups


def _days_of(kind: Kind, days: Mapping[date, Found]) -> set[str]:
    return {row.key[0] for found in days.values() for own, row in found.rows if own == kind}


def _window(start: datetime, end: datetime, *, synced: datetime | None = None) -> Window:
    if start >= end:
        until = f"events are synced up to {synced.isoformat()}; " if synced else ""
        raise SettingsError(
            f"There is nothing to compare from {start.isoformat()} to {end.isoformat()}: {until}"
            "choose an earlier start (--from) or a later end (--to)."
        )
    return Window(start, end)


def _instant(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value.astimezone(UTC)
    return datetime.fromisoformat(str(value)).astimezone(UTC) if value else None


def _place(row: Compared) -> tuple[bool, date, str]:
    """Events first, by day and name; then the tables as they came."""
    return row.day is None, row.day or date.min, row.event


def _plain(value: Compared | Difference) -> dict[str, Any]:
    return {name: cell.isoformat() if isinstance(cell, date) else cell for name, cell in vars(value).items()}
