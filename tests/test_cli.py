"""The command line: each command does what its function does, and says in one line why it cannot."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner, Result

from posthog_source.catalog import ON_REQUEST, TABLES
from posthog_source.checkup import is_cut_short
from posthog_source.cli import app
from tests.conftest import NO_LIMITS, Project, Server, add_events, run_program

ARGUMENTS = {
    "check": ["--destination", "duckdb"],
    "sync": [],
    "backfill": ["--from", "2026-01-01", "--to", "2026-02-01"],
    "verify": [],
    "status": [],
    "tables": [],
    "query": ["SELECT event FROM events LIMIT 5"],
    "demo": ["--events", "1"],
}
"""Of every command: what it needs at least."""

ASKS_POSTHOG = ("check", "sync", "backfill", "query")
WRITES = ("check", "sync", "backfill", "verify", "status")
CHOOSES = ("check", "sync", "verify")


@pytest.fixture
def project(server: Server) -> Project:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    add_events(project, 20)
    return project


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, dlt's own included."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLT_DATA_DIR", str(tmp_path / "dlt"))
    return tmp_path


def run(project: Project, command: str, *arguments: str, **environment: str) -> Result:
    """A command as a person types it, with the project's settings in the environment."""
    return CliRunner().invoke(app, [command, *arguments], env=project.environment | environment)


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Asking again")]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


def loaded(folder: Path) -> int:
    """Rows of events in the warehouse."""
    path = folder / "posthog.duckdb"
    if not path.exists():
        return 0
    with duckdb.connect(str(path)) as warehouse:
        names = warehouse.sql("SELECT table_name FROM duckdb_tables() WHERE table_name = 'events'").fetchall()
        return warehouse.sql("SELECT * FROM posthog_data.events").shape[0] if names else 0


def test_every_command_is_tried_here() -> None:
    assert {command.callback.__name__ for command in app.registered_commands if command.callback} == set(
        ARGUMENTS
    )


