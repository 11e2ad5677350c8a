"""A month of syncs by a simulated clock, while events come late, twice, and from clocks that are wrong.

The warehouse never holds an event twice, nor one that has not arrived, nor loses one that it held; all that
came in time is there after the next sync, and everything after the day's look for late arrivals.
`POSTHOG_MONTH_SYNC_HOURS=1` syncs every hour, which takes minutes; the default is quicker.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import dlt
import duckdb
import pytest
from dlt.sources import DltResource

from posthog_source.client import Client
from posthog_source.config import EventsSettings, Settings, build_settings
from posthog_source.events import build_events
from tests.conftest import NO_LIMITS, FakeTime, Project, Server, Warehouse
from tests.exact import EVENT_FIELDS, Row, loaded_events

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("POSTHOG_SEED", "1"))
SYNC_HOURS = os.environ.get("POSTHOG_MONTH_SYNC_HOURS", "")
START = datetime(2026, 3, 1, tzinfo=UTC)
MONTH = timedelta(days=30)
EVENTS_PER_HOUR = 10
IN_TIME = timedelta(minutes=50)
"""Later events may wait for the day's look; lag and lookback less the time in which a row becomes visible."""
BECOMES_VISIBLE = timedelta(minutes=10)
LATE_BECOMES_VISIBLE = timedelta(hours=5)
"""After it arrived: a look must go back behind the last one."""

ARRIVAL = list(EVENT_FIELDS).index("created_at")


@dataclass(frozen=True)
class Event:
    """An event on its way.

    Attributes:
        uuid: Its id.
        happened: By the client's clock.
        arrived: By PostHog's clock, which sets created_at.
        visible: When queries find it.
    """

    uuid: str
    happened: datetime
    arrived: datetime
    visible: datetime

    @property
    def delay(self) -> timedelta:
        return self.arrived - self.happened


def without_arrival(row: Row) -> Row:
    """A row less its created_at."""
    return row[:ARRIVAL] + row[ARRIVAL + 1 :]


def draw_events() -> list[Event]:
    """A month's events as they come to be seen: 5 % late, 1 % sent again, 1 % of the future."""
    chance = random.Random(SEED)
    events = []
    for n in range(int(MONTH / timedelta(hours=1)) * EVENTS_PER_HOUR):
        happened = START + MONTH * chance.random()
        delay, kind = timedelta(seconds=chance.uniform(0, 40)), chance.random()
        arrived = happened + delay
        if kind < 0.05:
            arrived = happened + timedelta(minutes=1) * (29 * 24 * 60) ** chance.random()
        elif kind < 0.06:
            happened += timedelta(hours=1) * (400 * 24) ** chance.random()
        events.append(_sent(n, happened, arrived, chance))
        if kind > 0.99:
            events.append(_sent(n, happened, arrived + timedelta(days=5) * chance.random(), chance))
    return sorted(events, key=lambda event: event.visible)


def _sent(n: int, happened: datetime, arrived: datetime, chance: random.Random) -> Event:
    uuid = f"{(n * 2654435761) % 2**32:08x}-0000-4000-8000-{n:012x}"
    slowly = LATE_BECOMES_VISIBLE if arrived - happened >= IN_TIME else BECOMES_VISIBLE
    return Event(uuid, happened, arrived, arrived + slowly * chance.random())


@dataclass
class Cost:
    """What queries cost PostHog and the wire."""

    queries: int = 0
    read_bytes: int = 0
    rows: int = 0

    def add(self, request: dict[str, Any]) -> None:
        self.queries += 1
        self.read_bytes += request["read_bytes"]
        is_count = request["name"].endswith((" late", " count", " first"))
        self.rows += 0 if is_count else request["result_rows"]


