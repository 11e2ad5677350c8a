"""The query endpoint keeps the rules that bite a client: caching, async queries, limits, errors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.conftest import NO_LIMITS
from tests.emulator.asking import add_events, answer, ask, column, refusal, rows
from tests.emulator.conftest import Project, Server, bearer, start_program, stop_program

ENDLESS = "SELECT count() FROM numbers(1000000000000) WHERE cityHash64(number) = 1"


def get(project: Project, query_id: str) -> httpx.Response:
    """Poll once."""
    return project.get(f"query/{query_id}/")


def poll(project: Project, query_id: str) -> httpx.Response:
    """Poll until the query is over; polls count against the limits."""
    project.settings(rate_limits=NO_LIMITS)
    over: httpx.Response = until(lambda: get(project, query_id), lambda seen: seen.status_code != 202)
    return over


def cancel(project: Project, query_id: str) -> dict[str, Any]:
    """Cancel a query; what the server says to it."""
    answered = project.server.http.delete(
        f"/api/projects/{project.id}/query/{query_id}/", headers=bearer(project.api_key)
    )
    assert answered.status_code == 200
    found: dict[str, Any] = answered.json()
    return found


def has_read(polled: dict[str, Any]) -> bool:
    """Whether a polled query is known to have read something."""
    progress = polled["query_status"]["query_progress"]
    return progress is not None and progress["rows_read"] > 0


def until(look: Callable[[], Any], is_it: Callable[[Any], bool]) -> Any:
    """Look until it is so; fails after 20 s."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        seen = look()
        if is_it(seen):
            return seen
    raise AssertionError(f"never happened; last seen: {seen}")


# --- the response


def test_the_response_has_posthogs_members(project: Project) -> None:
    found = answer(
        project, "SELECT 1 AS one", name="what it is for", modifiers={"convertToProjectTimezone": False}
    )
    assert found["results"] == [[1]]
    assert found["columns"] == ["one"]
    assert found["types"] == [["one", "UInt8"]]
    assert found["hogql"] == "SELECT 1 AS one LIMIT 101"
    assert found["clickhouse"].startswith("SELECT 1 AS one")
    assert found["modifiers"] == {"convertToProjectTimezone": False}
    assert found["is_cached"] is False
    assert found["timezone"] == "UTC"
    assert {"cache_key", "last_refresh", "timings", "query_status", "error", "query"} <= set(found)


def test_the_journal_tells_what_a_query_read(project: Project) -> None:
    add_events(project, 10)
    answer(project, "SELECT event FROM events LIMIT 4", client_query_id="mine", name="label")
    entry = project.requests()[-1]
    assert (entry["client_query_id"], entry["name"], entry["is_cached"]) == ("mine", "label", False)
    # At least: of a granule that other projects' rows share, theirs are read too.
    assert (entry["read_rows"] >= 10, entry["result_rows"]) == (True, 4)
    assert entry["read_bytes"] > 0


def test_query_log_tells_what_a_query_cost(project: Project) -> None:
    project.settings(query_log_delay_s=0.0)
    add_events(project, 10)
    answer(project, "SELECT event FROM events LIMIT 4", name="export", client_query_id="mine")
    entry = project.requests()[-1]
    columns = "query_id, name, query, status, read_rows, read_bytes, result_rows"
    (row,) = rows(project, f"SELECT {columns} FROM query_log")
    text = "SELECT event FROM events LIMIT 4"
    assert row == ["mine", "export", text, "QueryFinish", entry["read_rows"], entry["read_bytes"], 4]
    assert rows(
        project,
        "SELECT memory_usage > 0, cpu_microseconds > 0, query_duration_ms >= 0, event_date = today(),"
        " is_personal_api_key_request, exception_name FROM query_log WHERE query_id = 'mine'",
    ) == [[1, 1, 1, 1, True, ""]]


def test_query_log_counts_what_a_stopped_query_had_read(project: Project) -> None:
    project.settings(query_log_delay_s=0.0, query_timeout_s=0.2)
    assert ask(project, ENDLESS, client_query_id="slow").status_code == 504
    columns = "status, exception_name, exception_code, read_bytes"
    ((*end, read_bytes),) = rows(project, f"SELECT {columns} FROM query_log WHERE query_id = 'slow'")
    assert end == ["ExceptionWhileProcessing", "TIMEOUT_EXCEEDED", 159]
    assert read_bytes > 1_000_000
    assert project.requests()[0]["read_bytes"] == read_bytes
    assert project.stats()["read_bytes"] >= read_bytes


