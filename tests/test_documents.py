"""The documents tell the truth: their programs, commands and SQL run, their names are the code's.

The pages of docs/ start from one folder, in which the commands of getting-started.md have been run.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pytest
import sqlglot
import typer

import posthog_source
from posthog_source import definitions, errors
from posthog_source.catalog import ON_REQUEST, TABLES
from posthog_source.cli import app
from posthog_source.config import EventsSettings, PeopleSettings, ResultsSettings, Settings
from posthog_source.definitions import DEFINITIONS
from posthog_source.errors import PosthogSourceError
from posthog_source.query_tables import QuerySettings
from posthog_source.spelling import find_unknown, known_settings
from posthog_source.tables import RestTable, Table
from tests.conftest import NO_LIMITS, ROOT, Project, Server, add_events, run_program
from tests.test_pipeline import ago

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("docs/*/**/*.md"))
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
PIPELINES = sorted(path for path in (ROOT / "pipelines").glob("*.py") if "__main__" in path.read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

TESTED_ELSEWHERE = {"airflow", "dagster", "destinations", "prefect", "schedulers", "visibility"}
"""Pages whose programs need what only their own tests have."""

PAGES = sorted(path for path in (ROOT / "docs").glob("**/*.md") if path.stem not in TESTED_ELSEWHERE)
FIRST = ROOT / "docs" / "getting-started.md"
TELLING = ("getting-started", "queries", "verify")
"""Pages whose commands are run, and what they are said to print is compared."""

KNOWN = known_settings(posthog_source.posthog_source)
CATALOGUE = {table.name: table for table in (*TABLES, *ON_REQUEST)}
COST = json.loads((ROOT / "benchmarks" / "results" / "cost.json").read_text(encoding="utf-8"))
RUN = "from posthog_source.cli import app; app()"
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


@dataclass(frozen=True)
class Command:
    """A line of `posthog-source` in a document, and what the document says of it."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    code: int = 0
    printed: str = ""


@dataclass(frozen=True)
class Begun:
    """A project, and the folder of somebody who has followed getting-started.md so far."""

    project: Project
    folder: Path
    done: list[tuple[Command, subprocess.CompletedProcess[str]]]

    def copy(self, to: Path) -> Path:
        """A folder of its own for a page that goes on: the warehouse is all that it needs."""
        shutil.copy(self.folder / "posthog.duckdb", to)
        return to


