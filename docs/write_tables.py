"""Writes docs/tables.md from the catalogue: `python docs/write_tables.py`. A test fails when it is stale."""

from __future__ import annotations

from pathlib import Path

from posthog_source.catalog import INSIGHT_RESULT_DOCUMENTS, ON_REQUEST, TABLE_GROUPS, TABLES
from posthog_source.tables import HogqlTable, RestTable, Table

PATH = Path(__file__).with_name("tables.md")

ALL = (*TABLES, *ON_REQUEST, INSIGHT_RESULT_DOCUMENTS)


def written() -> str:
    """The whole document."""
    lines = [
        "# Tables",
        "",
        "Made from the catalogue by `docs/write_tables.py`.",
        "",
        f"`tables` takes their names and those of groups: {', '.join(TABLE_GROUPS)}.",
        "",
        "| table | a row | kept up by | key | scope |",
        "| --- | --- | --- | --- | --- |",
        *(_summary(table) for table in ALL),
    ]
    return "\n".join([*lines, *(line for table in ALL for line in _section(table))]) + "\n"


def _summary(table: Table) -> str:
    cells = (
        f"[{table.name}](#{table.name})",
        table.description.split(". ")[0].rstrip("."),
        table.kept_up,
        ", ".join(table.primary_key),
        ", ".join(table.scopes),
    )
    return f"| {' | '.join(cells)} |"


def _section(table: Table) -> list[str]:
    is_open = isinstance(table, HogqlTable | RestTable) and table.is_open
    return [
        "",
        f"## {table.name}",
        "",
        table.description + (" Has further columns where the server has them." if is_open else ""),
        "",
        "| column | type | |",
        "| --- | --- | --- |",
        *(
            f"| {column.name} | {column.kind}{', required' if column.is_required else ''} "
            f"| {column.description} |"
            for column in table.columns
        ),
    ]


if __name__ == "__main__":
    PATH.write_text(written())
