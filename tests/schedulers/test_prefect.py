"""docs/prefect.md works as it stands: its flows, run by Prefect itself, fill a warehouse."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pytest

from tests.conftest import NO_LIMITS, ROOT, Project, Server, add_events
from tests.schedulers.environment import build_environment
from tests.test_documents import blocks

pytestmark = pytest.mark.schedulers

DOCUMENT = (ROOT / "docs" / "prefect.md").read_text(encoding="utf-8")
INSTALL, BACKFILL = blocks(DOCUMENT, "sh")
(FLOWS,) = blocks(DOCUMENT, "python")
BESIDE = ("duckdb>=1.4,<2",)
"""This process reads what they write."""

FOUR_RANGES = FLOWS.replace("rows_per_range=5_000_000", "rows_per_range=30")
"""Of the events below; otherwise as in the document."""

SYNC = ["python", "-c", "from posthog_flows import *; posthog_sync()"]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are that the document installs."""
    requirements = shlex.split(INSTALL)[3:]
    return build_environment(tmp_path_factory.mktemp("prefect") / "venv", *requirements, *BESIDE)


@dataclass(frozen=True)
class Place:
    """The document's folder, for one project."""

    folder: Path
    programs: Path
    project: Project

    @property
    def environment(self) -> dict[str, str]:
        """Prefect's own server starts within seconds, but here others use the machine too."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SOURCES__")}
        return (
            kept
            | self.project.environment
            | {
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "PREFECT_HOME": str(self.folder / "home"),
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "DO_NOT_TRACK": "1",
                "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
                "DLT_DATA_DIR": str(self.folder / "dlt"),
                "RUNTIME__DLTHUB_TELEMETRY": "false",
            }
        )

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    @contextmanager
    def started(self, *command: str, **environment: str) -> Iterator[None]:
        """A program that goes on, with all that it starts."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)

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
    (tmp_path / "posthog_flows.py").write_text(FOUR_RANGES, encoding="utf-8")
    return Place(tmp_path, programs, project)


def four_months(project: Project) -> None:
    """An event on each of 120 days."""
    days = [datetime(2026, 1, 1, 6, tzinfo=UTC) + timedelta(days=n) for n in range(120)]
    add_events(project, 120, timestamp=days, created_at=days)


def backfill(start: str = "2026-01-01", end: str = "2026-05-01") -> list[str]:
    """The document's command, for other bounds."""
    bounds = iter((start, end))
    return shlex.split(re.sub(r'"\d{4}-\d\d-\d\d"', lambda _: f'"{next(bounds)}"', BACKFILL))


def succeeded(done: subprocess.CompletedProcess[str]) -> bool:
    assert done.returncode == 0, done.stderr[-3_000:]
    return True


def test_a_sync_fills_all_tables_and_a_second_one_adds_nothing(place: Place) -> None:
    place.project.generate(events=200, persons=20, days=3)
    expected = place.events()

    for _ in range(2):
        assert succeeded(place.run(*SYNC))
        assert place.uuids() == expected

    with place.warehouse() as warehouse:
        assert len(warehouse.sql("SELECT id FROM persons")) == len(place.project.persons("id"))


def test_ranges_of_a_backfill_are_read_side_by_side_and_replaced_when_read_again(place: Place) -> None:
    four_months(place.project)

    for _ in range(2):
        done = place.run(*backfill())
        assert succeeded(done)
        assert done.stderr.count("backfill done") == 4
        assert place.uuids() == place.events()


def test_a_range_that_may_pass_is_tried_again_and_doubles_nothing(place: Place) -> None:
    flows = FOUR_RANGES.replace("retry_delay_seconds=300", "retry_delay_seconds=1")
    (place.folder / "posthog_flows.py").write_text(flows, encoding="utf-8")
    four_months(place.project)
    place.project.faults("query", {"pass": True, "times": 5}, {"status": 503})

    # Pages of four: some of the ranges have been read when PostHog fails.
    done = place.run(*backfill(), SOURCES__POSTHOG__MAX_ATTEMPTS="1", SOURCES__POSTHOG__EVENTS__PAGE_ROWS="4")

    assert succeeded(done)
    assert "Retry 1/3" in done.stderr
    assert place.uuids() == place.events()


@pytest.mark.parametrize("command", [SYNC, backfill()], ids=["sync", "backfill"])
def test_a_wrong_key_fails_the_run_with_one_line_and_is_not_tried_again(
    place: Place, command: list[str]
) -> None:
    four_months(place.project)

    done = place.run(*command, SOURCES__POSTHOG__API_KEY="phx_wrong")

    assert done.returncode != 0
    assert (
        "in state Failed('Flow run encountered an exception: AuthenticationError: PostHog answered 401 "
        in (done.stderr)
    )
    assert "Check sources.posthog.api_key and sources.posthog.host." in done.stderr
    assert "Retry 1/3" not in done.stderr
    assert "phx_wrong" not in done.stderr + done.stdout


def test_a_backfill_that_leaves_a_difference_fails_and_names_its_days(place: Place) -> None:
    """A condition of its own keeps the backfill from an event that the check asks for."""
    four_months(place.project)
    flows = FOUR_RANGES.replace("look_ahead=1)", 'look_ahead=1, events={"exclude_event_names": ["odd"]})')
    assert flows != FOUR_RANGES
    (place.folder / "posthog_flows.py").write_text(flows, encoding="utf-8")
    add_events(place.project, 1, uuid=["11111111-0000-4000-8000-000000000000"], event=["odd"])

    done = place.run(*backfill())

    assert done.returncode != 0
    assert "events differ from PostHog's on 2026-01-10" in done.stderr


def test_runs_of_the_served_sync_wait_for_one_another(place: Place) -> None:
    four_months(place.project)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    here = {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_DEPLOYMENT_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    }
    command = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", port)

    with (
        place.started(*command, **here),
        httpx.Client(base_url=here["PREFECT_API_URL"], timeout=60) as server,
    ):
        until(lambda: answer(server.get("/health")))
        with place.started("python", "posthog_flows.py", **here):
            deployment = until(lambda: answer(server.get("/deployments/name/posthog-sync/hourly"))["id"])
            path, ended = f"/deployments/{deployment}/create_flow_run", ["COMPLETED", "FAILED", "CRASHED"]
            for key in ("one", "two"):
                until(partial(begin, server, path, key))
            asked = {"flow_runs": {"state": {"type": {"any_": ended}}}}
            runs = until(lambda: two(answer(server.post("/flow_runs/filter", json=asked))))

    assert [run["state_type"] for run in runs] == ["COMPLETED", "COMPLETED"]
    first, second = sorted(runs, key=lambda run: str(run["start_time"]))
    assert first["end_time"] <= second["start_time"]
    assert place.uuids() == place.events()


def begin(server: httpx.Client, path: str, key: str) -> Any:
    """However often it is asked for, one run."""
    return answer(server.post(path, json={"idempotency_key": key}))


def two(found: list[Any]) -> list[Any] | None:
    return found if len(found) == 2 else None


def answer(response: httpx.Response) -> Any:
    return response.raise_for_status().json()


def until(ask: Callable[[], Any]) -> Any:
    """What is answered, once there is an answer: other processes work on it, and their SQLite may be busy."""
    deadline_s = time.monotonic() + 300
    while time.monotonic() < deadline_s:
        try:
            if found := ask():
                return found
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise AssertionError("no answer within 300 s")
