"""Capture endpoints: body formats, timestamps, refusals."""

from __future__ import annotations

import base64
import gzip
import json
import uuid
import zlib
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from posthog import Posthog

from posthog_emulator.capture import event_time
from tests.emulator.conftest import Project, Server

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def event(name: str = "a", distinct_id: str = "x", **more: object) -> dict[str, object]:
    return {"event": name, "distinct_id": distinct_id, **more}


def test_a_body_that_is_no_event_is_refused(project: Project) -> None:
    for body in (b"5", b"null"):
        assert project.server.http.post("/e/", content=body).status_code == 400


@pytest.mark.parametrize("capture_mode", ["v0", "v1"])
def test_the_official_sdk_captures_identifies_and_aliases(project: Project, capture_mode: str) -> None:
    sdk = Posthog(project.token, host=project.server.url, capture_mode=capture_mode, gzip=True)
    sdk.capture("page viewed", distinct_id="anonymous-1", properties={"path": "/"})
    sdk.capture("$identify", distinct_id="ada", properties={"$anon_distinct_id": "anonymous-1"})
    sdk.set(distinct_id="ada", properties={"email": "ada@example.com"})
    sdk.alias(previous_id="ada", distinct_id="ada-on-mobile")
    sdk.group_identify("company", "acme", {"seats": 5})
    sdk.capture("report made", distinct_id="ada-on-mobile", groups={"company": "acme"})
    sdk.shutdown()

    names = {row[0] for row in project.events("event")}
    assert names >= {"page viewed", "$identify", "$set", "$create_alias", "$groupidentify", "report made"}
    owners = project.person_ids()
    assert owners["ada"] == owners["anonymous-1"] == owners["ada-on-mobile"]
    made = project.events("person_id, JSONExtractString(person_properties, 'email')", "event = 'report made'")
    assert made == [[owners["ada"], "ada@example.com"]]
    assert project.server.sql(f"SELECT group_key FROM groups WHERE team_id = {project.id}") == [["acme"]]


@pytest.mark.parametrize("path", ["/batch/", "/batch", "/e/", "/i/v0/e/", "/capture/", "/track/"])
def test_every_path_takes_events(project: Project, path: str) -> None:
    assert project.capture(event(), path=path).json() == {"status": "Ok"}
    assert project.events("event, distinct_id") == [["a", "x"]]


def test_bodies_come_compressed_in_several_ways(server: Server, project: Project) -> None:
    def body(name: str) -> bytes:
        return json.dumps({"api_key": project.token, **event(name)}).encode()

    posts = [
        {"content": gzip.compress(body("gzip")), "headers": {"Content-Encoding": "gzip"}},
        {"content": gzip.compress(body("gzip without a header"))},
        {"content": zlib.compress(body("deflate")), "headers": {"Content-Encoding": "deflate"}},
        {"data": {"data": base64.b64encode(body("form")).decode()}},
    ]
    for post in posts:
        assert server.http.post("/e/", **post).status_code == 200  # type: ignore[arg-type]
    names = [row[0] for row in project.events("event")]
    assert names == ["gzip", "gzip without a header", "deflate", "form"]


def test_one_event_or_an_array_needs_no_batch(server: Server, project: Project) -> None:
    one = {"token": project.token, **event("one")}
    many = [{**event("two"), "properties": {"token": project.token}}, event("three")]
    assert server.http.post("/i/v0/e/", json=one).status_code == 200
    assert server.http.post("/e/", json=many).status_code == 200
    assert sorted(row[0] for row in project.events("event")) == ["one", "three", "two"]


def test_properties_uuid_and_timestamp_arrive_as_sent_and_created_at_is_arrival(project: Project) -> None:
    given = str(uuid.uuid4())
    properties = {"b": 1.5, "a": None, "list": [1, {"x": "🦔"}], "text": "nul \u0000 here"}
    before = datetime.now(UTC)
    project.capture(event(uuid=given, properties=properties, timestamp="2026-01-02T03:04:05.678901Z"))
    row = project.events("toString(uuid), properties, timestamp, created_at, elements_chain")[0]
    assert row[0] == given
    assert row[1] == '{"b":1.5,"a":null,"list":[1,{"x":"🦔"}],"text":"nul \\u0000 here"}'
    assert row[2] == "2026-01-02T03:04:05.678901Z"
    assert before <= datetime.fromisoformat(row[3]) <= datetime.now(UTC)


def test_an_event_without_uuid_or_timestamp_gets_them(project: Project) -> None:
    project.capture(event())
    made, timestamp, created_at = project.events("toString(uuid), timestamp, created_at")[0]
    assert uuid.UUID(made).version == 7
    assert timestamp == created_at


