"""HogQL text: the only place that writes it. Pure.

Values of a person's or PostHog's making travel as placeholders, which become constants of the parsed
query (query_api.md 6.6), never as text. Times are always `toDateTime64('…', 6, 'UTC')`: any other form
is read in the project's zone, truncated, or turned into NULL in silence (query_api.md 6.3). Upper bounds
are closed, since `< midnight` makes ClickHouse read the next day too (measured; see `_day_range`).

Not here: what to ask (`pagination`) and what comes back (`arrow`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain, takewhile
from uuid import UUID

from posthog_source.fingerprint import (
    PART_BYTES,
    PRIME,
    TAIL_CHARS,
    TAIL_START,
    TEXT_BYTES,
    TEXT_PARTS,
    Fingerprint,
    Term,
)
from posthog_source.statement import Statement
from posthog_source.tables import Column, Condition, HogqlTable, LabelField, QueryTable, SortKey
from posthog_source.windows import EPOCH, Bound, Label, Slice, Window

MAX_DAYS = 10_000
MICROSECOND = timedelta(microseconds=1)
DAY = timedelta(days=1)

NUL, NO_NUL = "\0", "\ufffd"
"""What no warehouse takes, and what is loaded instead."""

BOOL = "^(?:true|false)$"
ISO_TIME = (
    "^[0-9]{4}-[0-9]{2}-[0-9]{2}"
    "(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.][0-9]+)?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?$"
)
"""What a promoted property of that kind looks like, for ClickHouse's RE2."""


@dataclass(frozen=True)
class Late:
    """Rows that PostHog received at `since` or later, and at least `by_s` seconds after they happened."""

    since: datetime
    by_s: int


@dataclass(frozen=True)
class Keys:
    """Rows that have one of those values in a field."""

    field: str
    values: tuple[str | int, ...]


@dataclass(frozen=True)
class Seen:
    """Distinct ids of the people who did something in those windows, or did it under those distinct ids.

    All ids of such a person, not just the one that was used: of two people who became one, the other's ids
    belong to somebody else now.
    """

    windows: tuple[Window, ...]
    distinct_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changed:
    """Rows that PostHog changed at `since` or later, by the table's cursor."""

    since: datetime


@dataclass(frozen=True)
class Settled:
    """Rows that PostHog received so long ago that a sync has read them.

    Attributes:
        before: When they were received at the latest.
        late_before: The same of those that were received late.
        late_by_s: How many seconds after it happened that is.
    """

    before: datetime
    late_before: datetime
    late_by_s: int


Among = Late | Keys | Seen | Changed | Settled
"""Which rows of a slice or window are asked for, where not all are."""

Cell = datetime | date | str | int | float | Decimal
"""A value of a page key, as read back from a row."""

NEVER = "1 = 2"

_WIDTHS = {"timestamp": 8, "date": 2, "uuid": 16, "bigint": 8, "double": 8, "bool": 1}
"""Bytes of a column's cell, where they do not depend on what it says."""


@dataclass(frozen=True)
class Query:
    """A question ready to send.

    Attributes:
        text: HogQL with `{placeholders}`.
        values: Their values.
        name: Label for PostHog's query log and for messages.
    """

    text: str
    values: Mapping[str, object]
    name: str


def build_page(
    table: HogqlTable,
    source: str,
    slice_: Slice,
    *,
    window: Window | None,
    after: Sequence[Cell] | None,
    limit: int,
    among: Among | None = None,
) -> Query:
    """The next `limit` rows of a slice in page-key order, after the row whose page key is `after`.

    Columns arrive in the table's order less those that the connector adds, every cell as text or null.
    """
    builder = _Builder(f"posthog_source {table.name}")
    keys = [table.column(name) for name in table.page_key]
    conditions = builder.in_slice(table, slice_, window, among)
    if after is not None:
        conditions += builder.after_row(keys, after)
    order = ", ".join(_name(key.source) for key in keys)
    return builder.query(
        f"SELECT {', '.join(builder.cell_of(column) for column in _as_newest(table).asked)} "
        f"{builder.rows(table, source, conditions, table.asked, near=slice_)} ORDER BY {order} LIMIT {limit}"
    )


def build_count(
    table: HogqlTable,
    source: str,
    slice_: Slice,
    *,
    window: Window | None,
    among: Among | None = None,
) -> Query:
    """One row, one cell: rows of a slice."""
    builder = _Builder(f"posthog_source {table.name} count")
    rows = builder.rows(table, source, builder.in_slice(table, slice_, window, among), near=slice_)
    return builder.query(f"SELECT toString(count()) AS row_count {rows} LIMIT 1")


def build_count_distinct(
    table: HogqlTable,
    source: str,
    slice_: Slice,
    *,
    window: Window | None,
    among: Among | None = None,
) -> Query:
    """One row, one cell: different page keys in a slice.

    Fewer than its rows where a ClickHouse table still holds duplicates that it will merge one day.
    """
    builder = _Builder(f"posthog_source {table.name} recount")
    rows = builder.rows(table, source, builder.in_slice(table, slice_, window, among), near=slice_)
    key = ", ".join(_name(table.column(name).source) for name in table.page_key)
    return builder.query(f"SELECT toString(uniqExact(tuple({key}))) AS row_count {rows} LIMIT 1")