@dataclass
class Month:
    """The simulation."""

    project: Project
    warehouse: Warehouse
    config: EventsSettings
    client: Client
    settings: Settings
    now: datetime = START
    seen: list[Event] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    looks: int = 0
    syncs: int = 0
    late: Cost = field(default_factory=Cost)
    rest: Cost = field(default_factory=Cost)

    def advance(self, to: datetime, coming: Iterator[Event]) -> None:
        """Lets time pass: what becomes visible until then is in PostHog."""
        self.now = to
        fresh = list(coming)
        self.seen += fresh
        if fresh:
            self.project.rows(
                "events",
                uuid=[event.uuid for event in fresh],
                event=[f"name {int(event.uuid[:8], 16) % 3}" for event in fresh],
                distinct_id=[f"user-{int(event.uuid[:8], 16) % 40}" for event in fresh],
                timestamp=[event.happened for event in fresh],
                created_at=[event.arrived for event in fresh],
                properties=[json.dumps({"uuid": event.uuid}) for event in fresh],
            )

    def sync(self, *, looks: bool = False) -> bool:
        """One sync by a connector of its own; whether it looked for late arrivals."""
        config = replace(self.config, late_arrival_every_s=0.0) if looks else self.config

        @dlt.source(name="posthog", section="posthog")
        def source() -> Iterable[DltResource]:
            return [build_events(self.client, self.settings, config, clock=lambda: self.now)]

        self.project.forget_requests()
        self.warehouse.pipeline.run(source())
        self.syncs += 1
        late_queries = 0
        for request in self.project.requests():
            is_late = "dateDiff" in request["query"]
            (self.late if is_late else self.rest).add(request)
            late_queries += is_late
        self.looks += bool(late_queries)
        return bool(late_queries)

    @property
    def end(self) -> datetime:
        """Of the last sync's window."""
        return (self.now - timedelta(seconds=self.config.lag_s)).replace(microsecond=0)

    def check(self) -> None:
        """What must hold after every sync."""
        with duckdb.connect(str(self.warehouse.path / "warehouse.duckdb")) as connection:
            uuids = [
                uuid for (uuid,) in connection.execute("SELECT uuid FROM posthog_data.events").fetchall()
            ]
        found = set(uuids)
        assert len(uuids) == len(found), self.say("twice", [u for u, n in Counter(uuids).items() if n > 1])
        due = {event.uuid for event in self.seen if event.happened < self.end}
        in_time = {event.uuid for event in self.seen if event.happened < self.end and event.delay < IN_TIME}
        assert found <= due, self.say("not arrived or not yet due", found - due)
        assert found >= self.held, self.say("lost", self.held - found)
        assert found >= in_time, self.say("in time and not there", in_time - found)
        self.held = found

    def check_exactly(self) -> None:
        """What must hold after a look for late arrivals: all that PostHog has, every column."""
        found = loaded_events(self.warehouse.path / "warehouse.duckdb")
        until = f"{self.end:%Y-%m-%d %H:%M:%S}"
        rows = self.project.server.sql(
            f"SELECT {', '.join(EVENT_FIELDS.values())} FROM events"
            f" WHERE team_id = {self.project.id} AND timestamp < toDateTime64('{until}', 6, 'UTC')"
        )
        # Of an event that was sent twice either copy will do, and PostHog may have merged them by now.
        arrivals = {(event.uuid, f"{event.arrived:%Y-%m-%d %H:%M:%S.%f}") for event in self.seen}
        truth = {without_arrival(tuple(str(cell) for cell in row)) for row in rows}
        held = [without_arrival(row) for row in found.elements()]
        assert not (wrong := {row[0] for row in set(held) - truth}), self.say("not PostHog's", wrong)
        assert not (missing := {row[0] for row in truth - set(held)}), self.say("missing", missing)
        assert len(held) == len(truth)
        assert {(row[0], row[ARRIVAL]) for row in found} <= arrivals

    def say(self, what: str, uuids: Iterable[str]) -> str:
        """For a message: which events, and how they came."""
        wanted = set(uuids)
        known = [event for event in self.seen if event.uuid in wanted]
        return f"seed {SEED}, {self.now}, sync {self.syncs}: {len(wanted)} {what}: {known[:4]}"


@pytest.mark.parametrize(("write_mode", "hours"), [("window", 24), ("upsert", 48)])
def test_a_month_of_syncs_is_never_wrong_and_exact_after_each_look_for_late_arrivals(
    server: Server, warehouse: Warehouse, write_mode: Any, hours: float
) -> None:
    sync_every = timedelta(hours=float(SYNC_HOURS or hours))
    project = server.project(settings={"rate_limits": NO_LIMITS, "max_concurrent_queries": 100})
    waiting_time, began_s = FakeTime(), time.perf_counter()
    settings = build_settings(**project.credentials)
    with Client(settings, clock=waiting_time.clock, sleep=waiting_time.sleep) as client:
        month = Month(project, warehouse, EventsSettings(write_mode=write_mode), client, settings)
        coming = deque(draw_events())
        now = START
        while now < START + MONTH:
            now += sync_every
            month.advance(now, _until(now, coming))
            looked = month.sync()
            month.check()
            if looked:
                month.check_exactly()
        month.sync(looks=True)
        month.check()
        month.check_exactly()

    late = sum(event.delay >= IN_TIME for event in month.seen)
    print(
        f"\n{write_mode}: {month.syncs} syncs, {len(month.seen)} events, {late} of them late, "
        f"{month.looks} looks, {time.perf_counter() - began_s:.0f} s; late {month.late}; rest {month.rest}"
    )
    assert len(month.held) > 0.97 * EVENTS_PER_HOUR * (MONTH / timedelta(hours=1))
    assert late > 0.02 * len(month.seen)
    days = MONTH / max(sync_every, timedelta(days=1))
    assert days - 1 <= month.looks <= days + 1
    # A late event comes once, or twice where two looks overlap, whatever lies in the days looked at.
    assert 0.5 * late < month.late.rows <= 1.5 * late
    assert month.late.queries <= 2 * month.looks


def _until(now: datetime, coming: deque[Event]) -> Iterator[Event]:
    """Takes the events that can be seen by then."""
    while coming and coming[0].visible <= now:
        yield coming.popleft()
