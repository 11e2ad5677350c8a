"""windows: slices follow each other without a gap or an overlap, and count what they hold."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from posthog_source.tables import HASH_AXIS, HASHES_AXIS, UUID_AXIS
from posthog_source.windows import (
    Axis,
    Bound,
    Count,
    Label,
    Part,
    Slice,
    Window,
    clip,
    cut_days,
    cut_evenly,
    enclose,
    halve,
    halve_window,
    join,
    line_up,
    pack_days,
    plan_prefixes,
    plan_slices,
    split,
    split_labels,
    subtract,
    tell_heavy,
)

DAY = timedelta(days=1)

labels = st.tuples(
    st.dates(date(2026, 1, 1), date(2026, 1, 9)),
    st.sampled_from(["$autocapture", "$pageview", "a", "b", "login", "z", "ü", ""]),
)
label_sets = st.sets(labels, max_size=30)
row_counts = st.one_of(st.integers(0, 50), st.integers(0, 5_000), st.integers(0, 10_000_000))
page_sizes = st.one_of(st.integers(1, 20), st.integers(1, 50_000))
axes = st.sampled_from([HASH_AXIS, HASHES_AXIS, UUID_AXIS])
instants = st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@st.composite
def counted_lines(draw: st.DrawFn) -> tuple[list[Count], int]:
    """Counts in order and a page size, of no more slices than a test can look at."""
    counts = [Count(label, draw(row_counts)) for label in sorted(draw(label_sets))]
    page_rows = draw(page_sizes)
    assume(sum(count.rows for count in counts) / page_rows < 2_000)
    return counts, page_rows


def place(bound: Bound) -> tuple[Label, int]:
    """A bound as a point that can be compared; a label's beginning lies before its whole axis."""
    return bound.label, -1 if bound.at is None else bound.at


def assert_follow(slices: Sequence[Slice], *, whole: Slice | None = None) -> None:
    """They meet, in ascending order, and begin and end where the whole does."""
    whole = whole or Slice()
    assert slices[0].lower == whole.lower
    assert slices[-1].upper == whole.upper
    edges = []
    for before, after in pairwise(slices):
        assert before.upper is not None
        assert before.upper == after.lower
        edges.append(place(before.upper))
    assert edges == sorted(set(edges))


def holding(slices: Sequence[Slice], label: Label, at: int) -> list[int]:
    """Numbers of the slices that hold a row."""
    return [
        number
        for number, slice_ in enumerate(slices)
        if (slice_.lower is None or place(slice_.lower) <= (label, at))
        and (slice_.upper is None or (label, at) < place(slice_.upper))
    ]


@given(line=counted_lines(), axis=st.none() | axes)
@settings(deadline=None)
def test_slices_follow_each_other_from_the_open_beginning_to_the_open_end(
    line: tuple[list[Count], int], axis: Axis | None
) -> None:
    counts, page_rows = line

    assert_follow(plan_slices(counts, page_rows=page_rows, axis=axis))


