"""Writes docs/tables.md from the catalogue: `python docs/write_tables.py`. A test fails when it is stale."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from posthog_source.catalog import COHORT_HISTORY, INSIGHT_RESULT_DOCUMENTS, ON_REQUEST, TABLE_GROUPS, TABLES
from posthog_source.report import SCHEMA, RunReport
from posthog_source.runs import RUNS_TABLE
from posthog_source.tables import HogqlTable, RestTable, Table

PATH = Path(__file__).with_name("tables.md")

ALL = (*TABLES, *ON_REQUEST, INSIGHT_RESULT_DOCUMENTS)

ON_REQUEST_ONLY = (
    f"Loaded only if you name them: {', '.join(table.name for table in ON_REQUEST)}. "
    f"{INSIGHT_RESULT_DOCUMENTS.name} comes with insight_results, "
    f"[{COHORT_HISTORY.name}](#{COHORT_HISTORY.name}) with `people.cohort_history`, and "
    f"[{RUNS_TABLE}](#{RUNS_TABLE}) with each run; `tables` does not take these three."
)

RUN_COLUMNS = {
    "run_id": "Unique",
    "started_at": "When it began",
    "finished_at": "When it ended",
    "rows": "Rows loaded, of all tables",
    "windows": "Windows of events that were read",
    "requests": "Requests sent, retries included",
    "retries": "How many of them were retries",
    "waited_s": "Seconds waited for PostHog's limits",
    "received_bytes": "Bytes received, as sent over the network",
    "read_bytes": "Bytes that PostHog read for it, and bills; null without `meter_reads`, or if the key "
    "cannot read query_log",
    "tables": "All of these numbers by table, as JSON",
}
"""Where the words of `RunReport` need those around them."""

KINDS = {pa.string(): "text", pa.int64(): "bigint", pa.float64(): "double"}


def written() -> str:
    """The whole document."""
    lines = [
        "# Tables",
        "",
        "Made from the catalogue by `docs/write_tables.py`.",
        "",
        f"The setting `tables` takes these names, or groups: {'; '.join(map(_group, TABLE_GROUPS))}.",
        "",
        ON_REQUEST_ONLY,
        "",
        "| table | a row | kept up by | key | scope |",
        "| --- | --- | --- | --- | --- |",
        *(_summary(table) for table in ALL),
    ]
    sections = (line for table in (*ALL, COHORT_HISTORY) for line in _section(table))
    return "\n".join([*lines, *sections, *_runs()]) + "\n"


def _group(name: str) -> str:
    """A group, with its first and last table."""
    first, last = TABLE_GROUPS[name][0], TABLE_GROUPS[name][-1]
    if last != first:
        return f"`{name}` ({first} to {last})"
    return f"`{name}`" if first == name else f"`{name}` ({first})"


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


def _runs() -> Iterator[str]:
    """The section of the table of runs, in the words of `RunReport`."""
    _, _, below = (inspect.getdoc(RunReport) or "").partition("Attributes:\n")
    entries = (entry.strip().split(": ", 1) for entry in re.split(r"\n(?=    \w)", below))
    told = {name: " ".join(text.split()).rstrip(".") for name, text in entries} | RUN_COLUMNS
    yield from ("", f"## {RUNS_TABLE}", "")
    yield "One row per run of `run_sync` or `run_backfill`, and so of `posthog-source sync` or `backfill`."
    yield from ("", "| column | type | |", "| --- | --- | --- |")
    for column in SCHEMA:
        kind = KINDS.get(column.type, "timestamp")
        yield f"| {column.name} | {kind}{'' if column.nullable else ', required'} | {told[column.name]} |"


if __name__ == "__main__":
    PATH.write_text(written())
