"""Control API: projects, exact rows, SQL, journal, clock."""

from __future__ import annotations

import uuid

import pyarrow as pa
import pytest

from tests.emulator.conftest import Project, Server, bearer

GROUP = {"$group_type": "company", "$group_key": "acme", "$group_set": {"n": 1}}


def test_projects_do_not_see_each_other(server: Server) -> None:
    first, second = server.project(name="first"), server.project(name="second", timezone="Asia/Tokyo")
    assert first.id != second.id
    assert second.get().json()["timezone"] == "Asia/Tokyo"
    first.capture({"event": "a", "distinct_id": "x"})
    assert second.events("event") == []


def test_a_project_can_change_its_timezone_and_settings(project: Project) -> None:
    project.control("PATCH", "", timezone="Europe/Oslo", settings={"max_rows": 10})
    assert project.get().json()["timezone"] == "Europe/Oslo"


@pytest.mark.parametrize(
    "body",
    [
        {"settings": {"max_row": 10}},
        {"settings": {"max_rows": "10"}},
        {"settings": {"rate_limits": {"unknown": [1, 1]}}},
        {"settings": {"unavailable": {"dashboard": 402}}},
        {"settings": {"unavailable": {"roles": 402}}},
        {"settings": {"unavailable": {"dashboards": 500}}},
        {"settings": {"environments_only": ["dashboard"]}},
        {"settings": {"hidden_tables": "groups"}},
        {"settings": {"unavailable": 402}},
        {"timezone": "Mars/Olympus"},
        {"colour": "red"},
    ],
)
def test_what_means_nothing_is_a_400(server: Server, project: Project, body: dict[str, object]) -> None:
    answer = server.http.patch(f"/_emulator/projects/{project.id}", json=body)
    assert answer.status_code == 400
    assert answer.json()["detail"]


def test_a_wrong_setting_leaves_the_others_of_its_request_and_makes_no_project(
    server: Server, project: Project
) -> None:
    body = {"settings": {"unavailable": {"dashboards": 402}, "max_rows": "10"}}
    server.http.patch(f"/_emulator/projects/{project.id}", json=body)
    server.http.post("/_emulator/projects", json=body)

    assert project.get("dashboards/").status_code == 200
    assert server.project().id == project.id + 1


def test_exact_rows_arrive_as_they_are(project: Project) -> None:
    one = str(uuid.uuid4())
    text = '{"emoji":"🦔","nul":"\\u0000","half":"\\ud83e","spaced" : 1}'
    written = project.rows(
        "events",
        uuid=[one],
        event=["exact"],
        properties=[text],
        distinct_id=["d"],
        timestamp=pa.array([1_767_225_600_123_456], pa.timestamp("us", tz="UTC")),
    )
    assert written == 1
    rows = project.events("toString(uuid), properties, timestamp, team_id, created_at > now() - 60")
    assert rows == [[one, text, "2026-01-01T00:00:00.123456Z", project.id, 1]]


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("person", {"id": [str(uuid.uuid4())], "properties": ["{}"], "version": [3]}),
        ("person_distinct_id2", {"distinct_id": ["a"], "person_id": [str(uuid.uuid4())]}),
        (
            "person_distinct_id_overrides",
            {"distinct_id": ["a"], "person_id": [str(uuid.uuid4())], "version": [1]},
        ),
        ("groups", {"group_type_index": [0], "group_key": ["acme"], "group_properties": ["{}"]}),
        ("cohortpeople", {"person_id": [str(uuid.uuid4())], "cohort_id": [7], "sign": [1], "version": [2]}),
        ("person_static_cohort", {"person_id": [str(uuid.uuid4())], "cohort_id": [7]}),
    ],
)
def test_every_table_takes_rows(project: Project, table: str, columns: dict[str, list[object]]) -> None:
    assert project.rows(table, **columns) == 1
    assert project.server.sql(f"SELECT count() FROM {table} WHERE team_id = {project.id}") == [[1]]


