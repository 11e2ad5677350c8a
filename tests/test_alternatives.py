"""The page that compares with others says what was measured; others' programs are not run here."""

from __future__ import annotations

import json
import re

from benchmarks.alternatives import AIRBYTE, CONTENDERS, INGESTR, LATE, LOOKING, OURS, SITUATIONS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
FOUND = json.loads((ROOT / "benchmarks" / "results" / "alternatives.json").read_text(encoding="utf-8"))


def test_the_page_has_the_measured_table_whole() -> None:
    _, table = PAGE.split(f"| {' | '.join(FOUND['table']['headings'])} |\n", 1)
    _, *rows = table.partition("\n\n")[0].splitlines()

    assert rows == [f"| {' | '.join(row)} |" for row in FOUND["table"]["rows"]]


def test_what_was_measured_is_what_the_program_measures() -> None:
    measured = [(run["situation"], run["contender"]) for run in FOUND["runs"]]

    assert measured == [(title, one.name) for title in SITUATIONS for one in CONTENDERS[title]]
    assert FOUND["arguments"]["packages"] == [AIRBYTE, INGESTR]
    assert FOUND["title"] == "; ".join(f"{title}: {one.title}" for title, one in SITUATIONS.items())


def test_the_page_names_the_day_and_the_versions_of_the_measurement() -> None:
    assert f"looked up on {FOUND['at'][:10]}" in PAGE
    for package in (AIRBYTE, INGESTR):
        name, version = package.removeprefix("airbyte-").split("==")
        assert re.search(rf"{name} {re.escape(version)}\b", PAGE), package


def test_this_connector_loaded_every_event_once_where_it_was_to() -> None:
    ours = {run["situation"]: run for run in FOUND["runs"] if run["contender"] == OURS}
    late = ours.pop(LATE)
    (looking,) = (run for run in FOUND["runs"] if run["contender"] == LOOKING)

    assert ours.keys() | {LATE} == SITUATIONS.keys()
    for run in (*ours.values(), looking):
        assert run["rows"] == run["found"] == run["expected"], run["situation"]
        assert set(run["said"]) == {"success"}
    assert late["expected"] - late["found"] == 40  # they are due once a day, as the page says
