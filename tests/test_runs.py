"""run_sync and run_backfill: bounded commits, an honest report, and a stop that costs one commit at most."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import duckdb
import pyarrow as pa
import pytest

from posthog_source import (
    Budget,
    EventsConfig,
    PeopleConfig,
    RunReport,
    check,
    run_backfill,
    run_sync,
    verify,
)
from posthog_source.errors import QuotaSpentError, SettingsError, find_cause
from posthog_source.status import fetch_status
from tests.conftest import NO_LIMITS, ROOT, Files, Project, Server, Warehouse, add_events

DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + 4 * DAY
PROGRAM = """
import sys, dlt
from pathlib import Path
from posthog_source import run_sync

path = Path(sys.argv[1])
pipeline = dlt.pipeline(
    "posthog",
    pipelines_dir=str(path / "pipelines"),
    destination=dlt.destinations.duckdb(str(path / "warehouse.duckdb")),
    dataset_name="posthog_data",
)
run_sync(pipeline, tables=["events"], rows_per_commit=5)
"""


@pytest.fixture
def shared_warehouse(tmp_path: Path) -> Warehouse:
    """Not there yet, nor held open: other processes load into it too."""
    return Warehouse.at(tmp_path)


def four_days(project: Project, *, first: int = 0) -> list[str]:
    """Five events on each of four days."""
    return add_events(
        project,
        20,
        uuid=[f"00000000-0000-4000-8000-{first + n:012x}" for n in range(20)],
        timestamp=[START + n // 5 * DAY + timedelta(hours=6, seconds=n) for n in range(20)],
        created_at=[START] * 20,
    )


def sync(project: Project, warehouse: Warehouse, **arguments: Any) -> RunReport:
    return run_sync(
        warehouse.pipeline, tables=["events"], **{"rows_per_commit": 10**6} | project.credentials | arguments
    )


def backfill(project: Project, warehouse: Warehouse, **arguments: Any) -> RunReport:
    return run_backfill(
        warehouse.pipeline, START, END, **{"rows_per_commit": 10} | project.credentials | arguments
    )


def rows_read(project: Project) -> int:
    """Events that PostHog handed out."""
    pages = [request for request in project.requests() if request.get("name") == "posthog_source events"]
    return sum(page["result_rows"] for page in pages)


def state_of(pipeline: dlt.Pipeline) -> str:
    """What the pipeline remembers of events."""
    return json.dumps(
        pipeline.state["sources"]["posthog"]["resources"]["events"], default=str, sort_keys=True
    )


def schemas(warehouse: Warehouse) -> set[str]:
    """Of the database."""
    found = warehouse.query(
        "SELECT schema_name FROM information_schema.schemata WHERE catalog_name = 'warehouse'"
    )
    return {name for (name,) in found} - {"main", "information_schema", "pg_catalog"}


def disposition(warehouse: Warehouse) -> str:
    """How the last load of events was written."""
    table: dict[str, Any] = dict(warehouse.pipeline.default_schema.get_table("events"))
    return str(table["write_disposition"])


def test_what_the_warehouse_does_not_have_yet_is_added_and_what_it_has_is_replaced(
    project: Project, warehouse: Warehouse
) -> None:
    uuids = four_days(project)

    sync(project, warehouse, end_date=END)
    assert disposition(warehouse) == "append"
    assert schemas(warehouse) == {"posthog_data"}  # nothing was staged

    sync(project, warehouse, end_date=END)
    assert disposition(warehouse) == "merge"
    assert warehouse.uuids() == uuids


def test_rows_of_a_first_load_that_died_are_found_and_replaced(
    project: Project, warehouse: Warehouse
) -> None:
    """Without its row in _dlt_loads a load has not happened, whatever it has left in the table."""
    uuids = four_days(project)
    sync(project, warehouse, end_date=END)
    warehouse.query("DELETE FROM _dlt_loads")
    warehouse.query(f"DELETE FROM events WHERE timestamp < '{START + 2 * DAY}'")
    shutil.rmtree(warehouse.path / "pipelines")
    again = Warehouse.at(warehouse.path)

    sync(project, again, end_date=END)

    assert again.uuids() == uuids


def test_a_first_load_that_dlt_would_resume_by_itself_is_staged(
    project: Project, warehouse: Warehouse
) -> None:
    four_days(project)
    warehouse.pipeline.config.restore_from_destination = False  # so a killed load is not dropped

    sync(project, warehouse, end_date=END)

    assert disposition(warehouse) == "merge"


def test_copies_in_a_first_load_are_sorted_out(project: Project, warehouse: Warehouse) -> None:
    uuids = four_days(project)
    add_events(project, 1, uuid=uuids[:1], event=["sent again by another name"], timestamp=[START + DAY])

    sync(project, warehouse, end_date=END)

    assert warehouse.uuids() == uuids


@pytest.mark.slow
def test_pages_do_not_wait_for_the_garbage_collector(busy_project: Project, warehouse: Warehouse) -> None:
    """One that a cycle holds stays in memory until Python looks for cycles, which may be many pages later."""
    busy_project.generate(
        events=2_000, persons=1_000, days=2, end="2026-01-05T00:00:00Z", properties_bytes=1_000, nasty=False
    )
    settings = busy_project.credentials | {
        "events": EventsConfig(page_rows=500),
        "people": PeopleConfig(page_rows=500),
        "tables": ["events", "people"],
    }
    run_sync(Warehouse.at(warehouse.path / "first").pipeline, **settings)  # imports and caches stay
    gc.collect()
    gc.disable()
    try:
        before = pa.total_allocated_bytes()
        report = run_sync(warehouse.pipeline, **settings)
        kept = pa.total_allocated_bytes() - before
    finally:
        gc.enable()

    smallest = min(report.tables[name]["bytes"] for name in ("events", "persons", "sessions"))
    assert kept < 60_000 < smallest  # the empty tables that say what types a load has


def test_what_ends_before_the_first_event_reads_none(project: Project, warehouse: Warehouse) -> None:
    four_days(project)

    assert sync(project, warehouse, end_date=START).status == "done"

    assert warehouse.counts() == {"events": 0}


def test_the_report_adds_up_to_what_is_in_the_warehouse_and_is_kept_there(
    busy_project: Project, warehouse: Warehouse
) -> None:
    busy_project.generate(
        events=600, persons=30, days=2, end="2026-01-05T00:00:00Z", properties_bytes=50, nasty=False
    )

    report = run_sync(
        warehouse.pipeline,
        tables=["events", "persons", "person_distinct_ids", "cohort_people"],
        rows_per_commit=200,
        **busy_project.credentials,
    )

    counts = warehouse.counts()
    told = {name: metrics.get("rows") for name, metrics in report.tables.items()}
    assert {name: told[name] for name in counts} == counts
    assert report.rows == sum(counts.values())
    assert (report.kind, report.status, report.error, report.rows_left) == ("sync", "done", None, 0)
    assert report.commits > 2
    assert report.finished_at is not None
    assert report.started_at < report.finished_at
    (kept,) = report.as_table().to_pylist()
    assert warehouse.query(f"SELECT {', '.join(kept)} FROM _posthog_runs") == [tuple(kept.values())]


def test_a_run_that_fails_is_kept_with_its_reason_and_the_next_one_goes_on(
    busy_project: Project, warehouse: Warehouse
) -> None:
    expected = four_days(busy_project)
    # first, count and page, page, and no more
    busy_project.faults("query", {"pass": True, "times": 3}, {"status": 402})
    with pytest.raises(Exception, match="402") as failure:
        sync(busy_project, warehouse, rows_per_commit=10)
    assert isinstance(find_cause(failure.value), QuotaSpentError)
    assert len(warehouse.uuids()) == 10

    again = sync(busy_project, warehouse, rows_per_commit=10)

    assert (again.rows, warehouse.uuids()) == (10, expected)
    (failed, done) = warehouse.query(
        "SELECT status, commits, rows, error FROM _posthog_runs ORDER BY started_at"
    )
    assert failed[:3] == ("failed", 1, 10)
    assert "402" in failed[3]
    assert "\n" not in failed[3]
    assert done == ("done", 1, 10, None)


def test_the_report_counts_all_requests_of_the_run(busy_project: Project, warehouse: Warehouse) -> None:
    four_days(busy_project)

    report = sync(busy_project, warehouse, rows_per_commit=10)

    assert report.requests == len(busy_project.requests())
    assert report.received_bytes > 0


def test_a_budget_of_queries_ends_a_run_at_the_end_of_a_commit_and_the_next_one_goes_on(
    busy_project: Project, warehouse: Warehouse
) -> None:
    expected = four_days(busy_project)

    report = sync(busy_project, warehouse, rows_per_commit=5, budget=Budget(max_queries=1))
    assert (report.status, report.commits, report.rows, report.rows_left) == ("budget_spent", 1, 5, 15)
    assert warehouse.uuids() == expected[:5]

    assert sync(busy_project, warehouse).rows == 15
    assert warehouse.uuids() == expected


def test_a_backfill_beside_a_sync_leaves_its_state_alone_and_reads_all_its_events(
    busy_project: Project, warehouse: Warehouse
) -> None:
    expected = four_days(busy_project)
    sync(busy_project, warehouse)
    before, tables = state_of(warehouse.pipeline), schemas(warehouse)
    warehouse.query("DELETE FROM events WHERE timestamp < '2026-01-03'")
    for uuid, at in (("gone", "2026-01-02"), ("kept", "2027-01-02")):
        warehouse.query(
            "INSERT INTO events (project_id, uuid, event, timestamp, distinct_id)"
            f" VALUES ({busy_project.id}, '{uuid}', 'x', '{at}', 'x')"
        )

    report = backfill(busy_project, warehouse)

    assert warehouse.uuids() == [*expected, "kept"]
    assert (report.kind, report.status, report.rows) == ("backfill", "done", 20)
    assert state_of(warehouse.pipeline) == before
    assert schemas(warehouse) == tables
    assert warehouse.query("SELECT count(*) FROM _posthog_runs WHERE kind = 'backfill'") == [(1,)]


@pytest.mark.parametrize("folder", ["kept", "wiped"])
def test_a_stopped_backfill_goes_on_and_a_finished_one_reads_again(
    busy_project: Project, warehouse: Warehouse, folder: str
) -> None:
    expected = four_days(busy_project)
    busy_project.faults("query", {"pass": True, "times": 2}, {"status": 402})  # count and page, and no more
    with pytest.raises(Exception, match="402"):
        backfill(busy_project, warehouse)
    busy_project.forget_requests()
    if folder == "wiped":
        shutil.rmtree(warehouse.path / "pipelines")
    warehouse = Warehouse.at(warehouse.path)

    assert backfill(busy_project, warehouse).status == "done"

    assert (rows_read(busy_project), warehouse.uuids()) == (10, expected)
    busy_project.forget_requests()
    assert backfill(busy_project, warehouse).rows == rows_read(busy_project) == 20
    assert warehouse.uuids() == expected


def test_backfills_by_pipelines_of_different_names_stage_their_rows_apart(
    busy_project: Project, warehouse: Warehouse
) -> None:
    """Such as partitions of a scheduler, each in a process of its own."""
    expected = four_days(busy_project)
    sync(busy_project, warehouse)
    one, two = Warehouse.at(warehouse.path, "one"), Warehouse.at(warehouse.path, "two")
    busy_project.faults("query", {"pass": True, "times": 2}, {"status": 402})  # count and page, and no more
    with pytest.raises(Exception, match="402"):
        backfill(busy_project, one)
    staged = {name for name in schemas(warehouse) if "staging" in name}

    backfill(busy_project, two)

    assert staged
    assert {name for name in schemas(warehouse) if "staging" in name} == staged
    assert backfill(busy_project, one).status == "done"
    assert {name for name in schemas(warehouse) if "staging" in name} == set()
    assert warehouse.uuids() == expected


@pytest.mark.parametrize("parallel", [2, 3])
def test_a_parallel_backfill_gives_the_table_of_a_plain_one(
    busy_project: Project, warehouse: Warehouse, parallel: int
) -> None:
    expected = four_days(busy_project)

    report = backfill(busy_project, warehouse, parallel=parallel)

    assert warehouse.uuids() == expected
    assert (report.status, report.rows, report.rows_left) == ("done", 20, 0)
    assert rows_read(busy_project) == 20
    assert {name for name in schemas(warehouse) if "staging" in name} <= {"posthog_data_staging"}
    assert warehouse.query("SELECT kind, status, rows FROM _posthog_runs") == [("backfill", "done", 20)]


def test_when_a_range_fails_nobody_goes_on_reading_the_others(
    busy_project: Project, warehouse: Warehouse
) -> None:
    count = 20_000
    add_events(
        busy_project,
        count,
        uuid=[f"00000000-0000-4000-8000-{n:012x}" for n in range(count)],
        timestamp=[START + n % 4 * DAY + timedelta(seconds=n) for n in range(count)],
    )
    busy_project.faults("query", {"pass": True, "times": 20}, {"status": 402})

    with pytest.raises(Exception, match="402"):
        backfill(busy_project, warehouse, parallel=2, rows_per_commit=count, events={"page_rows": 5})

    assert not [thread for thread in threading.enumerate() if thread.name == "posthog_source"]


def test_a_parallel_backfill_that_was_stopped_reads_only_what_is_left(
    busy_project: Project, warehouse: Warehouse
) -> None:
    expected = four_days(busy_project)
    # Each of the days is a range: its count, its page.
    busy_project.faults("query", {"pass": True, "times": 5}, {"status": 402, "times": 20})
    with pytest.raises(Exception, match="402"):
        backfill(busy_project, warehouse, parallel=2)
    busy_project.control("DELETE", "faults")
    loaded = len(warehouse.uuids())
    assert 0 < loaded < 20
    busy_project.forget_requests()

    backfill(busy_project, warehouse, parallel=2)

    assert (rows_read(busy_project), warehouse.uuids()) == (20 - loaded, expected)


def test_a_sync_and_a_backfill_may_run_at_once(busy_project: Project, tmp_path: Path) -> None:
    old = four_days(busy_project)
    recent = datetime.now(UTC) - timedelta(hours=2)
    new = add_events(
        busy_project,
        20,
        uuid=[f"11111111-0000-4000-8000-{n:012x}" for n in range(20)],
        timestamp=[recent - n % 4 * DAY for n in range(20)],
    )

    warehouse = Warehouse.at(tmp_path)  # dlt makes its folder
    with ThreadPoolExecutor(2) as threads:
        runs = [
            threads.submit(
                lambda: sync(busy_project, warehouse, rows_per_commit=5, start_date=recent - 10 * DAY)
            ),
            threads.submit(lambda: backfill(busy_project, warehouse, rows_per_commit=5)),
        ]
        reports = [run.result() for run in runs]

    assert warehouse.uuids() == sorted(old + new)
    assert [report.rows for report in reports] == [20, 20]


def test_backfills_of_several_windows_may_run_at_once_in_threads(
    busy_project: Project, warehouse: Warehouse
) -> None:
    """As a scheduler's tasks do, each with a pipeline of its own; the second time, all rows are replaced."""
    expected = four_days(busy_project)

    def backfill_day(number: int) -> RunReport:
        day = START + number * DAY
        own = Warehouse.at(warehouse.path, f"day_{number}").pipeline
        return run_backfill(own, day, day + DAY, rows_per_commit=3, **busy_project.credentials)

    for _ in range(2):
        with ThreadPoolExecutor(3) as threads:
            reports = list(threads.map(backfill_day, range(4)))
        assert [report.rows for report in reports] == [5, 5, 5, 5]
        assert warehouse.uuids() == expected


