"""membership: the warehouse knows who is in which cohort, at a cost that follows the changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from posthog_source import Budget, PeopleConfig, RunReport, posthog_source, run_sync
from posthog_source.errors import AccessDeniedError, QuotaSpentError, ServerError, SettingsError, find_cause
from tests.conftest import NO_LIMITS, Files, Project, Server, Warehouse

PLANS = ("free", "pro", "team")
PEOPLE = 30


@dataclass
class Town:
    """People with plans, a dynamic cohort for each plan, and a static one."""

    project: Project
    plans: dict[str, int] = field(default_factory=dict)
    friends: int = 0

    @classmethod
    def of(cls, project: Project) -> Town:
        town = cls(project)
        town.move({f"user-{n}": PLANS[n % 3] for n in range(PEOPLE)})
        for plan in PLANS:
            town.plans[plan] = town.add_cohort(name=plan, filters=having(plan))
        town.friends = town.add_cohort(name="friends", is_static=True)
        town.change(add=["user-0", "user-1"])
        town.recalculate()
        return town

    @property
    def numbers(self) -> list[int]:
        return [*self.plans.values(), self.friends]

    def move(self, plans: dict[str, str]) -> None:
        """Gives people other plans."""
        self.project.capture(
            *(
                {"event": "moved", "distinct_id": name, "properties": {"$set": {"plan": plan}}}
                for name, plan in plans.items()
            )
        )

    def add_cohort(self, **given: Any) -> int:
        return int(self.project.control("POST", "cohorts", items=[given])["ids"][0])

    def recalculate(self, *plans: str) -> None:
        self.project.control(
            "POST", "cohorts/recalculate", cohort_ids=[self.plans[p] for p in plans or PLANS]
        )

    def change(self, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Who is a friend."""
        ids = self.project.person_ids()
        changes = {"add": [ids[one] for one in add], "remove": [ids[one] for one in remove]}
        self.project.control("POST", f"cohorts/{self.friends}/members", **changes)

    def members(self, *cohorts: int) -> set[tuple[int, str]]:
        """As ClickHouse holds them, of cohorts that there are."""
        there = {one["id"] for one in self.project.get("cohorts/", limit=1000).json()["results"]}
        wanted = set(cohorts) or there
        return {(number, person) for number, person in self.project.members() if number in wanted & there}

    def asked(self) -> list[str]:
        """Queries of members since the journal was cleared: plan or page."""
        return [
            str(request["name"]).removeprefix("posthog_source cohort_people").strip() or "page"
            for request in self.project.requests()
            if str(request.get("name", "")).startswith("posthog_source cohort_people")
        ]


def having(plan: str) -> dict[str, Any]:
    values = [{"key": "plan", "type": "person", "operator": "exact", "value": plan}]
    return {"properties": {"type": "OR", "values": [{"type": "AND", "values": values}]}}


Stay = tuple[int, str, datetime, datetime | None]
"""Cohort, person's distinct id, when entered, when left."""

HISTORY = {"people": PeopleConfig(cohort_history=True)}


def stays(town: Town, warehouse: Warehouse, *cohorts: int) -> list[Stay]:
    """The history, oldest first."""
    names = {person: name for name, person in town.project.person_ids().items()}
    rows = warehouse.query(
        "SELECT cohort_id, person_id, entered_at, left_at FROM cohort_people_history"
        f" WHERE project_id = {town.project.id} ORDER BY entered_at, person_id"
    )
    return [(row[0], names[row[1]], row[2], row[3]) for row in rows if not cohorts or row[0] in cohorts]


def calculated_at(town: Town, cohort: int) -> datetime:
    return datetime.fromisoformat(town.project.get(f"cohorts/{cohort}/").json()["last_calculation"])


def sync(town: Town, warehouse: Warehouse, **arguments: Any) -> RunReport:
    return run_sync(warehouse.pipeline, tables=["cohort_people"], **town.project.credentials | arguments)


def loaded(warehouse: Warehouse, *cohorts: int) -> set[tuple[int, str]]:
    rows = warehouse.query("SELECT cohort_id, person_id FROM cohort_people")
    assert len(set(rows)) == len(rows)
    return {(row[0], row[1]) for row in rows if not cohorts or row[0] in cohorts}


@pytest.fixture
def town(busy_project: Project) -> Town:
    return Town.of(busy_project)