def test_query_log_holds_what_clickhouse_refused_and_not_what_hogql_refused(project: Project) -> None:
    project.settings(query_log_delay_s=0.0)
    ask(project, "SELECT event + 1 FROM events", client_query_id="types")
    ask(project, "SELECT nope FROM events", client_query_id="names")
    assert rows(project, "SELECT query_id, status, read_bytes FROM query_log") == [
        ["types", "ExceptionBeforeStart", 0]
    ]


def test_query_log_shows_a_query_only_some_seconds_later(project: Project) -> None:
    answer(project, "SELECT 1", client_query_id="one")
    assert rows(project, "SELECT query_id FROM query_log") == []
    project.settings(query_log_delay_s=0.0)
    assert "one" in column(project, "SELECT query_id FROM query_log")


def test_query_log_is_a_projects_own(server: Server) -> None:
    project, other = server.project(), server.project()
    for one in (project, other):
        one.settings(query_log_delay_s=0.0)
    answer(project, "SELECT 1")
    assert rows(other, "SELECT query_id FROM query_log") == []


def test_an_older_query_log_names_clickhouses_ids(project: Project) -> None:
    project.settings(query_log_delay_s=0.0, old_query_log=True)
    answer(project, "SELECT 1", client_query_id="mine", name="label")
    ((query_id, name),) = rows(project, "SELECT query_id, hogql_name FROM query_log")
    assert query_id.startswith(f"{project.id}_mine_")
    assert name == "label"
    assert refusal(project, "SELECT name FROM query_log") == (400, "hogql_query_error")


def test_no_version_of_query_log_has_a_client_query_id(project: Project) -> None:
    for old in (False, True):
        project.settings(old_query_log=old)
        assert refusal(project, "SELECT client_query_id FROM query_log") == (400, "hogql_query_error")


def test_a_table_can_be_denied_or_unknown(project: Project) -> None:
    project.settings(denied_tables=["query_log"], hidden_tables=["groups"])
    denied = ask(project, "SELECT 1 FROM query_log").json()
    assert (denied["code"], denied["detail"]) == (
        "table_access_denied",
        "You don't have access to table `query_log`.",
    )
    assert refusal(project, "SELECT 1 FROM groups") == (400, "hogql_query_error")


def test_answers_are_compressed_only_when_asked_for(project: Project) -> None:
    add_events(project, 100, properties=['{"a":"' + "x" * 1000 + '"}'] * 100)
    text = "SELECT properties FROM events LIMIT 100"
    zipped = ask(project, text)
    assert zipped.headers["content-encoding"] == "gzip"
    assert len(zipped.json()["results"]) == 100


# --- the cache


def test_a_repeated_query_is_served_from_the_cache_unless_forced(project: Project) -> None:
    text = "SELECT rand()"
    first = answer(project, text, refresh="blocking")
    again = answer(project, text, refresh="blocking")
    assert (first["is_cached"], again["is_cached"]) == (False, True)
    assert again["results"] == first["results"]
    assert answer(project, text)["results"] != first["results"]
    assert "is_cached" in answer(project, text, refresh=None)
    assert answer(project, text, refresh=None)["is_cached"] is True


def test_forced_answers_are_written_to_the_cache(project: Project) -> None:
    forced = answer(project, "SELECT rand()", refresh="force_blocking")
    cached = answer(project, "SELECT rand()", refresh="blocking")
    assert (cached["is_cached"], cached["results"]) == (True, forced["results"])


def test_other_modifiers_values_or_zones_are_other_cache_entries(project: Project) -> None:
    answer(project, "SELECT rand(), {x}", refresh="blocking", values={"x": 1})
    for change in (
        {"values": {"x": 2}},
        {"values": {"x": 1}, "modifiers": {"convertToProjectTimezone": False}},
    ):
        assert answer(project, "SELECT rand(), {x}", refresh="blocking", **change)["is_cached"] is False
    assert answer(project, "SELECT rand(), {x}", refresh="blocking", values={"x": 1})["is_cached"] is True
    project.control("PATCH", "", timezone="Asia/Tokyo")
    assert answer(project, "SELECT rand(), {x}", refresh="blocking", values={"x": 1})["is_cached"] is False


def test_a_client_query_id_does_not_make_another_cache_entry(project: Project) -> None:
    answer(project, "SELECT rand()", refresh="blocking", client_query_id="a")
    assert answer(project, "SELECT rand()", refresh="blocking", client_query_id="b")["is_cached"] is True


def test_stale_answers_are_computed_again(project: Project) -> None:
    project.settings(cache_ttl_s=0.0)
    first = answer(project, "SELECT rand()", refresh="blocking")
    again = answer(project, "SELECT rand()", refresh="blocking")
    assert again["is_cached"] is False
    assert again["results"] != first["results"]


