"""The first five minutes: the demo runs anywhere, twice, and shows what it did."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

from posthog_source.demo import OTHERS, SHOWN
from tests.conftest import run_program

COMMAND = ("-c", "from posthog_source.cli import app; app()", "demo")
SMALL = ("--events", "2000", "--persons", "200", "--days", "3")


def rows_of(text: str, table: str) -> list[list[str]]:
    """The cells of a table's line in each summary."""
    lines = [line for line in text.splitlines() if re.match(rf"\W*{table}\s", line)]
    return [re.findall(r"[-+\d][\d,.]*", line) for line in lines]


def query(path: Path, sql: str) -> list[tuple[int, ...]]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def test_the_demo_syncs_twice_and_shows_rows_and_costs_and_may_be_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = run_program(*COMMAND, *SMALL, "--database", "other.duckdb", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        first, second = rows_of(done.stdout, "events")
        assert second[1] == "+540"
        assert int(second[0].replace(",", "")) == int(first[0].replace(",", "")) + 540
        for name in (*(table.name for table in SHOWN), OTHERS, "all"):
            assert len(rows_of(done.stdout, name)) == 2
        assert int(rows_of(done.stdout, OTHERS)[0][0]) > 50
        assert "…" not in done.stdout.replace("phx_…", "")
        assert "SOURCES__POSTHOG__API_KEY" in done.stdout

    database = tmp_path / "other.duckdb"
    ((events, uuids, late),) = query(
        database,
        "SELECT count(*), count(DISTINCT uuid), count(*) FILTER (event = 'late') FROM posthog_data.events",
    )
    assert events == uuids == int(second[0].replace(",", ""))
    assert late == 40
    assert query(database, "SELECT count(DISTINCT id) FROM posthog_data.persons")[0][0] >= 200

    proposed = re.findall(r"^\s*(SELECT .*;)\s*$", done.stdout, re.MULTILINE)
    assert len(proposed) == 3
    for sql in proposed:
        assert len(query(database, sql)) > 1


@pytest.mark.slow
def test_the_demo_leaves_the_warehouse_of_a_real_sync_alone(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "posthog.duckdb")) as warehouse:
        warehouse.execute("CREATE SCHEMA posthog_data")
        warehouse.execute("CREATE TABLE posthog_data.events AS SELECT 42 AS kept")

    done = run_program(*COMMAND, *SMALL, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert query(tmp_path / "posthog.duckdb", "SELECT kept FROM posthog_data.events") == [(42,)]
    assert "duckdb posthog_demo.duckdb" in done.stdout
    ((events,),) = query(tmp_path / "posthog_demo.duckdb", "SELECT count(*) FROM posthog_data.events")
    assert events > 2_000


def test_the_command_line_without_a_command_says_what_there_is(tmp_path: Path) -> None:
    done = run_program(*COMMAND[:2], "--help", cwd=tmp_path)

    assert done.returncode == 0
    assert "demo" in done.stdout
