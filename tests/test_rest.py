"""Lists that change while they are read: every item once, the newest version last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from posthog_source.catalog import COHORTS
from posthog_source.client import Client
from posthog_source.definitions import INSIGHTS
from posthog_source.errors import MissingRowsError, UnreadableAnswerError
from posthog_source.rest import fetch_all, iter_changed
from tests.conftest import FakeTime, Project, client_of

FEW_COHORTS = replace(COHORTS, page_rows=3)
FEW_INSIGHTS = replace(INSIGHTS, page_rows=3)
START = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def client(project: Project, fake_time: FakeTime) -> Iterator[Client]:
    with client_of(project, fake_time) as client:
        yield client


def add_cohorts(project: Project, count: int) -> list[int]:
    items = [{"name": f"cohort {n}"} for n in range(count)]
    ids: list[int] = project.control("POST", "cohorts", items=items)["ids"]
    return ids


def add_insights(project: Project, *times: datetime, **members: Any) -> list[int]:
    items = [{"name": f"insight {n}", "last_modified_at": at.isoformat()} for n, at in enumerate(times)]
    ids: list[int] = project.control("POST", "insights", items=[item | members for item in items])["ids"]
    return ids


def changed(client: Client, project: Project, since: datetime | None = None) -> list[tuple[int, str]]:
    """Id and name of every item that comes, in the order in which it comes."""
    pages = iter_changed(client, FEW_INSIGHTS, project_id=project.id, since=since)
    return [(row["id"], row["name"]) for page, _ in pages for row in page.to_pylist()]


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_every_item_of_a_list_comes_once(project: Project, client: Client, count: int) -> None:
    ids = add_cohorts(project, count) if count else []

    _, found = fetch_all(client, FEW_COHORTS, project_id=project.id)

    assert sorted(found.column("id").to_pylist()) == sorted(ids)
    assert set(found.column("project_id").to_pylist()) <= {project.id}


def test_a_list_shorter_than_its_own_count_is_listed_again(project: Project, client: Client) -> None:
    ids = add_cohorts(project, 10)
    project.faults("cohorts", {"pass": True}, {"kind": "drop_rows", "rows": 1})

    _, found = fetch_all(client, FEW_COHORTS, project_id=project.id)

    assert sorted(found.column("id").to_pylist()) == sorted(ids)


def test_a_list_that_stays_shorter_than_its_own_count_is_an_error(project: Project, client: Client) -> None:
    add_cohorts(project, 10)
    project.faults("cohorts", {"kind": "drop_rows", "rows": 1, "times": 99})

    with pytest.raises(MissingRowsError, match="PostHog counts 10 and lists 6, 3 times over"):
        fetch_all(client, FEW_COHORTS, project_id=project.id)


def test_an_answer_that_is_no_list_is_an_error(project: Project, client: Client) -> None:
    project.faults("cohorts", *[{"status": 200, "body": {"detail": "maintenance"}}] * 8)

    with pytest.raises(UnreadableAnswerError, match="has no results"):
        fetch_all(client, FEW_COHORTS, project_id=project.id)


def test_an_answer_that_is_no_page_is_asked_for_again(project: Project, client: Client) -> None:
    ids = add_insights(project, *(START + timedelta(hours=n) for n in range(4)))
    project.faults("insights", {"pass": True}, {"status": 200, "body": {"detail": "maintenance"}})

    assert [number for number, _ in changed(client, project)] == ids


@pytest.mark.parametrize("count", [0, 1, 3, 4, 10])
def test_every_item_comes_once_in_the_order_of_its_last_change(
    project: Project, client: Client, count: int
) -> None:
    ids = add_insights(project, *(START + timedelta(hours=n) for n in range(count))) if count else []

    assert [number for number, _ in changed(client, project)] == ids


@pytest.mark.parametrize("count", [4, 7, 20])
def test_items_that_share_an_instant_come_once_each_though_they_fill_pages(
    project: Project, client: Client, count: int
) -> None:
    before = add_insights(project, START - timedelta(days=1))
    tied = add_insights(project, *[START] * count)
    after = add_insights(project, START + timedelta(days=1))

    found = [number for number, _ in changed(client, project)]

    assert sorted(found) == sorted(before + tied + after)


def test_only_what_changed_at_an_instant_or_after_it_comes(project: Project, client: Client) -> None:
    microsecond = timedelta(microseconds=1)
    ids = add_insights(project, START - microsecond, START, START + microsecond)

    assert [number for number, _ in changed(client, project, since=START)] == ids[1:]


def test_an_item_edited_while_the_list_is_read_comes_again_as_edited(
    project: Project, client: Client
) -> None:
    ids = add_insights(project, *(START + timedelta(hours=n) for n in range(7)))
    found: list[tuple[int, str]] = []
    for page, _ in iter_changed(client, FEW_INSIGHTS, project_id=project.id, since=None):
        if not found:
            edited = {
                "id": ids[0],
                "name": "edited",
                "last_modified_at": START.replace(year=2027).isoformat(),
            }
            project.control("POST", "insights", items=[edited])
        found += [(row["id"], row["name"]) for row in page.to_pylist()]

    assert dict(found) == {**{number: f"insight {n}" for n, number in enumerate(ids)}, ids[0]: "edited"}


def test_each_page_comes_with_the_newest_change_it_holds(project: Project, client: Client) -> None:
    times = [START + timedelta(hours=n) for n in range(7)]
    add_insights(project, *times)

    pages = list(iter_changed(client, FEW_INSIGHTS, project_id=project.id, since=None))

    for page, newest in pages:
        assert newest == max(page.column("last_modified_at").to_pylist())
    assert pages[-1][1] == times[-1]


def test_a_list_is_asked_for_in_a_stable_order_and_without_results(project: Project, client: Client) -> None:
    """Without its order, PostHog's pages skip and repeat items; each item would carry its result."""
    assert INSIGHTS.params == {"basic": "true", "order": "last_modified_at"}
    project.settings(gzip=False)
    ids = add_insights(project, *(START + timedelta(hours=n) for n in range(40)))

    assert [number for number, _ in changed(client, project)] == ids


def test_dates_are_read_in_utc_whatever_the_projects_zone(project: Project, client: Client) -> None:
    project.control("PATCH", "", timezone="America/New_York")
    ids = add_insights(project, START - timedelta(hours=2), START + timedelta(hours=2))

    assert [number for number, _ in changed(client, project, since=START)] == ids[1:]