def build_label_counts(
    table: HogqlTable,
    source: str,
    *,
    window: Window | None,
    after: Label | None,
    limit: int,
    lower: Bound | None = None,
    among: Among | None = None,
) -> Query:
    """Counts by sort-key label, ascending, after the label `after`: one cell per label field, then rows."""
    builder = _Builder(f"posthog_source {table.name} plan")
    labels = table.sort_key.labels
    conditions = builder.in_slice(table, Slice(lower), window, among)
    if after is not None:
        conditions += builder.beyond(_ranges(table.sort_key, Bound(after)), is_inclusive=False)
    rows = builder.rows(table, source, conditions, near=Slice(lower))
    names = [f"label_{i}" for i in range(len(labels))]
    fields = [_label_expression(table, label) for label in labels]
    cells = ", ".join(
        f"toString({expression}) AS {name}" for expression, name in zip(fields, names, strict=True)
    )
    return builder.query(
        f"SELECT {cells}, toString(count()) AS row_count {rows} "
        f"GROUP BY {', '.join(fields)} ORDER BY {', '.join(fields)} LIMIT {limit}"
    )


def build_heavy_counts(
    table: HogqlTable,
    source: str,
    whole: Slice,
    *,
    window: Window | None,
    labels: Sequence[Label],
    rows: int,
    limit: int,
) -> Query:
    """Counts by sort-key label and hash on the axis, where there are `rows` or more: label, hash, rows.

    Of the labels whose last value is that of one of `labels`.
    """
    builder = _Builder(f"posthog_source {table.name} plan")
    fields = table.sort_key.labels
    among = Keys(fields[-1].field, tuple(sorted({str(label[-1]) for label in labels})))
    conditions = builder.in_slice(table, whole, window, among)
    hash_ = f"cityHash64({_name(table.sort_key.axis.field if table.sort_key.axis else '')})"
    grouped = [*(_label_expression(table, one) for one in fields), hash_]
    cells = ", ".join(f"toString({expression}) AS label_{i}" for i, expression in enumerate(grouped))
    return builder.query(
        f"SELECT {cells}, toString(count()) AS row_count {builder.rows(table, source, conditions)} "
        f"GROUP BY {', '.join(grouped)} HAVING count() >= {rows} ORDER BY {', '.join(grouped)} LIMIT {limit}"
    )


def build_day_counts(table: HogqlTable, source: str, *, window: Window, late: Late | None = None) -> Query:
    """Rows of a window by UTC day, or only those that arrived late: day, rows."""
    builder = _Builder(f"posthog_source {table.name} {'late' if late else 'count'}")
    day = f"toDate({_name(table.column(table.time_column or '').source)})"
    rows = builder.rows(table, source, builder.in_slice(table, Slice(), window, late))
    return builder.query(
        f"SELECT toString({day}) AS day_text, toString(count()) AS row_count {rows} "
        f"GROUP BY {day} ORDER BY {day} LIMIT {MAX_DAYS}"
    )


def build_day_labels(table: HogqlTable, source: str, *, window: Window) -> Query:
    """Rows of a window by UTC day and the label after it: day, and two JSON arrays, of labels and of rows.

    One row for each day, so that no LIMIT, told or not, cuts one short.
    """
    builder = _Builder(f"posthog_source {table.name} count")
    day, name = (_label_expression(table, label) for label in table.sort_key.labels)
    rows = builder.rows(table, source, builder.in_slice(table, Slice(), window))
    counts = f"SELECT {day} AS label_0, {name} AS label_1, count() AS row_count {rows} GROUP BY {day}, {name}"
    return builder.query(
        "SELECT toString(label_0) AS day_text, toJSONString(groupArray(label_1)) AS labels, "
        f"toJSONString(groupArray(row_count)) AS row_counts FROM ({counts}) AS counts "
        f"GROUP BY label_0 ORDER BY label_0 LIMIT {MAX_DAYS}"
    )


def build_sample(
    table: HogqlTable, source: str, *, one_in: int, lower: Bound | None, among: Among | None = None
) -> Query:
    """One row, two cells: rows from a place on, and an even sample of their labels, by a hash of the last.

    The sample is a JSON array of labels, each an array of texts, in any order. One row, so that no LIMIT cuts
    it short.
    """
    builder = _Builder(f"posthog_source {table.name} count")
    names = [_name(label.field) for label in table.sort_key.labels]
    texts = ", ".join(
        name if label.kind == "text" else f"toString({name})"
        for label, name in zip(table.sort_key.labels, names, strict=True)
    )
    rows = builder.rows(table, source, builder.in_slice(table, Slice(lower), None, among))
    sample = f"groupArrayIf([{texts}], modulo(cityHash64({names[-1]}), {one_in}) = 0)"
    return builder.query(
        f"SELECT toString(count()) AS row_count, toJSONString({sample}) AS labels {rows} LIMIT 1"
    )


