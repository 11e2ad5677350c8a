"""catalog: whatever is exported has a key, an order and words for people."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from dlt.common.normalizers.naming.snake_case import NamingConvention
from hypothesis import given
from hypothesis import strategies as st

from posthog_source.catalog import EVENTS, PERSON_DISTINCT_IDS, PERSONS, TABLES, events_table
from posthog_source.config import EventsSettings
from posthog_source.errors import SettingsError
from posthog_source.tables import (
    HASH_AXIS,
    HASHES_AXIS,
    PROJECT_ID,
    UUID_AXIS,
    Condition,
    Disposition,
    HogqlTable,
    Kind,
    RateClass,
    RestTable,
    Table,
    snake_case,
)
from posthog_source.windows import Axis

HOGQL_TABLES = [table for table in TABLES if isinstance(table, HogqlTable)]
REST_TABLES = [table for table in TABLES if isinstance(table, RestTable)]

each_table = pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
each_hogql_table = pytest.mark.parametrize("table", HOGQL_TABLES, ids=lambda table: table.name)
each_rest_table = pytest.mark.parametrize("table", REST_TABLES, ids=lambda table: table.name)


def test_every_table_is_read_by_hogql_or_from_a_rest_list() -> None:
    assert len(HOGQL_TABLES) + len(REST_TABLES) == len(TABLES)


def test_no_two_tables_share_a_name() -> None:
    assert len({table.name for table in TABLES}) == len(TABLES)


@each_table
def test_names_are_what_every_warehouse_takes(table: Table) -> None:
    names = [table.name, *(column.name for column in table.columns)]

    assert [name for name in names if not re.fullmatch(r"[a-z][a-z0-9_]*", name)] == []
    assert len(set(names[1:])) == len(table.columns)


@each_table
def test_every_table_and_column_has_words_for_people(table: Table) -> None:
    assert table.description.endswith(".")
    assert [column.name for column in table.columns if not column.description.strip()] == []
    assert [column.name for column in table.columns if column.description.endswith(".")] == []


@each_table
def test_the_project_comes_first_in_columns_and_key(table: Table) -> None:
    assert table.columns[0] is PROJECT_ID
    assert table.primary_key[0] == "project_id"


@each_table
def test_the_key_is_made_of_columns_that_are_always_there(table: Table) -> None:
    key = [table.column(name) for name in table.primary_key]

    assert len(key) > 1
    assert len(set(table.primary_key)) == len(table.primary_key)
    assert all(column.is_required and not column.is_optional for column in key)


@each_table
def test_a_column_that_older_servers_lack_is_never_a_required_one(table: Table) -> None:
    assert [column.name for column in table.columns if column.is_optional and column.is_required] == []


@each_table
def test_kinds_and_dispositions_are_those_that_exist(table: Table) -> None:
    assert table.disposition in get_args(Disposition)
    assert {column.kind for column in table.columns} <= set(get_args(Kind))


@each_table
def test_every_table_names_the_read_scopes_that_it_needs(table: Table) -> None:
    assert table.scopes
    assert all(re.fullmatch(r"[a-z_]+:read", scope) for scope in table.scopes)


@each_table
def test_asking_for_a_column_that_is_not_there_is_an_error(table: Table) -> None:
    with pytest.raises(StopIteration):
        table.column("no_such_column")


@each_hogql_table
def test_pages_are_ordered_by_columns_that_are_always_there(table: HogqlTable) -> None:
    columns = [table.column(name) for name in table.page_key]

    assert columns
    assert all(column.is_required and not column.is_optional for column in columns)
    assert all(column.name != "project_id" for column in columns)


@each_hogql_table
def test_the_page_key_tells_apart_all_rows_that_the_primary_key_does(table: HogqlTable) -> None:
    assert set(table.primary_key) - {"project_id"} <= set(table.page_key)


@each_hogql_table
def test_the_sort_key_is_made_of_fields_that_are_always_there(table: HogqlTable) -> None:
    sort_key = table.sort_key
    axis = sort_key.axis
    named = [label.field for label in sort_key.labels] + ([axis.field, axis.then] if axis else [])
    named = [name for name in named if name]
    required = {column.source for column in table.columns if column.is_required}

    assert named
    assert set(named) <= required


@each_hogql_table
def test_a_sort_key_label_counts_values_of_its_columns_kind(table: HogqlTable) -> None:
    kinds = {column.source: column.kind for column in table.columns}
    of_label = {"day": "timestamp", "text": "text", "bigint": "bigint"}

    assert [label for label in table.sort_key.labels if kinds[label.field] != of_label[label.kind]] == []


@each_hogql_table
def test_a_sampled_sort_key_ends_in_a_label_of_text(table: HogqlTable) -> None:
    if table.sort_key.is_sampled:
        assert table.sort_key.labels[-1].kind == "text"
        assert table.sort_key.axis is None


@each_hogql_table
def test_windows_bound_the_time_column_and_replace_what_lies_in_them(table: HogqlTable) -> None:
    assert (table.time_column is not None) == (table.disposition == "window")
    if table.time_column is not None:
        assert table.column(table.time_column).kind == "timestamp"
        assert table.column(table.time_column).is_required


@each_hogql_table
def test_rows_come_from_at_least_one_hogql_table(table: HogqlTable) -> None:
    assert table.sources
    assert len(set(table.sources)) == len(table.sources)


@each_rest_table
def test_a_rest_list_is_a_path_in_which_members_of_another_lists_items_may_stand(table: RestTable) -> None:
    assert re.fullmatch(r"([a-z_]+/|\{[a-z_]+\}/)+", table.path)
    members = {column.source for column in table.each.columns} if table.each else set()
    assert set(re.findall(r"\{(\w+)\}", table.path)) <= members
    assert table.rate_class in get_args(RateClass)
    assert table.page_rows >= 0


@each_rest_table
def test_a_rest_cursor_is_a_time_column_with_a_parameter_and_an_order(table: RestTable) -> None:
    if table.cursor is None:
        assert table.cursor_param == ""
        assert table.disposition == "snapshot"
        return
    assert table.column(table.cursor).kind == "timestamp"
    assert table.overlap_s > 0
    assert table.is_newest_first or (table.cursor_param and table.params["order"] == table.cursor)
    assert table.disposition == "merge"


@each_rest_table
def test_a_rest_list_is_keyed_by_its_items_id(table: RestTable) -> None:
    project_id, item_id = table.primary_key
    assert project_id == "project_id"
    assert table.column(item_id).source == item_id


@pytest.mark.parametrize("axis", [HASH_AXIS, HASHES_AXIS, UUID_AXIS])
def test_an_axis_is_a_span_of_64_bit_numbers_once_or_twice(axis: Axis) -> None:
    assert 0 <= axis.start < axis.end <= 2**64 * axis.step
    assert axis.step in (1, 2**64)


def test_a_table_without_some_columns_keeps_the_others_in_order() -> None:
    less = EVENTS.without({"window_id", "person_mode"})

    assert [c.name for c in less.columns] == [
        c.name for c in EVENTS.columns if c.name not in ("window_id", "person_mode")
    ]
    assert less.primary_key == EVENTS.primary_key
    assert EVENTS.without(()) == EVENTS


def test_a_table_can_read_a_column_from_another_field() -> None:
    current = EVENTS.reading({"person_id": "person_id"})

    assert EVENTS.column("person_id").source == "event_person_id"
    assert current.column("person_id").source == "person_id"
    assert [c.source for c in current.columns if c.name != "person_id"] == [
        c.source for c in EVENTS.columns if c.name != "person_id"
    ]


def test_events_are_sorted_as_posthog_sorts_them() -> None:
    sort_key = EVENTS.sort_key

    assert [(label.field, label.kind) for label in sort_key.labels] == [
        ("timestamp", "day"),
        ("event", "text"),
    ]
    assert sort_key.axis is not None
    assert (sort_key.axis.field, sort_key.axis.then) == ("distinct_id", "uuid")
    assert sort_key.axis.axis == HASHES_AXIS


def test_persons_are_cut_by_the_half_of_the_id_that_clickhouse_sorts_by() -> None:
    assert PERSONS.sort_key.labels == ()
    assert PERSONS.sort_key.axis is not None
    assert PERSONS.sort_key.axis.axis == UUID_AXIS
    assert UUID_AXIS.start == 0x8000_0000_0000_0000
    assert UUID_AXIS.end - 1 == 0xBFFF_FFFF_FFFF_FFFF


def test_distinct_ids_are_planned_by_a_sample() -> None:
    assert PERSON_DISTINCT_IDS.sort_key.is_sampled


def names_of(config: EventsSettings) -> list[str]:
    return [column.name for column in events_table(config).columns]


def test_events_as_they_come_have_their_properties_and_not_the_persons() -> None:
    table = events_table(EventsSettings())

    assert table == EVENTS.without({"person_properties"})
    assert table.condition is None


def test_events_have_the_columns_that_were_chosen() -> None:
    usual = names_of(EventsSettings())

    assert names_of(EventsSettings(person_properties=True)) == [*usual, "person_properties"]
    assert names_of(EventsSettings(properties=False)) == [name for name in usual if name != "properties"]
    assert names_of(EventsSettings(promote=(("plan", "text"), ("$os", "text")))) == [*usual, "plan", "os"]


def test_a_promoted_property_has_its_type_and_may_be_null() -> None:
    column = events_table(EventsSettings(promote=(("Plan Count", "bigint"),))).column("plan_count")

    assert (column.kind, column.property_name) == ("bigint", "Plan Count")
    assert not column.is_required
    assert not column.is_optional
    assert "Plan Count" in column.description


def test_the_rows_that_were_chosen_are_the_tables_condition() -> None:
    config = EventsSettings(event_names=("a",), exclude_event_names=("b",), where="1 = 1")

    assert events_table(config).condition == Condition(
        field="event", only=("a",), never=("b",), where="1 = 1"
    )


@pytest.mark.parametrize(
    ("property_name", "column"),
    [
        ("$browser", "browser"),
        ("$initial-utmSource", "initial_utm_source"),
        ("URLPath", "url_path"),
        ("userID", "user_id"),
        ("Größe in m²", "gro_e_in_m2"),
        ("a.b", "a_b"),
        ("__x__", "x"),
        ("`; DROP", "drop"),
        ("2fa", "properties_2fa"),
        ("uuid", "properties_uuid"),
        ("$session_id", "properties_session_id"),
        ("personProperties", "properties_person_properties"),
    ],
)
def test_a_promoted_propertys_column_is_named_in_snake_case_beside_our_own(
    property_name: str, column: str
) -> None:
    assert names_of(EventsSettings(promote=((property_name, "text"),)))[-1] == column


@pytest.mark.parametrize(
    "promote", [["a b", "a-b"], ["$uuid", "uuid"], ["价格"], ["$"], ["plan", "properties_uuid", "uuid"]]
)
def test_a_promoted_property_without_a_name_of_its_own_is_refused_in_one_line(promote: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"^events\.promote names .*\[sources\.posthog\.events\]\.$"):
        events_table(EventsSettings(promote=tuple((name, "text") for name in promote)))


@given(st.text() | st.from_regex(r"[$A-Za-z0-9_. -]+", fullmatch=True))
def test_whatever_a_property_is_called_dlt_leaves_its_column_name_as_it_is(text: str) -> None:
    name = snake_case(text)

    assert re.fullmatch(r"([a-z0-9]+(_[a-z0-9]+)*)?", name)
    if name and not name[0].isdigit():
        assert NamingConvention().normalize_identifier(name) == name
