"""Scripted faults, as a client sees them."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.emulator.asking import ask, rows
from tests.emulator.conftest import Project, Server, bearer


@pytest.fixture
def listed(project: Project) -> Project:
    """A project whose insight list has ten rows."""
    project.control("POST", "insights", items=[{"name": f"insight {n} {'x' * 400}"} for n in range(10)])
    return project


def fetch(project: Project) -> httpx.Response:
    return project.get("insights/", order="id")


def test_faults_are_given_out_in_order_one_a_request(listed: Project) -> None:
    listed.faults(
        "insights", {"status": 500}, {"pass": True}, {"status": 503, "headers": {"Retry-After": "1"}}
    )
    assert [fetch(listed).status_code for _ in range(4)] == [500, 200, 503, 200]
    assert listed.control("GET", "faults") == {"remaining": 0, "fired": 2}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, "throttled_error"), (401, "authentication_error"), (402, "server_error"), (504, "server_error")],
)
def test_a_status_comes_in_posthogs_envelope(listed: Project, status: int, kind: str) -> None:
    listed.faults("insights", {"status": status, "headers": {"Retry-After": "2"}})
    answer = fetch(listed)
    assert answer.status_code == status
    assert answer.headers["Retry-After"] == "2"
    assert answer.json()["type"] == kind


def test_a_status_can_have_a_body_of_its_own(listed: Project) -> None:
    listed.faults("insights", {"status": 402, "body": {"code": "quota_limit_exceeded"}})
    assert fetch(listed).json() == {"code": "quota_limit_exceeded"}


def test_a_fault_waits_for_its_method_and_its_path(listed: Project) -> None:
    listed.faults("insights", {"status": 500}, method="POST")
    listed.faults("cohorts", {"status": 502})
    assert fetch(listed).status_code == 200
    assert listed.get("cohorts/").status_code == 502
    assert listed.control("GET", "faults") == {"remaining": 1, "fired": 1}
    listed.control("DELETE", "faults")
    assert listed.control("GET", "faults") == {"remaining": 0, "fired": 0}


def test_a_reset_closes_the_connection_without_an_answer(server: Server, listed: Project) -> None:
    listed.faults("insights", {"kind": "reset"})
    with pytest.raises(httpx.ReadError, match="reset"):
        fetch(listed)
    assert fetch(listed).status_code == 200
    assert [entry["status"] for entry in listed.requests()] == [None, 200]


def test_a_cut_answer_promises_more_than_it_sends(listed: Project) -> None:
    listed.settings(gzip=False)
    whole = fetch(listed)
    listed.faults("insights", {"kind": "cut", "after_bytes": 1000})
    with pytest.raises(
        httpx.RemoteProtocolError, match=rf"received 1000 bytes, expected {len(whole.content)}"
    ):
        fetch(listed)
    assert fetch(listed).content == whole.content


def test_a_compressed_answer_is_cut_too(listed: Project) -> None:
    listed.faults("insights", {"kind": "cut", "after_bytes": 100})
    with pytest.raises(httpx.RemoteProtocolError):
        fetch(listed)


def test_a_drip_takes_its_time_and_loses_nothing(listed: Project) -> None:
    whole = fetch(listed).json()
    listed.faults("insights", {"kind": "drip", "seconds": 0.2})
    started = time.monotonic()
    assert fetch(listed).json() == whole
    assert time.monotonic() - started >= 0.2


def test_a_page_of_html_instead_of_json(listed: Project) -> None:
    listed.faults("insights", {"kind": "not_json", "body": "<html>login</html>"})
    answer = fetch(listed)
    assert answer.status_code == 200
    assert answer.text == "<html>login</html>"


def test_a_fault_of_rows_waits_for_an_answer_that_has_some(project: Project) -> None:
    two = "SELECT number FROM numbers(2)"
    project.faults("query", {"kind": "drop_rows", "rows": 1})

    assert ask(project, two, refresh="force_async").status_code == 202
    assert project.control("GET", "faults") == {"remaining": 1, "fired": 0}
    assert rows(project, two) == [[0]]


def test_a_lying_server_leaves_out_its_last_rows(listed: Project) -> None:
    listed.faults("insights", {"kind": "drop_rows", "rows": 3})
    lied, truth = fetch(listed).json(), fetch(listed).json()
    assert len(truth["results"]) == 10
    assert lied["results"] == truth["results"][:7]
    assert lied["count"] == 10


def test_a_stale_answer_says_that_it_is_cached(listed: Project) -> None:
    listed.faults("insights", {"kind": "stale"})
    assert fetch(listed).json()["is_cached"] is True
    assert "is_cached" not in fetch(listed).json()


def test_too_many_rows_fail_and_fewer_do_not_use_the_fault_up(listed: Project) -> None:
    listed.faults("insights", {"status": 504, "over_rows": 5, "times": 2})
    assert listed.get("insights/", limit="5").status_code == 200
    assert listed.control("GET", "faults") == {"remaining": 2, "fired": 0}
    assert [fetch(listed).status_code for _ in range(3)] == [504, 504, 200]
    assert listed.control("GET", "faults") == {"remaining": 0, "fired": 2}


def test_a_fault_comes_before_keys_and_limits(server: Server, listed: Project) -> None:
    listed.faults("insights", {"status": 502})
    assert listed.get("insights/", key="phx_wrong").status_code == 502
    assert listed.get("insights/", key="phx_wrong").status_code == 401


def test_capture_can_fail_as_well(listed: Project) -> None:
    listed.faults("batch", {"status": 503})
    assert listed.capture({"event": "a", "distinct_id": "x"}).status_code == 503
    assert listed.capture({"event": "a", "distinct_id": "x"}).status_code == 200
    assert listed.events("event") == [["a"]]


def test_current_meets_the_faults_of_its_project(server: Server, listed: Project) -> None:
    listed.faults("insights", {"status": 500})
    answer = server.http.get("/api/projects/@current/insights/", headers=bearer(listed.api_key))
    assert answer.status_code == 500


def test_what_cannot_be_played_is_refused(server: Server, project: Project) -> None:
    for fault in ({"kind": "explode"}, {"status": 500, "colour": "red"}, {"kind": "cut"}, {}):
        answer = server.http.post(
            f"/_emulator/projects/{project.id}/faults", json={"path": "query", "faults": [fault]}
        )
        assert answer.status_code == 400
