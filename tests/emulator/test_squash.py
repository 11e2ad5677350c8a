"""The squash job."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from posthog_emulator.persons import person_uuid
from tests.emulator.asking import add_events, column, rows
from tests.emulator.conftest import Project, Server

WHO = "SELECT distinct_id, person_id FROM events ORDER BY distinct_id, uuid"


def merge(project: Project, into: str, other: str) -> None:
    for name in (other, into):
        project.capture({"event": "page", "distinct_id": name, "properties": {"$set": {"name": name}}})
    properties = {"$anon_distinct_id": other}
    project.capture({"event": "$identify", "distinct_id": into, "properties": properties})


def squash(project: Project, **body: Any) -> dict[str, int]:
    done: dict[str, int] = project.control("POST", "squash", **body)
    return done


def override(project: Project, distinct_ids: list[str], owners: list[str], days_ago: list[int]) -> None:
    """Write overrides at once: what is written one by one may be merged before it is squashed."""
    at = [datetime.now(UTC) - timedelta(days=days) for days in days_ago]
    project.rows(
        "person_distinct_id_overrides",
        distinct_id=distinct_ids,
        person_id=owners,
        version=list(range(1, len(owners) + 1)),
        _timestamp=pa.array(at, pa.timestamp("s", "UTC")),
    )


def overrides(project: Project) -> list[list[Any]]:
    return project.server.sql(
        "SELECT distinct_id, toString(person_id), version FROM person_distinct_id_overrides"
        f" WHERE team_id = {project.id} ORDER BY distinct_id, version"
    )


def test_a_squash_writes_the_merged_person_into_stored_events(project: Project) -> None:
    merge(project, "ada", "anon")
    ada, anon = person_uuid(project.id, "ada"), person_uuid(project.id, "anon")
    stored = "SELECT event_person_id FROM events WHERE distinct_id = 'anon'"
    who, people = rows(project, WHO), rows(project, "SELECT id, properties FROM persons ORDER BY id")
    links = rows(project, "SELECT distinct_id, person_id FROM person_distinct_ids ORDER BY distinct_id")
    assert column(project, stored) == [anon]
    assert squash(project, older_than_s=0) == {"events": 1, "overrides": 1}
    assert column(project, stored) == [ada]
    assert overrides(project) == []
    assert rows(project, WHO) == who
    assert rows(project, "SELECT id, properties FROM persons ORDER BY id") == people
    assert (
        rows(project, "SELECT distinct_id, person_id FROM person_distinct_ids ORDER BY distinct_id") == links
    )
    assert squash(project, older_than_s=0) == {"events": 0, "overrides": 0}


def test_a_squash_changes_nothing_of_an_event_but_its_person(project: Project) -> None:
    merge(project, "ada", "anon")
    rest = f"SELECT * EXCEPT person_id FROM events WHERE team_id = {project.id} ORDER BY uuid"
    times = f"SELECT uuid, _timestamp, inserted_at FROM events WHERE team_id = {project.id} ORDER BY uuid"
    before = project.server.sql(rest), project.server.sql(times)
    assert squash(project, older_than_s=0)["events"] == 1
    assert (project.server.sql(rest), project.server.sql(times)) == before


def test_overrides_younger_than_two_days_stay(project: Project) -> None:
    merge(project, "ada", "anon")
    assert squash(project) == {"events": 0, "overrides": 0}
    assert len(overrides(project)) == 1


def test_only_the_old_rows_of_a_distinct_id_are_squashed(project: Project) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    add_events(project, 1, distinct_id=["anon"])
    stored = column(project, "SELECT event_person_id FROM events")
    override(project, ["anon", "anon"], [first, second], [3, 1])
    done = squash(project)
    # ClickHouse may have merged the older row away before, here as in PostHog.
    assert done in ({"events": 1, "overrides": 1}, {"events": 0, "overrides": 0})
    assert column(project, "SELECT event_person_id FROM events") == ([first] if done["events"] else stored)
    assert column(project, "SELECT person_id FROM events") == [second]
    assert overrides(project) == [["anon", second, 2]]


def test_duplicates_stay_duplicates_while_nothing_merges(project: Project) -> None:
    made = project.generate(events=3000, persons=50, properties_bytes=50)
    twice = f"SELECT uuid FROM events WHERE team_id = {project.id} GROUP BY uuid HAVING count() > 1"
    count = project.server.sql(f"SELECT count() FROM ({twice})")[0][0]
    assert made["duplicates"] == count > 0
    merged = str(uuid.uuid4())
    ids = column(project, f"SELECT DISTINCT distinct_id FROM events WHERE uuid IN ({_uuids(project, twice)})")
    override(project, ids, [merged] * len(ids), [3] * len(ids))
    who = rows(project, WHO + " LIMIT 5000")
    assert squash(project)["events"] >= 2 * count
    assert rows(project, WHO + " LIMIT 5000") == who
    assert project.server.sql(f"SELECT count() FROM ({twice})") == [[count]]
    project.server.optimize()
    assert project.server.sql(f"SELECT count() FROM ({twice})") == [[0]]
    assert column(project, f"SELECT DISTINCT event_person_id FROM events WHERE distinct_id = '{ids[0]}'") == [
        merged
    ]


def test_a_squash_touches_no_other_project(server: Server) -> None:
    project, other = server.project(), server.project()
    for one in (project, other):
        merge(one, "ada", "anon")
    assert squash(project, older_than_s=0)["events"] == 1
    assert len(overrides(other)) == 1
    anon = person_uuid(other.id, "anon")
    assert column(other, "SELECT event_person_id FROM events WHERE distinct_id = 'anon'") == [anon]


def test_a_merge_after_a_squash_is_overridden_again(project: Project) -> None:
    merge(project, "ada", "anon")
    squash(project, older_than_s=0)
    project.capture({"event": "page", "distinct_id": "grace"})
    project.capture({"event": "$merge_dangerously", "distinct_id": "grace", "properties": {"alias": "ada"}})
    grace = person_uuid(project.id, "grace")
    assert set(column(project, "SELECT person_id FROM events")) == {grace}
    assert [(one[0], one[2]) for one in overrides(project)] == [("ada", 1), ("anon", 2)]


@pytest.mark.parametrize("body", [{"older_than_s": -1}, {"older_than_s": "1"}, {"older": 1}])
def test_a_squash_of_no_known_age_is_refused(project: Project, body: dict[str, Any]) -> None:
    answer = project.server.http.post(f"/_emulator/projects/{project.id}/squash", json=body)
    assert answer.status_code == 400


def _uuids(project: Project, sql: str) -> str:
    return ", ".join(f"'{row[0]}'" for row in project.server.sql(f"SELECT toString(uuid) FROM ({sql})"))
