"""What a table is: its columns, keys, sort key and cursor, as plain frozen values.

Not here: which tables there are (`catalog`), HogQL text (`query`), dlt (`resources`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from posthog_source.statement import Statement
from posthog_source.windows import Axis

Kind = Literal["text", "uuid", "timestamp", "date", "bigint", "decimal", "double", "float", "bool", "json"]
"""A column's type: `uuid` and `json` travel as text; `json` is free-form and stays whole; a `float` is a
double that may be NaN or infinite."""

Disposition = Literal["window", "snapshot", "merge", "sweep", "group"]
"""window: a span of time is replaced; snapshot: all rows of the project are; merge: rows by key; sweep: the
same, and from time to time all of them, to find those that are gone; group: all rows of what they are
members of."""

KEPT_UP: Mapping[Disposition, str] = {
    "window": "windows of time, replaced",
    "snapshot": "all rows each time, replaced",
    "merge": "rows that changed",
    "sweep": "rows of people who did something; all once a week",
    "group": "the rows of cohorts that were calculated anew; all once a week",
}
"""How a table follows PostHog, in words."""

RateClass = Literal["queries", "default", "clickhouse"]
"""PostHog's limit that a request counts against (rest_api.md 2.1)."""

Root = Literal["project", "organization", "server"]
"""What a REST path stands below: the project, its organization, or neither."""

Answer = Literal["list", "object", "counts"]
"""What comes: a list in pages; one object, which is the row; numbers by id."""

KINDS: tuple[tuple[str, Kind], ...] = (
    (r"String|FixedString.*|Date|Date32", "text"),
    (r"UUID", "uuid"),
    (r"Bool", "bool"),
    (r"U?Int(8|16|32|64)", "bigint"),
    (r"Float(32|64)|Decimal.*", "double"),
    (r"DateTime.*", "timestamp"),
)
"""What ClickHouse's types become; all others, such as arrays and larger numbers, become JSON."""

HASH_AXIS = Axis(0, 2**64)
"""`cityHash64`: any 64-bit number."""

HASHES_AXIS = Axis(0, 2**128, step=2**64)
"""`cityHash64` of one field, and behind it that of another, which tells apart the rows of one value."""

UUID_AXIS = Axis(2**63, 2**63 + 2**62)
"""The second half of a uuid, by which ClickHouse orders them: its variant bits fix the top two, the rest
is even for random uuids (read_cost.md)."""


@dataclass(frozen=True)
class Column:
    """A column of the warehouse table.

    Attributes:
        name: Its name there.
        kind: Its type.
        description: For people, in the warehouse.
        field: Its name in HogQL or in the REST item, where that differs.
        property_name: Its key in the row's `properties`, where it is no field of its own; null where the
            value does not fit the kind.
        is_required: Never null.
        is_optional: PostHog's older servers do not know it; it is left out there, with a warning.
        is_opt_in: Optional because a project has to ask PostHog for it: no warning where it is not there.
        is_added: The connector writes it; PostHog is not asked for it.
        is_composed: PostHog has a list there, or something else that is not text: its JSON is asked for.
        summed: Where the table keeps rows in parts: the HogQL expression that makes it of them.
        precision: Digits of a decimal.
        scale: How many of them stand behind the point.
    """

    name: str
    kind: Kind
    description: str
    field: str = ""
    property_name: str = ""
    is_required: bool = False
    is_optional: bool = False
    is_opt_in: bool = False
    is_added: bool = False
    is_composed: bool = False
    summed: str = ""
    precision: int = 0
    scale: int = 0

    @property
    def source(self) -> str:
        """Its name at PostHog."""
        return self.field or self.name


@dataclass(frozen=True)
class LabelField:
    """A leading field of a sort key, whose values are counted.

    Attributes:
        field: HogQL field.
        kind: `day` is the UTC day of a timestamp field.
    """

    field: str
    kind: Literal["day", "text", "bigint"]


@dataclass(frozen=True)
class AxisField:
    """The field along which one label's rows lie evenly.

    Attributes:
        field: HogQL field.
        kind: `hash` is its `cityHash64`.
        then: For a hash: the field whose hash comes next in the sort key.
    """

    field: str
    kind: Literal["hash", "uuid"]
    then: str = ""

    @property
    def axis(self) -> Axis:
        """Its span."""
        if self.kind == "uuid":
            return UUID_AXIS
        return HASHES_AXIS if self.then else HASH_AXIS


