"""What a table made by a person's own SELECT is: its settings, its columns, and where a sync of it goes on.

Plain values. Not here: the SELECT as text (`statement`), the query around it (`query`), its pages
(`query_pages`), how it is loaded (`queries`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from difflib import get_close_matches

from posthog_source.catalog import COHORT_HISTORY, INSIGHT_RESULT_DOCUMENTS, ON_REQUEST, TABLES
from posthog_source.config import MAX_PAGE_ROWS, TableSettings, build_table_settings, from_json
from posthog_source.errors import SettingsError
from posthog_source.query import Cell
from posthog_source.statement import Statement, read_statement
from posthog_source.tables import PROJECT_ID, Column, Kind, QueryTable, plain_type, snake_case

RESULT_KINDS: tuple[tuple[str, Kind], ...] = (
    (r"String|FixedString\(.*|Enum(8|16)\(.*|IPv4|IPv6|Interval.*|Time|Time64\(.*|Nothing", "text"),
    (r"UUID", "uuid"),
    (r"Bool", "bool"),
    (r"U?Int(8|16|32)|Int64", "bigint"),
    (r"U?Int(64|128|256)|Decimal\(.*", "decimal"),
    (r"Float(32|64)|BFloat16", "float"),
    (r"Date|Date32", "date"),
    (r"DateTime.*", "timestamp"),
    (
        r"(Array|Tuple|Map|Nested|Variant|Dynamic|JSON|Object)\b.*|Point|Ring|(Multi)?(LineString|Polygon)",
        "json",
    ),
)
"""What ClickHouse's types become; those of no whole value, such as AggregateFunction, become nothing."""

KEY_TYPES = re.compile(
    r"String|UUID|Bool|U?Int(8|16|32|64)|Float(32|64)|Date|DateTime(\(.*)?|DateTime64\([0-6]\b.*"
)
"""Types whose values a later page can be asked for from: not those whose JSON says less than they hold, nor
Enum, which is ordered by numbers that it does not tell."""

MAX_DIGITS = 38
"""Of decimals that warehouses and Arrow's 128 bits hold; a larger value stops the load."""

WHOLE_DIGITS: Mapping[str, int] = {"UInt64": 20}

CURSOR_KINDS: tuple[Kind, ...] = ("date", "timestamp", "bigint", "decimal", "float", "text")
TIMES: tuple[Kind, ...] = ("date", "timestamp")

TAKEN = frozenset(t.name for t in (*TABLES, *ON_REQUEST, COHORT_HISTORY, INSIGHT_RESULT_DOCUMENTS))


@dataclass(frozen=True, kw_only=True)
class QuerySettings(TableSettings):
    """A person's own SELECT, to be loaded as a table.

    Attributes:
        name: Of the table.
        query: One HogQL SELECT, written by a person who is trusted. Times in it are UTC's. All of its rows
            are loaded: a LIMIT of its own is the only one.
        cursor: A column that grows: a date, a time, a number, or with a primary key a text. A sync reads from
            the last one's newest value on, that value included. Empty reads and replaces all rows each time.
        primary_key: Columns that no two rows have alike. With a cursor, rows replace those of the same key;
            without one, all rows from the sync's first cursor on are. Needed where rows, or those of one
            value of the cursor, fill more than a page. Only by a key can dlt tell rows that came twice:
            without one, a plain `pipeline.run` that is killed while it loads, and then resumed by dlt, may
            leave some twice.
        lookback_s: How long before that newest value a sync reads again, for rows that change later.
        page_rows: As PostHog runs the query anew for each page, as many as it hands out.
    """

    name: str = ""
    query: str = ""
    cursor: str = ""
    primary_key: tuple[str, ...] = ()
    lookback_s: float = 0.0
    page_rows: int = MAX_PAGE_ROWS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.name or self.name != snake_case(self.name) or self.name[0].isdigit():
            raise SettingsError(
                f"A query is called {self.name!r}, which is no name of a table. Give it one of small "
                "letters, digits and _, such as signups_by_plan."
            )
        if self.name in TAKEN:
            raise SettingsError(
                f"A query is called {self.name}, as a table of PostHog's. Give it another name."
            )
        if self.lookback_s < 0 or (self.lookback_s and not self.cursor):
            raise SettingsError(
                f"{self.where} has a lookback_s that is not 0 or more, or no cursor to look from."
            )
        if self.statement.has_limit and self.cursor:
            raise SettingsError(
                f"{self.where} has a LIMIT and a cursor: rows beyond the LIMIT might never come. Leave one "
                "out."
            )

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"The query {self.name}"

    @property
    def statement(self) -> Statement:
        """The SELECT, looked at."""
        return read_statement(self.query, self.where)


