"""A fifth of all requests fail, in every way that the emulator knows: the same tables, only later.

Waits take no time: the client has a clock and a sleep of its own. `POSTHOG_STORM_SEEDS` sets how many storms
each write mode weathers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pytest
from dlt.sources import DltResource

from posthog_emulator.storm import KINDS
from posthog_source.config import EventsSettings, PeopleSettings, ResultsSettings, build_settings
from posthog_source.resources import build_resources
from tests.conftest import (
    NO_LIMITS,
    PROJECT_TABLES,
    FakeTime,
    Project,
    Server,
    Warehouse,
    add_events,
    client_of,
)

pytestmark = pytest.mark.slow

SEEDS = range(1, 1 + int(os.environ.get("POSTHOG_STORM_SEEDS", "2")))
WRITE_MODES = ("window", "upsert", "append")
SHARE = 0.2


@dataclass
class Sync:
    """What a sync under a storm, or none, came to."""

    waited_s: float
    served: Counter[str]
    requests: int


def ago(**parts: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) - timedelta(**parts)


def sync(
    project: Project,
    warehouse: Warehouse,
    write_mode: Any,
    *,
    storm: int | None,
    kinds: Iterable[str] = KINDS,
) -> Sync:
    """All tables, in small pages; waits only move a clock."""
    waiting = FakeTime()
    settings = build_settings(**project.credentials)
    config = EventsSettings(write_mode=write_mode, page_rows=150, late_arrival_every_s=0.0)
    if storm is not None:
        project.control("POST", "storm", probability=SHARE, seed=storm, kinds=list(kinds), drip_s=0.02)
    with client_of(project, waiting) as client:

        @dlt.source(name="posthog", section="posthog")
        def source() -> Iterable[DltResource]:
            return build_resources(
                client,
                settings,
                events=config,
                people=PeopleSettings(page_rows=30),
                results=ResultsSettings(),
            )

        warehouse.pipeline.run(source())
    did = project.control("DELETE", "storm")
    return Sync(sum(waiting.slept_s), Counter(did["served"]), did["requests"])


UNORDERED = ("urls",)
"""ClickHouse collects a session's addresses in no order."""

OWN_TIMES = ("synced_at", "deleted_at")
"""When a warehouse itself came to know of a row."""


def tables(warehouse: Warehouse) -> dict[str, Counter[tuple[Any, ...]]]:
    """All rows of all tables of the catalogue."""
    found = {}
    with duckdb.connect(str(warehouse.path / "warehouse.duckdb")) as connection:
        for table in PROJECT_TABLES:
            relation = connection.sql(f"FROM posthog_data.{table.name}")
            names = [n for n in relation.columns if not n.startswith("_dlt") and n not in UNORDERED]
            cells = [f"({name} IS NULL)::text" if name in OWN_TIMES else f"{name}::text" for name in names]
            rows = relation.project(", ".join(cells)).fetchall()
            found[table.name] = Counter(rows)
    return found


def assert_same(calm: Warehouse, stormy: Warehouse, storm: str) -> None:
    expected, found = tables(calm), tables(stormy)
    for name, rows in expected.items():
        missing, odd = rows - found[name], found[name] - rows
        assert not missing, f"{storm}: {missing.total()} rows of {name} are missing, such as {min(missing)}"
        assert not odd, f"{storm}: {odd.total()} rows of {name} are too many, such as {min(odd)}"
    assert set(found) == set(expected)


def change(project: Project) -> None:
    """New events and late ones; a person gone, a person renamed, an insight edited."""
    new = [ago(minutes=8 + n % 50) for n in range(300)]
    late = [ago(hours=20 * n + 30) for n in range(30)]
    for first, ages in ((0, new), (len(new), late)):
        add_events(
            project,
            len(ages),
            uuid=[f"{first + n:08x}-0000-4000-8000-000000000000" for n in range(len(ages))],
            event=[f"new {n % 7}" for n in range(len(ages))],
            timestamp=ages,
            created_at=[ago(minutes=6)] * len(ages),
        )
    one, other = [row[0] for row in project.persons("toString(id)")][:2]
    project.rows(
        "person", id=[one, other], version=[900, 900], is_deleted=[1, 0], properties=["{}", '{"n":1}']
    )
    first = project.get("insights/", limit=1).json()["results"][0]["id"]
    edited = {"id": first, "name": "edited", "last_modified_at": datetime.now(UTC).isoformat()}
    project.control("POST", "insights", items=[edited])


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[[str], Warehouse]]:
    """A warehouse of that name, held open."""
    with ExitStack() as stack:
        yield lambda name: stack.enter_context(Warehouse.at(tmp_path / name).held())


@pytest.mark.parametrize("write_mode", WRITE_MODES)
def test_a_storm_of_faults_costs_time_and_nothing_else(
    server: Server, hold: Callable[[str], Warehouse], write_mode: str
) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    project.generate(
        events=2_500, persons=120, days=3, properties_bytes=200, end=ago(hours=2).isoformat(), nasty=True
    )
    calm = hold("calm")
    stormy = {seed: hold(f"storm {seed}") for seed in SEEDS}
    served: Counter[str] = Counter()
    waited_s = 0.0

    for turn in ("first", "second"):
        quiet = sync(project, calm, write_mode, storm=None)
        assert (quiet.waited_s, quiet.served) == (0, {})
        for seed, warehouse in stormy.items():
            # No two storms of this file are the same, and the last ones bring what has not yet come.
            storm = seed * 100 + 10 * WRITE_MODES.index(write_mode) + (turn == "second")
            lacking = sorted(set(KINDS) - set(served)) if turn == "second" else []
            did = sync(project, warehouse, write_mode, storm=storm, kinds=lacking or KINDS)
            served += did.served
            waited_s += did.waited_s
            assert_same(calm, warehouse, f"{turn} sync, storm {storm}, {write_mode}")
        if turn == "first":
            change(project)
    print(f"\n{write_mode}: {served.total()} faults, {waited_s:.0f} s waited: {dict(served)}")
    assert set(served) == set(KINDS)
    assert waited_s >= 30, "a 429 that does not say how long"