@dataclass(frozen=True)
class SortKey:
    """PostHog's physical order of a table after team_id, as far as it is used to cut slices.

    Attributes:
        labels: Fields whose values are counted to plan.
        axis: The field that cuts a single label, if there is one.
        is_sampled: The labels have nearly as many values as rows: plan by an even sample of the last one,
            not by counts.
    """

    labels: tuple[LabelField, ...] = ()
    axis: AxisField | None = None
    is_sampled: bool = False


@dataclass(frozen=True)
class Parts:
    """How PostHog keeps a row in several, which are to be summed.

    Attributes:
        time_field: When a part begins; its UTC day leads PostHog's sort key.
        spread_days: How many days a row's first and last part may lie apart.
    """

    time_field: str
    spread_days: int


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Which of a table's rows are read; every question about the table carries it.

    Attributes:
        field: A HogQL field of the sort key, so that ClickHouse need not read the others' rows.
        only: Values of it that are read; empty means all.
        never: Values of it that are not.
        where: A HogQL condition of a person's own, as `config` lets it through; empty means none.
    """

    field: str
    only: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What every table has.

    Attributes:
        name: Table name in the warehouse.
        description: What a row is.
        columns: In order; `project_id` first, stamped by the connector.
        primary_key: Column names.
        disposition: How rows are written.
        scopes: What the API key must have.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    disposition: Disposition
    scopes: tuple[str, ...]

    @property
    def kept_up(self) -> str:
        """How the table follows PostHog, in words."""
        cursor = getattr(self, "cursor", None)
        return KEPT_UP[self.disposition] + (f", by {cursor}" if cursor else "")

    @property
    def asked(self) -> tuple[Column, ...]:
        """The columns that PostHog is asked for; the others are the connector's own."""
        return tuple(column for column in self.columns if not column.is_added)

    @property
    def deleted_flag(self) -> str | None:
        """The column that is true of rows which PostHog has deleted, where the table keeps such rows."""
        return next((c.name for c in self.columns if c.name == "deleted" and c.kind == "bool"), None)

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)