@pytest.mark.parametrize("command", ARGUMENTS)
def test_every_command_says_what_it_is_for(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "--" in result.output


@pytest.mark.parametrize(
    "options", [("--destination", "duckdb"), ()], ids=["into duckdb", "into the default"]
)
def test_settings_below_a_pipelines_name_hold_for_every_command(
    project: Project, folder: Path, options: tuple[str, ...]
) -> None:
    named = {f"OURS__{name}": value for name, value in project.environment.items()}
    named |= {"OURS__DESTINATION__DUCKDB__CREDENTIALS": str(folder / "warehouse.duckdb")}
    asking = sorted({*ASKS_POSTHOG, *WRITES}, key=list(ARGUMENTS).index)

    for command in asking:
        given = ["--tables", "events"] if command in CHOOSES else []
        given += options if command in WRITES else ()
        needed = [] if command == "check" else ARGUMENTS[command]
        result = CliRunner().invoke(app, [command, *needed, *given, "--pipeline", "ours"], env=named)
        assert result.exit_code == 0, (command, result.output)

    assert [file.name for file in folder.glob("*.duckdb")] == ["warehouse.duckdb"]


@pytest.mark.parametrize("command", ASKS_POSTHOG)
def test_a_wrong_key_is_one_line_and_loads_nothing(project: Project, folder: Path, command: str) -> None:
    wrong = {"SOURCES__POSTHOG__API_KEY": "phx_wrong"}
    assert_one_line(run(project, command, *ARGUMENTS[command], **wrong), "revoked", "region")
    assert loaded(folder) == 0


@pytest.mark.parametrize("command", ASKS_POSTHOG)
def test_another_project_is_one_line_and_loads_nothing(project: Project, folder: Path, command: str) -> None:
    wrong = {"SOURCES__POSTHOG__PROJECT_ID": "999999"}
    assert_one_line(run(project, command, *ARGUMENTS[command], **wrong), "999999")
    assert loaded(folder) == 0


@pytest.mark.parametrize("command", ASKS_POSTHOG)
def test_no_network_is_one_line_and_loads_nothing(project: Project, folder: Path, command: str) -> None:
    wrong = {"SOURCES__POSTHOG__HOST": "http://127.0.0.1:9"}
    assert_one_line(run(project, command, *ARGUMENTS[command], **wrong), "Check host and network")
    assert loaded(folder) == 0


@pytest.mark.parametrize("command", ASKS_POSTHOG)
def test_a_missing_setting_is_one_line_that_says_where_to_set_it(
    project: Project, folder: Path, command: str
) -> None:
    wrong = {"SOURCES__POSTHOG__API_KEY": ""}
    assert_one_line(run(project, command, *ARGUMENTS[command], **wrong), "SOURCES__POSTHOG__API_KEY")


@pytest.mark.parametrize("command", WRITES)
def test_a_destination_that_there_is_not_is_one_line(project: Project, folder: Path, command: str) -> None:
    arguments = [*ARGUMENTS[command], "--destination", "nowhere"]
    assert_one_line(run(project, command, *arguments), "no destination 'nowhere'")


@pytest.mark.parametrize("command", WRITES)
def test_credentials_that_are_missing_are_one_line_before_anything_is_asked(
    project: Project, folder: Path, command: str
) -> None:
    project.forget_requests()
    arguments = [*ARGUMENTS[command], "--destination", "postgres"]
    assert_one_line(run(project, command, *arguments), "credentials", ".dlt/secrets.toml")
    assert not project.requests()


@pytest.mark.parametrize("command", WRITES)
def test_a_warehouse_that_cannot_be_written_is_one_line(project: Project, folder: Path, command: str) -> None:
    nowhere = {"DESTINATION__DUCKDB__CREDENTIALS": str(folder / "no" / "such" / "file.duckdb")}
    assert_one_line(run(project, command, *ARGUMENTS[command], **nowhere), "file.duckdb")


@pytest.mark.parametrize("command", CHOOSES)
def test_a_table_that_there_is_not_is_one_line(project: Project, folder: Path, command: str) -> None:
    assert_one_line(run(project, command, "--tables", "events,evnts"), "evnts", "event_definitions")


@pytest.mark.parametrize("dates", [("2026-02-01", "2026-01-01"), ("yesterday", "2026-01-01")])
def test_dates_that_cannot_be_are_one_line(project: Project, folder: Path, dates: tuple[str, str]) -> None:
    assert_one_line(run(project, "backfill", "--from", dates[0], "--to", dates[1]), dates[0])


@pytest.mark.parametrize("name", ["rows.xlsx", "no/such/folder/rows.csv"])
def test_a_file_that_cannot_be_written_is_one_line(project: Project, folder: Path, name: str) -> None:
    assert_one_line(run(project, "query", *ARGUMENTS["query"], "--output", name), name.rsplit("/", 1)[-1])


FULL_DISK = """
import resource
from posthog_source.cli import app
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
app()
"""


@pytest.mark.parametrize("command", [*sorted(set(WRITES) - {"verify"}), "query"])
def test_a_disk_on_which_nothing_can_be_written_ends_in_a_line(
    project: Project, folder: Path, command: str
) -> None:
    output = ["--output", "rows.parquet"] if command == "query" else []
    statement = ["SELECT uuid, properties FROM events"] if command == "query" else ARGUMENTS[command]

    done = run_program("-c", FULL_DISK, command, *statement, *output, cwd=folder, project=project)

    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search("disk is full|too large|cannot be written", done.stderr.splitlines()[-1], re.IGNORECASE)
    assert not (folder / "rows.parquet").exists()


def test_a_query_that_posthog_does_not_take_is_one_line_in_its_words(project: Project, folder: Path) -> None:
    assert_one_line(run(project, "query", "SELECT nothing FROM events"), "Unable to resolve field: nothing")


def test_a_sync_loads_and_status_tells_of_it(project: Project, folder: Path) -> None:
    first = run(project, "sync", "--tables", "events", "--json")
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout)["rows"] == loaded(folder) == 20

    found = run(project, "status", "--json")

    status = json.loads(found.stdout)
    assert [one["rows"] for one in status["runs"]] == [20]
    assert status["cursors"].keys() == {"events"}
    assert status["lag"] > 0
    assert not status["has_pending_data"]
    shown = run(project, "status").stdout
    assert "sync" in shown
    assert "The next sync reads events from" in shown


def test_status_leaves_the_working_directory_whatever_dataset_it_is_asked_of(
    project: Project, folder: Path
) -> None:
    run(project, "sync", "--tables", "events")
    before = set((folder / "dlt" / "pipelines").rglob("*"))
    assert before

    assert run(project, "status", "--dataset", "misspelt").exit_code == 0

    assert set((folder / "dlt" / "pipelines").rglob("*")) == before


def test_check_knows_the_names_of_queries_of_ones_own(project: Project, folder: Path) -> None:
    queries = json.dumps([{"name": "totals", "query": "SELECT count() AS n FROM events"}])
    named = {"SOURCES__POSTHOG__QUERIES": queries}
    result = run(project, "check", "--tables", "events,totals", **named)
    assert result.exit_code == 0, result.output


def test_status_of_nothing_says_that_the_next_sync_is_the_first(project: Project, folder: Path) -> None:
    result = run(project, "status")
    assert result.exit_code == 0, result.output
    assert "The next sync is the first" in result.stdout


