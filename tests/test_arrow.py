"""arrow: what PostHog wrote is what the table holds, and anything else is an error that says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthog_source.arrow import (
    ARROW_TYPES,
    Answer,
    items_to_table,
    last_row,
    parse_instant,
    read_answer,
    schema_of,
    stored_to_table,
    to_table,
)
from posthog_source.catalog import TABLES
from posthog_source.errors import (
    PosthogSourceError,
    StaleAnswerError,
    UnexpectedAnswerError,
    UnreadableAnswerError,
)
from posthog_source.tables import Column, Table

ALL_KINDS = Table(
    name="things",
    description="Each kind of column once.",
    columns=(
        Column("project_id", "bigint", "Project", is_required=True, is_added=True),
        Column("uuid", "uuid", "Id", is_required=True),
        Column("name", "text", "Text"),
        Column("at", "timestamp", "Time"),
        Column("number", "bigint", "Number"),
        Column("ratio", "double", "Fraction"),
        Column("flag", "bool", "Flag"),
        Column("document", "json", "JSON", field="$document"),
    ),
    primary_key=("project_id", "uuid"),
    disposition="window",
    scopes=("query:read",),
)
UUID_TEXT = "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"
FULL_ROW = (UUID_TEXT, "a", "2026-01-02T03:04:05.120000Z", "-7", "2.5", "true", '{"a":1}')
NASTY_TEXTS = [
    "",
    " ",
    "null",
    "NUL \x00 inside",
    'quotes " and \\ and / and \b\f\n\r\t',
    "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{COMBINING ACUTE ACCENT}",
    "line\u2028and\u2029paragraph",
    "\ufffe\uffff\U0010ffff",
    "x" * 100_000,
]

texts = st.text() | st.sampled_from(NASTY_TEXTS)
cells = st.none() | texts
TEXT_WITHOUT_NUL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT_WITHOUT_NUL,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT_WITHOUT_NUL, inner, max_size=4),
    max_leaves=8,
)


def body_of(rows: Sequence[Sequence[object]], width: int, **members: object) -> bytes:
    columns = [f"c{number}" for number in range(width)]
    answer = {"cache_key": "k", "is_cached": False, "columns": columns, "results": rows, "error": None}
    return orjson.dumps({**answer, "timings": [{"k": "x", "t": 0.5}], "hogql": "SELECT", **members})


def asked_of(table: Table) -> list[Column]:
    """What PostHog is asked for."""
    return [column for column in table.columns if not column.is_added]


def table_of(*rows: Sequence[object], table: Table = ALL_KINDS) -> pa.Table:
    body = body_of(rows, len(asked_of(table)))
    return to_table(read_answer(body), table, project_id=7)


def column_of(kind: str, values: Sequence[object]) -> list[object]:
    """Those cells of one column of that kind, through the whole room."""
    index = [column.kind for column in ALL_KINDS.columns[1:]].index(kind)  # type: ignore[arg-type]
    rows = [[*FULL_ROW[:index], value, *FULL_ROW[index + 1 :]] for value in values]
    found: list[object] = table_of(*rows).column(index + 1).to_pylist()
    return found


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[list[str | None]], int]:
    width = draw(st.integers(1, 5))
    return draw(st.lists(st.lists(cells, min_size=width, max_size=width), max_size=12)), width


@given(grids())
@settings(deadline=None)
def test_text_and_null_cells_arrive_as_they_were_sent(grid: tuple[list[list[str | None]], int]) -> None:
    rows, width = grid

    answer = read_answer(body_of(rows, width))

    assert answer.rows == len(rows)
    assert len(answer.columns) == width
    assert answer.cells() == [tuple(row) for row in rows]


@given(grids())
@settings(deadline=None)
def test_text_arrives_the_same_however_json_escapes_it(grid: tuple[list[list[str | None]], int]) -> None:
    rows, width = grid
    body = body_of(rows, width)
    escaped = json.dumps(json.loads(body), ensure_ascii=True, indent=1).encode()

    assert read_answer(escaped).cells() == read_answer(body).cells()


@given(grids(), st.integers(0, 10**6))
@settings(deadline=None)
def test_the_other_way_for_other_cells_ends_in_the_same_rows(
    grid: tuple[list[list[str | None]], int], number: int
) -> None:
    rows, width = grid
    as_text = [[*row, str(number)] for row in rows]
    as_number = [[*row, number] for row in rows]

    assert (
        read_answer(body_of(as_number, width + 1)).cells() == read_answer(body_of(as_text, width + 1)).cells()
    )


@given(st.lists(json_values.filter(lambda value: value is not None), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_cell_that_is_no_text_becomes_its_json(values: list[object]) -> None:
    answer = read_answer(body_of([[value] for value in values], 1))

    for (cell,), value in zip(answer.cells(), values, strict=True):
        assert cell is not None
        assert (cell == value) if isinstance(value, str) else (orjson.loads(cell) == value)


def test_every_kind_of_cell_becomes_its_columns_type() -> None:
    table = table_of(FULL_ROW, (UUID_TEXT, None, None, None, None, None, None))

    assert table.schema == schema_of(ALL_KINDS)
    assert table.to_pylist() == [
        {
            "project_id": 7,
            "uuid": UUID_TEXT,
            "name": "a",
            "at": datetime(2026, 1, 2, 3, 4, 5, 120_000, tzinfo=UTC),
            "number": -7,
            "ratio": 2.5,
            "flag": True,
            "document": '{"a":1}',
        },
        {
            "project_id": 7,
            "uuid": UUID_TEXT,
            "name": None,
            "at": None,
            "number": None,
            "ratio": None,
            "flag": None,
            "document": None,
        },
    ]


def test_cells_that_are_no_text_end_in_the_same_table() -> None:
    as_text = table_of(FULL_ROW)
    as_values = table_of((UUID_TEXT, "a", "2026-01-02T03:04:05.120000Z", -7, 2.5, True, {"a": 1}))

    assert as_values.equals(as_text)


@pytest.mark.parametrize(("cell", "flag"), [("true", True), ("false", False), ("1", True), ("0", False)])
def test_a_flag_is_true_and_false_or_one_and_nought(cell: str, flag: bool) -> None:
    assert column_of("bool", [cell]) == [flag]
    assert column_of("bool", [orjson.loads(cell)]) == [flag]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
@settings(deadline=None)
def test_a_whole_number_keeps_all_its_digits(numbers: list[int]) -> None:
    assert column_of("bigint", [str(number) for number in numbers]) == numbers
    assert column_of("bigint", numbers) == numbers


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
@settings(deadline=None)
def test_a_fraction_is_the_number_that_was_written(numbers: list[float]) -> None:
    assert column_of("double", [repr(number) for number in numbers]) == numbers
    assert column_of("double", numbers) == numbers


@pytest.mark.parametrize("cell", ["nan", "inf", "-inf"])
def test_what_is_no_finite_number_becomes_null(cell: str) -> None:
    assert column_of("double", ["1.5", cell, None]) == [1.5, None, None]


@given(
    st.lists(
        st.datetimes(
            datetime(1900, 1, 1),  # noqa: DTZ001
            datetime(2299, 12, 31),  # noqa: DTZ001
            timezones=st.sampled_from([UTC, *(timezone(timedelta(minutes=m)) for m in (-570, 120, 330))]),
        ),
        min_size=1,
    )
)
@settings(deadline=None)
def test_a_time_is_exact_to_the_microsecond_with_z_or_offset_or_nothing(instants: list[datetime]) -> None:
    zoned = [at.isoformat() for at in instants]
    in_utc = [at.astimezone(UTC).isoformat() for at in instants]
    zulu = [text.replace("+00:00", "Z") for text in in_utc]
    naive = [text.removesuffix("+00:00") for text in in_utc]
    spaced = [text.replace("T", " ") for text in naive]

    for written in (zoned, zulu, naive, spaced, [*zulu[:1], *naive[1:]]):
        assert column_of("timestamp", written) == instants
        assert [parse_instant(text) for text in written] == instants


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.000001Z", datetime(2026, 1, 2, 3, 4, 5, 1, tzinfo=UTC)),
        ("2026-01-02T03:04:05.120Z", datetime(2026, 1, 2, 3, 4, 5, 120_000, tzinfo=UTC)),
        ("2026-01-02T03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05+0200", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.5-09:30", datetime(2026, 1, 2, 12, 34, 5, 500_000, tzinfo=UTC)),
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_in_every_form_that_posthog_writes(text: str, at: datetime) -> None:
    assert column_of("timestamp", [None, text, None]) == [None, at, None]
    assert parse_instant(text) == at


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        ("", None),
        (None, None),
        ("{}", "{}"),
        (r'{"a":"\ud83d\ude00"}', r'{"a":"\ud83d\ude00"}'),
        (r'{"a":"\uD83D\uDE00"}', r'{"a":"\uD83D\uDE00"}'),
        (r'{"a":"x\ud83d"}', r'{"a":"x\ufffd"}'),
        (r'{"a":"\ude00x"}', r'{"a":"\ufffdx"}'),
        (r'{"a":"\ud83d\ud83d\ude00"}', r'{"a":"\ufffd\ud83d\ude00"}'),
        (r'{"a":"\ud83d\ude00\ude00"}', r'{"a":"\ud83d\ude00\ufffd"}'),
        (r'{"a":"\ude00\ud83d"}', r'{"a":"\ufffd\ufffd"}'),
        (r'{"a":"\\ud83d"}', r'{"a":"\\ud83d"}'),
        (r'{"a":"\\\ud83d"}', r'{"a":"\\\ufffd"}'),
        (r'{"a":"\\\\ud83d"}', r'{"a":"\\\\ud83d"}'),
        (r'{"a":"\n\ud83d\u0041"}', r'{"a":"\n\ufffd\u0041"}'),
        (r'{"\ud83d":1}', r'{"\ufffd":1}'),
        (r'{"a":"\ud7ff\ue000"}', r'{"a":"\ud7ff\ue000"}'),
        (r'{"a":"\u0000"}', r'{"a":"\ufffd"}'),
        (r'{"a":"\\u0000"}', r'{"a":"\\u0000"}'),
        ('{"a":"\N{GRINNING FACE}"}', '{"a":"\N{GRINNING FACE}"}'),
    ],
)
def test_json_text_is_kept_to_the_letter_except_for_half_emojis_and_nul(
    stored: str | None, loaded: str | None
) -> None:
    assert column_of("json", ["{}", stored, r'{"a":"\udead"}']) == ["{}", loaded, r'{"a":"\ufffd"}']


# Text as Python's json reads it, where a lone surrogate is a character of its own.
code_units = st.text(
    alphabet=st.sampled_from(["\ud83d", "\ude00", "\udfff", "\ud800", "\\", '"', "u", "d", "8", "\n", "é"]),
    max_size=12,
)


def mended(text: str) -> str:
    """An independent account: utf-16 with lone halves replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@given(st.lists(code_units, min_size=1, max_size=5))
