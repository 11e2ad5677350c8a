"""ledger: what was read stays known, and what is left is exactly the rest."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from posthog_source.ledger import Backlog, Chunk, Ledger
from posthog_source.windows import Bound, Count, Part, Slice, Window, join, pack_days, subtract

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, 6, tzinfo=UTC)
END = datetime(2026, 1, 21, 18, tzinfo=UTC)
WHOLE = Window(START, END)

names = st.text(max_size=4) | st.sampled_from(
    ["a", "A", "", "nul \0", "{x}", "it's", '"', "🦔", "ü", "\ufffd"]
)
named_counts = st.dictionaries(names, st.integers(1, 30), min_size=1, max_size=8)
day_counts = st.dictionaries(st.dates(START.date(), END.date()), st.integers(0, 40), max_size=21)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    """As a destination gives it back."""
    restored: dict[str, Any] = json.loads(json.dumps(state))
    return restored


def chunks_of(days: dict[date, int], window: Window, *, rows: int) -> list[Chunk]:
    return [Chunk(part, count) for part, count in pack_days(days, window, rows=rows)]


def parts_of(counts: dict[str, int], window: Window, *, rows: int) -> list[Chunk]:
    """The chunks of one day, cut between event names."""
    day = window.start.date()
    labels = Slice(parts=tuple(Part((day, name), counts[name], None) for name in sorted(counts)))
    return Chunk(window, labels.rows).cut(labels, rows=rows)


def backfill_of(state: dict[str, Any], window: Window = WHOLE) -> Ledger:
    return Ledger(state, cursor=window.start, backfill=window)


def sync_of(state: dict[str, Any], cursor: datetime = START) -> Ledger:
    return Ledger(state, cursor=cursor)


def one_day(number: int = 0) -> Window:
    midnight = datetime(2026, 1, 2, tzinfo=UTC) + number * DAY
    return Window(midnight, midnight + DAY)


def test_the_position_stays_while_nothing_is_recorded_and_changes_with_every_chunk_of_the_run() -> None:
    for ledger in (sync_of({}), backfill_of({})):
        positions = [ledger.position]
        assert ledger.position == positions[0]
        for chunk in [Chunk(one_day(0), 5), *parts_of({"a": 5, "b": 5, "c": 5}, one_day(1), rows=5)]:
            ledger.record(chunk)
            assert ledger.position == ledger.position
            positions.append(ledger.position)
        assert all(before != after for before, after in pairwise(positions))
        assert len({str(position) for position in positions}) == len(positions)


def test_a_position_does_not_change_with_the_state_it_was_taken_from() -> None:
    ledger = backfill_of({})
    ledger.record(Chunk(one_day(0), 5))
    before = ledger.position
    text = str(before)

    ledger.record(Chunk(one_day(1), 5))

    assert str(before) == text
    assert ledger.position != before


def test_late_days_move_neither_cursor_nor_state() -> None:
    state: dict[str, Any] = {}
    ledger = sync_of(state)
    before = ledger.position

    ledger.record(Chunk(one_day(), 5, is_main=False))

    assert (ledger.position, ledger.cursor, state) == (before, START, {})


@given(
    days=day_counts,
    rows=st.integers(1, 60),
    done=st.sets(st.integers(0, 50)),
    order=st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_what_a_backfill_has_done_survives_json_and_leaves_exactly_the_rest(
    days: dict[date, int], rows: int, done: set[int], order: Any
) -> None:
    state: dict[str, Any] = {}
    chunks = chunks_of(days, WHOLE, rows=rows)
    picked = [chunk for number, chunk in enumerate(chunks) if number in done]
    order.shuffle(picked)
    for chunk in picked:
        backfill_of(state).record(chunk)
        state = through_json(state)

    left = backfill_of(state).left_of(WHOLE)

    gone = [chunk.window for chunk in picked]
    if len(picked) == len(chunks):
        assert (state, left) == ({}, [WHOLE])
    else:
        assert left == subtract(WHOLE, gone)
        assert join([*left, *gone]) == [WHOLE]
        assert sum((each.end - each.start for each in [*left, *gone]), timedelta()) == END - START


@given(counts=named_counts, rows=st.integers(1, 60))
@settings(deadline=None)
def test_a_half_read_day_goes_on_at_the_first_name_that_was_not_read(
    counts: dict[str, int], rows: int
) -> None:
    day = one_day(3)
    parts = parts_of(counts, day, rows=rows)
    for ledger_of in (backfill_of, sync_of):
        state: dict[str, Any] = {}
        read: list[str] = []
        for part in parts:
            ledger_of(state).record(part)
            state = through_json(state)
            read += part.event_names or []
            unfinished = ledger_of(state).unfinished
            left = sorted(set(counts) - set(read))
            assert unfinished == (Chunk(day, 0, first_event=left[0]) if left else None)
        assert read == sorted(counts)


def test_a_half_read_day_is_not_among_what_is_left_of_a_backfill_since_it_is_finished_first() -> None:
    state: dict[str, Any] = {}
    first, *_ = parts_of({"a": 5, "b": 5}, one_day(3), rows=5)
    backfill_of(state).record(first)

    left = backfill_of(through_json(state)).left_of(WHOLE)

    assert left == subtract(WHOLE, [one_day(3)])


def test_a_day_read_to_its_end_is_no_longer_unfinished() -> None:
    state: dict[str, Any] = {}
    for part in parts_of({"a": 5, "b": 5}, one_day(3), rows=5):
        backfill_of(state).record(part)

    assert backfill_of(state).unfinished is None
    assert backfill_of(state).left_of(WHOLE) == subtract(WHOLE, [one_day(3)])


def test_a_finished_backfill_leaves_nothing_behind_and_the_others_alone() -> None:
    state: dict[str, Any] = {"origin": "somewhere"}
    other = Window(START, START + DAY)
    halves = [Window(START, one_day(4).start), Window(one_day(4).start, END)]
    backfill_of(state, other).record(Chunk(Window(START, START + DAY / 2), 1))
    before = through_json(state)
    backfill_of(state).record(Chunk(halves[0], 1))
    assert backfill_of(state).left_of(WHOLE) == [halves[1]]

    backfill_of(state).record(Chunk(halves[1], 1))

    assert state == before
    assert backfill_of(state).left_of(WHOLE) == [WHOLE]
    backfill_of(state, other).record(Chunk(Window(START + DAY / 2, START + DAY), 1))
    assert state == {"origin": "somewhere"}


def test_a_backfill_leaves_the_cursor_and_the_half_read_day_of_a_sync_alone() -> None:
    state: dict[str, Any] = {}
    sync_of(state).record(parts_of({"a": 5, "b": 5}, one_day(3), rows=5)[0])
    before = through_json(state)

    backfill = backfill_of(state)
    assert backfill.unfinished is None
    backfill.record(Chunk(WHOLE, 1))

    assert backfill.cursor == START
    assert state == before


@given(days=day_counts, rows=st.integers(1, 60), extra=st.sets(st.integers(0, 50)))
@settings(deadline=None)
def test_a_syncs_cursor_is_the_end_of_the_last_window_read_and_never_goes_back(
    days: dict[date, int], rows: int, extra: set[int]
) -> None:
    state: dict[str, Any] = {}
    ledger = sync_of(state)
    chunks = chunks_of(days, WHOLE, rows=rows)
    for number, chunk in enumerate(chunks):
        ledger.record(chunk)
        assert ledger.cursor == chunk.window.end
        if number in extra:
            ledger.record(chunks[0])
            assert ledger.cursor == chunk.window.end
    assert (ledger.cursor, state) == (END, {})


def test_a_sync_whose_day_is_half_read_keeps_its_cursor_before_that_day() -> None:
    state: dict[str, Any] = {}
    ledger = sync_of(state)
    ledger.record(Chunk(Window(START, one_day(0).start), 1))
    first, *rest = parts_of({"a": 5, "b": 5, "c": 5}, one_day(0), rows=5)

    ledger.record(first)
    assert ledger.cursor == one_day(0).start
    for part in rest:
        ledger.record(part)

    assert (ledger.cursor, state) == (one_day(0).end, {})


def test_the_start_is_remembered_at_once_and_when_it_is_moved_back_too() -> None:
    left = deque([Chunk(one_day(), 1)])
    state: dict[str, Any] = {}
    assert sync_of(state).start is None
    for start in (START, START - DAY):
        sync_of(state).remember(Backlog(chunks=left, start=start))
        assert sync_of(through_json(state)).start == start


def test_a_look_for_arrivals_is_remembered_once_the_days_that_it_found_are_read() -> None:
    state: dict[str, Any] = {}
    days = deque([Chunk(one_day(0), 1, is_main=False), Chunk(one_day(1), 1)])

    sync_of(state).remember(Backlog(chunks=days, looked_at=END))
    assert sync_of(state).looked_at is None
    days.popleft()
    sync_of(state).remember(Backlog(chunks=days, looked_at=END))

    assert sync_of(through_json(state)).looked_at == END


def test_a_run_that_did_not_look_forgets_no_look_and_no_start() -> None:
    state: dict[str, Any] = {}
    sync_of(state).remember(Backlog(start=START, looked_at=END))
    before = through_json(state)

    sync_of(state).remember(Backlog())

    assert state == before


@given(counts=named_counts, rows=st.integers(1, 60), first=names)
@settings(deadline=None)
def test_a_day_is_cut_into_commits_that_name_all_its_events_in_order_and_none_twice(
    counts: dict[str, int], rows: int, first: str
) -> None:
    day = one_day()
    labels = [Count((day.start.date(), name), counts[name]) for name in sorted(counts) if name >= first]
    whole = Slice(
        Bound((day.start.date(), first)), None, tuple(Part(one.label, one.rows, None) for one in labels)
    )

    chunks = Chunk(day, 0, first_event=first).cut(whole, rows=rows)

    assert [name for chunk in chunks for name in chunk.event_names or []] == [one.label[1] for one in labels]
    assert [chunk.next_event for chunk in chunks[:-1]] == [
        (after.event_names or ["nothing"])[0] for after in chunks[1:]
    ]
    assert chunks[-1].next_event is None
    assert sum(chunk.rows for chunk in chunks) == sum(one.rows for one in labels)
    for chunk in chunks:
        assert (chunk.window, chunk.is_main) == (day, True)
        assert chunk.rows <= rows or len(chunk.event_names or []) == 1


def test_late_days_stay_late_days_when_they_are_cut() -> None:
    counts = Slice(
        parts=(Part((one_day().start.date(), "a"), 5, None), Part((one_day().start.date(), "b"), 5, None))
    )

    assert [chunk.is_main for chunk in Chunk(one_day(), 10, is_main=False).cut(counts, rows=5)] == [False] * 2


def test_whole_windows_name_no_events() -> None:
    chunk = Chunk(WHOLE, 10)

    assert (chunk.event_names, chunk.next_event) == (None, None)


@given(st.lists(st.integers(0, 10**9), max_size=10))
def test_a_backlog_counts_the_rows_of_its_chunks(rows: Sequence[int]) -> None:
    assert Backlog(chunks=deque(Chunk(WHOLE, each) for each in rows)).rows == sum(rows)
