"""query: what is asked for is meant exactly, and is carried out here to prove it.

A question's text is translated to DuckDB, word by word, and run over random rows. DuckDB has no
`cityHash64` and orders uuids by their first half: a column of made-up hashes, and uuids written with
their halves swapped, stand in for both.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cache
from typing import Any
from uuid import UUID

import duckdb
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from posthog_source import query as query_room
from posthog_source.catalog import (
    COHORT_PEOPLE,
    EVENTS,
    PERSON_DISTINCT_IDS,
    PERSONS,
    SESSION_REPLAYS,
    TABLES,
    events_table,
)
from posthog_source.config import MAX_PAGE_ROWS, EventsSettings
from posthog_source.fingerprint import fingerprint_of
from posthog_source.query import (
    Cell,
    Late,
    Query,
    build_bucket_checksums,
    build_count,
    build_count_distinct,
    build_day_checksums,
    build_day_counts,
    build_day_labels,
    build_fingerprints,
    build_heavy_counts,
    build_label_counts,
    build_page,
    build_probe,
    build_probe_condition,
    build_row_bytes,
    build_sample,
    build_span,
    utc,
)
from posthog_source.tables import UUID_AXIS, HogqlTable
from posthog_source.windows import (
    Bound,
    Count,
    Label,
    Slice,
    Window,
    halve,
    line_up,
    plan_prefixes,
    split,
    tell_heavy,
)

MIDNIGHT = datetime(2026, 1, 2, tzinfo=UTC)
WINDOW = Window(MIDNIGHT - timedelta(days=1), MIDNIGHT + timedelta(days=1))
NASTY = "x'); DROP TABLE events; --"
CHOSEN = events_table(
    EventsSettings(
        event_names=("A", "a", NASTY), exclude_event_names=("b",), where="distinct_id <> 'a' OR event = 'A'"
    )
)
HOGQL_TABLES = [table for table in TABLES if isinstance(table, HogqlTable)]
UUID_TEXT = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"

each_table = pytest.mark.parametrize("table", HOGQL_TABLES, ids=lambda table: table.name)

ENDLESS = 100
"""More rows than any line here has: a walk that hands out so many goes in circles."""

Row = Mapping[str, Any]


# Questions of every shape, for what must hold of them all.


def some_label(table: HogqlTable) -> tuple[date | str | int, ...]:
    values: dict[str, date | str | int] = {"day": date(2026, 1, 2), "text": NASTY, "bigint": 12}
    return tuple(values[label.kind] for label in table.sort_key.labels)


def some_slices(table: HogqlTable) -> list[Slice]:
    label = some_label(table)
    bounds = [Bound(label)] if label else []
    if table.sort_key.axis is not None:
        axis = table.sort_key.axis.axis
        bounds.append(Bound(label, axis.start + (axis.end - axis.start) // 3))
    pairs = [
        (None, None),
        *((b, None) for b in bounds),
        *((None, b) for b in bounds),
        (bounds[0], bounds[-1]),
    ]
    return [Slice(lower, upper) for lower, upper in pairs]


def some_cursor(table: HogqlTable) -> tuple[Cell, ...]:
    values: dict[str, Cell] = {"timestamp": MIDNIGHT, "uuid": UUID_TEXT, "text": NASTY, "bigint": 12}
    return tuple(values[table.column(name).kind] for name in table.page_key)


def questions_of_slices(table: HogqlTable, source: str, window: Window | None) -> Iterator[Query]:
    for slice_ in some_slices(table):
        yield build_count(table, source, slice_, window=window)
        yield build_count_distinct(table, source, slice_, window=window)
        for after in (None, some_cursor(table)):
            yield build_page(table, source, slice_, window=window, after=after, limit=1_000)


def questions_of_plans(table: HogqlTable, source: str, window: Window | None) -> Iterator[Query]:
    if label := some_label(table):
        for last in (None, label):
            yield build_label_counts(table, source, window=window, after=last, limit=MAX_PAGE_ROWS)
    if label and table.sort_key.axis and table.sort_key.axis.then:
        whole = Slice(Bound(label))
        yield build_heavy_counts(
            table, source, whole, window=window, labels=[label], rows=9, limit=MAX_PAGE_ROWS
        )
    if table.sort_key.is_sampled:
        for lower in (None, Bound(some_label(table) or ())):
            yield build_sample(table, source, one_in=10, lower=lower)


def all_questions(table: HogqlTable) -> Iterator[Query]:
    for source in table.sources:
        for window in (None, WINDOW) if table.time_column else (None,):
            yield from questions_of_slices(table, source, window)
            yield from questions_of_plans(table, source, window)
        if table.time_column:
            yield build_span(table, source)
            yield build_day_labels(table, source, window=WINDOW)
        for column in table.asked:
            yield build_probe(table, source, column)


def some_questions(table: HogqlTable) -> dict[str, Query]:
    """One question of each builder that there is, but those that probe a column."""
    late = Late(MIDNIGHT, 60)
    return {
        "build_page": build_page(table, "events", Slice(), window=WINDOW, after=None, limit=10),
        "build_count": build_count(table, "events", Slice(), window=None),
        "build_count_distinct": build_count_distinct(table, "events", Slice(), window=WINDOW, among=late),
        "build_label_counts": build_label_counts(table, "events", window=WINDOW, after=None, limit=10),
        "build_day_counts": build_day_counts(table, "events", window=WINDOW, late=late),
        "build_day_labels": build_day_labels(table, "events", window=WINDOW),
        "build_sample": build_sample(table, "events", one_in=10, lower=None),
        "build_span": build_span(table, "events", WINDOW),
        "build_row_bytes": build_row_bytes(table, "events", WINDOW),
        "build_heavy_counts": build_heavy_counts(
            table, "events", Slice(), window=None, labels=[(MIDNIGHT.date(), "A")], rows=9, limit=10
        ),
        "build_probe_condition": build_probe_condition(table, "events"),
        "build_day_checksums": build_day_checksums(
            table, "events", fingerprint_of(table), window=WINDOW, among=None, by_name=True
        ),
        "build_bucket_checksums": build_bucket_checksums(
            table, "events", fingerprint_of(table), slice_=Slice(), window=WINDOW, among=late, buckets=64
        ),
        "build_fingerprints": build_fingerprints(
            table,
            "events",
            fingerprint_of(table),
            slice_=Slice(),
            window=WINDOW,
            among=late,
            buckets=64,
            chosen=[7],
            arrival="created_at",
            limit=10,
        ),
    }


OWN_QUESTIONS = ("build_proof", "build_result_page", "build_result_types")
"""Of a person's own SELECT."""

