"""What the socket does about every failure, in no time: the clock is ours."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from uuid import uuid4

import pytest

from posthog_source.arrow import read_answer
from posthog_source.catalog import EVENTS
from posthog_source.catalog import TABLES as CATALOGUE
from posthog_source.client import FIRST_CONTACT_TRIES, Client, Usage
from posthog_source.errors import (
    AccessDeniedError,
    ApiError,
    AuthenticationError,
    ConnectionFailedError,
    DeadlineError,
    NotFoundError,
    PosthogSourceError,
    QueryRefusedError,
    QuotaSpentError,
    RedirectedError,
    ServerError,
    StaleAnswerError,
    StuckCursorError,
    TooHeavyError,
    UnreachableError,
    UnreadableAnswerError,
)
from posthog_source.query import Query
from posthog_source.rate_limit import GOOD_ANSWERS_PER_PLACE
from posthog_source.tables import Table
from tests.conftest import FakeTime, Project, Server, Warehouse, client_of

ONE = Query("SELECT toString(1) AS one LIMIT 1", {}, "one")

REFUSALS: dict[int, type[ApiError]] = {
    400: QueryRefusedError,
    401: AuthenticationError,
    402: QuotaSpentError,
    403: AccessDeniedError,
    404: NotFoundError,
    418: QueryRefusedError,
    301: RedirectedError,
    307: RedirectedError,
    504: TooHeavyError,
    512: TooHeavyError,
    513: TooHeavyError,
}
"""Asking again would change nothing."""

PASSING: dict[str, tuple[dict[str, Any], type[PosthogSourceError]]] = {
    "500": ({"status": 500}, ServerError),
    "502 from a proxy": ({"status": 502, "body": "<html>Bad gateway</html>"}, ServerError),
    "503": ({"status": 503}, ServerError),
    "reset": ({"kind": "reset"}, ConnectionFailedError),
    "cut": ({"kind": "cut", "after_bytes": 30}, ConnectionFailedError),
    "html": ({"kind": "not_json"}, UnreadableAnswerError),
    "empty": ({"status": 200, "body": ""}, UnreadableAnswerError),
    "null": ({"status": 200, "body": "null"}, UnreadableAnswerError),
    "half": ({"status": 200, "body": '{"results": [["1"'}, UnreadableAnswerError),
    "other": ({"status": 200, "body": {"detail": "ok"}}, UnreadableAnswerError),
    "error inside": ({"status": 200, "body": {"error": "timeout"}}, UnreadableAnswerError),
    "no gzip": (
        {"status": 200, "headers": {"Content-Encoding": "gzip"}, "body": "plain"},
        UnreadableAnswerError,
    ),
    "stale": ({"kind": "stale"}, StaleAnswerError),
}
"""Asking again helps."""


@pytest.fixture
def client(project: Project, fake_time: FakeTime) -> Iterator[Client]:
    with client_of(project, fake_time, max_attempts=4) as client:
        yield client


def ask(client: Client) -> list[tuple[str | None, ...]]:
    return client.query(ONE, read_answer).cells()


@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_stands_at_once(project: Project, client: Client, fake_time: FakeTime, status: int) -> None:
    project.faults("query", {"status": status, "times": 9})

    with pytest.raises(REFUSALS[status], match=rf"PostHog answered {status} to POST .*query/ \(one\): ") as e:
        ask(client)

    assert e.value.status == status
    assert "\n" not in str(e.value)
    assert len(project.requests()) == 1
    assert fake_time.slept_s == []


def test_a_query_that_reads_too_much_is_too_heavy_though_it_is_a_400(
    project: Project, client: Client
) -> None:
    project.faults("query", {"status": 400, "body": {"code": "too_many_bytes", "detail": "x"}})

    with pytest.raises(TooHeavyError):
        ask(client)


def test_an_error_under_200_is_no_object_and_asked_again(project: Project, client: Client) -> None:
    project.faults("surveys/responses_count", {"kind": "error_envelope", "times": 2})

    assert client.get("surveys/responses_count/") == {}
    assert len(project.requests()) == 3


def test_a_missing_scope_is_named(server: Server, project: Project, fake_time: FakeTime) -> None:
    key = server.key(["insight:read"], [project.id])
    with (
        client_of(project, fake_time, api_key=key) as client,
        pytest.raises(AccessDeniedError, match="'cohort:read'"),
    ):
        client.get("cohorts/")


def test_a_redirect_is_not_followed_but_told(project: Project, client: Client) -> None:
    project.faults("query", {"status": 308, "headers": {"Location": f"{project.server.url}/elsewhere"}})

    with pytest.raises(RedirectedError, match=f"{project.server.url}/elsewhere"):
        ask(client)

    assert len(project.requests()) == 1


@pytest.mark.parametrize("case", PASSING)
def test_a_passing_fault_is_asked_again_and_forgotten(
    project: Project, client: Client, fake_time: FakeTime, case: str
) -> None:
    fault, _ = PASSING[case]
    project.faults("query", fault)

    assert ask(client) == [("1",)]
    assert len(project.requests()) == 2
    assert len(fake_time.slept_s) == 1


@pytest.mark.parametrize("case", PASSING)
def test_a_fault_that_stays_is_told_after_a_bounded_number_of_tries(
    project: Project, client: Client, fake_time: FakeTime, case: str
) -> None:
    fault, kind = PASSING[case]
    project.faults("query", {**fault, "times": 99})

    with pytest.raises(kind) as failure:
        ask(client)

    assert "\n" not in str(failure.value)
    assert len(project.requests()) == 4
    assert len(fake_time.slept_s) == 3


def test_of_several_faults_the_last_is_told(project: Project, client: Client) -> None:
    project.faults("query", {"status": 500}, {"kind": "reset"}, {"kind": "not_json"}, {"status": 503})

    with pytest.raises(ServerError) as failure:
        ask(client)

    assert failure.value.status == 503


def test_waits_between_tries_vary_and_are_bounded(project: Project, fake_time: FakeTime) -> None:
    project.faults("query", {"status": 502, "times": 30})
    with client_of(project, fake_time, max_attempts=30) as client, pytest.raises(ServerError):
        ask(client)

    assert len(set(fake_time.slept_s)) > 20
    assert max(fake_time.slept_s) <= 30
    assert max(fake_time.slept_s[-10:]) > max(fake_time.slept_s[:2])


def test_an_answer_slower_than_the_time_out_is_stopped_and_asked_for_again(
    project: Project, fake_time: FakeTime
) -> None:
    project.faults("query", {"kind": "drip", "seconds": 20})
    with client_of(project, fake_time, query_timeout_s=0.3) as client:
        assert ask(client) == [("1",)]

    first, stopped, second = project.requests()
    assert stopped["method"] == "DELETE"
    assert stopped["path"].endswith(f"/query/{first['client_query_id']}/")
    assert second["client_query_id"] != first["client_query_id"]


def test_an_answer_that_comes_slowly_is_awaited(project: Project, client: Client) -> None:
    project.faults("query", {"kind": "drip", "seconds": 0.3})

    assert ask(client) == [("1",)]
    assert len(project.requests()) == 1


def test_a_host_where_nobody_listens_is_told_with_what_to_check(
    project: Project, fake_time: FakeTime
) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with (
            client_of(project, fake_time, host=host) as client,
            pytest.raises(UnreachableError, match=rf"{host}: .*refused.*Check host and network"),
        ):
            ask(client)

    assert len(fake_time.slept_s) == FIRST_CONTACT_TRIES - 1


def test_a_host_that_has_answered_before_is_tried_as_long_as_any_other_fault_is(
    project: Project, fake_time: FakeTime
) -> None:
    server = HTTPServer(("127.0.0.1", 0), AnswersOnce)
    host = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    with client_of(project, fake_time, host=host, max_attempts=6) as client:
        assert client.metered().get("insights/") == {"results": []}
        thread.join(timeout=20)
        server.server_close()
        with pytest.raises(UnreachableError):
            client.get("insights/")
        assert len(fake_time.slept_s) == 5
        with pytest.raises(UnreachableError):
            client.metered().get("insights/")

    assert len(fake_time.slept_s) == 10


class AnswersOnce(BaseHTTPRequestHandler):
    """An empty list, and the connection is closed."""

    def do_GET(self) -> None:
        body = b'{"results": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Not to the terminal."""