def build_day_checksums(
    table: HogqlTable,
    source: str,
    fingerprint: Fingerprint,
    *,
    window: Window,
    among: Among | None,
    by_name: bool,
) -> Query:
    """Rows of a window, of copies one, by UTC day: day, and three JSON arrays of names, rows and checksums.

    By name, that of the label after the day; else the only name is empty. One row for each day, so that no
    LIMIT cuts one short.
    """
    builder = _Builder(f"posthog_source {table.name} checksum")
    day, name = (_label_expression(table, label) for label in table.sort_key.labels)
    passed = {"row_day": day, "row_name": name if by_name else builder.value("")}
    conditions = builder.in_slice(table, Slice(), window, among)
    rows = builder.fingerprinted(table, source, fingerprint, conditions, passed)
    keys = _key_names(fingerprint)
    one = (
        f"SELECT row_day, row_name, any(weight) AS one_weight, any(content) AS one_content {rows} "
        f"GROUP BY row_day, row_name, {keys}"
    )
    sums = (
        f"SELECT row_day, row_name, toString(count()) AS row_count, "
        f"toString(sum({_product('one_weight', 'one_content')})) AS checksum FROM ({one}) AS ones "
        "GROUP BY row_day, row_name"
    )
    return builder.query(
        "SELECT toString(row_day) AS day_text, toJSONString(groupArray(row_name)) AS names, "
        "toJSONString(groupArray(row_count)) AS row_counts, toJSONString(groupArray(checksum)) AS checksums "
        f"FROM ({sums}) AS sums GROUP BY row_day ORDER BY row_day LIMIT {MAX_DAYS}"
    )


def build_bucket_checksums(
    table: HogqlTable,
    source: str,
    fingerprint: Fingerprint,
    *,
    slice_: Slice,
    window: Window | None,
    among: Among | None,
    buckets: int,
) -> Query:
    """Rows, of copies one, dealt out by their weight: bucket, rows, checksum."""
    builder = _Builder(f"posthog_source {table.name} checksum")
    conditions = builder.in_slice(table, slice_, window, among)
    rows = builder.fingerprinted(table, source, fingerprint, conditions, {}, near=slice_)
    keys = _key_names(fingerprint)
    one = f"SELECT {keys}, any(weight) AS one_weight, any(content) AS one_content {rows} GROUP BY {keys}"
    bucket = f"one_weight % {buckets}"
    return builder.query(
        f"SELECT toString({bucket}) AS bucket_text, toString(count()) AS row_count, "
        f"toString(sum({_product('one_weight', 'one_content')})) AS checksum FROM ({one}) AS ones "
        f"GROUP BY {bucket} ORDER BY {bucket} LIMIT {buckets}"
    )


def build_fingerprints(
    table: HogqlTable,
    source: str,
    fingerprint: Fingerprint,
    *,
    slice_: Slice,
    window: Window | None,
    among: Among | None,
    buckets: int,
    chosen: Sequence[int],
    arrival: str | None,
    limit: int,
) -> Query:
    """Rows of some buckets: the key's cells, fingerprint, time of arrival, name.

    Copies that differ are several rows.

    Args:
        table: The catalogue row.
        source: HogQL table.
        fingerprint: What of its rows is compared.
        slice_: Where they lie on the table's line.
        window: Bounds in time.
        among: Which rows; None means all.
        buckets: Into how many all rows are dealt out.
        chosen: Which of them are asked for.
        arrival: Column that tells when a row came; the cell is empty without one.
        limit: Rows at most.
    """
    builder = _Builder(f"posthog_source {table.name} fingerprint")
    arrived = [table.column(arrival)] if arrival else []
    passed = {"arrived": _name(_as_newest(table).column(arrival).source)} if arrival else {}
    named = [label for label in table.sort_key.labels if label.kind == "text" and table.time_column]
    passed["row_name"] = _name(named[-1].field) if named else builder.value("")
    conditions = builder.in_slice(table, slice_, window, among)
    rows = builder.fingerprinted(table, source, fingerprint, conditions, passed, arrived, near=slice_)
    keys = [f"key_{n}" for n in range(len(fingerprint.weight))]
    cells = ", ".join(f"toString({key}) AS {key}_text" for key in keys)
    product = _product("weight", "content")
    at = "any(arrived)" if arrival else builder.value("")
    where = f" WHERE weight % {buckets} IN {builder.value(list(chosen))}" if buckets > 1 else ""
    return builder.query(
        f"SELECT {cells}, toString({product}) AS fingerprint, {at} AS arrived_at, any(row_name) AS name "
        f"{rows}{where} GROUP BY {', '.join(keys)}, {product} LIMIT {limit}"
    )


def build_span(table: HogqlTable, source: str, window: Window | None = None) -> Query:
    """One row: how many rows there are, and their first and last time (1970 when there are none)."""
    time_field = _name(table.column(table.time_column or "").source)
    builder = _Builder(f"posthog_source {table.name} first")
    rows = builder.rows(table, source, builder.in_slice(table, Slice(), window))
    return builder.query(
        f"SELECT toString(count()) AS row_count, min({time_field}) AS first_at, max({time_field}) AS last_at "
        f"{rows} LIMIT 1"
    )