ALL_QUESTIONS = [(table, query) for table in HOGQL_TABLES for query in all_questions(table)]


@pytest.mark.parametrize("builder", [name for name in dir(query_room) if name.startswith("build_")])
def test_every_question_about_a_table_asks_for_the_chosen_rows_only(builder: str) -> None:
    if builder in ("build_probe", "build_columns", "build_read_bytes", *OWN_QUESTIONS):
        return  # of one column, whatever the rows; of no table of ours
    query = some_questions(CHOSEN)[builder]

    _, _, conditions = query.text.partition(" WHERE ")
    names = dict(re.findall(r"event( NOT)? IN \{(\w+)\}", conditions))
    assert query.values[names[""]] == ["A", "a", NASTY]
    assert query.values[names[" NOT"]] == ["b"]
    assert " AND (distinct_id <> 'a' OR event = 'A')" in conditions
    assert NASTY not in query.text


def test_a_condition_is_tried_out_on_no_time_at_all() -> None:
    text = build_probe_condition(CHOSEN, "events").text

    first, last = re.findall(r"timestamp [><]= toDateTime64\('(\d{4})", text)
    assert first > last


def test_a_promoted_propertys_name_is_no_part_of_the_text() -> None:
    table = events_table(EventsSettings(promote=((NASTY, "text"),)))

    query = build_page(table, "events", Slice(), window=None, after=None, limit=10)

    assert NASTY in query.values.values()
    assert "DROP" not in query.text


def outside_text(query: Query) -> str:
    """The question's words without its string literals."""
    return re.sub(r"'[^']*'", "''", query.text)


def test_values_of_a_persons_making_never_appear_in_the_text() -> None:
    held = [query for _, query in ALL_QUESTIONS if NASTY in query.values.values()]

    assert held
    assert [query.text for _, query in ALL_QUESTIONS if "DROP" in query.text or "x'" in query.text] == []


def test_every_placeholder_has_its_value_and_every_value_its_placeholder() -> None:
    for _, query in ALL_QUESTIONS:
        assert set(re.findall(r"\{(\w+)\}", query.text)) == set(query.values)


def test_every_quoted_text_is_a_time_or_a_uuid_or_a_zone() -> None:
    for _, query in ALL_QUESTIONS:
        rest = re.sub(r"toDateTime64\('\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}', 6, 'UTC'\)", "", query.text)
        rest = re.sub(r"toUUID\('[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'\)", "", rest)
        assert "'" not in rest
        assert '"' not in rest


def test_every_question_is_one_select_with_a_limit_and_never_an_offset() -> None:
    for table, query in ALL_QUESTIONS:
        words = outside_text(query)
        is_nested = "groupArray(" in words or (
            (table.version_field or table.parts) and "probe" not in query.name
        )
        depth = 2 if is_nested else 1
        found = re.search(r" LIMIT (\d+)$", words)
        assert found is not None
        assert 1 <= int(found[1]) <= MAX_PAGE_ROWS
        assert words.startswith("SELECT ")
        assert words.count("SELECT") == words.count(" FROM ") == depth
        assert words.count("LIMIT") == 1
        assert "OFFSET" not in words.upper()
        assert ";" not in words


def test_every_question_that_could_have_many_rows_has_an_order() -> None:
    for _, query in ALL_QUESTIONS:
        assert " ORDER BY " in query.text or query.text.endswith(" LIMIT 1")


def test_names_that_begin_with_a_dollar_stand_in_backticks() -> None:
    for _, query in ALL_QUESTIONS:
        assert "$" not in re.sub(r"`\$\w+`", "", outside_text(query))


