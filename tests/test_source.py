"""Settings come from toml, from the environment and from arguments, each piece by its own section."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import duckdb
import pytest

from posthog_source import EventsConfig, PeopleConfig, posthog_source
from posthog_source.config import EventsSettings, PeopleSettings, Settings
from posthog_source.errors import SettingsError
from tests.conftest import ROOT, Project, Server, Warehouse, add_events, run_program
from tests.test_pipeline import ago, uuids

SYNC = str(ROOT / "pipelines" / "sync.py")


@pytest.fixture
def small(project: Project) -> Project:
    add_events(project, 50, uuid=uuids(50), timestamp=[ago(minutes=10 + n) for n in range(50)])
    return project


def loaded(folder: Path, name: str = "posthog") -> int:
    """Events in the DuckDB file that a pipeline leaves in its folder."""
    with duckdb.connect(str(folder / f"{name}.duckdb"), read_only=True) as connection:
        found = connection.execute("SELECT count(DISTINCT uuid) FROM posthog_data.events").fetchone()
    assert found is not None
    return int(found[0])


def tables_of(folder: Path) -> set[str]:
    """Tables of ours that a run left in its database, if it made one."""
    if not (folder / "posthog.duckdb").exists():
        return set()
    with duckdb.connect(str(folder / "posthog.duckdb"), read_only=True) as connection:
        names = connection.execute("SELECT table_name FROM information_schema.tables").fetchall()
    return {name for (name,) in names if not name.startswith("_dlt")}


def pages_of(project: Project, name: str) -> list[str]:
    """The page questions about one table."""
    return [r["query"] for r in project.requests() if r["name"] == f"posthog_source {name}"]


def test_one_tables_settings_come_from_its_own_section_of_the_environment(
    small: Project, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.rows("person", id=uuids(40, 1), version=[0] * 40)
    monkeypatch.setenv("SOURCES__POSTHOG__EVENTS__PAGE_ROWS", "20")
    monkeypatch.setenv("SOURCES__POSTHOG__PEOPLE__PAGE_ROWS", "15")

    warehouse.sync(small, "events", "persons")

    assert {query.rsplit("LIMIT ")[-1] for query in pages_of(small, "events")} == {"20"}
    assert {query.rsplit("LIMIT ")[-1] for query in pages_of(small, "persons")} == {"15"}
    assert warehouse.counts() == {"events": 50, "persons": 40}


def test_an_argument_wins_over_the_environment(
    small: Project, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCES__POSTHOG__PROJECT_ID", "987654")
    monkeypatch.setenv("SOURCES__POSTHOG__EVENTS__PAGE_ROWS", "20")

    warehouse.sync(small, "events", events=EventsConfig(page_rows=30))

    assert {query.rsplit("LIMIT ")[-1] for query in pages_of(small, "events")} == {"30"}
    assert warehouse.counts() == {"events": 50}


def test_a_choice_of_events_comes_from_the_environment_as_json(
    small: Project, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_events(small, 2, uuid=uuids(2, 500), event=["buy", "it's"], timestamp=[ago(minutes=9)] * 2)
    monkeypatch.setenv("SOURCES__POSTHOG__EVENTS__EVENT_NAMES", '["buy", "it\'s"]')
    monkeypatch.setenv("SOURCES__POSTHOG__EVENTS__EXCLUDE_EVENT_NAMES", '["page"]')
    monkeypatch.setenv("SOURCES__POSTHOG__EVENTS__WHERE", "properties.plan IS NULL OR (1 = 2)")
    monkeypatch.setenv("SOURCES__POSTHOG__EVENTS__PROMOTE", '{"$plan": "text", "n.o": "double"}')
    monkeypatch.setenv("SOURCES__POSTHOG__EVENTS__PROPERTIES", "false")

    warehouse.sync(small, "events")

    assert warehouse.query("SELECT event, plan, n_o FROM events ORDER BY event") == [
        ("buy", None, None),
        ("it's", None, None),
    ]
    assert not any(" properties," in query for query in pages_of(small, "events"))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("EVENTS", "PAGE_ROWS", "50001"),
        ("EVENTS", "PAGE_ROWS", "many"),
        ("PEOPLE", "PAGE_ROWS", "0"),
        ("PEOPLE", "PAGE_ROWS", "1.5"),
        ("EVENTS", "WRITE_MODE", "replace"),
        ("EVENTS", "LAG_S", "5 minutes"),
        ("EVENTS", "PERSON_PROPERTIES", "maybe"),
        ("EVENTS", "EVENT_NAMES", "buy,look"),
        ("EVENTS", "PROMOTE", '{"n": "number"}'),
        ("EVENTS", "PROMOTE", '{"a b": "text", "a-b": "text"}'),
        ("EVENTS", "WHERE", "1 = 1) OR (1 = 1"),
    ],
)
def test_a_section_with_a_value_that_cannot_be_right_is_one_line_that_names_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, section: str, name: str, value: str
) -> None:
    monkeypatch.setenv(f"SOURCES__POSTHOG__{section}__{name}", value)

    with pytest.raises(ValueError, match=name.lower()) as failure:
        posthog_source(**project.credentials)

    assert "\n" not in str(failure.value)
    assert project.requests() == []


@pytest.mark.parametrize("name", ["LOOK_AHEAD", "QUERY_TIMEOUT_S", "QUERIES_PER_HOUR"])
def test_a_shared_setting_that_is_no_number_is_one_line_that_names_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"SOURCES__POSTHOG__{name}", "plenty")

    with pytest.raises(SettingsError, match=rf"^{name.lower()} must be a number\. Set it under"):
        posthog_source(**project.credentials)


@pytest.mark.parametrize(
    ("config", "settings"), [(EventsConfig, EventsSettings), (PeopleConfig, PeopleSettings)]
)
def test_a_section_holds_the_settings_of_its_table_with_the_same_defaults(config: Any, settings: Any) -> None:
    held, made = config(), settings()

    assert {f.name for f in fields(settings)} == set(config.__annotations__)
    for field in fields(settings):
        assert getattr(held, field.name) == getattr(made, field.name)


def test_every_shared_setting_is_an_argument_of_the_source() -> None:
    arguments = set(inspect.signature(posthog_source).parameters)
    renamed = {"base_url": "host", "start": "start_date", "end": "end_date"}

    shared = {renamed.get(f.name, f.name) for f in fields(Settings)}
    assert arguments == shared | {"events", "people", "queries", "results", "tables"}


def test_nothing_is_asked_before_the_pipeline_runs(project: Project) -> None:
    posthog_source(**project.credentials)

    assert project.requests() == []


def test_the_sync_program_takes_its_settings_from_the_environment(small: Project, tmp_path: Path) -> None:
    done = run_program(SYNC, "--destination", "duckdb", cwd=tmp_path, project=small)

    assert done.returncode == 0, done.stderr
    assert loaded(tmp_path) == 50
    assert small.api_key not in done.stdout + done.stderr


def test_the_sync_program_takes_its_settings_from_toml(small: Project, tmp_path: Path) -> None:
    (tmp_path / ".dlt").mkdir()
    (tmp_path / ".dlt" / "config.toml").write_text(
        f'[sources.posthog]\nhost = "{small.server.url}"\n[sources.posthog.events]\npage_rows = 20\n'
        'event_names = ["page", "buy"]\nwhere = """\nevent != \'x\'\n  OR 1 = 2"""\n'
        '[sources.posthog.events.promote]\n"$plan" = "text"\n'
    )
    (tmp_path / ".dlt" / "secrets.toml").write_text(
        f'[sources.posthog]\nproject_id = {small.id}\napi_key = "{small.api_key}"\n'
    )

    for _ in range(2):
        done = run_program(SYNC, "--tables", "events", cwd=tmp_path)
        assert done.returncode == 0, done.stderr

    assert loaded(tmp_path) == 50
    assert {query.rsplit("LIMIT ")[-1] for query in pages_of(small, "events")} == {"20"}
    assert all("event IN" in query and "AS plan_text" in query for query in pages_of(small, "events"))


