"""SIGKILL at any instant, then run again to the end: the warehouse holds what PostHog holds.

Each warehouse is killed twice: in a run, and in the one that comes after it. Instants are drawn by a seed,
over all steps. `POSTHOG_KILLS` sets how many a combination gets, `POSTHOG_SEED` the seed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as clock_time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import pytest

from posthog_source import EventsConfig, PeopleConfig, posthog_source, run_sync
from tests.conftest import NO_LIMITS, Project, Server, Warehouse
from tests.exact import differences, documented_view, loaded_events, true_events
from tests.programs.sync import STEPS, Job, Moment, Process, Step

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("POSTHOG_SEED", "1"))
KILLS = int(os.environ.get("POSTHOG_KILLS", "10"))
COMMITS = 3
"""Of a run: two for a day that is cut in two, one for what is left; then comes its report."""
START = datetime.combine(datetime.now(UTC).date() - timedelta(days=9), clock_time(), UTC)
PEOPLE = ("persons", "person_distinct_ids")
AT_ONCE = max(2, os.cpu_count() or 2)


@dataclass(frozen=True)
class Kill:
    """When a process is to be killed: a share of a step's usual duration after it began."""

    commit: int
    step: Step
    share: float


@dataclass(frozen=True)
class Life:
    """A warehouse whose runs were killed, before the last one came to its end."""

    job: Job
    deaths: tuple[Moment | None, ...]

    def __str__(self) -> str:
        return f"seed {SEED}, {self.job.folder}: killed in {self.deaths}"


def events(count: int, first: datetime, span: timedelta, *, seed: int, **columns: Any) -> dict[str, Any]:
    """Events of two names, every column filled."""
    chance = random.Random(f"{SEED} {seed}")
    happened = [first + span * chance.random() for _ in range(count)]
    return {
        "uuid": [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(count)],
        "event": [chance.choice(["view", "Click it's"]) for _ in range(count)],
        "distinct_id": [f"user-{chance.randrange(20)}" for _ in range(count)],
        "timestamp": happened,
        "created_at": [at + timedelta(seconds=1) for at in happened],
        "person_id": [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(count)],
        "properties": [
            json.dumps({"n": n, "$session_id": f"s{n}", "$window_id": f"w{n % 3}", "$group_0": "ü"})
            for n in range(count)
        ],
        "elements_chain": [chance.choice(["", 'button.btn:text="Buy"']) for _ in range(count)],
    } | columns