def test_projects_share_no_cache(server: Server) -> None:
    one, other = server.project(), server.project()
    answer(one, "SELECT rand()", refresh="blocking")
    assert answer(other, "SELECT rand()", refresh="blocking")["is_cached"] is False


# --- async queries


def test_a_query_in_the_background_ends_whatever_goes_wrong(project: Project) -> None:
    ask(project, "SELECT {x}", values=5, refresh="force_async", client_query_id="odd")
    assert poll(project, "odd").json()["query_status"]["error"] is True


def test_force_async_answers_202_and_the_rows_come_by_polling(project: Project) -> None:
    started = ask(project, "SELECT number FROM numbers(3)", refresh="force_async", client_query_id="one")
    assert started.status_code == 202
    assert list(started.json()) == ["query_status"]
    assert (started.json()["query_status"]["id"], started.json()["query_status"]["complete"]) == (
        "one",
        False,
    )
    done = poll(project, "one")
    assert done.status_code == 200
    status = done.json()["query_status"]
    assert (status["complete"], status["error"]) == (True, False)
    assert status["results"]["results"] == [[0], [1], [2]]
    assert status["results"]["types"] == [["number", "UInt64"]]


def test_a_failed_async_query_keeps_only_its_message(project: Project) -> None:
    ask(project, "SELECT nope FROM events", refresh="force_async", client_query_id="bad")
    failed = poll(project, "bad")
    assert failed.status_code == 400
    status = failed.json()["query_status"]
    assert (status["complete"], status["error"], status["results"]) == (True, True, None)
    assert status["error_message"] == "Unable to resolve field: nope"


def test_an_async_query_without_a_place_fails_without_a_message(project: Project) -> None:
    project.settings(max_concurrent_queries=0, concurrency_wait_s=0.05)
    ask(project, "SELECT 1", refresh="force_async", client_query_id="crowded")
    failed = poll(project, "crowded")
    assert failed.status_code == 500
    assert failed.json()["query_status"]["error_message"] is None


def test_async_without_force_gives_fresh_stale_or_nothing(project: Project) -> None:
    miss = ask(project, "SELECT rand()", refresh="async")
    assert (miss.status_code, sorted(miss.json())) == (202, ["cache_key", "query_status"])
    done = poll(project, miss.json()["query_status"]["id"]).json()["query_status"]["results"]
    fresh = ask(project, "SELECT rand()", refresh="async")
    assert (fresh.status_code, fresh.json()["results"]) == (200, done["results"])
    project.settings(cache_ttl_s=0.0)
    stale = ask(project, "SELECT rand()", refresh="async")
    assert (stale.status_code, stale.json()["results"]) == (202, done["results"])
    assert stale.json()["query_status"]["complete"] is False


def test_async_except_on_cache_miss_waits_the_first_time(project: Project) -> None:
    first = ask(project, "SELECT rand()", refresh="async_except_on_cache_miss")
    assert (first.status_code, len(first.json()["results"])) == (200, 1)
    project.settings(cache_ttl_s=0.0)
    assert ask(project, "SELECT rand()", refresh="async_except_on_cache_miss").status_code == 202


def test_reusing_an_id_gives_the_earlier_query_unless_forced(project: Project) -> None:
    ask(project, "SELECT 1", refresh="async", client_query_id="same")
    poll(project, "same")
    again = ask(project, "SELECT 2", refresh="async", client_query_id="same")
    assert again.json()["query_status"]["results"]["results"] == [[1]]
    ask(project, "SELECT 2", refresh="force_async", client_query_id="same")
    assert poll(project, "same").json()["query_status"]["results"]["results"] == [[2]]


def test_an_unknown_query_is_a_404_and_so_is_another_projects(server: Server) -> None:
    project, other = server.project(), server.project()
    ask(project, "SELECT 1", refresh="force_async", client_query_id="mine")
    for missing in (get(project, "nope"), get(other, "mine")):
        assert missing.status_code == 404
        assert missing.json()["code"] == "not_found"


def test_delete_stops_a_running_query_for_real(project: Project) -> None:
    name = f"endless-{uuid.uuid4()}"
    running = f"SELECT count() FROM system.processes WHERE Settings['log_comment'] LIKE '%{name}%'"
    ask(project, ENDLESS, refresh="force_async", client_query_id=name)
    until(lambda: project.server.sql(running), lambda seen: seen[0][0] == 1)
    cancelled = project.server.http.delete(
        f"/api/projects/{project.id}/query/{name}/", headers=bearer(project.api_key)
    )
    assert cancelled.json() == {"message": "Cancelled query on clickhouse"}
    until(lambda: project.server.sql(running), lambda seen: seen[0][0] == 0)
    assert get(project, name).status_code == 404


