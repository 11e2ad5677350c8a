"""What earlier runs have read of events, kept in dlt's state, and the chunks that this run has to read.

What was read is kept in dlt's state, which a destination commits together with the rows: a run that is
killed at any instant goes on from its last commit. Not here: how many rows there are (`pagination`), when
to look for late events (`events`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from posthog_source.windows import Count, Slice, Window, join, split_labels, subtract

LOOKED_AT, START, UNFINISHED, BACKFILLS, DONE = (
    "looked_for_arrivals_at", "start", "unfinished", "backfills", "done",
)  # fmt: skip
"""Keys of the state."""


@dataclass(frozen=True)
class Chunk:
    """What one commit loads.

    Attributes:
        window: Its bounds in time.
        rows: Rows counted.
        is_main: Whether it belongs to the run's own window, whose end the cursor is to reach; late days
            and days to come are read beside it.
        first_event: Name of the event from which on its one day is still to be read.
        part: Counted labels of its one day, when that day is too large for one commit.
        counts: Its rows by day and name, if they have been counted so.
    """

    window: Window
    rows: int
    is_main: bool = True
    first_event: str | None = None
    part: Slice | None = None
    counts: tuple[Count, ...] | None = None

    @property
    def event_names(self) -> list[str] | None:
        """Names counted in a part of a day; None for whole windows."""
        return [str(part.label[-1]) for part in self.part.parts] if self.part else None

    @property
    def next_event(self) -> str | None:
        """First name after a part of a day; None when nothing of its window is left."""
        return str(self.part.upper.label[-1]) if self.part and self.part.upper else None

    def cut(self, whole: Slice, *, rows: int) -> list[Chunk]:
        """Its parts of at most `rows` rows each, a larger event alone."""
        return [
            Chunk(self.window, part.rows, self.is_main, part=part) for part in split_labels(whole, rows=rows)
        ]


class Ledger:
    """What has been read of one window or of a sync's whole past, in dlt's state of the resource.

    Args:
        state: The resource's state, changed in place.
        cursor: Where the last sync ended.
        backfill: The stated window of a backfill, which leaves the cursor alone; None for a sync.
    """

    def __init__(self, state: dict[str, Any], *, cursor: datetime, backfill: Window | None = None) -> None:
        self.cursor = cursor
        self._state = state
        self._backfill = backfill

    @property
    def position(self) -> object:
        """A value that is the same as long as nothing has been read."""
        return self.cursor, self._entry

    @property
    def unfinished(self) -> Chunk | None:
        """The day of which only some events have been read, its rows not yet counted."""
        found = self._entry.get(UNFINISHED)
        return Chunk(Window.of_texts(found), 0, first_event=found["event"]) if found else None

    @property
    def looked_at(self) -> datetime | None:
        """When arrivals were last looked for."""
        return datetime.fromisoformat(self._state[LOOKED_AT]) if LOOKED_AT in self._state else None

    @property
    def start(self) -> datetime | None:
        """From when on events have been read."""
        return datetime.fromisoformat(self._state[START]) if START in self._state else None

    def left_of(self, window: Window) -> list[Window]:
        """What is left of a backfill's window, less the unfinished day."""
        done = [Window.of_texts(each) for each in self._entry.get(DONE, ())]
        return subtract(window, [*done, *([self.unfinished.window] if self.unfinished else [])])

    def remember(self, backlog: Backlog) -> None:
        """What a sync has come to know by reading what the backlog no longer has."""
        if backlog.start:
            self._state[START] = backlog.start.isoformat()
        if backlog.looked_at and all(chunk.is_main for chunk in backlog.chunks):
            self._state[LOOKED_AT] = backlog.looked_at.isoformat()

    def record(self, chunk: Chunk) -> None:
        """That a chunk has been read."""
        if not chunk.is_main:
            return
        entry = self._entry
        if chunk.next_event is not None:
            entry[UNFINISHED] = chunk.window.as_texts() | {"event": chunk.next_event}
        else:
            entry.pop(UNFINISHED, None)
            if self._backfill is None:
                self.cursor = max(self.cursor, chunk.window.end)
            else:
                windows = [*(Window.of_texts(each) for each in entry.get(DONE, ())), chunk.window]
                entry[DONE] = [window.as_texts() for window in join(windows)]
        self._store(entry)

    @property
    def _key(self) -> str:
        window = self._backfill
        return f"{window.start.isoformat()}/{window.end.isoformat()}" if window else ""

    @property
    def _entry(self) -> dict[str, Any]:
        """What is kept of this backfill, or of the sync."""
        if self._backfill:
            return dict(self._state.get(BACKFILLS, {}).get(self._key, {}))
        return {UNFINISHED: self._state[UNFINISHED]} if UNFINISHED in self._state else {}

    def _store(self, entry: dict[str, Any]) -> None:
        if self._backfill is None:
            self._state.pop(UNFINISHED, None)
            self._state.update(entry)
            return
        kept = {key: other for key, other in self._state.pop(BACKFILLS, {}).items() if key != self._key}
        if subtract(self._backfill, [Window.of_texts(each) for each in entry.get(DONE, ())]):
            kept[self._key] = entry  # else it is done: the same backfill, asked for again, reads again
        if kept:
            self._state[BACKFILLS] = kept


@dataclass
class Backlog:
    """What a run has still to read, chunk by chunk; kept between its commits.

    Attributes:
        position: The ledger's position for which it was made; for any other it is worth nothing.
        chunks: In the order in which they are committed.
        start: From when on events are read.
        looked_at: When arrivals were looked for, to be remembered once the days that they fell on are read.
    """

    position: object = None
    chunks: deque[Chunk] = field(default_factory=deque)
    start: datetime | None = None
    looked_at: datetime | None = None

    @property
    def rows(self) -> int:
        """Rows still to be read."""
        return sum(chunk.rows for chunk in self.chunks)