@pytest.mark.parametrize("seconds", [0, 1, 77, 2_202])
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_in_seconds_is_kept_to_the_second(
    project: Project, client: Client, fake_time: FakeTime, status: int, seconds: int
) -> None:
    project.faults("query", {"status": status, "headers": {"Retry-After": str(seconds)}})

    assert ask(client) == [("1",)]
    assert sum(fake_time.slept_s) == seconds


@pytest.mark.parametrize("seconds", [120, 2_202])
def test_a_wait_until_a_date_is_kept(
    project: Project, client: Client, fake_time: FakeTime, seconds: int
) -> None:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    header = format_datetime(at, usegmt=True)
    project.faults("query", {"status": 429, "headers": {"Retry-After": header}})

    assert ask(client) == [("1",)]
    assert seconds - 10 < sum(fake_time.slept_s) <= seconds


def test_a_429_that_names_no_wait_is_met_with_growing_ones(project: Project, fake_time: FakeTime) -> None:
    project.faults("query", {"status": 429, "times": 6})
    with client_of(project, fake_time, max_attempts=2) as client:
        assert ask(client) == [("1",)]

    assert fake_time.slept_s == [30, 60, 120, 240, 300, 300]


def test_waits_that_posthog_asks_for_do_not_use_up_tries(project: Project, fake_time: FakeTime) -> None:
    busy = {"status": 429, "headers": {"Retry-After": "1"}, "times": 12}
    project.faults("query", busy, {"status": 500}, {**busy, "times": 5})
    with client_of(project, fake_time, max_attempts=2) as client:
        assert ask(client) == [("1",)]


