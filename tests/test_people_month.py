"""A month of syncs by a simulated clock, while people come, merge, change, move between cohorts and leave.

After every sync each table holds what PostHog does, but for persons deleted or edited in PostHog itself, who
are right after the next sweep; syncs are killed along the way. `POSTHOG_MONTH_SYNC_HOURS=1
POSTHOG_MONTH_PERSONS=10000` is the month as it is meant, which takes an hour; the default is quicker.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from posthog_source import RunReport, run_sync
from posthog_source.identity import create_person_view
from tests.conftest import NO_LIMITS, Project, Server, Warehouse, bearer, running_server
from tests.people import (
    event,
    loaded_owners,
    loaded_persons,
    names_of,
    true_owners,
    true_persons,
)
from tests.programs.sync import Job, Process, source_at

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("POSTHOG_SEED", "1"))
SYNC_HOURS = float(os.environ.get("POSTHOG_MONTH_SYNC_HOURS", "48"))
PERSONS = int(os.environ.get("POSTHOG_MONTH_PERSONS", "500"))
KILLED_ONE_IN = 6
"""Syncs."""

TABLES = ("events", "persons", "person_distinct_ids", "groups", "cohorts", "cohort_people")
COUNTED = ("persons", "person_distinct_ids", "groups")
"""Tables whose rows are written one by one; cohort_people is replaced cohort by cohort."""
MONTH = timedelta(days=30)
BECOMES_VISIBLE = timedelta(minutes=10)
PLANS = ("free", "pro", "team")

Truth = dict[str, dict[Any, Any]]
"""Rows of tables by their keys."""


@pytest.fixture
def own_server() -> Iterator[Server]:
    """Its clock is put back."""
    with running_server() as server:
        yield server


@dataclass
class Life:
    """What happens to a project's people, hour by hour, in PostHog's own time."""

    project: Project
    now: datetime
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    users: list[str] = field(default_factory=lambda: [f"user-{n}" for n in range(PERSONS)])
    visitors: int = 0
    friends: int = 0
    plans: list[int] = field(default_factory=list)

    def begin(self) -> None:
        """All sign up; some are friends."""
        self._set_clock()
        for first in range(0, PERSONS, 500):
            some = self.users[first : first + 500]
            self.project.capture(
                *(event("signed up", one, self.now, **{"$set": {"plan": PLANS[0]}}) for one in some)
            )
        self.plans = [self._add_cohort(name=plan, filters=_having(plan)) for plan in PLANS]
        self.friends = self._add_cohort(name="friends", is_static=True)
        self._recalculate(self.plans)

    def go_on(self, until: datetime) -> None:
        """What people do until then, in the order in which it happens."""
        is_new_day = until.date() != self.now.date()
        busy = max(1, round((until - self.now) / timedelta(hours=1) * PERSONS / 500))
        times = sorted(self.now + (until - self.now) * self.chance.random() for _ in range(busy))
        self.now = until
        self._set_clock()
        self.project.capture(*(done for at in times for done in self._act(at)))
        if is_new_day:
            self._change_cohorts()
        elif self.chance.random() < 0.05:
            self._recalculate([self.chance.choice(self.plans)])

    def interfere(self) -> set[str]:
        """What happens to people in PostHog itself: one is edited, one deleted; whom no event tells of."""
        owners, unnoticed = true_owners(self.project), set()
        user, other = self.chance.sample(self.users, 2)
        if user in owners:
            self.project.control("PATCH", "persons", distinct_id=user, set={"sales": self.chance.random()})
            unnoticed.add(owners[user])
        if other in owners and owners[other] != owners.get(user):
            self.project.control("POST", "delete/persons", person_ids=[owners[other]])
            unnoticed.add(owners[other])
        return unnoticed

    def _act(self, at: datetime) -> list[dict[str, Any]]:
        kind, user = self.chance.random(), self.chance.choice(self.users)
        if kind < 0.3:
            return [event("viewed", user, at)]
        if kind < 0.4:
            company = f"company {self.chance.randrange(1 + PERSONS // 20)}"
            told = {"$group_type": "company", "$group_key": company, "$group_set": {"n": self.visitors}}
            return [event("$groupidentify", user, at, **told)]
        if kind < 0.55:
            return [event("edited", user, at, **{"$set": {"plan": self.chance.choice(PLANS)}})]
        self.visitors += 1
        visitor = f"visitor-{self.visitors}"
        if kind < 0.6:
            return [event("viewed", visitor, at, **{"$process_person_profile": False})]
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

    def _change_cohorts(self) -> None:
        """Dynamic ones are calculated, friends made and lost; once in a while a cohort comes and goes."""
        self._recalculate(self.plans)
        people = sorted(set(true_owners(self.project).values()))
        friends = sorted(one for number, one in self.project.members() if number == self.friends)
        changes = {
            "add": self.chance.sample(people, 3),
            "remove": self.chance.sample(friends, len(friends) // 5),
        }
        self.project.control("POST", f"cohorts/{self.friends}/members", **changes)
        if self.chance.random() < 0.2:
            brief = self._add_cohort(name="brief", is_static=True)
            added = self.chance.sample(people, 5)
            self.project.control("POST", f"cohorts/{brief}/members", add=added, remove=[])
        elif self.chance.random() < 0.2:
            known = self.project.get("cohorts/", limit=1000).json()["results"]
            for cohort in [one for one in known if one["name"] == "brief"][:1]:
                self.project.control("DELETE", f"cohorts/{cohort['id']}")

    def _recalculate(self, cohorts: list[int]) -> None:
        self.project.control("POST", "cohorts/recalculate", cohort_ids=cohorts)

    def _add_cohort(self, **given: Any) -> int:
        return int(self.project.control("POST", "cohorts", items=[given])["ids"][0])

    def _set_clock(self) -> None:
        self.project.server.control("PATCH", "clock", now=self.now.isoformat())


@dataclass
class Month:
    """The syncs, and what they had to do with what happened."""

    life: Life
    folder: Path
    unnoticed: set[str] = field(default_factory=set)
    """Persons whom PostHog has changed without an event since the last sweep."""
    truth: Truth = field(default_factory=dict)
    took_s: float = 1.0
    written: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    sweep_bytes: list[int] = field(default_factory=list)
    other_bytes: list[int] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    syncs: int = 0
    view_checked_on: date | None = None

    @property
    def project(self) -> Project:
        return self.life.project

    @property
    def now(self) -> datetime:
        """When the sync runs: all that has happened can be seen."""
        return self.life.now + BECOMES_VISIBLE

    def sync(self) -> None:
        """One sync, which may be killed first, and all that must be true after it."""
        is_killed = self.syncs % KILLED_ONE_IN == KILLED_ONE_IN - 1
        if is_killed:
            self._die()
        self.project.forget_requests()
        with Warehouse.at(self.folder).held() as warehouse:
            began_s = time.monotonic()
            report = run_sync(warehouse.pipeline, source_at(self.now), tables=TABLES, **self._arguments())
            self.syncs += 1
            if not is_killed:
                self.took_s = time.monotonic() - began_s
            self._judge(warehouse, report, is_killed=is_killed)

    def _arguments(self) -> dict[str, Any]:
        return self.project.credentials | {"rows_per_commit": PERSONS}

    def _die(self) -> None:
        """A process that runs the same sync and is killed; half of them lose their working directory too."""
        arguments = self._arguments()
        job = Job(
            folder=self.folder,
            rows_per_commit=arguments.pop("rows_per_commit"),
            source=arguments,
            tables=TABLES,
            now=self.now,
        )
        process = Process(job)
        process.follow_until(process.started_s + self.life.chance.random() * self.took_s)
        if process.kill():
            self.kills[process.moments[-1].step if process.moments else "before"] += 1
        if self.life.chance.random() < 0.5:
            shutil.rmtree(job.working_directory, ignore_errors=True)

    def _judge(self, warehouse: Warehouse, report: RunReport, *, is_killed: bool) -> None:
        is_sweep = "persons count" in names_of(self.project)
        if is_sweep:
            self.unnoticed.clear()
        truth = self._true()
        self._check(warehouse, truth)
        if is_sweep or self.life.now.date() != self.view_checked_on:
            self.view_checked_on = self.life.now.date()
            self._check_view(warehouse)
        if not is_killed:
            self._count(report, truth, is_sweep=is_sweep)
        self.truth = truth

    def _true(self) -> Truth:
        groups = self.project.server.sql(
            "SELECT group_type_index, group_key, argMax(group_properties, _timestamp)"
            f" FROM groups WHERE team_id = {self.project.id} GROUP BY group_type_index, group_key"
        )
        cohorts = self.project.get("cohorts/", limit=1000).json()["results"]
        there = {one["id"] for one in cohorts}
        return {
            "persons": dict(true_persons(self.project)),
            "person_distinct_ids": dict(true_owners(self.project)),
            "groups": {(int(index), key): json.loads(properties) for index, key, properties in groups},
            "cohorts": {one["id"]: one["count"] for one in cohorts},
            "cohort_people": {pair: True for pair in self.project.members() if pair[0] in there},
            "events": {row[0]: True for row in self.project.events("toString(uuid)")},
        }

    def _check(self, warehouse: Warehouse, truth: Truth) -> None:
        """All is right but for persons whom nobody has noticed."""
        groups = warehouse.query("SELECT index, key, properties::text FROM groups")
        members = warehouse.query("SELECT cohort_id, person_id FROM cohort_people")
        found: Truth = {
            "persons": dict(loaded_persons(warehouse)),
            "person_distinct_ids": dict(loaded_owners(warehouse)),
            "groups": {(index, key): json.loads(properties) for index, key, properties in groups},
            "cohorts": dict(warehouse.query("SELECT id, count FROM cohorts")),
            "cohort_people": dict.fromkeys(members, True),
            "events": dict.fromkeys(warehouse.uuids(), True),
        }
        counts = warehouse.counts()
        for table in ("groups", "cohorts", "cohort_people", "events"):
            assert found[table] == truth[table], self._where(table)
            assert counts[table] == len(truth[table]), self._where(table)
        wrong = _differing(found["persons"], truth["persons"])
        assert wrong <= self.unnoticed, f"{self._where('persons')}: {sorted(wrong - self.unnoticed)[:5]}"
        owners = found["person_distinct_ids"]
        moved = _differing(owners, truth["person_distinct_ids"])
        strangers = {name for name in moved if owners.get(name) not in self.unnoticed}
        assert not strangers, f"{self._where('person_distinct_ids')}: {sorted(strangers)[:5]}"

    def _check_view(self, warehouse: Warehouse) -> None:
        """Whose each event is, as PostHog tells it at this moment."""
        told = dict(self._hogql("SELECT toString(uuid), toString(person_id) FROM events LIMIT 50000"))
        rows = warehouse.query(f"SELECT uuid, person_id FROM {create_person_view(warehouse.pipeline)}")
        found = dict(rows)
        assert len(rows) == len(found) == len(told) < 50_000
        wrong = {(found[one], told[one]) for one in told if found[one] != told[one]}
        assert all(set(pair) & self.unnoticed for pair in wrong), self._where("view")

    def _hogql(self, query: str) -> list[list[str]]:
        asked = {"refresh": "force_blocking", "query": {"kind": "HogQLQuery", "query": query}}
        path = f"/api/projects/{self.project.id}/query/"
        answer = self.project.server.http.post(path, json=asked, headers=bearer(self.project.api_key))
        assert answer.is_success, answer.text
        return list(answer.json()["results"])

    def _count(self, report: RunReport, truth: Truth, *, is_sweep: bool) -> None:
        people = [f"posthog_source {name}" for name in ("persons", "person_distinct_ids")]
        asked = [one for one in self.project.requests() if str(one.get("name", "")).startswith(tuple(people))]
        read_bytes = sum(one.get("read_bytes") or 0 for one in asked)
        (self.sweep_bytes if is_sweep else self.other_bytes).append(read_bytes)
        if is_sweep:
            return
        for table in COUNTED:
            self.written[table] += int(report.tables[table]["rows"])
            self.changed[table] += len(_differing(truth[table], self.truth[table]))

    def _where(self, table: str) -> str:
        return f"{table}, seed {SEED}, {self.life.now}"


def _differing(some: Mapping[Any, Any], others: Mapping[Any, Any]) -> set[Any]:
    """Keys whose values differ, or that only one has."""
    return {key for key in some.keys() | others.keys() if some.get(key) != others.get(key)}


def _having(plan: str) -> dict[str, Any]:
    values = [{"key": "plan", "type": "person", "operator": "exact", "value": plan}]
    return {"properties": {"type": "OR", "values": [{"type": "AND", "values": values}]}}


def test_a_month_of_syncs_is_right_after_each_but_for_what_only_a_sweep_can_see(
    own_server: Server, tmp_path: Path
) -> None:
    project = own_server.project(settings={"rate_limits": NO_LIMITS, "max_concurrent_queries": 100})
    start = datetime.now(UTC) - MONTH - timedelta(days=1)
    month, began_s = Month(Life(project, start), tmp_path), time.monotonic()
    month.life.begin()

    while month.life.now < start + MONTH:
        until = month.life.now + timedelta(hours=SYNC_HOURS)
        if until.date() != month.life.now.date():
            month.unnoticed |= month.life.interfere()
        month.life.go_on(until)
        month.sync()

    print(
        f"\n{PERSONS} persons, {month.syncs} syncs, {len(month.sweep_bytes)} of them sweeps, "
        f"{month.kills.total()} killed in {dict(month.kills)}, {time.monotonic() - began_s:.0f} s; rows "
        f"written {dict(month.written)} where {dict(month.changed)} changed; bytes read by a sweep at most "
        f"{max(month.sweep_bytes)}, by another sync {sum(month.other_bytes) // len(month.other_bytes)}, "
        f"at most {max(month.other_bytes)}"
    )
    assert len(month.sweep_bytes) == pytest.approx(5, abs=1)
    assert month.kills
    for table in COUNTED:
        assert month.written[table] <= 1.1 * month.changed[table], table
    if SYNC_HOURS <= 1:  # in two days most people do something
        assert max(month.other_bytes) <= 1.2 * max(month.sweep_bytes)