def test_backfills_of_two_projects_in_one_dataset_leave_each_others_rows_alone(
    server: Server, busy_project: Project, warehouse: Warehouse
) -> None:
    other = server.project(settings={"rate_limits": NO_LIMITS})
    ours, theirs = Warehouse.at(warehouse.path, "ours"), Warehouse.at(warehouse.path, "theirs")
    mine, others = four_days(busy_project), four_days(other, first=1_000)
    sync(busy_project, ours)
    sync(other, theirs)

    backfill(busy_project, ours)
    backfill(other, theirs)

    found = dict(ours.query("SELECT project_id, list(uuid ORDER BY uuid) FROM events GROUP BY ALL"))
    assert found == {busy_project.id: mine, other.id: others}


@pytest.mark.parametrize("case", ["table", "order", "same", "no end", "commit", "key", "destination"])
def test_what_cannot_be_run_is_one_line_and_nothing_is_sent(
    busy_project: Project, shared_warehouse: Warehouse, case: str
) -> None:
    given = busy_project.credentials
    nowhere = dlt.pipeline("nowhere", pipelines_dir=str(shared_warehouse.path / "nowhere"))
    runs: dict[str, Callable[[], object]] = {
        "table": lambda: run_sync(shared_warehouse.pipeline, tables=["events", "evnts"], **given),
        "order": lambda: run_backfill(shared_warehouse.pipeline, END, START, **given),
        "same": lambda: run_backfill(
            shared_warehouse.pipeline, "2026-01-01", "2026-01-01T00:00:00Z", **given
        ),
        "no end": lambda: run_backfill(shared_warehouse.pipeline, "2026-01-01", None, **given),
        "commit": lambda: run_sync(shared_warehouse.pipeline, rows_per_commit=0, **given),
        "destination": lambda: run_backfill(nowhere, START, END, **given),
        "key": lambda: run_sync(shared_warehouse.pipeline, **given | {"api_key": "phc_x"}),
    }

    with pytest.raises(SettingsError) as failure:
        runs[case]()

    assert "\n" not in str(failure.value)
    assert busy_project.requests() == []
    assert not (shared_warehouse.path / "warehouse.duckdb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_so_in_a_line_at_once_and_goes_on_when_run_again(
    busy_project: Project, shared_warehouse: Warehouse, signal_number: int
) -> None:
    expected = four_days(busy_project)
    # Some commits pass, then an answer takes a minute.
    busy_project.faults("query", {"pass": True, "times": 4}, {"kind": "drip", "seconds": 60, "times": 3})
    process = start(busy_project, shared_warehouse)
    wait_until_held_back(busy_project)

    began = time.monotonic()
    process.send_signal(signal_number)
    _, told = process.communicate(timeout=45)

    assert time.monotonic() - began < 20
    assert process.returncode != 0
    last = told.strip().splitlines()[-1]
    assert last.startswith("posthog_source.errors.InterruptedRunError: Stopped after ")
    assert last.endswith("Run the same again to go on.")
    busy_project.control("DELETE", "faults")
    loaded = len(shared_warehouse.uuids())
    assert 0 <= loaded < 20
    busy_project.forget_requests()

    again = start(busy_project, shared_warehouse)
    _, told = again.communicate(timeout=60)

    assert again.returncode == 0, told
    assert shared_warehouse.uuids() == expected
    assert rows_read(busy_project) == 20 - loaded
    stopped = "SELECT status FROM _posthog_runs ORDER BY started_at"
    assert shared_warehouse.query(stopped) == [("stopped",), ("done",)]


