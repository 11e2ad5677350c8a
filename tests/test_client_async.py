"""Queries in the background: the same answers and errors as in the foreground, with more patience."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthog_source.arrow import read_answer
from posthog_source.client import ASYNC_DEADLINE_S, Client, poll_waits, unwrap_answer
from posthog_source.errors import (
    ApiError,
    AuthenticationError,
    LostQueryError,
    TooHeavyError,
    UnreadableAnswerError,
)
from posthog_source.query import Query
from tests.conftest import FakeTime, Project, client_of

NASTY = r"""a"b\c{"results":{[}\u0000 ключ"""
ONE = Query("SELECT {text} AS text, toString(1) AS one LIMIT 1", {"text": NASTY}, "one")
ENDLESS = Query(
    "SELECT toString(count()) AS n FROM numbers(1000000000000) WHERE cityHash64(number) = 1 LIMIT 1",
    {},
    "endless",
)
SILENT_FAILURE = {"status": 500, "body": {"query_status": {"error": True, "error_message": None}}}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text()
    | st.sampled_from(["{", '"}', "\\", "results", NASTY]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@dataclass
class DoneTime(FakeTime):
    """Whoever sleeps wakes up when PostHog has done what was asked for last."""

    project: Project | None = None

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        while not self.is_done():
            pass

    def is_done(self) -> bool:
        assert self.project is not None
        last = submitted(self.project)[-1]
        return "fault" in last or last.get("result_rows") is not None


class FailedTime(DoneTime):
    """Whoever sleeps wakes up when PostHog has failed with what was asked for last."""

    def is_done(self) -> bool:
        assert self.project is not None
        return self.project.get(f"query/{submitted(self.project)[-1]['client_query_id']}/").status_code != 202


@pytest.fixture
def client(busy_project: Project) -> Iterator[Client]:
    with client_of(busy_project, DoneTime(project=busy_project), max_attempts=4) as client:
        yield client


def submitted(project: Project) -> list[dict[str, Any]]:
    return [request for request in project.requests() if request["method"] == "POST"]


def ask(client: Client, query: Query = ONE) -> list[tuple[str | None, ...]]:
    return client.query_async(query, read_answer).cells()


def test_an_answer_from_the_background_is_the_one_of_the_foreground(
    busy_project: Project, client: Client
) -> None:
    assert ask(client) == client.query(ONE, read_answer).cells() == [(NASTY, "1")]


@pytest.mark.parametrize("columns", [1, 2])
def test_cells_that_are_no_text_come_through_as_well(client: Client, columns: int) -> None:
    query = Query(
        f"SELECT {', '.join('number' for _ in range(columns))} FROM numbers(3) LIMIT 3", {}, "numbers"
    )

    assert ask(client, query) == [(str(n),) * columns for n in range(3)]


def test_each_query_in_the_background_is_a_new_one_and_none_is_cached(
    busy_project: Project, client: Client
) -> None:
    for _ in range(3):
        ask(client)

    requests = submitted(busy_project)
    assert len({request["client_query_id"] for request in requests}) == 3
    assert not any(request["is_cached"] for request in requests)
    assert {request["status"] for request in requests} == {202}


def test_polls_come_after_1_2_4_8_and_then_each_15_seconds() -> None:
    assert list(itertools.islice(poll_waits(), 7)) == [1, 2, 4, 8, 15, 15, 15]


def test_a_query_that_is_never_done_is_too_heavy_and_stopped(
    busy_project: Project, fake_time: FakeTime
) -> None:
    busy_project.settings(async_timeout_s=20)
    with (
        client_of(busy_project, fake_time) as client,
        pytest.raises(TooHeavyError, match="not done") as failure,
    ):
        ask(client, ENDLESS)

    assert "\n" not in str(failure.value)
    assert ASYNC_DEADLINE_S <= sum(fake_time.slept_s) < ASYNC_DEADLINE_S + 15
    assert fake_time.slept_s[:6] == [1, 2, 4, 8, 15, 15]
    methods = [request["method"] for request in busy_project.requests()]
    assert methods == ["POST", *["GET"] * len(fake_time.slept_s), "DELETE"]


def test_a_query_too_heavy_for_the_background_too_is_too_heavy_in_posthogs_words(
    busy_project: Project,
) -> None:
    busy_project.settings(async_timeout_s=0.1)
    with (
        client_of(busy_project, FailedTime(project=busy_project)) as client,
        pytest.raises(TooHeavyError, match=r"PostHog says: .*max execution time") as failure,
    ):
        ask(client, ENDLESS)

    assert failure.value.status == 400
    assert len(submitted(busy_project)) == 1


@pytest.mark.parametrize("fault", [SILENT_FAILURE, {"status": 404}], ids=["failed without a word", "gone"])
def test_a_query_that_is_lost_is_submitted_again_as_a_new_one(
    busy_project: Project, client: Client, fault: dict[str, Any]
) -> None:
    busy_project.faults("query", fault, method="GET")

    assert ask(client) == [(NASTY, "1")]
    first, second = submitted(busy_project)
    assert first["client_query_id"] != second["client_query_id"]


@pytest.mark.parametrize("fault", [SILENT_FAILURE, {"status": 404}], ids=["failed without a word", "gone"])
def test_a_query_that_is_lost_each_time_is_told_after_a_bounded_number_of_tries(
    busy_project: Project, client: Client, fault: dict[str, Any]
) -> None:
    busy_project.faults("query", {**fault, "times": 99}, method="GET")

    with pytest.raises(LostQueryError) as failure:
        ask(client)

    assert "\n" not in str(failure.value)
    assert len(submitted(busy_project)) == 4


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 502, "body": "<html>"},
        {"status": 500},
        {"kind": "reset"},
        {"kind": "cut", "after_bytes": 40},
        {"kind": "not_json"},
        {"status": 429, "headers": {"Retry-After": "5"}},
        {"status": 429},
    ],
    ids=str,
)
def test_a_fault_on_the_way_of_a_poll_is_polled_again_and_the_query_goes_on(
    busy_project: Project, client: Client, fault: dict[str, Any]
) -> None:
    busy_project.faults("query", fault, method="GET")

    assert ask(client) == [(NASTY, "1")]
    assert len(submitted(busy_project)) == 1


