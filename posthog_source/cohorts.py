"""Cohorts as PostHog lists them: whose members are read again, and how many at once. Plain values, no I/O.

What is known of them is kept in dlt's state, which a destination commits together with the members. Not
here: reading and writing members (`membership`), when people are read (`sweeps`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from posthog_source.arrow import ARROW_TYPES, schema_of
from posthog_source.catalog import COHORT_HISTORY
from posthog_source.windows import count_fitting

COHORTS_AT_ONCE = 500
"""In one commit of bounded size, and in one HogQL query."""

PAIR = ["cohort_id", "person_id"]

TIME = ARROW_TYPES["timestamp"]

COHORTS, ROUND_AT = "cohorts", "round_at"
"""Keys of the table's state."""


@dataclass(frozen=True)
class Cohort:
    """A cohort as PostHog lists it.

    Attributes:
        id: Its number.
        name: Its name.
        is_static: Whether its members were listed rather than found by conditions.
        version: Of a dynamic one, its calculation; all members that PostHog hands out are of that one.
        count: Members, as PostHog counted them then.
        calculated_at: When; of a static one, when members were last added.
        is_calculating: Whether its members are being written.
        errors: Calculations that have failed since.
    """

    id: int
    name: str
    is_static: bool
    version: int | None
    count: int | None
    calculated_at: datetime | None
    is_calculating: bool
    errors: int

    @property
    def mark(self) -> list[int | str | None]:
        """What moves when its members do (rest_api.md 4.3: it has no time of its last change)."""
        return [self.version, self.count, self.calculated_at.isoformat() if self.calculated_at else None]

    @property
    def tells_changes(self) -> bool:
        """Whether the mark surely moves: a static one has no version, and may have no time either."""
        return not self.is_static or self.calculated_at is not None

    def trouble(self, rows: int) -> str:
        """Why its members are not to be taken as they are, if there is a reason.

        Args:
            rows: How many there are in ClickHouse.
        """
        if self.is_static and self.is_calculating:
            return "PostHog is still writing them"
        if self.count and not rows:
            return f"PostHog counts {self.count} and hands out none"
        return ""


def to_cohorts(listed: pa.Table) -> dict[int, Cohort]:
    """The rows of the table cohorts, by number, ascending."""
    cohorts = (
        Cohort(
            id=row["id"],
            name=row["name"] or "",
            is_static=bool(row["is_static"]),
            version=row["version"],
            count=row["count"],
            calculated_at=row["last_calculation"],
            is_calculating=bool(row["is_calculating"]),
            errors=row["errors_calculating"] or 0,
        )
        for row in listed.to_pylist()
    )
    return {cohort.id: cohort for cohort in sorted(cohorts, key=lambda cohort: cohort.id)}


class CohortLedger:
    """Which cohorts were read whole, and when, in dlt's state of the resource.

    A round goes through all that are due, in one commit or in several.

    Args:
        state: The resource's state, changed in place.
        has_history: Whether entries and exits are kept too.
    """

    def __init__(self, state: dict[str, Any], *, has_history: bool) -> None:
        self._state = state
        self._has_history = has_history
        self._known: dict[str, dict[str, Any]] = state.setdefault(COHORTS, {})

    @property
    def known(self) -> frozenset[int]:
        """Cohorts of which the warehouse may have members."""
        return frozenset(int(number) for number in self._known)

    @property
    def round_at(self) -> datetime | None:
        """When the round began that earlier commits have left unfinished."""
        found = self._state.get(ROUND_AT)
        return datetime.fromisoformat(found) if found else None

    def is_due(self, cohort: Cohort, round_at: datetime, *, every_days: float) -> bool:
        """Whether a round has to read the cohort: also where nothing says that nothing has changed."""
        found = self._known.get(str(cohort.id))
        if found is None or (self._has_history and not found.get("has_history")):
            return True
        read_at = datetime.fromisoformat(found["read_at"])
        if read_at >= round_at:
            return False
        is_old = round_at - read_at >= timedelta(days=every_days)
        return is_old or found["mark"] != cohort.mark or not cohort.tells_changes

    def changed_at(self, cohort: Cohort, now: datetime) -> datetime:
        """When the members changed that differ from those last read: PostHog's time, where that has moved."""
        found = self._known.get(str(cohort.id))
        has_moved = found is None or found["mark"][-1] != cohort.mark[-1]
        return cohort.calculated_at if cohort.calculated_at and has_moved else now

    def record(self, read: Iterable[Cohort], gone: Iterable[int], *, read_at: datetime) -> None:
        """That those were read whole, and that the others are no more."""
        for cohort in read:
            self._known[str(cohort.id)] = {
                "mark": cohort.mark,
                "read_at": read_at.isoformat(),
                "has_history": self._has_history,
            }
        for number in gone:
            self._known.pop(str(number), None)

    def end_commit(self, round_at: datetime, *, is_last: bool) -> None:
        """That a commit of a round is through."""
        if is_last:
            self._state.pop(ROUND_AT, None)
        else:
            self._state[ROUND_AT] = round_at.isoformat()