@pytest.mark.parametrize(
    ("headers", "slept_s"), [({"Retry-After": "3600"}, []), ({"Retry-After": "40"}, [40, 40]), ({}, [30, 60])]
)
def test_a_wait_beyond_the_deadline_is_an_error_that_says_so(
    project: Project, fake_time: FakeTime, headers: dict[str, str], slept_s: list[float]
) -> None:
    project.faults("query", {"status": 429, "headers": headers, "times": 99})
    with (
        client_of(project, fake_time, wait_deadline_s=100) as client,
        pytest.raises(DeadlineError, match="wait_deadline_s = 100") as failure,
    ):
        ask(client)

    assert "\n" not in str(failure.value)
    assert fake_time.slept_s == slept_s


def test_the_deadline_error_says_when_the_wait_would_end(project: Project, fake_time: FakeTime) -> None:
    project.faults("query", {"status": 429, "headers": {"Retry-After": "3600"}})
    before = datetime.now(UTC).replace(microsecond=0)
    with client_of(project, fake_time, wait_deadline_s=10) as client, pytest.raises(DeadlineError) as failure:
        ask(client)

    wait = timedelta(hours=1)
    (text,) = re.findall(r"until (\S+ \S+) UTC", str(failure.value))
    assert before + wait <= datetime.fromisoformat(f"{text}+00:00") <= datetime.now(UTC) + wait


def test_where_posthog_does_not_say_until_when_the_deadline_error_has_its_words_and_names_a_quota(
    project: Project, fake_time: FakeTime
) -> None:
    project.faults("query", {"status": 429, "body": {"detail": "Team has no more API bytes"}})
    with (
        client_of(project, fake_time, wait_deadline_s=10) as client,
        pytest.raises(DeadlineError, match=r"a quota is spent.*Team has no more API bytes"),
    ):
        ask(client)


@dataclass
class Meanwhile(FakeTime):
    """While the first sleeper sleeps, another thread does something."""

    do: Any = None
    slept_meanwhile_s: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        if self.do is None:
            self.slept_meanwhile_s.append(seconds)
        else:
            do, self.do = self.do, None
            thread = threading.Thread(target=do)
            thread.start()
            thread.join(timeout=20)
        super().sleep(seconds)


def test_a_429_holds_all_threads(project: Project) -> None:
    time = Meanwhile()
    others: list[object] = []
    project.faults("query", {"status": 429, "headers": {"Retry-After": "50"}})
    with client_of(project, time) as client:
        time.do = lambda: others.append(ask(client))
        ask(client)

    assert others == [[("1",)]]
    assert time.slept_meanwhile_s[0] == 50


@dataclass
class TogetherTime(FakeTime):
    """Sleeps only with company."""

    together: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))

    def sleep(self, seconds: float) -> None:
        self.together.wait(timeout=20)
        super().sleep(seconds)