@settings(deadline=None, max_examples=100)
def test_json_text_means_the_same_with_lone_halves_replaced(values: list[str]) -> None:
    stored = [json.dumps({"a": value}) for value in values]

    for text, value in zip(column_of("json", stored), values, strict=True):
        assert isinstance(text, str)
        assert orjson.loads(text) == {"a": mended(value)}


def test_a_half_emoji_in_other_text_than_json_is_nobodys_business() -> None:
    assert column_of("text", [r"\ud83d", ""]) == [r"\ud83d", ""]


def full_body() -> bytes:
    return body_of([["a", 'b\n\\u"'], ["d", "é\N{GRINNING FACE}"]], 2)


def test_an_answer_cut_at_any_byte_is_unreadable_and_never_rows() -> None:
    body = full_body()
    assert read_answer(body).rows == 2

    for length in range(len(body)):
        with pytest.raises(UnreadableAnswerError):
            read_answer(body[:length])


def test_an_answer_with_other_cells_cut_at_any_byte_is_unreadable() -> None:
    body = body_of([["a", 1], ["d", {"x": [None, True]}]], 2)
    assert read_answer(body).rows == 2

    for length in range(len(body)):
        with pytest.raises(UnreadableAnswerError):
            read_answer(body[:length])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"null",
        b"true",
        b"1",
        b'"text"',
        b"[]",
        b'[["a"]]',
        b"{}",
        b"{}{}",
        b"<html><body>502 Bad Gateway</body></html>",
        b"\xef\xbb\xbf{}",
        b"\x1f\x8b\x08\x00",
        b'{"detail":"x"}',
        b'{"results":null,"columns":null}',
        b'{"results":null,"columns":["a"]}',
        b'{"results":[],"columns":null}',
        b'{"results":{},"columns":[]}',
        b'{"results":"a","columns":"a"}',
        b'{"results":[["a"]]}',
        b'{"columns":["a"]}',
        b'{"results":[["a"]],"columns":["a"]} trailing',
        b'{"results":[["a"]],"columns":["a"]}{"results":[["a"]],"columns":["a"]}',
        b'{"results":[["\\ud800"]],"columns":["a"]}',
        b'{"results":[["\x01"]],"columns":["a"]}',
        b'{"results":[[NaN]],"columns":["a"]}',
    ],
)
def test_what_is_not_the_json_of_an_answer_is_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableAnswerError):
        read_answer(body)


