"""Random faults: seeded, counted, complete."""

from __future__ import annotations

import random
from collections import Counter
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from posthog_emulator.storm import ANYWHERE, KINDS, Storm
from tests.emulator.asking import add_events, ask
from tests.emulator.conftest import Project, Server

TEXT = "SELECT uuid, event FROM events LIMIT 10"


@pytest.fixture
def stormy(busy_project: Project) -> Project:
    add_events(busy_project, 10)
    return busy_project


def raise_storm(project: Project, **body: Any) -> None:
    project.control("POST", "storm", **{"path": "query", "probability": 1.0, "drip_s": 0.01} | body)


def seen(project: Project) -> str:
    """What one query got, as a client would name it."""
    try:
        answer = ask(project, TEXT)
    except httpx.ReadError:
        return "reset"
    except httpx.RemoteProtocolError:
        return "cut"
    return f"{answer.status_code} {answer.headers.get('Retry-After', '')}".strip()


def test_a_storm_is_the_same_for_a_seed_and_another_for_another(server: Server) -> None:
    limits = {"api_queries": [10**6, 10**6]}
    outcomes = []
    for seed in (7, 7, 8):
        project = server.project(settings={"rate_limits": limits})
        add_events(project, 10)
        raise_storm(project, probability=0.5, seed=seed, kinds=["500", "503_seconds", "reset", "cut"])
        outcomes.append([seen(project) for _ in range(40)])
    assert outcomes[0] == outcomes[1] != outcomes[2]
    assert set(outcomes[0]) == {"200", "500", "503 1", "reset", "cut"}


def test_a_storm_strikes_as_often_as_it_should_and_counts_what_it_did(stormy: Project) -> None:
    raise_storm(stormy, probability=0.2, kinds=["500", "429_bare", "513"])
    outcomes = Counter(seen(stormy) for _ in range(200))
    counts = stormy.control("GET", "storm")
    assert counts["requests"] == 200
    assert 20 <= counts["faults"] <= 60
    assert counts["served"] == {"429_bare": outcomes["429"], "500": outcomes["500"], "513": outcomes["513"]}
    assert counts["faults"] == 200 - outcomes["200"]
    assert sum("fault" in entry for entry in stormy.requests()) == counts["faults"]


def test_every_kind_is_drawn() -> None:
    storm = Storm(probability=1.0)
    assert {drawn[0] for _ in range(1000) if (drawn := storm.next_kind("query"))} == set(KINDS)
    assert {drawn[0] for _ in range(1000) if (drawn := storm.next_kind("cohorts"))} == set(ANYWHERE)


def test_what_a_request_gets_depends_on_its_number_alone() -> None:
    asked = ["query", "cohorts", "query/one"] * 10
    first, second = Storm(probability=0.5, seed=3), Storm(probability=0.5, seed=3)
    expected = [first.next_kind("query") is None for _ in asked]
    assert [second.next_kind(resource) is None for resource in asked] == expected


@pytest.mark.parametrize(
    ("kind", "status", "retry_after"),
    [
        ("429_seconds", 429, "3"),
        ("429_bare", 429, None),
        ("500", 500, None),
        ("503", 503, None),
        ("503_seconds", 503, "3"),
        ("504", 504, None),
        ("512", 512, None),
        ("513", 513, None),
    ],
)
def test_a_storms_refusals_are_posthogs(
    stormy: Project, kind: str, status: int, retry_after: str | None
) -> None:
    raise_storm(stormy, kinds=[kind], retry_after_s=3)
    answer = ask(stormy, TEXT)
    assert (answer.status_code, answer.headers.get("Retry-After")) == (status, retry_after)
    assert set(answer.json()) == {"type", "code", "detail", "attr"}


