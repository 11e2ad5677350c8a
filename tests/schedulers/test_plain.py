"""docs/schedulers.md works as it stands: cron's line, systemd's unit and GitHub's workflow run a sync."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
import typer
import yaml  # type: ignore[import-untyped]

from posthog_source.cli import app
from tests.conftest import ROOT, Project, add_events, run_program
from tests.test_documents import blocks

DOCUMENT = (ROOT / "docs" / "schedulers.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"posthog-source (\w+)([^>\n]*)", "\n".join(blocks(DOCUMENT, r"\w+")))
FOLDER = "/srv/posthog"

pytestmark = pytest.mark.schedulers


@pytest.fixture
def folder(project: Project, tmp_path: Path) -> Path:
    """The document's folder: settings, and this virtual environment, into a DuckDB file."""
    add_events(project, 20)
    settings = project.environment | {"DLT_DATA_DIR": str(tmp_path / "dlt"), "PYTHONPATH": str(ROOT)}
    (tmp_path / "posthog.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    program = programs / "posthog-source"
    program.write_text(f"#!{sys.executable}\nfrom posthog_source.cli import app\napp()\n")
    program.chmod(0o755)
    return tmp_path


def here(text: str, folder: Path) -> str:
    return text.replace(FOLDER, str(folder)).replace("--destination postgres", "--destination duckdb")


def loaded(folder: Path) -> int:
    with duckdb.connect(str(folder / "posthog.duckdb")) as warehouse:
        return len(warehouse.sql("SELECT uuid FROM posthog_data.events"))


def sections(text: str) -> ConfigParser:
    parsed = ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(text)
    return parsed


@pytest.mark.parametrize(("command", "rest"), COMMANDS)
def test_every_command_has_the_options_that_it_is_given(command: str, rest: str) -> None:
    group: Any = typer.main.get_command(app)
    group.commands[command].make_context(command, shlex.split(rest))


def test_the_line_of_cron_syncs_and_leaves_a_run_out_while_another_goes_on(folder: Path) -> None:
    (line,) = blocks(DOCUMENT, "crontab")
    *times, command = line.strip().split(" ", 5)
    assert all(re.fullmatch(r"\*|\d+", each) for each in times)
    command = here(command, folder)
    lock = subprocess.Popen(
        ["flock", str(folder / "sync.lock"), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert lock.stdin
    assert lock.stdout
    lock.stdin.write(b"locked\n")
    lock.stdin.flush()
    assert lock.stdout.readline() == b"locked\n"
    try:
        assert subprocess.run(["sh", "-c", command], check=False, timeout=60).returncode == 1
    finally:
        lock.communicate(timeout=10)
    assert not (folder / "posthog.duckdb").exists()

    assert subprocess.run(["sh", "-c", command], check=False, timeout=120).returncode == 0

    assert loaded(folder) == 20
    assert "sync done" in (folder / "sync.log").read_text()


def test_the_unit_of_systemd_syncs_with_the_environment_of_its_file(folder: Path) -> None:
    service, timer = (sections(here(text, folder)) for text in blocks(DOCUMENT, "ini"))
    assert timer["Timer"]["OnCalendar"] == "*:07"
    unit = service["Service"]
    assert unit["Type"] == "oneshot"
    given = dict(line.split("=", 1) for line in Path(unit["EnvironmentFile"]).read_text().splitlines())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOURCES__")}

    done = subprocess.run(
        shlex.split(unit["ExecStart"]),
        cwd=unit["WorkingDirectory"],
        env=kept | given,
        check=False,
        timeout=120,
        capture_output=True,
    )

    assert done.returncode == 0, done.stderr
    assert loaded(folder) == 20


RUNS = {
    "run": "pipeline.run(posthog_source().with_resources('events'))",
    "run_sync": "run_sync(pipeline, tables=['events'])",
}


def run_in(folder: Path, project: Project, how: str, *interval: str) -> subprocess.CompletedProcess[str]:
    """A program that a scheduler runs for an interval, if it gives one."""
    program = (
        "import dlt\nfrom posthog_source import posthog_source, run_sync\n"
        "pipeline = dlt.pipeline('posthog', destination='duckdb', dataset_name='posthog_data')\n"
    )
    names = ("DLT_INTERVAL_START", "DLT_INTERVAL_END", "DLT_ALLOW_EXTERNAL_SCHEDULERS")
    given = dict(zip(names, (*interval, "true"), strict=True)) if interval else {}
    return run_program("-c", program + RUNS[how], cwd=folder, project=project, **given)


@pytest.mark.parametrize("how", RUNS)
def test_an_interval_that_a_scheduler_gives_is_read_however_often_and_nothing_else(
    project: Project, tmp_path: Path, how: str
) -> None:
    add_events(project, 40, timestamp=[datetime(2026, 1, 1 + n // 10, 6, tzinfo=UTC) for n in range(40)])
    for _ in range(2):
        done = run_in(tmp_path, project, how, "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z")
        assert done.returncode == 0, done.stderr
        assert loaded(tmp_path) == 10

    done = run_in(tmp_path, project, how)  # the cursor knows nothing of it

    assert done.returncode == 0, done.stderr
    assert loaded(tmp_path) == 40


@pytest.mark.parametrize("how", RUNS)
def test_an_interval_that_ends_where_it_begins_is_refused_with_what_to_do(
    project: Project, tmp_path: Path, how: str
) -> None:
    add_events(project, 3)

    done = run_in(tmp_path, project, how, "2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z")

    assert done.returncode != 0
    assert "CronDataIntervalTimetable" in done.stderr


def test_the_workflow_gives_its_sync_what_a_sync_asks_for_and_runs_one_at_a_time() -> None:
    (text,) = blocks(DOCUMENT, "yaml")
    workflow = yaml.safe_load(text)
    (job,) = workflow["jobs"].values()
    assert workflow["concurrency"]
    assert workflow[True]["schedule"] == [{"cron": "7 * * * *"}]  # YAML 1.1 takes `on` for true
    *_, sync = job["steps"]
    assert sync["run"].startswith("posthog-source sync ")
    names = {"PROJECT_ID", "API_KEY", "HOST"}
    assert {f"SOURCES__POSTHOG__{name}" for name in names} < set(sync["env"])
    destination = sync["run"].split("--destination ")[1].upper()
    assert f"DESTINATION__{destination}__CREDENTIALS" in sync["env"]