def find_entries(members: pa.Table, staying: pa.Table, at: Mapping[int, datetime]) -> pa.Table:
    """Rows of the history of who is a member and was not.

    Args:
        members: Rows of cohort_people.
        staying: Rows of the history of all who have not left.
        at: When each cohort's members changed.
    """
    entered = members.join(staying.select(PAIR), PAIR, join_type="left anti")
    times = pa.array([at[number] for number in entered.column("cohort_id").to_pylist()], TIME)
    return _to_history(entered, times, pa.nulls(entered.num_rows, TIME))


def find_exits(members: pa.Table, staying: pa.Table, at: Mapping[int, datetime], now: datetime) -> pa.Table:
    """Rows of the history of who was a member and is not; of cohorts that are no more, by now."""
    left = staying.join(members.select(PAIR), PAIR, join_type="left anti")
    times = pa.array([at.get(number, now) for number in left.column("cohort_id").to_pylist()], TIME)
    return _to_history(left, left.column("entered_at"), times)


def _to_history(rows: pa.Table, entered_at: pa.Array, left_at: pa.Array) -> pa.Table:
    arrays = [*(rows.column(name) for name in ("project_id", *PAIR)), entered_at, left_at]
    return pa.Table.from_arrays(arrays, schema=schema_of(COHORT_HISTORY))


def take_cohorts(
    due: Sequence[Cohort], counted: Mapping[int, int], *, rows: int | None
) -> tuple[list[Cohort], list[Cohort]]:
    """The next commit's cohorts, of `rows` members at most but for a larger one, and those after them."""
    most = len(due) if rows is None else COHORTS_AT_ONCE
    taken = count_fitting([counted[cohort.id] for cohort in due[:most]], rows=rows)
    return list(due[:taken]), list(due[taken:])


def halve_cohorts(cohorts: Sequence[Cohort]) -> tuple[Sequence[Cohort], Sequence[Cohort]]:
    """Two halves of several."""
    middle = len(cohorts) // 2
    return cohorts[:middle], cohorts[middle:]


@dataclass(frozen=True)
class Replaced:
    """Which cohorts' members a load replaces: those with the numbers, or all others.

    Attributes:
        numbers: As few as will say it.
        are_kept: Whether they are those that stay.
    """

    numbers: tuple[int, ...]
    are_kept: bool


def choose_replaced(replaced: Collection[int], kept: Collection[int], *, is_first: bool) -> Replaced:
    """Says which members to replace.

    Args:
        replaced: Cohorts that were read whole or are no more.
        kept: All others that there are.
        is_first: Whether the warehouse may hold members of cohorts that nobody remembers: they go.
    """
    if is_first or len(kept) < len(replaced):
        return Replaced(tuple(sorted(kept)), are_kept=True)
    return Replaced(tuple(sorted(replaced)), are_kept=False)
