"""Starts the emulator as anyone would, once; gives each test a project, a clock and a place of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, Any

import duckdb
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"  # before dlt reads it: nothing but loopback is called
os.environ["DLT_PROJECT_DIR"] = str(
    Path(__file__).parent
)  # no one's .dlt is read, which takes a sixth of a sync

import dlt
from dlt.common.configuration.container import Container
from dlt.common.pipeline import LoadInfo, PipelineContext

from posthog_source import posthog_source
from posthog_source.catalog import EVENTS, TABLES
from posthog_source.client import Client
from posthog_source.config import build_settings
from posthog_source.pagination import Reader
from posthog_source.tables import HogqlTable, RestTable

ROOT = Path(__file__).resolve().parents[1]
PROJECT_TABLES = tuple(t for t in TABLES if not (isinstance(t, RestTable) and t.root != "project"))
"""What a key that is restricted to a project may read."""

PLAIN_EVENTS = EVENTS.without({"person_properties"})
SLOWEST = (
    *("test_airflow", "test_dagster", "test_prefect"),
    *("test_kill", "test_people_month", "test_storm", "test_benchmarks", "test_month"),
    *("test_pipeline", "test_runs", "test_people", "test_membership", "test_changing", "test_pagination"),
)
"""Files of tests that take longest, in that order: begun last, they would end alone."""

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
"""Where Debian keeps a server's programs."""

NO_LIMITS = {"api_queries": [10**6, 10**6], "default": [10**6, 10**6], "clickhouse": [10**6, 10**6]}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first; within a file, and among the others, the order stays."""
    for item in items:
        if item.path.parent.name == "emulator":
            item.add_marker("emulator")
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


def start_program(
    *arguments: str, stderr: IO[bytes] | None = None
) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """The program and its ready line; close its stdin to stop it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "posthog_emulator", "--stop-with-stdin", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=ROOT,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def stop_program(process: subprocess.Popen[bytes]) -> int:
    """Close stdin and wait; the exit code."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    code = process.wait(timeout=20)
    process.stdout.close()
    return code


@dataclass
class Server:
    """A running emulator."""

    url: str
    api_key: str
    project_token: str
    http: httpx.Client

    def control(self, method: str, path: str, /, **body: Any) -> Any:
        """Call the control API; fails unless it says yes."""
        answer = self.http.request(method, f"/_emulator/{path}", json=body or None)
        assert answer.is_success, answer.text
        return answer.json()

    def sql(self, text: str) -> list[list[Any]]:
        """Ask ClickHouse itself."""
        rows: list[list[Any]] = self.control("POST", "sql", sql=text)["rows"]
        return rows

    def project(self, **body: Any) -> Project:
        """A new project."""
        made = self.http.post("/_emulator/projects", json=body)
        assert made.status_code == 201, made.text
        return Project(self, made.json()["project_id"], made.json()["project_token"], made.json()["api_key"])

    def key(self, scopes: list[str], project_ids: list[int] | None = None) -> str:
        """A new API key."""
        return str(self.control("POST", "keys", scopes=scopes, project_ids=project_ids)["api_key"])

    def optimize(self) -> None:
        """Merge all parts, as on a server that had time."""
        self.control("POST", "optimize")


@dataclass
class Project:
    """One project of a running emulator."""

    server: Server
    id: int
    token: str
    api_key: str = field(repr=False)

    @property
    def credentials(self) -> dict[str, Any]:
        """What the connector needs to know."""
        return {"project_id": self.id, "api_key": self.api_key, "host": self.server.url}

    @property
    def environment(self) -> dict[str, str]:
        """The same, as environment variables."""
        return {f"SOURCES__POSTHOG__{name.upper()}": str(value) for name, value in self.credentials.items()}

    def with_full_key(self) -> Project:
        """Under a key that may read everything, what stands above the project too."""
        return replace(self, api_key=self.server.key(["*"]))

    def get(self, path: str = "", *, key: str | None = None, **params: Any) -> httpx.Response:
        """GET something under this project."""
        return self.server.http.get(
            f"/api/projects/{self.id}/{path}", params=params or None, headers=bearer(key or self.api_key)
        )

    def control(self, method: str, path: str, /, **body: Any) -> Any:
        """Call the control API for this project."""
        return self.server.control(method, f"projects/{self.id}/{path}".rstrip("/"), **body)

    def settings(self, **changes: Any) -> None:
        """Change how the server treats this project."""
        self.control("PATCH", "", settings=changes)

    def faults(self, path: str, *faults: dict[str, Any], method: str | None = None) -> None:
        """Queue faults."""
        self.control("POST", "faults", path=path, faults=list(faults), method=method)

    def requests(self) -> list[dict[str, Any]]:
        """What was asked of this project."""
        journal: list[dict[str, Any]] = self.control("GET", "requests")
        return journal

    def stats(self) -> dict[str, Any]:
        """Sums over what was asked."""
        sums: dict[str, Any] = self.control("GET", "stats")
        return sums

    def forget_requests(self) -> None:
        """Begin the journal anew."""
        self.control("DELETE", "requests")

    def generate(self, **plan: Any) -> dict[str, Any]:
        """Fill the project with a seeded product's data."""
        made: dict[str, Any] = self.control("POST", "generate", **plan)
        return made

    def rows(self, table: str, **columns: Any) -> int:
        """Append exact rows."""
        data = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, data.schema) as writer:
            writer.write_table(data)
        answer = self.server.http.post(
            f"/_emulator/projects/{self.id}/rows/{table}", content=sink.getvalue().to_pybytes()
        )
        assert answer.status_code == 200, answer.text
        return int(answer.json()["rows"])

    def capture(self, *events: dict[str, Any], path: str = "/batch/", **envelope: Any) -> httpx.Response:
        """Send events as an SDK does."""
        return self.server.http.post(path, json={"api_key": self.token, "batch": list(events), **envelope})

    def events(self, columns: str, where: str = "1") -> list[list[Any]]:
        """This project's event rows, oldest arrival first."""
        return self.server.sql(
            f"SELECT {columns} FROM events WHERE team_id = {self.id} AND {where}"
            " ORDER BY created_at, timestamp, uuid"
        )

    def measure(self, columns: str, tail: str = "") -> list[list[Any]]:
        """Sums over this project's events."""
        return self.server.sql(f"SELECT {columns} FROM events WHERE team_id = {self.id} {tail}")

    def persons(self, columns: str) -> list[list[Any]]:
        """The newest version of each person."""
        return self.server.sql(
            f"SELECT {columns} FROM person WHERE team_id = {self.id} ORDER BY id, version DESC LIMIT 1 BY id"
        )

    def person_ids(self) -> dict[str, str]:
        """Whose each distinct id is now."""
        rows = self.server.sql(
            "SELECT distinct_id, person_id FROM person_distinct_id2"
            f" WHERE team_id = {self.id} ORDER BY version DESC LIMIT 1 BY distinct_id"
        )
        return {row[0]: row[1] for row in rows}

    def members(self) -> set[tuple[int, str]]:
        """Cohort and person of every member, as last calculated."""
        cohorts = self.get("cohorts/", limit=1000).json()["results"]
        versions = [f"({one['id']}, {one['version']})" for one in cohorts if not one["is_static"]]
        current = f"(cohort_id, version) IN ({', '.join(versions)})" if versions else "0"
        rows = self.server.sql(
            "SELECT cohort_id, toString(person_id) FROM cohortpeople"
            f" WHERE team_id = {self.id} AND {current} GROUP BY cohort_id, person_id HAVING sum(sign) > 0"
            " UNION ALL SELECT DISTINCT cohort_id, toString(person_id) FROM person_static_cohort"
            f" WHERE team_id = {self.id}"
        )
        return {(int(cohort_id), str(person_id)) for cohort_id, person_id in rows}