def test_delete_stops_a_blocking_query_too(project: Project) -> None:
    with ThreadPoolExecutor() as pool:
        blocking = pool.submit(ask, project, ENDLESS, client_query_id="mine")
        running = (
            f"SELECT count() FROM system.processes WHERE Settings['log_comment'] LIKE '{project.id}_mine_%'"
        )
        until(lambda: project.server.sql(running), lambda seen: seen[0][0] == 1)
        cancel(project, "mine")
        stopped = blocking.result()
    assert (stopped.status_code, stopped.json()["code"]) == (500, "error")
    assert project.server.sql(running) == [[0]]


def test_delete_stops_the_query_of_one_id_and_of_one_project(server: Server) -> None:
    project, other = server.project(), server.project()
    asked = [(project, "a"), (project, "ab"), (other, "a")]
    for one, name in asked:
        one.settings(rate_limits=NO_LIMITS)
        ask(one, ENDLESS, refresh="force_async", client_query_id=name)
    progress = [(one, f"query/{name}/") for one, name in asked]
    for one, path in progress:
        until(lambda: one.get(path, show_progress="true").json(), has_read)  # noqa: B023
    cancel(project, "a")
    assert [one.get(path).status_code for one, path in progress] == [404, 202, 202]
    for one, name in asked[1:]:
        cancel(one, name)


def test_a_query_that_waits_for_its_turn_never_runs_once_it_is_cancelled(project: Project) -> None:
    project.settings(max_concurrent_queries=1, latency_s=1.5, query_log_delay_s=0.0)
    for name in ("first", "second"):
        ask(project, f"SELECT '{name}'", refresh="force_async", client_query_id=name)
    answered = project.server.http.delete(
        f"/api/projects/{project.id}/query/second/",
        params={"dequeue_only": "true"},
        headers=bearer(project.api_key),
    )
    assert answered.json()["message"].startswith("Only tried to dequeue")
    assert poll(project, "first").status_code == 200
    assert get(project, "second").status_code == 404
    assert column(project, "SELECT query_id FROM query_log") == ["first"]


def test_a_finished_query_cannot_be_cancelled(project: Project) -> None:
    ask(project, "SELECT 1", refresh="force_async", client_query_id="done")
    poll(project, "done")
    assert cancel(project, "done") == {"message": "Query already complete"}
    assert get(project, "done").status_code == 200


def test_progress_is_told_when_asked_for_and_only_while_it_runs(project: Project) -> None:
    project.settings(rate_limits=NO_LIMITS)
    ask(project, ENDLESS, refresh="force_async", client_query_id="slow")
    seen = until(lambda: project.get("query/slow/", show_progress="true").json(), has_read)
    assert set(seen["query_status"]["query_progress"]) == {
        "bytes_read",
        "rows_read",
        "estimated_rows_total",
        "time_elapsed",
        "active_cpu_time",
    }
    assert get(project, "slow").json()["query_status"]["query_progress"] is None
    cancel(project, "slow")
    ask(project, "SELECT 1", refresh="force_async", client_query_id="done")
    poll(project, "done")
    assert project.get("query/done/", show_progress="true").json()["query_status"]["query_progress"] is None


def test_the_result_of_an_async_query_expires(project: Project) -> None:
    ask(project, "SELECT 1", refresh="force_async", client_query_id="kept")
    status = poll(project, "kept").json()["query_status"]
    ended, expires = (datetime.fromisoformat(status[name]) for name in ("end_time", "expiration_time"))
    assert expires - ended == timedelta(minutes=20)
    project.settings(latency_s=1.5)
    ask(project, "SELECT 1", refresh="force_async", client_query_id="gone")
    project.settings(async_status_life_s=0.0)
    assert get(project, "gone").status_code == 202
    assert until(lambda: get(project, "gone"), lambda seen: seen.status_code != 202).status_code == 404
    assert get(project, "kept").status_code == 200


def test_the_server_stops_though_a_query_runs() -> None:
    process, ready = start_program()
    with httpx.Client(base_url=ready["url"]) as http:
        project = Server(ready["url"], ready["api_key"], ready["project_token"], http).project()
        assert ask(project, ENDLESS, refresh="force_async").status_code == 202
    assert stop_program(process) == 0


# --- limits


def test_a_query_that_takes_too_long_is_a_504(project: Project) -> None:
    project.settings(query_timeout_s=0.2)
    assert refusal(project, ENDLESS) == (504, "error")
    assert column(project, "SELECT 1") == [1]


