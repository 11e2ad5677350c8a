"""How loads are written into a destination: dispositions, scopes of merges, column hints, what is there.

Every load begins with an empty, typed table that carries its write disposition: dlt keeps the scope of a
merge in the stored schema, and a later run without its own would delete the last one's window
(dlt.md 3.1). Not here: which rows (`events`, `resources`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from functools import cache
from typing import Any, cast
from uuid import UUID

import dlt
import pyarrow as pa
from dlt.common.configuration.container import Container
from dlt.common.configuration.utils import serialize_value
from dlt.common.data_writers.escape import format_datetime_literal
from dlt.common.destination import TLoaderFileFormat
from dlt.common.destination.capabilities import DestinationCapabilitiesContext
from dlt.common.pipeline import PipelineContext
from dlt.common.schema.typing import TColumnSchema, TDeleteInsertStrategyDict, TTableSchemaColumns
from dlt.destinations.exceptions import DatabaseUndefinedRelation, DestinationConnectionError
from dlt.sources import DltResource
from sqlglot import exp

from posthog_source.arrow import schema_of
from posthog_source.client import Client
from posthog_source.config import Deletes, EventsSettings, JsonColumns, Settings, WriteMode
from posthog_source.errors import SettingsError
from posthog_source.layout import Layout, is_laid_out, layout_of
from posthog_source.meter import fetch_read_bytes
from posthog_source.pagination import Reader
from posthog_source.query import Cell
from posthog_source.tables import DELETED_AT, SYNCED_AT, HogqlTable, QueryTable, RestTable, Table
from posthog_source.windows import Window

JSON_DESTINATIONS = ("duckdb", "motherduck", "ducklake", "postgres")
"""Where a json column loads as JSON from Arrow; elsewhere it fails or lands as a string (dlt.md 2.4)."""

CASELESS_DESTINATIONS = ("mssql", "synapse", "fabric")
CASELESS_DIALECTS = ("mysql", "tsql")
"""Where 'a' may equal 'A' by default, so that a merge cannot tell rows by texts; the latter by SQLAlchemy."""

EXACT_COLLATIONS = ("nopad_bin", "0900_bin")
"""Ends of names of those of MySQL and MariaDB that tell case and spaces at the end, too."""

NOTHING = "1 = 0"
"""A scope that deletes nothing."""

MERGE: TDeleteInsertStrategyDict = {"disposition": "merge", "strategy": "delete-insert"}
"""Rows replace those of the same key. Only for tables that never have a scope, which dlt would keep."""

FETCHED_ROWS = 10_000
"""Of the warehouse, in memory at once."""

logger = logging.getLogger("posthog_source")


def column_hints(
    table: Table,
    *,
    json_columns: JsonColumns,
    destination: str,
    merges: bool = True,
    deletes: Deletes = "soft",
) -> TTableSchemaColumns:
    """Dlt's column hints: descriptions, keys, JSON where the destination takes it, and what deletes a row."""
    is_json = json_columns == "json" or (json_columns == "auto" and destination in JSON_DESTINATIONS)
    hints: TTableSchemaColumns = {}
    for column in table.columns:
        hints[column.name] = {
            "name": column.name,
            "description": column.description,
            "nullable": not column.is_required,
        }
        if column.kind == "json" and is_json:
            hints[column.name]["data_type"] = "json"
        if isinstance(table, RestTable) and column.name == table.cursor:
            hints[column.name]["dedup_sort"] = "desc"
        is_cursor = isinstance(table, HogqlTable | QueryTable) and column.name == table.cursor
        if (column == SYNCED_AT or is_cursor) and merges and table.primary_key:
            hints[column.name]["dedup_sort"] = "desc"
        if isinstance(table, RestTable) and table.activity_scope and column.name == "deleted":
            hints[column.name]["hard_delete"] = True
        if column == DELETED_AT:
            hints[column.name]["hard_delete"] = deletes == "hard"  # said either way: dlt keeps an old True
    return hints


def build_resource(table: Table, generator: Callable[..., Iterator[Any]]) -> DltResource:
    """A generator as the dlt resource of a table."""
    logging.getLogger("dlt").addFilter(_TYPE_HINT_FILTER)  # adding it again changes nothing
    _TYPE_HINT_FILTER.names.add(table.name)
    return dlt.resource(generator, name=table.name, primary_key=table.primary_key)