def test_a_bound_on_time_from_above_is_closed() -> None:
    for _, query in ALL_QUESTIONS:
        assert not re.search(r"timestamp < ", query.text)


def test_a_cast_has_an_alias_that_is_no_field_of_the_table() -> None:
    for table, query in ALL_QUESTIONS:
        fields = {column.source for column in table.columns} | {column.name for column in table.columns}
        cells = re.sub(r"\[.*?\]", "", query.text.split(" FROM ")[0])  # nothing in an array has a name
        casts = re.findall(r"toString\((?:[^()]|\([^()]*\))*\)( AS (\w+))?", cells)
        casts = [alias for _, alias in casts if "uniqExact" not in query.text]
        assert all(alias and alias not in fields for alias in casts)


def test_no_alias_hides_a_field_that_the_question_compares_or_orders_by() -> None:
    for table, query in ALL_QUESTIONS:
        selects, _, conditions = query.text.partition(" FROM ")
        for alias in re.findall(r" AS (\w+)", selects):
            if re.search(rf"(?<![\w.`]){alias}(?![\w`])", re.sub(r"^\w+", "", conditions)):
                pytest.fail(f"{table.name}: {alias} means two things in {query.text}")


def test_every_question_is_labelled_for_posthogs_query_log() -> None:
    assert {query.name.split()[0] for _, query in ALL_QUESTIONS} == {"posthog_source"}
    assert all(table.name in query.name for table, query in ALL_QUESTIONS)


@each_table
def test_a_page_asks_for_the_tables_columns_in_order_as_text(table: HogqlTable) -> None:
    query = build_page(table, table.sources[0], Slice(), window=None, after=None, limit=10)

    asked = query.text.removeprefix("SELECT ").split(" FROM ")[0].split(", ")
    assert [column.name for column in table.asked] == [c.name for c in table.columns if not c.is_added]
    assert len(asked) == len(table.asked)
    for cell, column in zip(asked, table.asked, strict=True):
        assert cell.rpartition(" AS ")[2].removesuffix("_text") == column.name
        assert cell.startswith("toString(") == (column.kind in ("bigint", "bool"))


@each_table
def test_a_column_that_is_no_field_of_its_name_has_an_alias_that_no_field_has(table: HogqlTable) -> None:
    query = build_page(table, table.sources[0], Slice(), window=None, after=None, limit=10)

    aliases = re.findall(r" AS (\w+)", query.text.partition(" FROM ")[0] if table.parts else query.text)
    assert [one for one in aliases if not one.endswith("_text") and not one.startswith("newest")] == []


@each_table
def test_the_cursors_tuple_goes_with_a_plain_bound_that_prunes(table: HogqlTable) -> None:
    query = build_page(table, table.sources[0], Slice(), window=None, after=some_cursor(table), limit=10)

    first = table.column(table.page_key[0]).source
    if len(table.page_key) == 1:
        assert re.search(rf" WHERE {first} > ", query.text)
    else:
        assert re.search(rf" WHERE {first} >= [^ ].* AND \({first}, \w+\) > \(", query.text)


@pytest.mark.parametrize("table", [EVENTS, COHORT_PEOPLE], ids=lambda table: table.name)
def test_every_compound_bound_of_a_slice_goes_with_a_plain_bound_that_prunes(table: HogqlTable) -> None:
    axis = table.sort_key.axis
    assert axis is not None
    bound = Bound(some_label(table), axis.axis.start + 1)
    first = table.sort_key.labels[0].field

    lower = build_count(table, table.sources[0], Slice(lower=bound), window=None).text
    upper = build_count(table, table.sources[0], Slice(upper=bound), window=None).text

    assert re.search(rf" WHERE {first} >= \S.* AND \({first} >=? ", lower)
    assert re.search(rf" WHERE {first} <= \S.* AND \({first} <=? ", upper)


@each_table
def test_a_table_is_probed_without_reading_a_row(table: HogqlTable) -> None:
    for column in table.asked:
        text = build_probe(table, table.sources[0], column).text
        assert text.endswith(" WHERE 1 = 2 LIMIT 1")


@given(
    st.datetimes(
        datetime(1970, 1, 1),  # noqa: DTZ001
        datetime(2299, 12, 31),  # noqa: DTZ001
        timezones=st.sampled_from(
            [UTC, timezone(timedelta(hours=-9, minutes=-30)), timezone(timedelta(hours=14))]
        ),
    )
)
def test_a_time_literal_has_six_digits_and_says_utc(at: datetime) -> None:
    found = re.fullmatch(r"toDateTime64\('(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6})', 6, 'UTC'\)", utc(at))

    assert found is not None
    assert datetime.fromisoformat(found[1]).replace(tzinfo=UTC) == at


@pytest.mark.parametrize("year", [1, 33, 999])
def test_a_time_literal_has_four_digits_of_year_however_early(year: int) -> None:
    assert utc(datetime(year, 1, 1, tzinfo=UTC)).startswith(f"toDateTime64('{year:04}-01-01 ")


