"""pipelines/airflow_dags.py in a real Airflow of both generations, each in an environment of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from posthog_source import run_backfill
from posthog_source.pipeline import DUCKDB_HEADERS_BYTES
from tests.conftest import NO_LIMITS, ROOT, Project, Server, Warehouse, add_events
from tests.schedulers.environment import build_environment
from tests.test_documents import blocks

pytestmark = pytest.mark.schedulers

DAGS = ROOT / "pipelines" / "airflow_dags.py"
PAGE = (ROOT / "docs" / "airflow.md").read_text(encoding="utf-8")
SET_UP = [
    line
    for block in blocks(PAGE, "sh")
    for line in block.splitlines()
    if re.search(r"variables|connect", line)
]
(BACKFILL,) = re.findall(r"airflow dags trigger posthog_backfill --conf '(.*)'", PAGE)
BESIDE = ("duckdb>=1.4,<2",)
"""This process reads what they write."""

EVENTS = 2_000_000
ROWS_PER_TASK = 300_000
START, END = "2026-01-01", "2026-03-02"
PARSE_S = 2.0

OUTLETS = {
    "sync_events": ["posthog://events"],
    "sync_people": ["posthog://people"],
    "sync_definitions": ["posthog://definitions"],
    "compare": ["posthog://events"],
}

READ = """
import json, runpy, sys, time
import airflow
try:
    import airflow.sdk, airflow.sdk.exceptions
except ImportError:
    import airflow.decorators, airflow.datasets, airflow.models.param, airflow.timetables.interval
began_s = time.perf_counter()
found = runpy.run_path(sys.argv[1])
seconds = time.perf_counter() - began_s
dags = [found[name]() for name in ("posthog_sync", "posthog_backfill")]
tasks = [task for dag in dags for task in dag.tasks]
outlets = {task.task_id: [each.uri.rstrip("/") for each in task.outlets] for task in tasks}
print(json.dumps({
    "seconds": seconds,
    "imported": [name for name in ("dlt", "posthog_source", "pyarrow", "duckdb") if name in sys.modules],
    "outlets": {task: uris for task, uris in outlets.items() if uris},
}))
"""


@dataclass(frozen=True)
class Airflow:
    """An Airflow with a folder of DAGs, a database in SQLite, and a warehouse in a DuckDB file.

    Attributes:
        programs: Where its commands are.
        home: `AIRFLOW_HOME`.
    """

    programs: Path
    home: Path

    @property
    def warehouse(self) -> Path:
        return self.home / "warehouse.duckdb"

    def is_loading(self) -> bool:
        """Whether the warehouse has more than what DuckDB writes as it makes a file."""
        return self.warehouse.exists() and self.warehouse.stat().st_size > DUCKDB_HEADERS_BYTES

    @property
    def working_directory(self) -> Path:
        """dlt's."""
        return self.home / "dlt"

    def begin(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A command under way, as the leader of its processes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SOURCES__")}
        given = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.home / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "DESTINATION__DUCKDB__CREDENTIALS": str(self.warehouse),
            "DLT_DATA_DIR": str(self.working_directory),
            "RUNTIME__DLTHUB_TELEMETRY": "false",
        }
        return subprocess.Popen(
            command,
            cwd=self.home,
            env=kept | given | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, **environment: str) -> str:
        """What a command that goes well has said."""
        process = self.begin(*command, **environment)
        try:
            said, _ = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said[-4000:]
        return said

    def test(self, dag: str, *arguments: str, **environment: str) -> dict[str, str]:
        """How each task of a run of a DAG ended."""
        self.run("airflow", "dags", "test", dag, *arguments, **environment)
        latest = "SELECT run_id FROM dag_run ORDER BY id DESC LIMIT 1"
        states = self.metadata(f"SELECT task_id, state FROM task_instance WHERE run_id = ({latest})")
        return dict(states)

    def metadata(self, sql: str) -> list[tuple[Any, ...]]:
        """Asks Airflow's own database."""
        with sqlite3.connect(self.home / "airflow.db") as database:
            return database.execute(sql).fetchall()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Asks the warehouse."""
        with duckdb.connect(str(self.warehouse)) as warehouse:
            return warehouse.execute(sql).fetchall()

    def uuids(self, dataset: str = "posthog_data") -> list[str]:
        """Of its events, copies and all."""
        return sorted(uuid for (uuid,) in self.query(f"SELECT uuid FROM {dataset}.events"))


@pytest.fixture(scope="class")
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    """An Airflow that is ready to be copied."""
    folder = tmp_path_factory.mktemp("airflow")
    home = folder / "home"
    (home / "dags").mkdir(parents=True)
    shutil.copy(DAGS, home / "dags")
    programs = build_environment(folder / "venv", request.cls.requirement, *BESIDE)
    made = Airflow(programs, home)
    made.run("airflow", "db", "migrate")
    return made


@pytest.fixture
def airflow(installed: Airflow, tmp_path: Path) -> Airflow:
    """One of a test's own."""
    home = tmp_path / "airflow"
    shutil.copytree(installed.home, home)
    return Airflow(installed.programs, home)