def parse_queries(value: object) -> tuple[QuerySettings, ...]:
    """Queries from `[[sources.posthog.queries]]`, from Python or from the JSON of either; none by default.

    Raises:
        SettingsError: It is no list of tables, or one of them cannot be right.
    """
    written = from_json(value) or ()
    if not isinstance(written, Sequence) or isinstance(written, str):
        raise SettingsError(_not_queries())
    queries = tuple(one if isinstance(one, QuerySettings) else build_query_settings(one) for one in written)
    names = [query.name for query in queries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"Two queries are called {twice[0]}. Give one another name.")
    return queries


def build_query_settings(values: object) -> QuerySettings:
    """Checks what a person wrote of one query.

    Raises:
        SettingsError: One line that names the query, the setting and what it may be.
    """
    if not isinstance(values, Mapping):
        raise SettingsError(_not_queries())
    known = [field.name for field in fields(QuerySettings)]
    if unknown := sorted(set(map(str, values)) - set(known)):
        meant = get_close_matches(unknown[0], known, n=1) or sorted(known)
        raise SettingsError(
            f"The query {values.get('name')} has no setting {unknown[0]}. Did you mean {' or '.join(meant)}?"
        )
    given = {name: value for name, value in values.items() if value is not None}
    name, key = given.get("name"), from_json(given.get("primary_key", ()))
    key = (key,) if isinstance(key, str) else key
    if not isinstance(key, Sequence) or not all(isinstance(one, str) and one for one in key):
        raise SettingsError(
            f'The query {name} has a primary_key that is no list of columns, such as ["day"].'
        )
    for setting in ("name", "query", "cursor"):
        if not isinstance(given.get(setting, ""), str):
            raise SettingsError(f"The query {name} has a {setting} that is no text.")
    return build_table_settings(QuerySettings, f"queries.{name}", {**given, "primary_key": tuple(key)})


def declare(query: QuerySettings) -> QueryTable:
    """The table of a query, before PostHog has told its columns."""
    key = tuple(snake_case(name) for name in query.primary_key)
    cursor = snake_case(query.cursor) or None
    return QueryTable(
        name=query.name,
        description="A HogQL query of your own.",
        columns=(PROJECT_ID,),
        primary_key=(PROJECT_ID.name, *key) if key else (),
        disposition="snapshot" if cursor is None else "merge" if key else "window",
        scopes=("query:read",),
        statement=query.statement,
        cursor=cursor,
        page_key=tuple(dict.fromkeys([*([cursor] if cursor else []), *key])),
    )


def complete(query: QuerySettings, types: Sequence[tuple[str, str]]) -> QueryTable:
    """The table of a query, with the columns that PostHog tells of.

    Args:
        query: Its settings.
        types: Names and ClickHouse types.

    Raises:
        SettingsError: A column that no warehouse has, or not under that name; a cursor or primary key that is
            no column, or none that rows can be compared by.
    """
    table, where = declare(query), query.where
    query.statement.check_columns([name for name, _ in types], where)
    columns: dict[str, Column] = {PROJECT_ID.name: PROJECT_ID}
    for field, type_ in types:
        column = _column(field, plain_type(type_), where)
        column = replace(column, is_required=column.name in table.page_key)
        if column.name == PROJECT_ID.name:
            raise SettingsError(
                f"{where} has a column {field}, which the connector adds itself. Give it another name with "
                "AS."
            )
        if column.name in columns:
            raise SettingsError(
                f"{where} has two columns called {column.name} in a warehouse, {columns[column.name].source} "
                f"and {field}. Give one another name with AS."
            )
        columns[column.name] = column
    by_name = {snake_case(field): type_ for field, type_ in types}
    for name in table.page_key:
        _check_key(name, by_name.get(name), where)
    if table.cursor:
        _check_cursor(query, columns[table.cursor])
    loose = frozenset(name for name in table.page_key if "Nullable(" in by_name[name])
    return replace(table, columns=tuple(columns.values()), loose_keys=loose)


def describe(table: QueryTable) -> dict[str, object]:
    """What a table's rows in a warehouse are made by, as plain JSON."""
    return {
        "query": f"{table.statement.common} {table.statement.body}".strip(),
        "cursor": table.cursor,
        "primary_key": list(table.primary_key),
        "columns": {column.name: _type_name(column) for column in table.columns},
    }


def explain_change(old: Mapping[str, object] | None, table: QueryTable) -> str | None:
    """One line about a query that is no longer the one whose rows are in the warehouse.

    Args:
        old: What `describe` said then; None when nothing was loaded.
        table: What it is now.

    Raises:
        SettingsError: The warehouse's table cannot become what it is now: a column has another type, or rows
            would be replaced by another rule, which would take away others than were meant.
    """
    new = describe(table)
    if old is None or old == new:
        return None
    remedy = (
        f"Give the query another name, or drop its table and what is remembered of it: dlt pipeline … drop "
        f"{table.name}."
    )
    for setting in ("cursor", "primary_key"):
        if old[setting] != new[setting]:
            raise SettingsError(
                f"The {setting} of the query {table.name} was {old[setting]} and is {new[setting]} now, but "
                f"the rows that are there were written by the old one. {remedy}"
            )
    before = old["columns"]
    for column in table.columns:
        known = before.get(column.name) if isinstance(before, Mapping) else None
        if known is not None and known != _type_name(column):
            raise SettingsError(
                f"The column {column.name} of the query {table.name} was {known} and is {_type_name(column)} "
                "now, which a column of a warehouse cannot become. Cast it, or name it otherwise with AS. "
                f"{remedy}"
            )
    if table.cursor is None or old["query"] == new["query"]:
        return None
    return (
        f"{table.name}: the query changed. Rows already loaded stay as they were; to have all of them by the "
        f"new one, drop the table: dlt pipeline … drop {table.name}."
    )


