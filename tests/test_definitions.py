"""Definitions: what people defined in PostHog is in the warehouse, whatever its list is like."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from posthog_source import posthog_source, run_sync
from posthog_source.definitions import ACTIVITY_LOG, DEFINITIONS, DETAILS, PROPERTY_DEFINITIONS, SECRETS
from posthog_source.errors import (
    AccessDeniedError,
    ApiError,
    NotFoundError,
    QuotaSpentError,
    SettingsError,
    find_cause,
)
from posthog_source.rest import fetch_all
from posthog_source.tables import RestTable
from tests.conftest import NO_LIMITS, FakeTime, Project, Server, Warehouse, client_of

OBJECTS = 7
BY_NAME = {table.name: table for table in (*DEFINITIONS, *DETAILS)}
LISTED = [one for one in DEFINITIONS if not one.nested and one.root != "server" and one.answer == "list"]
RESOURCES = [table for table in LISTED if table.name != "insights"]
PAGED = [one for one in RESOURCES if one.root == "project" and not one.cursor and one.page_rows < 10_000]
"""Less those that nobody can put in order, which are read in one page."""


def resource(table: RestTable) -> str:
    return table.path.rstrip("/").replace("{id}", "{parent}")


def put(
    project: Project, table: RestTable, *items: dict[str, Any], method: str = "POST", owner: str = ""
) -> list[Any]:
    """Objects into a project, as its people would define them; `owner` is what they belong to."""
    given = list(items)
    if table.each:
        owner = owner or put(project, table.each, {"name": "owner"})[0]
        given = [{"_parent": owner} | item for item in items]
    if table.name == "insights":
        made: list[Any] = project.control("POST", "insights", items=given)["ids"]
    else:
        made = project.control(method, f"definitions/{resource(table)}", items=given)["ids"]
    return made


def reader(project: Project) -> dict[str, Any]:
    """Credentials of one who may read what stands above the project, too."""
    return project.with_full_key().credentials


def synced(place: Warehouse, project: Project, *tables: str) -> None:
    run_sync(place.pipeline, tables=list(tables), **reader(project))


def loaded(place: Warehouse, table: RestTable) -> list[Any]:
    return sorted(str(row[0]) for row in place.query(f"SELECT id FROM {table.name}"))


@pytest.fixture(scope="module")
def full(server: Server) -> tuple[Project, dict[str, list[str]]]:
    """A project with some objects of every kind, and their ids."""
    project = server.project(settings={"rate_limits": NO_LIMITS, "organization_id": str(uuid.uuid4())})
    found: dict[str, list[str]] = {}
    for table in LISTED:
        items = [{"name": f"{table.name} {n}", "fresh": n, "renewed": {"n": n}} for n in range(OBJECTS)]
        owner = found[table.each.name][0] if table.each else ""
        found[table.name] = sorted(str(one) for one in put(project, table, *items, owner=owner))
    tiles = [{"id": 900 + n, "dashboard_id": n, "deleted": False} for n in range(3)]
    (insight,) = put(project, LISTED[0], {"name": "on dashboards", "dashboard_tiles": tiles})
    found["insights"] = sorted([*found["insights"], str(insight)])
    found["dashboard_tiles"] = ["900", "901", "902"]
    answered = found["surveys"][:2]
    sent = {"event": "survey sent", "distinct_id": "somebody"}
    project.capture(*(sent | {"properties": {"$survey_id": one}} for one in answered))
    found["survey_response_counts"] = answered
    seen = {"Authorization": f"Bearer {server.key(['*'])}"}
    for name in ("organizations", "projects"):
        listed = server.http.get(f"/api/{name}/", params={"limit": 10_000}, headers=seen).json()["results"]
        found[name] = sorted(str(one["id"]) for one in listed)
    return project, found


@pytest.fixture(scope="module")
def place(full: tuple[Project, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    """A warehouse that has them all, synced twice."""
    with Warehouse.at(tmp_path_factory.mktemp("definitions")).held() as place:
        for _ in range(2):
            synced(place, full[0], *(table.name for table in DEFINITIONS))
        yield place


@pytest.mark.parametrize("table", DEFINITIONS, ids=lambda table: table.name)
def test_every_object_is_there_once(
    full: tuple[Project, dict[str, list[str]]], place: Warehouse, table: RestTable
) -> None:
    assert loaded(place, table) == full[1][table.name]
    columns = [name for name, *_ in place.query(f"DESCRIBE {table.name}")]
    assert [column.name for column in table.columns] == columns[: len(table.columns)]


@pytest.mark.parametrize("table", PAGED, ids=lambda table: table.name)
def test_every_object_comes_once_where_pages_are_shorter_than_the_list(
    full: tuple[Project, dict[str, list[str]]], fake_time: FakeTime, table: RestTable
) -> None:
    project, ids = full
    few = replace(table, page_rows=3 if table.page_rows else 0)
    project.forget_requests()

    with client_of(project, fake_time) as client:
        _, found = fetch_all(client, few, project_id=project.id)

    assert sorted(str(one) for one in found.column("id").to_pylist()) == ids[table.name]
    asked = [one for one in project.requests() if one["path"].endswith(f"/{table.path}")]
    assert len(asked) >= (OBJECTS / 3 if table.page_rows else 1)


@pytest.mark.parametrize("table", RESOURCES, ids=lambda table: table.name)
def test_members_that_newer_servers_add_become_text(place: Warehouse, table: RestTable) -> None:
    columns = {name: kind for name, kind, *_ in place.query(f"DESCRIBE {table.name}")}
    assert (columns["fresh"], columns["renewed"]) == ("VARCHAR", "VARCHAR")
    rows = place.query(f"SELECT fresh, renewed FROM {table.name} ORDER BY fresh LIMIT 1")
    assert rows == [("0", json.dumps({"n": 0}, separators=(",", ":")))]


@pytest.mark.parametrize("table", DEFINITIONS, ids=lambda table: table.name)
def test_secrets_and_what_depends_on_who_asks_are_nowhere(place: Warehouse, table: RestTable) -> None:
    columns = {name for name, *_ in place.query(f"DESCRIBE {table.name}")}
    assert not columns & table.dropped
    assert not columns & set(SECRETS)


@pytest.fixture(scope="module")
def before_and_after(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, int], dict[str, int]]:
    """Rows of each table of three objects, and of the same when but the first was left, as synced."""
    project = server.project(settings={"rate_limits": NO_LIMITS, "organization_id": str(uuid.uuid4())})
    first: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for table in sorted(RESOURCES, key=lambda table: table.each is not None):
        owners[table.name] = str(first[table.each.name]) if table.each else ""
        items = ({"name": f"{n}"} for n in range(3))
        first[table.name], *_ = put(project, table, *items, owner=owners[table.name])
    with Warehouse.at(tmp_path_factory.mktemp("gone")).held() as place:
        synced(place, project, *first)
        before = place.counts()
        for table in RESOURCES:
            kept = {"id": first[table.name], "name": "alone"}
            put(project, table, kept, method="PUT", owner=owners[table.name])
        synced(place, project, *first)
        return before, place.counts()


@pytest.mark.parametrize("table", RESOURCES, ids=lambda table: table.name)
def test_an_object_that_is_gone_goes_where_lists_are_read_whole(
    before_and_after: tuple[dict[str, int], dict[str, int]], table: RestTable
) -> None:
    before, after = before_and_after

    assert (before[table.name], after[table.name]) == (3, 3 if table.cursor else 1)


def test_properties_say_of_what_they_are(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    kinds: list[tuple[str, int | None]] = [("event", None), ("person", None), ("session", None)]
    kinds += [("group", index) for index in range(5)]
    given = [{"name": f"{kind} {index}", "_type": kind, "_group_type_index": index} for kind, index in kinds]
    put(project, PROPERTY_DEFINITIONS, *given)

    with Warehouse.at(tmp_path_factory.mktemp("properties")).held() as place:
        run_sync(place.pipeline, tables=["property_definitions"], **project.credentials)
        rows = place.query("SELECT name, type, group_type_index FROM property_definitions")

    assert sorted(rows) == sorted((f"{kind} {index}", kind, index) for kind, index in kinds)


def test_archived_and_unlisted_objects_are_there_too(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    hidden = {table.name: table for table in RESOURCES if table.passes and table is not PROPERTY_DEFINITIONS}
    for table in hidden.values():
        put(project, table, {"archived": True, "creation_mode": "unlisted"}, {"name": "shown"})

    with Warehouse.at(tmp_path_factory.mktemp("hidden")).held() as place:
        run_sync(place.pipeline, tables=list(hidden), **project.credentials)

        assert place.counts() == dict.fromkeys(hidden, 2)


REFUSALS: dict[int, type[ApiError]] = {402: QuotaSpentError, 403: AccessDeniedError, 404: NotFoundError}


def test_what_this_posthog_does_not_have_is_left_out_by_default_and_an_error_by_name(
    server: Server, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    of_project = [table for table in RESOURCES if table.root == "project"]  # others are not for a key of one
    statuses = {resource(table): list(REFUSALS)[n % 3] for n, table in enumerate(of_project)}
    project.settings(unavailable=statuses)

    with Warehouse.at(tmp_path_factory.mktemp("missing")).held() as place, caplog.at_level(logging.WARNING):
        run_sync(place.pipeline, **project.credentials)
        for table in RESOURCES:
            warnings = [text for text in caplog.messages if text.startswith(f"{table.name} is left as it is")]
            assert len(warnings) == 1
        asks: dict[str, Callable[[], object]] = {
            "alerts": lambda: run_sync(place.pipeline, tables=["alerts"], **project.credentials),
            "surveys": lambda: place.pipeline.run(posthog_source(tables="surveys", **project.credentials)),
            "actions": lambda: place.pipeline.run(
                posthog_source(**project.credentials).with_resources("actions")
            ),
        }
        for name, ask in asks.items():
            with pytest.raises(Exception) as failure:  # noqa: PT011 - dlt wraps it
                ask()
            by_name = {table.name: resource(table) for table in RESOURCES}
            assert isinstance(find_cause(failure.value), REFUSALS[statuses[by_name[name]]])


def test_a_list_that_is_only_where_it_was_once_is_found(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = server.project(settings={"environments_only": ["error_tracking/issues"]})
    (table,) = (one for one in RESOURCES if one.name == "error_tracking_issues")
    ids = put(project, table, {}, {})

    with Warehouse.at(tmp_path_factory.mktemp("environments")).held() as place:
        run_sync(place.pipeline, tables=[table.name], **project.credentials)

        assert loaded(place, table) == sorted(ids)


@pytest.mark.parametrize("table", LISTED, ids=lambda table: table.name)
def test_a_key_without_the_scope_is_told_which_one_it_needs(
    project: Project, tmp_path_factory: pytest.TempPathFactory, table: RestTable
) -> None:
    key = project.server.key(["query:read", "project:read"])
    source = posthog_source(**project.credentials | {"api_key": key}).with_resources(table.name)

    with pytest.raises(Exception) as failure:  # noqa: PT011 - dlt wraps it
        Warehouse.at(tmp_path_factory.mktemp("scope")).pipeline.extract(source)

    error = find_cause(failure.value)
    assert isinstance(error, AccessDeniedError)
    assert table.scopes[0] in str(error)


DELETIONS: dict[str, dict[str, Any]] = {
    "newer": {"activity": "deleted"},
    "older": {"activity": "updated", "changes": [{"field": "deleted", "before": False, "after": True}]},
}


def noted(project: Project, table: RestTable, item: dict[str, Any], change: dict[str, Any]) -> None:
    """A change of an object, in the activity log."""
    key = item["id" if table.primary_key[-1] == "id" else "short_id"]
    detail = {"short_id": item["short_id"], "changes": change.get("changes")}
    entry = {"scope": table.activity_scope, "activity": change["activity"], "item_id": str(key)}
    put(project, ACTIVITY_LOG, entry | {"detail": detail})


@pytest.mark.parametrize("version", DELETIONS)
@pytest.mark.parametrize(
    "table", [one for one in DEFINITIONS if one.activity_scope], ids=lambda one: one.name
)
def test_what_the_log_says_was_deleted_goes_and_comes_back_when_it_is_restored(
    server: Server, tmp_path_factory: pytest.TempPathFactory, table: RestTable, version: str
) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    items = [{"short_id": f"short{n}", "last_modified_at": "2026-01-01T00:00:00Z"} for n in range(3)]
    items = [item | {"id": key} for item, key in zip(items, put(project, table, *items), strict=True)]
    kept, _, restored = (str(item["id"]) for item in items)

    with Warehouse.at(tmp_path_factory.mktemp("deleted")).held() as place:
        synced(place, project, table.name)
        put(project, table, items[0], *(one | {"deleted": True} for one in items[1:]), method="PUT")
        for item in items[1:]:
            noted(project, table, item, {"activity": "created"})
            noted(project, table, item, DELETIONS[version])
        synced(place, project, table.name)
        assert loaded(place, table) == [kept]

        put(project, table, items[0], items[1] | {"deleted": True}, items[2], method="PUT")
        noted(project, table, items[2], {"activity": "restored"})
        synced(place, project, table.name)
        assert loaded(place, table) == sorted([kept, restored])


def test_what_is_deleted_stays_as_last_seen_where_no_log_tells(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS, "unavailable": {"activity_log": 402}})
    first, second = put(project, BY_NAME["insights"], {}, {})
    with Warehouse.at(tmp_path_factory.mktemp("stays")).held() as place:
        synced(place, project, "insights")
        put(project, BY_NAME["insights"], {"id": first, "deleted": True})
        put(project, ACTIVITY_LOG, {"scope": "Insight", "activity": "deleted", "item_id": str(first)})

        synced(place, project, "insights")

        assert loaded(place, BY_NAME["insights"]) == [str(first), str(second)]


def test_the_activity_log_is_read_down_to_where_the_last_sync_began(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """2,500 entries, eight of the same instant each, so that pages end among them."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    times = [(begin + timedelta(minutes=n // 8)).isoformat() for n in range(2_500)]
    ids = put(project, ACTIVITY_LOG, *({"scope": "Action", "created_at": at} for at in times))
    with Warehouse.at(tmp_path_factory.mktemp("log")).held() as place:
        synced(place, project, "activity_log")
        assert loaded(place, ACTIVITY_LOG) == sorted(ids)

        ids += put(project, ACTIVITY_LOG, {"scope": "Action"})
        project.forget_requests()
        synced(place, project, "activity_log")

        assert loaded(place, ACTIVITY_LOG) == sorted(ids)
        assert len([one for one in project.requests() if "activity_log" in one["path"]]) == 1


