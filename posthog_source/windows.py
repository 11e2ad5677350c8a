"""Half-open UTC time windows, and slices of a table along its sort key. Pure.

ClickHouse keeps a table sorted by its sort key and reads whole runs of it, so a question is cheap when
it asks for one contiguous run, and dear when it asks for rows scattered by time (read_cost.md). Here a
table is a *line* of counted labels (for events: day, then event name), each label uniform along an
*axis* (for events: `cityHash64(distinct_id)`), but for the heavy values that were counted too. Cutting
that line every so many rows gives slices of about one page, wherever days and names begin or end.

Not here: HogQL (`query`), asking (`pagination`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import accumulate, groupby, pairwise
from math import sqrt
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""The cursor of what was never read."""

FILL = 0.92
"""How full a planned page is at least: an axis cut by hashes is a guess, and a row too many costs a second
query that reads the slice again."""

SPREAD = 8
"""A planned page is at most this many square roots of its rows below full: counts of hashes vary by that."""

FULLEST = 1.1
"""The last commit may be this many times as large as others: a small rest gets no commit of its own."""

Label = tuple[date | str | int, ...]
"""The leading values of a sort key, in its own order: `(day, event)` for events, `()` for persons."""


@dataclass(frozen=True)
class Window:
    """Half-open span of time `[start, end)`, both aware UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        if self.start.utcoffset() != timedelta(0) or self.end.utcoffset() != timedelta(0):
            raise ValueError("a window is in UTC")
        if self.start > self.end:
            raise ValueError(f"window ends at {self.end} before it starts at {self.start}")

    @classmethod
    def of_texts(cls, texts: Mapping[str, str]) -> Window:
        """From what `as_texts` gave; other members are left alone."""
        return cls(datetime.fromisoformat(texts["start"]), datetime.fromisoformat(texts["end"]))

    def as_texts(self) -> dict[str, str]:
        """For a state that is kept as JSON."""
        return {"start": self.start.isoformat(), "end": self.end.isoformat()}


@dataclass(frozen=True)
class Axis:
    """Whole numbers `[start, end)` along which the rows of one label lie evenly.

    Attributes:
        step: It is cut at its multiples, unless many rows lie inside one.
    """

    start: int
    end: int
    step: int = 1


@dataclass(frozen=True)
class Count:
    """Rows counted at one label."""

    label: Label
    rows: int


@dataclass(frozen=True)
class Bound:
    """A place on the line: the rows of `label` from `at` on, and all that comes after."""

    label: Label
    at: int | None = None
    """Where on the axis; None is the label's beginning."""

    @classmethod
    def of_texts(cls, texts: Mapping[str, Any], *, begins_with_day: bool = False) -> Bound:
        """From what `as_texts` gave; other members are left alone."""
        label = list(texts["label"])
        if begins_with_day:
            label[0] = date.fromisoformat(label[0])
        return cls(tuple(label), None if texts["at"] is None else int(texts["at"]))

    def as_texts(self) -> dict[str, Any]:
        """For a state that is kept as JSON, where not every number of an axis fits."""
        label = [value.isoformat() if isinstance(value, date) else value for value in self.label]
        return {"label": label, "at": None if self.at is None else str(self.at)}


@dataclass(frozen=True)
class Part:
    """A label's rows between two places on its axis."""

    label: Label
    rows: int
    axis: Axis | None


@dataclass(frozen=True)
class Slice:
    """A run of the line.

    Attributes:
        lower: Its first place; None is the line's beginning, before any label counted.
        upper: The first place after it; None is the line's end, after any label counted.
        parts: What was counted inside, in order.
        closes: Whether received and counted are compared here, of all rows since the last closing slice.
        is_counted: Whether those lie between places that were counted exactly; else they are counted anew.
    """

    lower: Bound | None = None
    upper: Bound | None = None
    parts: tuple[Part, ...] = ()
    closes: bool = True
    is_counted: bool = True

    @property
    def rows(self) -> int:
        """Rows expected: exact when both ends were counted, else a good guess."""
        return sum(part.rows for part in self.parts)


