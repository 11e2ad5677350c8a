"""people: the warehouse knows who is who now, at a cost that follows the changes."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from posthog_source import Budget, EventsConfig, PeopleConfig, RunReport, posthog_source, run_sync
from tests.conftest import Files, Project, Warehouse
from tests.people import (
    check_exactly,
    event,
    identify,
    loaded_owners,
    loaded_persons,
    names_of,
    true_owners,
    true_persons,
)

PEOPLE = ("persons", "person_distinct_ids")
AT_ONCE = EventsConfig(lag_s=0, late_arrival_every_s=0)


def sync(project: Project, warehouse: Warehouse, *tables: str, **arguments: Any) -> RunReport:
    return run_sync(
        warehouse.pipeline,
        tables=tables or ("events", *PEOPLE),
        **{"events": AT_ONCE} | project.credentials | arguments,
    )


@pytest.fixture
def town(busy_project: Project) -> Project:
    """Thirty people who have done something, each under two ids; long enough ago for a first sync to read."""
    before = datetime.now(UTC) - timedelta(minutes=2)
    busy_project.capture(*(event("seen", f"user-{n}", before, **{"$set": {"n": n}}) for n in range(30)))
    busy_project.capture(*(identify(f"user-{n}", f"anon-{n}") for n in range(30)))
    return busy_project


def test_people_who_merge_change_and_come_are_right_after_the_next_sync(
    town: Project, warehouse: Warehouse
) -> None:
    sync(town, warehouse)
    check_exactly(town, warehouse)

    town.capture(
        event("$merge_dangerously", "user-1", alias="user-2"),
        event("$create_alias", "user-3", alias="never seen"),
        event("bought", "user-4", **{"$set": {"plan": "pro"}}),
        event("seen", "newcomer"),
        event("seen", "nobody", **{"$process_person_profile": False}),
    )
    sync(town, warehouse)

    check_exactly(town, warehouse)
    gone = loaded_persons(warehouse, "deleted_at IS NOT NULL")
    assert len(gone) == 1
    assert json.loads(next(iter(gone.values()))[1])["n"] == 2


@pytest.mark.parametrize("newcomers", [0, 150])
def test_who_did_something_is_asked_for_in_three_questions_though_somebody_was_merged_away(
    town: Project, warehouse: Warehouse, newcomers: int
) -> None:
    sync(town, warehouse)
    town.capture(event("$merge_dangerously", "user-1", alias="user-2"), event("seen", "user-3"))
    town.capture(*(identify(f"newcomer-{n}", f"anonymous-{n}") for n in range(newcomers)))
    town.forget_requests()

    sync(town, warehouse)

    asked = [name for name in names_of(town) if name.startswith("person")]
    assert asked == ["person_distinct_ids", "persons", "persons"]
    check_exactly(town, warehouse)


def test_only_rows_that_changed_are_written_and_wide_ones_read(town: Project, warehouse: Warehouse) -> None:
    sync(town, warehouse)
    town.capture(
        *(event("seen", f"user-{n}") for n in range(30)),
        event("seen", "user-4", **{"$set": {"plan": "pro"}}),
        identify("user-5", "another"),
    )
    town.forget_requests()

    report = sync(town, warehouse)

    assert report.tables["persons"]["rows"] == 1
    assert report.tables["person_distinct_ids"]["rows"] == 1
    pages = [request for request in town.requests() if request.get("name") == "posthog_source persons"]
    assert sorted(page["result_rows"] for page in pages) == [1, 30]
    assert sum("newest_properties" in page["query"] for page in pages) == 1
    check_exactly(town, warehouse)


def test_a_sync_in_which_nobody_did_anything_asks_once_for_both_tables(
    town: Project, warehouse: Warehouse
) -> None:
    early = {"events": EventsConfig(lag_s=0, lookback_s=0)}
    sync(town, warehouse, **early)
    sync(town, warehouse, **early)
    town.forget_requests()

    report = sync(town, warehouse, *PEOPLE, **early)

    assert [report.tables[name]["rows"] for name in PEOPLE] == [0, 0]
    assert set(names_of(town)) <= {"person_distinct_ids", "persons"}
    assert names_of(town).count("person_distinct_ids") <= 2


@pytest.mark.parametrize("deletes", ["soft", "hard", "ignore"])
def test_what_was_deleted_or_edited_in_posthog_itself_is_right_after_the_next_sweep(
    town: Project, warehouse: Warehouse, deletes: str
) -> None:
    sync(town, warehouse)
    owners = true_owners(town)
    town.control("POST", "delete/persons", person_ids=[owners["user-7"]])
    town.control("PATCH", "persons", distinct_id="user-8", set={"plan": "enterprise"})

    sync(town, warehouse, people=PeopleConfig(deletes=deletes))
    assert set(loaded_persons(warehouse)) == set(owners.values())  # nobody has noticed yet

    sync(town, warehouse, people=PeopleConfig(deletes=deletes, sweep_every_days=0))

    if deletes == "ignore":
        assert loaded_persons(warehouse).items() >= true_persons(town).items()
        assert owners["user-7"] in loaded_persons(warehouse)
        return
    check_exactly(town, warehouse)
    marked = (
        loaded_persons(warehouse, "deleted_at IS NOT NULL"),
        loaded_owners(warehouse, "deleted_at IS NOT NULL"),
    )
    kept = (1, 2) if deletes == "soft" else (0, 0)
    assert (len(marked[0]), len(marked[1])) == kept


def test_a_person_who_comes_back_is_no_longer_marked_as_gone(town: Project, warehouse: Warehouse) -> None:
    sync(town, warehouse)
    town.control("POST", "delete/persons", person_ids=[true_owners(town)["user-7"]])
    sync(town, warehouse, people=PeopleConfig(sweep_every_days=0))
    assert len(loaded_persons(warehouse, "deleted_at IS NOT NULL")) == 1

    town.capture(event("seen", "user-7"))
    sync(town, warehouse)

    check_exactly(town, warehouse)
    assert loaded_persons(warehouse, "deleted_at IS NOT NULL") == {}


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "wiped"])
def test_a_sweep_that_stops_deletes_nobody_and_goes_on_where_it_was(
    busy_project: Project, warehouse: Warehouse, is_kept: bool
) -> None:
    """Read in commits of about forty rows, one at a time."""
    busy_project.generate(events=10, persons=240, days=1, properties_bytes=10, nasty=False)
    small = {"people": PeopleConfig(page_rows=40, sweep_every_days=0), "rows_per_commit": 20}
    sync(busy_project, warehouse, *PEOPLE)
    before = true_persons(busy_project)
    victims = sorted(before)[::10]
    busy_project.control("POST", "delete/persons", person_ids=victims)

    reports: list[RunReport] = []
    while not reports or reports[-1].status == "budget_spent":
        warehouse = Warehouse.at(warehouse.path)
        if not is_kept:
            warehouse.pipeline.drop()
        if reports:
            assert set(loaded_persons(warehouse)) == set(before)
            assert len(reports) < 30
        busy_project.forget_requests()
        reports.append(sync(busy_project, warehouse, "persons", budget=Budget(max_queries=1), **small))

    assert len(reports) > 5
    assert sum(report.tables["persons"]["rows"] for report in reports) == len(before)
    assert loaded_persons(warehouse) == true_persons(busy_project)
    assert set(loaded_persons(warehouse, "deleted_at IS NOT NULL")) == set(victims)


def test_a_first_sweep_that_had_to_read_a_part_again_has_each_row_once(
    town: Project, warehouse: Warehouse
) -> None:
    town.settings(person_last_seen=True)
    town.faults("query", {"pass": True}, {"kind": "drop_rows", "rows": 3})

    report = sync(town, warehouse, "persons")

    assert report.parts_read_again == 1
    assert loaded_persons(warehouse) == true_persons(town)


def test_when_too_many_did_something_all_are_read(busy_project: Project, warehouse: Warehouse) -> None:
    everyone = [event("seen", f"user-{n}") for n in range(200)]
    busy_project.capture(*everyone)
    few = {"people": PeopleConfig(page_rows=50)}
    sync(busy_project, warehouse, **few)
    busy_project.capture(*everyone)
    busy_project.forget_requests()

    report = sync(busy_project, warehouse, **few)

    assert [report.tables[name]["rows"] for name in PEOPLE] == [200, 200]
    check_exactly(busy_project, warehouse)


@pytest.mark.parametrize("count", [3, 1_005], ids=["rows", "days"])
def test_whoever_did_something_late_is_read_too(town: Project, warehouse: Warehouse, count: int) -> None:
    """As few late events, or as whole days."""
    sync(town, warehouse)
    before = datetime.now(UTC) - timedelta(days=5)
    town.capture(
        *(event("offline", f"traveller-{n % 20}", before + timedelta(seconds=n)) for n in range(count))
    )

    report = sync(town, warehouse)

    assert report.tables["persons"]["rows"] == min(count, 20)
    check_exactly(town, warehouse)


def test_people_who_come_late_to_an_empty_project_are_found(
    busy_project: Project, warehouse: Warehouse
) -> None:
    sync(busy_project, warehouse)
    busy_project.capture(event("offline", "traveller", datetime.now(UTC) - timedelta(days=5)))

    sync(busy_project, warehouse)

    check_exactly(busy_project, warehouse)


def test_people_whose_late_events_are_among_the_first_ever_read_are_found(
    busy_project: Project, warehouse: Warehouse
) -> None:
    """A sync that finds no event old enough has people all the same."""
    busy_project.capture(event("seen", "pioneer"))
    sync(busy_project, warehouse, events=EventsConfig(lag_s=300))
    assert warehouse.counts()["persons"] == 1
    busy_project.capture(event("offline", "traveller", datetime.now(UTC) - timedelta(days=5)))

    sync(busy_project, warehouse)

    check_exactly(busy_project, warehouse)


def test_a_plain_run_is_right_too_and_finds_late_people_in_the_next(
    town: Project, warehouse: Warehouse
) -> None:
    warehouse.sync(town, *PEOPLE, events=AT_ONCE)
    check_exactly(town, warehouse)
    town.capture(event("$merge_dangerously", "user-1", alias="user-2"), event("seen", "newcomer"))

    warehouse.sync(town, *PEOPLE, events=AT_ONCE)

    check_exactly(town, warehouse)


def test_last_seen_at_is_there_where_the_server_has_it(town: Project, warehouse: Warehouse) -> None:
    town.settings(person_last_seen=True)
    town.capture(event("seen", "user-1"))
    sync(town, warehouse)
    ((count,),) = warehouse.query("SELECT count(*) FROM persons WHERE last_seen_at IS NOT NULL")
    assert count >= 1


def test_plain_files_hold_everybody_once_though_an_answer_was_short(town: Project, files: Files) -> None:
    town.settings(person_last_seen=True)
    town.faults("query", {"pass": True}, {"kind": "drop_rows", "rows": 1})

    source = posthog_source(**town.credentials).with_resources("persons")
    files.pipeline.run(source, loader_file_format="parquet")

    ids = [row["id"] for row in files.rows("persons")]
    assert sorted(ids) == sorted(true_persons(town))
