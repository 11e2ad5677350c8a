"""REST lists: paging, order, filters."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.emulator.conftest import Project, Server, bearer


def names(answer: Any) -> list[str]:
    return [one["name"] for one in answer.json()["results"]]


def add_insights(project: Project, *items: dict[str, Any]) -> list[int]:
    ids: list[int] = project.control("POST", "insights", items=list(items))["ids"]
    return ids


def walk(project: Project, path: str, **params: Any) -> list[Any]:
    """Follow `next` to the end, on the client's own host."""
    found: list[Any] = []
    body = project.get(path, **params).json()
    found += body["results"]
    while body["next"]:
        query = {name: values[0] for name, values in parse_qs(urlsplit(body["next"]).query).items()}
        body = project.get(path, **query).json()
        found += body["results"]
    return found


def test_a_project_shows_its_timezone_and_its_secrets(server: Server) -> None:
    body = server.project(timezone="America/New_York").get().json()
    assert body["timezone"] == "America/New_York"
    assert {"api_token", "secret_api_token", "live_events_token", "uuid", "organization"} <= body.keys()


def test_all_projects_are_listed_to_a_key_for_all(server: Server, project: Project) -> None:
    body = server.http.get("/api/projects/", params={"limit": 1000}, headers=bearer(server.api_key)).json()
    assert project.id in [one["id"] for one in body["results"]]
    assert body["count"] == len(body["results"])


def test_only_me_can_be_asked_about(server: Server) -> None:
    answer = server.http.get("/api/users/0199-other/", headers=bearer(server.api_key))
    assert answer.status_code == 403
    assert server.http.get("/api/users/@me/", headers=bearer(server.key(["person:read"]))).status_code == 403


def test_lists_have_pages_of_a_hundred_and_an_absolute_next(project: Project) -> None:
    add_insights(project, *({"name": str(n)} for n in range(250)))
    body = project.get("insights/", order="id", basic="true").json()
    assert body["count"] == 250
    assert len(body["results"]) == 100
    assert body["previous"] is None
    expected = (
        f"{project.server.url}/api/projects/{project.id}/insights/?order=id&basic=true&limit=100&offset=100"
    )
    assert body["next"] == expected
    assert [one["name"] for one in walk(project, "insights/", order="id", limit="90")] == [
        str(n) for n in range(250)
    ]
    assert len(project.get("insights/", limit="10000").json()["results"]) == 250


def test_next_trusts_whatever_host_the_client_names(server: Server, project: Project) -> None:
    add_insights(project, {}, {})
    answer = server.http.get(
        f"/api/environments/{project.id}/insights?limit=1",
        headers={**bearer(project.api_key), "Host": "internal.example:8000"},
    )
    assert answer.json()["next"].startswith(
        f"http://internal.example:8000/api/environments/{project.id}/insights?limit=1"
    )


def test_insights_without_an_order_come_in_any(project: Project) -> None:
    add_insights(project, *({} for _ in range(30)))
    seen = {tuple(one["id"] for one in project.get("insights/").json()["results"]) for _ in range(4)}
    assert len(seen) > 1


def test_insights_with_an_order_are_sorted_and_an_unknown_one_breaks_the_server(project: Project) -> None:
    add_insights(project, *({"last_modified_at": f"2026-01-{day:02}T00:00:00Z"} for day in (3, 1, 2)))
    for order, days in (("last_modified_at", ["01", "02", "03"]), ("-last_modified_at", ["03", "02", "01"])):
        listed = project.get("insights/", order=order).json()["results"]
        assert [one["last_modified_at"][8:10] for one in listed] == days
    assert project.get("insights/", order="colour").status_code == 500


def test_insights_that_were_deleted_are_gone_without_a_word(project: Project) -> None:
    kept, gone = add_insights(project, {"name": "kept"}, {"name": "gone", "deleted": True})
    assert names(project.get("insights/")) == ["kept"]
    assert project.get(f"insights/{kept}/").json()["name"] == "kept"
    assert project.get(f"insights/{gone}/").status_code == 404


def test_the_date_bounds_of_insights_are_strict(project: Project) -> None:
    add_insights(
        project,
        *({"name": f"{hour}", "last_modified_at": f"2026-01-01T{hour}:00:00Z"} for hour in (10, 11, 12)),
    )
    bounds = {"order": "id", "date_from": "2026-01-01T10:00:00Z", "date_to": "2026-01-01T12:00:00Z"}
    assert names(project.get("insights/", **bounds)) == ["11"]


def test_a_naive_date_is_read_in_the_projects_timezone(server: Server) -> None:
    tokyo = server.project(timezone="Asia/Tokyo")
    add_insights(tokyo, {"name": "early", "last_modified_at": "2026-01-01T00:30:00Z"})
    assert names(tokyo.get("insights/", date_from="2026-01-01T00:00:00")) == ["early"]
    assert names(tokyo.get("insights/", date_from="2026-01-01T10:00:00")) == []
    assert names(tokyo.get("insights/", date_from="2026-01-01T01:00:00Z")) == []


