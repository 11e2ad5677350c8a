"""Prints what verify has found: a table in a terminal, lines elsewhere, and what to do about it.

Not here: what differs (`comparison`), the command line (`cli`), the picture (`heatmap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from rich.console import Console

from posthog_source.catalog import TABLES
from posthog_source.comparison import KINDS, Compared, Difference, Verification
from posthog_source.printing import print_rows

SHOWN_DAYS = 40
"""Days that are shown although they are equal; of more, only those that differ."""

SHOWN_KEYS = 20

HEADINGS = ("table", "day", "event", "PostHog", "warehouse", *KINDS, "on another day")
HIDEABLE = (1, 2, len(HEADINGS) - 1)
"""Columns that are left out where no row has anything there."""


def tell(found: Verification, console: Console) -> None:
    """Writes it down."""
    rows = [_cells(row) for row in _shown(found.rows)]
    shown = [n for n, _ in enumerate(HEADINGS) if n not in HIDEABLE or any(row[n] for row in rows)]
    print_rows(console, [HEADINGS[n] for n in shown], [[row[n] for n in shown] for row in rows])
    for line in (*_keys(found.differences), *_summary(found), *advise(found)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def advise(found: Verification) -> list[str]:
    """What sets it right, by table."""
    differing = dict.fromkeys(row.table for row in found.rows if not row.is_equal)
    dispositions = {table.name: table.disposition for table in TABLES}
    return [_advice(name, dispositions[name], is_repaired=bool(found.repaired)) for name in differing]


def _advice(table: str, disposition: str, *, is_repaired: bool) -> str:
    match disposition:
        case "window" if is_repaired:
            return f"{table}: read again, and still not the same. Compare once more; if it stays, report it."
        case "window":
            return f"{table}: verify --repair reads those days again and replaces them."
        case "snapshot":
            return f"{table}: the next sync replaces all of it."
        case "sweep" | "group":
            return f"{table}: a sync with SOURCES__POSTHOG__PEOPLE__SWEEP_EVERY_DAYS=0 reads all of it again."
        case _:
            return f"{table}: the next sync reads all of it again after dlt pipeline posthog drop {table}."


def _cells(row: Compared) -> list[object]:
    counts = [_counted(getattr(row, kind), row) for kind in (*KINDS, "moved")]
    return [row.table, row.day, row.event, row.posthog_rows, row.warehouse_rows, *counts]


def _counted(count: int, row: Compared) -> object:
    """Nothing for none, so that what differs stands out."""
    if not row.is_complete:
        return f"{count:,} or more"
    return count or None


def _shown(rows: Sequence[Compared]) -> list[Compared]:
    """All rows, or where a table has many, those that differ and their sum."""
    shown: list[Compared] = []
    for _, group in groupby(rows, key=lambda row: row.table):
        members = list(group)
        if len(members) <= SHOWN_DAYS:
            shown += members
        else:
            shown += [*(row for row in members if not row.is_equal), _sum_of(members)]
    return shown


def _sum_of(rows: Sequence[Compared]) -> Compared:
    names = ("posthog_rows", "warehouse_rows", *KINDS, "moved")
    sums = {name: sum(getattr(row, name) for row in rows) for name in names}
    is_complete = all(row.is_complete for row in rows)
    return replace(rows[0], day=None, event="", **sums, is_complete=is_complete)


def _keys(differences: Sequence[Difference]) -> Iterable[str]:
    """The first rows that differ, and how many there are beyond."""
    for one in differences[:SHOWN_KEYS]:
        yield " ".join(filter(None, (one.table, one.kind, one.key, str(one.day or ""), one.event)))
    if len(differences) > SHOWN_KEYS:
        yield f"… and {len(differences) - SHOWN_KEYS:,} more; --json tells a thousand of each day or table."


def _summary(found: Verification) -> Iterable[str]:
    if found.skipped:
        (first, why), *others = found.skipped
        names = ", ".join(name for name, _ in found.skipped)
        yield f"Not compared: {names}. {f'Of {first}: ' if others else ''}{why}"
    count = len({row.table for row in found.rows})
    differing = {row.table for row in found.rows if not row.is_equal}
    until = f", events up to {found.window.end.isoformat()}" if found.window else ""
    repaired = f" after {_plural(len(found.repaired), 'day')} read again" if found.repaired else ""
    result = f"{', '.join(sorted(differing))} differ" if differing else "all the same"
    yield f"{_plural(count, 'table')} compared{until}: {result}{repaired}."


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