@given(
    line=counted_lines(),
    axis=st.none() | axes,
    rows=st.lists(st.tuples(labels, st.floats(0, 1, exclude_max=True)), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_every_row_counted_or_not_falls_in_exactly_one_slice(
    line: tuple[list[Count], int], axis: Axis | None, rows: list[tuple[Label, float]]
) -> None:
    counts, page_rows = line
    span = axis or HASH_AXIS
    slices = plan_slices(counts, page_rows=page_rows, axis=axis)

    for label, share in rows:
        at = span.start + int((span.end - span.start) * share)
        assert len(holding(slices, label, at)) == 1


@given(line=counted_lines(), axis=st.none() | axes)
@settings(deadline=None)
def test_no_counted_row_is_lost_or_doubled_by_planning(
    line: tuple[list[Count], int], axis: Axis | None
) -> None:
    counts, page_rows = line

    slices = plan_slices(counts, page_rows=page_rows, axis=axis)

    assert sum(slice_.rows for slice_ in slices) == sum(count.rows for count in counts)
    by_label: dict[Label, int] = {}
    for part in (part for slice_ in slices for part in slice_.parts):
        by_label[part.label] = by_label.get(part.label, 0) + part.rows
    assert by_label == {count.label: count.rows for count in counts if count.rows}


@given(line=counted_lines(), axis=axes)
@settings(deadline=None)
def test_where_there_is_an_axis_no_slice_is_planned_larger_than_a_page(
    line: tuple[list[Count], int], axis: Axis
) -> None:
    counts, page_rows = line

    slices = plan_slices(counts, page_rows=page_rows, axis=axis)

    assert max(slice_.rows for slice_ in slices) <= page_rows + 1


@given(line=counted_lines(), axis=axes)
@settings(deadline=None)
def test_slices_are_about_a_page_so_that_there_are_no_more_than_needed(
    line: tuple[list[Count], int], axis: Axis
) -> None:
    counts, page_rows = line
    total = sum(count.rows for count in counts)

    slices = plan_slices(counts, page_rows=page_rows, axis=axis)

    assert len(slices) <= max(1, -(-total // max(1, int(page_rows * 0.92))))


@given(line=counted_lines(), axis=st.none() | axes)
@settings(deadline=None)
def test_a_slice_closes_where_the_rows_since_the_last_one_were_counted_exactly(
    line: tuple[list[Count], int], axis: Axis | None
) -> None:
    counts, page_rows = line
    slices = plan_slices(counts, page_rows=page_rows, axis=axis)

    assert slices[-1].closes
    group: list[Slice] = []
    for slice_ in slices:
        group.append(slice_)
        if slice_.closes:
            lower, upper = enclose(group).lower, enclose(group).upper
            assert lower is None or lower.at is None
            assert upper is None or upper.at is None
            inside = [
                count.rows
                for count in counts
                if (lower is None or count.label >= lower.label)
                and (upper is None or count.label < upper.label)
            ]
            assert sum(member.rows for member in group) == sum(inside)
            group = []


@given(line=counted_lines(), axis=axes, seed=st.integers())
@settings(deadline=None, max_examples=30)
def test_slices_hold_about_the_rows_that_they_say(
    line: tuple[list[Count], int], axis: Axis, seed: int
) -> None:
    counts, page_rows = line
    assume(0 < sum(count.rows for count in counts) < 20_000)
    slices = plan_slices(counts, page_rows=page_rows, axis=axis)
    lowers = [place(slice_.lower) for slice_ in slices[1:] if slice_.lower is not None]
    shares = random.Random(seed)
    held = [0] * len(slices)
    for count in counts:
        first = shares.random()
        for row in range(count.rows):  # evenly along the axis, wherever it begins
            at = axis.start + int((axis.end - axis.start) * (row + first) / count.rows)
            held[bisect_right(lowers, (count.label, at))] += 1

    for slice_, rows in zip(slices, held, strict=True):
        assert abs(rows - slice_.rows) <= 2 + len(slice_.parts)


@given(line=counted_lines(), axis=st.none() | axes, page_rows=page_sizes, data=st.data())
@settings(deadline=None)
def test_splitting_a_slice_again_keeps_its_ends_and_its_rows(
    line: tuple[list[Count], int], axis: Axis | None, page_rows: int, data: st.DataObject
) -> None:
    counts, first_page_rows = line
    slices = plan_slices(counts, page_rows=first_page_rows, axis=axis)
    whole = data.draw(st.sampled_from(slices))
    assume(whole.rows / page_rows < 2_000)

    finer = split(whole, page_rows=page_rows)

    assert_follow(finer, whole=whole)
    assert sum(slice_.rows for slice_ in finer) == whole.rows
    assert finer[-1].closes == whole.closes
    assert all(slice_.upper is not None and slice_.upper.at is None for slice_ in finer[:-1] if slice_.closes)


@given(line=counted_lines(), axis=st.none() | axes, data=st.data())
@settings(deadline=None)
def test_halving_gives_two_slices_that_meet_or_the_slice_itself(
    line: tuple[list[Count], int], axis: Axis | None, data: st.DataObject
) -> None:
    counts, page_rows = line
    whole = data.draw(st.sampled_from(plan_slices(counts, page_rows=page_rows, axis=axis)))

    halves = halve(whole)

    assert_follow(halves, whole=whole)
    assert len(halves) <= 2
    assert sum(half.rows for half in halves) == whole.rows
    if axis is not None and whole.rows > 1:
        assert len(halves) == 2
        slack = 0.05 * whole.rows + 2
        assert all(abs(half.rows - whole.rows / 2) <= slack for half in halves)
    if len(halves) == 1:
        assert halves == [whole]


@given(rows=st.integers(1, 10**9), axis=axes, share=st.integers(0, 1))
@settings(deadline=None)
def test_halving_again_and_again_comes_down_to_a_row(rows: int, axis: Axis, share: int) -> None:
    slice_ = plan_slices([Count(("a",), rows)], page_rows=rows * 2, axis=axis)[0]

    steps = 0
    while len(halves := halve(slice_)) == 2:
        slice_ = halves[share]
        steps += 1

    assert slice_.rows <= 1
    assert steps <= rows.bit_length() + 4


def test_a_line_of_no_rows_is_one_open_slice() -> None:
    assert plan_slices([], page_rows=10, axis=HASH_AXIS) == [Slice()]
    assert plan_slices([Count(("a",), 0)], page_rows=10, axis=HASH_AXIS) == [Slice()]


def test_a_line_of_one_page_is_one_open_slice() -> None:
    (only,) = plan_slices([Count(("a",), 4), Count(("b",), 5)], page_rows=10, axis=HASH_AXIS)

    assert (only.lower, only.upper, only.rows, only.closes) == (None, None, 9, True)


def test_a_table_without_labels_is_cut_into_equal_runs_of_its_axis() -> None:
    slices = plan_slices([Count((), 9_200)], page_rows=1_000, axis=UUID_AXIS)

    assert [slice_.rows for slice_ in slices] == [920] * 10
    assert [slice_.closes for slice_ in slices] == [False] * 9 + [True]
    cuts = [slice_.upper.at for slice_ in slices[:-1] if slice_.upper is not None]
    assert all(cut is not None and UUID_AXIS.start < cut < UUID_AXIS.end for cut in cuts)


def test_a_cut_near_a_labels_edge_is_made_on_the_edge() -> None:
    slices = plan_slices([Count(("a",), 90), Count(("b",), 94)], page_rows=100, axis=HASH_AXIS)

    assert [slice_.upper for slice_ in slices] == [Bound(("b",)), None]
    assert [slice_.rows for slice_ in slices] == [90, 94]
    assert all(slice_.closes for slice_ in slices)


def test_a_step_of_many_rows_is_cut_inside_and_the_others_around_it() -> None:
    step = HASHES_AXIS.step
    whole = tell_heavy(line_up([Count(("a",), 1_000)], axis=HASHES_AXIS), {("a",): {2**63: 500}})

    slices = split(whole, page_rows=109)

    assert_follow(slices)
    assert [slice_.rows for slice_ in slices] == [100] * 10
    places = [slice_.upper.at or 0 for slice_ in slices if slice_.upper]
    inside = [at for at in places if 2**63 * step < at < (2**63 + 1) * step]
    assert len(inside) >= 4
    assert [at for at in places if at % step and at not in inside] == []


@given(line=counted_lines(), data=st.data())
@settings(deadline=None)
def test_telling_heavy_steps_apart_loses_no_row_and_leaves_no_gap(
    line: tuple[list[Count], int], data: st.DataObject
) -> None:
    counts, page_rows = line
    steps = st.integers(0, 3) | st.integers(2**64 - 3, 2**64 - 1) | st.integers(0, 2**64 - 1)
    heavy = {}
    for count in counts:
        numbers = data.draw(st.sets(steps, max_size=3))
        heavy[count.label] = {number: count.rows // 4 for number in numbers if count.rows >= 4}

    slices = split(tell_heavy(line_up(counts, axis=HASHES_AXIS), heavy), page_rows=page_rows)

    assert_follow(slices)
    assert sum(slice_.rows for slice_ in slices) == sum(count.rows for count in counts)
    for slice_ in slices:
        assert slice_.rows == sum(part.rows for part in slice_.parts)
        assert [part.label for part in slice_.parts] == sorted(part.label for part in slice_.parts)


def test_labels_that_cannot_be_cut_stay_whole() -> None:
    counts = [Count((name,), 1_000) for name in "abc"]

    slices = plan_slices(counts, page_rows=100, axis=None)

    assert [slice_.upper for slice_ in slices] == [Bound(("b",)), Bound(("c",)), None]


def test_slices_of_a_group_enclose_what_they_hold() -> None:
    slices = plan_slices([Count((), 5_000)], page_rows=1_000, axis=HASH_AXIS)

    whole = enclose(slices[1:4])

    assert (whole.lower, whole.upper) == (slices[1].lower, slices[3].upper)
    assert whole.rows == sum(slice_.rows for slice_ in slices[1:4])
    assert whole.closes is False
    assert enclose(slices).closes is True


samples_of_text = st.sets(st.text(max_size=5), max_size=200).map(sorted)


@given(samples=samples_of_text, rows=st.integers(0, 10**6), page_rows=page_sizes)
@settings(deadline=None)
def test_prefixes_cover_the_line_in_ascending_order(samples: list[str], rows: int, page_rows: int) -> None:
    slices = plan_prefixes([(one,) for one in samples], rows=rows, page_rows=page_rows)

    assert_follow(slices)
    assert {slice_.lower.label[0] for slice_ in slices[1:] if slice_.lower} <= set(samples)
    for text in samples:
        assert len(holding(slices, (text,), 0)) == 1


@given(samples=samples_of_text, rows=st.integers(0, 10**6), page_rows=page_sizes)
@settings(deadline=None)
def test_only_the_whole_line_of_prefixes_was_counted(samples: list[str], rows: int, page_rows: int) -> None:
    slices = plan_prefixes([(one,) for one in samples], rows=rows, page_rows=page_rows)

    assert [slice_.closes for slice_ in slices] == [False] * (len(slices) - 1) + [True]
    assert sum(slice_.rows for slice_ in slices) == rows


@given(st.integers(1, 200), st.integers(1, 10**6), st.integers(1, 50_000))
@settings(deadline=None)
def test_prefixes_share_an_even_sample_evenly(members: int, rows: int, page_rows: int) -> None:
    samples = [f"{number:06}" for number in range(members)]

    slices = plan_prefixes([(one,) for one in samples], rows=rows, page_rows=page_rows)

    pieces = min(members, -(-rows // max(1, int(page_rows * 0.92))))
    edges = [0, *(int(str(s.lower.label[0])) for s in slices if s.lower), members]
    assert len(slices) == pieces
    assert max(b - a for a, b in pairwise(edges)) <= members / pieces + 1


@given(start=instants, span=st.timedeltas(timedelta(0), timedelta(days=400)))
def test_a_window_is_halved_at_a_utc_midnight_or_holds_none(start: datetime, span: timedelta) -> None:
    window = Window(start, start + span)

    halves = halve_window(window)

    first_midnight = datetime(start.year, start.month, start.day, tzinfo=UTC) + DAY
    if first_midnight >= window.end:
        assert halves == [window]
        return
    before, after = halves
    assert (before.start, after.end) == (window.start, window.end)
    assert before.end == after.start
    assert before.end.timetz().isoformat() == "00:00:00+00:00"
    assert before.start < before.end < after.end
    if span > 3 * DAY:
        assert abs(before.end - before.start - (after.end - after.start)) <= DAY


def test_halving_windows_again_and_again_comes_down_to_days() -> None:
    start = datetime(2026, 1, 1, 7, tzinfo=UTC)
    windows = [Window(start, start + timedelta(days=40))]
    while (finer := [half for window in windows for half in halve_window(window)]) != windows:
        windows = finer

    assert len(windows) == 41
    assert all(before.end == after.start for before, after in pairwise(windows))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime(2026, 1, 1), datetime(2026, 1, 2)),  # noqa: DTZ001
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2)),  # noqa: DTZ001
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1))), datetime(2026, 1, 2, tzinfo=UTC)),
    ],
)
def test_a_window_is_in_utc_and_does_not_end_before_it_starts(start: datetime, end: datetime) -> None:
    with pytest.raises(ValueError, match="window"):
        Window(start, end)