def build_row_bytes(table: HogqlTable, source: str, window: Window) -> Query:
    """One row: how many rows a window has, and what ClickHouse reads to hand out their columns, in bytes.

    A text is its bytes, one more, and eight that say where it ends. Of a table of plain rows.
    """
    builder = _Builder(f"posthog_source {table.name} size")
    asked = [column for column in table.asked if not column.property_name]
    sizes = [
        f"sum(length(toString({_name(column.source)})))" if width is None else f"{width} * count()"
        for column in asked
        for width in [_WIDTHS.get(column.kind)]
    ]
    ends = f"{9 * sum(column.kind not in _WIDTHS for column in asked)} * count()"
    rows = builder.rows(table, source, builder.in_slice(table, Slice(), window))
    return builder.query(
        "SELECT toString(count()) AS row_count, "
        f"toString({' + '.join([*sizes, ends])}) AS byte_count {rows} LIMIT 1"
    )


def build_read_bytes(label: str) -> Query:
    """One row, two cells: queries whose client_query_id has that label, and the bytes that they read.

    `query_id` is the client's in newer versions, and holds it in older ones.
    """
    builder = _Builder("posthog_source meter")
    pattern = builder.value(f"%{label}%")
    return builder.query(
        "SELECT toString(count()) AS query_count, toString(sum(read_bytes)) AS byte_count FROM query_log "
        f"WHERE event_date >= today() - 1 AND query_id LIKE {pattern} LIMIT 1"
    )


def build_columns(source: str) -> Query:
    """Zero rows of all columns that `*` has: the answer tells their types."""
    return Query(f"SELECT * FROM {source} WHERE {NEVER} LIMIT 1", {}, f"posthog_source {source} columns")


def build_probe(table: HogqlTable, source: str, column: Column) -> Query:
    """Zero rows of one column: refused when the server does not know it."""
    builder = _Builder(f"posthog_source {table.name} probe")
    cell = column.summed or builder.cell_of(column)
    return builder.query(f"SELECT {cell} FROM {source} WHERE {NEVER} LIMIT 1")


def build_probe_condition(table: HogqlTable, source: str) -> Query:
    """Zero rows of those that the table's condition chooses: refused when the condition cannot be right.

    No time is both in 2001 and in 1999. PostHog folds `1 = 2` into a query of nothing but 0, which lets
    pass what ClickHouse would refuse (hogql.md 1).
    """
    builder = _Builder(f"posthog_source {table.name} probe")
    time_field = _name(table.column(table.time_column or "").source)
    never = [f"{time_field} >= {utc(datetime(2001, 1, 1, tzinfo=UTC))}"]
    never.append(f"{time_field} <= {utc(datetime(1999, 1, 1, tzinfo=UTC))}")
    return builder.query(f"SELECT {time_field} {builder.rows(table, source, never)} LIMIT 1")


def build_proof(rows: int) -> Query:
    """That many rows, for which PostHog reads nothing: it hands out fewer where its cap is lower."""
    text = f"SELECT toString(arrayJoin(range({rows}))) AS cell LIMIT {rows}"
    return Query(text, {}, "posthog_source proof")


def build_result_types(name: str, statement: Statement) -> Query:
    """Zero rows of a person's own SELECT: refused if it cannot be right, else the answer tells its types."""
    text = f"SELECT * FROM {_nested(statement)} WHERE {NEVER} LIMIT 1"
    return Query(_common(statement) + text, {}, f"posthog_source {name} types")


def build_result_page(table: QueryTable, *, start: Sequence[Cell], limit: int) -> Query:
    """Rows of a person's own SELECT in page-key order, `limit` at most, every cell as text or null.

    Rows whose key is null or no number come each time, since they are before or after nothing: whoever reads
    them can tell.

    Args:
        table: The SELECT, and its columns.
        start: Leading values of the page key from which on rows are asked for, those that have them included.
        limit: Rows at most.
    """
    builder = _Builder(f"posthog_source {table.name}")
    keys = [table.column(name) for name in table.page_key]
    compared = keys[: len(start)]
    loose = [f"isNull({_quoted(key)})" for key in compared if key.name in table.loose_keys]
    loose += [f"NOT isFinite({_quoted(key)})" for key in compared if key.kind == "float"]
    where = [_any([f"({' AND '.join(builder.from_key(compared, start))})", *loose])] if start else []
    cells = ", ".join(f"{_result_cell(c)} AS posthog_source_{n}" for n, c in enumerate(table.asked))
    order = f" ORDER BY {', '.join(_quoted(key) for key in keys)}" if keys else ""
    return builder.query(
        f"{_common(table.statement)}SELECT {cells} FROM {_nested(table.statement)}{_where(where)}{order} "
        f"LIMIT {limit}"
    )


def utc(at: datetime) -> str:
    """A HogQL literal of an aware datetime, to the microsecond."""
    text = at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    return f"toDateTime64('{text}', 6, 'UTC')"


@dataclass(frozen=True)
class _Range:
    """How one field of a sort key compares with one value: four conditions, and what all hold of it alone."""

    within: tuple[str, ...]
    at_least: str
    above: str
    at_most: str
    below: str


