"""The deprecated list of events loses what PostHog's loses, and only that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import add_events
from tests.emulator.conftest import Project, Server, bearer

DAY = {"after": "2026-01-10T00:00:00Z", "before": "2026-01-11T00:00:00Z"}
ASCENDING = {"orderBy": '["timestamp"]'}
START = datetime(2026, 1, 10, tzinfo=UTC)


def spread(project: Project, count: int, *, step_s: float, ties: int = 1) -> list[str]:
    """Events from a second past midnight on, oldest first."""
    times = [START + timedelta(seconds=1 + step_s * (n // ties)) for n in range(count)]
    return add_events(project, count, timestamp=times)


def walk(project: Project, **params: Any) -> list[list[str]]:
    """The ids of each page, by following `next`."""
    pages, body = [], project.get("events/", **params).json()
    while True:
        pages.append([one["id"] for one in body["results"]])
        if body["next"] is None:
            return pages
        body = project.server.http.get(body["next"], headers=bearer(project.api_key)).json()


def test_an_event_looks_as_in_posthogs_serializer(project: Project) -> None:
    at = START + timedelta(milliseconds=123)
    [uuid] = add_events(project, 1, timestamp=[at], properties=['{"plan": "pro", "n": 1}'])
    [item] = project.get("events/", **DAY).json()["results"]
    assert item == {
        "id": uuid,
        "distinct_id": "user-0",
        "properties": {"plan": "pro", "n": 1},
        "event": "page",
        "timestamp": "2026-01-10T00:00:00.123000+00:00",
        "person": None,
        "elements": [],
        "elements_chain": "",
    }


def test_properties_come_as_they_are_stored(project: Project) -> None:
    stored = r'{"half an emoji": "\ud83e", "n": 123456789012345678901}'
    add_events(project, 1, timestamp=[START + timedelta(hours=1)], properties=[stored])
    assert f'"properties":{stored}' in project.get("events/", **DAY).text


def test_pages_have_a_hundred_events_and_a_thousand_at_most_without_a_word(project: Project) -> None:
    spread(project, 1_200, step_s=0.01)
    assert len(project.get("events/", **DAY).json()["results"]) == 100
    answer = project.get("events/", **DAY, limit=10_000)
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 1_000


def test_both_bounds_are_strict(project: Project) -> None:
    uuids = add_events(project, 3)
    bounds = {"after": "2026-01-10T00:00:00Z", "before": "2026-01-10T00:00:02Z"}
    assert walk(project, **bounds) == [[uuids[1]]]


def test_oldest_first_finds_all_where_no_timestamps_are_equal(project: Project) -> None:
    uuids = spread(project, 250, step_s=300)
    assert [uuid for page in walk(project, **DAY, **ASCENDING) for uuid in page] == uuids


@pytest.mark.parametrize("order", [{}, ASCENDING], ids=["newest first", "oldest first"])
def test_events_that_share_the_last_timestamp_of_a_page_are_lost(
    project: Project, order: dict[str, str]
) -> None:
    spread(project, 370, step_s=1, ties=37)
    pages = walk(project, **DAY, **order)
    # 100 rows are two whole seconds and 26 of a third, whose other 11 come on no page
    assert [len(page) for page in pages] == [100, 100, 100, 37]
    assert len({uuid for page in pages for uuid in page}) == 337


def test_newest_first_ends_with_the_window_that_held_half_a_page(project: Project) -> None:
    spread(project, 2_880, step_s=30)
    # the last hour has 120 of them, more than half a page: no other hour is looked at
    pages = walk(project, **DAY, limit=200)
    assert [len(page) for page in pages] == [120]


def test_a_window_that_was_good_is_tried_first(project: Project) -> None:
    spread(project, 2_880, step_s=30)
    assert len(walk(project, **DAY, limit=200)[0]) == 120
    # 30 would be found in 15 minutes; the hour of before is remembered, and holds more than a page
    assert len(project.get("events/", **DAY, limit=40).json()["results"]) == 40
    assert project.get("events/", **DAY, limit=40).json()["next"] is not None


def test_next_keeps_what_was_sent_and_moves_one_bound(project: Project) -> None:
    spread(project, 30, step_s=1)
    body = project.get("events/", limit=20, offset=5, event="page", **DAY).json()
    assert body["next"] == (
        f"{project.server.url}/api/projects/{project.id}/events/?limit=20&offset=5&event=page"
        "&after=2026-01-10T00%3A00%3A00Z&before=2026-01-10T00%3A00%3A06%2B00%3A00"
    )
    # the five are skipped again
    assert [len(page) for page in walk(project, limit=20, offset=5, **DAY)] == [20, 0]


def test_events_are_filtered_by_name_and_distinct_id_and_by_nothing_unheard(project: Project) -> None:
    uuids = add_events(project, 3, event=["a", "b", "a"], distinct_id=["x", "x", "y"])
    day = {**DAY, "after": "2026-01-09T00:00:00Z"}
    assert walk(project, **day, event="a", distinct_id="x") == [[uuids[0]]]
    for name in ("properties", "person_id", "where"):
        answer = project.get("events/", **{name: "1"})
        assert (answer.status_code, answer.json()["attr"]) == (400, name)


def test_the_list_wants_the_scope_and_has_the_limit_of_clickhouse(server: Server) -> None:
    project = server.project(settings={"rate_limits": {"clickhouse": [2, 10]}})
    key = server.key(["insight:read"])
    assert project.get("events/", key=key).status_code == 403
    codes = [project.get("events/").status_code for _ in range(3)]
    assert codes == [200, 200, 429]