def test_who_waits_for_the_place_of_one_that_is_told_to_wait_waits_too(project: Project) -> None:
    time = TogetherTime()
    project.settings(latency_s=0.1)
    project.faults("query", {"status": 429, "headers": {"Retry-After": "50"}})
    with client_of(project, time, look_ahead=1) as client, ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: ask(client), range(2)))

    assert answers == [[("1",)]] * 2
    assert time.slept_s == [50, 50]


def test_a_429_that_names_no_wait_leaves_one_question_open_at_a_time_for_a_while(project: Project) -> None:
    project.settings(latency_s=0.02)
    time = FakeTime()
    with client_of(project, time, look_ahead=3) as client, ThreadPoolExecutor(6) as threads:
        project.faults("query", {"status": 429})
        ask(client)
        project.forget_requests()
        list(threads.map(lambda _: ask(client), range(GOOD_ANSWERS_PER_PLACE - 2)))
        narrow = project.stats()["max_concurrent_queries"]
        list(threads.map(lambda _: ask(client), range(3 * GOOD_ANSWERS_PER_PLACE)))
        wide = project.stats()["max_concurrent_queries"]

    assert (narrow, wide) == (1, 3)


def test_no_more_questions_are_open_than_look_ahead_however_many_threads_ask(
    project: Project, fake_time: FakeTime
) -> None:
    project.settings(latency_s=0.05)
    with client_of(project, fake_time, look_ahead=2) as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(client), range(12)))

    assert answers == [[("1",)]] * 12
    assert project.stats()["max_concurrent_queries"] == 2


def test_no_more_questions_are_open_than_look_ahead_however_many_tables_are_read(
    project: Project, warehouse: Warehouse
) -> None:
    project.generate(events=1_000, persons=300, days=2, properties_bytes=10)
    project.settings(latency_s=0.02)

    warehouse.sync(project, events={"page_rows": 200}, people={"page_rows": 100}, look_ahead=2)

    stats = project.stats()
    assert stats["queries"] > 20
    assert stats["max_concurrent_queries"] == 2


def test_a_real_limit_on_concurrent_queries_is_never_met(project: Project, warehouse: Warehouse) -> None:
    project.generate(events=1_000, persons=300, days=2, properties_bytes=10)
    project.settings(organization_id=str(uuid4()), person_last_seen=True)
    project.settings(max_concurrent_queries=2, concurrency_wait_s=0.0, latency_s=0.02)

    warehouse.sync(project.with_full_key(), events={"page_rows": 300})

    assert set(project.stats()["by_status"]) == {"200"}


def test_questions_stay_inside_the_limits_of_a_minute_and_an_hour(
    project: Project, fake_time: FakeTime
) -> None:
    sent_at = []
    with client_of(project, fake_time, queries_per_minute=5, queries_per_hour=12) as client:
        for _ in range(15):
            ask(client)
            sent_at.append(fake_time.clock())

    for calls, seconds in ((5, 60), (12, 3_600)):
        gaps = [later - at for at, later in zip(sent_at, sent_at[calls:], strict=False)]
        assert min(gaps) >= seconds


def test_a_list_is_followed_to_its_end(project: Project, client: Client) -> None:
    project.control("POST", "insights", items=[{"name": f"insight {n}"} for n in range(7)])

    pages = list(client.list("insights/", {"limit": "3", "order": "id"}))

    assert [len(page["results"]) for page in pages] == [3, 3, 1]  # type: ignore[arg-type]


def test_a_next_page_on_another_host_is_asked_of_our_own(project: Project, client: Client) -> None:
    project.control("POST", "insights", items=[{"name": f"insight {n}"} for n in range(7)])
    lure = "http://198.51.100.7:1/api/projects/1/insights/?limit=3&offset=3&order=id"
    page = {"count": 7, "next": lure, "previous": None, "results": []}
    project.faults("insights", {"status": 200, "body": page})

    pages = list(client.list("insights/", {"limit": "3", "order": "id"}))

    assert [len(page["results"]) for page in pages] == [0, 3, 1]  # type: ignore[arg-type]
    assert len(project.requests()) == 3