def test_relative_dates_count_back_from_now(project: Project) -> None:
    add_insights(project, {"name": "new"}, {"name": "old", "last_modified_at": "2020-01-01T00:00:00Z"})
    assert names(project.get("insights/", date_from="-7d")) == ["new"]
    assert names(project.get("insights/", date_to="-1y")) == ["old"]


def test_basic_insights_keep_the_query_and_lose_the_result(project: Project) -> None:
    query = {"kind": "DataVisualizationNode", "source": {"kind": "HogQLQuery", "query": "SELECT 1"}}
    number = add_insights(project, {"query": query})[0]
    basic = project.get("insights/", basic="true").json()["results"][0]
    full = project.get("insights/").json()["results"][0]
    assert basic["query"] == full["query"] == query
    assert "result" not in basic
    assert full["result"] is None
    assert project.get(f"insights/{basic['short_id']}/").json()["id"] == number


def test_cohorts_come_newest_first_and_can_be_basic(project: Project) -> None:
    items = [
        {"name": n, "created_at": f"2026-01-0{n}T00:00:00Z", "is_static": n == "2"} for n in ("1", "3", "2")
    ]
    project.control("POST", "cohorts", items=[*items, {"name": "gone", "deleted": True}])
    assert names(project.get("cohorts/")) == ["3", "2", "1"]
    assert names(project.get("cohorts/", type="static")) == ["2"]
    basic = project.get("cohorts/", basic="true").json()["results"][0]
    assert not {"filters", "query", "groups"} & basic.keys()


@pytest.fixture
def peopled(project: Project) -> Project:
    project.control("POST", "generate", events=1000, persons=250, nasty=False, end="2026-03-01T00:00:00Z")
    return project


def test_persons_have_no_count_and_a_next_when_the_page_is_full(peopled: Project) -> None:
    body = peopled.get("persons/", limit="250").json()
    assert body.keys() == {"results", "next", "previous"}
    assert len(body["results"]) == 250
    after = walk(peopled, "persons/", limit="250")
    assert len(after) == 250
    assert peopled.get("persons/", include_total="1").json()["count"] == 250


def test_persons_come_newest_first_and_all_of_them(peopled: Project) -> None:
    found = walk(peopled, "persons/", limit="60")
    assert len({one["uuid"] for one in found}) == 250
    created = [one["created_at"] for one in found]
    assert created == sorted(created, reverse=True)
    assert sum(len(one["distinct_ids"]) for one in found) == 325


def test_above_the_row_cap_persons_end_too_early(peopled: Project) -> None:
    peopled.settings(max_rows=100)
    body = peopled.get("persons/", limit="200").json()
    assert len(body["results"]) == 100
    assert body["next"] is None


def test_persons_can_be_looked_up(peopled: Project) -> None:
    one = peopled.get("persons/", limit="1").json()["results"][0]
    for params in ({"email": one["properties"]["email"]}, {"distinct_id": one["distinct_ids"][0]}):
        assert [found["uuid"] for found in peopled.get("persons/", **params).json()["results"]] == [
            one["uuid"]
        ]
    assert peopled.get("persons/", properties="[]").status_code == 400


def test_deleted_and_merged_people_are_not_listed(project: Project) -> None:
    identify = {"event": "$identify", "distinct_id": "ada", "properties": {"$anon_distinct_id": "anon"}}
    project.capture({"event": "a", "distinct_id": "ada"}, {"event": "a", "distinct_id": "anon"}, identify)
    listed = project.get("persons/").json()["results"]
    assert [one["distinct_ids"] for one in listed] == [["ada", "anon"]]
    assert listed[0]["is_identified"] is True


def test_cohort_members_are_those_of_the_newest_calculation(peopled: Project) -> None:
    for cohort in peopled.get("cohorts/").json()["results"]:
        members = walk(peopled, f"cohorts/{cohort['id']}/persons/", limit="1000")
        assert len({one["uuid"] for one in members}) == len(members) == cohort["count"]
    assert peopled.get("cohorts/123456/persons/").status_code == 404


def test_cohort_members_show_ten_distinct_ids_at_most(project: Project) -> None:
    project.capture({"event": "a", "distinct_id": "ada"})
    for n in range(12):
        project.capture(
            {"event": "$identify", "distinct_id": "ada", "properties": {"$anon_distinct_id": f"anon-{n}"}}
        )
    owner = project.person_ids()["ada"]
    number = project.control("POST", "cohorts", items=[{"is_static": True}])["ids"][0]
    project.rows("person_static_cohort", person_id=[owner], cohort_id=[number])
    assert len(project.get(f"cohorts/{number}/persons/").json()["results"][0]["distinct_ids"]) == 10
    assert len(project.get("persons/").json()["results"][0]["distinct_ids"]) == 13


def test_lists_order_blank_texts_and_refuse_odd_times(project: Project) -> None:
    path = "definitions/session_recording_playlists"
    project.control("POST", path, items=[{"name": "a"}, {"name": ""}, {}])
    listed = project.get("session_recording_playlists/", order="name").json()["results"]
    names = [one["name"] for one in listed]
    assert names == sorted(names, key=str.casefold)
    assert "" in names
    project.control("POST", "definitions/notebooks", items=[{}])
    assert project.get("notebooks/", date_from="2020-01-01").status_code == 200
    assert project.get("notebooks/", date_from="-7d").status_code == 400
