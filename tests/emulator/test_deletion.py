"""Deleting events and persons."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.emulator.asking import add_events, column, rows
from tests.emulator.conftest import Project, Server


def delete(project: Project, what: str, **body: Any) -> dict[str, int]:
    deleted: dict[str, int] = project.control("POST", f"delete/{what}", **body)
    return deleted


def test_events_are_deleted_by_a_condition(project: Project) -> None:
    add_events(project, 10)
    assert delete(project, "events", where="distinct_id IN ('user-3', 'user-4')") == {"rows": 2}
    assert len(column(project, "SELECT uuid FROM events")) == 8
    assert column(project, "SELECT count() FROM events") == [8]
    assert delete(project, "events", where="distinct_id = 'user-3'") == {"rows": 0}


def test_events_are_deleted_by_their_uuids(project: Project) -> None:
    uuids = add_events(project, 5)
    assert delete(project, "events", uuids=uuids[:2]) == {"rows": 2}
    assert sorted(column(project, "SELECT uuid FROM events")) == sorted(uuids[2:])
    assert delete(project, "events", uuids=[]) == {"rows": 0}


def test_a_deletion_touches_no_other_project(server: Server) -> None:
    project, other = server.project(), server.project()
    add_events(project, 3)
    add_events(other, 3)
    assert delete(project, "events", where="1 OR 1") == {"rows": 3}
    assert column(other, "SELECT count() FROM events") == [3]


def test_copies_go_together_and_others_stay_unmerged(project: Project) -> None:
    made = project.generate(events=10_000, persons=50, properties_bytes=50)
    assert made["duplicates"] > 1
    twice = f"SELECT uuid FROM events WHERE team_id = {project.id} GROUP BY uuid HAVING count() > 1"
    one = project.server.sql(f"SELECT toString(uuid) FROM ({twice}) ORDER BY uuid LIMIT 1")[0][0]
    assert delete(project, "events", uuids=[one]) == {"rows": 2}
    assert project.server.sql(f"SELECT count() FROM ({twice})") == [[made["duplicates"] - 1]]
    project.server.optimize()
    assert project.server.sql(f"SELECT count() FROM ({twice})") == [[0]]


def test_deleted_events_stay_away_when_parts_are_merged(project: Project) -> None:
    add_events(project, 10)
    add_events(project, 10, distinct_id=["other"] * 10)
    delete(project, "events", where="distinct_id = 'other'")
    project.server.optimize()
    assert column(project, "SELECT count() FROM events") == [10]


def test_what_was_deleted_can_be_written_again(project: Project) -> None:
    uuids = add_events(project, 3)
    delete(project, "events", uuids=uuids)
    add_events(project, 3, uuid=uuids)
    project.server.optimize()
    assert sorted(column(project, "SELECT uuid FROM events")) == sorted(uuids)


def test_a_deleted_person_and_its_ids_are_gone_and_its_events_are_not(project: Project) -> None:
    for name in ("ann", "bob"):
        project.capture({"event": "page", "distinct_id": name, "properties": {"$set": {"name": name}}})
    ann = project.person_ids()["ann"]
    assert delete(project, "persons", person_ids=[ann]) == {"persons": 1, "distinct_ids": 1, "events": 0}
    assert column(project, "SELECT distinct_id FROM person_distinct_ids") == ["bob"]
    assert column(project, "SELECT properties.name FROM persons") == ["bob"]
    assert rows(project, "SELECT is_deleted, properties FROM raw_persons WHERE version >= 100") == [[1, "{}"]]
    assert column(project, "SELECT count() FROM events") == [2]
    assert delete(project, "persons", person_ids=[ann]) == {"persons": 0, "distinct_ids": 0, "events": 0}


def test_a_deleted_person_who_comes_back_is_seen_again(project: Project) -> None:
    for _ in range(2):
        properties = {"$set": {"name": "ann"}}
        project.capture({"event": "page", "distinct_id": "ann", "properties": properties})
        ann = project.person_ids()["ann"]
        delete(project, "persons", person_ids=[ann])
    project.capture({"event": "page", "distinct_id": "ann", "properties": {"$set": {"back": True}}})
    assert rows(project, "SELECT id, properties FROM persons") == [[ann, '{"back":true}']]
    assert rows(project, "SELECT distinct_id, person_id FROM person_distinct_ids") == [["ann", ann]]
    assert column(project, "SELECT max(version) FROM raw_persons") == [202]
    assert column(project, "SELECT max(version) FROM raw_person_distinct_ids") == [202]
    project.capture({"event": "page", "distinct_id": "ann", "properties": {"$set": {"back": 2}}})
    assert column(project, "SELECT properties FROM persons") == ['{"back":2}']


def test_a_deleted_distinct_id_overrides_nothing(project: Project) -> None:
    for name in ("anon", "ann"):
        project.capture({"event": "page", "distinct_id": name})
    stored = column(project, "SELECT person_id FROM events WHERE distinct_id = 'anon'")
    properties = {"$anon_distinct_id": "anon"}
    project.capture({"event": "$identify", "distinct_id": "ann", "properties": properties})
    ann = project.person_ids()["ann"]
    merged = "SELECT DISTINCT person_id FROM events WHERE distinct_id = 'anon'"
    assert column(project, merged) == [ann]
    delete(project, "persons", person_ids=[ann])
    assert column(project, merged) == stored


def test_a_person_can_be_deleted_with_its_events(project: Project) -> None:
    for name in ("ann", "ann", "bob"):
        project.capture({"event": "page", "distinct_id": name, "properties": {"$set": {"name": name}}})
    deleted = delete(
        project, "persons", where="JSONExtractString(properties, 'name') = 'ann'", delete_events=True
    )
    assert deleted == {"persons": 1, "distinct_ids": 1, "events": 2}
    assert column(project, "SELECT distinct_id FROM events") == ["bob"]


@pytest.mark.parametrize(
    "body", [{}, {"where": "1", "uuids": []}, {"uuids": ["x"]}, {"where": "nope = 1"}, {"colour": "red"}]
)
def test_a_deletion_that_does_not_say_what_is_refused(project: Project, body: dict[str, Any]) -> None:
    answer = project.server.http.post(f"/_emulator/projects/{project.id}/delete/events", json=body)
    assert answer.status_code == 400


def test_deleting_takes_no_time_however_many_parts_there_are(project: Project) -> None:
    for _ in range(50):
        add_events(project, 1, uuid=[str(uuid.uuid4())])
    assert delete(project, "events", where="1") == {"rows": 50}
    assert column(project, "SELECT count() FROM events") == [0]