def start(project: Project, warehouse: Warehouse, program: str = PROGRAM) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOURCES__")}
    given = {
        "PYTHONPATH": str(ROOT),
        "DLT_DATA_DIR": str(warehouse.path / "dlt"),
        "RUNTIME__DLTHUB_TELEMETRY": "false",
    }
    return subprocess.Popen(
        [sys.executable, "-c", program, str(warehouse.path)],
        cwd=warehouse.path,
        env=kept | given | project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_held_back(project: Project) -> None:
    """Until PostHog has begun an answer that takes a minute."""
    until = time.monotonic() + 60
    while not project.control("GET", "faults")["fired"]:
        assert time.monotonic() < until


def test_the_report_counts_the_rows_of_all_tables(busy_project: Project, warehouse: Warehouse) -> None:
    busy_project.generate(events=60, persons=10, days=2, end="2026-01-05T00:00:00Z", nasty=False)

    report = run_sync(warehouse.pipeline, rows_per_commit=10**6, **busy_project.credentials)

    counts = warehouse.counts()
    rows = {name: metrics["rows"] for name, metrics in report.tables.items() if "rows" in metrics}
    assert rows == counts
    assert report.rows == sum(counts.values())


def test_a_backfill_by_no_ranges_at_once_is_refused_in_a_line(
    busy_project: Project, warehouse: Warehouse
) -> None:
    with pytest.raises(SettingsError):
        run_backfill(warehouse.pipeline, START, END, parallel=0, **busy_project.credentials)

    assert busy_project.requests() == []


def test_a_sync_without_a_destination_is_refused_in_a_line(busy_project: Project, tmp_path: Path) -> None:
    pipeline = dlt.pipeline("nowhere", pipelines_dir=str(tmp_path))

    with pytest.raises(SettingsError, match="destination"):
        run_sync(pipeline, **busy_project.credentials)

    assert busy_project.requests() == []


@pytest.mark.parametrize(
    "run",
    [
        run_sync,
        lambda pipeline, **given: run_backfill(pipeline, START, END, **given),
        verify,
        lambda pipeline, **_: fetch_status(pipeline),
    ],
    ids=["sync", "backfill", "verify", "status"],
)
def test_a_database_file_that_a_kill_left_in_its_first_moment_is_named_in_a_line(
    busy_project: Project, shared_warehouse: Warehouse, run: Callable[..., object]
) -> None:
    shared_warehouse.query("SELECT 1")
    for size in (8_192, 4_096, 0):
        os.truncate(shared_warehouse.path / "warehouse.duckdb", size)

        with pytest.raises(SettingsError, match=f"{size} bytes") as failure:
            run(shared_warehouse.pipeline, **busy_project.credentials)

        assert "\n" not in str(failure.value)
        assert busy_project.requests() == []


def test_settings_below_a_pipelines_name_hold_for_all_that_is_done_with_it(
    busy_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = four_days(busy_project)
    for name, value in busy_project.environment.items():
        monkeypatch.setenv(f"OURS__{name}", value)
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OURS__DESTINATION__DUCKDB__CREDENTIALS", str(tmp_path / "ours.duckdb"))
    monkeypatch.chdir(tmp_path)

    def activate(name: str) -> dlt.Pipeline:
        path = str(tmp_path / "pipelines")
        return dlt.pipeline(name, pipelines_dir=path, destination="duckdb", dataset_name="posthog_data")

    ours = activate("ours")
    uses: tuple[Callable[[], object], ...] = (
        lambda: check(ours, tables=["events"]),
        lambda: run_sync(ours, tables=["events"]),
        lambda: run_backfill(ours, START, END),
        lambda: run_backfill(ours, START, END, parallel=2),
        lambda: verify(ours),
        lambda: fetch_status(ours),
    )
    for use in uses:
        activate("theirs")
        use()

    assert [file.name for file in tmp_path.glob("*.duckdb")] == ["ours.duckdb"]
    with duckdb.connect(str(tmp_path / "ours.duckdb")) as found:
        rows = found.execute("SELECT uuid FROM posthog_data.events ORDER BY uuid").fetchall()
        kinds = found.execute("SELECT kind FROM posthog_data._posthog_runs ORDER BY started_at").fetchall()
    assert [uuid for (uuid,) in rows] == uuids
    assert [kind for (kind,) in kinds] == ["sync", "backfill", "backfill"]


PARALLEL = PROGRAM.replace(
    'run_sync(pipeline, tables=["events"], rows_per_commit=5)',
    "run_backfill(pipeline, '2026-01-01', '2026-01-05', rows_per_commit=5, parallel=2)",
).replace("import run_sync", "import run_backfill")


def test_a_parallel_backfill_that_is_stopped_ends_at_once(
    busy_project: Project, shared_warehouse: Warehouse
) -> None:
    four_days(busy_project)
    busy_project.faults("query", {"pass": True, "times": 3}, {"kind": "drip", "seconds": 40, "times": 3})
    process = start(busy_project, shared_warehouse, PARALLEL)
    wait_until_held_back(busy_project)

    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=100)

    assert (
        told.strip().splitlines()[-1].startswith("posthog_source.errors.InterruptedRunError: Stopped after ")
    )
    assert time.monotonic() - began < 15


def test_a_backfill_leaves_the_callers_pipeline_active(busy_project: Project, warehouse: Warehouse) -> None:
    four_days(busy_project)
    run_backfill(warehouse.pipeline, START, END, **busy_project.credentials)

    assert dlt.current.pipeline().pipeline_name == "posthog"


def test_a_backfill_whose_last_days_are_empty_is_finished_and_reads_again(
    busy_project: Project, warehouse: Warehouse
) -> None:
    four_days(busy_project)
    far = START + 30 * DAY
    given = {"rows_per_commit": 4} | busy_project.credentials
    run_backfill(warehouse.pipeline, START, far, **given)

    assert run_backfill(warehouse.pipeline, START, far, **given).rows == 20


def test_a_backfill_into_plain_files_ends_well(busy_project: Project, files: Files) -> None:
    expected = four_days(busy_project)

    report = run_backfill(files.pipeline, START, END, **busy_project.credentials)

    assert report.rows == len(expected) == len(files.rows("events"))