def test_text_that_is_not_utf_8_is_unreadable() -> None:
    with pytest.raises(UnreadableAnswerError):
        read_answer(b'{"results":[["a\xff"]],"columns":["a"]}')


def test_a_cell_nested_ever_so_deep_is_unreadable() -> None:
    with pytest.raises(UnreadableAnswerError):
        read_answer(b'{"results":[[' + b"[" * 900 + b"]" * 900 + b']],"columns":["a"]}')


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_no_bytes_whatever_are_anything_but_rows_or_an_error_of_this_package(data: st.DataObject) -> None:
    body = bytearray(full_body())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    try:
        read_answer(bytes(body))
    except PosthogSourceError as error:
        assert str(error).splitlines() == [str(error)]  # noqa: PT017


@given(members=st.dictionaries(st.sampled_from(["results", "columns", "is_cached", "error"]), json_values))
@settings(deadline=None, max_examples=150)
def test_no_members_whatever_are_anything_but_rows_or_an_error_of_this_package(
    members: dict[str, object],
) -> None:
    try:
        read_answer(body_of([["a"]], 1, **members))
    except PosthogSourceError as error:
        assert str(error).splitlines() == [str(error)]  # noqa: PT017


@pytest.mark.parametrize("error", ["x", "first\nsecond", "x" * 10_000, {"detail": "x"}, ["x"], True, 5])
def test_an_error_inside_a_200_is_one_bounded_line(error: object) -> None:
    with pytest.raises(UnreadableAnswerError) as caught:
        read_answer(body_of([], 1, error=error))

    message = str(caught.value)
    assert message.splitlines() == [message]
    assert len(message) < 500