def test_rows_for_no_table_or_in_no_format_are_refused(server: Server, project: Project) -> None:
    assert (
        server.http.post(f"/_emulator/projects/{project.id}/rows/passwords", content=b"").status_code == 400
    )
    assert (
        server.http.post(f"/_emulator/projects/{project.id}/rows/events", content=b"csv,no").status_code
        == 400
    )


def test_sql_tells_the_truth_and_what_it_cost(server: Server, project: Project) -> None:
    project.capture({"event": "a", "distinct_id": "x"})
    answer = server.control("POST", "sql", sql=f"SELECT event FROM events WHERE team_id = {project.id}")
    assert answer["columns"] == ["event"]
    assert answer["types"] == ["String"]
    assert answer["rows"] == [["a"]]
    assert answer["read_rows"] >= 1
    assert answer["read_bytes"] > 0
    assert server.http.post("/_emulator/sql", json={"sql": "SELEC"}).status_code == 400


def test_optimize_merges_duplicates(server: Server, project: Project) -> None:
    columns = {
        "uuid": [str(uuid.uuid4())],
        "event": ["twice"],
        "distinct_id": ["d"],
        "timestamp": pa.array([1_767_225_600_000_000], pa.timestamp("us", tz="UTC")),
    }
    project.rows("events", **columns)
    project.rows("events", **columns)
    server.control("POST", "optimize")
    assert project.events("event") == [["twice"]]


def test_every_request_is_written_down_with_its_bytes(server: Server, project: Project) -> None:
    answer = project.get("cohorts/")
    server.http.get(f"/api/projects/{project.id}/persons/", headers=bearer("phx_wrong"))
    project.capture({"event": "a", "distinct_id": "x"})
    journal = project.requests()
    assert [(entry["method"], entry["path"], entry["status"]) for entry in journal] == [
        ("GET", f"/api/projects/{project.id}/cohorts/", 200),
        ("GET", f"/api/projects/{project.id}/persons/", 401),
        ("POST", "/batch/", 200),
    ]
    assert journal[0]["bytes_sent"] == len(answer.content)
    assert all(entry["seconds"] > 0 and entry["started_at"] for entry in journal)
    stats = project.control("GET", "stats")
    assert stats["requests"] == 3
    assert stats["by_status"] == {"200": 2, "401": 1}
    assert stats["bytes_sent"] == sum(entry["bytes_sent"] for entry in journal)
    project.control("DELETE", "requests")
    assert project.requests() == []


def test_bytes_are_counted_on_the_wire(project: Project) -> None:
    project.control("POST", "insights", items=[{"name": "x" * 5000}])
    zipped = project.get("insights/")
    assert zipped.headers["Content-Encoding"] == "gzip"
    project.settings(gzip=False)
    plain = project.get("insights/")
    assert "Content-Encoding" not in plain.headers
    assert plain.json()["results"] == zipped.json()["results"]
    first, second = (entry["bytes_sent"] for entry in project.requests())
    assert first == int(zipped.headers["Content-Length"]) < second == len(plain.content)


def test_the_servers_clock_may_be_put_back_and_goes_on_from_there(server: Server, project: Project) -> None:
    server.control("PATCH", "clock", now="2026-01-02T03:04:05")
    project.capture({"event": "$groupidentify", "distinct_id": "x", "properties": GROUP})
    told = server.control("PATCH", "clock", now=None)["now"]
    project.capture({"event": "now", "distinct_id": "x"})

    then, now = (row[0] for row in project.events("toString(created_at)"))
    assert then.startswith("2026-01-02 03:04:")
    assert now[:10] == told[:10] > "2026-01-02"
    ((changed_at,),) = server.sql(f"SELECT toString(_timestamp) FROM groups WHERE team_id = {project.id}")
    assert changed_at.startswith("2026-01-02 03:04:")
    assert server.http.patch("/_emulator/clock", json={"now": "noon"}).status_code == 400
