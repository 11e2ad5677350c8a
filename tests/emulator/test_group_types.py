"""groups_types list, and groups in HogQL."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa

from tests.emulator.asking import answer, rows
from tests.emulator.conftest import Project, Server

AT = datetime(2026, 1, 10, 12, tzinfo=UTC)
BLANK = dict.fromkeys(["name_singular", "name_plural", "detail_dashboard", "default_columns"])


def add_group(project: Project, plan: str, at: datetime = AT) -> None:
    project.rows(
        "groups",
        group_type_index=pa.array([0], pa.uint8()),
        group_key=["acme"],
        created_at=pa.array([AT], pa.timestamp("ms", "UTC")),
        group_properties=[f'{{"plan":"{plan}"}}'],
        _timestamp=pa.array([at], pa.timestamp("s", "UTC")),
    )


def test_group_types_are_a_bare_list_of_what_capture_saw(project: Project) -> None:
    for group_type in ("company", "team", "company"):
        project.capture({"event": "seen", "distinct_id": "a", "properties": {"$groups": {group_type: "x"}}})
    found = project.get("groups_types/").json()
    assert [one.pop("created_at") is not None for one in found] == [True, True]
    assert found == [
        {"group_type": "company", "group_type_index": 0, **BLANK},
        {"group_type": "team", "group_type_index": 1, **BLANK},
    ]


def test_a_project_without_groups_has_no_group_types(project: Project) -> None:
    assert project.get("groups_types/").json() == []


def test_group_types_can_be_named(project: Project) -> None:
    items = [
        {"group_type": "company", "name_singular": "Company", "name_plural": "Companies"},
        {"group_type": "team", "created_at": None, "default_columns": ["name"]},
        {"group_type": "company", "name_singular": "Firm"},
    ]
    assert project.control("POST", "group_types", items=items) == {"group_types": ["company", "team"]}
    company, team = project.get("groups_types/").json()
    assert (company["name_singular"], company["name_plural"]) == ("Firm", "Companies")
    assert (team["created_at"], team["default_columns"]) == (None, ["name"])


def test_a_group_type_of_unknown_members_or_a_sixth_is_refused(server: Server, project: Project) -> None:
    path = f"/_emulator/projects/{project.id}/group_types"
    assert server.http.post(path, json={"items": [{"group_type": "a", "colour": 1}]}).status_code == 400
    items = [{"group_type": name} for name in "abcdef"]
    assert server.http.post(path, json={"items": items}).status_code == 400
    assert server.http.post(path, json={"items": [{}]}).status_code == 400


def test_group_types_need_the_scope_for_groups(server: Server, project: Project) -> None:
    project.control("POST", "group_types", items=[{"group_type": "company"}])
    assert project.get("groups_types/", key=server.key(["group:read"], [project.id])).status_code == 200
    assert project.get("groups_types/", key=server.key(["person:read"], [project.id])).status_code == 403
    assert project.get("groups_types/", key="phx_wrong").status_code == 401


def test_an_open_source_server_has_no_group_types_for_any_key(server: Server, project: Project) -> None:
    project.settings(group_types_api=False)
    for key in (project.api_key, server.key(["person:read"], [project.id])):
        answered = project.get("groups_types/", key=key)
        assert (answered.status_code, answered.json()["detail"]) == (404, "Endpoint not found.")


def test_a_group_is_as_last_written_and_tells_the_second(project: Project) -> None:
    add_group(project, "free", AT)
    add_group(project, "pro", AT.replace(second=5))
    add_group(project, "late", AT.replace(second=2))
    query = "SELECT key, properties.plan, updated_at FROM groups"
    assert rows(project, query) == [["acme", "pro", "2026-01-10T12:00:05Z"]]
    assert rows(project, f"{query} WHERE updated_at > '2026-01-10 12:00:05'") == []
    assert rows(project, f"{query} WHERE updated_at >= '2026-01-10 12:00:05'")
    kinds = answer(project, query)["types"]
    assert kinds[2] == ["updated_at", "DateTime('UTC')"]


def test_of_two_changes_in_one_second_either_shows_until_the_last_one_stays(
    server: Server, project: Project
) -> None:
    add_group(project, "first")
    add_group(project, "second")
    query = "SELECT properties.plan, updated_at FROM groups"
    before = rows(project, query)
    assert len(before) == 1
    assert before[0][0] in {"first", "second"}
    server.optimize()
    assert rows(project, query) == [["second", "2026-01-10T12:00:00Z"]]


def test_generated_groups_changed_at_different_times(project: Project) -> None:
    project.generate(events=1000, persons=400, days=10, end="2026-03-01T00:00:00Z", nasty=False)
    found = rows(
        project,
        "SELECT index, count() > 10, uniq(updated_at) > count() * 0.9, min(updated_at) >= '2026-02-19',"
        " max(updated_at) < '2026-03-01', dateDiff('day', min(updated_at), max(updated_at)) > 5"
        " FROM groups GROUP BY index ORDER BY index",
    )
    assert found == [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    assert [one["group_type"] for one in project.get("groups_types/").json()] == ["organization", "workspace"]