@pytest.mark.parametrize("cell", ["not-a-uuid", f"{UUID_TEXT}') OR 1=1 --", ""])
def test_a_cursor_that_should_be_a_uuid_and_is_none_is_never_sent(cell: str) -> None:
    with pytest.raises(ValueError, match="UUID"):
        build_page(PERSONS, "persons", Slice(), window=None, after=(cell,), limit=10)


def test_a_cursor_of_the_wrong_width_is_never_sent() -> None:
    with pytest.raises(ValueError, match="zip"):
        build_page(EVENTS, "events", Slice(), window=None, after=(MIDNIGHT,), limit=10)


def test_a_question_of_two_fields_reads_like_this() -> None:
    cut = Slice(lower=Bound((date(2026, 1, 2), "a"), 5 << 64))

    query = build_count(EVENTS, "events", cut, window=WINDOW)

    assert query.text == (
        "SELECT toString(count()) AS row_count FROM events"
        " WHERE timestamp <= toDateTime64('2026-01-02 23:59:59.999999', 6, 'UTC')"
        " AND timestamp >= toDateTime64('2026-01-02 00:00:00.000000', 6, 'UTC')"
        " AND (timestamp >= toDateTime64('2026-01-03 00:00:00.000000', 6, 'UTC') OR event >= {v0})"
        " AND (timestamp >= toDateTime64('2026-01-03 00:00:00.000000', 6, 'UTC') OR event > {v0}"
        " OR cityHash64(distinct_id) >= {v1}) LIMIT 1"
    )
    assert query.values == {"v0": "a", "v1": 5}


def test_what_both_ends_of_a_slice_have_in_common_is_said_once() -> None:
    day = date(2026, 1, 2)
    in_value = Slice(Bound((day, "a"), 5 << 64 | 3), Bound((day, "a"), 5 << 64 | 9))
    in_event = Slice(Bound((day, "a"), 5 << 64), Bound((day, "a"), 9 << 64))
    in_day = Slice(Bound((day, "a"), 5 << 64), Bound((day, "b")))
    bounds = (
        "WHERE timestamp >= toDateTime64('2026-01-02 00:00:00.000000', 6, 'UTC')"
        " AND timestamp <= toDateTime64('2026-01-02 23:59:59.999999', 6, 'UTC')"
    )

    of_value, of_event, of_day = (
        build_count(EVENTS, "events", cut, window=WINDOW).text.partition("WHERE")[2]
        for cut in (in_value, in_event, in_day)
    )

    assert f"WHERE{of_value}" == (
        f"{bounds} AND event = {{v0}} AND cityHash64(distinct_id) = {{v1}}"
        " AND cityHash64(uuid) >= {v2} AND cityHash64(uuid) < {v3} LIMIT 1"
    )
    assert f"WHERE{of_event}" == (
        f"{bounds} AND event = {{v0}} AND cityHash64(distinct_id) >= {{v1}}"
        " AND cityHash64(distinct_id) < {v2} LIMIT 1"
    )
    assert f"WHERE{of_day}" == (
        f"{bounds} AND event >= {{v0}} AND (event > {{v0}} OR cityHash64(distinct_id) >= {{v1}})"
        " AND event < {v2} LIMIT 1"
    )


def test_a_windows_bound_inside_the_day_of_a_slices_end_is_told_beside_it() -> None:
    noon = Window(MIDNIGHT + timedelta(hours=12), MIDNIGHT + timedelta(hours=13))
    cut = Slice(Bound((MIDNIGHT.date(), "a")), Bound((MIDNIGHT.date(), "b")))

    text = build_count(EVENTS, "events", cut, window=noon).text

    assert "timestamp >= toDateTime64('2026-01-02 12:00:00.000000', 6, 'UTC')" in text
    assert "timestamp <= toDateTime64('2026-01-02 12:59:59.999999', 6, 'UTC')" in text


# Carrying questions out.


def swapped(text: str) -> str:
    """A uuid with its halves swapped: text that sorts as ClickHouse sorts uuids."""
    digits = UUID(text).hex
    return str(UUID(digits[16:] + digits[:16]))