def can_merge(caps: DestinationCapabilitiesContext) -> bool:
    """Whether rows can be replaced: files cannot, Athena's tables neither unless they are Iceberg's."""
    strategies = caps.supported_merge_strategies or ()
    if caps.merge_strategies_selector:
        table_format = caps.preferred_table_format
        table: Any = {"table_format": table_format} if table_format else {}
        strategies = caps.merge_strategies_selector(strategies, table_schema=table)
    return "delete-insert" in strategies


@contextmanager
def metered(client: Client, settings: Settings) -> Iterator[Client]:
    """The client, whose requests become, once done, metrics of the running resource and a line of the log.

    `requests`, `retries`, `waited_s` and `received_bytes`, and with `meter_reads` `read_bytes`.
    """
    own, began_s = client.metered(), time.monotonic()
    yield own
    read_bytes = fetch_read_bytes(own) if settings.meter_reads else None
    metrics = dlt.current.resource_metrics()
    for name in ("requests", "retries", "waited_s", "received_bytes"):
        metrics[name] = getattr(own.usage, name)
    if read_bytes is not None:
        metrics["read_bytes"] = read_bytes
    if "rows" in metrics:
        _log(dlt.current.resource_name(), metrics, seconds=time.monotonic() - began_s)


def _log(table: str, metrics: Mapping[str, Any], *, seconds: float) -> None:
    told = {"table": table, "rows": metrics["rows"], "seconds": round(seconds, 3)}
    told |= {name: round(metrics[name], 3) for name in ("waited_s", "requests", "retries", "received_bytes")}
    logger.info(
        "%(table)s: %(rows)d rows in %(seconds).1f s, %(waited_s).1f s of them waited, %(requests)d requests",
        told,
        extra=told,
    )


def claim_state(settings: Settings) -> dict[str, Any]:
    """The running resource's state, which belongs to one project.

    Raises:
        SettingsError: It belongs to another: its cursor would skip that project's history.
    """
    state = dlt.current.resource_state()
    if state.setdefault("origin", settings.origin) != settings.origin:
        raise SettingsError(
            f"This pipeline has synced {state['origin']} so far, and its cursors are of no use for "
            f"{settings.origin}. Use another pipeline_name and dataset_name (--pipeline, --dataset), or "
            "posthog_source.clone(name=…, section=…)."
        )
    return state


