"""docs/dagster.md works as it stands: its definitions, loaded by Dagster's own programs, fill a warehouse."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.conftest import NO_LIMITS, ROOT, Project, Server, add_events
from tests.schedulers.environment import build_environment
from tests.test_documents import blocks

pytestmark = pytest.mark.schedulers

DOCUMENT = (ROOT / "docs" / "dagster.md").read_text(encoding="utf-8")
INSTALL, LIMIT, BY_HAND = blocks(DOCUMENT, "sh")
DEFINITIONS, WITH_DLT_RUN = blocks(DOCUMENT, "python")
(INSTANCE,) = blocks(DOCUMENT, "yaml")
SYNC, MONTH = (shlex.split(line) for line in BY_HAND.splitlines())
CHECK = [*SYNC[:-1], "posthog_check"]
BESIDE = ("duckdb>=1.4,<2",)
"""This process reads what they write."""

ONE_TABLE = {"SOURCES__POSTHOG__TABLES": "events"}
"""Where the others would only take time."""

MATERIALIZATIONS = """
import json
from dagster import AssetRecordsFilter, DagsterInstance
with DagsterInstance.get() as instance:
    found = {}
    for key in instance.get_asset_keys():
        for record in instance.fetch_materializations(key, limit=100).records:
            made = record.asset_materialization
            metadata = {name: str(value.value) for name, value in made.metadata.items()}
            found.setdefault("/".join(key.path), []).append(metadata)
    print(json.dumps(found))
