"""Cohorts: filters, recalculation, static members."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.emulator.asking import answer, column, rows
from tests.emulator.conftest import Project, Server

PEOPLE: dict[str, dict[str, Any]] = {
    "ada": {"plan": "pro", "seats": 5, "email": "ada@Example.com", "beta": True},
    "bob": {"plan": "free", "seats": 10, "email": "bob@other.org", "beta": None},
    "eve": {"plan": "PRO", "seats": "7", "email": "100%_done", "n": 2.5},
    "old": {},
}
MEMBERS = "SELECT person_id FROM cohort_people WHERE cohort_id = {}"


@pytest.fixture
def people(project: Project) -> Project:
    project.capture(
        *(
            {"event": "a", "distinct_id": name, "properties": {"$set": properties}}
            for name, properties in PEOPLE.items()
        )
    )
    return project


def condition(key: str, operator: str = "exact", value: Any = None) -> dict[str, Any]:
    return {"key": key, "type": "person", "operator": operator, "value": value}


def where(*conditions: dict[str, Any], of: str = "AND") -> dict[str, Any]:
    return {"properties": {"type": "OR", "values": [{"type": of, "values": list(conditions)}]}}


def cohort(project: Project, **given: Any) -> int:
    return int(project.control("POST", "cohorts", items=[given])["ids"][0])


def shown(project: Project, number: int) -> dict[str, Any]:
    found: dict[str, Any] = project.get(f"cohorts/{number}/").json()
    return found


def recalculate(project: Project, *numbers: int) -> list[dict[str, int]]:
    body = {"cohort_ids": list(numbers)} if numbers else {}
    done: list[dict[str, int]] = project.control("POST", "cohorts/recalculate", **body)["cohorts"]
    return done


def names(project: Project, person_ids: list[str]) -> list[str]:
    by_id = {person: name for name, person in project.person_ids().items()}
    return sorted(by_id[one] for one in person_ids)


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (where(condition("plan", value=["pro"])), ["ada"]),
        (where(condition("plan", value="pro")), ["ada"]),
        (where({"key": "plan", "type": "person", "value": "pro"}), ["ada"]),
        (where(condition("plan", value=["pro", "free"])), ["ada", "bob"]),
        (where(condition("plan", "is_not", ["pro", "free"])), ["eve", "old"]),
        (where(condition("email", "icontains", "EXAMPLE")), ["ada"]),
        (where(condition("email", "icontains", "%_d")), ["ada", "eve"]),
        (where(condition("beta", "is_set")), ["ada"]),
        (where(condition("beta", "is_not_set")), ["bob", "eve", "old"]),
        (where(condition("beta", value=[True])), ["ada"]),
        (where(condition("seats", value=5)), ["ada"]),
        (where(condition("n", value=2.5)), ["eve"]),
        (where(condition("seats", "gt", 5)), ["bob", "eve"]),
        (where(condition("seats", "lt", "8")), ["ada", "eve"]),
        (where(condition("seats", "gt", 1), condition("plan", "icontains", "pro")), ["ada", "eve"]),
        (where(condition("seats", "gt", 9), condition("plan", value="pro"), of="OR"), ["ada", "bob"]),
        (where(condition("plan", value="o'brien \\")), []),
        ({"properties": {"type": "OR", "values": []}}, []),
    ],
)
def test_a_dynamic_cohort_holds_whom_its_filters_mean(
    people: Project, filters: dict[str, Any], found: list[str]
) -> None:
    number = cohort(people, filters=filters)
    assert recalculate(people, number) == [{"id": number, "version": 2, "count": len(found)}]
    assert names(people, column(people, MEMBERS.format(number))) == found


def test_groups_of_conditions_nest(people: Project) -> None:
    inner = {"type": "AND", "values": [condition("plan", value="free"), condition("seats", "gt", 1)]}
    root = {"type": "AND", "values": [{"type": "OR", "values": [inner, condition("plan", value="PRO")]}]}
    number = cohort(people, filters={"properties": root})
    recalculate(people, number)
    assert names(people, column(people, MEMBERS.format(number))) == ["bob", "eve"]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"properties": []},
        {"properties": {"type": "OR", "values": [{"type": "AND", "values": []}]}},
        {"properties": {"type": "XOR", "values": [condition("plan", value="pro")]}},
        where(condition("plan", "regex", "p.*")),
        where(condition("plan")),
        where(condition("plan", value={"a": 1})),
        where(condition("seats", "gt", "many")),
        where({**condition("plan", value="pro"), "negation": True}),
        where({**condition("plan", value="pro"), "colour": "red"}),
        where({"key": "id", "type": "cohort", "value": 1}),
        where({"key": "a", "type": "behavioral", "value": "performed_event", "event_type": "events"}),
    ],
)
def test_a_filter_that_is_not_understood_is_refused_and_nothing_calculated(
    people: Project, filters: dict[str, Any]
) -> None:
    good = cohort(people, filters=where(condition("plan", value="pro")))
    bad = cohort(people, filters=filters)
    asked = people.server.http.post(f"/_emulator/projects/{people.id}/cohorts/recalculate", json={})
    assert asked.status_code == 400
    assert [shown(people, one)["version"] for one in (good, bad)] == [1, 1]
    assert rows(people, "SELECT * FROM raw_cohort_people") == []


def test_a_recalculation_moves_members_version_count_and_time(people: Project) -> None:
    number = cohort(people, filters=where(condition("plan", value="pro")))
    recalculate(people, number)
    before = shown(people, number)
    people.control("PATCH", "persons", distinct_id="bob", set={"plan": "pro"})
    people.control("PATCH", "persons", distinct_id="ada", set={"plan": "free"})
    assert names(people, column(people, MEMBERS.format(number))) == ["ada"]
    assert recalculate(people, number) == [{"id": number, "version": 3, "count": 1}]
    assert names(people, column(people, MEMBERS.format(number))) == ["bob"]
    after = shown(people, number)
    assert after["last_calculation"] > before["last_calculation"]
    assert (after["version"], after["count"]) == (3, 1)
    assert rows(people, "SELECT version, sign FROM raw_cohort_people") == [[3, 1]]
    listed = people.get(f"cohorts/{number}/persons/").json()["results"]
    assert [one["distinct_ids"] for one in listed] == [["bob"]]


def test_the_dead_are_in_no_cohort(people: Project) -> None:
    number = cohort(people, filters=where(condition("beta", "is_not_set")))
    people.control("POST", "delete/persons", person_ids=[people.person_ids()["bob"]])
    recalculate(people, number)
    assert names(people, column(people, MEMBERS.format(number))) == ["eve", "old"]


def test_all_dynamic_cohorts_are_calculated_unless_some_are_named(people: Project) -> None:
    static = cohort(people, is_static=True)
    pro, free = (cohort(people, filters=where(condition("plan", value=plan))) for plan in ("pro", "free"))
    assert [one["id"] for one in recalculate(people)] == [pro, free]
    assert recalculate(people, free) == [{"id": free, "version": 3, "count": 1}]
    for numbers, status in (([static], 400), ([10**9], 404), (free, 400)):
        body = {"cohort_ids": numbers}
        asked = people.server.http.post(f"/_emulator/projects/{people.id}/cohorts/recalculate", json=body)
        assert asked.status_code == status


def test_generated_cohorts_can_be_recalculated(project: Project) -> None:
    project.generate(events=500, persons=200, nasty=False)
    for one in recalculate(project):
        plan = shown(project, one["id"])["filters"]["properties"]["values"][0]["values"][0]["value"][0]
        people = column(project, f"SELECT id FROM persons WHERE properties.plan = '{plan}' ORDER BY id")
        members = column(project, f"{MEMBERS.format(one['id'])} ORDER BY person_id LIMIT 1000")
        assert members == people[: len(members)]
        assert (
            one["count"]
            == column(project, f"SELECT count() FROM persons WHERE properties.plan = '{plan}'").pop()
        )


def change(project: Project, number: int, **body: Any) -> dict[str, int]:
    changed: dict[str, int] = project.control("POST", f"cohorts/{number}/members", **body)
    return changed


def test_people_are_put_into_a_static_cohort_and_taken_out(people: Project) -> None:
    number, ids = cohort(people, is_static=True), people.person_ids()
    members = f"SELECT person_id FROM static_cohort_people WHERE cohort_id = {number}"
    assert change(people, number, add=[ids["ada"], ids["bob"]]) == {"added": 2, "removed": 0, "count": 2}
    assert change(people, number, add=[ids["bob"].upper()]) == {"added": 0, "removed": 0, "count": 2}
    calculated = shown(people, number)["last_calculation"]
    assert change(people, number, remove=[ids["ada"], ids["eve"]]) == {"added": 0, "removed": 1, "count": 1}
    assert names(people, column(people, members)) == ["bob"]
    assert (shown(people, number)["count"], shown(people, number)["last_calculation"]) == (1, calculated)
    assert change(people, number, add=[ids["ada"]])["added"] == 1
    people.server.optimize()
    assert names(people, column(people, members)) == ["ada", "bob"]
    assert shown(people, number)["version"] is None


@pytest.mark.parametrize(
    "body", [{"add": [str(uuid.uuid4())]}, {"add": ["x"]}, {"remove": ["x"]}, {"ad": []}]
)
def test_members_that_are_nobody_are_refused(people: Project, body: dict[str, Any]) -> None:
    number = cohort(people, is_static=True)
    path = f"/_emulator/projects/{people.id}/cohorts/{number}/members"
    assert people.server.http.post(path, json=body).status_code == 400


def test_a_dynamic_cohort_takes_no_members_by_hand(people: Project) -> None:
    number = cohort(people)
    path = f"/_emulator/projects/{people.id}/cohorts/{number}/members"
    assert people.server.http.post(path, json={"add": []}).status_code == 400


def test_an_edited_cohort_keeps_its_members_until_it_is_recalculated(people: Project) -> None:
    number = cohort(people, name="Pro", filters=where(condition("plan", value="pro")))
    recalculate(people, number)
    before = shown(people, number)
    filters = where(condition("plan", value="free"))
    people.control("PATCH", f"cohorts/{number}", name="Free", filters=filters)
    assert shown(people, number) == {**before, "name": "Free", "filters": filters}
    assert names(people, column(people, MEMBERS.format(number))) == ["ada"]
    recalculate(people, number)
    assert names(people, column(people, MEMBERS.format(number))) == ["bob"]
    path = f"/_emulator/projects/{people.id}/cohorts/{number}"
    assert people.server.http.patch(path, json={"version": 9}).status_code == 400


def test_a_deleted_cohort_is_gone_from_the_list_and_its_rows_are_not(people: Project) -> None:
    dynamic = cohort(people, filters=where(condition("plan", value="pro")))
    static = cohort(people, is_static=True)
    recalculate(people, dynamic)
    change(people, static, add=[people.person_ids()["bob"]])
    for number in (dynamic, static):
        assert people.control("DELETE", f"cohorts/{number}")["deleted"] is True
        assert people.get(f"cohorts/{number}/").status_code == 404
    assert people.get("cohorts/").json()["results"] == []
    assert column(people, MEMBERS.format(dynamic)) == []
    assert len(column(people, "SELECT person_id FROM raw_cohort_people")) == 1
    assert len(column(people, "SELECT person_id FROM static_cohort_people")) == 1
    assert people.server.http.delete(f"/_emulator/projects/{people.id}/cohorts/{static}").status_code == 404


def test_cohorts_of_other_projects_are_left_alone(server: Server) -> None:
    first, second = server.project(), server.project()
    for project in (first, second):
        project.capture({"event": "a", "distinct_id": "x", "properties": {"$set": {"plan": "pro"}}})
    numbers = [cohort(one, filters=where(condition("plan", value="pro"))) for one in (first, second)]
    for project in (first, second):
        recalculate(project)
    recalculate(first)
    assert answer(second, MEMBERS.format(numbers[1]))["results"] != []