def halve_window(window: Window) -> list[Window]:
    """Two windows that meet at the UTC midnight nearest the middle, or the window itself within one day."""
    middle = window.start + (window.end - window.start) / 2 + timedelta(hours=12)
    midnight = datetime.combine(middle.date(), time(), UTC)
    if not window.start < midnight < window.end:
        return [window]
    return [Window(window.start, midnight), Window(midnight, window.end)]


def windows_of_days(days: Iterable[date]) -> list[Window]:
    """Whole UTC days as windows, neighbours joined, ascending."""
    windows: list[Window] = []
    for day in sorted(set(days)):
        start = datetime.combine(day, time(), UTC)
        if windows and windows[-1].end == start:
            start = windows.pop().start
        windows.append(Window(start, datetime.combine(day + timedelta(days=1), time(), UTC)))
    return windows


def clip(window: Window, bounds: Window) -> Window:
    """The part of a window that lies inside others' bounds; both must overlap."""
    return Window(max(window.start, bounds.start), min(window.end, bounds.end))


def subtract(window: Window, done: Iterable[Window]) -> list[Window]:
    """What is left of a window, ascending."""
    left, start = [], window.start
    for gone in sorted(done, key=lambda each: each.start):
        if start < min(gone.start, window.end):
            left.append(Window(start, min(gone.start, window.end)))
        start = max(start, gone.end)
    return [*left, Window(start, window.end)] if start < window.end else left


def join(windows: Iterable[Window]) -> list[Window]:
    """The same spans with neighbours and overlaps joined, ascending."""
    joined: list[Window] = []
    for window in sorted(windows, key=lambda each: each.start):
        if joined and window.start <= joined[-1].end:
            joined[-1] = Window(joined[-1].start, max(joined[-1].end, window.end))
        else:
            joined.append(window)
    return joined


def pack_days(days: Mapping[date, int], window: Window, *, rows: int) -> list[tuple[Window, int]]:
    """Cuts a window at UTC midnights into windows of at most `rows` rows, each with its rows.

    Together they are the window. A day that has more is a window by itself.
    """
    packed: list[tuple[Window, int]] = []
    start, held = window.start, 0
    for day, count in sorted(days.items()):
        whole = windows_of_days([day])[0]
        if (held + count > rows) and (held or count > rows) and start < whole.start:
            packed.append((Window(start, whole.start), held))
            start, held = whole.start, 0
        held += count
        if count > rows and whole.end < window.end:
            packed.append((Window(start, whole.end), held))
            start, held = whole.end, 0
    return [*packed, (Window(start, window.end), held)]


def touches(window: Window, day: date) -> bool:
    """Whether a part of a UTC day lies in the window."""
    (whole,) = windows_of_days([day])
    return window.start < whole.end and whole.start < window.end