def translated(query: Query) -> tuple[str, dict[str, object]]:
    """A question as DuckDB reads it, and its values."""
    text = re.sub(r"toDateTime64\(('[^']*'), 6, 'UTC'\)", r"TIMESTAMP \1", query.text)
    text = re.sub(r"toUUID\('([^']*)'\)", lambda found: f"'{swapped(found[1])}'", text)
    text = re.sub(r"cityHash64\((\w+)\)", r"hash_of_\1", text)
    text = re.sub(r"modulo\((\w+), (\d+)\)", r"(\1 % \2)", text)
    text = re.sub(r"uniqExact\(tuple\(([^()]*)\)\)", r"count(DISTINCT row(\1))", text)
    sampled = r"CAST(to_json(coalesce(list(\1) FILTER (\2), [])) AS VARCHAR)"
    text = re.sub(r"toJSONString\(groupArrayIf\((\[.*?\]), (.*? = 0)\)\)", sampled, text)
    text = re.sub(r"toJSONString\(groupArray\((\w+)\)\)", r"CAST(to_json(list(\1)) AS VARCHAR)", text)
    text = re.sub(r"toJSONString\((`?\$?\w+`?)\)", r"CAST(to_json(\1) AS VARCHAR)", text)
    text = re.sub(r"toYYYYMMDD\((\w+)\)", r"CAST(strftime(\1, '%Y%m%d') AS INTEGER)", text)
    text = re.sub(r"argMinMerge\((\w+)\)", r"min(\1)", text)
    text = re.sub(r"arraySort\(groupUniqArrayArray\((\w+)\)\)", r"list(\1)", text)
    for key, field in (("session_id", "session_id"), ("index, key", "key")):
        text = text.replace(f"(SELECT {key}", f"(SELECT {key}, any_value(hash_of_{field}) AS hash_of_{field}")
    text = re.sub(r"toDate\((`?\$?\w+`?)\)", r"CAST(\1 AS DATE)", text)
    text = re.sub(r"toString\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)", r"CAST(\1 AS VARCHAR)", text)
    text = re.sub(r"(\w+)( NOT)? IN (\{\w+\})", r"\2 list_contains(\3, \1)", text)
    text = re.sub(r"\{(\w+)\}", r"$\1", text).replace("`", '"').replace("count()", "count(*)")
    return text, dict(query.values)


@cache
def schemas() -> dict[str, pa.Schema]:
    """PostHog's field names of every HogQL table, and the hashes that it would compute."""
    types = {"timestamp": pa.timestamp("us"), "bigint": pa.int64(), "bool": pa.bool_()}
    found: dict[str, pa.Schema] = {}
    for table in HOGQL_TABLES:
        columns = {c.source: types.get(c.kind, pa.string()) for c in table.columns if "." not in c.source}
        structs = {c.source.split(".")[0] for c in table.columns if "." in c.source}
        columns |= {name: pa.struct([("properties", pa.string())]) for name in structs}
        for column in table.columns:
            names = re.findall(r"(\w+)(?=[,)])", column.summed)
            columns |= {name: types.get(column.kind, pa.string()) for name in names}
        if table.parts:
            columns[table.parts.time_field] = pa.timestamp("us")
        columns |= {
            "hash_of_distinct_id": pa.uint64(),
            "hash_of_uuid": pa.uint64(),
            "hash_of_session_id": pa.uint64(),
            "hash_of_key": pa.uint64(),
            "is_deleted": pa.int64(),
        }
        found |= {source: pa.schema(columns.items()) for source in table.sources}
    return found


@cache
def database() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


def stored(source: str, rows: Sequence[Row]) -> duckdb.DuckDBPyConnection:
    """The database with just those rows in that table, each in two parts where it holds parts."""
    if source in SESSION_REPLAYS.sources:
        parts = [(row, row["start_time"] + n * row["lasts"]) for row in rows for n in (0, 1)]
        rows = [{**row, "min_first_timestamp": at} for row, at in parts]
    database().register(source, pa.Table.from_pylist([dict(row) for row in rows], schemas()[source]))
    return database()


def answer(connection: duckdb.DuckDBPyConnection, query: Query) -> list[dict[str, Any]]:
    text, values = translated(query)
    cursor = connection.execute(text, values)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def number(connection: duckdb.DuckDBPyConnection, query: Query) -> int:
    ((cell,),) = (row.values() for row in answer(connection, query))
    assert isinstance(cell, str)
    return int(cell)


def page_cursor(table: HogqlTable, row: Row) -> tuple[Cell, ...]:
    """The page key of a row, as the connector would have read it."""
    cells: list[Cell] = []
    for name in table.page_key:
        column = table.column(name)
        match column.kind:
            case "timestamp":
                cells.append(row[name].replace(tzinfo=UTC))
            case "uuid":
                cells.append(swapped(row[name]))
            case "bigint":
                cells.append(int(row[f"{name}_text"]))
            case _:
                cells.append(row[name])
    return tuple(cells)


def walk(
    connection: duckdb.DuckDBPyConnection,
    table: HogqlTable,
    slice_: Slice,
    *,
    window: Window | None,
    page_rows: int,
) -> list[tuple[Cell, ...]]:
    """The page keys of a slice's rows, page after page until one is empty."""
    keys: list[tuple[Cell, ...]] = []
    after: tuple[Cell, ...] | None = None
    source = table.sources[0]
    while True:
        query = build_page(table, source, slice_, window=window, after=after, limit=page_rows)
        page = [page_cursor(table, row) for row in answer(connection, query)]
        if not page:
            return keys
        assert len(page) <= page_rows
        keys += page
        assert len(keys) <= ENDLESS
        after = page[-1]