def test_whoever_enters_or_leaves_a_dynamic_cohort_does_so_in_the_warehouse(
    town: Town, warehouse: Warehouse
) -> None:
    sync(town, warehouse)
    assert loaded(warehouse) == town.members()
    assert len(loaded(warehouse)) == PEOPLE + 2

    town.move({"user-0": "pro", "user-3": "team"})
    town.recalculate()
    sync(town, warehouse)

    assert loaded(warehouse) == town.members()
    assert len(loaded(warehouse, town.plans["free"])) == PEOPLE // 3 - 2


def test_whoever_is_put_into_a_static_cohort_or_taken_out_of_it_is_so_in_the_warehouse(
    town: Town, warehouse: Warehouse
) -> None:
    sync(town, warehouse)
    for changes in ({"add": ["user-5"]}, {"remove": ["user-0"]}, {"add": ["user-7"], "remove": ["user-5"]}):
        town.change(**changes)

        sync(town, warehouse)

        assert loaded(warehouse) == town.members()


def test_a_cohort_that_is_deleted_or_loses_all_its_members_has_none_in_the_warehouse(
    town: Town, warehouse: Warehouse
) -> None:
    sync(town, warehouse)
    town.project.control("DELETE", f"cohorts/{town.friends}")
    town.project.control("DELETE", f"cohorts/{town.plans['free']}")
    town.move({f"user-{n}": "free" for n in range(PEOPLE) if PLANS[n % 3] == "pro"})
    town.recalculate("pro")

    sync(town, warehouse)

    assert {number for number, _ in loaded(warehouse)} == {town.plans["team"]}
    assert loaded(warehouse) == town.members()


def test_a_cohort_deleted_before_this_connector_could_know_leaves_nothing(
    town: Town, warehouse: Warehouse
) -> None:
    """Its members were loaded by a pipeline whose memory is gone."""
    sync(town, warehouse)
    town.project.control("DELETE", f"cohorts/{town.friends}")

    sync(town, Warehouse.at(warehouse.path, "another"))

    assert loaded(warehouse) == town.members()


