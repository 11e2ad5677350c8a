"""report: what a run did, commit by commit, adds up."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthog_source import Budget, RunReport
from posthog_source.report import SUMS

AT = datetime(2026, 1, 1, tzinfo=UTC)
EMPTY = RunReport(run_id="1", kind="sync", pipeline="posthog", started_at=AT)

metrics = st.dictionaries(st.sampled_from([*SUMS, "pages", "bytes"]), st.integers(0, 10**9), max_size=6)
commits = st.lists(st.dictionaries(st.sampled_from(["events", "persons", "insights"]), metrics, max_size=3))


def reported(told: list[dict[str, dict[str, int]]]) -> RunReport:
    report = EMPTY
    for tables in told:
        report = report.with_commit(tables)
    return report


@given(commits)
def test_what_commits_told_adds_up_by_table_and_in_all(told: list[dict[str, dict[str, int]]]) -> None:
    report = reported(told)

    assert report.commits == len(told)
    for name in set(SUMS) - {"rows_left"}:
        assert getattr(report, name) == sum(one.get(name, 0) for tables in told for one in tables.values())
    for table in {table for tables in told for table in tables}:
        pages = sum(tables.get(table, {}).get("pages", 0) for tables in told)
        assert report.tables[table].get("pages", 0) == pages


@given(commits)
def test_rows_left_are_those_that_the_last_commit_told_of(told: list[dict[str, dict[str, int]]]) -> None:
    last: dict[str, int] = {}
    for tables in told:
        last |= {name: one["rows_left"] for name, one in tables.items() if "rows_left" in one}

    assert reported(told).rows_left == sum(last.values())


@given(commits, commits)
def test_two_reports_joined_are_one_of_all_their_commits(
    first: list[dict[str, dict[str, int]]], second: list[dict[str, dict[str, int]]]
) -> None:
    one, other = reported(first), reported(second)

    both = one.joined(other)

    assert both.commits == len(first) + len(second)
    for name in SUMS:
        assert getattr(both, name) == getattr(one, name) + getattr(other, name)


def test_a_commit_more_leaves_the_report_as_it_was() -> None:
    before = EMPTY.with_commit({"events": {"rows": 1}})

    before.with_commit({"events": {"rows": 2}})

    assert (before.rows, before.tables) == (1, {"events": {"rows": 1}})


def test_bytes_that_posthog_read_are_unknown_until_a_table_tells() -> None:
    assert EMPTY.with_commit({"events": {"rows": 1}}).read_bytes is None
    assert EMPTY.with_commit({"events": {"read_bytes": 0}}).read_bytes == 0
    told: dict[str, dict[str, Any]] = {
        "events": {"read_bytes": 5},
        "persons": {"read_bytes": 7},
        "cohorts": {},
    }
    assert EMPTY.with_commit(told).read_bytes == 12


def test_a_report_is_one_row_with_a_column_for_each_attribute() -> None:
    report = EMPTY.with_commit({"events": {"rows": 3, "waited_s": 0.5}})

    (row,) = report.as_table().to_pylist()

    assert {name: row[name] for name in row if name != "tables"} == {
        name: value for name, value in vars(report).items() if name != "tables"
    }
    assert json.loads(row["tables"]) == {"events": {"rows": 3, "waited_s": 0.5}}


def test_all_reports_have_the_same_types() -> None:
    tables = [EMPTY.as_table(), EMPTY.with_commit({"events": {"rows": 1, "read_bytes": 2}}).as_table()]

    assert tables[0].schema == tables[1].schema
    assert pa.concat_tables(tables).num_rows == 2


def test_a_report_is_told_in_lines_for_people() -> None:
    report = EMPTY.with_commit({"events": {"rows": 1_234, "rows_left": 5_678}, "persons": {"rows": 9}})

    lines = str(report).splitlines()

    assert "1,243 rows in 1 commits" in lines[0]
    assert "5,678 events left" in lines[0]
    assert {"  events: 1,234", "  persons: 9"} <= set(lines)


@pytest.mark.parametrize(
    ("budget", "is_spent"),
    [
        (Budget(), False),
        (Budget(max_queries=11), False),
        (Budget(max_queries=10), True),
        (Budget(max_read_bytes=101), False),
        (Budget(max_read_bytes=100), True),
        (Budget(max_queries=11, max_read_bytes=100), True),
        (Budget(max_queries=10, max_read_bytes=101), True),
    ],
)
def test_a_budget_is_spent_once_either_of_its_limits_is_reached(budget: Budget, is_spent: bool) -> None:
    report = EMPTY.with_commit({"events": {"requests": 10, "read_bytes": 100}})

    assert budget.is_spent(report) is is_spent


def test_a_budget_of_bytes_is_not_spent_where_nobody_tells_what_was_read() -> None:
    assert not Budget(max_read_bytes=1).is_spent(EMPTY.with_commit({"events": {"requests": 10}}))
