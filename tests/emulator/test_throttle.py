"""Rate limits per minute and hour."""

from __future__ import annotations

import pytest

from posthog_emulator.throttle import Throttle
from tests.emulator.conftest import Project, Server


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_the_call_after_the_burst_waits_until_the_oldest_is_a_minute_old() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    assert throttle.wait_s("key", "default", (2, 100)) is None
    clock.now_s += 20
    assert throttle.wait_s("key", "default", (2, 100)) is None
    assert throttle.wait_s("key", "default", (2, 100)) == 40
    clock.now_s += 40
    assert throttle.wait_s("key", "default", (2, 100)) is None


def test_the_hourly_limit_outlasts_the_burst() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(3):
        assert throttle.wait_s("key", "default", (100, 3)) is None
        clock.now_s += 100
    assert throttle.wait_s("key", "default", (100, 3)) == 3300


def test_a_refused_call_costs_nothing() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    throttle.wait_s("key", "default", (1, 100))
    for _ in range(5):
        assert throttle.wait_s("key", "default", (1, 100)) == 60
    clock.now_s += 60
    assert throttle.wait_s("key", "default", (1, 100)) is None


def test_keys_and_classes_have_buckets_of_their_own() -> None:
    throttle = Throttle(Clock())
    assert throttle.wait_s("key", "default", (1, 1)) is None
    assert throttle.wait_s("key", "clickhouse", (1, 1)) is None
    assert throttle.wait_s("other", "default", (1, 1)) is None
    assert throttle.wait_s("key", "default", (1, 1)) is not None


def test_one_call_too_many_is_a_429_that_says_how_long(project: Project) -> None:
    project.settings(rate_limits={"default": [2, 100]})
    assert [project.get("cohorts/").status_code for _ in range(2)] == [200, 200]
    answer = project.get("cohorts/")
    assert answer.status_code == 429
    assert answer.json()["type"] == "throttled_error"
    wait_s = int(answer.headers["Retry-After"])
    assert 0 < wait_s <= 60
    assert answer.json()["detail"] == f"Request was throttled. Expected available in {wait_s} seconds."


@pytest.mark.parametrize(
    ("path", "throttle_class"), [("insights/", "clickhouse"), ("persons/", "clickhouse")]
)
def test_lists_on_clickhouse_have_the_tighter_limit(project: Project, path: str, throttle_class: str) -> None:
    project.settings(rate_limits={throttle_class: [1, 100]})
    assert [project.get(path).status_code for _ in range(2)] == [200, 429]
    assert project.get("cohorts/").status_code == 200


def test_persons_know_no_hourly_limit(project: Project) -> None:
    project.settings(rate_limits={"clickhouse": [100, 1]})
    assert [project.get("persons/").status_code for _ in range(3)] == [200, 200, 200]
    assert [project.get("insights/").status_code for _ in range(2)] == [200, 429]


def test_a_refusal_by_scope_costs_no_budget(server: Server, project: Project) -> None:
    project.settings(rate_limits={"default": [1, 100]})
    key = server.key(["person:read"])
    assert [project.get("cohorts/", key=key).status_code for _ in range(3)] == [403, 403, 403]
    assert project.get("cohorts/").status_code == 200
