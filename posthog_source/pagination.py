"""From a table and a window to pages of rows, each row exactly once.

One code path for every table that ClickHouse holds: count, cut the line of its sort key into slices of
about a page, read the slices with look-ahead, page inside a slice that turned out larger, cut one that
turned out too heavy, and compare what came with what was counted. Not here: HogQL (`query`), rows
(`arrow`), the socket (`client`), warehouses (`resources`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import TypeVar

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from posthog_source.arrow import (
    Answer,
    count_runs,
    drop_copies,
    last_row,
    parse_instant,
    read_answer,
    read_types,
    replace_nul,
    to_table,
)
from posthog_source.client import Client
from posthog_source.config import MAX_PAGE_ROWS, Settings, TableSettings
from posthog_source.errors import (
    Body,
    MissingRowsError,
    QueryRefusedError,
    SettingsError,
    StuckCursorError,
    TooHeavyError,
    UnexpectedAnswerError,
)
from posthog_source.prefetch import ordered_prefetch
from posthog_source.query import (
    Among,
    Cell,
    Late,
    Query,
    build_columns,
    build_count,
    build_count_distinct,
    build_day_counts,
    build_day_labels,
    build_heavy_counts,
    build_label_counts,
    build_page,
    build_probe,
    build_probe_condition,
    build_proof,
    build_row_bytes,
    build_sample,
    build_span,
)
from posthog_source.tables import Column, HogqlTable, LabelField, discovered_column
from posthog_source.tracing import Value, spanned
from posthog_source.windows import (
    Axis,
    Bound,
    Count,
    Label,
    Part,
    Slice,
    Window,
    enclose,
    halve,
    halve_window,
    line_up,
    plan_prefixes,
    plan_slices,
    split,
    take,
    tell_heavy,
)

SAMPLES_PER_PAGE = 100
"""Sampled keys per slice: their spacing then varies by about a tenth of a page."""

HEAVY_SHARE = 100
"""A value of a hash that has a page's rows divided by this is planned by itself."""

TRUSTED_SHARE = 0.75
"""A page shorter than asked ends its slice when this share of the expected rows has come; else PostHog
may have lowered the LIMIT in silence, and is asked for more."""

LEAST_CAP = 100
"""Rows that PostHog gives where no LIMIT is asked for (query_api.md 2.1): no server has a lower cap."""

SMALLEST_SHARE = 64
"""Into how many parts a page that is too heavy is cut before it is asked for in the background: each try
may take PostHog's whole 10 s."""

MAX_ROWS_COMPARED = 1_000_000
"""Rows among which copies are looked for, at about 100 bytes each; a larger load is assumed to have some."""

logger = logging.getLogger("posthog_source")

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """How many rows a table has, and the times of the first and the last, if it has times and rows."""

    rows: int
    first_at: datetime | None = None
    last_at: datetime | None = None


@dataclass(frozen=True)
class Plan:
    """What will be read.

    Attributes:
        source: HogQL table.
        window: Its bounds in time, if the table has any.
        slices: In order; together all rows.
        among: Which of their rows; None means all.
    """

    source: str
    window: Window | None
    slices: tuple[Slice, ...]
    among: Among | None = None

    @property
    def rows(self) -> int:
        """Rows counted."""
        return sum(slice_.rows for slice_ in self.slices)

    def take(self, rows: int | None) -> tuple[Plan, Plan]:
        """What a commit of `rows` rows reads of it, where received and counted are compared, and the rest."""
        taken, left = take(self.slices, rows=rows)
        return replace(self, slices=tuple(taken)), replace(self, slices=tuple(left))


@dataclass(frozen=True)
class Page:
    """One answer.

    Attributes:
        rows: Without NUL, and one of each key.
        received: Rows that came.
        keys: Different page keys among them.
        limit: LIMIT that was asked for.
        last: Page key of the last row, for the next page; None when no row came.
        in_background: Whether it was too heavy for a query that is waited for.
    """

    rows: pa.Table
    received: int
    keys: int
    limit: int
    last: tuple[Cell, ...] | None
    in_background: bool = False