@dataclass
class FakeTime:
    """A clock that moves only when someone sleeps; remembers who slept how long."""

    now_s: float = 1_000.0
    slept_s: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def clock(self) -> float:
        """Seconds, as `time.monotonic`."""
        with self._lock:
            return self.now_s

    def sleep(self, seconds: float) -> None:
        """Takes no time at all."""
        with self._lock:
            self.now_s += seconds
            self.slept_s.append(seconds)


@dataclass
class Warehouse:
    """A dlt pipeline into a DuckDB file of one test."""

    path: Path
    pipeline: dlt.Pipeline

    @classmethod
    def at(cls, path: Path, name: str = "posthog", **options: Any) -> Warehouse:
        """A pipeline whose state and database lie under a folder; another name is another pipeline."""
        pipeline = dlt.pipeline(
            name,
            pipelines_dir=str(path / "pipelines"),
            destination=dlt.destinations.duckdb(str(path / "warehouse.duckdb")),
            dataset_name="posthog_data",
            **options,
        )
        return cls(path, pipeline)

    @contextmanager
    def held(self) -> Iterator[Warehouse]:
        """The same, its file kept open: DuckDB takes 15 ms to open and close it, and dlt does so often."""
        self.path.mkdir(exist_ok=True)
        with duckdb.connect(str(self.path / "warehouse.duckdb")):
            yield self

    def sync(self, project: Project, *tables: str, **settings: Any) -> LoadInfo:
        """One sync of a project, of some tables or all."""
        source = posthog_source(**project.credentials | settings)
        return self.pipeline.run(source.with_resources(*tables) if tables else source)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask DuckDB itself, since dlt's client takes 20 ms; tables need no schema name."""
        with duckdb.connect(str(self.path / "warehouse.duckdb")) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            with suppress(duckdb.CatalogException):  # nothing was loaded yet
                connection.execute("SET search_path = 'posthog_data'")
            return connection.execute(sql).fetchall()

    def counts(self) -> dict[str, int]:
        """Rows by table of the catalogue, for those that are there."""
        there = {name for (name,) in self.query("SELECT table_name FROM information_schema.tables")}
        counted = [
            f"SELECT '{table.name}', count(*) FROM {table.name}" for table in TABLES if table.name in there
        ]
        return dict(self.query(" UNION ALL ".join(counted))) if counted else {}

    def uuids(self) -> list[str]:
        """Of all events, copies and all."""
        return sorted(uuid for (uuid,) in self.query("SELECT uuid FROM events"))


