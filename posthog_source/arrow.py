"""Bytes of an answer -> rows under the table's declared schema. Pure.

The fast way lets pyarrow's own JSON reader parse the whole answer outside Python's lock; it takes text
and null cells only, which is what `query` asks for. The other way, for an answer with other cells, is
orjson. Both end in the same frozen schema, whatever a page happens to hold, because dlt's writer refuses
the smallest difference between two pages. Not here: where bytes come from (`client`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce
from itertools import chain

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as pa_json

from posthog_source.errors import Body, StaleAnswerError, UnexpectedAnswerError, UnreadableAnswerError
from posthog_source.query import Cell
from posthog_source.tables import Column, Kind, Table

ARROW_TYPES: Mapping[Kind, pa.DataType] = {
    "text": pa.string(),
    "uuid": pa.string(),
    "json": pa.string(),
    "timestamp": pa.timestamp("us", "UTC"),
    "date": pa.date32(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}

OBJECT = re.compile(rb"\s*\{")

BAD_ESCAPE = re.compile(
    r"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\u0000"
)
"""Group 1 is what must stay: an escaped backslash, or both halves of a pair."""

_ANSWER = pa.schema(
    [
        ("results", pa.list_(pa.list_(pa.string()))),
        ("columns", pa.list_(pa.string())),
        ("is_cached", pa.bool_()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Answer:
    """A HogQL answer as text columns.

    Attributes:
        columns: One string array per column asked for, in order.
        rows: Their length.
    """

    columns: tuple[pa.Array, ...]
    rows: int

    def cells(self) -> list[tuple[str | None, ...]]:
        """The rows as Python text: for small answers such as plans."""
        return list(zip(*(column.to_pylist() for column in self.columns), strict=True))


def schema_of(table: Table) -> pa.Schema:
    """The frozen Arrow schema of a table."""
    return pa.schema([pa.field(c.name, arrow_type(c), nullable=not c.is_required) for c in table.columns])


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type of a column."""
    if column.kind == "decimal":
        return pa.decimal128(column.precision, column.scale)
    return ARROW_TYPES[column.kind]


def read_answer(body: Body) -> Answer:
    """Reads the answer of a HogQL query.

    Raises:
        UnreadableAnswerError: It is not the JSON of an answer, or was cut.
        StaleAnswerError: It came from PostHog's cache.
    """
    if not OBJECT.match(body):  # pyarrow 26's reader crashes the process on a bare `null`
        raise UnreadableAnswerError(_not_an_answer(body))
    try:
        return _read_text_cells(body)
    except pa.ArrowInvalid:
        return _read_any_cells(body)


def read_types(body: Body) -> list[tuple[str, str]]:
    """Names and ClickHouse types of an answer's columns.

    Raises:
        UnreadableAnswerError: It does not have them.
    """
    try:
        return [(str(name), str(kind)) for name, kind in orjson.loads(body)["types"]]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise UnreadableAnswerError(_not_an_answer(body)) from None


def to_table(
    answer: Answer, table: Table, *, project_id: int, absent: Collection[str] = frozenset()
) -> pa.Table:
    """Gives an answer its table's schema.

    Args:
        answer: Columns in the table's order, less those that the connector adds and the absent ones.
        table: The catalogue row.
        project_id: Stamped on each row; other added columns are null.
        absent: Names of columns that were not asked for; they are null.

    Raises:
        UnexpectedAnswerError: A column more or less, a cell that its type does not take, or a null where
            the table allows none.
    """
    asked = [column for column in table.asked if column.name not in absent]
    if len(asked) != len(answer.columns):
        raise UnexpectedAnswerError(
            f"{table.name}: PostHog answered {len(answer.columns)} columns to a question for {len(asked)}."
        )
    arrays = {"project_id": pa.repeat(pa.scalar(project_id, pa.int64()), answer.rows)}
    for column, texts in zip(asked, answer.columns, strict=True):
        arrays[column.name] = _typed(texts, column, table.name)
    schema = schema_of(table)
    for name in set(schema.names) - set(arrays):
        arrays[name] = pa.nulls(answer.rows, schema.field(name).type)
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def items_to_table(items: Sequence[Mapping[str, object]], table: Table, *, project_id: int) -> pa.Table:
    """Gives REST items their table's schema; members the table does not name are left out, missing ones null.

    Raises:
        UnexpectedAnswerError: As `to_table`.
    """
    texts = tuple(
        pa.array([_item_text(item.get(column.source), column.kind) for item in items], pa.string())
        for column in table.asked
    )
    return to_table(Answer(texts, len(items)), table, project_id=project_id)