"""
RUNS_IN_THE_QUEUE = """
import json, time
from dagster import DagsterInstance
with DagsterInstance.get() as instance:
    while not all(one.dagster_run.is_finished for one in instance.get_run_records()):
        time.sleep(1)
    runs = [
        (one.dagster_run.job_name, one.dagster_run.status.value, one.start_time, one.end_time)
        for one in instance.get_run_records()
    ]
    print(json.dumps(sorted(runs, key=lambda run: run[2])))
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are that the document installs."""
    requirements = shlex.split(INSTALL)[3:]
    return build_environment(tmp_path_factory.mktemp("dagster") / "venv", *requirements, *BESIDE)


@dataclass(frozen=True)
class Place:
    """The document's folder, with an instance of Dagster's, for one project."""

    folder: Path
    programs: Path
    project: Project

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SOURCES__")}
        return kept | {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "DAGSTER_HOME": str(self.folder / "home"),
            "DAGSTER_DISABLE_TELEMETRY": "true",
            "DLT_DATA_DIR": str(self.folder / "dlt"),
            "RUNTIME__DLTHUB_TELEMETRY": "false",
        }

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """One program, with the project's settings."""
        return self.run_without_settings(*command, **self.project.environment | environment)

    def run_without_settings(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def ask(self, program: str) -> Any:
        """What Dagster's instance knows."""
        asked = self.run("python", "-c", program)
        assert asked.returncode == 0, asked.stderr
        return json.loads(asked.stdout.splitlines()[-1])

    @contextmanager
    def warehouse(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with duckdb.connect(str(self.folder / "posthog.duckdb")) as connection:
            connection.sql("USE posthog_data")
            yield connection

    def uuids(self) -> list[str]:
        with self.warehouse() as warehouse:
            return sorted(uuid for (uuid,) in warehouse.sql("SELECT uuid FROM events").fetchall())

    def events(self) -> list[str]:
        """PostHog's uuids."""
        return sorted(uuid for (uuid,) in self.project.events("toString(uuid)"))


@pytest.fixture
def place(server: Server, programs: Path, tmp_path: Path) -> Place:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    (tmp_path / "definitions.py").write_text(DEFINITIONS, encoding="utf-8")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text(INSTANCE, encoding="utf-8")
    return Place(tmp_path, programs, project)


def two_months(project: Project) -> None:
    """Ten events in January, ten in February."""
    days = [datetime(2026, 1 + n // 10, 3 + n % 10, 6, tzinfo=UTC) for n in range(20)]
    add_events(project, 20, timestamp=days, created_at=days)


def succeeded(done: subprocess.CompletedProcess[str]) -> bool:
    assert done.returncode == 0, done.stderr[-3_000:]
    return True


def test_the_definitions_load_without_a_key_and_ask_posthog_nothing(place: Place) -> None:
    assert succeeded(place.run_without_settings("dagster", "definitions", "validate", "-f", "definitions.py"))
    assert place.project.requests() == []


def test_a_sync_fills_a_table_for_each_asset_and_a_second_one_adds_nothing(place: Place) -> None:
    place.project.generate(events=200, persons=20, days=3)
    expected = place.events()

    for _ in range(2):
        assert succeeded(place.run(*SYNC))
        assert place.uuids() == expected

    found = place.ask(MATERIALIZATIONS)
    with place.warehouse() as warehouse:
        persons = warehouse.sql("SELECT id FROM persons")
        assert len(persons) == len(place.project.persons("id"))
    assert "posthog/persons" in found
    assert [int(float(each["rows"])) for each in found["posthog/events"]][-1] == len(expected)


def test_one_asset_is_one_table(place: Place) -> None:
    two_months(place.project)

    assert succeeded(place.run(*MONTH[:5], "--select", "posthog/events"))

    assert place.uuids() == place.events()
    assert set(place.ask(MATERIALIZATIONS)) == {"posthog/events"}


def test_a_partition_is_a_month_of_events_and_is_replaced_when_it_is_made_again(place: Place) -> None:
    two_months(place.project)
    first, second = place.events()[:10], place.events()[10:]
    assert MONTH[-2:] == ["--partition", "2026-01-01"]

    assert succeeded(place.run(*MONTH))
    assert place.uuids() == first
    assert succeeded(place.run(*MONTH[:-1], "2026-02-01"))
    assert place.uuids() == first + second

    assert succeeded(place.run(*MONTH))

    assert place.uuids() == first + second


def test_what_may_pass_is_tried_again_and_doubles_nothing(place: Place) -> None:
    definitions = place.folder / "definitions.py"
    definitions.write_text(DEFINITIONS.replace("delay=300", "delay=1"), encoding="utf-8")
    two_months(place.project)
    place.project.faults("query", {"pass": True, "times": 2}, {"status": 503})

    # Pages of four: some of the month has been read when PostHog fails.
    done = place.run(*MONTH, SOURCES__POSTHOG__MAX_ATTEMPTS="1", SOURCES__POSTHOG__EVENTS__PAGE_ROWS="4")

    assert succeeded(done)
    assert "STEP_UP_FOR_RETRY" in done.stderr
    assert place.uuids() == place.events()[:10]


@pytest.mark.parametrize("command", [SYNC, MONTH, CHECK], ids=["sync", "month", "check"])
def test_a_wrong_key_fails_the_run_with_one_line_and_is_not_tried_again(
    place: Place, command: list[str]
) -> None:
    two_months(place.project)
    if command is CHECK:
        assert succeeded(place.run(*SYNC, **ONE_TABLE))

    done = place.run(*command, SOURCES__POSTHOG__API_KEY="phx_wrong")

    assert done.returncode != 0
    assert "Failure: PostHog answered 401 " in done.stderr
    assert "Check sources.posthog.api_key and sources.posthog.host." in done.stderr
    assert "STEP_UP_FOR_RETRY" not in done.stderr
    assert "phx_wrong" not in done.stderr + done.stdout


def test_the_check_says_whether_events_are_posthogs(place: Place) -> None:
    two_months(place.project)
    assert succeeded(place.run(*SYNC, **ONE_TABLE))

    for is_equal in (True, False):
        done = place.run(*CHECK)
        assert succeeded(done)
        assert ("did not pass" in done.stderr) is not is_equal
        with place.warehouse() as warehouse:
            warehouse.sql("DELETE FROM events WHERE timestamp < '2026-01-05'")


def test_runs_of_the_queue_wait_for_one_another_and_a_sync_goes_first(place: Place) -> None:
    two_months(place.project)
    assert succeeded(place.run(*shlex.split(LIMIT)))
    for command in (CHECK, SYNC, SYNC):
        assert succeeded(place.run("dagster", "job", "launch", *command[3:], **ONE_TABLE))

    with started(place, "dagster-daemon", "run", "-f", "definitions.py", **ONE_TABLE):
        runs = place.ask(RUNS_IN_THE_QUEUE)

    assert [(job, status) for job, status, _, _ in runs] == [
        ("posthog_sync", "SUCCESS"),
        ("posthog_sync", "SUCCESS"),
        ("posthog_check", "SUCCESS"),
    ]
    assert all(before[3] <= after[2] for before, after in pairwise(runs))


def test_dlts_own_run_fills_the_same_tables_with_its_own_metadata(place: Place) -> None:
    (place.folder / "definitions.py").write_text(WITH_DLT_RUN, encoding="utf-8")
    two_months(place.project)

    for _ in range(2):
        assert succeeded(place.run(*MONTH[:5], "--select", "*", SOURCES__POSTHOG__TABLES="events,persons"))
        assert place.uuids() == place.events()

    found = place.ask(MATERIALIZATIONS)
    assert found["dlt_posthog_events"][-1]["rows_loaded"] == "20"
    assert "distinct_id" in found["dlt_posthog_events"][-1]["dagster/column_schema"]


@contextmanager
def started(place: Place, *command: str, **environment: str) -> Iterator[None]:
    """A program that goes on, with all that it starts."""
    process = subprocess.Popen(
        command,
        cwd=place.folder,
        env=place.environment | place.project.environment | environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