@dataclass(frozen=True)
class Line:
    """A table, its rows, and where each lies on the line of its sort key."""

    table: HogqlTable
    rows: tuple[Row, ...]
    window: Window | None
    counts: tuple[Count, ...]
    """Of some of the rows: a plan is older than what it is asked for."""

    def place(self, row: Row) -> tuple[object, ...]:
        sort_key = self.table.sort_key
        label = tuple(
            row[field.field].date() if field.kind == "day" else encoded(row[field.field])
            for field in sort_key.labels
        )
        if sort_key.axis is None:
            return (label, 0)
        if sort_key.axis.kind == "hash":
            at = row[f"hash_of_{sort_key.axis.field}"]
            return (label, at << 64 | row[f"hash_of_{sort_key.axis.then}"] if sort_key.axis.then else at)
        return (label, UUID(row[sort_key.axis.field]).int >> 64)  # stored with the halves swapped

    def slices(self, page_rows: int) -> list[Slice]:
        sort_key = self.table.sort_key
        if sort_key.is_sampled:
            samples = [count.label for count in self.counts]
            return plan_prefixes(samples, rows=len(self.rows), page_rows=page_rows)
        axis = sort_key.axis.axis if sort_key.axis else None
        whole = line_up(self.counts, axis=axis)
        if sort_key.axis and sort_key.axis.then:
            whole = tell_heavy(whole, self.heavy())
        return split(whole, page_rows=page_rows)

    def heavy(self) -> dict[Label, dict[int, int]]:
        """Values of the first hash that two rows of a label share."""
        found: dict[Label, dict[int, int]] = {}
        for row in self.rows:
            fields = self.table.sort_key.labels
            label = tuple(row[f.field].date() if f.kind == "day" else row[f.field] for f in fields)
            values = found.setdefault(label, {})
            values[row["hash_of_distinct_id"]] = values.get(row["hash_of_distinct_id"], 0) + 1
        return {label: {v: n for v, n in values.items() if n > 1} for label, values in found.items()}

    def key(self, row: Row) -> tuple[Cell, ...]:
        named = {c.name: row.get(c.source) for c in self.table.columns}
        texts = {f"{name}_text": value for name, value in named.items()}
        return page_cursor(self.table, {**named, **texts})

    def is_inside(self, row: Row) -> bool:
        """In the window, and chosen."""
        if self.table is CHOSEN and not is_chosen(row):
            return False
        if self.window is None or self.table.time_column is None:
            return True
        at = row[self.table.time_column].replace(tzinfo=UTC)
        return bool(self.window.start <= at < self.window.end)


def is_chosen(row: Row) -> bool:
    """Whether a row meets the condition of `CHOSEN`."""
    return row["event"] in ("A", "a", NASTY) and (row["distinct_id"] != "a" or row["event"] == "A")


def encoded(value: object) -> object:
    """Text as ClickHouse and DuckDB compare it: by its bytes."""
    return value.encode() if isinstance(value, str) else value


def is_in(line: Line, slice_: Slice, row: Row) -> bool:
    """Whether the row lies in the slice, by the account of `windows`."""
    label, at = line.place(row)

    def place(bound: Bound) -> tuple[object, ...]:
        return tuple(encoded(value) for value in bound.label), -1 if bound.at is None else bound.at

    return (slice_.lower is None or place(slice_.lower) <= (label, at)) and (
        slice_.upper is None or (label, at) < place(slice_.upper)
    )


near_midnight = st.builds(
    lambda days, off: (MIDNIGHT + timedelta(days=days, microseconds=off)).replace(tzinfo=None),
    st.integers(-2, 2),
    st.sampled_from([-2, -1, 0, 1, 3_600_000_000, 43_200_000_000]),
)
names = st.sampled_from(
    ["$pageview", "$autocapture", "A", "a", "b", "ü", "\N{GRINNING FACE}", NASTY, "", "{v0}", "%s"]
)
hashes = st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
uuid_texts = st.builds(
    lambda high, low: str(UUID(int=(low << 64) | high)),  # halves swapped
    st.integers(0, 3) | st.integers(0, 2**64 - 1),
    st.sampled_from([UUID_AXIS.start, UUID_AXIS.start + 1, UUID_AXIS.end - 1, 0, 2**64 - 1])
    | st.integers(UUID_AXIS.start, UUID_AXIS.end - 1),
)
distinct_ids = st.text(alphabet="abü\N{GRINNING FACE}'%", max_size=4)
ROW_FIELDS: Mapping[str, Mapping[str, st.SearchStrategy[Any]]] = {
    "events": {
        "uuid": uuid_texts,
        "event": names,
        "timestamp": near_midnight,
        "distinct_id": distinct_ids,
        "hash_of_distinct_id": hashes,
        "hash_of_uuid": hashes,
    },
    "persons": {
        "id": uuid_texts,
        "version": st.integers(0, 3),
        "is_deleted": st.just(0),
        "created_at": near_midnight,
    },
    "person_distinct_ids": {
        "distinct_id": distinct_ids,
        "person_id": uuid_texts,
        "hash_of_distinct_id": hashes,
    },
    "groups": {
        "index": st.integers(0, 2),
        "key": distinct_ids,
        "updated_at": near_midnight,
        "hash_of_key": hashes,
    },
    "sessions": {
        "session_id": distinct_ids,
        "$start_timestamp": near_midnight,
        "hash_of_session_id": hashes,
    },
    "session_replays": {
        "session_id": distinct_ids,
        "start_time": near_midnight,
        "lasts": st.timedeltas(timedelta(0), timedelta(hours=23)),
        "hash_of_session_id": hashes,
    },
    "cohort_people": {"cohort_id": st.integers(-2, 3), "person_id": uuid_texts},
}


