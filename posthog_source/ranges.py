"""plan_backfill: cuts a backfill into ranges of about equal rows, for workers elsewhere.

Each range is then a `run_backfill` of its own, by a pipeline of its own name. Not here: reading them
(`runs`), ranges within one process (`parallel` of `run_backfill`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dlt.sources import DltSource

from posthog_source.catalog import events_table
from posthog_source.client import Client
from posthog_source.errors import SettingsError
from posthog_source.pagination import Reader
from posthog_source.resolved import resolve
from posthog_source.runs import parse_window
from posthog_source.source import posthog_source
from posthog_source.windows import cut_evenly


@dataclass(frozen=True)
class BackfillRange:
    """A worker's part of a backfill, `[start, end)`.

    Attributes:
        start: Aware UTC; a midnight, but for the first.
        end: Aware UTC; a midnight, but for the last.
        rows: Events counted there.
    """

    start: datetime
    end: datetime
    rows: int


def plan_backfill(
    start: object,
    end: object,
    source: Callable[..., DltSource] = posthog_source,
    *,
    rows_per_range: int,
    **settings: Any,
) -> list[BackfillRange]:
    """Counts the events of `[start, end)` by day, and cuts it at midnights into ranges of about equal rows.

    Together they are `[start, end)`, without a gap or an overlap. A day is not cut, so that a range may have
    half a day more or less than the others, or be a day that has more.

    Args:
        start: ISO text or datetime; naive means UTC.
        end: The same; not itself included.
        source: `posthog_source`, or a clone of it.
        rows_per_range: Events in one range, about.
        settings: Arguments of the source.

    Raises:
        SettingsError: `start` is not before `end`, or another setting; nothing was sent.
        PosthogSourceError: PostHog could not be asked.
    """
    window = parse_window(start, end)
    if rows_per_range < 1:
        raise SettingsError(f"rows_per_range is {rows_per_range}. Let a range have at least 1 row.")
    chosen = resolve(source, **settings)
    with Client(chosen.settings) as client:
        table = events_table(chosen.events)
        reader = Reader.of(client, table, chosen.settings, chosen.events, may_repeat=True)
        days = reader.fetch_day_counts(window)
    parts = max(1, -(-sum(days.values()) // rows_per_range))
    return [BackfillRange(part.start, part.end, rows) for part, rows in cut_evenly(days, window, parts=parts)]
