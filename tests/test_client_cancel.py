"""What the client gives up, and when: at once, PostHog told, and nothing else harmed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from posthog_source.arrow import read_answer
from posthog_source.client import Client
from posthog_source.config import build_settings
from posthog_source.errors import AuthenticationError, DeadlineError, InterruptedRunError
from posthog_source.prefetch import ordered_prefetch
from posthog_source.query import Query
from tests.conftest import Project

PATIENCE_S = 20.0
"""Only a test that fails waits this long."""

ONE = Query("SELECT toString(1) AS one LIMIT 1", {}, "one")
ENDLESS = Query(
    "SELECT toString(count()) AS n FROM numbers(1000000000000) WHERE cityHash64(number) = 1 LIMIT 1",
    {},
    "endless",
)
AN_HOUR = {"status": 429, "headers": {"Retry-After": "2202"}}


@pytest.fixture
def client(project: Project) -> Iterator[Client]:
    """On the real clock: what is awaited here must not be waited for."""
    project.settings(query_timeout_s=PATIENCE_S)
    with real_client(project) as client:
        yield client


def real_client(project: Project, **settings: Any) -> Client:
    return Client(build_settings(**project.credentials | settings))


def ask(client: Client, query: Query = ONE) -> list[tuple[str | None, ...]]:
    return client.query(query, read_answer).cells()


def until(is_so: Callable[[], object]) -> None:
    """Asks until it is so; each time takes a round trip."""
    give_up = threading.Event()
    timer = threading.Timer(PATIENCE_S, give_up.set)
    timer.start()
    while not is_so():
        assert not give_up.is_set()
    timer.cancel()


def running(project: Project) -> int:
    """Endless queries of the project that ClickHouse works on."""
    of_project = f"Settings['log_comment'] LIKE '{project.id}\\\\_%' AND query LIKE '%cityHash64(%number%'"
    ((count,),) = project.server.sql(f"SELECT count() FROM system.processes WHERE {of_project}")
    return int(count)


def statuses(project: Project) -> list[int]:
    return [request["status"] for request in project.requests()]


def stopped(project: Project) -> list[str]:
    """Ids of the queries that PostHog was told to stop."""
    return [one["path"].split("/")[-2] for one in project.requests() if one["method"] == "DELETE"]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_a_wait_that_posthog_asks_for_ends_when_the_client_is_cancelled(
    project: Project, client: Client, threads: ThreadPoolExecutor
) -> None:
    project.faults("query", AN_HOUR)
    waiting = threads.submit(ask, client)
    until(lambda: statuses(project) == [429])

    client.cancel()

    with pytest.raises(InterruptedRunError):
        waiting.result(PATIENCE_S)


def test_a_cancelled_client_asks_nothing_more(project: Project, client: Client) -> None:
    client.cancel()

    with pytest.raises(InterruptedRunError) as failure:
        ask(client)

    assert "\n" not in str(failure.value)
    assert project.requests() == []


def test_cancelling_stops_the_queries_in_flight_at_posthog(
    project: Project, client: Client, threads: ThreadPoolExecutor
) -> None:
    in_flight = [threads.submit(ask, client, ENDLESS) for _ in range(2)]
    until(lambda: running(project) == 2)

    client.cancel()

    for future in in_flight:
        with pytest.raises(InterruptedRunError):
            future.result(PATIENCE_S)
    until(lambda: running(project) == 0)
    asked = [request["client_query_id"] for request in project.requests() if request["method"] == "POST"]
    assert sorted(stopped(project)) == sorted(asked)


def test_cancelling_one_client_leaves_the_others_of_its_key_alone(
    project: Project, client: Client, threads: ThreadPoolExecutor
) -> None:
    with real_client(project) as other:
        in_flight = threads.submit(ask, client, ENDLESS)
        until(lambda: running(project) == 1)
        client.cancel()

        assert ask(other) == [("1",)]
        with pytest.raises(InterruptedRunError):
            in_flight.result(PATIENCE_S)


def test_a_fatal_error_is_told_at_once_though_the_next_slice_waits_for_an_hour(
    project: Project, client: Client
) -> None:
    project.faults("query", AN_HOUR)
    project.faults("insights", {"status": 401})
    scope = client.cancel_scope()

    def work(item: int) -> object:
        if item == 0:
            until(lambda: 429 in statuses(project))
            return client.get("insights/")
        return ask(client)

    with pytest.raises(AuthenticationError):
        list(ordered_prefetch(scope.bind(work), range(2), depth=2, cancel=scope.cancel))

    assert client.get("insights/")["results"] == []


def test_a_closed_look_ahead_stops_its_queries_and_leaves_their_places_free(
    project: Project, client: Client
) -> None:
    scope = client.cancel_scope()

    def work(item: int) -> object:
        if item == 0:
            return None
        return ask(client, ENDLESS)

    pages = ordered_prefetch(scope.bind(work), range(3), depth=2, cancel=scope.cancel)
    with closing(pages):  # type: ignore[type-var]
        assert next(pages) == (0, None)
        until(lambda: running(project) == 2)

    until(lambda: running(project) == 0)
    assert ask(client) == [("1",)]


def test_work_outside_a_cancelled_scope_goes_on(
    project: Project, client: Client, threads: ThreadPoolExecutor
) -> None:
    scope = client.cancel_scope()
    given_up = threads.submit(scope.bind(ask), client, ENDLESS)
    until(lambda: running(project) == 1)
    kept = threads.submit(ask, client, ENDLESS)
    until(lambda: running(project) == 2)

    scope.cancel()

    with pytest.raises(InterruptedRunError):
        given_up.result(PATIENCE_S)
    until(lambda: running(project) == 1)
    assert len(stopped(project)) == 1
    assert not kept.done()
    client.cancel()


def test_a_thread_that_served_a_cancelled_scope_serves_others(project: Project, client: Client) -> None:
    scope = client.cancel_scope()
    scope.cancel()

    with pytest.raises(InterruptedRunError):
        scope.bind(ask)(client)

    assert ask(client) == [("1",)]


def interrupt_when(is_so: Callable[[], object], threads: ThreadPoolExecutor) -> Future[None]:
    """Presses Ctrl-C once it is so."""
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        until(is_so)
        signal.pthread_kill(main, signal.SIGINT)

    return threads.submit(press)


def test_ctrl_c_stops_the_query_in_flight_at_posthog(
    project: Project, client: Client, threads: ThreadPoolExecutor
) -> None:
    pressed = interrupt_when(lambda: running(project) == 1, threads)

    with pytest.raises(KeyboardInterrupt):
        ask(client, ENDLESS)

    pressed.result(PATIENCE_S)
    until(lambda: running(project) == 0)
    assert [request["method"] for request in project.requests()] == ["POST", "DELETE"]


def test_ctrl_c_ends_a_look_ahead_that_waits_for_an_hour(
    project: Project, client: Client, threads: ThreadPoolExecutor
) -> None:
    project.faults("query", AN_HOUR)
    scope = client.cancel_scope()
    pressed = interrupt_when(lambda: 429 in statuses(project), threads)

    with pytest.raises(KeyboardInterrupt):
        list(ordered_prefetch(scope.bind(lambda _: ask(client)), range(9), depth=2, cancel=scope.cancel))

    pressed.result(PATIENCE_S)
    # One that Ctrl-C has kept from starting stays in Python's list, and is not alive.
    ours = [thread for thread in threading.enumerate() if thread.name == "posthog_source"]
    assert [thread for thread in ours if thread.is_alive()] == []


def test_whatever_posthog_answers_after_a_cancel_the_request_was_interrupted(
    project: Project, client: Client, threads: ThreadPoolExecutor
) -> None:
    project.settings(latency_s=2.0)
    project.faults("query", {"kind": "reset"}, method="DELETE")
    project.faults("query", {"status": 400, "over_rows": 0}, method="POST")
    in_flight = threads.submit(ask, client)
    until(project.requests)

    client.cancel()

    with pytest.raises(InterruptedRunError):
        in_flight.result(PATIENCE_S)
    assert 400 in statuses(project)


def test_a_query_that_posthog_does_not_stop_holds_up_nobody(
    project: Project, threads: ThreadPoolExecutor
) -> None:
    project.settings(query_timeout_s=PATIENCE_S)
    project.faults("query", {"kind": "reset"}, method="DELETE")
    with real_client(project, look_ahead=1) as client:
        scope = client.cancel_scope()
        in_flight = threads.submit(scope.bind(ask), client, ENDLESS)
        until(lambda: running(project) == 1)

        scope.cancel()

        assert ask(client) == [("1",)]
        assert running(project) == 1
        path = f"/api/projects/{project.id}/query/{stopped(project)[0]}/"
        project.server.http.delete(path, headers={"Authorization": f"Bearer {project.api_key}"})
        with pytest.raises(InterruptedRunError):
            in_flight.result(PATIENCE_S)


def test_two_clients_of_a_key_share_its_places(project: Project) -> None:
    project.settings(latency_s=0.05)
    with (
        real_client(project, look_ahead=2) as one,
        real_client(project, look_ahead=2) as other,
        ThreadPoolExecutor(8) as threads,
    ):
        answers = list(threads.map(ask, [one, other] * 6))

    assert answers == [[("1",)]] * 12
    assert project.stats()["max_concurrent_queries"] == 2


def test_two_clients_of_a_key_share_its_waits(
    project: Project, threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    project.faults("query", AN_HOUR)
    with real_client(project) as patient, real_client(project, wait_deadline_s=100) as hasty:
        waiting = threads.submit(ask, patient)
        until(lambda: "Asking again in 2202.0 s" in caplog.text)

        with pytest.raises(DeadlineError, match="wait_deadline_s = 100"):
            ask(hasty)

        assert len(project.requests()) == 1
        patient.cancel()
        with pytest.raises(InterruptedRunError):
            waiting.result(PATIENCE_S)


def test_clients_of_two_keys_share_nothing(project: Project, threads: ThreadPoolExecutor) -> None:
    project.faults("query", AN_HOUR)
    other_key = project.server.key(["query:read"], [project.id])
    with real_client(project) as one, real_client(project, api_key=other_key) as other:
        waiting = threads.submit(ask, one)
        until(lambda: statuses(project) == [429])

        assert ask(other) == [("1",)]

        one.cancel()
        with pytest.raises(InterruptedRunError):
            waiting.result(PATIENCE_S)