def connection(project: Project, **changes: str) -> dict[str, str]:
    """The connection `posthog_default`, as the environment gives it."""
    given = {"conn_type": "generic", "host": project.server.url, "password": project.api_key, **changes}
    return {"AIRFLOW_CONN_POSTHOG_DEFAULT": json.dumps(given | {"extra": {"project_id": project.id}})}


def ago(**parts: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) - timedelta(**parts)


def kill_when(is_time: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process and all that it has started."""
    while not is_time():
        try:
            raise AssertionError(process.communicate(timeout=0.05)[0][-4000:])
        except subprocess.TimeoutExpired:
            continue
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def large(server: Server) -> Project:
    """Two million events within two months."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    plan = {"events": EVENTS // 4, "persons": 5_000, "days": 15, "properties_bytes": 100, "late_share": 0}
    for number in range(1, 5):
        end = datetime.fromisoformat(START).replace(tzinfo=UTC) + timedelta(days=15 * number)
        project.generate(**plan, end=end.isoformat(), seed=number)
    server.optimize()
    return project


CHECKSUM = (
    "SELECT count(*), count(DISTINCT uuid), sum(hash(uuid, timestamp, event, distinct_id, properties)) FROM"
)


@pytest.fixture(scope="module")
def serial(large: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What a plain backfill of them comes to."""
    warehouse = Warehouse.at(tmp_path_factory.mktemp("serial"))
    run_backfill(warehouse.pipeline, START, END, **large.credentials)
    return warehouse.query(f"{CHECKSUM} events")[0]


class Promises:
    """Of any Airflow. Each version is a class, since xdist gives a class's tests to one process."""

    requirement: str

    def test_the_file_is_read_fast_and_without_dlt_and_its_tasks_have_outlets(self, airflow: Airflow) -> None:
        said = airflow.run("python", "-c", READ, str(DAGS))

        found = json.loads(said.splitlines()[-1])
        assert found["imported"] == []
        assert found["seconds"] < PARSE_S
        assert found["outlets"] == OUTLETS

    def test_a_sync_loads_what_connection_and_variables_say_and_a_second_adds_nothing(
        self, airflow: Airflow, project: Project
    ) -> None:
        expected = sorted(add_events(project, 30, timestamp=[ago(hours=1 + n) for n in range(30)]))
        project.capture(
            {"event": "signed up", "distinct_id": "anna", "properties": {"$set": {"plan": "free"}}}
        )
        told = {
            "eu": project.server.url,
            "phx_…": project.api_key,
            "postgres": "duckdb",
            "posthog_data": "analytics",
        }
        told['{"project_id": 12345}'] = json.dumps({"project_id": project.id})
        for command in SET_UP:
            airflow.run(*(told.get(word, word) for word in shlex.split(command)))

        states = airflow.test("posthog_sync")

        assert states == dict.fromkeys(("sync_events", "sync_people", "sync_definitions"), "success")
        assert airflow.uuids("analytics") == expected
        names = {name for (name,) in airflow.query("SELECT table_name FROM information_schema.tables")}
        assert {"events", "persons", "insights"} <= names
        (report,) = airflow.metadata(
            "SELECT value FROM xcom WHERE task_id = 'sync_events' AND key = 'return_value'"
        )
        assert json.loads(report[0])["rows"] == 30

        airflow.run("airflow", "connections", "delete", "posthog_default")
        keys = {"project_id": project.id, "api_key": project.api_key, "host": project.server.url}
        secrets = "".join(f"{name} = {json.dumps(value)}\n" for name, value in keys.items())
        airflow.test("posthog_sync", AIRFLOW_VAR_DLT_SECRETS_TOML=f"[sources.posthog]\n{secrets}")

        assert airflow.uuids("analytics") == expected

    @pytest.mark.parametrize("at", ["reading", "loading"])
    def test_a_sync_killed_and_run_again_on_an_empty_working_directory_adds_and_loses_nothing(
        self, airflow: Airflow, project: Project, at: str
    ) -> None:
        expected = sorted(add_events(project, 4_000, timestamp=[ago(minutes=30 + n) for n in range(4_000)]))
        project.settings(latency_s=0.05)
        small = {"SOURCES__POSTHOG__EVENTS__PAGE_ROWS": "200"}
        is_time = {"reading": lambda: len(project.requests()) > 10, "loading": airflow.is_loading}[at]

        kill_when(
            is_time, airflow.begin("airflow", "dags", "test", "posthog_sync", **connection(project), **small)
        )
        shutil.rmtree(airflow.working_directory)
        airflow.test("posthog_sync", **connection(project), **small)

        assert airflow.uuids() == expected

    def test_a_wrong_key_fails_at_once_in_one_line(self, airflow: Airflow, project: Project) -> None:
        process = airflow.begin(
            "airflow", "dags", "test", "posthog_sync", **connection(project, password="phx_" + "wrong" * 8)
        )
        said, _ = process.communicate(timeout=300)

        assert re.search(r"AirflowFailException: .*401.*key", said), said[-3000:]
        states = dict(airflow.metadata("SELECT task_id, state FROM task_instance"))
        assert (states["sync_events"], states["sync_definitions"]) == (
            "failed",
            "failed",
        )  # not: up for retry
        assert airflow.query("SELECT * FROM information_schema.tables WHERE table_name = 'events'") == []

    def test_a_run_of_the_past_reads_its_interval_again_and_nothing_else(
        self, airflow: Airflow, project: Project
    ) -> None:
        day = datetime(2026, 1, 3, tzinfo=UTC)
        uuids = add_events(project, 24 * 60, timestamp=[day + timedelta(minutes=n) for n in range(24 * 60)])

        for _ in range(2):
            said = airflow.run(
                "airflow", "tasks", "test", "posthog_sync", "sync_events", "2026-01-03T12:07:00+00:00",
                **connection(project),
            )  # fmt: skip
            assert airflow.uuids() == sorted(uuids[12 * 60 + 7 : 13 * 60 + 7]) or (
                airflow.uuids() == sorted(uuids[11 * 60 + 7 : 12 * 60 + 7])
            ), said[-3000:]

    def test_a_mapped_backfill_equals_a_serial_one_and_is_compared_with_posthog(
        self, airflow: Airflow, large: Project, serial: tuple[Any, ...]
    ) -> None:
        chosen = json.dumps(json.loads(BACKFILL) | {"from": START, "to": END, "rows_per_task": ROWS_PER_TASK})

        states = airflow.test("posthog_backfill", "-c", chosen, **connection(large))

        assert set(states.values()) == {"success"}
        tasks = airflow.metadata("SELECT count(*) FROM task_instance WHERE task_id = 'backfill'")
        assert 5 <= tasks[0][0] <= 1 + EVENTS // ROWS_PER_TASK
        assert airflow.query(f"{CHECKSUM} posthog_data.events") == [serial]
        ((there,),) = large.measure("count()", f"AND timestamp >= '{START}' AND timestamp < '{END}'")
        assert serial[0] == serial[1] == there > 0.99 * EVENTS

        airflow.query(
            "DELETE FROM posthog_data.events WHERE uuid = (SELECT min(uuid) FROM posthog_data.events)"
        )
        process = airflow.begin(
            "airflow", "tasks", "test", "posthog_backfill", "compare", START, "--task-params", chosen,
            **connection(large),
        )  # fmt: skip
        said, _ = process.communicate(timeout=300)
        assert re.search(r"AirflowFailException: events differ from PostHog's on 2026-\d\d-\d\d\.", said), (
            said[-3000:]
        )


class TestAirflow2(Promises):
    requirement = "apache-airflow>=2.11,<3"


class TestAirflow3(Promises):
    """Also with what Airflow 2 does not have: those names, and an interval of no length."""

    requirement = "apache-airflow>=3.1,<4"

    def test_a_dag_that_waits_for_a_table_is_read(self, airflow: Airflow, tmp_path: Path) -> None:
        (block,) = blocks(PAGE, "python")
        (tmp_path / "waiting.py").write_text(block)

        airflow.run("python", str(tmp_path / "waiting.py"))

    def test_an_interval_that_ends_where_it_begins_fails_with_what_to_do(
        self, airflow: Airflow, project: Project
    ) -> None:
        file = airflow.home / "dags" / DAGS.name
        text, changed = re.subn(
            r"schedule=CronDataIntervalTimetable\(.*\)", 'schedule="@daily"', file.read_text()
        )
        assert changed == 1
        file.write_text(text)

        process = airflow.begin(
            "airflow", "dags", "test", "posthog_sync", "2026-01-03", **connection(project)
        )
        said, _ = process.communicate(timeout=120)

        assert "schedule with CronDataIntervalTimetable" in said
        assert ("sync_events", "failed") in airflow.metadata("SELECT task_id, state FROM task_instance")
