"""persons.last_seen_at."""

from __future__ import annotations

from typing import Any

import pytest

from tests.emulator.asking import answer, column, refusal, rows
from tests.emulator.conftest import Project, Server

LAST_SEEN = "SELECT toString(last_seen_at) FROM persons"


@pytest.fixture
def watching(server: Server) -> Project:
    return server.project(settings={"person_last_seen": True})


def see(project: Project, at: str, distinct_id: str = "ada", /, **properties: Any) -> None:
    name = "$identify" if "$anon_distinct_id" in properties else "a"
    project.capture({"event": name, "distinct_id": distinct_id, "timestamp": at, "properties": properties})


@pytest.mark.parametrize("table", ["persons", "raw_persons"])
def test_when_people_were_last_seen_is_unknown_unless_a_project_wants_it(
    project: Project, table: str
) -> None:
    see(project, "2026-01-10T10:20:30Z")
    assert refusal(project, f"SELECT last_seen_at FROM {table}") == (400, "hogql_query_error")
    assert "last_seen_at" not in answer(project, f"SELECT * FROM {table}")["columns"]
    project.settings(person_last_seen=True)
    assert column(project, f"SELECT toString(last_seen_at) FROM {table}") == ["2026-01-10 10:00:00.000"]


def test_events_move_it_by_the_hour_and_only_forward(watching: Project) -> None:
    for at in ("10T10:20", "10T10:59", "10T12:01", "10T09:00"):
        see(watching, f"2026-01-{at}:00Z")
    assert column(watching, LAST_SEEN) == ["2026-01-10 12:00:00.000"]
    assert watching.persons("version") == [[1]]


def test_edits_and_merges_do_not_move_it(watching: Project) -> None:
    see(watching, "2026-01-10T10:00:00Z")
    see(watching, "2026-01-12T10:00:00Z", "anon")
    watching.control("PATCH", "persons", distinct_id="ada", set={"plan": "pro"})
    see(watching, "2026-01-10T10:30:00Z", **{"$anon_distinct_id": "anon"})
    assert column(watching, LAST_SEEN) == ["2026-01-10 10:00:00.000"]


def test_events_that_make_no_person_or_say_so_do_not_move_it(watching: Project) -> None:
    see(watching, "2026-01-10T10:00:00Z")
    see(watching, "2026-01-11T10:00:00Z", **{"$process_person_profile": False})
    see(watching, "2026-01-11T10:00:00Z", **{"$update_person_last_seen_at": False})
    assert column(watching, LAST_SEEN) == ["2026-01-10 10:00:00.000"]


def test_without_the_setting_it_is_only_written_with_a_new_person(project: Project) -> None:
    see(project, "2026-01-10T10:00:00Z")
    see(project, "2026-01-12T10:00:00Z")
    assert project.persons("version") == [[0]]
    assert project.get("persons/").json()["results"][0]["last_seen_at"] is None
    project.settings(person_last_seen=True)
    assert column(project, LAST_SEEN) == ["2026-01-10 10:00:00.000"]


def test_it_can_be_a_cursor(watching: Project) -> None:
    for hour in range(5):
        see(watching, f"2026-01-10T0{hour}:00:00Z", f"user-{hour}", **{"$set": {"n": hour}})
    newer = (
        "SELECT properties.n FROM persons WHERE last_seen_at >= '2026-01-10 03:00:00' ORDER BY last_seen_at"
    )
    assert rows(watching, newer) == [["3"], ["4"]]
    assert watching.get("persons/").json()["results"][0]["last_seen_at"].startswith("2026-01-10T04:00:00")


def test_it_survives_being_read_back(watching: Project) -> None:
    see(watching, "2026-01-12T10:00:00Z")
    watching.rows("person", id=["00000000-0000-4000-8000-000000000001"], properties=["{}"])
    see(watching, "2026-01-10T10:00:00Z", **{"$set": {"plan": "pro"}})
    assert column(watching, "SELECT toString(last_seen_at) FROM persons WHERE properties.plan = 'pro'") == [
        "2026-01-12 10:00:00.000"
    ]