def test_half_a_surrogate_pair_becomes_a_replacement_character(server: Server, project: Project) -> None:
    text = f'{{"api_key":"{project.token}","event":"a","distinct_id":"x","properties":{{"half":"\\ud83e!"}}}}'
    assert server.http.post("/e/", content=text).status_code == 200
    assert project.events("properties") == [['{"half":"\ufffd!"}']]


def test_what_is_no_event_is_dropped_with_a_200(project: Project) -> None:
    lost = [
        {"event": "no id"},
        {"distinct_id": "no name"},
        {"event": "", "distinct_id": "x"},
        "text",
        event("kept"),
    ]
    assert project.capture(*lost).status_code == 200  # type: ignore[arg-type]
    assert project.events("event") == [["kept"]]


def test_the_distinct_id_may_sit_in_the_properties(project: Project) -> None:
    project.capture({"event": "a", "properties": {"distinct_id": "inside"}})
    assert project.events("distinct_id") == [["inside"]]


def refusal(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["Content-Type"].startswith("text/plain")
    return answer.status_code, answer.text


def test_refusals_are_plain_text(server: Server, project: Project) -> None:
    post = server.http.post
    assert refusal(post("/batch/", json={"batch": [event()]})) == (401, "event submitted without an api_key")
    unknown = {"api_key": "phc_unknown", "batch": [event()]}
    assert refusal(post("/batch/", json=unknown)) == (401, "api_key does not resolve to a known project")
    mixed = [{**event(), "api_key": project.token}, {**event(), "api_key": "phc_other"}]
    assert refusal(post("/e/", json=mixed)) == (401, "batch submitted with inconsistent api_key values")
    assert refusal(post("/batch/", content=b"{not json"))[0] == 400
    assert refusal(project.capture()) == (400, "request holds no event")
    assert refusal(project.capture(event(uuid="not-a-uuid")))[0] == 400


def test_bodies_have_limits_and_the_batch_limit_is_larger(server: Server, project: Project) -> None:
    big = [event(properties={"blob": "x" * 700_000}) for _ in range(4)]
    assert refusal(project.capture(*big, path="/e/"))[0] == 413
    assert project.capture(*big, path="/batch/").status_code == 200
    assert refusal(project.capture(*[event(properties={"blob": "x" * 900_000})] * 25))[0] == 413
    assert refusal(project.capture(event(properties={"blob": "x" * 1_100_000})))[0] == 413


def test_a_migration_is_marked(project: Project) -> None:
    project.capture(event(timestamp="2020-01-01T00:00:00Z"), historical_migration=True)
    assert project.events("historical_migration, toYear(timestamp)") == [[True, 2020]]


def test_the_elements_chain_has_a_column_of_its_own(project: Project) -> None:
    project.capture(event("$autocapture", properties={"$elements_chain": 'a:text="Save"', "b": 1}))
    assert project.events("elements_chain, properties") == [['a:text="Save"', '{"b":1}']]


def test_v1_answers_for_each_event(server: Server, project: Project) -> None:
    good, bad = str(uuid.uuid4()), str(uuid.uuid4())
    body = {
        "batch": [event(uuid=good, session_id="s1", options={}, properties={}), {"uuid": bad, "event": ""}]
    }
    answer = server.http.post(
        "/i/v1/analytics/events", json=body, headers={"Authorization": f"Bearer {project.token}"}
    )
    assert answer.json()["results"][good] == {"result": "ok"}
    assert answer.json()["results"][bad]["result"] == "drop"
    assert project.events("`$session_id`") == [["s1"]]


@pytest.mark.parametrize(
    ("sent_at", "expected"),
    [
        (None, NOW - timedelta(hours=1)),
        (NOW + timedelta(seconds=149), NOW - timedelta(hours=1)),
        (NOW + timedelta(minutes=10), NOW - timedelta(hours=1, minutes=7, seconds=30)),
        (NOW - timedelta(minutes=10), NOW - timedelta(minutes=52, seconds=30)),
    ],
)
def test_a_wrong_clock_is_corrected_by_what_exceeds_the_networks_delay(
    sent_at: datetime | None, expected: datetime
) -> None:
    assert event_time(NOW - timedelta(hours=1), sent_at=sent_at, now=NOW) == expected


def test_a_time_in_the_far_future_becomes_now() -> None:
    assert event_time(NOW + timedelta(hours=24), sent_at=None, now=NOW) == NOW
    assert event_time(NOW + timedelta(hours=22), sent_at=None, now=NOW) == NOW + timedelta(hours=22)
    assert event_time(None, sent_at=None, now=NOW) == NOW
    assert event_time(None, sent_at=None, now=NOW, offset_ms=1000) == NOW - timedelta(seconds=1)