def test_an_async_query_has_a_longer_time_of_its_own(project: Project) -> None:
    project.settings(query_timeout_s=0.1, async_timeout_s=0.8)
    started = time.monotonic()
    ask(project, ENDLESS, refresh="force_async", client_query_id="slow")
    failed = poll(project, "slow")
    assert time.monotonic() - started > 0.3  # well over the blocking 0.1; ClickHouse stops on an estimate
    assert failed.status_code == 400
    assert "max execution time" in failed.json()["query_status"]["error_message"]


def test_a_query_that_reads_too_much_is_a_400(project: Project) -> None:
    add_events(project, 1000)
    project.settings(max_bytes_to_read=1000)
    assert refusal(project, "SELECT uuid FROM events") == (400, "too_many_bytes")
    assert column(project, "SELECT 1") == [1]


def test_a_query_that_needs_too_much_memory_is_a_513(project: Project) -> None:
    project.settings(max_memory_bytes=5_000_000)
    text = "SELECT length(groupArray(number)) FROM numbers(3000000)"
    assert refusal(project, text) == (513, "clickhouse_memory_limit_exceeded")


def test_one_query_too_many_is_refused_without_retry_after(project: Project) -> None:
    project.settings(max_concurrent_queries=1, concurrency_wait_s=0.1, latency_s=1.5)
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda n: ask(project, f"SELECT {n}"), range(2)))
    refused = next(response for response in both if response.status_code != 200)
    assert sorted(response.status_code for response in both) == [200, 429]
    assert refused.json()["code"] == "throttled"
    assert "retry-after" not in refused.headers


def test_a_query_waits_for_a_place(project: Project) -> None:
    project.settings(max_concurrent_queries=2, latency_s=0.2)
    with ThreadPoolExecutor() as pool:
        started = time.monotonic()
        found = list(pool.map(lambda n: column(project, f"SELECT {n}"), range(6)))
    assert found == [[n] for n in range(6)]
    assert time.monotonic() - started > 0.55


def test_a_long_query_blocks_nobody(project: Project) -> None:
    project.settings(query_timeout_s=2.0)
    with ThreadPoolExecutor() as pool:
        long = pool.submit(ask, project, ENDLESS)
        until(lambda: project.control("GET", "stats"), lambda stats: stats["max_concurrent_queries"] == 1)
        assert column(project, "SELECT 1") == [1]
        assert not long.done()
        assert long.result().status_code == 504


def test_a_failed_query_leaves_nothing_in_the_next_answer(project: Project) -> None:
    for _ in range(8):
        ask(project, "SELECT number, toUUID(toString(number)) = 'bad' FROM numbers(200000) LIMIT 200000")
        assert rows(project, "SELECT 1, 2") == [[1, 2]]


# --- refusals


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "parse_error"),
        (b"[]", "invalid_input"),
        (b"{}", "required"),
        (b'{"query": {"kind": "EventsQuery"}}', "invalid_input"),
        (b'{"query": {"kind": "HogQLQuery"}}', "invalid_input"),
        (b'{"query": {"kind": "HogQLQuery", "query": "SELECT 1"}, "refresh": "whenever"}', "invalid_input"),
        (
            b'{"query": {"kind": "HogQLQuery", "query": "SELECT 1", "modifiers": {"debug": true}}}',
            "invalid_input",
        ),
        (b'{"query": {"kind": "HogQLQuery", "query": "SELECT 1", "filters": {"a": 1}}}', "invalid_input"),
        (
            b'{"query": {"kind": "HogQLQuery", "query": "SELECT 1"}, "limit_context": "posthog_ai"}',
            "invalid_input",
        ),
    ],
)
def test_a_body_that_is_not_a_hogql_query_is_a_400(project: Project, body: bytes, code: str) -> None:
    response = project.server.http.post(
        f"/api/projects/{project.id}/query/",
        content=body,
        headers={**bearer(project.api_key), "content-type": "application/json"},
    )
    assert (response.status_code, response.json()["code"]) == (400, code)
    assert response.json()["type"] == "validation_error"


def test_reading_needs_the_query_scope(server: Server) -> None:
    project = server.project()
    assert ask(project, "SELECT 1", key=server.key(["cohort:read"])).status_code == 403
    assert ask(project, "SELECT 1", key=server.key(["query:read"])).status_code == 200


def test_a_kind_in_the_path_is_closed_to_api_keys(project: Project) -> None:
    response = project.server.http.post(
        f"/api/projects/{project.id}/query/HogQLQuery/", json={}, headers=bearer(project.api_key)
    )
    assert (response.status_code, response.json()["code"]) == (403, "permission_denied")