@dataclass(frozen=True, kw_only=True)
class HogqlTable(Table):
    """A table read by HogQL in slices of its sort key.

    Attributes:
        sources: HogQL tables that together hold the rows, each with the same fields.
        sort_key: How to cut slices.
        page_key: Names of the columns that order pages inside a slice.
        time_column: The column that windows bound, if any.
        arrival_column: The column that says when PostHog received the row, if any.
        condition: Which rows are read; None means all.
        version_field: Where the sources hold all versions of a row, and deleted ones with `is_deleted`: what
            tells them apart. The newest is read.
        keeps_deleted: Whether those versions may say `is_deleted`, so that not every newest one lives.
        cursor: Column that grows when PostHog changes a row, by its own clock; None where there is none.
        overlap_s: Seconds before the last sync whose changes are read again, since a row may be seen only
            some time after its cursor says.
        lookback_days: How many days before that a row's first label may lie and still be looked at; None
            looks at all rows.
        late_lookback_days: The same, once a day.
        is_open: Servers have more columns than these, by their version; they are asked which.
        parts: Where the sources hold parts of rows: the columns are sums of theirs, by the page key.
    """

    sources: tuple[str, ...]
    sort_key: SortKey
    page_key: tuple[str, ...]
    time_column: str | None = None
    arrival_column: str | None = None
    condition: Condition | None = None
    version_field: str = ""
    keeps_deleted: bool = False
    cursor: str | None = None
    overlap_s: float = 0.0
    lookback_days: int | None = None
    late_lookback_days: int = 0
    is_open: bool = False
    parts: Parts | None = None

    def without(self, names: Collection[str]) -> HogqlTable:
        """The table less those columns."""
        return replace(self, columns=tuple(c for c in self.columns if c.name not in names))

    def reading(self, fields: Mapping[str, str]) -> HogqlTable:
        """The table with columns read from other HogQL fields."""
        columns = tuple(replace(c, field=fields.get(c.name, c.field)) for c in self.columns)
        return replace(self, columns=columns)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One of several listings that together are a table.

    Attributes:
        params: Its query parameters.
        stamps: Members that its items get, since PostHog does not say them.
    """

    params: Mapping[str, str]
    stamps: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RestTable(Table):
    """A table read from a REST list.

    Attributes:
        path: Below its root. Members of `each` may stand in it, as in `experiments/{id}/`.
        root: What the path stands below.
        each: The table whose items are listed first: the path is read once for each.
        answer: What comes.
        params: Query parameters of every request: the stable order above all.
        page_rows: `limit` of a page; 0 for a list that takes none.
        rate_class: Which of PostHog's limits applies.
        cursor: Column whose newest value bounds the next sync; None lists everything again.
        cursor_param: Query parameter that bounds it, if there is one; exclusive unless newest come first.
        overlap_s: Seconds before the cursor that are read again.
        is_newest_first: The list is ordered by the cursor, newest first, and tells no number: it is read
            down to where the last sync began.
        activity_scope: What PostHog's activity log calls its objects, if their list does not tell that they
            are gone.
        is_optional: Not every PostHog, plan or key has it; where it is not to be had, it is left out with a
            warning, unless it was asked for by name.
        passes: Listings that together are the table; none means one without more parameters.
        added_by: Member that is true of items which PostHog adds to the list and does not keep.
        nested: Member whose list holds the rows; the item itself is none.
        parent: Column that gets the id of the item that a nested row was in.
        is_open: PostHog's newer servers have more members; each becomes a column of text.
        dropped: Members that never do: secrets, and what depends on who asks.
    """

    path: str
    params: Mapping[str, str]
    page_rows: int
    rate_class: RateClass
    root: Root = "project"
    each: RestTable | None = None
    answer: Answer = "list"
    cursor: str | None = None
    cursor_param: str = ""
    overlap_s: float = 0.0
    is_newest_first: bool = False
    activity_scope: str = ""
    is_optional: bool = False
    passes: tuple[Pass, ...] = ()
    added_by: str = ""
    nested: str = ""
    parent: str = ""
    is_open: bool = False
    dropped: frozenset[str] = frozenset()


PROJECT_ID = Column(
    "project_id", "bigint", "PostHog's number of the project", is_required=True, is_added=True
)
SYNCED_AT = Column("synced_at", "timestamp", "When the row was last read from PostHog", is_added=True)
DELETED_AT = Column(
    "deleted_at",
    "timestamp",
    "When the row was found to be gone from PostHog; null while it is there",
    is_added=True,
)


@dataclass(frozen=True, kw_only=True)
class QueryTable(Table):
    """A table that a person's own SELECT makes.

    Attributes:
        statement: The SELECT.
        cursor: Column that grows; later syncs read from its last value on. None reads all rows each time.
        page_key: Names of the columns that order pages. Unique together where there is a primary key; empty
            where all rows have to fit into one page.
        loose_keys: Those of them that PostHog's types let be null.
    """

    statement: Statement
    cursor: str | None = None
    page_key: tuple[str, ...] = ()
    loose_keys: frozenset[str] = frozenset()


def discovered_column(field: str, clickhouse_type: str) -> Column:
    """A column that a server turns out to have, named as PostHog's less the dollar sign.

    Args:
        field: HogQL field.
        clickhouse_type: Such as `Nullable(String)` or `SimpleAggregateFunction(max, DateTime64(6, 'UTC'))`.
    """
    plain = plain_type(clickhouse_type)
    kind = next((kind for pattern, kind in KINDS if re.fullmatch(pattern, plain)), None)
    return Column(
        snake_case(field), kind or "json", f"PostHog's {field}", field=field, is_composed=kind is None
    )


def plain_type(clickhouse_type: str) -> str:
    """A ClickHouse type without what is wrapped around it: that of `Nullable(String)` is String."""
    plain = clickhouse_type
    while found := re.fullmatch(
        r"(?:Nullable|LowCardinality|SimpleAggregateFunction)\((?:\w+, )?(.*)\)", plain, re.DOTALL
    ):
        plain = found[1]
    return plain


def snake_case(text: str) -> str:
    """A name that every warehouse takes and dlt leaves as it is: `$initial-utmSource` is initial_utm_source.

    Accents go; what has no Latin letter or digit is empty.
    """
    latin = unicodedata.normalize("NFKD", text).encode("ascii", "replace").decode()
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", latin.replace("?", " "))
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