@st.composite
def lines(draw: st.DrawFn, table: HogqlTable) -> Line:
    key = [table.column(name).source for name in table.page_key]
    rows = draw(
        st.lists(
            st.fixed_dictionaries(dict(ROW_FIELDS[table.name])),
            max_size=25,
            unique_by=lambda row: tuple(row[name] for name in key),
        )
    )
    window = None
    if table.time_column is not None:
        edges = sorted(draw(st.tuples(near_midnight, near_midnight)))
        window = Window(*(at.replace(tzinfo=UTC) for at in edges)) if draw(st.booleans()) else None
    known = draw(st.lists(st.sampled_from(rows), unique_by=id)) if rows else []
    line = Line(table, tuple(rows), window, ())
    labels = [
        tuple(row[f.field].date() if f.kind == "day" else row[f.field] for f in table.sort_key.labels)
        for row in known
        if line.is_inside(row)
    ]
    ordered = sorted(set(labels), key=lambda label: tuple(encoded(value) for value in label))
    weight = draw(st.integers(1, 5))
    counts = tuple(Count(label, labels.count(label) * weight) for label in ordered)
    return Line(table, tuple(rows), window, counts)


any_line = st.sampled_from([*HOGQL_TABLES, CHOSEN]).flatmap(lines)


def test_every_table_is_among_those_that_are_carried_out() -> None:
    assert set(ROW_FIELDS) == {table.name for table in HOGQL_TABLES}


@pytest.mark.parametrize(("table", "query"), ALL_QUESTIONS, ids=lambda value: getattr(value, "name", "query"))
def test_every_question_can_be_carried_out(table: HogqlTable, query: Query) -> None:
    for source in table.sources:
        stored(source, [])

    assert len(answer(database(), query)) <= 1


@given(line=any_line, page_rows=st.integers(1, 12))
@settings(deadline=None, max_examples=120)
def test_each_row_is_asked_for_by_exactly_the_one_slice_that_it_lies_in(line: Line, page_rows: int) -> None:
    table, source = line.table, line.table.sources[0]
    connection = stored(source, line.rows)
    asked: list[tuple[Cell, ...]] = []
    for slice_ in line.slices(page_rows):
        query = build_page(table, source, slice_, window=line.window, after=None, limit=MAX_PAGE_ROWS)
        keys = [page_cursor(table, row) for row in answer(connection, query)]
        lying = [line.key(row) for row in line.rows if line.is_inside(row) and is_in(line, slice_, row)]
        assert sorted(keys) == sorted(lying)
        asked += keys

    assert sorted(asked) == sorted(line.key(row) for row in line.rows if line.is_inside(row))


@given(line=any_line, page_rows=st.integers(1, 30))
@settings(deadline=None, max_examples=80)
def test_pages_of_any_size_hand_out_each_row_once_in_one_order_whatever_the_ties(
    line: Line, page_rows: int
) -> None:
    connection = stored(line.table.sources[0], line.rows)

    by_page = walk(connection, line.table, Slice(), window=line.window, page_rows=page_rows)
    at_once = walk(connection, line.table, Slice(), window=line.window, page_rows=MAX_PAGE_ROWS)

    assert by_page == at_once
    assert sorted(by_page) == sorted(line.key(row) for row in line.rows if line.is_inside(row))


