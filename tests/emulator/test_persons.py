from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from posthog_emulator.persons import is_illegal, person_uuid
from tests.emulator.conftest import Project


def event(name: str, distinct_id: str, **properties: Any) -> dict[str, Any]:
    return {"event": name, "distinct_id": distinct_id, "properties": properties}


def identify(distinct_id: str, anonymous: str, **person: Any) -> dict[str, Any]:
    return event("$identify", distinct_id, **{"$anon_distinct_id": anonymous, "$set": person})


def properties_of(project: Project, distinct_id: str) -> dict[str, Any]:
    owner = project.person_ids()[distinct_id]
    rows = project.persons("toString(id), properties")
    return dict(json.loads(next(text for one, text in rows if one == owner)))


def test_a_persons_id_follows_from_the_first_id_it_was_seen_under(project: Project) -> None:
    project.capture(event("a", "ada"))
    expected = person_uuid(project.id, "ada")
    assert uuid.UUID(expected).version == 5
    assert project.person_ids() == {"ada": expected}
    assert project.events("toString(person_id), person_mode") == [[expected, "full"]]


def test_set_overwrites_set_once_does_not_and_unset_removes(project: Project) -> None:
    project.capture(event("a", "ada", **{"$set": {"plan": "free", "gone": 1}, "$set_once": {"first": "x"}}))
    project.capture(
        event("a", "ada", **{"$set": {"plan": "pro"}, "$set_once": {"first": "y"}, "$unset": ["gone"]})
    )
    assert properties_of(project, "ada") == {"plan": "pro", "first": "x"}


def test_each_change_is_a_new_version_and_no_change_is_none(project: Project) -> None:
    for plan in ("free", "pro", "pro", "team"):
        project.capture(event("a", "ada", **{"$set": {"plan": plan}}))
    assert project.persons("version") == [[2]]


def test_events_carry_their_person_as_it_was_then(project: Project) -> None:
    project.capture(event("first", "ada", **{"$set": {"plan": "free"}}))
    project.capture(event("second", "ada", **{"$set": {"plan": "pro"}}))
    assert project.events("event, person_properties") == [
        ["first", '{"plan":"free"}'],
        ["second", '{"plan":"pro"}'],
    ]


def test_where_a_person_first_came_from_stays(project: Project) -> None:
    project.capture(event("$pageview", "ada", utm_source="google", **{"$browser": "Firefox"}))
    project.capture(event("$pageview", "ada", utm_source="newsletter"))
    found = properties_of(project, "ada")
    assert found["utm_source"] == "newsletter"
    assert found["$initial_utm_source"] == "google"
    assert found["$initial_browser"] == "Firefox"


def test_identify_joins_an_anonymous_visitor_to_a_new_user(project: Project) -> None:
    project.capture(event("$pageview", "anon"), identify("ada", "anon", email="ada@example.com"))
    owner = person_uuid(project.id, "anon")
    assert project.person_ids() == {"anon": owner, "ada": owner}
    assert project.persons("is_identified, is_deleted") == [[1, 0]]
    assert properties_of(project, "ada") == {"email": "ada@example.com"}


def test_identify_merges_an_anonymous_person_into_a_known_one(project: Project) -> None:
    project.capture(event("a", "ada", **{"$set": {"plan": "pro"}}))
    project.capture(event("a", "anon", **{"$set": {"plan": "free", "colour": "red"}}))
    project.capture(identify("ada", "anon"))
    ada, anon = person_uuid(project.id, "ada"), person_uuid(project.id, "anon")
    assert project.person_ids() == {"ada": ada, "anon": ada}
    assert properties_of(project, "ada") == {"plan": "pro", "colour": "red"}
    people = {row[0]: row[1:] for row in project.persons("toString(id), is_deleted, version")}
    assert people[ada][0] == 0
    assert people[anon][0] == 1
    assert people[anon][1] >= 100


def test_a_merge_leaves_events_as_they_were_and_writes_an_override(project: Project) -> None:
    project.capture(event("before", "anon"), event("a", "ada"))
    project.capture(identify("ada", "anon"))
    ada, anon = person_uuid(project.id, "ada"), person_uuid(project.id, "anon")
    assert project.events("toString(person_id)", "event = 'before'") == [[anon]]
    overrides = project.server.sql(
        "SELECT distinct_id, toString(person_id), version FROM person_distinct_id_overrides"
        f" WHERE team_id = {project.id}"
    )
    assert overrides == [["anon", ada, 1]]