def test_runs_of_batch_exports_are_there_from_the_beginning_and_seen_until_they_are_finished(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project, table = server.project(settings={"rate_limits": NO_LIMITS}), BY_NAME["batch_export_runs"]
    owners = put(project, BY_NAME["batch_exports"], {}, {})
    long_ago = "2024-05-01T00:00:00Z"
    old = put(project, table, {"created_at": long_ago, "status": "Completed"}, owner=owners[0])
    (running,) = put(project, table, {"status": "Running"}, owner=owners[1])
    with Warehouse.at(tmp_path_factory.mktemp("runs")).held() as place:
        synced(place, project, table.name)
        assert loaded(place, table) == sorted([*old, running])
        put(project, table, {"id": running, "_parent": owners[1], "status": "Completed"}, method="PUT")

        synced(place, project, table.name)

        assert place.query(f"SELECT DISTINCT status FROM {table.name}") == [("Completed",)]
        assert loaded(place, table) == sorted([*old, running])


def test_an_export_that_goes_while_runs_are_read_takes_no_others_runs_along(
    server: Server, warehouse: Warehouse
) -> None:
    project, table, owners, runs = _project_with_runs(server)
    project.faults(f"batch_exports/{owners[1]}/runs", {"status": 404})

    synced(warehouse, project, table.name)

    assert loaded(warehouse, table) == sorted([*runs[0], *runs[2]])


def test_runs_that_could_not_be_read_to_the_end_are_read_from_the_beginning_next_time(
    server: Server, warehouse: Warehouse
) -> None:
    project, table, owners, runs = _project_with_runs(server)
    project.faults(f"batch_exports/{owners[1]}/runs", {"status": 403})

    run_sync(warehouse.pipeline, **project.credentials)
    assert set(loaded(warehouse, table)) < {each for some in runs for each in some}

    run_sync(warehouse.pipeline, **project.credentials)
    assert loaded(warehouse, table) == sorted(each for some in runs for each in some)


def _project_with_runs(server: Server) -> tuple[Project, RestTable, list[Any], list[list[Any]]]:
    """Three batch exports, each with a run of long ago and one of today."""
    project, table = server.project(settings={"rate_limits": NO_LIMITS}), BY_NAME["batch_export_runs"]
    owners = put(project, BY_NAME["batch_exports"], {}, {}, {})
    long_ago = {"created_at": "2024-05-01T00:00:00Z"}
    return project, table, owners, [put(project, table, long_ago, {}, owner=owner) for owner in owners]


def test_what_takes_a_request_for_each_object_is_read_only_where_it_is_named(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    shown = {
        table.name: next(column.name for column in table.columns if column.kind == "json")
        for table in DETAILS
    }
    for table in DETAILS:
        assert table.each is not None
        put(project, table.each, *({"_detail": {shown[table.name]: {"n": n}}} for n in range(3)))

    with Warehouse.at(tmp_path_factory.mktemp("details")).held() as place:
        run_sync(place.pipeline, **project.credentials)
        assert not place.counts().keys() & shown.keys()
        synced(place, project, *shown)
        for name, member in shown.items():
            found = place.query(f"SELECT {member} FROM {name} ORDER BY 1")
            assert [json.loads(value) for (value,) in found] == [{"n": n} for n in range(3)]


@pytest.mark.slow
def test_large_lists_take_as_many_requests_as_they_have_pages(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """5,000 insights, 2,000 flags and 50,000 properties."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    by_name = {table.name: table for table in DEFINITIONS}
    sizes = {"insights": 5_000, "feature_flags": 2_000, "property_definitions": 50_000}
    for name, size in sizes.items():
        for first in range(0, size, 10_000):
            put(project, by_name[name], *({"name": f"{n}"} for n in range(first, min(size, first + 10_000))))
    project.forget_requests()

    with Warehouse.at(tmp_path_factory.mktemp("large")).held() as place:
        run_sync(place.pipeline, tables=list(sizes), **project.credentials)
        assert place.counts() == sizes

    needed = sum(
        max(1, -(-size // by_name[name].page_rows)) + max(0, len(by_name[name].passes) - 1)
        for name, size in sizes.items()
    )
    asked = [one for one in project.requests() if one["method"] == "GET"]
    assert len(asked) <= 1.3 * needed


@pytest.mark.parametrize("written", ["event", ["events", "flags"], [""], 5])
def test_a_table_that_there_is_not_is_refused_with_those_that_there_are(
    project: Project, written: object
) -> None:
    expected = r"there are the groups events, people, definitions.*feature_flags"
    with pytest.raises(Exception, match=expected) as failure:
        posthog_source(tables=written, **project.credentials)
    assert isinstance(find_cause(failure.value) or failure.value, SettingsError)


def test_groups_of_tables_are_chosen_by_name(project: Project) -> None:
    chosen = posthog_source(tables="events, definitions", **project.credentials)
    assert list(chosen.resources) == ["events", *(table.name for table in DEFINITIONS)]