@dataclass
class _Builder:
    """Collects placeholder values while conditions are written."""

    name: str
    values: dict[str, object] = field(default_factory=dict)

    def value(self, value: object) -> str:
        """A placeholder for a value."""
        key = f"v{len(self.values)}"
        self.values[key] = value
        return f"{{{key}}}"

    def query(self, text: str) -> Query:
        return Query(text, dict(self.values), self.name)

    def in_slice(
        self,
        table: HogqlTable,
        slice_: Slice,
        window: Window | None,
        among: Among | None = None,
    ) -> list[str]:
        conditions = []
        if window is not None:
            conditions += _in_window(table, slice_, window)
        return [*conditions, *self.of(table, among), *self.between(table.sort_key, slice_)]

    def of(self, table: HogqlTable, among: Among | None) -> list[str]:
        """Which rows are asked for."""
        match among:
            case None:
                return []
            case Late(since, by_s):
                happened = _name(table.column(table.time_column or "").source)
                arrived = _name(table.column(table.arrival_column or "").source)
                late = f"dateDiff('second', {happened}, {arrived}) >= {by_s}"
                return [f"{arrived} >= {utc(since)}", late]
            case Settled(before, late_before, late_by_s):
                happened = _micros(_name(table.column(table.time_column or "").source))
                arrived = _micros(_name(table.column(table.arrival_column or "").source))
                bounds = [self.value((at - EPOCH) // MICROSECOND) for at in (before, late_before)]
                in_time = f"{arrived} - {happened} < {late_by_s * 1_000_000}"
                return [f"{arrived} < {bounds[0]}", f"({arrived} < {bounds[1]} OR {in_time})"]
            case Changed(since):
                return [f"{_name(table.column(table.cursor or '').source)} >= {utc(since)}"]
            case Keys(field_name, values):
                return [f"{_name(field_name)} IN {self.value(list(values))}"]
            case Seen(windows, distinct_ids):
                times = [
                    f"(timestamp >= {utc(window.start)} AND timestamp <= {utc(window.end - MICROSECOND)})"
                    for window in windows
                ]
                used = [f"distinct_id IN (SELECT distinct_id FROM events WHERE {_any(times)})"]
                if distinct_ids:
                    used.append(f"distinct_id IN {self.value(list(distinct_ids))}")
                owners = f"SELECT person_id FROM person_distinct_ids WHERE {_any(used)}"
                return [f"person_id IN ({owners})"]

    def between(self, sort_key: SortKey, slice_: Slice) -> list[str]:
        """On the line from one place to another.

        What both have in common, such as a busy day and its busiest event, is said once and not compared.
        """
        lower = _ranges(sort_key, slice_.lower) if slice_.lower else []
        upper = _ranges(sort_key, slice_.upper) if slice_.upper else []
        shared = _shared_values(sort_key, slice_)
        conditions = [condition for place in lower[:shared] for condition in place(self).within]
        if lower[shared:]:
            conditions += self.beyond(lower[shared:], is_inclusive=True)
        if upper[shared:]:
            conditions += self.before(upper[shared:])
        return conditions

    def rows(
        self,
        table: HogqlTable,
        source: str,
        conditions: Sequence[str],
        columns: Sequence[Column] = (),
        *,
        near: Slice | None = None,
    ) -> str:
        """FROM and WHERE: every question about a table gets its own from here, with the table's condition.

        Of a table of versions or of parts, only the key and those columns can be asked for, and what the
        conditions name. `near` is the slice that they lie in, if any.
        """
        wanted = [*conditions, *self.chosen(table.condition)]
        named = f"({_summed(table, source, columns, near)}) AS summed" if table.parts else source
        rows = f"FROM {named}{_where(wanted)}"
        return f"FROM ({_newest(table, rows, columns)}) AS newest" if table.version_field else rows

    def fingerprinted(
        self,
        table: HogqlTable,
        source: str,
        fingerprint: Fingerprint,
        conditions: Sequence[str],
        passed: Mapping[str, str],
        columns: Sequence[Column] = (),
        *,
        near: Slice | None = None,
    ) -> str:
        """FROM rows with their key, weight and content, and what is passed on, by its name.

        Level upon level, each of little depth: PostHog's parser takes four times as long for a call in a call
        in a call as for a call, and next to nothing for operators (measured on hogql_parser).
        """
        terms = list(enumerate((*fingerprint.weight, *fingerprint.content)))
        keys = [f"key_{n}" for n in range(len(fingerprint.weight))]
        kept = [*passed, *keys]
        own = [f"{expression} AS {name}" for name, expression in passed.items()]
        own += [f"{_name(column.source)} AS key_{n}" for n, column in enumerate(fingerprint.keys)]
        level = self.rows(table, source, conditions, columns, near=near)
        level = _level("read", own, (self._raw(n, term) for n, term in terms), level)
        level = _level("in_bytes", kept, (self._bytes(n, term) for n, term in terms), level)
        level = _level("in_parts", kept, (_parts(n, term) for n, term in terms), level)
        of_key = len(fingerprint.weight)
        weight = _sum_of(terms[:of_key])
        content = _sum_of(terms[of_key:])
        return _level("weighed", kept, [[f"{weight} AS weight", f"{content} AS content"]], level)

    def _raw(self, n: int, term: Term) -> list[str]:
        """What is read of a column: texts without NUL, as they are loaded."""
        name = _name(term.column.source)
        match term.measure:
            case "tail":
                return [f"toString({name}) AS raw_{n}"]
            case "text":
                return [f"replaceAll({name}, {self.value(NUL)}, {self.value(NO_NUL)}) AS raw_{n}"]
            case "instant":
                return [f"{_micros(name)} AS raw_{n}"]
            case "size":
                return [f"length({name}) AS raw_{n}"]
            case _:
                return [f"{name} AS raw_{n}"]

    def _bytes(self, n: int, term: Term) -> list[str]:
        """The bytes that a column's numbers are made of, or the column itself."""
        match term.measure:
            case "tail":
                return [f"unhex(substring(raw_{n}, {TAIL_START}, {TAIL_CHARS})) AS bytes_{n}"]
            case "text":
                padded = f"rightPad(raw_{n}, {TEXT_BYTES}, {self.value(NUL)})"  # cuts what is longer
                return [f"{padded} AS bytes_{n}", f"lengthUTF8(raw_{n}) AS chars_{n}"]
            case _:
                return [f"raw_{n}"]

    def chosen(self, condition: Condition | None) -> list[str]:
        """What a table's condition says. The where is a person's own text, and the only one in any query."""
        if condition is None:
            return []
        name = _name(condition.field)
        conditions = [f"{name} IN {self.value(list(condition.only))}"] if condition.only else []
        if condition.never:
            conditions.append(f"{name} NOT IN {self.value(list(condition.never))}")
        return [*conditions, f"({condition.where})"] if condition.where else conditions

    def cell_of(self, column: Column) -> str:
        """A column whose cell is text or null, so that the answer can be read without Python objects.

        What is not the field itself gets a name that no field has: under another one it would also be what
        ORDER BY and WHERE mean.
        """
        field_name = _name(column.source)
        if column.property_name:
            return f"{self.property_of(column)} AS {column.name}_text"
        if column.is_composed:
            return f"toJSONString({field_name}) AS {column.name}_text"
        if column.kind in ("bigint", "double", "bool"):
            return f"toString({field_name}) AS {column.name}_text"
        return field_name if field_name == column.name else f"{field_name} AS {column.name}_text"

    def property_of(self, column: Column) -> str:
        """A value of the stored JSON as text, null where it does not fit the column's kind.

        Not `properties.name`: that goes through PostHog's guess of the property's type, leaves escapes in
        texts and may take "" for null, by how the project stores the property (hogql.md 5). Best-effort
        parsing of times reads 1.5 as the first of May, so it only gets what looks like a time.
        """
        text = f"JSONExtract(properties, {self.value(column.property_name)}, 'Nullable(String)')"
        match column.kind:
            case "double":
                return f"toString(toFloat({text}))"
            case "bigint":
                return f"toString(toInt({text}))"
            case "bool":
                return f"nullIf(extract({text}, {self.value(BOOL)}), {self.value('')})"
            case "timestamp":
                return f"toDateTime(extract({text}, {self.value(ISO_TIME)}), 'UTC')"
            case _:
                return text

    def beyond(self, places: Sequence[_RangeOf], *, is_inclusive: bool) -> list[str]:
        """Lexicographic >= or >, as a >= x AND (a > x OR b >= y) AND …: each level prunes.

        Not nested, which PostHog's parser takes nearly twice as long for.
        """
        ranges = [place(self) for place in places]
        last = ranges[-1].at_least if is_inclusive else ranges[-1].above
        edges = [*(one.at_least for one in ranges[:-1]), last]
        return [_any([*(one.above for one in ranges[:i]), edge]) for i, edge in enumerate(edges)]

    def before(self, places: Sequence[_RangeOf]) -> list[str]:
        """Lexicographic <, in the same form."""
        ranges = [place(self) for place in places]
        edges = [*(one.at_most for one in ranges[:-1]), ranges[-1].below]
        return [_any([*(one.below for one in ranges[:i]), edge]) for i, edge in enumerate(edges)]

    def after_row(self, keys: Sequence[Column], after: Sequence[Cell]) -> list[str]:
        """Keyset: strictly after a row. The plain bound prunes, the tuple does not (hogql.md 8)."""
        names = [_name(key.source) for key in keys]
        cells = [self.cell(key, cell) for key, cell in zip(keys, after, strict=True)]
        if len(keys) == 1:
            return [f"{names[0]} > {cells[0]}"]
        return [f"{names[0]} >= {cells[0]}", f"({', '.join(names)}) > ({', '.join(cells)})"]

    def from_key(self, keys: Sequence[Column], cells: Sequence[Cell]) -> list[str]:
        """At a page key of a person's own SELECT or after it."""

        def place(key: Column, cell: Cell) -> _RangeOf:
            return lambda builder: _plain_range(_quoted(key), builder.cell(key, cell))

        places = [place(key, cell) for key, cell in zip(keys, cells, strict=True)]
        return self.beyond(places, is_inclusive=True)

    def cell(self, column: Column, cell: Cell) -> str:
        match column.kind, cell:
            case "timestamp", datetime():
                return utc(cell)
            case "date", date():
                return f"toDate('{cell.isoformat()}')"
            case "uuid", str():
                return f"toUUID('{UUID(cell)}')"
            case "decimal", Decimal():
                return self.value(int(cell))
            case _:
                return self.value(cell)


def _level(name: str, kept: Iterable[str], cells: Iterable[Iterable[str]], rows: str) -> str:
    """FROM what is kept of some rows, and further cells."""
    return f"FROM (SELECT {', '.join([*kept, *chain.from_iterable(cells)])} {rows}) AS rows_{name}"


def _micros(name: str) -> str:
    """Microseconds since 1970. HogQL has no toUnixTimestamp64Micro."""
    return f"dateDiff('microsecond', {utc(EPOCH)}, {name})"


def _parts(n: int, term: Term) -> list[str]:
    """A term's numbers, the first byte counting most."""
    match term.measure:
        case "tail":
            return [f"reinterpretAsUInt64(reverse(bytes_{n})) AS part_{n}_0"]
        case "text":
            cells = (f"substring(bytes_{n}, {1 + PART_BYTES * i}, {PART_BYTES})" for i in range(TEXT_PARTS))
            parts = [f"reinterpretAsUInt256(reverse({cell}))" for cell in cells]
            return [f"{part} AS part_{n}_{i}" for i, part in enumerate([*parts, f"chars_{n}"])]
        case _:
            return [f"raw_{n} AS part_{n}_0"]


def _sum_of(terms: Iterable[tuple[int, Term]]) -> str:
    """One and the remainder of what the terms add up to."""
    parts = [
        f"part_{n}_{i} % {PRIME} * {factor}" for n, term in terms for i, factor in enumerate(term.factors)
    ]
    return f"1 + ({' + '.join(parts)}) % {PRIME}" if parts else "1"


def _product(weight: str, content: str) -> str:
    return f"{weight} * {content} % {PRIME}"


def _key_names(fingerprint: Fingerprint) -> str:
    return ", ".join(f"key_{n}" for n in range(len(fingerprint.weight)))


def _common(statement: Statement) -> str:
    """What goes before the SELECT that a person's own one stands in."""
    return f"{statement.common}\n" if statement.common else ""


def _nested(statement: Statement) -> str:
    """A SELECT as a table. PostHog neither cuts nor caps what stands inside (hogql.md 2)."""
    return f"(\n{statement.body}\n) AS answer"


def _result_cell(column: Column) -> str:
    """As `cell_of`, for a column that may be of any type: even numbers that PostHog cannot write as JSON."""
    if column.is_composed:
        return f"toJSONString({_quoted(column)})"
    return _quoted(column) if column.kind == "timestamp" else f"toString({_quoted(column)})"


def _quoted(column: Column) -> str:
    """A column of a person's own SELECT, whatever it is called."""
    name = column.source.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{name}`"


def _newest(table: HogqlTable, rows: str, columns: Sequence[Column]) -> str:
    """The newest version of each row that lives.

    As PostHog's own `persons` has it, which also hides those that begin more than a day ahead of now
    (query_api.md 4.2). Conditions stand inside: those on the key hold of every version, and one on the
    version itself, of the newest too.
    """
    version = _name(table.version_field)
    key = [_name(table.column(name).source) for name in table.page_key]
    cells = [
        f"argMax({name}, {version}) AS newest_{name}"
        for column in columns
        if (name := column.source) not in key
    ]
    newest = f"SELECT {', '.join([*key, *cells])} {rows} GROUP BY {', '.join(key)}"
    living = f"argMax(is_deleted, {version}) = 0 AND argMax(created_at, {version}) < now() + INTERVAL 1 DAY"
    return f"{newest} HAVING {living}" if table.keeps_deleted else newest


def _as_newest(table: HogqlTable) -> HogqlTable:
    """The table with columns as `_newest` names them: under their own names aggregates would nest."""
    if not table.version_field:
        return table
    return table.reading(
        {c.name: f"newest_{c.source}" for c in table.columns if c.name not in table.page_key}
    )


def _summed(table: HogqlTable, source: str, columns: Sequence[Column], near: Slice | None) -> str:
    """Whole rows of their parts, all of those that may belong to a row of the slice."""
    key = [table.column(name) for name in table.page_key]
    compared = {table.cursor, *(label.field for label in table.sort_key.labels)}
    needed = [c for c in table.asked if c.summed and (c in columns or c.name in compared)]
    cells = ", ".join(f"{column.summed} AS {column.name}" for column in needed)
    names = ", ".join(_name(column.source) for column in key)
    return f"SELECT {names}, {cells} FROM {source}{_where(_parts_near(table, near))} GROUP BY {names}"


def _parts_near(table: HogqlTable, near: Slice | None) -> list[str]:
    """Bounds on the time of parts, where a slice's days bound that of rows."""
    if table.parts is None or near is None:
        return []
    name, spread = _name(table.parts.time_field), table.parts.spread_days * DAY
    first, last = (_first_midnight(bound) for bound in (near.lower, near.upper))
    conditions = [f"{name} >= {utc(first - spread)}"] if first else []
    return [*conditions, f"{name} <= {utc(last + DAY + spread - MICROSECOND)}"] if last else conditions


_RangeOf = Callable[[_Builder], _Range]


def _in_window(table: HogqlTable, slice_: Slice, window: Window) -> list[str]:
    """The window's bounds on time, less those that the slice's own days imply: parsing them costs PostHog."""
    name = _name(table.column(table.time_column or "").source)
    first, last = (_midnight(table, bound) for bound in (slice_.lower, slice_.upper))
    conditions = []
    if first is None or first < window.start:
        conditions.append(f"{name} >= {utc(window.start)}")
    if last is None or last + DAY > window.end:
        conditions.append(f"{name} <= {utc(window.end - MICROSECOND)}")
    return conditions


def _midnight(table: HogqlTable, bound: Bound | None) -> datetime | None:
    """When the day of a place on the line begins, where the line is one of days of the window's own time."""
    is_own = table.sort_key.labels[:1] == (LabelField(table.column(table.time_column or "").source, "day"),)
    return _first_midnight(bound) if is_own else None


def _first_midnight(bound: Bound | None) -> datetime | None:
    """When the day begins that leads a place's label, if one does."""
    day = bound.label[0] if bound and bound.label else None
    return datetime.combine(day, time(), UTC) if isinstance(day, date) else None


def _shared_values(sort_key: SortKey, slice_: Slice) -> int:
    """How many leading values a slice's two ends share, leaving one that tells them apart."""
    if slice_.lower is None or slice_.upper is None:
        return 0
    lower, upper = ([*one.label, *_hashes(sort_key, one)] for one in (slice_.lower, slice_.upper))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(lower, upper[:-1], strict=False)))


def _hashes(sort_key: SortKey, bound: Bound) -> list[int]:
    """A place on the axis as the values that are compared: the second hash only where it matters."""
    if bound.at is None or sort_key.axis is None:
        return []
    if not sort_key.axis.then:
        return [bound.at]
    first, then = divmod(bound.at, sort_key.axis.axis.step)
    return [first, then] if then else [first]


def _ranges(sort_key: SortKey, bound: Bound) -> list[_RangeOf]:
    """The comparisons of a place on the line, outermost first."""
    ranges = [_label_range(label, value) for label, value in zip(sort_key.labels, bound.label, strict=True)]
    if (axis := sort_key.axis) is None:
        return ranges
    values = zip((axis.field, axis.then), _hashes(sort_key, bound), strict=False)
    return [*ranges, *(_axis_range(axis.kind, name, at) for name, at in values)]


def _label_range(label: LabelField, value: date | str | int) -> _RangeOf:
    if isinstance(value, date):
        return lambda _: _day_range(_name(label.field), datetime.combine(value, time(), UTC))
    return lambda builder: _plain_range(_name(label.field), builder.value(value))


def _axis_range(kind: str, field_name: str, at: int) -> _RangeOf:
    if kind == "hash":
        return lambda builder: _plain_range(f"cityHash64({_name(field_name)})", builder.value(at))
    # ClickHouse compares the second half first, so a zero first half is the half's beginning.
    return lambda _: _plain_range(_name(field_name), f"toUUID('{UUID(int=at)}')")


def _plain_range(name: str, value: str) -> _Range:
    return _Range(
        within=(f"{name} = {value}",),
        at_least=f"{name} >= {value}",
        above=f"{name} > {value}",
        at_most=f"{name} <= {value}",
        below=f"{name} < {value}",
    )


def _day_range(name: str, midnight: datetime) -> _Range:
    """A day, told by times.

    ClickHouse turns a bound on the time into one on the sort key's day, inclusive either way: `< midnight`
    would keep the whole next day (5.2 times the rows read, measured on ClickHouse 26.9).
    """
    at_least, at_most = f"{name} >= {utc(midnight)}", f"{name} <= {utc(midnight + DAY - MICROSECOND)}"
    return _Range(
        within=(at_least, at_most),
        at_least=at_least,
        above=f"{name} >= {utc(midnight + DAY)}",
        at_most=at_most,
        below=f"{name} <= {utc(midnight - MICROSECOND)}",
    )


def _label_expression(table: HogqlTable, label: LabelField) -> str:
    """What rows are counted by.

    HogQL takes the toDate of what it does not know to be a time, such as a sum's, for that of a text.
    """
    name = _name(label.field)
    if label.kind != "day":
        return name
    return f"toYYYYMMDD({name})" if table.parts else f"toDate({name})"


def _name(source: str) -> str:
    """A HogQL field; PostHog's `$` names need backticks."""
    return ".".join(
        part if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", part) else f"`{part}`" for part in source.split(".")
    )


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _any(conditions: Sequence[str]) -> str:
    return conditions[0] if len(conditions) == 1 else f"({' OR '.join(conditions)})"
