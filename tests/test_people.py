"""people: the warehouse knows who is who now, at a cost that follows the changes."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import pytest
from dlt.sources import DltResource

from posthog_source import Budget, EventsConfig, PeopleConfig, RunReport, run_sync
from posthog_source.client import Client
from posthog_source.config import EventsSettings, PeopleSettings, build_settings
from posthog_source.people import build_people
from tests.conftest import NO_LIMITS, FakeTime, Project, Server, Warehouse

pytestmark = pytest.mark.usefixtures("no_pipeline_stays_active")

SEED = int(os.environ.get("POSTHOG_SEED", "1"))
SYNC_HOURS = float(os.environ.get("POSTHOG_MONTH_SYNC_HOURS", "24"))
PERSONS = int(os.environ.get("POSTHOG_MONTH_PERSONS", "500"))
PEOPLE = ("persons", "person_distinct_ids")
AT_ONCE = EventsConfig(lag_s=0, late_arrival_every_s=0)
MONTH = timedelta(days=30)

Person = tuple[str, str, bool, int]
"""Id, properties, whether identified, version."""


def event(name: str, distinct_id: str, at: datetime | None = None, /, **properties: Any) -> dict[str, Any]:
    sent = {"event": name, "distinct_id": distinct_id, "properties": properties}
    return sent | ({"timestamp": at.isoformat()} if at else {})


def identify(distinct_id: str, anonymous: str) -> dict[str, Any]:
    return event("$identify", distinct_id, **{"$anon_distinct_id": anonymous})


def sync(project: Project, place: Warehouse, *tables: str, **arguments: Any) -> RunReport:
    return run_sync(
        place.pipeline,
        tables=tables or ("events", *PEOPLE),
        **{"events": AT_ONCE} | project.credentials | arguments,
    )


def true_persons(project: Project) -> dict[str, Person]:
    """Who lives, as ClickHouse holds them."""
    rows = project.persons("toString(id), properties, is_identified, version, is_deleted")
    return {row[0]: (row[0], row[1], bool(row[2]), int(row[3])) for row in rows if not int(row[4])}


def true_owners(project: Project) -> dict[str, str]:
    """Whose each living distinct id is."""
    rows = project.server.sql(
        "SELECT distinct_id, toString(person_id), is_deleted FROM person_distinct_id2"
        f" WHERE team_id = {project.id} ORDER BY version DESC LIMIT 1 BY distinct_id"
    )
    return {row[0]: row[1] for row in rows if not int(row[2])}


def loaded_persons(place: Warehouse, where: str = "deleted_at IS NULL") -> dict[str, Person]:
    rows = place.query(f"SELECT id, properties::text, is_identified, version FROM persons WHERE {where}")
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: (row[0], row[1], row[2], row[3]) for row in rows}


def loaded_owners(place: Warehouse, where: str = "deleted_at IS NULL") -> dict[str, str]:
    rows = place.query(f"SELECT distinct_id, person_id FROM person_distinct_ids WHERE {where}")
    assert len({row[0] for row in rows}) == len(rows)
    return {row[0]: row[1] for row in rows}


def check_exactly(project: Project, place: Warehouse) -> None:
    assert loaded_persons(place) == true_persons(project)
    assert loaded_owners(place) == true_owners(project)


def names_of(project: Project) -> list[str]:
    """Of the queries asked."""
    return [
        request["name"].removeprefix("posthog_source ")
        for request in project.requests()
        if request.get("name")
    ]


@pytest.fixture
def town(busy_project: Project) -> Project:
    """Thirty people who have done something, each under two ids; long enough ago for a first sync to read."""
    before = datetime.now(UTC) - timedelta(minutes=2)
    busy_project.capture(*(event("seen", f"user-{n}", before, **{"$set": {"n": n}}) for n in range(30)))
    busy_project.capture(*(identify(f"user-{n}", f"anon-{n}") for n in range(30)))
    return busy_project


def test_people_who_merge_change_and_come_are_right_after_the_next_sync(
    town: Project, place: Warehouse
) -> None:
    sync(town, place)
    check_exactly(town, place)

    town.capture(
        event("$merge_dangerously", "user-1", alias="user-2"),
        event("$create_alias", "user-3", alias="never seen"),
        event("bought", "user-4", **{"$set": {"plan": "pro"}}),
        event("seen", "newcomer"),
        event("seen", "nobody", **{"$process_person_profile": False}),
    )
    sync(town, place)

    check_exactly(town, place)
    gone = loaded_persons(place, "deleted_at IS NOT NULL")
    assert len(gone) == 1
    assert json.loads(next(iter(gone.values()))[1])["n"] == 2


def test_only_rows_that_changed_are_written_and_wide_ones_read(town: Project, place: Warehouse) -> None:
    sync(town, place)
    town.capture(
        *(event("seen", f"user-{n}") for n in range(30)),
        event("seen", "user-4", **{"$set": {"plan": "pro"}}),
        identify("user-5", "another"),
    )
    town.forget_requests()

    report = sync(town, place)

    assert report.tables["persons"]["rows"] == 1
    assert report.tables["person_distinct_ids"]["rows"] == 1
    pages = [request for request in town.requests() if request.get("name") == "posthog_source persons"]
    assert sorted(page["result_rows"] for page in pages) == [1, 30]
    assert sum("newest_properties" in page["query"] for page in pages) == 1
    check_exactly(town, place)


def test_a_sync_in_which_nobody_did_anything_asks_once_for_both_tables(
    town: Project, place: Warehouse
) -> None:
    early = {"events": EventsConfig(lag_s=0, lookback_s=0)}
    sync(town, place, **early)
    sync(town, place, **early)
    town.forget_requests()

    report = sync(town, place, *PEOPLE, **early)

    assert [report.tables[name]["rows"] for name in PEOPLE] == [0, 0]
    assert set(names_of(town)) <= {"person_distinct_ids", "persons"}
    assert names_of(town).count("person_distinct_ids") <= 2


@pytest.mark.parametrize("deletes", ["soft", "hard", "ignore"])
def test_what_was_deleted_or_edited_in_posthog_itself_is_right_after_the_next_sweep(
    town: Project, place: Warehouse, deletes: str
) -> None:
    sync(town, place)
    owners = true_owners(town)
    town.control("POST", "delete/persons", person_ids=[owners["user-7"]])
    town.control("PATCH", "persons", distinct_id="user-8", set={"plan": "enterprise"})

    sync(town, place, people=PeopleConfig(deletes=deletes))
    assert set(loaded_persons(place)) == set(owners.values())  # nobody has noticed yet

    sync(town, place, people=PeopleConfig(deletes=deletes, sweep_every_days=0))

    if deletes == "ignore":
        assert loaded_persons(place).items() >= true_persons(town).items()
        assert owners["user-7"] in loaded_persons(place)
        return
    check_exactly(town, place)
    marked = loaded_persons(place, "deleted_at IS NOT NULL"), loaded_owners(place, "deleted_at IS NOT NULL")
    kept = (1, 2) if deletes == "soft" else (0, 0)
    assert (len(marked[0]), len(marked[1])) == kept


def test_a_person_who_comes_back_is_no_longer_marked_as_gone(town: Project, place: Warehouse) -> None:
    sync(town, place)
    town.control("POST", "delete/persons", person_ids=[true_owners(town)["user-7"]])
    sync(town, place, people=PeopleConfig(sweep_every_days=0))
    assert len(loaded_persons(place, "deleted_at IS NOT NULL")) == 1

    town.capture(event("seen", "user-7"))
    sync(town, place)

    check_exactly(town, place)
    assert loaded_persons(place, "deleted_at IS NOT NULL") == {}


@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "wiped"])
def test_a_sweep_that_stops_deletes_nobody_and_goes_on_where_it_was(
    busy_project: Project, tmp_path: Path, is_kept: bool
) -> None:
    """Read in commits of about forty rows, one at a time."""
    busy_project.generate(events=10, persons=240, days=1, properties_bytes=10, nasty=False)
    small = {"people": PeopleConfig(page_rows=40, sweep_every_days=0), "rows_per_commit": 40}
    sync(busy_project, Warehouse.at(tmp_path), *PEOPLE, **small)
    before = true_persons(busy_project)
    victims = sorted(before)[::10]
    busy_project.control("POST", "delete/persons", person_ids=victims)

    reports: list[RunReport] = []
    while not reports or reports[-1].status == "budget_spent":
        place = Warehouse.at(tmp_path)
        if not is_kept:
            place.pipeline.drop()
        if reports:
            assert set(loaded_persons(place)) == set(before)
            assert len(reports) < 30
        busy_project.forget_requests()
        reports.append(sync(busy_project, place, "persons", budget=Budget(max_queries=1), **small))

    assert len(reports) > 5
    assert sum(report.tables["persons"]["rows"] for report in reports) == len(before)
    assert loaded_persons(place) == true_persons(busy_project)
    assert set(loaded_persons(place, "deleted_at IS NOT NULL")) == set(victims)


def test_a_first_sweep_that_had_to_read_a_part_again_has_each_row_once(
    town: Project, place: Warehouse
) -> None:
    town.settings(person_last_seen=True)
    town.faults("query", {"pass": True}, {"kind": "drop_rows", "rows": 3})

    report = sync(town, place, "persons")

    assert report.parts_read_again == 1
    assert loaded_persons(place) == true_persons(town)


def test_when_too_many_did_something_all_are_read(busy_project: Project, place: Warehouse) -> None:
    everyone = [event("seen", f"user-{n}") for n in range(200)]
    busy_project.capture(*everyone)
    few = {"people": PeopleConfig(page_rows=50)}
    sync(busy_project, place, **few)
    busy_project.capture(*everyone)
    busy_project.forget_requests()

    report = sync(busy_project, place, **few)

    assert [report.tables[name]["rows"] for name in PEOPLE] == [200, 200]
    check_exactly(busy_project, place)


@pytest.mark.parametrize("count", [3, 1_005], ids=["rows", "days"])
def test_whoever_did_something_late_is_read_too(town: Project, place: Warehouse, count: int) -> None:
    """As few late events, or as whole days."""
    sync(town, place)
    before = datetime.now(UTC) - timedelta(days=5)
    town.capture(
        *(event("offline", f"traveller-{n % 20}", before + timedelta(seconds=n)) for n in range(count))
    )

    report = sync(town, place)

    assert report.tables["persons"]["rows"] == min(count, 20)
    check_exactly(town, place)


def test_people_who_come_late_to_an_empty_project_are_found(busy_project: Project, place: Warehouse) -> None:
    sync(busy_project, place)
    busy_project.capture(event("offline", "traveller", datetime.now(UTC) - timedelta(days=5)))

    sync(busy_project, place)

    check_exactly(busy_project, place)


def test_people_whose_late_events_are_among_the_first_ever_read_are_found(
    busy_project: Project, place: Warehouse
) -> None:
    """A sync that finds no event old enough has people all the same."""
    busy_project.capture(event("seen", "pioneer"))
    sync(busy_project, place, events=EventsConfig(lag_s=300))
    assert place.counts()["persons"] == 1
    busy_project.capture(event("offline", "traveller", datetime.now(UTC) - timedelta(days=5)))

    sync(busy_project, place)

    check_exactly(busy_project, place)


def test_a_plain_run_is_right_too_and_finds_late_people_in_the_next(town: Project, place: Warehouse) -> None:
    place.sync(town, *PEOPLE, events=AT_ONCE)
    check_exactly(town, place)
    town.capture(event("$merge_dangerously", "user-1", alias="user-2"), event("seen", "newcomer"))

    place.sync(town, *PEOPLE, events=AT_ONCE)

    check_exactly(town, place)


def test_last_seen_at_is_there_where_the_server_has_it(town: Project, place: Warehouse) -> None:
    town.settings(person_last_seen=True)
    town.capture(event("seen", "user-1"))
    sync(town, place)
    ((count,),) = place.query("SELECT count(*) FROM persons WHERE last_seen_at IS NOT NULL")
    assert count >= 1


@dataclass
class Month:
    """People's lives, hour by hour; events happen at the simulated time."""

    project: Project
    place: Warehouse
    now: datetime
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    users: list[str] = field(default_factory=list)
    visitors: int = 0
    unnoticed: set[str] = field(default_factory=set)
    """Persons changed without an event since the last sweep."""
    written: int = 0
    changed: int = 0

    def live(self, until: datetime) -> None:
        """What people do until then, in the order in which it happens."""
        times = sorted(self.now + (until - self.now) * self.chance.random() for _ in range(self._busy(until)))
        self.project.capture(*(done for at in times for done in self._act(at)))
        self.now = until

    def _busy(self, until: datetime) -> int:
        return max(1, round((until - self.now) / timedelta(hours=1) * PERSONS / 500))

    def _act(self, at: datetime) -> list[dict[str, Any]]:
        kind, user = self.chance.random(), self.chance.choice(self.users)
        if kind < 0.4:
            return [event("viewed", user, at)]
        if kind < 0.55:
            return [event("edited", user, at, **{"$set": {"n": self.chance.random()}})]
        if kind < 0.6:
            return [event("viewed", f"robot-{self.visitors}", at, **{"$process_person_profile": False})]
        self.visitors += 1
        visitor = f"visitor-{self.visitors}"
        if kind < 0.7:
            return [event("viewed", visitor, at)]
        if kind < 0.9:
            later = at + timedelta(seconds=1)
            return [
                event("viewed", visitor, at, **{"$set_once": {"came": self.visitors}}),
                event("$identify", user, later, **{"$anon_distinct_id": visitor}),
            ]
        if kind < 0.95:
            return [event("$create_alias", user, at, alias=visitor)]
        return [event("$merge_dangerously", user, at, alias=self.chance.choice(self.users))]

    def interfere(self) -> None:
        """What happens to people in PostHog itself, once a day."""
        owners = true_owners(self.project)
        user, other = self.chance.sample(self.users, 2)
        if user in owners:
            self.project.control("PATCH", "persons", distinct_id=user, set={"sales": self.chance.random()})
            self.unnoticed.add(owners[user])
        if other in owners and owners[other] != owners.get(user):
            self.project.control("POST", "delete/persons", person_ids=[owners[other]])
            self.unnoticed.add(owners[other])