def test_a_next_page_that_is_the_page_itself_is_an_error(project: Project, client: Client) -> None:
    again = {"results": [], "next": "https://x.example/?limit=3&order=id"}
    project.faults("insights", {"status": 200, "body": again, "times": 99})

    with pytest.raises(StuckCursorError):
        list(client.list("insights/", {"limit": "3", "order": "id"}))

    assert len(project.requests()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 401},
        {"status": 500},
        {"kind": "reset"},
        {"kind": "not_json"},
        {"kind": "cut", "after_bytes": 9},
    ],
    ids=str,
)
def test_the_key_shows_in_no_error_no_repr_and_no_log(
    project: Project, client: Client, caplog: pytest.LogCaptureFixture, fault: dict[str, Any]
) -> None:
    caplog.set_level(logging.DEBUG)
    project.faults("query", {**fault, "times": 9})

    with pytest.raises(PosthogSourceError) as failure:
        ask(client)

    seen: list[BaseException] = [failure.value]
    while (inner := seen[-1].__cause__ or seen[-1].__context__) is not None:
        seen.append(inner)
    assert project.api_key not in f"{seen!r} {[str(error) for error in seen]} {client!r} {client}"
    assert any(record.name.startswith("httpcore") for record in caplog.records)
    assert project.api_key not in "".join(f"{r.getMessage()} {r.args} {r.exc_text}" for r in caplog.records)


def test_a_client_says_what_its_requests_have_cost(project: Project, client: Client) -> None:
    project.settings(gzip=True)
    busy = {"status": 429, "headers": {"Retry-After": "77"}}
    before = client.usage
    project.faults("query", {"status": 502, "body": "?"}, busy, {"kind": "reset"})
    ask(client)
    client.get("insights/")
    ask(client)
    cost = client.usage - before

    assert before == Usage()
    assert (cost.requests, cost.retries, cost.queries) == (6, 3, 5)
    assert cost.waited_s == 77
    assert 0 < cost.backed_off_s < 10
    assert cost.received_bytes == project.stats()["bytes_sent"] > 0
    assert client.usage - cost == before


def test_what_many_threads_cost_adds_up(busy_project: Project, fake_time: FakeTime) -> None:
    with client_of(busy_project, fake_time) as client, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: ask(client), range(40)))
        usage = client.usage

    assert (usage.requests, usage.queries, usage.retries) == (40, 40, 0)
    assert usage.received_bytes == busy_project.stats()["bytes_sent"]


def test_waits_for_the_limits_of_a_key_are_counted_as_waits(project: Project, fake_time: FakeTime) -> None:
    with client_of(project, fake_time, queries_per_minute=2) as client:
        for _ in range(5):
            ask(client)

        assert client.usage == Usage(
            requests=5, queries=5, waited_s=120, received_bytes=client.usage.received_bytes
        )


def test_every_question_carries_a_name_for_posthogs_query_log_and_an_id_of_its_own(
    project: Project, client: Client
) -> None:
    for _ in range(3):
        ask(client)

    requests = project.requests()
    assert {request["name"] for request in requests} == {"one"}
    assert len({request["client_query_id"] for request in requests}) == 3


def test_times_are_read_and_written_in_utc_whatever_the_projects_zone(
    server: Server, fake_time: FakeTime
) -> None:
    project = server.project(timezone="Asia/Kathmandu")
    text = "SELECT toString(toDateTime64('2026-01-01 00:00:00.000001', 6, 'UTC')) AS at LIMIT 1"
    with client_of(project, fake_time) as client:
        ((at,),) = client.query(Query(text, {}, "at"), read_answer).cells()

    assert at is not None
    assert at.replace("T", " ").rstrip("Z") == "2026-01-01 00:00:00.000001"


@pytest.mark.parametrize("table", CATALOGUE, ids=lambda table: table.name)
def test_every_table_is_refused_without_its_scope_and_the_scope_is_named(
    server: Server, project: Project, warehouse: Warehouse, table: Table
) -> None:
    every = {scope for other in CATALOGUE for scope in other.scopes}
    assert EVENTS in CATALOGUE
    project.control("POST", "cohorts", items=[{"name": "members are asked for", "is_static": True}])

    for scope in table.scopes:
        with pytest.raises(Exception, match=f"'{scope}'"):
            warehouse.sync(project, table.name, api_key=server.key(sorted(every - {scope})))

    warehouse.sync(project, table.name, api_key=server.key(list(table.scopes)))
    assert set(warehouse.counts()) == {table.name}