class Target:
    """Where the rows go, as far as that changes how they are written."""

    def __init__(
        self,
        destination: str,
        caps: DestinationCapabilitiesContext,
        pipeline: dlt.Pipeline | None,
        *,
        may_resume: bool,
    ) -> None:
        self.destination = destination
        self.caps = caps
        self._pipeline = pipeline
        self._may_resume = may_resume

    @classmethod
    def current(cls, settings: Settings) -> Target:
        """The running pipeline's destination; a neutral one where a resource is read without a pipeline."""
        container = Container()
        context = container[PipelineContext]
        pipeline = context.pipeline() if context.is_active() else None
        if not isinstance(pipeline, dlt.Pipeline) or pipeline.destination is None:
            return cls("", DestinationCapabilitiesContext.generic_capabilities(), None, may_resume=True)
        # Asking the destination anew resolves all its settings.
        caps = container.get(DestinationCapabilitiesContext) or pipeline.destination.capabilities()
        kind = pipeline.destination.destination_type.rsplit(".", 1)[-1]
        may_resume = settings.is_resumed_by_dlt or not pipeline.config.restore_from_destination
        return cls(kind, caps, pipeline, may_resume=may_resume)

    @property
    def can_merge(self) -> bool:
        """Whether rows can be replaced at all; plain files can only be added."""
        return can_merge(self.caps)

    def write_mode(self, config: EventsSettings) -> WriteMode:
        """The chosen mode, or append where nothing else can be done, with a warning."""
        if config.write_mode != "append" and not self.can_merge:
            logger.warning(
                "events: %s cannot replace rows, so they are appended: late events within lookback_s are "
                "not read again, and a run that dies while loading may leave rows twice. De-duplicate by "
                "uuid on read.",
                self.destination,
            )
            return "append"
        return config.write_mode

    def disposition(self, write_mode: WriteMode, scope: str) -> Any:
        """Dlt's write disposition of a mode; `scope` is what the mode `window` replaces."""
        match write_mode:
            case "window":
                return {"disposition": "merge", "strategy": "delete-insert", "destination_scope": scope}
            case "upsert":
                return {"disposition": "merge", "strategy": "upsert"}
            case "append":
                return "append"

    def replace(self, project_id: int) -> Any:
        """Replaces all rows of the project, and no other's where that can be told."""
        return self.disposition("window", self.is_project(project_id)) if self.can_merge else "replace"

    def is_project(self, project_id: int) -> str:
        """SQL condition of a project's rows: several projects may share a dataset."""
        return f"{self._name('project_id')} = {project_id}"

    def in_window(self, column: str, window: Window) -> str:
        """SQL condition of the rows in a window."""
        name = self._name(column)
        return f"{name} >= {self._instant(window.start)} AND {name} < {self._instant(window.end)}"

    @property
    def tells_case(self) -> bool:
        """Whether texts that differ in case differ here."""
        if self.destination != "sqlalchemy" or self.caps.sqlglot_dialect not in CASELESS_DIALECTS:
            return self.destination not in CASELESS_DESTINATIONS
        text: Any = self.caps.get_type_mapper().to_destination_type({"name": "", "data_type": "text"}, {})
        return str(getattr(text, "collation", None)).endswith(EXACT_COLLATIONS)

    def is_named(self, column: str, names: Iterable[str]) -> str:
        """SQL condition of the rows with one of those texts."""
        texts = ", ".join(self._text(name) for name in names).replace("{", "{{").replace("}", "}}")
        return f"{self._name(column)} IN ({texts})"

    def is_number(self, column: str, numbers: Iterable[int]) -> str:
        """SQL condition of the rows with one of those numbers, of which there is one at least."""
        return f"{self._name(column)} IN ({', '.join(str(int(number)) for number in numbers)})"

    def is_before(self, column: str, at: datetime) -> str:
        """SQL condition of the rows whose time is earlier."""
        return f"{self._name(column)} < {self._instant(at)}"

    def is_at_least(self, column: str, value: Cell) -> str:
        """SQL condition of the rows with that date, time or number, or a larger one."""
        if isinstance(value, datetime):
            literal = self._instant(value)
        else:
            literal = self._text(value.isoformat()) if isinstance(value, date) else str(value)
        return f"{self._name(column)} >= {literal}"

    def is_null(self, column: str) -> str:
        """SQL condition of the rows that have no value there."""
        return f"{self._name(column)} IS NULL"

    def is_one_of(self, column: str, uuids: Iterable[str]) -> str:
        """SQL condition of the rows with those uuids, which are checked to be such."""
        return f"{self._name(column)} IN ({', '.join(repr(str(UUID(uuid))) for uuid in uuids)})"

    def _by_key(self, disposition: Any) -> Any:
        """The disposition, or the one that Athena has where rows are replaced by keys of several columns."""
        replaces_by_key = isinstance(disposition, dict) and "destination_scope" not in disposition
        if self.destination == "athena" and replaces_by_key:
            return self.disposition("upsert", "")
        return disposition

    def _layout(self, table: Table) -> Layout:
        """How the table is to lie, unless a person has said so of the running resource."""
        layout = layout_of(self.destination, table)
        if layout == Layout():
            return layout
        chosen = dlt.current.resource().compute_table_schema()
        return Layout() if is_laid_out(chosen, chosen["columns"].values()) else layout

    @property
    def _file_format(self) -> TLoaderFileFormat | None:
        """Told where dlt 1.31's choice loses something, unless a person has chosen.

        Postgres reads empty texts in CSV as null, and through ADBC no Parquet without rows.
        """
        if self.destination != "postgres":
            return None
        chosen = dlt.current.resource().compute_table_schema().get("file_format")
        return cast("TLoaderFileFormat", chosen or "insert_values")

    def _instant(self, at: datetime) -> str:
        own = self.caps.format_datetime_literal
        spell = format_datetime_literal if own is None else own
        # Without zones, SQLite compares texts: one with an offset is larger than the same without.
        return str(spell(at, 6, no_tz=not self.caps.supports_tz_aware_datetime))

    def _text(self, text: str) -> str:
        """A literal, of sqlglot's making where dlt 1.31 knows none (Snowflake, Athena, SQLAlchemy)."""
        own = self.caps.escape_literal
        if own is not None and own is not serialize_value:
            return str(own(text))
        literal = exp.Literal.string(text).sql(dialect=self.caps.sqlglot_dialect)
        if self.destination == "sqlalchemy":
            return literal.replace(":", "\\:")  # else a parameter's name
        return literal

    def _name(self, name: str) -> str:
        """A column. Without its table, whose path BigQuery takes for no table's name there."""
        own_name = self.caps.casefold_identifier(name)
        if self.destination != "sqlalchemy":
            return str(self.caps.escape_identifier(own_name))
        return exp.to_identifier(own_name, quoted=True).sql(dialect=self.caps.sqlglot_dialect)

    def begin(
        self,
        table: Table,
        disposition: Any,
        json_columns: JsonColumns = "auto",
        *,
        has_copies: bool = True,
        deletes: Deletes = "soft",
    ) -> Any:
        """An item of no rows, all types, and how the load is written.

        Where no row comes twice, dlt need not sort them all to find out. That hint is set by its schema
        name, since dlt passes over False in a write disposition and an old True would stand.
        """
        if not self.tells_case and any(table.column(name).kind == "text" for name in table.primary_key):
            _warn_of_case(self.destination, table.name)
        layout = self._layout(table)
        columns = column_hints(
            table,
            json_columns=json_columns,
            destination=self.destination,
            merges=disposition not in ("append", "replace"),
            deletes=deletes,
        )
        for name, more in layout.columns.items():
            columns[name].update(cast("TColumnSchema", more))
        hints = dlt.mark.make_hints(
            write_disposition=self._by_key(disposition),
            file_format=self._file_format,
            columns=columns,
            additional_table_hints={
                "description": table.description,
                "x-stage-data-deduplicated": not has_copies,
                **layout.table,
            },
        )
        return dlt.mark.with_hints(schema_of(table).empty_table(), hints)

    def load(
        self,
        reader: Reader,
        pages: Iterable[pa.Table],
        disposition: Callable[[], Any],
        *,
        rows: int,
        json_columns: JsonColumns = "auto",
        metrics: Mapping[str, int] | None = None,
    ) -> Iterator[Any]:
        """All pages of a reader's table, written that way.

        Where there is nothing to replace yet, rows are added, which takes a warehouse half the work; if the
        load dies, the next one finds them and replaces them. Not where dlt may load the rest of a killed load
        by itself, copying a file a second time: then, as when the reader has seen copies, rows are replaced
        and dlt sorts copies out.

        The disposition is asked for again after the last page: it may name what the pages held. dlt's
        progress collector learns of `rows`, the total, before the first item starts it. Pages are counted as
        dlt resource metrics: `pages`, `rows`, `bytes` (of Arrow), beside those given.
        """
        table = reader.table
        self.show(table.name, total=rows)
        first = disposition()
        scope = first.get("destination_scope") if isinstance(first, dict) else None
        is_new = bool(scope) and self.is_new(table, str(scope))
        yield self.begin(table, "append" if is_new else first, json_columns, has_copies=self._may_resume)
        counted = dict(metrics or {})
        yield from _count(pages, counted)
        last, has_copies = disposition(), reader.has_copies
        if has_copies or last != first:
            yield self.begin(table, last, json_columns, has_copies=self._may_resume or has_copies)
        _tell(reader, counted)

    def show(self, name: str, *, done: int = 0, total: Any = None) -> None:
        """Tells dlt's progress collector of `done` more by that name; first of all of their `total`."""
        if self._pipeline is not None:
            self._pipeline.collector.update(name, inc=done, total=total)

    def merge(
        self,
        reader: Reader,
        pages: Iterable[pa.Table],
        *,
        project_id: int,
        rows: int,
        stored_rows: int = 0,
        known: Iterable[pa.Table] = (),
        deletes: Deletes = "soft",
        metrics: Mapping[str, int] | None = None,
        may_repeat: bool = False,
    ) -> Iterator[Any]:
        """Pages of rows that replace those of the same key, whose `deleted_at` says which are gone.

        Args:
            reader: Of their table.
            pages: Each row once, or else dlt takes the one synced last.
            project_id: Whose rows.
            rows: For dlt's progress collector.
            stored_rows: Where the warehouse has that many rows of the project, none of them is in `pages`,
                whose rows are added then, as in `load`.
            known: Further pages, whose rows the warehouse may have all the same.
            deletes: What becomes of rows that are gone.
            metrics: Beside those that `load` counts.
            may_repeat: Whether a row may come twice although no part is read again, so that dlt has to look.
        """
        self.show(reader.table.name, total=rows)
        is_new = not may_repeat and self._holds(reader.table, self.is_project(project_id), stored_rows)
        yield self.begin(reader.table, "append" if is_new else MERGE, deletes=deletes)
        counted = dict(metrics or {})
        yield from _count(pages, counted)
        added = counted["rows"]
        yield from _count(known, counted)
        if is_new and (reader.has_copies or counted["rows"] > added):
            yield self.begin(reader.table, MERGE, deletes=deletes)
        _tell(reader, counted)

    def write(self, table: Table, pages: Iterable[pa.Table], disposition: Any) -> Iterator[Any]:
        """Pages that no `Reader` reads, written that way; counted as those of `load`."""
        yield self.begin(table, disposition)
        counted: dict[str, int] = {}
        yield from _count(pages, counted)
        dlt.current.resource_metrics().update(counted)

    def merge_beside(
        self, table: Table, pages: Iterable[pa.Table], disposition: Any = MERGE
    ) -> Iterator[Any]:
        """Rows of a second table of the running resource, which replace those of the same key.

        A table with columns that the second one lacks begins later: dlt copies what it knows of the first.
        """
        hints = dlt.mark.make_hints(
            table_name=table.name,
            write_disposition=self._by_key(disposition),
            primary_key=table.primary_key,
            merge_key="",
            file_format=self._file_format,
            columns=column_hints(table, json_columns="auto", destination=self.destination),
            additional_table_hints={"description": table.description},
        )
        yield dlt.mark.with_hints(schema_of(table).empty_table(), hints, create_table_variant=True)
        for page in pages:
            yield dlt.mark.with_table_name(page, table.name)

    def is_new(self, table: Table, scope: str) -> bool:
        """Whether there is nothing yet that a load would replace, nor dlt may resume the load by itself."""
        return self._holds(table, scope, 0)

    def _holds(self, table: Table, scope: str, rows: int) -> bool:
        if self._may_resume:
            return False
        try:
            found = sum(row_count for ((row_count,),) in self._select("count(*)", table, scope))
        except DestinationConnectionError:  # such as a DuckDB file that a load beside this one has open
            return False
        return bool(found == rows)

    def iter_stored(
        self, table: Table, names: Sequence[str], where: str
    ) -> Iterator[Sequence[Sequence[Any]]]:
        """What the warehouse holds under an SQL condition, some rows at a time: cells of those columns."""
        return self._select(", ".join(map(self._name, names)), table, where)

    def _select(self, cells: str, table: Table, where: str) -> Iterator[Sequence[Sequence[Any]]]:
        if self._pipeline is None:
            return
        with self._pipeline.sql_client() as client:
            name = client.make_qualified_table_name(table.name)
            try:
                with client.execute_query(f"SELECT {cells} FROM {name} WHERE {where.format()}") as found:
                    while rows := found.fetchmany(FETCHED_ROWS):
                        yield rows
            except DatabaseUndefinedRelation:
                return