def test_a_month_of_syncs_is_right_after_each_but_for_what_only_a_sweep_can_see(
    server: Server, tmp_path: Path
) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS, "max_concurrent_queries": 100})
    start = datetime.now(UTC) - MONTH - timedelta(days=1)
    month = Month(project, Warehouse.at(tmp_path), start)
    month.users = [f"user-{n}" for n in range(PERSONS)]
    for first in range(0, PERSONS, 500):
        project.capture(*(event("signed up", user, start) for user in month.users[first : first + 500]))
    settings, waiting, began_s = build_settings(**project.credentials), FakeTime(), time.perf_counter()
    syncs = sweeps = 0
    with Client(settings, clock=waiting.clock, sleep=waiting.sleep) as client:

        @dlt.source(name="posthog", section="posthog")
        def source() -> Iterable[DltResource]:
            return build_people(
                client, settings, events=EventsSettings(), people=PeopleSettings(), clock=lambda: month.now
            )

        truth: tuple[dict[str, Person], dict[str, str]] = ({}, {})
        costs: dict[bool, list[int]] = {True: [], False: []}
        while month.now < start + MONTH:
            until = month.now + timedelta(hours=SYNC_HOURS)
            if until.date() != month.now.date():
                month.interfere()
            month.live(until)
            month.now += timedelta(minutes=10)  # all that happened can be seen
            project.forget_requests()
            month.place.pipeline.run(source())
            requests = project.requests()
            syncs += 1
            is_sweep = any(name.endswith(" count") for name in names_of(project))
            sweeps += is_sweep
            costs[is_sweep].append(sum(request.get("read_bytes") or 0 for request in requests))
            if is_sweep:
                month.unnoticed.clear()
            persons, owners = true_persons(project), true_owners(project)
            _check(month, persons, owners)
            if not is_sweep:
                trace: Any = month.place.pipeline.last_trace
                counts = trace.last_normalize_info.row_counts
                month.written += sum(counts.get(name, 0) for name in PEOPLE)
                month.changed += len(persons.items() ^ truth[0].items()) + len(
                    owners.items() - truth[1].items()
                )
            truth = (persons, owners)
        month.place.pipeline.deactivate()
    touched = costs[False]
    print(
        f"\n{PERSONS} persons, {syncs} syncs, {sweeps} of them sweeps, "
        f"{time.perf_counter() - began_s:.0f} s; rows written "
        f"{month.written} where {month.changed} changed; bytes read by a sweep "
        f"{max(costs[True])}, by another sync {sum(touched) / len(touched):.0f}, at most {max(touched)}"
    )
    assert sweeps == pytest.approx(5, abs=1)
    assert month.written <= 1.1 * month.changed


def _check(month: Month, persons: dict[str, Person], owners: dict[str, str]) -> None:
    """All is right but for persons whom nobody has noticed."""
    found_persons, found_owners = loaded_persons(month.place), loaded_owners(month.place)
    wrong = {
        one for one in found_persons.keys() | persons.keys() if found_persons.get(one) != persons.get(one)
    }
    assert wrong <= month.unnoticed, f"seed {SEED}, {month.now}: {sorted(wrong - month.unnoticed)[:5]}"
    moved = {
        name for name in found_owners.keys() | owners.keys() if found_owners.get(name) != owners.get(name)
    }
    strangers = {name for name in moved if found_owners.get(name) not in month.unnoticed}
    assert not strangers, f"seed {SEED}, {month.now}: {sorted(strangers)[:5]}"