class Reader:
    """Reads one HogQL table of one project.

    Args:
        client: Whom to ask.
        table: The catalogue row.
        project_id: Stamped on each row.
        page_rows: Rows of an answer; lowered when the server turns out to allow fewer.
        look_ahead: Slices in flight.
        may_repeat: Whether rows may be handed on twice when a part is read again because rows were
            missing: only where the load sorts out copies.
        absent: Optional columns that the server is known not to have; None to find out when it refuses one.
    """

    def __init__(
        self,
        client: Client,
        table: HogqlTable,
        *,
        project_id: int,
        page_rows: int,
        look_ahead: int,
        may_repeat: bool,
        absent: frozenset[str] | None = None,
    ) -> None:
        self.table = table
        self.page_rows = page_rows
        self.copies_dropped = 0
        self.parts_read_again = 0
        self._seen: list[pa.Array] = []
        self._rows = 0
        self._client = client
        self._project_id = project_id
        self._look_ahead = look_ahead
        self._may_repeat = may_repeat
        self._absent = absent
        self._probing = threading.Lock()

    @classmethod
    def of(
        cls,
        client: Client,
        table: HogqlTable,
        settings: Settings,
        config: TableSettings,
        *,
        may_repeat: bool,
        absent: frozenset[str] | None = None,
    ) -> Reader:
        """The reader that a person's settings ask for."""
        return cls(
            client,
            table,
            project_id=settings.project_id,
            page_rows=config.page_rows,
            look_ahead=settings.look_ahead,
            may_repeat=may_repeat,
            absent=absent,
        )

    @property
    def absent(self) -> frozenset[str]:
        """Optional columns that the server has turned out not to have."""
        return self._absent or frozenset()

    @property
    def waited_s(self) -> float:
        """Seconds that its client has waited because PostHog's limits said so, of all threads together."""
        return self._client.usage.waited_s

    @property
    def has_copies(self) -> bool:
        """Whether two rows of one key may have been handed on by now: the load has to sort them out."""
        if self.parts_read_again or self._rows > MAX_ROWS_COMPARED:
            return True
        return self._may_repeat and _has_repeats(self._seen)

    def forget(self) -> None:
        """Lets go of the keys handed on.

        A reader may live on until Python looks for cycles: dlt's settings keep an error, and with it the
        frames of who asked for them.
        """
        self._seen.clear()

    def ask(self, query: Query, window: Window | None = None) -> list[tuple[str | None, ...]]:
        """The cells of a small answer; asked for in the background where it is too heavy.

        Raises:
            TooHeavyError: It is, and its window can be halved.
        """
        return self._cells(query, window)

    def fetch_columns(self) -> tuple[Column, ...]:
        """Columns that the server has beside the table's own."""
        known = {name for column in self.table.columns for name in (column.name, column.source)}
        types = self._ask(build_columns(self.table.sources[0]), read_types)
        found = {column.name: column for column in (discovered_column(*one) for one in types)}
        return tuple(column for name, column in found.items() if name and not {name, column.source} & known)

    def check_condition(self) -> None:
        """Asks PostHog whether it understands the table's condition, if it has one.

        Raises:
            SettingsError: It does not; with PostHog's own words.
        """
        if self.table.condition is None or not self.table.condition.where:
            return
        try:
            self._answer(build_probe_condition(self.table, self.table.sources[0]))
        except QueryRefusedError as error:
            name = self.table.name
            raise SettingsError(
                f"{name}.where is no condition that PostHog takes. Set it under [sources.posthog.{name}]. "
                f"{error}"
            ) from error

    def fetch_size(self, window: Window | None = None) -> Size:
        """How many rows there are, and between which times if there are any.

        A window is for tables that have times.
        """
        table, source = self.table, self.table.sources[0]
        if not table.time_column:
            counts = (build_count(table, each, Slice(), window=None) for each in table.sources)
            return Size(sum(self._fetch_count(count) for count in counts))
        ((row_count, first_at, last_at),) = self._cells(build_span(table, source, window))
        rows = int(row_count or 0)
        if not rows or not first_at or not last_at:
            return Size(rows)
        return Size(rows, parse_instant(first_at), parse_instant(last_at))

    def fetch_row_bytes(self, window: Window) -> float:
        """What PostHog reads for a row of a window, on average, in bytes; 0 where it has none."""
        ((row_count, byte_count),) = self._cells(build_row_bytes(self.table, self.table.sources[0], window))
        return int(byte_count or 0) / max(1, int(row_count or 0))

    def fetch_first_instant(self) -> datetime | None:
        """The time of the table's first row; None when it has no rows."""
        try:
            return self.fetch_size().first_at
        except TooHeavyError as error:
            raise SettingsError(
                f"{self.table.name}: PostHog cannot find the first one in time. Set start_date under "
                "[sources.posthog]."
            ) from error

    def fetch_rest(
        self, lower: Bound | None, among: Among | None = None, *, known: Plan | None = None
    ) -> Plan:
        """Cuts all rows from a place on, of a table that has no windows, into slices of about a page.

        Args:
            lower: The place; None is the table's beginning.
            among: Which of them; None means all.
            known: What an earlier commit has left: it is the answer where it begins at that place.
        """
        if known and known.slices and known.slices[0].lower == lower:
            return replace(known, among=among)
        source = self.table.sources[0]
        return Plan(source, None, tuple(self._fetch_slices(source, None, None, lower, among)), among)

    def fetch_plans(
        self, window: Window | None, rows: int | None = None, counts: Sequence[Count] | None = None
    ) -> list[Plan]:
        """Cuts the rows into slices of about a page.

        Args:
            window: Bounds in time, for a table that has them.
            rows: How many rows there are, if they have been counted; else they are counted first.
            counts: The same by label, if they have been counted.
        """
        return [
            plan for source in self.table.sources for plan in self._fetch_plans(source, window, rows, counts)
        ]

    def fetch_labels(
        self,
        window: Window,
        rows: int,
        counts: Sequence[Count] | None = None,
        *,
        start: Label | None = None,
    ) -> Slice:
        """The counted labels of a window of `rows` rows, from the label `start` on: to be cut in parts."""
        if counts is None:
            counts = list(self._iter_label_counts(self.table.sources[0], window, rows))
        left = [count for count in counts if start is None or count.label >= start]
        whole = line_up(left, axis=self._axis, start=Bound(start) if start else None)
        return self._tell_heavy(self.table.sources[0], window, whole)

    def plan_slice(self, window: Window, whole: Slice) -> Plan:
        """Cuts a run of counted labels into slices of about a page."""
        return Plan(self.table.sources[0], window, tuple(split(whole, page_rows=self.page_rows)))

    def fetch_day_counts(self, window: Window, late: Late | None = None) -> dict[date, int]:
        """Rows of a window by UTC day; with `late`, only those that arrived late."""

        def fetch(part: Window) -> dict[date, int]:
            query = build_day_counts(self.table, self.table.sources[0], window=part, late=late)
            return {date.fromisoformat(day or ""): int(rows or 0) for day, rows in self._cells(query, part)}

        return in_halves(window, fetch)

    def fetch_day_labels(self, window: Window) -> dict[date, tuple[Count, ...]]:
        """Rows of a window of few days by day and the label after it, each day's ascending."""

        def fetch(part: Window) -> dict[date, tuple[Count, ...]]:
            query = build_day_labels(self.table, self.table.sources[0], window=part)
            return dict(_day_labels(*cells) for cells in self._cells(query, part))

        return in_halves(window, fetch)

    def plan_among(self, among: Among, *, rows: int, window: Window | None = None) -> Plan:
        """Reads some rows, in one slice. `rows` says how many there are; 0 that nobody has counted them."""
        return Plan(self.table.sources[0], window, (Slice(parts=(Part((), rows, None),)),), among)

    def fetch_counts(self, source: str, among: Among | None) -> list[Count]:
        """Rows by label, of a table that has no times."""
        return list(self._iter_label_counts(source, None, None, among=among))

    def plan_counts(self, source: str, counts: Iterable[Count], among: Among) -> Plan:
        """Cuts counted labels into slices of about a page; `among` says that no others are read."""
        return Plan(
            source, None, tuple(plan_slices(counts, page_rows=self.page_rows, axis=self._axis)), among
        )

    def iter_pages(self, plan: Plan) -> Iterator[pa.Table]:
        """Pages of all rows of a plan, at least once each, in slice order.

        Raises:
            MissingRowsError: PostHog counts more rows than it hands out.
            StuckCursorError, UnexpectedAnswerError, ApiError, …: See `errors`.
        """
        told: dict[str, Value] = {"table": self.table.name, "rows": plan.rows, "slices": len(plan.slices)}
        if plan.window:
            told |= {"start": plan.window.start.isoformat(), "end": plan.window.end.isoformat()}
        attributes = {f"posthog_source.window.{name}": value for name, value in told.items()}
        return spanned("posthog_source.window", attributes, self._iter_pages(plan))

    def _iter_pages(self, plan: Plan) -> Generator[pa.Table]:
        group: list[Slice] = []
        received = keys = 0
        scope = self._client.cancel_scope()
        fetched = ordered_prefetch(
            scope.bind(lambda slice_: self._try_first_page(plan, slice_)),
            plan.slices,
            depth=self._look_ahead,
            cancel=scope.cancel,
        )
        for slice_, first in fetched:
            group.append(slice_)
            for page in self._iter_slice(plan, slice_, first):
                received += page.received
                keys += page.keys
                yield self._hand_on(page)
                del page
            if slice_.closes:
                whole = enclose(group)
                if received < whole.rows or not whole.is_counted:
                    yield from self._iter_again(plan, whole, keys)
                group, received, keys = [], 0, 0

    def _hand_on(self, page: Page) -> pa.Table:
        """The page's rows, less those handed on before where the load cannot sort them out.

        Copies of an event may lie on two pages: sent again under another name or at another time. Where
        the load can sort them out, they are only noticed.
        """
        key, rows = self.table.primary_key[1:], page.rows
        if not self._pages_by_key:
            if not self._may_repeat:
                rows = self._drop_seen(rows, key[-1])
            self._rows += rows.num_rows
            if not self._may_repeat or self._rows <= MAX_ROWS_COMPARED:
                self._seen.extend(rows.column(key[-1]).chunks)
            else:
                self._seen.clear()
        self.copies_dropped += page.received - rows.num_rows
        return rows

    def _drop_seen(self, page: pa.Table, name: str) -> pa.Table:
        """The page less the rows whose key has been handed on already: hardly ever any."""
        keys, seen = page.column(name), pa.chunked_array(self._seen, pa.string())
        again = seen.filter(pc.is_in(seen, value_set=keys))
        return page.filter(pc.invert(pc.is_in(keys, value_set=again))) if len(again) else page

    @property
    def _pages_by_key(self) -> bool:
        """Whether the primary key orders pages: then copies lie side by side, and on no two pages."""
        return set(self.table.page_key) <= set(self.table.primary_key[1:])

    @property
    def _axis(self) -> Axis | None:
        sort_key = self.table.sort_key
        return sort_key.axis.axis if sort_key.axis else None

    def _fetch_plans(
        self, source: str, window: Window | None, rows: int | None, counts: Sequence[Count] | None = None
    ) -> list[Plan]:
        try:
            slices = self._fetch_slices(source, window, rows, counts=counts)
            return [Plan(source, window, tuple(slices))]
        except TooHeavyError:
            halves = halve_window(window) if window else []
            if len(halves) < 2:
                raise
            return [plan for half in halves for plan in self._fetch_plans(source, half, None)]

    def _fetch_slices(
        self,
        source: str,
        window: Window | None,
        rows: int | None,
        lower: Bound | None = None,
        among: Among | None = None,
        counts: Iterable[Count] | None = None,
    ) -> list[Slice]:
        sort_key, total, samples = self.table.sort_key, rows, list[Label]()
        if sort_key.is_sampled:
            total, samples = self._fetch_sample(source, lower, among)
        if total is None:
            query = build_count(self.table, source, Slice(lower), window=window, among=among)
            total = self._fetch_count(query, window)
        if total <= self.page_rows:
            return [Slice(lower, parts=(Part((), total, None),))]
        if sort_key.is_sampled:
            return plan_prefixes(samples, rows=total, page_rows=self.page_rows, start=lower)
        if not sort_key.labels:
            return plan_slices([Count((), total)], page_rows=self.page_rows, axis=self._axis, start=lower)
        if counts is None:
            counts = self._iter_label_counts(source, window, total, lower, among)
        whole = line_up(counts, axis=self._axis, start=lower)
        return split(self._tell_heavy(source, window, whole), page_rows=self.page_rows)

    def _tell_heavy(self, source: str, window: Window | None, whole: Slice) -> Slice:
        """The slice with labels larger than a page told apart by where on the axis many rows lie together.

        One distinct id may have most of an event's rows, such as that of a server.
        """
        large = [part.label for part in whole.parts if part.rows > self.page_rows]
        if not large or not self.table.sort_key.axis or not self.table.sort_key.axis.then:
            return whole
        query = build_heavy_counts(
            self.table,
            source,
            whole,
            window=window,
            labels=large,
            rows=max(1, self.page_rows // HEAVY_SHARE),
            limit=MAX_PAGE_ROWS,
        )
        heavy: dict[Label, dict[int, int]] = {}
        for *texts, value, rows in self._cells(query, window):
            label = _label(self.table.sort_key.labels, texts)
            heavy.setdefault(label, {})[int(value or 0)] = int(rows or 0)
        return tell_heavy(whole, heavy)

    def _iter_label_counts(
        self,
        source: str,
        window: Window | None,
        total: int | None,
        lower: Bound | None = None,
        among: Among | None = None,
    ) -> Iterator[Count]:
        """Counts by label. The total tells their end, or an empty answer: one may be cut in silence."""
        labels = self.table.sort_key.labels
        after: Label | None = None
        counted = 0
        while total is None or counted < total:
            query = build_label_counts(
                self.table,
                source,
                window=window,
                after=after,
                limit=MAX_PAGE_ROWS,
                lower=lower,
                among=among,
            )
            rows = self._cells(query, window)
            if not rows:
                return  # the end, or rows went away since the total was taken
            for *texts, row_count in rows:
                after = _label(labels, texts)
                counted += int(row_count or 0)
                yield Count(after, int(row_count or 0))

    def _fetch_sample(self, source: str, lower: Bound | None, among: Among | None) -> tuple[int, list[Label]]:
        """Rows from a place on, and a sample of the labels after it; one question, since either reads all."""
        one_in = max(1, self.page_rows // SAMPLES_PER_PAGE)
        query = build_sample(self.table, source, one_in=one_in, lower=lower, among=among)
        ((rows, labels),) = self._cells(query)
        found = [_label(self.table.sort_key.labels, texts) for texts in orjson.loads(labels or "[]")]
        found.sort(key=_in_clickhouse)
        return int(rows or 0), [label for label in found if lower is None or label != lower.label]

    def _try_first_page(self, plan: Plan, slice_: Slice) -> Page | TooHeavyError:
        try:
            return self._fetch_page(plan, slice_, None, self.page_rows)
        except TooHeavyError as error:
            return error  # the consumer cuts the slice; other slices in flight go on

    def _iter_slice(self, plan: Plan, slice_: Slice, first: Page | TooHeavyError) -> Iterator[Page]:
        """All pages of a slice, in halves where PostHog finds it too heavy."""
        if not isinstance(first, TooHeavyError):
            yield from self._iter_rest(plan, slice_, first, trusted_rows=self._trusted_rows(plan, slice_))
            return
        halves = halve(slice_) if slice_.rows > self.page_rows // SMALLEST_SHARE else [slice_]
        logger.warning("%s: %d rows are asked for in smaller parts. %s", self.table.name, slice_.rows, first)
        if len(halves) == 1:
            page = self._fetch_lighter_page(plan, slice_, None, max(1, self.page_rows // 2))
            yield from self._iter_rest(plan, slice_, page, trusted_rows=self._trusted_rows(plan, slice_))
            return
        for half in halves:
            yield from self._iter_slice(plan, half, self._try_first_page(plan, half))

    def _trusted_rows(self, plan: Plan, slice_: Slice) -> float:
        """From how many rows on a short page is taken for a slice's last.

        Where a part cannot be read again later, its rows are counted first.
        """
        if plan.among:
            return slice_.rows or float("inf")  # counted just now, and no others; or not at all
        if self._may_repeat:
            return slice_.rows * TRUSTED_SHARE
        return self._fetch_count(build_count(self.table, plan.source, slice_, window=plan.window))

    def _iter_rest(self, plan: Plan, slice_: Slice, page: Page, *, trusted_rows: float) -> Iterator[Page]:
        """A slice's first page and all that follow it."""
        seen, is_uncounted = 0, plan.among is not None and not slice_.rows
        while page.received:
            yield page
            seen += page.received
            is_full = page.received >= min(page.limit, self.page_rows)
            is_uncut = page.received < self._client.proof.rows
            if not is_full and (seen >= trusted_rows or is_uncut):
                return
            if not is_full and is_uncounted and self._gives_more_than(page.received):
                return
            limit = min(page.limit * 2, self.page_rows)  # grows back after a page that was too heavy
            fetch = self._fetch_page_in_background if page.in_background else self._fetch_lighter_page
            following = fetch(plan, slice_, page.last, limit)
            if not is_full and following.received == page.received:
                self._learn_cap(page.received)
            page = following

    def _gives_more_than(self, received: int) -> bool:
        """Whether PostHog hands out more rows than those, so that no lower cap has cut them.

        Rows of a number prove it for nothing, where to ask for what follows would run a costly query again.
        """
        if received < LEAST_CAP:
            return True
        proof = self._client.proof
        proof.rows = max(proof.rows, self._answer(build_proof(received + 1)).rows)
        return received < proof.rows

    def _learn_cap(self, rows: int) -> None:
        if rows < self.page_rows:
            logger.warning(
                "%s: PostHog hands out %d rows at most instead of the %d asked for; asking for no more.",
                self.table.name,
                rows,
                self.page_rows,
            )
            self.page_rows = rows

    def _iter_again(self, plan: Plan, whole: Slice, keys: int) -> Iterator[pa.Table]:
        """Recounts a part in which rows may be missing, and reads it again if they are really there."""
        expected = self._fetch_distinct(plan, whole)
        if keys >= expected:
            return  # deleted since, or duplicates that ClickHouse has merged by now
        what = f"{self.table.name}: {keys} rows came where PostHog counts {expected}"
        if not self._may_repeat:
            raise MissingRowsError(
                f"{what}; reading them again would double the others, since this load only adds rows. Run "
                "again; events that are replaced (write_mode = window) are read again by themselves."
            )
        logger.warning("%s; reading that part again.", what)
        self.parts_read_again += 1
        keys = 0
        first = self._fetch_lighter_page(plan, whole, None, self.page_rows)
        for page in self._iter_rest(plan, whole, first, trusted_rows=float("inf")):
            keys += page.keys
            yield self._hand_on(page)
        if keys < self._fetch_distinct(plan, whole):
            raise MissingRowsError(f"{what}, twice. Nothing of this run is loaded; run again later.")

    def _fetch_lighter_page(
        self, plan: Plan, slice_: Slice, after: Sequence[Cell] | None, limit: int
    ) -> Page:
        """A page of `limit` rows, of fewer where PostHog finds that too heavy, or else in the background."""
        lighter = limit
        while True:
            try:
                return self._fetch_page(plan, slice_, after, lighter)
            except TooHeavyError as error:
                if lighter <= max(1, limit // SMALLEST_SHARE):
                    logger.warning("%s: asking in the background. %s", self.table.name, error)
                    return self._fetch_page_in_background(plan, slice_, after, limit)
                lighter = max(1, lighter // 2)

    def _fetch_page_in_background(
        self, plan: Plan, slice_: Slice, after: Sequence[Cell] | None, limit: int
    ) -> Page:
        return self._fetch_page(plan, slice_, after, limit, in_background=True)

    def _fetch_page(
        self,
        plan: Plan,
        slice_: Slice,
        after: Sequence[Cell] | None,
        limit: int,
        *,
        in_background: bool = False,
    ) -> Page:
        absent = self.absent
        query = build_page(
            self.table.without(absent),
            plan.source,
            slice_,
            window=plan.window,
            after=after,
            limit=limit,
            among=plan.among,
        )
        try:
            ask = self._client.query_async if in_background else self._client.query
            answer = ask(query, _read)
        except QueryRefusedError as error:
            if error.code != "hogql_query_error" or self._find_absent() == absent:
                raise
            return self._fetch_page(plan, slice_, after, limit, in_background=in_background)
        rows = to_table(answer, self.table, project_id=self._project_id, absent=absent)
        last = last_row(rows, self.table.page_key) if rows.num_rows else None
        if after is not None and last == tuple(after):
            raise StuckCursorError(
                f"{self.table.name}: a page ends with the row that it should follow. Please report this."
            )
        self._client.proof.rows = max(self._client.proof.rows, rows.num_rows)
        keys = count_runs(rows, self.table.page_key)
        clean = replace_nul(rows, self.table)
        if clean is not rows or keys < rows.num_rows or not self._pages_by_key:
            clean = drop_copies(clean, self.table.primary_key[1:])  # which hashes all keys
        return Page(clean, rows.num_rows, keys, limit, last, in_background)

    def _find_absent(self) -> frozenset[str]:
        """Optional columns that this server does not know; asked once, told once."""
        with self._probing:
            if self._absent is None:
                optional = [column for column in self.table.columns if column.is_optional]
                unknown = [column for column in optional if not self._knows(column)]
                for column in unknown:
                    logger.log(
                        logging.INFO if column.is_opt_in else logging.WARNING,
                        "%s.%s stays empty: this PostHog does not know %s.",
                        self.table.name,
                        column.name,
                        column.source,
                    )
                self._absent = frozenset(column.name for column in unknown)
            return self._absent

    def _knows(self, column: Column) -> bool:
        try:
            self._answer(build_probe(self.table, self.table.sources[0], column))
        except QueryRefusedError as error:
            if error.code != "hogql_query_error":
                raise
            return False
        return True

    def _fetch_distinct(self, plan: Plan, slice_: Slice) -> int:
        return self._fetch_count(
            build_count_distinct(
                self.table,
                plan.source,
                slice_,
                window=plan.window,
                among=plan.among,
            )
        )

    def _fetch_count(self, query: Query, window: Window | None = None) -> int:
        cells = self._cells(query, window)
        if len(cells) != 1 or cells[0][0] is None:
            raise UnexpectedAnswerError(f"{query.name}: PostHog answered a count with {len(cells)} rows.")
        return int(cells[0][0])

    def _cells(self, query: Query, window: Window | None = None) -> list[tuple[str | None, ...]]:
        return self._answer(query, window).cells()

    def _answer(self, query: Query, window: Window | None = None) -> Answer:
        return self._ask(query, read_answer, window)

    def _ask(self, query: Query, read: Callable[[Body], T], window: Window | None = None) -> T:
        """The answer; in the background where it is too heavy and its window, if any, cannot be halved.

        Raises:
            TooHeavyError: The window can be halved.
        """
        try:
            return self._client.query(query, read)
        except TooHeavyError as error:
            if window and len(halve_window(window)) > 1:
                raise
            logger.warning("%s: asking in the background. %s", self.table.name, error)
            return self._client.query_async(query, read)


def _read(body: Body) -> Answer:
    """Reads an answer, which lies in memory four times over meanwhile.

    What that took is given back at once; Arrow's allocator would wait for the thread's next answer.
    """
    answer = read_answer(body)
    pa.default_memory_pool().release_unused()
    return answer


def in_halves(window: Window, fetch: Callable[[Window], dict[date, T]]) -> dict[date, T]:
    """What is found of each day of a window, which is halved while PostHog finds it too heavy."""
    try:
        return fetch(window)
    except TooHeavyError:
        halves = halve_window(window)
        if len(halves) < 2:
            raise
        first, second = (in_halves(half, fetch) for half in halves)
        return first | second


def _day_labels(day: str | None, names: str | None, rows: str | None) -> tuple[date, tuple[Count, ...]]:
    """A day and its counts, ascending, from the cells of `build_day_labels`."""
    on = date.fromisoformat(day or "")
    counted = sorted(zip(orjson.loads(names or "[]"), orjson.loads(rows or "[]"), strict=True))
    return on, tuple(Count((on, name), int(count)) for name, count in counted)


def _has_repeats(chunks: Sequence[pa.Array]) -> bool:
    """Whether two texts are the same, looked for among those that end alike.

    A hash table of all at once would take several times their memory.
    """
    texts = pa.chunked_array(chunks, pa.string())
    ends = pc.utf8_slice_codeunits(texts, -1)
    alike = (texts.filter(pc.equal(ends, end)) for end in pc.unique(ends))
    return any(pc.count_distinct(some).as_py() < len(some) for some in alike)


def _in_clickhouse(label: Label) -> tuple[object, ...]:
    """What sorts labels as ClickHouse does: texts by their bytes."""
    return tuple(value.encode() if isinstance(value, str) else value for value in label)


def _label(fields: Sequence[LabelField], texts: Sequence[str | None]) -> Label:
    return tuple(_label_value(field, text) for field, text in zip(fields, texts, strict=True))


def _label_value(field: LabelField, text: str | None) -> date | str | int:
    match field.kind:
        case "day":
            return date.fromisoformat(text or "")
        case "bigint":
            return int(text or "")
        case _:
            return text or ""