@cache
def _warn_of_case(destination: str, table: str) -> None:
    """Once."""
    logger.warning(
        "%s: %s may take texts that differ only in case for the same, and then rows whose keys do so replace "
        "each other. docs/destinations.md says how to set it up.",
        table,
        destination,
    )


def _count(pages: Iterable[pa.Table], counted: dict[str, int]) -> Iterator[pa.Table]:
    """The pages, counted as they pass."""
    for name in ("pages", "rows", "bytes"):
        counted.setdefault(name, 0)
    for page in pages:
        counted["pages"] += 1
        counted["rows"] += page.num_rows
        counted["bytes"] += page.nbytes
        yield page
        del page  # not kept while the next one is awaited


def _tell(reader: Reader, counted: dict[str, int]) -> None:
    """The counts, and what the reader has met, as metrics of the running resource; the reader is done."""
    met = {"copies_dropped": reader.copies_dropped, "parts_read_again": reader.parts_read_again}
    dlt.current.resource_metrics().update(counted | met)
    reader.forget()


class _TypeHintFilter(logging.Filter):
    """Drops dlt's warning, one a page, that a JSON column arrives as text: that is how JSON is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        is_ours = any(record.getMessage().startswith(f"In resource: {name},") for name in self.names)
        return not (is_ours and record.funcName == "_compute_tables")


_TYPE_HINT_FILTER = _TypeHintFilter()
