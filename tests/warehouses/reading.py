"""What a warehouse holds of a table, as Arrow under one schema, whatever a value looks like there.

Only the representation is made equal: times as UTC, JSON as sorted text, truth as such where it is 0 and 1.
A text, a number or a microsecond that differs stays different.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import dlt
import pyarrow as pa

from posthog_source.arrow import ARROW_TYPES
from posthog_source.pipeline import destination_of
from posthog_source.tables import Column, Kind, Table


def read(pipeline: dlt.Pipeline, table: Table) -> pa.Table:
    """All rows, in the order of their keys."""
    fields = [pa.field(column.name, ARROW_TYPES[column.kind]) for column in table.columns]
    rows = sorted(_cells(pipeline, table), key=lambda row: [str(cell) for cell in row])
    columns: list[list[Any]] = [list(cells) for cells in zip(*rows, strict=True)] or [[] for _ in fields]
    return pa.Table.from_arrays(
        [pa.array(cells, field.type) for cells, field in zip(columns, fields, strict=True)],
        schema=pa.schema(fields),
    )


def read_type(pipeline: dlt.Pipeline, table: Table, column: str) -> str:
    """What the warehouse itself says that a column is."""
    dialect = destination_of(pipeline).capabilities().sqlglot_dialect
    with pipeline.sql_client() as client:
        name = client.make_qualified_table_name(table.name)
        if dialect == "duckdb":
            found = client.execute_sql(f"DESCRIBE SELECT {column} FROM {name}")
        elif dialect == "sqlite":
            found = client.execute_sql(
                f"SELECT name, type FROM pragma_table_info('{table.name}', 'posthog_data')"
                f" WHERE name = '{column}'"
            )
        else:
            found = client.execute_sql(
                "SELECT column_name, data_type FROM information_schema.columns"
                f" WHERE table_schema = 'posthog_data' AND table_name = '{table.name}'"
                f" AND column_name = '{column}'"
            )
    ((_, kind, *_),) = found or ()
    return str(kind)


def canonical(value: Any, kind: Kind) -> Any:
    """A value as any warehouse would say it."""
    if value is None:
        return None
    match kind:
        case "json":
            return json.dumps(json.loads(value) if isinstance(value, str) else value, sort_keys=True)
        case "timestamp":
            at = datetime.fromisoformat(value) if isinstance(value, str) else value
            return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        case "bool" if value in (0, 1):
            return bool(value)
        case "uuid":
            return str(value)
        case _:
            return value


def _cells(pipeline: dlt.Pipeline, table: Table) -> list[tuple[Any, ...]]:
    with pipeline.sql_client() as client:
        names = ", ".join(client.escape_column_name(column.name) for column in table.columns)
        found = client.execute_sql(f"SELECT {names} FROM {client.make_qualified_table_name(table.name)}")
    return [tuple(map(_canonical, row, table.columns)) for row in found or ()]


def _canonical(value: Any, column: Column) -> Any:
    return canonical(value, column.kind)