class Elsewhere(Warehouse):
    """A dlt pipeline into any warehouse."""

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask it through dlt; tables need no schema name."""
        with self.pipeline.sql_client() as client:
            return [tuple(row) for row in client.execute_sql(sql) or []]


class Files(Elsewhere):
    """A dlt pipeline into the plain files of one test."""

    @classmethod
    def below(cls, path: Path) -> Files:
        """In a folder, the pipeline's state beside them."""
        pipeline = dlt.pipeline(
            "files",
            pipelines_dir=str(path / "pipelines"),
            destination=dlt.destinations.filesystem((path / "files").as_uri()),
            dataset_name="posthog_data",
        )
        return cls(path, pipeline)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What the Parquet files of a table hold."""
        found = sorted((self.path / "files" / "posthog_data" / table).glob("*.parquet"))
        return [row for file in found for row in pq.read_table(file).to_pylist()]


def client_of(project: Project, time: FakeTime, **settings: Any) -> Client:
    """The connector's client for a project; close it."""
    return Client(build_settings(**project.credentials | settings), clock=time.clock, sleep=time.sleep)


def reader_of(
    client: Client,
    project: Project,
    *,
    page_rows: int,
    table: HogqlTable = PLAIN_EVENTS,
    look_ahead: int = 2,
    may_repeat: bool = True,
) -> Reader:
    """The connector's reader of one table."""
    return Reader(
        client,
        table,
        project_id=project.id,
        page_rows=page_rows,
        look_ahead=look_ahead,
        may_repeat=may_repeat,
    )


def add_events(project: Project, count: int = 1, **columns: Any) -> list[str]:
    """Append events of 2026-01-10, a second apart unless told otherwise; gives their uuids."""
    start = datetime(2026, 1, 10, tzinfo=UTC)
    data = {
        "uuid": [f"00000000-0000-4000-8000-{n:012x}" for n in range(count)],
        "event": ["page"] * count,
        "distinct_id": [f"user-{n}" for n in range(count)],
        "timestamp": [start + timedelta(seconds=n) for n in range(count)],
        "properties": ["{}"] * count,
        **columns,
    }
    for name in ("timestamp", "created_at"):
        if name in data:
            data[name] = pa.array(data[name], pa.timestamp("us", "UTC"))
    assert project.rows("events", **data) == count
    return list(data["uuid"])


def run_program(
    *command: str, cwd: Path, project: Project | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python as a person would, in a folder of its own, with a project's settings in the environment."""
    given = {"DLT_DATA_DIR": str(cwd / "dlt"), "PYTHONPATH": str(ROOT), "RUNTIME__DLTHUB_TELEMETRY": "false"}
    if project is not None:
        given |= project.environment
    ours = ("SOURCES__", "DLT_PROJECT_DIR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=kept | given | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


@contextmanager
def running_server() -> Iterator[Server]:
    """An emulator of one's own."""
    process, ready = start_program()
    with httpx.Client(base_url=ready["url"], timeout=300) as http:
        yield Server(ready["url"], ready["api_key"], ready["project_token"], http)
    assert stop_program(process) == 0


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


@pytest.fixture
def project(server: Server) -> Project:
    return server.project()


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    with Warehouse.at(tmp_path).held() as warehouse:
        yield warehouse


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files.below(tmp_path)


@pytest.fixture(autouse=True)
def no_pipeline_stays_active() -> Iterator[None]:
    """A resource of the next test would read the state of this one's."""
    yield
    active = Container()[PipelineContext]
    if active.is_active():
        active.deactivate()


@pytest.fixture
def busy_project(server: Server) -> Project:
    """A project that may be asked as often as a test likes."""
    return server.project(settings={"rate_limits": NO_LIMITS})


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def postgres() -> Iterator[str]:
    with running_postgres() as address:
        yield address


@contextmanager
def running_postgres() -> Iterator[str]:
    """The address of an empty Postgres, where a server's programs and dlt's driver are installed."""
    pytest.importorskip("psycopg2")
    if POSTGRES is None:
        pytest.skip("no Postgres server is installed")
    place = Path(mkdtemp(prefix="postgres-"))
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    if user:
        shutil.chown(place, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {place} -c fsync=off"
    control = [str(POSTGRES / "pg_ctl"), "-D", str(place / "data"), "-w", "-l", str(place / "log")]

    def run(*command: str) -> None:
        subprocess.run(command, user=user, cwd=place, check=True, stdout=subprocess.DEVNULL)

    run(str(POSTGRES / "initdb"), "-D", str(place / "data"), "-U", "dlt", "-A", "trust", "-E", "UTF8", "-N")
    run(*control, "-o", options, "start")
    try:
        yield f"postgresql://dlt:none@127.0.0.1:{port}/postgres"
    finally:
        run(*control, "-m", "immediate", "stop")
        shutil.rmtree(place)