def test_polls_that_meet_faults_only_end_after_as_many_tries_as_any_request(
    busy_project: Project, fake_time: FakeTime
) -> None:
    busy_project.faults("query", {"status": 502, "times": 99}, method="GET")
    with client_of(busy_project, fake_time, max_attempts=4) as client, pytest.raises(ApiError):
        ask(client)

    methods = [request["method"] for request in busy_project.requests()]
    assert methods == ["POST", *["GET"] * 4]


def test_a_fault_at_submission_is_met_as_any_other(busy_project: Project, client: Client) -> None:
    busy_project.faults("query", {"status": 503}, {"status": 429}, {"kind": "reset"}, method="POST")

    assert ask(client) == [(NASTY, "1")]


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_refusal_stands_whenever_it_comes(busy_project: Project, fake_time: FakeTime, method: str) -> None:
    busy_project.faults("query", {"status": 401}, method=method)
    with client_of(busy_project, fake_time) as client, pytest.raises(AuthenticationError):
        ask(client)

    assert len(submitted(busy_project)) == 1


def test_polls_count_against_the_limits_of_queries(busy_project: Project, fake_time: FakeTime) -> None:
    busy_project.settings(async_timeout_s=20)
    with client_of(busy_project, fake_time, queries_per_minute=1) as client, pytest.raises(TooHeavyError):
        ask(client, ENDLESS)

    polls = len([request for request in busy_project.requests() if request["method"] == "GET"])
    assert sum(fake_time.slept_s) >= 60 * polls


@given(
    answer=st.dictionaries(st.text(), json_values, max_size=4), members=st.dictionaries(st.text(), st.text())
)
@settings(deadline=None, max_examples=60)
def test_an_answer_is_taken_out_of_its_status_byte_for_byte(answer: dict[str, Any], members: Any) -> None:
    members.pop("results", None)
    inside = orjson.dumps({**answer, "results": []})
    before, after = orjson.dumps({**members, "id": 1})[1:-1], orjson.dumps({**members, "end": None})[1:-1]
    body = b'{"query_status":{' + before + b',"results":' + inside + b"," + after + b"}}"

    assert orjson.loads(body)["query_status"]["results"] == orjson.loads(inside)
    assert unwrap_answer(body) == inside


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"<html>",
        b'{"query_status": {"results": null}}',
        b'{"query_status": {"results": {"results": [["}"]]',
        b'{"query_status": {"results": {"results": [["}}',
    ],
)
def test_a_status_without_a_whole_answer_is_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableAnswerError):
        unwrap_answer(body)