def cut_days(window: Window, *, parts: int) -> list[Window]:
    """Cuts a window at UTC midnights into at most `parts` windows of about equal time: always the same."""
    days = max(1, -(-(window.end - window.start) // timedelta(days=1)))
    first = datetime.combine(window.start.date(), time(), UTC)
    cuts = {first + timedelta(days=days * i // parts) for i in range(1, parts)}
    edges = [window.start, *sorted(cut for cut in cuts if window.start < cut < window.end), window.end]
    return [Window(start, end) for start, end in pairwise(edges)]


def cut_evenly(days: Mapping[date, int], window: Window, *, parts: int) -> list[tuple[Window, int]]:
    """Cuts a window at UTC midnights into at most `parts` windows of about equal rows, each with its rows.

    Together they are the window. A part ends with the day in which its share of the rows is full.
    """
    total, left = sum(days.values()), sum(days.values())
    edges, sums = [window.start], [0]
    for day, rows in sorted(days.items()):
        sums[-1] += rows
        left -= rows
        if sums[-1] * parts >= total and left:
            edges.append(windows_of_days([day])[0].end)
            sums.append(0)
    return list(zip(map(Window, edges, [*edges[1:], window.end]), sums, strict=True))


def plan_slices(
    counts: Iterable[Count], *, page_rows: int, axis: Axis | None, start: Bound | None = None
) -> list[Slice]:
    """Cuts a counted line into slices of about one page.

    The slices follow each other without a gap or an overlap, and the first and last are open, so that
    together they hold every row there is, counted or not.

    Args:
        counts: Ascending by label.
        page_rows: Rows that one answer may hold; slices are planned a little smaller.
        axis: The axis of every label, or None when a label cannot be cut.
        start: The first place; None is the line's beginning. Nothing before it was counted.
    """
    return split(line_up(counts, axis=axis, start=start), page_rows=page_rows)


def line_up(counts: Iterable[Count], *, axis: Axis | None, start: Bound | None = None) -> Slice:
    """A counted line as one slice; see `plan_slices`."""
    parts = [Part(count.label, count.rows, axis) for count in counts if count.rows > 0]
    if start and start.at is not None and axis and parts and parts[0].label == start.label:
        parts[0] = replace(parts[0], axis=replace(axis, start=start.at))
    return Slice(start, parts=tuple(parts))


def tell_heavy(whole: Slice, heavy: Mapping[Label, Mapping[int, int]]) -> Slice:
    """The slice with its parts told apart where one step of the axis has many rows.

    Args:
        whole: Of labels that are whole.
        heavy: By label, the rows of those steps, by their number.
    """
    parts = (piece for part in whole.parts for piece in _pieces(part, heavy.get(part.label, {})))
    return replace(whole, parts=tuple(parts))


def split(whole: Slice, *, page_rows: int) -> list[Slice]:
    """Cuts a slice into equal slices of at most about `page_rows`, on label edges where one is near.

    Returns:
        The slice itself, alone, when it is small enough or nothing in it can be cut.
    """
    target = max(1, int(max(page_rows * FILL, page_rows - SPREAD * sqrt(page_rows))))
    pieces = -(-whole.rows // target)
    if pieces <= 1:
        return [whole]
    slack = max(0, page_rows - target) / 2
    slices: list[Slice] = []
    lower, parts = whole.lower, deque(whole.parts)
    for cut in _cuts(whole.parts, pieces=pieces, slack=slack):
        before = tuple(_take_before(parts, cut))
        slices.append(Slice(lower, cut, before, closes=cut.at is None))
        lower = cut
    return [*slices, Slice(lower, whole.upper, tuple(parts), whole.closes)]


def split_labels(whole: Slice, *, rows: int) -> list[Slice]:
    """Cuts a slice between labels into slices of at most `rows` rows; a label that has more stays alone."""
    slices: list[Slice] = []
    lower, held, held_rows = whole.lower, list[Part](), 0
    for label, group in groupby(whole.parts, key=lambda part: part.label):
        parts = list(group)
        label_rows = sum(part.rows for part in parts)
        if held and held_rows + label_rows > rows:
            slices.append(Slice(lower, Bound(label), tuple(held)))
            lower, held, held_rows = Bound(label), [], 0
        held += parts
        held_rows += label_rows
    return [*slices, Slice(lower, whole.upper, tuple(held), whole.closes)]


def take(left: Sequence[Slice], *, rows: int | None) -> tuple[list[Slice], list[Slice]]:
    """The next commit's slices, of `rows` rows at most but for a larger one or a small rest; and the rest."""
    sizes = [slice_.rows for slice_ in left]
    is_rest = rows is not None and sum(sizes) <= rows * FULLEST
    count = count_fitting(sizes, rows=None if is_rest else rows)
    taken, rest = list(left[:count]), list(left[count:])
    if not taken[-1].closes:
        taken[-1] = replace(taken[-1], closes=True, is_counted=False)
        end = next(i for i, slice_ in enumerate(rest) if slice_.closes)
        rest[end] = replace(rest[end], is_counted=False)
    return taken, rest


def count_fitting(sizes: Sequence[int], *, rows: int | None) -> int:
    """How many of the first have `rows` rows together at most; the first always fits, None all of them."""
    if rows is None:
        return len(sizes)
    return max(bisect_right(list(accumulate(sizes)), rows), min(1, len(sizes)))


def halve(whole: Slice) -> list[Slice]:
    """Two slices of half the rows each, or the slice itself when nothing in it can be cut."""
    return split(whole, page_rows=max(1, int(-(-whole.rows // 2) / FILL) + 1))


def enclose(group: Sequence[Slice]) -> Slice:
    """One slice from the first's beginning to the last's end."""
    parts = tuple(part for slice_ in group for part in slice_.parts)
    return replace(group[-1], lower=group[0].lower, parts=parts)


def plan_prefixes(
    samples: Sequence[Label], *, rows: int, page_rows: int, start: Bound | None = None
) -> list[Slice]:
    """Slices between evenly spaced members of a sorted, even sample of the labels.

    Args:
        samples: Sampled labels, ascending in the table's own order, without repeats.
        rows: Rows of the whole table, or of what comes after `start`.
        page_rows: Rows that one answer may hold.
        start: The first place; None is the table's beginning.
    """
    pieces = max(1, -(-rows // max(1, int(page_rows * FILL))))
    step = max(1.0, len(samples) / pieces)
    labels = [samples[int(step * i)] for i in range(1, pieces) if int(step * i) < len(samples)]
    edges = [start, *(Bound(label) for label in labels), None]
    shares = [
        rows * (i + 1) // (len(edges) - 1) - rows * i // (len(edges) - 1) for i in range(len(edges) - 1)
    ]
    return [
        Slice(
            lower,
            upper,
            (Part(lower.label if lower else ("",), share, None),),
            closes=upper is None,
        )
        for (lower, upper), share in zip(pairwise(edges), shares, strict=True)
    ]


def _cuts(parts: Sequence[Part], *, pieces: int, slack: float) -> Iterator[Bound]:
    """The places that cut the parts into equal pieces; a label's edge where one lies within `slack` rows."""
    edges = list(accumulate((part.rows for part in parts), initial=0))
    last_row = 0.0
    for piece in range(1, pieces):
        row = edges[-1] * piece / pieces
        index = bisect_left(edges, row) - 1
        row, at = _place(parts[index], row, edges[index], edges[index + 1], slack)
        if last_row < row < edges[-1]:
            last_row = row
            yield Bound(parts[index].label, at) if at else _edge(parts, index + (row > edges[index]))


def _place(part: Part, row: float, first: int, last: int, slack: float) -> tuple[float, int | None]:
    """Where to cut a part that spans rows `first` to `last`: row, and where on the axis if on no edge."""
    if row - first <= slack:
        return first, None
    if part.axis is None or last - row <= slack:
        return last, None
    axis = part.axis
    at = axis.start + int((axis.end - axis.start) * (row - first) / part.rows)
    at -= at % axis.step
    return (row, at) if axis.start < at < axis.end else (last, None)


def _edge(parts: Sequence[Part], index: int) -> Bound:
    """Where a part begins: with its label, or after another part of that label."""
    part = parts[index]
    goes_on = index > 0 and parts[index - 1].label == part.label
    return Bound(part.label, part.axis.start if goes_on and part.axis else None)


def _take_before(parts: deque[Part], cut: Bound) -> Iterator[Part]:
    """Takes from the left what lies before the place; a part across it is cut in two."""
    while parts and _ends_before(parts[0], cut):
        yield parts.popleft()
    if not parts or parts[0].axis is None or cut.at is None or cut.at <= parts[0].axis.start:
        return
    part, axis = parts[0], parts[0].axis
    rows = round(part.rows * (cut.at - axis.start) / (axis.end - axis.start))
    parts[0] = replace(part, rows=part.rows - rows, axis=replace(axis, start=cut.at))
    yield replace(part, rows=rows, axis=replace(axis, end=cut.at))


def _ends_before(part: Part, cut: Bound) -> bool:
    if part.label != cut.label:
        return part.label < cut.label
    return cut.at is not None and part.axis is not None and part.axis.end <= cut.at


def _pieces(part: Part, heavy: Mapping[int, int]) -> Iterator[Part]:
    """A label's heavy steps, each by itself, and what lies evenly between them."""
    if part.axis is None or not heavy:
        yield part
        return
    axis, step = part.axis, part.axis.step
    light = left = max(0, part.rows - sum(heavy.values()))
    width = axis.end - axis.start - step * len(heavy)
    at = axis.start
    for number, rows in sorted(heavy.items()):
        between = light * (number * step - at) // width
        if between:
            yield Part(part.label, between, Axis(at, number * step, step))
        yield Part(part.label, rows, Axis(number * step, (number + 1) * step))
        at, left = (number + 1) * step, left - between
    if left:
        yield Part(part.label, left, Axis(at, axis.end, step))
