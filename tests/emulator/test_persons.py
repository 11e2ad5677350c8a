"""Person processing: identify, alias, merge, $set, groups."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pyarrow as pa
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


def overrides(project: Project) -> list[list[Any]]:
    return project.server.sql(
        "SELECT distinct_id, toString(person_id), version, is_deleted FROM person_distinct_id_overrides FINAL"
        f" WHERE team_id = {project.id} ORDER BY distinct_id"
    )


def edit(project: Project, **body: Any) -> dict[str, Any]:
    edited: dict[str, Any] = project.control("PATCH", "persons", **body)
    return edited


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


def test_an_id_that_a_merge_adds_is_overridden_whatever_it_was_before(project: Project) -> None:
    project.capture(event("a", "anon"), identify("ada", "anon"))
    owner = person_uuid(project.id, "anon")
    assert overrides(project) == [["ada", owner, 1, 0]]
    project.capture(identify("grace", "unseen"))
    assert overrides(project)[1:] == [["unseen", person_uuid(project.id, "grace"), 1, 0]]


def test_people_made_and_merged_in_one_batch_have_versions_as_if_written_one_by_one(project: Project) -> None:
    project.capture(event("a", "ada"), event("a", "anon"), identify("ada", "anon"))
    people = {row[0]: row[1:] for row in project.persons("toString(id), is_deleted, version")}
    assert people == {person_uuid(project.id, "ada"): [0, 1], person_uuid(project.id, "anon"): [1, 100]}


def test_a_merge_keeps_the_older_birth_and_the_higher_version(project: Project) -> None:
    old = {**event("a", "anon", **{"$set": {"n": 0}}), "timestamp": "2026-01-01T00:00:00Z"}
    project.capture(old)
    for n in range(1, 6):
        project.capture(event("a", "anon", **{"$set": {"n": n}}))
    project.capture({**event("a", "ada"), "timestamp": "2026-01-02T00:00:00Z"}, identify("ada", "anon"))
    ada = person_uuid(project.id, "ada")
    newest = [row for row in project.persons("toString(id), version, created_at") if row[0] == ada]
    assert newest == [[ada, 6, "2026-01-01T00:00:00"]]


def test_what_an_identify_sets_outweighs_both_people_it_merges(project: Project) -> None:
    project.capture(event("a", "ada", **{"$set": {"plan": "pro", "seats": 1}}))
    project.capture(event("a", "anon", **{"$set": {"plan": "free", "colour": "red", "first": "anon"}}))
    merge = identify("ada", "anon", plan="team")
    merge["properties"]["$set_once"] = {"first": "late", "since": 2026}
    project.capture(merge)
    assert properties_of(project, "ada") == {
        "plan": "team",
        "seats": 1,
        "colour": "red",
        "first": "anon",
        "since": 2026,
    }


def test_a_first_value_may_follow_a_null(project: Project) -> None:
    project.capture(event("a", "ada", **{"$set_once": {"source": None}}))
    project.capture(event("a", "ada", **{"$set_once": {"source": "ads"}}))
    assert properties_of(project, "ada") == {"source": "ads"}


def test_one_and_true_are_different_values(project: Project) -> None:
    for value in (1, True):
        project.capture(event("a", "ada", **{"$set": {"x": value}}))
    assert properties_of(project, "ada")["x"] is True


def test_a_page_that_changes_makes_no_new_version_of_its_visitor(project: Project) -> None:
    for page in ("/a", "/b", "/c"):
        project.capture(event("$pageview", "ada", **{"$current_url": page, "$browser": "Firefox"}))
    assert project.persons("version") == [[0]]
    assert properties_of(project, "ada")["$current_url"] == "/a"
    shown = project.events("JSONExtractString(person_properties, '$current_url')", "event = '$pageview'")
    assert sorted(row[0] for row in shown) == ["/a", "/b", "/c"]
    project.capture(event("a", "ada", **{"$set": {"plan": "free"}}))
    assert properties_of(project, "ada")["$current_url"] == "/a"
    project.capture(event("$pageview", "ada", **{"$current_url": "/d", "$set": {"plan": "pro"}}))
    assert project.persons("version") == [[2]]
    assert properties_of(project, "ada")["$current_url"] == "/d"
    project.capture(event("$set", "ada", **{"$set": {"$current_url": "/e"}}))
    assert properties_of(project, "ada")["$current_url"] == "/e"


def test_an_exception_changes_nobody(project: Project) -> None:
    project.capture(event("a", "ada", **{"$set": {"plan": "free"}}))
    project.capture(event("$exception", "ada", **{"$set": {"plan": "broken"}}))
    assert properties_of(project, "ada") == {"plan": "free"}


@pytest.mark.parametrize("text", ["''", " anonymous", '" "'])
def test_ids_that_only_look_illegal_are_legal(text: str) -> None:
    assert not is_illegal(text)


def test_a_group_that_does_not_change_keeps_its_time(project: Project) -> None:
    written_at = pa.array([1_767_225_600], pa.timestamp("s", "UTC"))
    project.rows(
        "groups",
        group_type_index=[0],
        group_key=["acme"],
        group_properties=['{"seats":5}'],
        _timestamp=written_at,
    )
    newest = f"SELECT max(_timestamp) > 1767225600 FROM groups WHERE team_id = {project.id}"
    for seats, is_written in ((5, 0), (6, 1)):
        group = {"$group_type": "company", "$group_key": "acme", "$group_set": {"seats": seats}}
        project.capture(event("$groupidentify", "ada", **group))
        assert project.server.sql(newest) == [[is_written]]


def test_an_edit_is_a_new_version_without_an_event(project: Project) -> None:
    project.capture(event("a", "ada", **{"$set": {"plan": "free", "gone": 1}}))
    edited = edit(project, distinct_id="ada", set={"plan": "pro", "seats": 3}, unset=["gone"])
    ada = person_uuid(project.id, "ada")
    assert edited == {"person_id": ada, "version": 1, "properties": {"plan": "pro", "seats": 3}}
    assert properties_of(project, "ada") == {"plan": "pro", "seats": 3}
    assert project.events("event") == [["a"]]
    assert edit(project, person_id=ada, set={"plan": "pro"})["version"] == 1


def test_what_comes_after_an_edit_builds_on_it(project: Project) -> None:
    project.capture(event("a", "ada", **{"$set": {"plan": "free"}}))
    edit(project, distinct_id="ada", set={"seats": 3})
    project.capture(event("b", "ada", **{"$set": {"colour": "red"}}))
    assert properties_of(project, "ada") == {"plan": "free", "seats": 3, "colour": "red"}
    assert project.persons("version") == [[2]]


def test_people_that_someone_else_wrote_can_be_edited(project: Project) -> None:
    project.control("POST", "generate", events=500, persons=20, nasty=False)
    owner = project.person_ids()["user_2"]
    edited = edit(project, person_id=owner.upper(), set={"plan": "edited"})
    assert edited["person_id"] == owner
    found = properties_of(project, "user_2")
    assert found["plan"] == "edited"
    assert found["email"].endswith("@example.com")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"set": {"x": 1}}, 400),
        ({"distinct_id": "ada", "person_id": "x"}, 400),
        ({"distinct_id": "ada", "set": []}, 400),
        ({"distinct_id": "ada", "unset": "x"}, 400),
        ({"distinct_id": "nobody", "set": {"x": 1}}, 404),
        ({"person_id": str(uuid.uuid4()), "set": {"x": 1}}, 404),
    ],
)
def test_an_edit_of_nobody_is_refused(project: Project, body: dict[str, Any], status: int) -> None:
    answer = project.server.http.patch(f"/_emulator/projects/{project.id}/persons", json=body)
    assert answer.status_code == status


def test_people_are_remembered_right_after_rows_came_from_elsewhere(project: Project) -> None:
    project.control("POST", "generate", events=500, persons=20, nasty=False)
    project.capture(event("a", "user_2", **{"$set": {"x": 1}}))
    before = project.person_ids()
    project.rows("person", id=[str(uuid.uuid4())], properties=["{}"], version=[0])
    project.capture(event("a", "user_2", **{"$set": {"y": 2}}))
    assert project.person_ids() == before
    assert {"x": 1, "y": 2}.items() <= properties_of(project, "user_2").items()


def test_an_id_that_moved_to_another_person_stays_there(project: Project) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    project.rows("person", id=[first, second], properties=['{"n":1}', '{"n":2}'], version=[0, 0])
    project.rows(
        "person_distinct_id2",
        distinct_id=["ada", "moved", "moved", "grace"],
        person_id=[first, first, second, second],
        version=[0, 0, 1, 0],
    )
    project.capture(event("a", "ada", **{"$set": {"x": 1}}))
    project.capture(event("b", "moved", **{"$set": {"x": 2}}))
    assert project.person_ids()["moved"] == second
    assert project.events("toString(person_id)", "event = 'b'") == [[second]]
    assert properties_of(project, "grace") == {"n": 2, "x": 2}


def test_a_hundred_changes_among_ten_thousand_people_are_quick(project: Project) -> None:
    project.control("POST", "generate", events=10_000, persons=10_000, nasty=False)
    ids = sorted(one for one in project.person_ids() if one.startswith("user_"))
    for start in range(0, 300, 100):
        changed = [event("$set", one, **{"$set": {"n": start}}) for one in ids[start : start + 100]]
        project.capture(*changed)
    seconds = sorted(entry["seconds"] for entry in project.requests() if entry["path"] == "/batch/")
    assert seconds[0] < 0.5