def wrong(server: Server, project: Project) -> dict[str, tuple[list[str], dict[str, str], str]]:
    """Arguments and environment that cannot work, and a word of the line that says why.

    One of each kind: the source's own lines are all in test_pipeline.
    """
    revoked = server.key(["*"], [project.id])
    server.control("POST", "keys/revoke", api_key=revoked)
    key = "SOURCES__POSTHOG__API_KEY"
    return {
        "setting": ([], {key: ""}, key),
        "answer": ([], {key: revoked}, "401"),
        "scope": ([], {key: server.key(["query:read", "group:read"], [project.id])}, "cohort:read"),
        "table": (["--tables", "visits"], {}, "visits"),
        "destination": (["--destination", "duckbd"], {}, "duckbd"),
    }


@pytest.mark.parametrize("case", ["setting", "answer", "scope", "table", "destination"])
def test_the_sync_program_says_in_one_line_why_it_cannot_and_loads_nothing(
    server: Server, small: Project, tmp_path: Path, case: str
) -> None:
    arguments, environment, word = wrong(server, small)[case]

    done = run_program(SYNC, *arguments, cwd=tmp_path, project=small, **environment)

    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line and not line.startswith(("usage:", " "))]
    assert len(said) == 1
    assert word in said[0]
    assert "Traceback" not in done.stderr
    assert tables_of(tmp_path) <= {"_posthog_runs"}  # which says why
    assert small.api_key not in done.stdout + done.stderr
