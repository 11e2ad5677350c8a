"""Partition, cluster and sort hints for new tables with a time, by destination. Pure.

By time, since loads replace windows of time and people ask for them. dlt applies these only where it creates
a table, but for Snowflake, where a key comes with the next new column. Whoever has set one keeps it. Not
here: how rows are replaced (`destination`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from posthog_source.tables import HogqlTable, Table

KEYS = ("partition", "cluster", "sort")
"""Hints of dlt's own that lay a table out; those of one destination have these words in their names."""

Hints = Mapping[str, Any]


@dataclass(frozen=True)
class Layout:
    """Hints, as dlt spells them.

    Attributes:
        columns: By column.
        table: Of the table.
    """

    columns: Mapping[str, Hints] = field(default_factory=dict)
    table: Hints = field(default_factory=dict)


def layout_of(destination: str, table: Table) -> Layout:
    """What a table without one gets there; nothing where there is none, or rows have no time."""
    time = _time_of(table)
    if time is None:
        return Layout()
    match destination:
        case "bigquery":  # a day each, of which one job may write 4,000
            return Layout(columns={time: {"x-bigquery-partition": True}})
        case "snowflake":
            return Layout(columns={time: {"cluster": True}})
        case "databricks":
            return Layout(columns={time: {"x-databricks-cluster": True}})
        case "redshift":
            return Layout(columns={time: {"sort": True}})
        # Months, as PostHog's. A sort key would have to begin with the primary key, which has no time.
        case "clickhouse":
            return Layout(table={"x-clickhouse-partition": f"toYYYYMM({time})"})
        case _:  # Athena writes 100 partitions in one statement at most, Iceberg tables too
            return Layout()


def is_laid_out(table: Hints, columns: Iterable[Hints]) -> bool:
    """Whether those hints say how a table lies, even if they say that it is not to."""
    return any(key in name for hints in (table, *columns) for name in hints for key in KEYS)


def _time_of(table: Table) -> str | None:
    """The column of the days that the table is read by."""
    if not isinstance(table, HogqlTable):
        return None
    days = [label.field for label in table.sort_key.labels if label.kind == "day"]
    return next((column.name for column in table.columns if (column.field or column.name) in days), None)