def send(project: Project, sent: dict[str, Any]) -> None:
    """Adds events, a tenth of them twice."""
    project.rows("events", **sent)
    project.rows("events", **{name: column[: len(column) // 10] for name, column in sent.items()})


def new_project(server: Server) -> Project:
    """With two days of events."""
    project = server.project(settings={"rate_limits": NO_LIMITS, "max_concurrent_queries": 100})
    send(project, events(120, START, timedelta(days=1), seed=1))
    send(project, events(60, START + timedelta(days=1), timedelta(days=2), seed=2))
    return project


@pytest.fixture(scope="module")
def fresh(server: Server) -> Project:
    """A project that no warehouse has synced."""
    return new_project(server)


@pytest.fixture(scope="module")
def synced(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """A project, and warehouses by write mode that were synced before new events came, and late ones."""
    project, folder = new_project(server), tmp_path_factory.mktemp("synced")
    for write_mode in ("window", "upsert"):
        Process(job_of(folder / write_mode, project, write_mode)).finish()
    now = datetime.now(UTC)
    send(project, events(120, now - timedelta(minutes=59), timedelta(minutes=50), seed=3))
    send(project, events(40, START, timedelta(days=3), seed=4, created_at=[now] * 40))
    return project, folder


def job_of(folder: Path, project: Project, write_mode: str, **backfill: Any) -> Job:
    config = EventsConfig(write_mode=write_mode, late_arrival_every_s=0.0, page_rows=50)
    source = project.credentials | {"events": config}
    folder.mkdir(exist_ok=True)
    return Job(folder=folder, source=source, rows_per_commit=100, backfill=backfill or None)


def usual_durations(job: Job) -> dict[Step, float]:
    """Seconds that the steps of a run take when nobody kills it, as a rule."""
    process = Process(job)
    process.finish()
    assert max(moment.commit for moment in process.moments) > COMMITS
    durations: dict[Step, list[float]] = {step: [] for step in STEPS}
    for moment, following in pairwise(process.moments):
        durations[moment.step].append(following.at_s - moment.at_s)
    return {step: median(each) for step, each in durations.items()}


def draw_kills(combination: str) -> list[tuple[Kill, Kill]]:
    """Two for each warehouse: all steps in turn, at a random share of them, in random commits."""
    chance = random.Random(f"{SEED} {combination}")
    steps = [STEPS[n % len(STEPS)] for n in range(2 * (KILLS // 2))]
    chance.shuffle(steps)
    # The run after a kill has less to do.
    commits = [1 if n % 2 else chance.randint(1, COMMITS) for n in range(len(steps))]
    # One of each step comes at its beginning, lest a machine with other work to do hits none of a short one.
    shares = [chance.random() * (0.1 if n == steps.index(step) else 1.0) for n, step in enumerate(steps)]
    kills = [Kill(*each) for each in zip(commits, steps, shares, strict=True)]
    return list(zip(kills[::2], kills[1::2], strict=True))


def live(job: Job, kills: Iterable[Kill], durations: Mapping[Step, float], *, wipes: bool) -> Life:
    """Runs, kills, runs and kills again, and runs to the end."""
    deaths = []
    for kill in kills:
        process = Process(job)
        if process.follow_to(kill.commit, kill.step):
            process.follow_until(time.monotonic() + kill.share * durations[kill.step])
        if process.kill():
            deaths.append(process.moments[-1] if process.moments else None)
        if wipes:
            shutil.rmtree(job.working_directory, ignore_errors=True)
    Process(job).finish()
    return Life(job, tuple(deaths))


def live_all(
    jobs: Sequence[Job], combination: str, durations: Mapping[Step, float], *, wipes: bool
) -> list[Life]:
    """Many at once; says where they died."""
    plans = draw_kills(combination)
    with ThreadPoolExecutor(AT_ONCE) as executor:
        lives = list(executor.map(lambda job, kills: live(job, kills, durations, wipes=wipes), jobs, plans))
    steps = Counter(moment.step for life in lives for moment in life.deaths if moment)
    print(f"\n{combination}: {sum(len(life.deaths) for life in lives)} kills, {dict(steps)}")
    return lives


def die(job: Job, shares: Iterable[float], took_s: float, *, wipes: bool) -> list[float]:
    """Runs, is killed after each share of its usual time, and runs to the end; where it was really killed."""
    deaths = []
    for share in shares:
        process = Process(job)
        process.follow_until(process.started_s + share * took_s)
        if process.kill():
            deaths.append(share)
        if wipes:
            shutil.rmtree(job.working_directory, ignore_errors=True)
    Process(job).finish()
    return deaths


@pytest.mark.parametrize("wipes", [False, True], ids=["kept", "wiped"])
@pytest.mark.parametrize("write_mode", ["window", "upsert", "append"])
def test_a_sync_killed_at_any_instant_and_run_again_holds_what_posthog_holds(
    fresh: Project, synced: tuple[Project, Path], tmp_path: Path, write_mode: str, wipes: bool
) -> None:
    truth = {project.id: true_events(project) for project in (fresh, synced[0])}
    durations = usual_durations(job_of(tmp_path / "clean", fresh, write_mode))
    jobs = []
    for n in range(KILLS // 2):
        project, templates = (fresh, None) if n % 2 == 0 or write_mode == "append" else synced
        if templates:
            shutil.copytree(templates / write_mode, tmp_path / str(n))
        jobs.append(job_of(tmp_path / str(n), project, write_mode))

    lives = live_all(jobs, f"{write_mode}, {'wiped' if wipes else 'kept'}", durations, wipes=wipes)

    for life in lives:
        expected, found = truth[life.job.source["project_id"]], loaded_events(life.job.warehouse)
        if write_mode == "append":  # at least once, as told; the view says each once
            assert not expected - found, f"{life}: {differences(found, expected)}"
            with duckdb.connect(str(life.job.warehouse)) as connection:
                connection.execute(f"USE posthog_data; {documented_view()}")
            found = loaded_events(life.job.warehouse, table="unique_events")
        assert found == expected, f"{life}: {differences(found, expected)}"
    died_in = {moment.step for life in lives for moment in life.deaths if moment}
    assert died_in >= {"extract", "normalize", "load", "between"}, f"seed {SEED}: {died_in}"


@pytest.mark.parametrize("wipes", [False, True], ids=["kept", "wiped"])
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_backfill_killed_at_any_instant_and_run_again_holds_what_posthog_holds(
    fresh: Project, tmp_path: Path, parallel: int, wipes: bool
) -> None:
    backfill = {"start": START, "end": START + timedelta(days=3), "parallel": parallel}
    chance = random.Random(f"{SEED} {parallel} {wipes}")
    clean = Process(job_of(tmp_path / "clean", fresh, "window", **backfill))
    clean.finish()
    took_s = time.monotonic() - clean.started_s

    def die_twice(n: int) -> tuple[Job, list[float]]:
        job = job_of(tmp_path / str(n), fresh, "window", **backfill)
        return job, die(job, chances(chance, 2), took_s, wipes=wipes)

    with ThreadPoolExecutor(AT_ONCE) as executor:
        lives = list(executor.map(die_twice, range(max(1, KILLS // 5))))

    truth = true_events(fresh)
    for job, shares in lives:
        found = loaded_events(job.warehouse)
        assert found == truth, f"seed {SEED}, killed at {shares} of {took_s} s: {differences(found, truth)}"
    assert sum(len(shares) for _, shares in lives) >= len(lives)


def people_job(folder: Path, project: Project, *, sweeps: bool) -> Job:
    """Of people, in commits of about sixty rows."""
    people = PeopleConfig(page_rows=30, sweep_every_days=0 if sweeps else 7)
    folder.mkdir(exist_ok=True)
    source = project.credentials | {"people": people, "events": EventsConfig(lag_s=0)}
    return Job(folder=folder, source=source, rows_per_commit=30, tables=PEOPLE)


@pytest.mark.parametrize("sweeps", [False, True], ids=["seen", "sweep"])
@pytest.mark.parametrize("wipes", [False, True], ids=["kept", "wiped"])
def test_people_are_right_after_a_sync_killed_at_any_instant_and_run_again(
    server: Server, tmp_path: Path, wipes: bool, sweeps: bool
) -> None:
    """While some were merged and edited since the last sync and, where all are read, deleted."""
    project = server.project(settings={"rate_limits": NO_LIMITS, "max_concurrent_queries": 100})
    names = [f"user-{n}" for n in range(200)]
    project.capture(*({"event": "seen", "distinct_id": name} for name in names))
    template = people_job(tmp_path / "template", project, sweeps=sweeps)
    Process(template).finish()
    owners = project.person_ids()
    merges = zip(names[:10], names[10:20], strict=True)
    project.capture(
        *({"event": "$merge_dangerously", "distinct_id": a, "properties": {"alias": b}} for a, b in merges),
        *({"event": "edited", "distinct_id": n, "properties": {"$set": {"n": n}}} for n in names[20:40]),
        *({"event": "seen", "distinct_id": f"new-{n}"} for n in range(30)),
    )
    victims = {owners[name] for name in (names[50:60] if sweeps else [])}
    if victims:
        project.control("POST", "delete/persons", person_ids=sorted(victims))
    jobs = [people_job(tmp_path / str(n), project, sweeps=sweeps) for n in range(max(2, KILLS // 3))]
    for job in jobs:
        shutil.copytree(template.folder, job.folder, dirs_exist_ok=True)
    chance = random.Random(f"{SEED} {sweeps} {wipes}")
    clean = Process(jobs[0])
    clean.finish()
    took_s = time.monotonic() - clean.started_s

    with ThreadPoolExecutor(AT_ONCE) as executor:
        deaths = list(executor.map(lambda job: die(job, chances(chance, 2), took_s, wipes=wipes), jobs[1:]))

    rows = project.persons("toString(id), version, is_deleted")
    living = {(row[0], int(row[1])) for row in rows if not int(row[2])}
    gone = {owners[name] for name in names[10:20]} | victims
    for job, died_at in zip(jobs, [[], *deaths], strict=True):
        with duckdb.connect(str(job.warehouse), read_only=True) as connection:
            found = connection.execute("SELECT id, version, deleted_at FROM posthog_data.persons").fetchall()
        where = f"seed {SEED}, killed at {died_at} of {took_s} s"
        assert sorted((row[0], row[1]) for row in found if row[2] is None) == sorted(living), where
        assert {row[0] for row in found if row[2] is not None} == gone, where
    assert sum(map(len, deaths)) >= len(deaths)


def chances(chance: random.Random, count: int) -> list[float]:
    return [chance.random() for _ in range(count)]


@pytest.mark.parametrize("write_mode", ["window", "upsert"])
def test_a_kill_between_a_copy_into_staging_and_dlts_note_of_it_doubles_nothing(
    fresh: Project, tmp_path: Path, write_mode: str
) -> None:
    """Dlt copies such a file again, into staging tables that it does not empty again."""
    warehouse, config = Warehouse.at(tmp_path), EventsConfig(write_mode=write_mode)
    pipeline = warehouse.pipeline
    pipeline.extract(posthog_source(**fresh.credentials, events=config).with_resources("events"))
    pipeline.normalize()
    (load_id,) = pipeline.list_normalized_load_packages()
    package = Path(pipeline.working_dir, "load", "normalized", load_id)
    shutil.copytree(package, tmp_path / "aside")
    pipeline.load()

    # Back to where only staging had been filled.
    for table in ("events", "_dlt_loads", "_dlt_pipeline_state"):
        warehouse.query(f"DELETE FROM {table}")
    shutil.rmtree(Path(pipeline.working_dir, "load", "loaded", load_id))
    shutil.copytree(tmp_path / "aside", package)
    (package / "schema_updates.json").unlink()
    for file in (package / "new_jobs").glob("events.*"):
        file.rename(package / "started_jobs" / file.name)
    run_sync(pipeline, tables=["events"], events=config, **fresh.credentials)

    assert loaded_events(tmp_path / "warehouse.duckdb") == true_events(fresh)


def test_a_kill_while_dlt_hands_a_package_from_normalize_to_load_stops_nothing(
    fresh: Project, tmp_path: Path
) -> None:
    """Dlt renames the normalized package, then deletes the extracted one: with both, all runs fail."""
    pipeline = Warehouse.at(tmp_path).pipeline
    run_sync(pipeline, tables=["events"], **fresh.credentials)  # else dlt takes the pipeline for a new one
    pipeline.extract(posthog_source(**fresh.credentials).with_resources("events"))
    extracted = Path(pipeline.working_dir, "normalize", "extracted")
    shutil.copytree(extracted, tmp_path / "aside")
    pipeline.normalize()
    shutil.copytree(tmp_path / "aside", extracted, dirs_exist_ok=True)

    run_sync(pipeline, tables=["events"], **fresh.credentials)

    assert loaded_events(tmp_path / "warehouse.duckdb") == true_events(fresh)