def test_a_window_may_have_no_length() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)

    assert halve_window(Window(at, at)) == [Window(at, at)]


def test_the_rows_of_a_slice_are_those_of_its_parts() -> None:
    assert Slice(parts=(Part(("a",), 2, None), Part(("b",), 3, None))).rows == 5
    assert Slice().rows == 0


@st.composite
def counted_days(draw: st.DrawFn) -> tuple[dict[date, int], Window]:
    """A window that may begin and end within a day, and rows of some of its days."""
    start = draw(instants)
    window = Window(start, start + draw(st.timedeltas(timedelta(microseconds=1), timedelta(days=60))))
    last = (window.end - timedelta(microseconds=1)).date()
    days = st.dates(window.start.date(), last)
    return draw(
        st.dictionaries(days, st.one_of(st.integers(0, 20), st.integers(0, 10**6)), max_size=40)
    ), window


def of_day(day: date, window: Window) -> Window:
    """The part of a window that lies in a day."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return clip(Window(midnight, midnight + DAY), window)


def assert_tile(parts: Sequence[Window], whole: Window) -> None:
    """They meet, none is empty, and together they are the whole."""
    assert (parts[0].start, parts[-1].end) == (whole.start, whole.end)
    assert all(before.end == after.start for before, after in pairwise(parts))
    assert all(part.start < part.end for part in parts)


@given(counted=counted_days(), rows=page_sizes)
@settings(deadline=None)
def test_packed_days_are_the_window_again_and_hold_all_its_rows(
    counted: tuple[dict[date, int], Window], rows: int
) -> None:
    days, window = counted

    packed = pack_days(days, window, rows=rows)

    assert_tile([part for part, _ in packed], window)
    for part, held in packed:
        inside = [day for day in days if part.start <= of_day(day, window).start < part.end]
        assert held == sum(days[day] for day in inside)
        assert all(of_day(day, window).end <= part.end for day in inside)


@given(counted=counted_days(), rows=page_sizes)
@settings(deadline=None)
def test_only_a_day_by_itself_is_packed_beyond_the_limit(
    counted: tuple[dict[date, int], Window], rows: int
) -> None:
    days, window = counted

    packed = dict(pack_days(days, window, rows=rows))

    for day, count in days.items():
        if count > rows:
            assert packed[of_day(day, window)] == count
    assert sum(held > rows for held in packed.values()) == sum(count > rows for count in days.values())


@given(counted=counted_days(), rows=page_sizes)
@settings(deadline=None)
def test_days_are_packed_into_no_more_windows_than_their_rows_ask_for(
    counted: tuple[dict[date, int], Window], rows: int
) -> None:
    days, window = counted

    packed = [held for _, held in pack_days(days, window, rows=rows)]

    assert all(
        before + after > rows or 0 in (before, after) for before, after in pairwise(packed) if before <= rows
    )
    assert len(packed) <= 1 + 2 * sum(days.values()) // rows + 2 * sum(
        count > rows for count in days.values()
    )


@st.composite
def windows_of_hours(draw: st.DrawFn) -> Window:
    """From one full hour to another, so that ends often meet."""
    first, length = draw(st.integers(0, 60)), draw(st.integers(1, 30))
    start = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=first)
    return Window(start, start + timedelta(hours=length))


def hours_of(windows: Sequence[Window]) -> Iterator[datetime]:
    """Full hours from before the first to after the last."""
    if not windows:
        return
    at = min(window.start for window in windows) - timedelta(hours=1)
    while at <= max(window.end for window in windows):
        yield at
        at += timedelta(hours=1)


def is_in(at: datetime, windows: Sequence[Window]) -> bool:
    """Whether one of them holds it."""
    return any(window.start <= at < window.end for window in windows)


@given(windows_of_hours(), st.lists(windows_of_hours(), max_size=8))
@settings(deadline=None)
def test_what_is_subtracted_from_a_window_is_gone_and_the_rest_is_left(
    window: Window, done: list[Window]
) -> None:
    left = subtract(window, done)

    assert left == join(left)
    for at in hours_of([window, *done]):
        is_done = any(is_in(at, [one]) for one in done)
        assert is_in(at, left) == (is_in(at, [window]) and not is_done)


@given(st.lists(windows_of_hours(), max_size=8))
@settings(deadline=None)
def test_joined_windows_are_the_same_spans_ascending_and_apart(windows: list[Window]) -> None:
    joined = join(windows)

    assert all(before.end < after.start for before, after in pairwise(joined))
    for at in hours_of(windows):
        assert is_in(at, joined) == is_in(at, windows)


@given(windows_of_hours(), st.integers(1, 40))
def test_days_are_cut_into_about_equal_parts_that_are_the_window_again(window: Window, parts: int) -> None:
    cut = cut_days(window, parts=parts)

    assert_tile(cut, window)
    assert len(cut) <= parts
    assert all(before.end.timetz().isoformat() == "00:00:00+00:00" for before in cut[:-1])
    days = (window.end - window.start) / DAY
    assert all((part.end - part.start) / DAY <= days / parts + 2 for part in cut)
    assert cut == cut_days(window, parts=parts)


def test_a_window_within_a_day_is_not_cut() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    window = Window(noon, noon + timedelta(hours=3))

    assert cut_days(window, parts=12) == [window]


@given(
    line=counted_lines(),
    rows=page_sizes,
    start=st.none() | labels,
    upper=st.none() | st.just(Bound((date(2026, 1, 10), ""))),
)
@settings(deadline=None)
def test_labels_are_split_on_their_edges_and_only_one_alone_is_too_large(
    line: tuple[list[Count], int], rows: int, start: Label | None, upper: Bound | None
) -> None:
    parts = tuple(Part(count.label, count.rows, HASH_AXIS) for count in line[0])
    lower = Bound(min([start, *(part.label for part in parts)])) if start is not None else None
    whole = Slice(lower, upper, parts)

    pieces = split_labels(whole, rows=rows)

    assert_follow(pieces, whole=whole)
    assert [part for piece in pieces for part in piece.parts] == list(parts)
    for piece in pieces:
        assert piece.rows <= rows or len(piece.parts) == 1
    for before, after in pairwise(pieces):
        assert before.upper == Bound(after.parts[0].label)
        assert before.rows + after.parts[0].rows > rows
    assert all(piece.closes for piece in pieces)


def test_a_label_with_a_heavy_step_is_not_torn_apart() -> None:
    counts = [Count((name,), 100) for name in "abc"]
    whole = tell_heavy(line_up(counts, axis=HASHES_AXIS), {(name,): {5: 60} for name in "abc"})

    pieces = split_labels(whole, rows=150)

    assert [piece.upper for piece in pieces] == [Bound(("b",)), Bound(("c",)), None]
    assert [piece.rows for piece in pieces] == [100, 100, 100]


def test_labels_of_no_rows_are_one_piece_to_the_open_end() -> None:
    whole = Slice(Bound((date(2026, 1, 1), "m")), None)

    assert split_labels(whole, rows=10) == [whole]


@given(counted=counted_days(), parts=st.integers(1, 9))
@settings(deadline=None)
def test_evenly_cut_days_are_the_window_again_and_hold_a_share_each_give_or_take_a_day(
    counted: tuple[dict[date, int], Window], parts: int
) -> None:
    days, window = counted

    cut = cut_evenly(days, window, parts=parts)

    assert_tile([part for part, _ in cut], window)
    assert len(cut) <= parts
    share, largest = sum(days.values()) / parts, max(days.values(), default=0)
    for part, held in cut:
        assert held == sum(days[day] for day in days if part.start <= of_day(day, window).start < part.end)
        assert held <= share + largest


def test_a_window_without_rows_is_one_part() -> None:
    window = Window(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))

    assert cut_evenly({}, window, parts=5) == [(window, 0)]
