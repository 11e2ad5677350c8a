"""The tables as they are now: everything there is, synced into DuckDB; and the promise that was kept.

Columns that only some servers have are PostHog's, and no promise. Not here: what may change (`promise`).
"""

from __future__ import annotations

from pathlib import Path

import posthog_source
from posthog_source import EventsConfig, PeopleConfig, run_sync
from posthog_source.catalog import COHORT_HISTORY, INSIGHT_RESULT_DOCUMENTS, ON_REQUEST, TABLES
from tests.conftest import ROOT, Server, Warehouse
from tests.contract.promise import REQUIRED, Promise, TablePromise, read_changelog, read_promise

PATH = Path(__file__).with_name("tables.toml")
KNOWN = {table.name: table for table in (*TABLES, *ON_REQUEST, INSIGHT_RESULT_DOCUMENTS, COHORT_HISTORY)}

CHANGELOG = read_changelog((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))


def kept_promise() -> Promise:
    """Of the version that was released last, or of the first, in the making."""
    return read_promise(PATH.read_text(encoding="utf-8"))


def sync_everything(server: Server, folder: Path) -> Promise:
    """What this version loads: each table that it can, with each column that can be asked for."""
    warehouse = Warehouse.at(folder)
    run_sync(
        warehouse.pipeline,
        tables=[table.name for table in (*TABLES, *ON_REQUEST)],
        events=EventsConfig(person_properties=True),
        people=PeopleConfig(cohort_history=True),
        **server.project().with_full_key().credentials,
    )
    schema = warehouse.pipeline.default_schema
    return Promise(
        posthog_source.__version__,
        {name: _table(warehouse, name) for name in sorted(schema.data_table_names())},
    )


def _table(warehouse: Warehouse, name: str) -> TablePromise:
    table, columns = KNOWN.get(name), warehouse.pipeline.default_schema.get_table_columns(name)
    names = [column.name for column in table.columns] if table else list(columns)
    return TablePromise(
        table.disposition if table else "append",
        table.primary_key if table else (),
        {
            name: f"{columns[name]['data_type']}{'' if columns[name].get('nullable', True) else REQUIRED}"
            for name in names
        },
    )