def test_cohorts_that_have_not_changed_are_not_read_again(town: Town, warehouse: Warehouse) -> None:
    sync(town, warehouse)
    town.project.forget_requests()

    report = sync(town, warehouse)

    assert town.asked() == []
    assert report.tables["cohort_people"]["requests"] == 1
    assert report.tables["cohort_people"]["cohorts_read"] == 0

    town.recalculate("pro")
    town.project.forget_requests()
    report = sync(town, warehouse)

    assert report.tables["cohort_people"]["cohorts_read"] == 1
    assert report.tables["cohort_people"]["rows"] == PEOPLE // 3
    assert town.asked() == ["plan", "plan", "page"]
    pages = [request for request in town.project.requests() if request.get("name", "").endswith("_people")]
    assert [page["result_rows"] for page in pages] == [PEOPLE // 3]
    assert loaded(warehouse) == town.members()


def test_all_are_read_again_once_in_a_while_and_a_static_one_without_a_time_always(
    town: Town, warehouse: Warehouse
) -> None:
    timeless = town.add_cohort(name="timeless", is_static=True, last_calculation=None)
    sync(town, warehouse)

    assert sync(town, warehouse).tables["cohort_people"]["cohorts_read"] == 1
    everything = sync(town, warehouse, people=PeopleConfig(sweep_every_days=0))

    assert everything.tables["cohort_people"]["cohorts_read"] == len([*town.numbers, timeless])
    assert loaded(warehouse) == town.members()


FAILURES: dict[str, list[dict[str, Any]]] = {
    "refused": [{"status": 400}, {"pass": True}, {"status": 400}, {"status": 400}],
    "broken": [{"status": 500}, {"pass": True}, {"status": 500}, {"status": 500}],
    "unreadable": [{"kind": "error_field"}, {"pass": True}, {"kind": "error_field"}, {"kind": "error_field"}],
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_cohort_that_fails_keeps_its_members_is_told_and_the_others_move(
    town: Town, warehouse: Warehouse, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All three are asked for at once; then the first alone; then the others, and of those the first."""
    sync(town, warehouse)
    before = loaded(warehouse)
    town.move({f"user-{n}": "pro" for n in range(6)})
    town.recalculate()
    town.project.faults("query", {"pass": True, "times": 2}, *FAILURES[failure])

    with caplog.at_level(logging.WARNING, "posthog_source"):
        report = sync(town, warehouse, max_attempts=1)

    pro, others = town.plans["pro"], (town.plans["free"], town.plans["team"])
    assert loaded(warehouse, pro) == {one for one in before if one[0] == pro}
    assert loaded(warehouse, *others) == town.members(*others)
    assert loaded(warehouse, town.friends) == town.members(town.friends)
    told = [message for message in caplog.messages if message.startswith("cohort_people: cohort")]
    assert len(told) == 1
    assert f"cohort {pro} (pro) keeps the members it had: " in told[0]
    assert report.tables["cohort_people"]["cohorts_failed"] == 1
    assert "1 cohorts failed" in str(report)
    assert report.status == "done"

    assert sync(town, warehouse).tables["cohort_people"]["cohorts_read"] == 1
    assert loaded(warehouse) == town.members()


def test_a_cohort_of_which_members_are_missing_keeps_those_it_had(
    town: Town, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    sync(town, warehouse)
    before = loaded(warehouse)
    town.move({"user-0": "pro"})
    town.recalculate("pro")
    lost: list[dict[str, Any]] = [{"kind": "drop_rows", "rows": 1, "times": 2}, {"pass": True}]
    town.project.faults("query", {"pass": True, "times": 2}, *lost, *lost)

    report = sync(town, warehouse)

    assert report.tables["cohort_people"]["cohorts_failed"] == 1
    assert loaded(warehouse) == before
    assert "10 rows came where PostHog counts 11" in caplog.text
    sync(town, warehouse)
    assert loaded(warehouse) == town.members()


def test_a_cohort_calculated_while_it_was_read_keeps_its_members_until_the_next_sync(
    town: Town, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    """Its pages may be of two calculations. The list after reading says that there was another."""
    sync(town, warehouse)
    before = loaded(warehouse)
    town.move({"user-0": "pro"})
    town.recalculate("pro")
    moved = town.project.get("cohorts/", limit=1000).json()
    for cohort in moved["results"]:
        cohort["version"] = cohort["version"] and cohort["version"] + (cohort["id"] == town.plans["pro"])
    town.project.faults("cohorts", {"pass": True}, {"status": 200, "body": moved})

    report = sync(town, warehouse)

    assert report.tables["cohort_people"]["cohorts_failed"] == 1
    assert "PostHog calculated it while it was read" in caplog.text
    assert loaded(warehouse) == before
    sync(town, warehouse)
    assert loaded(warehouse) == town.members()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"count": 7}, "PostHog counts 7 and hands out none"),
        ({"is_static": True, "is_calculating": True}, "PostHog is still writing them"),
    ],
)
def test_a_cohort_that_posthog_is_not_through_with_waits(
    town: Town, warehouse: Warehouse, given: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    town.add_cohort(name="half", **given)

    report = sync(town, warehouse)

    assert report.tables["cohort_people"]["cohorts_failed"] == 1
    assert why in caplog.text
    assert loaded(warehouse) == town.members(*town.numbers)


def test_a_cohort_that_posthog_fails_to_calculate_is_told_and_has_its_last_members(
    town: Town, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    number = town.add_cohort(name="sick", is_static=True, errors_calculating=3, count=1)
    ids = town.project.person_ids()
    town.project.control("POST", f"cohorts/{number}/members", add=[ids["user-1"]])

    reports = [sync(town, warehouse) for _ in range(2)]

    assert [report.tables["cohort_people"]["cohorts_failed"] for report in reports] == [1, 1]
    assert caplog.text.count("(sick) has its members of ") == 2
    assert loaded(warehouse) == town.members()


def test_what_concerns_all_stops_the_run(town: Town, warehouse: Warehouse) -> None:
    sync(town, warehouse)
    before = loaded(warehouse)
    town.move({"user-0": "pro"})
    town.recalculate()
    for status, kind in ((402, QuotaSpentError), (500, ServerError)):
        town.project.faults("query", {"pass": True, "times": 2}, {"status": status, "times": 9})
        with pytest.raises(Exception, match=str(status)) as stopped:
            sync(town, warehouse, max_attempts=1)
        assert isinstance(find_cause(stopped.value), kind)
        town.project.control("DELETE", "faults")
        assert loaded(warehouse) == before


def test_a_key_that_may_not_list_cohorts_is_told_which_scope_it_lacks(
    town: Town, warehouse: Warehouse
) -> None:
    key = town.project.server.key(["query:read"], [town.project.id])

    with pytest.raises(Exception, match="cohort:read") as stopped:
        sync(town, warehouse, api_key=key)

    assert isinstance(find_cause(stopped.value), AccessDeniedError)


@pytest.mark.parametrize("days", [7.0, 0.0], ids=["as due", "all"])
@pytest.mark.parametrize("is_kept", [True, False], ids=["kept", "wiped"])
def test_cohorts_are_committed_in_groups_and_a_stop_costs_one_of_them(
    town: Town, warehouse: Warehouse, is_kept: bool, days: float
) -> None:
    small = {"people": PeopleConfig(sweep_every_days=days), "rows_per_commit": 10}
    reports: list[RunReport] = []
    while not reports or reports[-1].status == "budget_spent":
        warehouse = Warehouse.at(warehouse.path)
        if not is_kept:
            warehouse.pipeline.drop()
        if reports:
            assert loaded(warehouse) == town.members(*sorted(town.numbers)[: len(reports)])
            assert len(reports) < 9
        reports.append(sync(town, warehouse, budget=Budget(max_queries=1), **small))

    assert [report.tables["cohort_people"]["rows"] for report in reports] == [10, 10, 10, 2]
    assert [report.rows_left > 0 for report in reports] == [True, True, True, False]
    assert loaded(warehouse) == town.members()


def test_one_run_goes_through_all_groups_and_a_failed_cohort_does_not_hold_it_up(
    town: Town, warehouse: Warehouse
) -> None:
    town.add_cohort(name="ghosts", count=3)

    report = sync(town, warehouse, rows_per_commit=10)

    assert report.commits >= 4
    assert report.tables["cohort_people"]["cohorts_failed"] == 1
    assert report.tables["cohort_people"]["cohorts_read"] == 4
    assert loaded(warehouse) == town.members()


def test_a_cohort_of_many_pages_is_read_whole(town: Town, warehouse: Warehouse) -> None:
    sync(town, warehouse, people=PeopleConfig(page_rows=3))

    assert loaded(warehouse) == town.members()
    assert town.asked().count("page") >= PEOPLE // 3


def test_two_projects_in_one_dataset_leave_each_others_members_alone(
    server: Server, town: Town, warehouse: Warehouse
) -> None:
    other = Town.of(server.project(settings={"rate_limits": NO_LIMITS}))
    ours, theirs = Warehouse.at(warehouse.path, "ours"), Warehouse.at(warehouse.path, "theirs")
    for _ in range(2):
        sync(town, ours)
        sync(other, theirs)
        town.change(remove=["user-0"])
        other.project.control("PATCH", f"cohorts/{other.friends}", name="still there")

    town.recalculate()
    sync(town, ours)

    assert loaded(ours) == town.members() | other.members()


def test_a_plain_run_is_right_too(town: Town, warehouse: Warehouse) -> None:
    warehouse.sync(town.project, "cohort_people")
    town.move({"user-0": "pro"})
    town.recalculate()
    town.change(remove=["user-0"])

    warehouse.sync(town.project, "cohort_people")

    assert loaded(warehouse) == town.members()


def test_plain_files_hold_all_members_as_of_the_last_sync(town: Town, files: Files) -> None:
    for changes in ({"remove": ["user-0"]}, {"add": ["user-9"]}):
        source = posthog_source(**town.project.credentials).with_resources("cohort_people")
        files.pipeline.run(source, loader_file_format="parquet")
        town.change(**changes)
    files.pipeline.run(
        posthog_source(**town.project.credentials).with_resources("cohort_people"),
        loader_file_format="parquet",
    )

    rows = files.rows("cohort_people")
    assert sorted((row["cohort_id"], row["person_id"]) for row in rows) == sorted(town.members())


def test_the_history_keeps_entry_exit_and_re_entry_with_posthogs_times(
    town: Town, warehouse: Warehouse
) -> None:
    free, pro = town.plans["free"], town.plans["pro"]
    sync(town, warehouse, **HISTORY)
    times = [calculated_at(town, pro)]
    assert {(stay[0], stay[3]) for stay in stays(town, warehouse)} == {(one, None) for one in town.numbers}
    for plan in ("pro", "free", "pro"):
        town.move({"user-0": plan})
        town.recalculate()
        report = sync(town, warehouse, **HISTORY)
        times.append(calculated_at(town, pro))
        moved = report.tables["cohort_people"]
        assert (moved["entered"], moved["left"]) == (1, 1)

    assert [stay[2:] for stay in _of("user-0", town, warehouse, pro)] == [
        (times[1], times[2]),
        (times[3], None),
    ]
    first, second = _of("user-0", town, warehouse, free)
    assert first[2] < first[3] < second[2] < second[3] == calculated_at(town, free)  # type: ignore[operator]
    still = {(stay[0], stay[1]) for stay in stays(town, warehouse) if stay[3] is None}
    names = {person: name for name, person in town.project.person_ids().items()}
    assert still == {(number, names[person]) for number, person in town.members()}
    assert loaded(warehouse) == town.members()


def test_the_history_closes_stays_in_static_and_deleted_cohorts_by_the_syncs_time(
    town: Town, warehouse: Warehouse
) -> None:
    sync(town, warehouse, **HISTORY)
    began_at = datetime.now(UTC)
    town.change(remove=["user-0"])
    town.project.control("DELETE", f"cohorts/{town.plans['pro']}")
    sync(town, warehouse, **HISTORY)

    for cohort, count in ((town.friends, 1), (town.plans["pro"], PEOPLE // 3)):
        left = [stay[3] for stay in stays(town, warehouse, cohort) if stay[3] is not None]
        assert len(left) == count
        assert all(began_at <= at <= datetime.now(UTC) for at in left)
    assert len([stay for stay in stays(town, warehouse, town.friends) if stay[3] is None]) == 1

    town.change(add=["user-0"])
    sync(town, warehouse, **HISTORY)
    assert [stay[3] is None for stay in _of("user-0", town, warehouse, town.friends)] == [False, True]


def test_the_history_may_begin_later_stop_and_go_on(town: Town, warehouse: Warehouse) -> None:
    sync(town, warehouse)
    sync(town, warehouse, **HISTORY)
    assert len(stays(town, warehouse)) == PEOPLE + 2

    town.move({"user-0": "pro"})
    town.recalculate()
    town.project.control("DELETE", f"cohorts/{town.friends}")
    sync(town, warehouse)
    assert len(stays(town, warehouse)) == PEOPLE + 2
    sync(town, warehouse, **HISTORY)

    assert [stay for stay in stays(town, warehouse, town.friends) if stay[3] is None] == []
    assert len(_of("user-0", town, warehouse, town.plans["pro"])) == 1
    assert [stay[3] is None for stay in _of("user-0", town, warehouse, town.plans["free"])] == [False]


def test_the_history_is_right_in_groups_and_says_nothing_of_a_cohort_that_failed(
    town: Town, warehouse: Warehouse
) -> None:
    other = Town.of(town.project.server.project(settings={"rate_limits": NO_LIMITS}))
    beside = Warehouse.at(warehouse.path, "beside")
    for one, where in ((town, warehouse), (other, beside)):
        sync(one, where, rows_per_commit=10, **HISTORY)
    before = stays(town, warehouse)
    assert len(before) == PEOPLE + 2
    town.move({f"user-{n}": "pro" for n in range(6)})
    town.recalculate()
    town.project.faults("query", {"pass": True, "times": 2}, *FAILURES["refused"])

    sync(town, warehouse, **HISTORY)

    pro = town.plans["pro"]
    assert stays(town, warehouse, pro) == [stay for stay in before if stay[0] == pro]
    assert len(stays(town, warehouse, town.plans["team"])) == PEOPLE // 3
    assert sum(stay[3] is not None for stay in stays(town, warehouse)) == 4
    assert len(stays(other, beside)) == PEOPLE + 2
    sync(town, warehouse, **HISTORY)
    assert len([stay for stay in stays(town, warehouse, pro) if stay[3] is None]) == PEOPLE // 3 + 4


def test_a_history_in_plain_files_is_refused(town: Town, files: Files) -> None:
    source = posthog_source(**town.project.credentials | HISTORY).with_resources("cohort_people")

    with pytest.raises(Exception, match=r"people\.cohort_history needs a destination") as refused:
        files.pipeline.run(source)

    assert isinstance(find_cause(refused.value), SettingsError)


def _of(name: str, town: Town, warehouse: Warehouse, cohort: int) -> list[Stay]:
    return [stay for stay in stays(town, warehouse, cohort) if stay[1] == name]
