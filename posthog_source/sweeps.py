"""When persons and person_distinct_ids are read in full (a sweep), and what is kept between sweeps.

Kept in dlt's state, which a destination commits together with the rows. A sweep reads a whole table;
between sweeps a sync reads whom events have touched (`people`). Events that arrived late are handed over
here by `events`, which finds them. Not here: what has been read of events (`ledger`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from posthog_source.windows import Bound, Slice, Window

SWEPT_AT, SWEPT_ROWS, UNFINISHED, SEEN_UNTIL, LATE_UNTIL, ABSENT = (
    "swept_at", "swept_rows", "unfinished_sweep", "seen_until", "late_until", "absent_columns",
)  # fmt: skip
"""Keys of a table's state."""

LATE = "late_arrivals"
"""Key of the source's state."""

KEPT_LATE = 60
"""Looks for late events that are remembered; a table that has missed more is swept."""


@dataclass(frozen=True)
class Sweep:
    """A sweep under way.

    Attributes:
        started_at: Rows read since then belong to it.
        rows: Read by it so far.
        lower: Where it goes on; None at its beginning.
    """

    started_at: datetime
    rows: int = 0
    lower: Bound | None = None


@dataclass(frozen=True)
class LateLook:
    """What one look for late events has found: days, or the distinct ids of a few events."""

    windows: tuple[Window, ...]
    distinct_ids: tuple[str, ...]


class SweepLedger:
    """What is known of one table of people, in dlt's state of its resource.

    Args:
        state: The resource's state, changed in place.
        source_state: The source's, which `events` adds late arrivals to.
    """

    def __init__(self, state: dict[str, Any], source_state: dict[str, Any]) -> None:
        self._state = state
        self._late: list[dict[str, Any]] = source_state.get(LATE, [])

    @property
    def unfinished(self) -> Sweep | None:
        """The sweep that an earlier commit has begun."""
        found = self._state.get(UNFINISHED)
        if found is None:
            return None
        return Sweep(datetime.fromisoformat(found["started_at"]), found["rows"], Bound.of_texts(found))

    @property
    def seen_until(self) -> datetime:
        """Whoever did something before is up to date."""
        return datetime.fromisoformat(self._state[SEEN_UNTIL])

    @property
    def swept_rows(self) -> int:
        """Rows of the last sweep."""
        return int(self._state.get(SWEPT_ROWS, 0))

    @property
    def absent(self) -> frozenset[str]:
        """Columns that the server did not have at the last sweep."""
        return frozenset(self._state.get(ABSENT, ()))

    @absent.setter
    def absent(self, names: frozenset[str]) -> None:
        self._state[ABSENT] = sorted(names)

    @property
    def late(self) -> list[LateLook] | None:
        """Looks for late events since this table last asked; None when some are forgotten already."""
        known = self._state.get(LATE_UNTIL, 0)
        if self._late and self._late[0]["number"] > known + 1:
            return None
        return [
            LateLook(tuple(Window.of_texts(texts) for texts in look["windows"]), tuple(look["distinct_ids"]))
            for look in self._late
            if look["number"] > known
        ]

    def is_due(self, now: datetime, *, every_days: float) -> bool:
        """Whether it is time to sweep: also where the last one found nobody, or late events are forgotten."""
        swept_at = self._state.get(SWEPT_AT)
        if swept_at is None or not self.swept_rows or self.late is None:
            return True
        return now - datetime.fromisoformat(swept_at) >= timedelta(days=every_days)

    def record_sweep(self, sweep: Sweep, *, rows: int, left: Sequence[Slice], seen_until: datetime) -> None:
        """That a part of a sweep has been read, and what is left of it.

        Args:
            sweep: As it was before.
            rows: Read of it now.
            left: Slices to go.
            seen_until: When it began, less the lag of events: what came after may have come after its rows
                were read.
        """
        if sweep.lower is None:
            self._state[SEEN_UNTIL] = seen_until.isoformat()
            self._forget_late()
        if left and (lower := left[0].lower):
            self._state[UNFINISHED] = {
                "started_at": sweep.started_at.isoformat(),
                "rows": sweep.rows + rows,
            } | lower.as_texts()
            return
        self._state.pop(UNFINISHED, None)
        self._state[SWEPT_AT] = sweep.started_at.isoformat()
        self._state[SWEPT_ROWS] = sweep.rows + rows

    def record_seen(self, until: datetime) -> None:
        """That whoever did something until then, or did so late, is up to date."""
        self._state[SEEN_UNTIL] = max(self.seen_until, until).isoformat()
        self._forget_late()

    def _forget_late(self) -> None:
        if self._late:
            self._state[LATE_UNTIL] = self._late[-1]["number"]


def remember_late(source_state: dict[str, Any], look: LateLook) -> None:
    """Hands the late events that a look has found over to the tables of people."""
    known: list[dict[str, Any]] = source_state.get(LATE, [])
    number = known[-1]["number"] + 1 if known else 1
    windows = [window.as_texts() for window in look.windows]
    entry = {"number": number, "windows": windows, "distinct_ids": list(look.distinct_ids)}
    source_state[LATE] = [*known, entry][-KEPT_LATE:]


def join_late(looks: Iterable[LateLook]) -> LateLook:
    """All of them as one."""
    found = list(looks)
    windows = dict.fromkeys(window for look in found for window in look.windows)
    distinct_ids = dict.fromkeys(name for look in found for name in look.distinct_ids)
    return LateLook(tuple(windows), tuple(distinct_ids))