@given(line=any_line, slice_rows=st.integers(1, 12), page_rows=st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_pages_within_slices_hand_out_each_row_of_a_table_once(
    line: Line, slice_rows: int, page_rows: int
) -> None:
    connection = stored(line.table.sources[0], line.rows)
    keys: list[tuple[Cell, ...]] = []
    for slice_ in line.slices(slice_rows):
        keys += walk(connection, line.table, slice_, window=line.window, page_rows=page_rows)

    assert sorted(keys) == sorted(line.key(row) for row in line.rows if line.is_inside(row))


@given(line=any_line)
@settings(deadline=None, max_examples=50)
def test_the_halves_of_a_slice_hold_its_rows_between_them(line: Line) -> None:
    table, source = line.table, line.table.sources[0]
    connection = stored(source, line.rows)
    (whole, *_) = line.slices(1_000)
    assume(len(halves := halve(whole)) == 2)

    rows = [number(connection, build_count(table, source, half, window=line.window)) for half in halves]

    assert sum(rows) == number(connection, build_count(table, source, whole, window=line.window))


@pytest.mark.parametrize("label", [("A",), ("A", 5 << 64), ("A", 5 << 64 | 7)])
def test_a_slice_that_ends_where_it_begins_has_no_rows(label: tuple[Any, ...]) -> None:
    hashes = {"hash_of_distinct_id": 5, "hash_of_uuid": 7}
    row = {"uuid": UUID_TEXT, "event": "A", "distinct_id": "a", **hashes}
    connection = stored("events", [{**row, "timestamp": MIDNIGHT.replace(tzinfo=None)}])
    place = Bound((MIDNIGHT.date(), label[0]), *label[1:])

    assert number(connection, build_count(EVENTS, "events", Slice(place), window=None)) == 1
    assert number(connection, build_count(EVENTS, "events", Slice(place, place), window=None)) == 0


@given(line=any_line, page_rows=st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_a_slice_is_counted_as_it_is_read(line: Line, page_rows: int) -> None:
    table, source = line.table, line.table.sources[0]
    connection = stored(source, [*line.rows, *line.rows])
    times = 1 if table.version_field or table.parts else 2
    for slice_ in line.slices(page_rows):
        held = [row for row in line.rows if line.is_inside(row) and is_in(line, slice_, row)]
        assert number(connection, build_count(table, source, slice_, window=line.window)) == times * len(held)
        assert number(connection, build_count_distinct(table, source, slice_, window=line.window)) == len(
            held
        )


@given(
    line=st.sampled_from([EVENTS, CHOSEN, COHORT_PEOPLE, PERSON_DISTINCT_IDS]).flatmap(lines),
    limit=st.integers(1, 5),
)
@settings(deadline=None, max_examples=60)
def test_labels_are_counted_each_once_in_order_page_after_page(line: Line, limit: int) -> None:
    table, source = line.table, line.table.sources[0]
    connection = stored(source, line.rows)
    read: Mapping[str, Callable[[str], Any]] = {"day": date.fromisoformat, "bigint": int, "text": str}
    counted: list[tuple[tuple[Any, ...], int]] = []
    after = None
    while True:
        query = build_label_counts(table, source, window=line.window, after=after, limit=limit)
        page = [list(row.values()) for row in answer(connection, query)]
        if not page:
            break
        for *cells, rows in page:
            after = tuple(read[f.kind](cell) for f, cell in zip(table.sort_key.labels, cells, strict=True))
            counted.append((after, int(rows)))
        assert len(counted) <= ENDLESS

    inside = [line.place(row)[0] for row in line.rows if line.is_inside(row)]
    expected = sorted((label, inside.count(label)) for label in set(inside))
    assert [(tuple(encoded(value) for value in label), rows) for label, rows in counted] == expected


@given(line=st.sampled_from([EVENTS, CHOSEN]).flatmap(lines), rows=st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_hashes_that_many_rows_share_are_counted_label_by_label(line: Line, rows: int) -> None:
    inside = [row for row in line.rows if line.is_inside(row)]
    places = Counter(
        (str(row["timestamp"].date()), encoded(row["event"]), row["hash_of_distinct_id"]) for row in inside
    )
    labels = [count.label for count in line.counts]
    query = build_heavy_counts(
        line.table, "events", Slice(), window=line.window, labels=labels, rows=rows, limit=100
    )

    found = {tuple(row.values()) for row in answer(stored("events", line.rows), query)}

    names = {encoded(label[-1]) for label in labels}
    assert {(day, encoded(event), int(value), int(count)) for day, event, value, count in found} == {
        (*place, count) for place, count in places.items() if count >= rows and place[1] in names
    }


@given(line=st.sampled_from([EVENTS, CHOSEN]).flatmap(lines))
@settings(deadline=None, max_examples=60)
def test_days_are_counted_by_name_in_one_answer(line: Line) -> None:
    window = line.window or Window(MIDNIGHT - timedelta(days=9), MIDNIGHT + timedelta(days=9))
    query = build_day_labels(line.table, "events", window=window)

    found = Counter(
        {
            (row["day_text"], name): rows
            for row in answer(stored("events", line.rows), query)
            for name, rows in zip(json.loads(row["labels"]), json.loads(row["row_counts"]), strict=True)
        }
    )

    inside = [row for row in line.rows if line.is_inside(row)]
    assert found == Counter((str(row["timestamp"].date()), row["event"]) for row in inside)


@given(line=lines(PERSON_DISTINCT_IDS), one_in=st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_a_sample_is_of_the_keys_that_the_count_beside_it_counts(line: Line, one_in: int) -> None:
    table, source = line.table, line.table.sources[0]
    known = sorted({row["distinct_id"] for row in line.rows}, key=str.encode)
    for lower in (None, *(Bound((name,)) for name in known[:3])):
        query = build_sample(table, source, one_in=one_in, lower=lower)

        (row,) = answer(stored(source, line.rows), query)

        rest = [one for one in line.rows if lower is None or one["distinct_id"] >= lower.label[0]]
        sampled = {one["distinct_id"] for one in rest if one["hash_of_distinct_id"] % one_in == 0}
        assert row["row_count"] == str(len(rest))
        assert {name for (name,) in json.loads(row["labels"])} == sampled


@given(line=st.sampled_from([EVENTS, CHOSEN]).flatmap(lines))
@settings(deadline=None, max_examples=50)
def test_the_first_instant_is_the_smallest_time_and_the_count_of_all_rows(line: Line) -> None:
    (row,) = answer(stored("events", line.rows), build_span(line.table, "events"))

    times = [row["timestamp"] for row in line.rows if line.table is EVENTS or is_chosen(row)]
    assert row["row_count"] == str(len(times))
    assert row["first_at"] == min(times, default=None)
