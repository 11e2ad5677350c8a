"""docs/destinations.md says of each destination what the tests find."""

from __future__ import annotations

import re

import pytest

from tests.warehouses.places import PAGE, PLACES
from tests.warehouses.test_sql import CHECKED

HEAD = [
    "destination",
    "status",
    "rows are replaced by",
    "JSON columns are",
    "partitioning of a new events table",
]


def rows() -> dict[str, list[str]]:
    """Of the page's table, by destination."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]
    assert cells[0] == HEAD
    return {row[0]: row[1:] for row in cells[2:]}


def test_the_page_has_each_destination_with_its_status_strategy_json_and_layout() -> None:
    expected = {
        place.name: ["run", place.strategy or "nothing: appended", place.json_type, ""] for place in PLACES
    }
    expected |= {one.name: ["SQL checked", one.strategy, one.json_type, one.layout] for one in CHECKED}

    assert rows() == expected


@pytest.mark.parametrize("name", [*(place.name for place in PLACES), *(one.name for one in CHECKED)])
def test_each_has_its_paragraph(name: str) -> None:
    assert re.search(rf"^\*\*(?:[\w, ]*, )?{name}(?:, [\w, ]*)?\.\*\* ", PAGE.read_text(), re.MULTILINE)
