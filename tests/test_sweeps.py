"""sweeps: when all people are read, how far that has come, and which late events are handed over."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthog_source.sweeps import KEPT_LATE, LateLook, Sweep, SweepLedger, join_late, remember_late
from posthog_source.windows import FULLEST, Bound, Part, Slice, Window, take

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
REST = [Slice(Bound((), 2**62 + 1), None, (Part((), 5, None),))]


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """As dlt hands it back: JSON."""
    found: dict[str, Any] = json.loads(json.dumps(state))
    return found


def swept(at: datetime = NOW, rows: int = 10) -> dict[str, Any]:
    state: dict[str, Any] = {}
    SweepLedger(state, {}).record_sweep(Sweep(at), rows=rows, left=[], seen_until=at)
    return reloaded(state)


def test_a_table_that_was_never_swept_or_in_vain_is_due() -> None:
    assert SweepLedger({}, {}).is_due(NOW, every_days=7)
    assert SweepLedger(swept(rows=0), {}).is_due(NOW, every_days=7)
    assert not SweepLedger(swept(), {}).is_due(NOW, every_days=7)


@pytest.mark.parametrize(("days", "is_due"), [(6.99, False), (7.0, True)])
def test_a_sweep_is_due_when_its_time_has_come(days: float, is_due: bool) -> None:
    assert SweepLedger(swept(), {}).is_due(NOW + days * DAY, every_days=7) is is_due


def test_a_sweep_goes_on_where_it_was_and_counts_from_when_it_began() -> None:
    state: dict[str, Any] = {}
    SweepLedger(state, {}).record_sweep(Sweep(NOW), rows=7, left=REST, seen_until=NOW - DAY)
    ledger = SweepLedger(state := reloaded(state), {})

    assert ledger.unfinished == Sweep(NOW, 7, REST[0].lower)
    assert ledger.seen_until == NOW - DAY

    ledger.record_sweep(Sweep(NOW, 7, REST[0].lower), rows=5, left=[], seen_until=NOW + DAY)
    ledger = SweepLedger(reloaded(state), {})

    assert ledger.unfinished is None
    assert ledger.swept_rows == 12
    assert ledger.seen_until == NOW - DAY
    assert not ledger.is_due(NOW + DAY, every_days=7)
    assert ledger.is_due(NOW + 7 * DAY, every_days=7)


def test_what_was_seen_never_goes_back() -> None:
    ledger = SweepLedger(swept(), {})
    ledger.record_seen(NOW - DAY)
    assert ledger.seen_until == NOW
    ledger.record_seen(NOW + DAY)
    assert ledger.seen_until == NOW + DAY


def test_late_events_are_handed_over_once_to_each_table() -> None:
    source: dict[str, Any] = {}
    states = [swept(), swept()]
    looks = [LateLook((Window(NOW, NOW + DAY),), ()), LateLook((), ("ada", "bob"))]
    for look in looks:
        remember_late(source, look)
    source = reloaded(source)

    for state in states:
        ledger = SweepLedger(state, source)
        assert ledger.late == looks
        ledger.record_seen(NOW)
        assert SweepLedger(reloaded(state), source).late == []

    remember_late(source, looks[0])
    assert [SweepLedger(state, source).late for state in states] == [looks[:1], looks[:1]]


def test_a_table_that_missed_more_than_is_remembered_is_swept() -> None:
    source: dict[str, Any] = {}
    state = swept()
    for n in range(KEPT_LATE):
        remember_late(source, LateLook((), (f"user-{n}",)))
    assert SweepLedger(state, source).late is not None
    remember_late(source, LateLook((), ("one more",)))

    ledger = SweepLedger(state, source)

    assert ledger.late is None
    assert ledger.is_due(NOW, every_days=7)
    ledger.record_sweep(Sweep(NOW), rows=1, left=[], seen_until=NOW)
    assert ledger.late == []


def test_looks_are_joined_without_repeats() -> None:
    window = Window(NOW, NOW + DAY)
    looks = [LateLook((window,), ("b",)), LateLook((window,), ("a", "b"))]
    assert join_late(looks) == LateLook((window,), ("b", "a"))


@given(rows=st.lists(st.integers(0, 50), min_size=1, max_size=12), limit=st.integers(1, 60) | st.none())
def test_commits_take_all_slices_in_order_and_no_more_than_they_may(
    rows: list[int], limit: int | None
) -> None:
    slices = [Slice(parts=(Part((n,), count, None),)) for n, count in enumerate(rows)]
    left, taken = slices, list[Slice]()
    while left:
        part, left = take(left, rows=limit)
        assert part
        found, most = sum(slice_.rows for slice_ in part), sum(rows) if limit is None else limit
        assert len(part) == 1 or found <= most * (1 if left else FULLEST)
        assert not left or found + sum(slice_.rows for slice_ in left) > most * FULLEST
        taken += part
    assert taken == slices