def stored_to_table(rows: Sequence[Sequence[object]], table: Table) -> pa.Table:
    """Gives rows that a warehouse has handed back their table's schema again."""
    columns = zip(*rows, strict=True) if rows else [()] * len(table.columns)
    schema = schema_of(table)
    arrays = [
        pa.array([_stored(value, column.kind) for value in values], schema.field(column.name).type)
        for column, values in zip(table.columns, columns, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def drop_copies(page: pa.Table, key: Sequence[str]) -> pa.Table:
    """The page with one row of each key: of copies that ClickHouse has yet to merge, the last; order kept."""
    if pc.count_distinct(page.column(key[-1])).as_py() == page.num_rows:
        return page
    numbered = page.select(list(key)).append_column("row", pa.array(range(page.num_rows), pa.int64()))
    last = numbered.group_by(list(key)).aggregate([("row", "max")]).column("row_max")
    return page if len(last) == page.num_rows else page.take(last.combine_chunks().sort())


def count_runs(page: pa.Table, key: Sequence[str]) -> int:
    """Different keys of a page that is sorted by them."""
    if page.num_rows < 2:
        return int(page.num_rows)
    columns = [page.column(name) for name in key]
    changes = (pc.not_equal(column[1:], column[:-1]) for column in columns)
    return 1 + int(pc.sum(reduce(pc.or_, changes)).as_py())


def replace_nul(page: pa.Table, table: Table) -> pa.Table:
    """The page with U+FFFD for each NUL in text, as PostHog's own ingestion does; Postgres takes none.

    Not before a page's cursor is taken: the cursor is what PostHog holds.
    """
    for index, column in enumerate(table.columns):
        texts = page.column(index)
        if column.kind == "text" and pc.any(pc.match_substring(texts, "\0")).as_py():
            mended = pc.replace_substring(texts, "\0", "\ufffd")
            page = page.set_column(index, page.schema.field(index), mended)
    return page


def stamp(page: pa.Table, **instants: datetime) -> pa.Table:
    """The page with the same instant in all rows of each column named."""
    for name, at in instants.items():
        index = page.schema.get_field_index(name)
        values = pa.repeat(pa.scalar(at, ARROW_TYPES["timestamp"]), page.num_rows)
        page = page.set_column(index, page.schema.field(index), values)
    return page


def last_row(page: pa.Table, names: Sequence[str]) -> tuple[Cell, ...]:
    """The values of those columns in the last row: the cursor for the next page."""
    return tuple(page.column(name)[page.num_rows - 1].as_py() for name in names)


def parse_instant(text: str) -> datetime:
    """An instant as PostHog writes it: `…Z`, an offset, or nothing, which is UTC (query_api.md 6.1)."""
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _read_text_cells(body: Body) -> Answer:
    parsed = pa_json.read_json(
        pa.BufferReader(body),
        read_options=pa_json.ReadOptions(block_size=len(body) + 1, use_threads=False),
        parse_options=pa_json.ParseOptions(
            explicit_schema=_ANSWER, newlines_in_values=True, unexpected_field_behavior="ignore"
        ),
    )
    if parsed.num_rows != 1:
        raise UnreadableAnswerError(_not_an_answer(body))
    results, columns = (parsed.column(name).combine_chunks() for name in ("results", "columns"))
    _check(
        has_results=results.is_valid()[0].as_py() and columns.is_valid()[0].as_py(),
        is_cached=parsed.column("is_cached")[0].as_py(),
        error=parsed.column("error")[0].as_py(),
        body=body,
    )
    rows = results.flatten()
    width = len(columns.flatten())
    lengths = pc.fill_null(pc.list_value_length(rows), -1)
    if not pc.all(pc.equal(lengths, width), min_count=0).as_py():
        raise UnexpectedAnswerError(_ragged(width))
    cells = rows.flatten()
    try:
        cells.validate(full=True)
    except pa.ArrowInvalid:  # the reader lets bytes through that are not UTF-8
        raise UnreadableAnswerError(_not_an_answer(body)) from None
    return _strided(cells, rows=len(rows), width=width)


def _read_any_cells(body: Body) -> Answer:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise UnreadableAnswerError(_not_an_answer(body)) from None
    results, columns = parsed.get("results"), parsed.get("columns")
    has_results = isinstance(results, list) and isinstance(columns, list)
    _check(has_results=has_results, is_cached=parsed.get("is_cached"), error=parsed.get("error"), body=body)
    rows: list[list[object]] = results
    if any(not isinstance(row, list) or len(row) != len(columns) for row in rows):
        raise UnexpectedAnswerError(_ragged(len(columns)))
    cells = pa.array([_cell_text(cell) for cell in chain.from_iterable(rows)], pa.string())
    return _strided(cells, rows=len(rows), width=len(columns))


def _check(*, has_results: bool, is_cached: bool | None, error: object, body: Body) -> None:
    if error:
        raise UnreadableAnswerError(
            f"PostHog answered 200 with an error inside: {' '.join(str(error).split())[:300]}"
        )
    if not has_results:
        raise UnreadableAnswerError(_not_an_answer(body))
    if is_cached:
        raise StaleAnswerError("PostHog answered from its cache although live rows were asked for.")


def _strided(cells: pa.Array, *, rows: int, width: int) -> Answer:
    """Row-major cells -> columns."""
    first = pa.array(range(0, rows * width, width), pa.int64()) if width else pa.array([], pa.int64())
    return Answer(tuple(cells.take(pc.add(first, offset)) for offset in range(width)), rows)


def _typed(texts: pa.Array, column: Column, table_name: str) -> pa.Array:
    try:
        typed = _cast(texts, column)
    except pa.ArrowInvalid as error:
        raise UnexpectedAnswerError(
            f"{table_name}.{column.name}: PostHog answered a value that is no {column.kind}: "
            f"{str(error).splitlines()[0][:200]}"
        ) from None
    if column.is_required and typed.null_count:
        raise UnexpectedAnswerError(
            f"{table_name}.{column.name}: PostHog answered null, which this column never is."
        )
    return typed


def _cast(texts: pa.Array, column: Column) -> pa.Array:
    match column.kind:
        case "timestamp":
            return _to_timestamps(texts)
        case "date" | "bigint" | "decimal" | "float" | "bool":
            return pc.cast(texts, arrow_type(column))
        case "double":
            return _to_finite(texts)
        case "json":
            return _to_json_texts(texts)
        case _:
            return texts


def _to_finite(texts: pa.Array) -> pa.Array:
    """Numbers; NaN and infinities, which JSON cannot hold and many warehouses refuse, become null."""
    numbers = pc.cast(texts, pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))


def _to_timestamps(texts: pa.Array) -> pa.Array:
    """ISO text with `Z`, an offset or nothing, which is UTC (query_api.md 6.1)."""
    if pc.all(pc.ends_with(texts, "Z")).as_py():
        return pc.cast(texts, ARROW_TYPES["timestamp"])
    is_naive = pc.invert(pc.match_substring_regex(texts, r"(Z|[+-]\d\d:?\d\d)$"))
    zoned = pc.if_else(is_naive, pc.binary_join_element_wise(texts, "Z", ""), texts)
    return pc.cast(zoned, ARROW_TYPES["timestamp"])


def _to_json_texts(texts: pa.Array) -> pa.Array:
    """JSON text that every JSON type takes.

    Halves of surrogate pairs stand alone where a client cut an emoji in two, and Postgres takes no NUL;
    warehouses refuse the whole load for one. They become U+FFFD. Empty text is no JSON and becomes null.
    """
    if pc.any(pc.equal(texts, "")).as_py():
        texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    suspects = pc.match_substring_regex(texts, r"\\u([dD][89a-fA-F]|0000)")
    if not pc.any(suspects).as_py():
        return texts
    mended = pa.array([_mend(text) for text in texts.filter(suspects).to_pylist()], pa.string())
    return pc.replace_with_mask(texts, pc.fill_null(suspects, fill_value=False), mended)


def _mend(text: str) -> str:
    return BAD_ESCAPE.sub(lambda found: found[1] or r"\ufffd", text)


def _item_text(value: object, kind: Kind) -> str | None:
    """A REST member; in a `json` column, text is JSON too and keeps its quotes."""
    return orjson.dumps(value).decode() if kind == "json" and value is not None else _cell_text(value)


def _stored(value: object, kind: Kind) -> object:
    """JSON may come back as objects, uuids as such, truth as 0 and 1, times as text."""
    if value is None:
        return None
    match kind:
        case "json" if not isinstance(value, str):
            return _item_text(value, "json")
        case "text" | "uuid" | "json":
            return str(value)
        case "bool":
            return bool(value)
        case "timestamp" if isinstance(value, str):
            return datetime.fromisoformat(value)
        case _:
            return value


def _cell_text(cell: object) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    try:
        return orjson.dumps(cell).decode()
    except TypeError as error:
        raise UnreadableAnswerError(f"PostHog answered a value that cannot be read: {error}.") from None


def _ragged(width: int) -> str:
    return f"PostHog answered rows that do not have {width} cells each, as its columns say."


def _not_an_answer(body: Body) -> str:
    return f"PostHog answered 200 with {len(body)} bytes that are not the JSON of an answer."