def test_two_identified_people_merge_only_when_it_is_asked_for_dangerously(project: Project) -> None:
    project.capture(identify("ada", "anon-1"), identify("grace", "anon-2"))
    project.capture(event("$create_alias", "ada", alias="grace"))
    owners = project.person_ids()
    assert owners["ada"] != owners["grace"]
    project.capture(event("$merge_dangerously", "ada", alias="grace"))
    owners = project.person_ids()
    assert owners["ada"] == owners["grace"] == owners["anon-2"]


def test_ids_that_stem_from_mistakes_merge_nobody(project: Project) -> None:
    project.capture(event("a", "undefined"), identify("ada", "undefined"), identify("ada", "null"))
    assert project.person_ids()["ada"] != project.person_ids()["undefined"]
    assert "null" not in project.person_ids()


@pytest.mark.parametrize(
    "text", ["", "  ", "Anonymous", "undefined", "[object Object]", "'null'", '"guest"', "0"]
)
def test_illegal_ids_are_known(text: str) -> None:
    assert is_illegal(text)
    assert not is_illegal(f"user-{text}-1")


def test_a_personless_event_makes_no_person(project: Project) -> None:
    project.capture(event("a", "anon", **{"$process_person_profile": False, "$set": {"x": 1}}))
    row = project.events("toString(person_id), person_mode, person_properties")[0]
    assert row == [person_uuid(project.id, "anon"), "propertyless", "{}"]
    assert project.person_ids() == {}
    assert project.persons("id") == []


def test_a_personless_visitor_who_signs_up_is_overridden(project: Project) -> None:
    project.capture(event("a", "anon", **{"$process_person_profile": False}))
    project.capture(identify("ada", "anon"))
    ada = person_uuid(project.id, "ada")
    assert project.person_ids() == {"ada": ada, "anon": ada}
    overrides = project.server.sql(
        f"SELECT distinct_id, version FROM person_distinct_id_overrides WHERE team_id = {project.id}"
    )
    assert overrides == [["anon", 1]]


def test_a_personless_identify_is_dropped(project: Project) -> None:
    project.capture(
        event("$identify", "ada", **{"$process_person_profile": False, "$anon_distinct_id": "anon"})
    )
    assert project.events("event") == []


def test_groups_keep_their_newest_properties_and_events_their_key(project: Project) -> None:
    for seats in (5, 9):
        group = {
            "$group_type": "company",
            "$group_key": "acme",
            "$group_set": {"seats": seats, f"seen_{seats}": True},
        }
        project.capture(event("$groupidentify", "ada", **group))
    project.capture(event("a", "ada", **{"$groups": {"company": "acme", "team": "red"}}))
    newest = project.server.sql(
        "SELECT group_properties FROM groups FINAL"
        f" WHERE team_id = {project.id} AND group_type_index = 0 AND group_key = 'acme'"
    )
    assert json.loads(newest[0][0]) == {"seats": 9, "seen_5": True, "seen_9": True}
    assert project.events("`$group_0`, `$group_1`", "event = 'a'") == [["acme", "red"]]
    assert [one["group_type"] for one in project.get().json()["group_types"]] == ["company", "team"]


def test_people_that_someone_else_wrote_are_found(project: Project) -> None:
    owner = str(uuid.uuid4())
    project.rows("person", id=[owner], properties=['{"plan":"free","old":1}'], version=[7])
    project.rows(
        "person_distinct_id2", distinct_id=["ada", "ada-2"], person_id=[owner, owner], version=[0, 3]
    )
    project.capture(event("a", "ada", **{"$set": {"plan": "pro"}}))
    assert project.person_ids() == {"ada": owner, "ada-2": owner}
    assert project.persons("toString(id), version") == [[owner, 8]]
    assert properties_of(project, "ada") == {"plan": "pro", "old": 1}


def test_generated_people_can_sign_up_and_merge(project: Project) -> None:
    project.control("POST", "generate", events=2000, persons=50, nasty=False)
    before = project.person_ids()
    project.capture(identify("user_1", "brand-new-visitor"), event("a", "user_2", **{"$set": {"x": 1}}))
    after = project.person_ids()
    assert after["user_1"] == before["user_1"] == after["brand-new-visitor"]
    assert properties_of(project, "user_2")["x"] == 1
    assert properties_of(project, "user_2")["email"].endswith("@example.com")