def test_a_backfill_reads_a_span(project: Project, folder: Path) -> None:
    result = run(project, "backfill", *ARGUMENTS["backfill"], "--json")
    assert result.exit_code == 0, result.output
    assert loaded(folder) == 20


def test_check_tells_of_every_table_and_loads_nothing(project: Project, folder: Path) -> None:
    result = run(project, "check", "--destination", "duckdb", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    by_name = {table["name"]: table for table in found["tables"]}
    assert list(by_name) == [table.name for table in TABLES]
    assert by_name["events"]["rows"] == 20
    assert by_name["events"]["first_at"].startswith("2026-01-10")
    assert found["missing"] == []
    assert loaded(folder) == 0
    assert "20" in run(project, "check").stdout


@pytest.mark.slow
def test_check_foretells_what_posthog_reads_for_the_events(project: Project, folder: Path) -> None:
    project.generate(events=60_000, persons=100, days=5, properties_bytes=600)
    project.server.optimize()
    foretold = json.loads(run(project, "check", "--tables", "events", "--json").stdout)["tables"][0]
    project.forget_requests()

    result = run(project, "sync", "--tables", "events")

    assert result.exit_code == 0, result.output
    assert 0.9 < foretold["read_bytes"] / project.stats()["read_bytes"] < 1.3


def test_check_counts_events_from_the_start_date_on(project: Project, folder: Path) -> None:
    add_events(project, 3, timestamp=[datetime(2026, 3, 1, tzinfo=UTC)] * 3)

    result = run(project, "check", "--json", SOURCES__POSTHOG__START_DATE="2026-02-01")

    assert json.loads(result.stdout)["tables"][0]["rows"] == 3


@pytest.mark.parametrize(
    ("first_at", "created_at", "is_cut"),
    [
        ("2024-11-30", "2020-01-01", True),
        ("2025-11-28", "2020-01-01", True),
        ("2019-11-29", "2019-11-01", True),
        ("2024-11-30", "2024-11-29", False),
        ("2024-11-30", "2026-01-01", False),
        ("2025-06-30", "2020-01-01", False),
        ("2026-11-28", "2020-01-01", False),
    ],
)
def test_events_that_begin_whole_years_ago_in_an_older_project_look_cut_short(
    first_at: str, created_at: str, is_cut: bool
) -> None:
    first, created, now = (
        datetime.fromisoformat(at).replace(tzinfo=UTC) for at in (first_at, created_at, "2026-11-29")
    )
    assert is_cut_short(first, created, now) is is_cut


def test_check_names_the_scopes_that_a_key_lacks(project: Project, folder: Path) -> None:
    key = project.server.key(["query:read"], [project.id])
    result = run(project, "check", SOURCES__POSTHOG__API_KEY=key)
    assert result.exit_code == 1
    lines = [line.partition(", give the key ")[2] for line in result.stdout.splitlines()]
    needed, others = filter(None, lines)
    assert needed == "cohort:read, insight:read: a sync needs them."
    assert "alert:read" in others.split(", ")
    assert re.search(r"^alerts +needs alert:read", result.stdout, re.MULTILINE)
    assert "A sync would fail: cohorts, cohort_people, insights cannot be read." in result.stderr


def test_check_tells_why_a_key_that_has_the_scope_may_not_read_a_table(
    project: Project, folder: Path
) -> None:
    result = run(project, "check", "--tables", "users,roles")
    lines = [line for line in result.stdout.splitlines() if "only supported on project-based" in line]
    assert [line.partition(":")[0] for line in lines] == ["users", "roles"]
    assert "give the key " not in result.stdout


def test_tables_tells_of_every_table() -> None:
    result = CliRunner().invoke(app, ["tables", "--json"])
    known = [table.name for table in (*TABLES, *ON_REQUEST)]
    assert [table["name"] for table in json.loads(result.stdout)] == known
    shown = CliRunner().invoke(app, ["tables"]).stdout
    assert all(name in shown for name in known)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv"])
def test_a_query_goes_into_a_file_whole(project: Project, folder: Path, name: str) -> None:
    result = run(project, "query", "SELECT uuid, event FROM events", "--output", name)
    assert result.exit_code == 0, result.output
    assert duckdb.sql(f"SELECT uuid, event FROM '{name}'").shape == (20, 2)


def test_a_query_is_shown_row_by_row_whatever_its_texts_hold(project: Project, folder: Path) -> None:
    result = run(project, "query", "SELECT 'two\nlines [bold]' AS text, 1234 AS number")
    assert result.stdout.splitlines() == ["text               number", "two\\nlines [bold]  1,234"]


def test_help_does_without_what_takes_long_to_import() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from posthog_source.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not {"dlt", "pyarrow", "httpx", "sqlglot", "duckdb"} & set(done.stdout.split())
