"""The ways an exporter can ask for people that have changed: what they answer, and what they read."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.emulator.asking import column, last_read, rows
from tests.emulator.conftest import Project, Server

COUNT = 40_000
GRANULE = 8192
LINKS = "person_distinct_ids"
WHO = "SELECT person_id FROM events WHERE distinct_id ="
RAW = "SELECT person_id FROM raw_person_distinct_ids WHERE"
MOVED = "SELECT distinct_id FROM raw_person_distinct_ids WHERE version > 0"


@pytest.fixture(scope="module")
def crowd(server: Server) -> Project:
    """Forty thousand people without events, in whole parts."""
    project = server.project(settings={"rate_limits": {"api_queries": [10**6, 10**6]}})
    ids = [str(uuid.UUID(int=number << 96 | number)) for number in range(COUNT)]
    texts = [f'{{"n":{number}}}' for number in range(COUNT)]
    project.rows("person", id=ids, properties=texts, version=[0] * COUNT)
    names = [f"user-{number:05}" for number in range(COUNT)]
    project.rows("person_distinct_id2", distinct_id=names, person_id=ids, version=[0] * COUNT)
    server.optimize()
    return project


@pytest.fixture(scope="module")
def moved(server: Server) -> Project:
    """Three people: ada took anon over, bob was edited, eve was deleted."""
    project = server.project(settings={"rate_limits": {"api_queries": [10**6, 10**6]}})
    for name in ("ada", "anon", "bob", "eve"):
        project.capture({"event": "a", "distinct_id": name, "properties": {"$set": {"name": name}}})
    project.capture({"event": "$identify", "distinct_id": "ada", "properties": {"$anon_distinct_id": "anon"}})
    project.control("PATCH", "persons", distinct_id="bob", set={"edited": True})
    project.control("POST", "delete/persons", person_ids=[project.person_ids()["eve"]])
    return project


def people(project: Project, where: str, **body: Any) -> list[str]:
    asked = f"SELECT properties.name FROM persons WHERE {where} ORDER BY properties.name"
    return [str(one) for one in column(project, asked, **body)]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("id IN (SELECT person_id FROM events)", ["ada", "bob"]),
        ("id IN (SELECT event_person_id FROM events WHERE distinct_id = 'anon')", []),
        ("id IN (SELECT person_id FROM events WHERE distinct_id = 'anon')", ["ada"]),
        (
            "id IN (SELECT person_id FROM person_distinct_ids WHERE distinct_id IN ('anon', 'bob'))",
            ["ada", "bob"],
        ),
        ("id NOT IN (SELECT person_id FROM events WHERE event = '$identify')", ["bob"]),
        (
            "id IN (SELECT id FROM raw_persons GROUP BY id HAVING max(version) BETWEEN 1 AND 99)",
            ["ada", "bob"],
        ),
        (f"id IN ({WHO} 'bob' UNION ALL {RAW} distinct_id = 'ada')", ["ada", "bob"]),
        (f"id IN (SELECT person_id FROM {LINKS} WHERE distinct_id IN ({MOVED}))", ["ada"]),
        (f"id IN ({WHO} 'bob') OR properties.name = 'ada'", ["ada", "bob"]),
        ("not(id IN (SELECT person_id FROM events WHERE distinct_id = 'bob'))", ["ada"]),
        ("id IN (SELECT person_id FROM events) AND properties.edited = 'true'", ["bob"]),
        ("and(id IN (SELECT person_id FROM events), or(properties.edited = 'true', 0))", ["bob"]),
    ],
)
def test_changed_people_are_found_by_any_subquery(moved: Project, where: str, found: list[str]) -> None:
    assert people(moved, where) == found


@pytest.mark.parametrize(
    "where",
    [
        f"id IN (SELECT person_id FROM {LINKS} WHERE distinct_id IN ('user-39998', 'user-39999'))",
        f"id IN ({RAW} distinct_id = 'user-39998' UNION ALL {RAW} distinct_id = 'user-39999')",
        f"id IN ({RAW} distinct_id = 'user-39998') OR properties.n = '39999'",
        f"id NOT IN (SELECT person_id FROM {LINKS} WHERE distinct_id < 'user-39998')",
    ],
)
def test_a_limit_does_not_cut_people_off_before_they_are_filtered(crowd: Project, where: str) -> None:
    found = rows(
        crowd, f"SELECT properties.n, properties FROM persons WHERE {where} ORDER BY properties.n LIMIT 5"
    )
    assert found == [["39998", '{"n":39998}'], ["39999", '{"n":39999}']]


def test_an_alias_does_not_change_a_subquery_that_has_a_column_of_its_name(moved: Project) -> None:
    seen = "SELECT person_id FROM events WHERE event = 'a'"
    asked = f"SELECT properties.name AS event FROM persons WHERE id IN ({seen})"
    assert sorted(column(moved, asked)) == ["ada", "bob"]


@pytest.mark.parametrize(
    ("where", "granules"),
    [
        ("id IN ('{0}', '{1}')", 4),
        ("id IN (SELECT person_id FROM raw_person_distinct_ids WHERE distinct_id = 'user-00001')", 4),
        ("id IN (SELECT person_id FROM person_distinct_ids WHERE distinct_id = 'user-00001')", 4),
    ],
)
def test_people_by_id_are_read_by_the_sort_key(crowd: Project, where: str, granules: int) -> None:
    ids = [str(uuid.UUID(int=number << 96 | number)) for number in (1, 2)]
    assert rows(crowd, f"SELECT id, properties FROM persons WHERE {where.format(*ids)}")
    assert last_read(crowd)[0] < granules * GRANULE < COUNT


def test_people_by_a_property_are_all_read_twice(crowd: Project) -> None:
    assert rows(crowd, "SELECT id FROM persons WHERE properties.n = '7'")
    assert COUNT < last_read(crowd)[0] <= 2 * COUNT


@pytest.mark.parametrize(
    ("where", "most"),
    [
        ("distinct_id IN ('user-00001', 'user-00002')", 2 * 512),
        (
            f"distinct_id IN (SELECT distinct_id FROM raw_{LINKS} WHERE distinct_id = 'user-00001')",
            3 * 512,
        ),
    ],
)
def test_distinct_ids_are_read_by_the_sort_key(crowd: Project, where: str, most: int) -> None:
    assert rows(crowd, f"SELECT distinct_id, person_id FROM person_distinct_ids WHERE {where}")
    assert last_read(crowd)[0] <= most


def test_the_distinct_ids_of_people_are_found_only_by_reading_all(crowd: Project) -> None:
    one = str(uuid.UUID(int=1 << 96 | 1))
    asked = f"SELECT distinct_id FROM person_distinct_ids WHERE person_id IN ('{one}')"
    assert rows(crowd, asked) == [["user-00001"]]
    assert last_read(crowd)[0] >= COUNT


def test_distinct_ids_that_moved_belong_to_their_new_person_alone(moved: Project) -> None:
    ada = moved.person_ids()["ada"]
    asked = f"SELECT distinct_id FROM person_distinct_ids WHERE person_id IN ('{ada}') ORDER BY distinct_id"
    assert column(moved, asked) == ["ada", "anon"]
    asked = "SELECT person_id FROM person_distinct_ids WHERE distinct_id IN (SELECT distinct_id FROM events)"
    assert set(column(moved, asked)) == {ada, moved.person_ids()["bob"]}


def test_versions_can_be_aggregated_by_hand(moved: Project) -> None:
    newest = (
        "SELECT distinct_id, argMax(person_id, version) AS person, max(version) AS newest,"
        " argMax(is_deleted, version) AS dead FROM raw_person_distinct_ids"
        " GROUP BY distinct_id HAVING dead = 0 AND newest > 0"
    )
    assert rows(moved, newest) == [["anon", moved.person_ids()["ada"], 1, 0]]
    dead = "SELECT id FROM raw_persons GROUP BY id HAVING argMax(is_deleted, version) = 1"
    assert len(column(moved, dead)) == 2
    changes = f"SELECT count() FROM (SELECT id FROM raw_persons WHERE version > 0 UNION ALL {dead})"
    assert column(moved, changes)[0] >= 4


def test_columns_of_a_subquery_without_a_name_can_be_used(moved: Project) -> None:
    inner = "SELECT id, argMax(is_deleted, version) AS dead FROM raw_persons GROUP BY id"
    assert column(moved, f"SELECT count() FROM ({inner}) WHERE dead = 1") == [2]
    assert len(rows(moved, f"SELECT * FROM ({inner}) WHERE dead = 0 ORDER BY id")) == 2


def test_newest_versions_can_be_chosen_by_a_pair(moved: Project) -> None:
    pairs = "SELECT id, max(version) FROM raw_persons GROUP BY id"
    asked = f"SELECT properties.name FROM raw_persons WHERE (id, version) IN ({pairs}) AND is_deleted = 0"
    assert sorted(column(moved, asked)) == ["ada", "bob"]


def test_people_join_their_distinct_ids(moved: Project) -> None:
    asked = (
        "SELECT d.distinct_id, p.properties.name FROM persons AS p"
        " JOIN person_distinct_ids AS d ON d.person_id = p.id"
        " WHERE p.id NOT IN (SELECT person_id FROM events WHERE distinct_id = 'bob') ORDER BY d.distinct_id"
    )
    assert rows(moved, asked) == [["ada", "ada"], ["anon", "ada"]]


def test_a_condition_on_either_table_of_a_join_leaves_nobody_out(moved: Project) -> None:
    asked = (
        "SELECT d.distinct_id FROM persons AS p JOIN person_distinct_ids AS d ON d.person_id = p.id"
        " WHERE p.properties.name = 'ada' OR d.distinct_id = 'bob' ORDER BY d.distinct_id"
    )
    assert column(moved, asked) == ["ada", "anon", "bob"]