def test_a_date_to_come_back_at_is_never_too_early(stormy: Project) -> None:
    raise_storm(stormy, kinds=["429_date"], retry_after_s=3)
    answer = ask(stormy, TEXT)
    asked_at = parsedate_to_datetime(answer.headers["Date"])
    assert answer.status_code == 429
    assert 3 <= (parsedate_to_datetime(answer.headers["Retry-After"]) - asked_at).total_seconds() <= 5


def test_a_gateway_answers_in_html(stormy: Project) -> None:
    raise_storm(stormy, kinds=["502_html"])
    answer = ask(stormy, TEXT)
    assert (answer.status_code, answer.headers["Content-Type"]) == (502, "text/html")
    assert answer.text.startswith("<html>")


def test_errors_hide_in_answers_that_say_200(stormy: Project) -> None:
    raise_storm(stormy, kinds=["error_field"])
    hidden = ask(stormy, TEXT)
    assert (hidden.status_code, hidden.json()["results"]) == (200, [])
    assert hidden.json()["error"]
    raise_storm(stormy, kinds=["error_envelope"])
    envelope = ask(stormy, TEXT)
    assert (envelope.status_code, envelope.json()["type"]) == (200, "server_error")
    raise_storm(stormy, kinds=["not_json"])
    page = ask(stormy, TEXT)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html")


def test_a_stale_answer_says_so_and_lacks_the_newest_row(stormy: Project) -> None:
    raise_storm(stormy, kinds=["stale"])
    stale = ask(stormy, TEXT).json()
    assert (stale["is_cached"], len(stale["results"])) == (True, 9)


def test_a_stale_answer_to_a_poll_says_so_where_the_rows_are(stormy: Project) -> None:
    ask(stormy, TEXT, refresh="force_async", client_query_id="one")
    raise_storm(stormy, kinds=["stale"])
    while (polled := stormy.get("query/one/")).status_code == 202:
        pass
    nested = polled.json()["query_status"]["results"]
    assert (nested["is_cached"], len(nested["results"])) == (True, 9)


def test_a_drip_loses_nothing(stormy: Project) -> None:
    raise_storm(stormy, kinds=["drip"])
    assert len(ask(stormy, TEXT).json()["results"]) == 10


def test_an_answer_that_is_no_answer_cannot_be_stale_and_is_not_counted(stormy: Project) -> None:
    raise_storm(stormy, kinds=["stale", "error_field"])
    refused = ask(stormy, "SELECT nope FROM events")
    assert refused.status_code == 400
    assert stormy.control("GET", "storm") == {"requests": 1, "faults": 0, "served": {}}


def test_a_scripted_fault_comes_first_and_other_paths_are_spared(stormy: Project) -> None:
    stormy.faults("query", {"status": 402})
    raise_storm(stormy, kinds=["500"], method="POST")
    assert [seen(stormy), seen(stormy)] == ["402", "500"]
    assert stormy.get("cohorts/").status_code == 200
    assert stormy.get("query/unknown/").status_code == 404
    assert stormy.control("GET", "storm")["requests"] == 1


def test_a_storm_ends_and_tells_what_it_did(stormy: Project) -> None:
    raise_storm(stormy, kinds=["500"])
    assert seen(stormy) == "500"
    assert stormy.control("DELETE", "storm") == {"requests": 1, "faults": 1, "served": {"500": 1}}
    assert seen(stormy) == "200"
    assert stormy.control("GET", "storm") == {"requests": 0, "faults": 0, "served": {}}


def test_no_global_chance_takes_part() -> None:
    random.seed(1)
    first = [Storm(probability=0.5).next_kind("query") for _ in range(3)]
    random.seed(2)
    assert [Storm(probability=0.5).next_kind("query") for _ in range(3)] == first


@pytest.mark.parametrize("body", [{"kinds": ["418"]}, {"probability": 2}, {"colour": "red"}])
def test_a_storm_that_cannot_be_is_refused(server: Server, project: Project, body: dict[str, Any]) -> None:
    answer = server.http.post(f"/_emulator/projects/{project.id}/storm", json=body)
    assert answer.status_code == 400