@pytest.fixture(scope="module")
def begun(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    project.generate(events=2_000, persons=200, days=30, cohorts=2, nasty=False)
    folder = tmp_path_factory.mktemp("begun")
    done = [(command, run(command, folder, project)) for command in commands(FIRST)]
    return Begun(project, folder, done)


def run(command: Command, folder: Path, project: Project) -> subprocess.CompletedProcess[str]:
    return run_program(
        "-c", RUN, *command.arguments, cwd=folder, project=project, COLUMNS="250", **command.environment
    )


def commands(path: Path) -> list[Command]:
    """The lines of `posthog-source` in the blocks of a document, the last of each with the text below it."""
    text = path.read_text(encoding="utf-8")
    found: list[Command] = []
    for block, below in re.findall(
        r"^```(?:sh|console)\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", text, re.MULTILINE | re.DOTALL
    ):
        lines = [each for line in block.replace("\\\n", " ").splitlines() if (each := command_of(line))]
        found += lines[:-1]
        found += [Command(each.arguments, each.environment, each.code, below) for each in lines[-1:]]
    return found


def command_of(line: str) -> Command | None:
    """A line, if it calls `posthog-source`: its words up to what the shell does with it."""
    before, _, comment = line.partition("  #")
    lexer = shlex.shlex(before, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = [" && " if set(word) <= set("|&;<>()") else word for word in lexer]
    parts = [list(part) for is_shell, part in groupby(words, lambda word: word == " && ") if not is_shell]
    for part in parts:
        given = [word for word in part if re.match(r"[A-Z_]+=", word)]
        if part[len(given) : len(given) + 1] == ["posthog-source"]:
            code = re.search(r"exit code (\d)", comment)
            environment = dict(word.split("=", 1) for word in given)
            return Command(tuple(part[len(given) + 1 :]), environment, int(code[1]) if code else 0)
    return None


def inline_commands(path: Path) -> list[tuple[str, ...]]:
    """Commands within the sentences and tables of a document."""
    spans = re.findall(r"(?<!`)`(posthog-source [^`\n]+)`(?!`)", path.read_text(encoding="utf-8"))
    return [tuple(shlex.split(span)[1:]) for span in spans]


def shape(text: str) -> list[str]:
    """Lines with their numbers, times and ids made alike, and single spaces."""
    numbers = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b\d(?:[\dT,.:+-]*\d)?", "0", text)
    return [" ".join(line.split()) for line in numbers.splitlines() if line.strip()]


def anchors(text: str) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(path: Path) -> Iterator[tuple[Path, str]]:
    """Files and anchors that a document links to, of this repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        parts = urlsplit(link)
        if not parts.scheme:
            yield (path.parent / parts.path).resolve() if parts.path else path, parts.fragment


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def table_rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading of the README."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_the_python_of_the_readme_runs_as_it_stands(project: Project, tmp_path: Path) -> None:
    add_events(project, 9, timestamp=[ago(minutes=10 + n) for n in range(9)])
    (tmp_path / "snippet.py").write_text("\n".join(blocks(README, "python")), encoding="utf-8")

    done = run_program("snippet.py", cwd=tmp_path, project=project)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "posthog.duckdb").exists()


@each_document
def test_python_in_the_documents_is_python(path: Path) -> None:
    for snippet in blocks(path.read_text(encoding="utf-8"), "python"):
        ast.parse(snippet)


@each_document
def test_files_and_headings_that_the_documents_link_to_exist(path: Path) -> None:
    for file, anchor in links(path):
        assert file.exists(), file
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{file}#{anchor}"


def test_every_page_has_its_line_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {file for file, _ in links(index)}

    assert [page for page in (ROOT / "docs").glob("**/*.md") if page not in linked | {index}] == []


@each_document
def test_every_command_has_the_options_that_it_is_given(path: Path) -> None:
    group: Any = typer.main.get_command(app)
    spans = inline_commands(path)
    for name, *rest in (*(command.arguments for command in commands(path)), *spans):
        assert name in group.commands
        if rest or (name,) not in spans:  # a sentence may name a command alone
            group.commands[name].make_context(name, list(rest))


@each_document
def test_every_variable_and_key_of_toml_is_a_setting(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for variable in re.findall(r"\bSOURCES__POSTHOG__([A-Z_]*[A-Z])\b(?!__)", text):
        assert find_unknown(tuple(variable.lower().split("__")), KNOWN) == (), variable
    for block in blocks(text, "toml"):
        ours = tomllib.loads(block).get("sources", {}).get("posthog", {})
        for query in ours.pop("queries", []):
            assert query.keys() <= {each.name for each in fields(QuerySettings)}
        for key, value in ours.items():
            for below in value if isinstance(value, dict) else [None]:
                assert find_unknown((key, below) if below else (key,), KNOWN) == (), (key, below)


@each_page
def test_defaults_and_columns_that_the_pages_name_are_the_codes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    sections = {"events": EventsSettings, "people": PeopleSettings, "results": ResultsSettings}
    for section, name, said in re.findall(r"`(\w+)\.(\w+)`\s\(([\d,]+)\)", text):
        assert getattr(sections[section], name) == float(said.replace(",", "")), name
    for owner, name in re.findall(r"`(\w+)\.(\w+)`", text):
        columns = {column.name for column in CATALOGUE[owner].columns} if owner in CATALOGUE else set()
        if owner in sections or owner in CATALOGUE:
            assert name in columns | KNOWN.get(owner, frozenset()), f"{owner}.{name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", TELLING)
def test_the_commands_of_a_page_do_and_print_what_it_says(name: str, begun: Begun, tmp_path: Path) -> None:
    path = FIRST.with_stem(name)
    done = begun.done
    if path != FIRST:
        folder = begun.copy(tmp_path)
        tamper(folder)
        done = [(command, run(command, folder, begun.project)) for command in commands(path)]

    assert any(command.printed for command, _ in done)
    for command, result in done:
        assert result.returncode == command.code, (command.arguments, result.stderr)
        printed = set(shape(result.stdout + result.stderr))
        assert [line for line in shape(command.printed) if line not in printed] == []


def tamper(folder: Path) -> None:
    """Makes a missing, an extra, a duplicate and a changed event of a warehouse, named as in verify.md."""
    with duckdb.connect(str(folder / "posthog.duckdb")) as warehouse:
        warehouse.execute("SET search_path = 'posthog_data'")
        warehouse.execute("""
            CREATE TEMP TABLE picked AS
            SELECT uuid, event, row_number() OVER (PARTITION BY event ORDER BY day) AS n
            FROM (
                SELECT event, timestamp::DATE AS day, min(uuid) AS uuid
                FROM events
                WHERE event IN ('$pageview', '$autocapture')
                GROUP BY ALL
                HAVING count(*) > 3
            )
        """)

        def one(event: str, n: int) -> str:
            return f"(SELECT uuid FROM picked WHERE event = '{event}' AND n = {n})"

        warehouse.execute(f"DELETE FROM events WHERE uuid = {one('$pageview', 3)}")
        extra = "SELECT * REPLACE ('01a0f0f0-0000-7000-8000-00000000abcd' AS uuid)"
        warehouse.execute(f"INSERT INTO events {extra} FROM events WHERE uuid = {one('$pageview', 5)}")
        warehouse.execute(f"INSERT INTO events SELECT * FROM events WHERE uuid = {one('$pageview', 7)}")
        warehouse.execute(f"UPDATE events SET distinct_id = 'else' WHERE uuid = {one('$autocapture', 4)}")


@each_page
def test_the_python_and_the_sql_of_a_page_run_one_after_the_other(
    path: Path, begun: Begun, tmp_path: Path
) -> None:
    text = path.read_text(encoding="utf-8")
    programs, statements = blocks(text, "python"), blocks(text, "sql")
    if path.stem == "emulator" or not (programs or statements):
        return
    folder = begun.copy(tmp_path)
    (folder / "page.py").write_text("\n".join(programs), encoding="utf-8")

    done = run_program("page.py", cwd=folder, project=begun.project)

    assert done.returncode == 0, done.stderr
    with duckdb.connect(str(folder / "posthog.duckdb")) as warehouse:
        warehouse.execute("SET search_path = 'posthog_data'")
        for statement in statements:
            assert sqlglot.parse_one(statement, dialect="duckdb")
            warehouse.execute(statement).fetchall()


@pytest.mark.slow
def test_the_tests_of_the_emulators_page_pass(tmp_path: Path) -> None:
    fixtures, tests = blocks((ROOT / "docs" / "emulator.md").read_text(encoding="utf-8"), "python")
    (tmp_path / "conftest.py").write_text(fixtures, encoding="utf-8")
    (tmp_path / "test_sync.py").write_text(tests, encoding="utf-8")

    done = run_program("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_scopes_are_told_as_the_catalogue_has_them() -> None:
    section = FIRST.read_text(encoding="utf-8").split("| scope | tables |\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()[1:]]

    for scope, told in rows:
        of_scope = {name for name, table in CATALOGUE.items() if scope in table.scopes}
        assert set(re.findall(r"\w+", told)) & CATALOGUE.keys() <= of_scope
    needed = {scope for t in TABLES if not (isinstance(t, RestTable) and t.is_optional) for scope in t.scopes}
    assert needed == {scope for scope, _ in rows[:3]}


def test_how_long_a_backfill_takes_is_told_by_what_was_measured() -> None:
    text = (ROOT / "docs" / "backfilling.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (25,000|50,000)[^|]*\| ([\d,]+) \| ([\d.]+) \|(?: ([\d.]+) \|)?$", text, re.MULTILINE
    )

    assert len(rows) == 4
    for page_rows, requests, number, tb in rows:
        _, _, _, per_million, gb, _ = measured(f"dense, {page_rows}")
        if tb:  # of a thousand million events
            hours = int(per_million) * 1_000 / Settings.queries_per_hour
            assert (requests, number, tb) == (f"{int(per_million) * 1_000:,}", f"{hours:.1f}", gb)
        else:
            assert (requests, number) == (per_million, gb)


def test_what_events_cost_is_told_by_what_was_measured() -> None:
    text = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    rows = {"dense": "1,000,000 events", "skewed": "one name", "sparse": "50 a day", "bursty": "a month"}
    for name, label in rows.items():
        _, _, _, per_million, _, share = measured(f"{name}, 50,000")
        assert re.search(rf"^\| {label}[^|]*\| {share}, {per_million}\b", text, re.MULTILINE)
    hourly = measured("hourly sync of 5,000 new events in a day of 1,000,000, merged")[4].split()[0]
    assert f"{hourly} GB late in the" in text
    assert f"about {24 * float(hourly) / 2:.0f} GB" in text
    assert f"{measured('dense, 25,000')[4]} GB: each event once" in text


def measured(project: str) -> list[str]:
    """The connector's row of a project in the benchmark of cost."""
    (row,) = (row for row in COST["table"]["rows"] if row[:2] == [project, "**connector**"])
    return [str(cell) for cell in row]


def test_the_document_of_errors_is_what_the_code_says() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "write_troubleshooting.py"))
    written = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert made["written"]() == written, "run python docs/write_troubleshooting.py"


