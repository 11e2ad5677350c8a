"""API keys: authentication, scopes, restricted keys."""

from __future__ import annotations

import httpx
import pytest

from tests.emulator.conftest import Project, Server, bearer


def detail(answer: httpx.Response) -> str:
    return str(answer.json()["detail"])


def test_no_key_is_not_authenticated(server: Server, project: Project) -> None:
    answer = server.http.get(f"/api/projects/{project.id}/persons/")
    assert answer.status_code == 401
    assert answer.json()["code"] == "not_authenticated"
    assert answer.headers["WWW-Authenticate"].startswith("Bearer resource_metadata=")


def test_a_project_token_is_no_api_key(project: Project) -> None:
    answer = project.get("persons/", key=project.token)
    assert answer.status_code == 401
    assert answer.json() == {
        "type": "authentication_error",
        "code": "authentication_failed",
        "detail": "Personal API key found in request Authorization header is invalid.",
        "attr": None,
    }


def test_a_revoked_key_is_a_401_from_then_on(server: Server, project: Project) -> None:
    key = server.key(["*"])
    assert project.get(key=key).status_code == 200
    server.control("POST", "keys/revoke", api_key=key)
    assert project.get(key=key).status_code == 401


def test_a_key_may_also_come_in_the_query_string(server: Server, project: Project) -> None:
    answer = server.http.get(f"/api/projects/{project.id}/", params={"personal_api_key": project.api_key})
    assert answer.status_code == 200
    wrong = server.http.get(f"/api/projects/{project.id}/", params={"personal_api_key": "phx_nope"})
    assert detail(wrong) == "Personal API key found in request query string is invalid."


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("", "project:read"),
        ("persons/", "person:read"),
        ("cohorts/", "cohort:read"),
        ("insights/", "insight:read"),
    ],
)
def test_each_list_needs_its_scope(server: Server, project: Project, path: str, scope: str) -> None:
    answer = project.get(path, key=server.key(["action:read"]))
    assert answer.status_code == 403
    assert answer.json()["code"] == "permission_denied"
    assert detail(answer) == f"API key missing required scope '{scope}'"
    assert project.get(path, key=server.key([scope])).status_code == 200


def test_cohort_members_need_two_scopes(server: Server, project: Project) -> None:
    cohort_id = project.control("POST", "cohorts", items=[{"name": "beta", "is_static": True}])["ids"][0]
    answer = project.get(f"cohorts/{cohort_id}/persons/", key=server.key(["cohort:read"]))
    assert detail(answer) == "API key missing required scope 'person:read'"
    assert (
        project.get(
            f"cohorts/{cohort_id}/persons/", key=server.key(["cohort:read", "person:read"])
        ).status_code
        == 200
    )


def test_write_includes_read_and_a_legacy_key_may_do_anything(server: Server, project: Project) -> None:
    assert project.get("cohorts/", key=server.key(["cohort:write"])).status_code == 200
    assert project.get("cohorts/", key=server.key([])).status_code == 200


def test_a_key_of_another_project_is_refused_by_name(server: Server, project: Project) -> None:
    other = server.project()
    answer = project.get(key=other.api_key)
    assert answer.status_code == 403
    assert detail(answer) == f"API key does not have access to the requested project: ID {project.id}."


@pytest.mark.parametrize("name", ["99999", "not-a-number"])
def test_a_project_that_does_not_exist_is_a_404(server: Server, name: str) -> None:
    answer = server.http.get(f"/api/projects/{name}/", headers=bearer(server.api_key))
    assert answer.status_code == 404
    assert detail(answer) == "Project not found."


def test_a_restricted_key_reads_its_project_and_its_owner_but_no_lists_above(
    project: Project, server: Server
) -> None:
    for path in ("/api/projects/", "/api/organizations/@current/"):
        answer = server.http.get(path, headers=bearer(project.api_key))
        assert answer.status_code == 403
        assert (
            detail(answer) == "API keys with scoped projects are only supported on project-based endpoints."
        )
    me = server.http.get("/api/users/@me/", headers=bearer(project.api_key))
    assert me.json()["team"]["id"] == project.id


def test_current_follows_the_key(server: Server, project: Project) -> None:
    assert (
        server.http.get("/api/projects/@current/", headers=bearer(project.api_key)).json()["id"] == project.id
    )
    assert server.http.get("/api/projects/@current/", headers=bearer(server.api_key)).json()["id"] == 1


def test_environments_and_missing_slashes_are_the_same_place(server: Server, project: Project) -> None:
    for path in (
        f"/api/projects/{project.id}",
        f"/api/environments/{project.id}/",
        f"/api/environments/{project.id}",
    ):
        answer = server.http.get(path, headers=bearer(project.api_key))
        assert answer.status_code == 200
        assert answer.json()["id"] == project.id