@pytest.mark.parametrize("rows", [[], [["a"]], [[1]], [["a"], [None]]])
def test_an_answer_from_the_cache_is_stale(rows: list[list[object]]) -> None:
    with pytest.raises(StaleAnswerError):
        read_answer(body_of(rows, 1, is_cached=True))


@pytest.mark.parametrize("is_cached", [False, None])
def test_an_answer_that_is_not_from_the_cache_is_taken(is_cached: bool | None) -> None:
    assert read_answer(body_of([["a"]], 1, is_cached=is_cached)).rows == 1


@pytest.mark.parametrize(
    "rows",
    [
        [["a", "b"], ["c"]],
        [["a"], ["b"]],
        [["a", "b", "c"], ["d"]],
        [["a", "b", "c"]],
        [["a", 1], ["c"]],
        [["a", 1, 2], ["c"]],
        [[]],
        [None],
        [["a", "b"], None],
        [["a", "b"], "cd"],
        ["ab"],
        [{"a": "b", "c": "d"}],
    ],
)
def test_rows_that_are_not_as_wide_as_the_columns_are_unexpected(rows: list[object]) -> None:
    with pytest.raises(UnexpectedAnswerError, match="2 cells"):
        read_answer(body_of(rows, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_an_empty_page_and_a_full_page_have_the_same_schema(table: Table) -> None:
    sample = {"text": "a", "uuid": UUID_TEXT, "json": "{}", "bigint": "1", "bool": "true", "double": "1.5"}
    row = [sample.get(column.kind, "2026-01-01T00:00:00Z") for column in asked_of(table)]

    empty, full = table_of(table=table), table_of(row, row, table=table)

    assert empty.schema == full.schema == schema_of(table)
    assert (empty.num_rows, full.num_rows) == (0, 2)
    assert full.column("project_id").to_pylist() == [7, 7]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_schema_is_the_catalogues_columns_in_order(table: Table) -> None:
    schema = schema_of(table)

    assert schema.names == [column.name for column in table.columns]
    for column in table.columns:
        assert schema.field(column.name).type == ARROW_TYPES[column.kind]
        assert schema.field(column.name).nullable is not column.is_required


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_null_where_the_table_allows_none_names_table_and_column(table: Table) -> None:
    sample = {"text": "a", "uuid": UUID_TEXT, "json": "{}", "bigint": "1", "bool": "true", "double": "1.5"}
    asked = asked_of(table)
    for index, column in enumerate(asked):
        row: list[str | None] = [sample.get(c.kind, "2026-01-01T00:00:00Z") for c in asked]
        row[index] = None
        if column.is_required:
            with pytest.raises(UnexpectedAnswerError, match=rf"^{table.name}\.{column.name}: .*null"):
                table_of(row, table=table)
        else:
            assert table_of(row, table=table).column(column.name).to_pylist() == [None]


@pytest.mark.parametrize(
    ("column", "cell"),
    [
        ("at", "yesterday"),
        ("at", ""),
        ("at", "2026-13-01T00:00:00Z"),
        ("at", "1767323045"),
        ("number", "1.5"),
        ("number", "12x"),
        ("number", ""),
        ("number", str(2**63)),
        ("ratio", "12x"),
        ("ratio", ""),
        ("flag", "maybe"),
        ("flag", ""),
    ],
)
def test_a_value_that_its_column_does_not_take_names_table_and_column(column: str, cell: str) -> None:
    index = [c.name for c in ALL_KINDS.columns[1:]].index(column)
    row = [*FULL_ROW[:index], cell, *FULL_ROW[index + 1 :]]

    with pytest.raises(UnexpectedAnswerError, match=rf"^things\.{column}: ") as caught:
        table_of(FULL_ROW, row)

    assert str(caught.value).splitlines() == [str(caught.value)]


@pytest.mark.parametrize("width", [0, 1, 6, 8])
def test_columns_more_or_less_than_asked_for_are_unexpected(width: int) -> None:
    answer = read_answer(body_of([["a"] * width], width))

    with pytest.raises(UnexpectedAnswerError, match=f"^things: .* {width} columns .* 7"):
        to_table(answer, ALL_KINDS, project_id=7)


def test_columns_that_were_not_asked_for_are_null_and_in_their_place() -> None:
    answer = read_answer(body_of([[UUID_TEXT, "2026-01-02T03:04:05Z", "5", "2.5", "true"]], 5))

    table = to_table(answer, ALL_KINDS, project_id=7, absent={"document", "name"})

    assert table.schema == schema_of(ALL_KINDS)
    assert table.column("document").to_pylist() == table.column("name").to_pylist() == [None]
    assert table.column("number").to_pylist() == [5]


def test_an_answer_of_no_columns_has_rows_all_the_same() -> None:
    assert read_answer(body_of([[], [], []], 0)) == Answer((), 3)


def test_rest_items_become_rows_by_the_names_that_posthog_uses() -> None:
    items: list[dict[str, object]] = [
        {"uuid": UUID_TEXT, "name": "x", "at": "2026-01-02T03:04:05.120000Z", "number": 5, "flag": False},
        {"uuid": UUID_TEXT, "$document": {"b": [1, None]}, "unknown": "left out"},
    ]

    table = items_to_table(items, ALL_KINDS, project_id=7)

    assert table.schema == schema_of(ALL_KINDS)
    assert [row["document"] for row in table.to_pylist()] == [None, '{"b":[1,null]}']
    assert [row["number"] for row in table.to_pylist()] == [5, None]
    assert [row["flag"] for row in table.to_pylist()] == [False, None]


def test_no_rest_items_are_an_empty_page_of_the_same_schema() -> None:
    assert items_to_table([], ALL_KINDS, project_id=7).schema == schema_of(ALL_KINDS)


@given(st.lists(json_values.filter(lambda value: value != ""), min_size=1, max_size=6))
@settings(deadline=None)
def test_a_json_member_of_a_rest_item_is_json_in_the_table(values: list[object]) -> None:
    items = [{"uuid": UUID_TEXT, "$document": value} for value in values]

    loaded = items_to_table(items, ALL_KINDS, project_id=7).column("document").to_pylist()

    assert [None if text is None else orjson.loads(text) for text in loaded] == values


def test_a_rest_item_without_its_key_is_an_error_that_names_it() -> None:
    with pytest.raises(UnexpectedAnswerError, match=r"^things\.uuid: "):
        items_to_table([{"name": "x"}], ALL_KINDS, project_id=7)


@pytest.mark.parametrize("number", [2**63, 1.5, "x", {"a": 1}, True])
def test_a_rest_number_that_is_none_is_an_error_that_names_it(number: object) -> None:
    with pytest.raises(UnexpectedAnswerError, match=r"^things\.number: "):
        items_to_table([{"uuid": UUID_TEXT, "number": number}], ALL_KINDS, project_id=7)


def test_the_cursor_is_the_last_row_of_a_page() -> None:
    page = table_of(
        (UUID_TEXT, "a", "2026-01-02T03:04:05.000001Z", "1", "1", "true", "{}"),
        (UUID_TEXT.replace("0190", "0000"), "b", "2026-01-02T03:04:05.000002Z", "2", "2", "true", "{}"),
    )

    assert last_row(page, ("at", "uuid", "number")) == (
        datetime(2026, 1, 2, 3, 4, 5, 2, tzinfo=UTC),
        UUID_TEXT.replace("0190", "0000"),
        2,
    )


def test_rows_that_a_warehouse_without_such_types_hands_back_are_the_same_again() -> None:
    """SQLite has neither times nor truth, MySQL no zones, Postgres hands JSON back as objects."""
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
    same = {"project_id": 1, "uuid": "u", "name": "n", "at": at, "number": 2, "ratio": 0.5, "flag": True}
    same["document"] = '{"a":1}'
    kept = tuple(same.values())
    bare = (1, "u", "n", str(at.replace(tzinfo=None)), 2, 0.5, 1, {"a": 1})
    nothing = (1, "u", *[None] * 6)

    found = stored_to_table([kept, bare, nothing], ALL_KINDS).to_pylist()

    assert found == [same, same, dict(zip(same, nothing, strict=True))]
