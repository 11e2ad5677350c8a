"""The documents tell the truth: their commands run, their tables and defaults are the code's."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import runpy
import tomllib
from pathlib import Path

import pytest

import posthog_source
from posthog_source import definitions
from posthog_source.catalog import TABLES
from posthog_source.config import EventsSettings, PeopleSettings, ResultsSettings, Settings
from posthog_source.definitions import DEFINITIONS
from posthog_source.tables import RestTable, Table
from tests.conftest import ROOT, Project, add_events, run_program
from tests.test_pipeline import ago

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"))
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
PIPELINES = sorted((ROOT / "pipelines").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def table_rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading of the README."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_python_of_the_readme_runs_as_it_stands(project: Project, tmp_path: Path) -> None:
    add_events(project, 9, timestamp=[ago(minutes=10 + n) for n in range(9)])
    (tmp_path / "snippet.py").write_text("\n".join(blocks(README, "python")), encoding="utf-8")

    done = run_program("snippet.py", cwd=tmp_path, project=project)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "posthog.duckdb").exists()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_the_documents_is_python(path: Path) -> None:
    for snippet in blocks(path.read_text(encoding="utf-8"), "python"):
        ast.parse(snippet)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_the_documents_link_to_exist(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))

    assert [link for link in links if not (path.parent / link).exists()] == []


def test_programs_that_the_readme_calls_exist() -> None:
    called = re.findall(r"python (\S+\.py)", README)

    assert called
    assert [program for program in called if not (ROOT / program).is_file()] == []


def test_the_commands_of_the_readme_are_installed_by_the_package() -> None:
    module, _, name = PROJECT["scripts"]["posthog-source"].partition(":")
    extras = set(re.findall(r"-e '\.\[(\w+)\]'", README))

    assert getattr(importlib.import_module(module), name)
    assert extras == {"demo", "dev"} <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_pipeline_explains_itself(path: Path, tmp_path: Path) -> None:
    done = run_program(str(path), "--help", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "--destination" in done.stdout


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_pipeline_runs(path: Path, project: Project, tmp_path: Path) -> None:
    add_events(project, 3, timestamp=[ago(minutes=10 + n) for n in range(3)])

    days = (str(ago(days=2).date()), str(ago(days=-1).date())) if path.stem == "backfill" else ()

    done = run_program(str(path), *days, cwd=tmp_path, project=project)

    assert done.returncode == 0, done.stderr
    assert "events: 3" in done.stdout


@pytest.mark.parametrize(
    "table", [one for one in TABLES if one not in DEFINITIONS], ids=lambda table: table.name
)
def test_the_readme_tells_every_table_but_definitions_with_its_key_and_scope(table: Table) -> None:
    rows = {row[0]: row for row in table_rows("What is loaded")}

    assert len(rows) == len(TABLES) - len(DEFINITIONS)
    assert f"{len(DEFINITIONS)} tables in all" in README
    assert rows[table.name][-2] == ", ".join(table.primary_key)
    assert rows[table.name][-1] == ", ".join(table.scopes)


def test_the_document_of_tables_is_what_the_catalogue_says() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "write_tables.py"))
    assert made["written"]() == (ROOT / "docs" / "tables.md").read_text(), "run python docs/write_tables.py"


def test_the_readme_tells_every_setting_and_its_default() -> None:
    told: dict[str, str] = {}
    for names, defaults, *_ in table_rows("Settings"):
        settings = re.findall(r"`([\w.]+)`", names)
        values = re.split(r", (?=\D)|(?<=\D), |, (?=\d{1,2},|\d{3}\b(?!,))", defaults.replace("`", ""))
        told |= (
            dict.fromkeys(settings, values[0])
            if len(settings) != len(values)
            else dict(zip(settings, values, strict=True))
        )
    arguments = set(inspect.signature(posthog_source.posthog_source).parameters)
    arguments -= {"events", "people", "queries", "results"}
    of_tables = {f"events.{name}" for name in EventsSettings.__dataclass_fields__}
    of_tables |= {f"people.{name}" for name in PeopleSettings.__dataclass_fields__}
    of_tables |= {f"results.{name}" for name in ResultsSettings.__dataclass_fields__}
    assert set(told) == arguments | of_tables

    events = EventsSettings()
    for name in EventsSettings.__dataclass_fields__:
        default, said = getattr(events, name), told[f"events.{name}"].replace(",", "").lower()
        if default in ("", ()):
            default = "\N{EN DASH}"
        expected = str(default).lower() if isinstance(default, str | bool) else f"{default:g}"
        assert said == expected or (said.isdecimal() and float(said) == default), name


def test_defaults_of_limits_in_the_readme_are_the_settings() -> None:
    text = " ".join(" | ".join(row) for row in table_rows("Settings"))

    for name in (
        "query_timeout_s",
        "max_attempts",
        "wait_deadline_s",
        "queries_per_minute",
        "queries_per_hour",
    ):
        assert f"{Settings.__dataclass_fields__[name].default:,g}" in text


def test_every_name_at_the_door_is_there() -> None:
    for name in posthog_source.__all__:
        assert hasattr(posthog_source, name)


def test_the_version_is_the_newest_of_the_changelog() -> None:
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)

    assert newest is not None
    assert posthog_source.__version__ == newest[1]


def test_the_example_of_secrets_is_refused_with_what_to_do_and_never_sent(tmp_path: Path) -> None:
    (tmp_path / ".dlt").mkdir()
    example = (ROOT / ".dlt" / "secrets.toml.example").read_text(encoding="utf-8")
    (tmp_path / ".dlt" / "secrets.toml").write_text(example, encoding="utf-8")

    done = run_program(str(ROOT / "pipelines" / "sync.py"), cwd=tmp_path)

    assert done.returncode == 2
    assert "api_key" in done.stderr


def test_secrets_and_databases_are_kept_out_of_git() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()

    assert {".dlt/secrets.toml", "*.duckdb"} <= set(ignored)


def test_a_table_more_is_a_row_of_few_lines_as_contributing_says() -> None:
    (block,) = (each for each in blocks((ROOT / "CONTRIBUTING.md").read_text(), "python") if "_whole" in each)
    made: dict[str, object] = {"_whole": definitions._whole}
    exec(block, made)

    assert isinstance(made["INTEGRATIONS"], RestTable)
    assert len(block.splitlines()) <= 15