@pytest.mark.parametrize("name", sorted({name for name in vars(errors) if name.endswith("Error")}))
def test_every_error_has_its_message_and_what_to_do(name: str) -> None:
    kind = getattr(errors, name)
    if kind is PosthogSourceError or any(
        below.__module__ == errors.__name__ for below in kind.__subclasses__()
    ):
        return
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    first_line = (kind.__doc__ or "").split("\n")[0].replace("``", "`")
    what_to_do = section.split(first_line, 1)[1].split("\n")[0]

    assert what_to_do.strip()
    assert "\n- `" in section


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


def test_the_settings_that_the_readme_tells_exist_and_have_the_defaults_that_it_tells() -> None:
    told: dict[str, str] = {}
    for names, defaults, *_ in table_rows("Settings"):
        settings = re.findall(r"`([\w.]+)`", names)
        values = re.split(r", (?=\d{3},|\d,)", defaults.replace("`", ""))
        told |= dict(zip(settings, values * (len(settings) // len(values)), strict=True))
    of_tables = {"events": EventsSettings(), "people": PeopleSettings(), "results": ResultsSettings()}
    arguments = inspect.signature(posthog_source.posthog_source).parameters

    for name, said in told.items():
        table, _, field = name.rpartition(".")
        if not table:
            assert name in arguments
        default = getattr(of_tables[table], field) if table else Settings.__dataclass_fields__.get(name)
        default = getattr(default, "default", default)
        if isinstance(default, bool | str | int | float) and default != "":
            shown = (
                f"{default:,g}"
                if isinstance(default, int | float) and not isinstance(default, bool)
                else default
            )
            assert said.lower() == str(shown).lower(), name


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