def start_of(newest: str | None, table: QueryTable, *, lookback_s: float) -> tuple[Cell, ...]:
    """Where a sync begins to read: the page key's first value, or nothing for all rows.

    Args:
        newest: The cursor that the last sync came to, as `remember` wrote it.
        table: With a cursor.
        lookback_s: How long before it.
    """
    if newest is None or table.cursor is None:
        return ()
    kind = table.column(table.cursor).kind
    cell = _recall(newest, kind)
    if isinstance(cell, date) and lookback_s:  # a datetime is one too
        whole_days = timedelta(days=-(-lookback_s // 86_400))
        try:
            cell -= timedelta(seconds=lookback_s) if kind == "timestamp" else whole_days
        except OverflowError:
            return ()
    return (cell,)


def remember(newest: Cell, *, now: datetime) -> str:
    """The cursor that a sync came to, as text for dlt's state.

    A time is never past the sync's own: a client's clock may be ahead, and would hide what comes until then.

    Args:
        newest: Of the rows read.
        now: When the sync began.
    """
    if isinstance(newest, datetime):
        return min(newest, now).isoformat()
    if isinstance(newest, date):
        return min(newest, now.date()).isoformat()
    return str(newest)


def _recall(text: str, kind: Kind) -> Cell:
    match kind:
        case "timestamp":
            return datetime.fromisoformat(text)
        case "date":
            return date.fromisoformat(text)
        case "bigint":
            return int(text)
        case "decimal":
            return Decimal(text)
        case "float":
            return float(text)
        case _:
            return text


def _column(field: str, plain: str, where: str) -> Column:
    """The column of a field, by its ClickHouse type."""
    name = snake_case(field)
    if not name or name[0].isdigit():
        raise SettingsError(
            f"{where} has a column {field}, which is no name in a warehouse. Give it one with AS, of Latin "
            "letters, digits and _, no digit first."
        )
    kind = next((kind for pattern, kind in RESULT_KINDS if re.fullmatch(pattern, plain, re.DOTALL)), None)
    if kind is None:
        raise SettingsError(
            f"{where} has a column {field} of type {plain}, which no warehouse has. Make a value of it in "
            "the query."
        )
    precision, scale = _digits(plain) if kind == "decimal" else (0, 0)
    is_composed = kind == "json"
    return Column(
        name, kind, f"{field}, {plain}", field, is_composed=is_composed, precision=precision, scale=scale
    )


def _digits(plain: str) -> tuple[int, int]:
    """Digits of a decimal or a large whole number, and those behind its point."""
    found = re.fullmatch(r"Decimal\((\d+), ?(\d+)\)", plain)
    if found is None:
        return WHOLE_DIGITS.get(plain, MAX_DIGITS), 0
    return min(int(found[1]), MAX_DIGITS), min(int(found[2]), MAX_DIGITS)


def _check_key(name: str, type_: str | None, where: str) -> None:
    if type_ is None:
        raise SettingsError(f"{where} has no column {name}, its cursor or in its primary_key.")
    if not KEY_TYPES.fullmatch(plain_type(type_)):
        raise SettingsError(
            f"{where} has {type_} for {name}, its cursor or in its primary_key, by which pages cannot be "
            f"told apart. Cast it in the query, such as toString({name}) AS {name}_text, and name that."
        )


def _check_cursor(query: QuerySettings, cursor: Column) -> None:
    if cursor.kind not in CURSOR_KINDS:
        raise SettingsError(
            f"{query.where} has a cursor {cursor.name} of kind {cursor.kind}, which does not grow. Name a "
            "date, a time, a number or a text."
        )
    if cursor.kind == "text" and not query.primary_key:
        raise SettingsError(
            f"{query.where} has the text {cursor.name} for a cursor, and no primary_key: a warehouse may "
            "sort texts otherwise than PostHog. Set its primary_key."
        )
    if query.lookback_s and cursor.kind not in TIMES:
        raise SettingsError(
            f"{query.where} has a lookback_s, in seconds, and a cursor {cursor.name} that is no time. Leave "
            "it out."
        )


def _type_name(column: Column) -> str:
    if column.kind == "decimal":
        return f"decimal({column.precision},{column.scale})"
    return "double" if column.kind == "float" else column.kind


def _not_queries() -> str:
    return (
        "queries must be a list, each with a name and a query. Set them as [[sources.posthog.queries]] in "
        ".dlt/config.toml."
    )
