"""A dlt resource per catalogue row: what is read since when, and how it is written.

Every yield begins with an empty, typed table that carries the write disposition: dlt keeps the scope of
a merge in the stored schema, and a later run without its own would delete the last one's window
(dlt.md 3.1). Not here: settings (`source`), pages (`pagination`, `rest`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import dlt
from dlt.common.configuration.container import Container
from dlt.common.data_writers.escape import format_datetime_literal
from dlt.common.destination.capabilities import DestinationCapabilitiesContext
from dlt.common.pipeline import PipelineContext
from dlt.common.schema.typing import TTableSchemaColumns
from dlt.sources import DltResource

from posthog_source.arrow import schema_of
from posthog_source.catalog import (
    COHORT_PEOPLE,
    COHORTS,
    EVENTS,
    INSIGHTS,
    PERSON_DISTINCT_IDS,
    PERSONS,
    TABLES,
    HogqlTable,
    RestTable,
    Table,
)
from posthog_source.client import Client
from posthog_source.config import EventsSettings, JsonColumns, Settings, TableSettings, WriteMode
from posthog_source.pagination import Plan, Reader
from posthog_source.rest import fetch_all, iter_changed
from posthog_source.windows import Window

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
"""Cursor of a table that was never synced."""

JSON_DESTINATIONS = ("duckdb", "motherduck", "ducklake", "postgres")
"""Where a json column loads as JSON from Arrow; elsewhere it fails or lands as a string (dlt.md 2.4)."""

NEVER = "1 = 0"
"""A scope that deletes nothing."""

logger = logging.getLogger("posthog_source")


def build_resources(
    client: Client, settings: Settings, *, events: EventsSettings, people: TableSettings
) -> list[DltResource]:
    """All tables of the catalogue as dlt resources, in its order."""
    return [
        _events(client, settings, events),
        _snapshot(client, settings, PERSONS, people),
        _snapshot(client, settings, PERSON_DISTINCT_IDS, people),
        _listing(client, settings, COHORTS),
        _snapshot(client, settings, COHORT_PEOPLE, people),
        _changes(client, settings, INSIGHTS),
    ]


def events_table(config: EventsSettings) -> HogqlTable:
    """The events table as chosen."""
    table = EVENTS if config.person_properties else EVENTS.without({"person_properties"})
    return table.reading({"person_id": "person_id"}) if config.person_id == "current" else table


def column_hints(table: Table, *, json_columns: JsonColumns, destination: str) -> TTableSchemaColumns:
    """Dlt's column hints: descriptions, keys, and JSON where the destination takes it."""
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
    return hints


def window_scope(caps: DestinationCapabilitiesContext, project_id: int, window: Window) -> str:
    """SQL condition of the rows that a window's load replaces."""
    at = _qualified(caps, "timestamp")
    own = caps.format_datetime_literal
    literal = format_datetime_literal if own is None else own
    start, end = literal(window.start, 6), literal(window.end, 6)
    return f"{project_scope(caps, project_id)} AND {at} >= {start} AND {at} < {end}"


def project_scope(caps: DestinationCapabilitiesContext, project_id: int) -> str:
    """SQL condition of all rows of a project: several may share a dataset."""
    return f"{_qualified(caps, 'project_id')} = {project_id}"


def _events(client: Client, settings: Settings, config: EventsSettings) -> DltResource:
    table = events_table(config)

    def events(
        cursor: dlt.sources.incremental[datetime] = dlt.sources.incremental(  # noqa: B008
            "timestamp", initial_value=settings.start or EPOCH, end_value=settings.end
        ),
    ) -> Iterator[Any]:
        target = _Target.current()
        write_mode = target.write_mode(config)
        reader = Reader(
            client,
            table,
            project_id=settings.project_id,
            page_rows=config.page_rows,
            look_ahead=settings.look_ahead,
            may_repeat=write_mode == "window",
        )
        window = _events_window(reader, cursor, config, is_mergeable=write_mode != "append")
        scope = window_scope(target.caps, settings.project_id, window) if window else NEVER
        plans = reader.fetch_plans(window) if window else []
        if window is not None:
            cursor.advance(window.end)
            logger.info("events: %s to %s", window.start.isoformat(), window.end.isoformat())
        yield from target.load(reader, plans, target.disposition(write_mode, scope), config.json_columns)

    return _resource(table, events)


def _events_window(
    reader: Reader, cursor: dlt.sources.incremental[datetime], config: EventsSettings, *, is_mergeable: bool
) -> Window | None:
    """What to read now; None when there is nothing yet."""
    start, end = cursor.start_value or EPOCH, cursor.end_value
    if end is None:
        end = (datetime.now(UTC) - timedelta(seconds=config.lag_s)).replace(microsecond=0)
        if start != cursor.initial_value and is_mergeable:
            start = max(cursor.initial_value or EPOCH, start - timedelta(seconds=config.lookback_s))
    if start == EPOCH:
        first_at = reader.fetch_first_instant()
        if first_at is None:
            return None
        logger.info("events: the project's first event is of %s", first_at.isoformat())
        start = first_at
    return Window(start, end) if start < end else None


def _snapshot(client: Client, settings: Settings, table: HogqlTable, config: TableSettings) -> DltResource:
    def snapshot() -> Iterator[Any]:
        target = _Target.current()
        reader = Reader(
            client,
            table,
            project_id=settings.project_id,
            page_rows=config.page_rows,
            look_ahead=settings.look_ahead,
            may_repeat=target.can_merge,
        )
        yield from target.load(reader, reader.fetch_plans(None), target.replace(settings.project_id))

    return _resource(table, snapshot)


def _listing(client: Client, settings: Settings, table: RestTable) -> DltResource:
    def listing() -> Iterator[Any]:
        target = _Target.current()
        yield target.begin(table, target.replace(settings.project_id))
        yield fetch_all(client, table, project_id=settings.project_id)

    return _resource(table, listing)


def _changes(client: Client, settings: Settings, table: RestTable) -> DltResource:
    def changes(
        cursor: dlt.sources.incremental[datetime] = dlt.sources.incremental(  # noqa: B008
            table.cursor or "", initial_value=EPOCH
        ),
    ) -> Iterator[Any]:
        target = _Target.current()
        since = cursor.start_value or EPOCH
        cursor.advance(since)  # PostHog applies the range; dlt is not to filter again
        is_first = since == EPOCH or not target.can_merge
        yield target.begin(table, {"disposition": "merge"} if target.can_merge else "replace")
        overlap = timedelta(seconds=table.overlap_s)
        pages = iter_changed(
            client, table, project_id=settings.project_id, since=None if is_first else since - overlap
        )
        for page, newest in pages:
            yield page
            cursor.advance(max(since, newest))

    return _resource(table, changes)


class _TypeHintFilter(logging.Filter):
    """Drops dlt's warning, one a page, that a JSON column arrives as text: that is how JSON is loaded."""

    def filter(self, record: logging.LogRecord) -> bool:
        is_ours = any(record.getMessage().startswith(f"In resource: {table.name},") for table in TABLES)
        return not (is_ours and record.funcName == "_compute_tables")


_TYPE_HINT_FILTER = _TypeHintFilter()


def _resource(table: Table, generator: Callable[..., Iterator[Any]]) -> DltResource:
    logging.getLogger("dlt").addFilter(_TYPE_HINT_FILTER)  # adding it again changes nothing
    return dlt.resource(
        generator,
        name=table.name,
        primary_key=table.primary_key,
        schema_contract={"data_type": "freeze"},
    )


class _Target:
    """Where the rows go, as far as that changes how they are written."""

    def __init__(self, destination: str, caps: DestinationCapabilitiesContext, collector: Any) -> None:
        self.destination = destination
        self.caps = caps
        self._collector = collector

    @classmethod
    def current(cls) -> _Target:
        """The running pipeline's destination; a neutral one where a resource is read without a pipeline."""
        context = Container()[PipelineContext]
        pipeline = context.pipeline() if context.is_active() else None
        if pipeline is None or pipeline.destination is None:
            return cls("", DestinationCapabilitiesContext.generic_capabilities(), None)
        caps = pipeline.destination.capabilities()
        return cls(pipeline.destination.destination_name or "", caps, pipeline.collector)

    @property
    def can_merge(self) -> bool:
        """Whether rows can be replaced at all; plain files can only be added."""
        return bool(self.caps.supported_merge_strategies)

    def write_mode(self, config: EventsSettings) -> WriteMode:
        """The chosen mode, or append where nothing else can be done, with a warning."""
        if config.write_mode != "append" and not self.can_merge:
            logger.warning(
                "events: %s cannot replace rows, so they are appended: late events within lookback_s are "
                "not read again, and a run that dies while loading may leave rows twice. De-duplicate by "
                "uuid on read, or set table_format to delta or iceberg.",
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
        if not self.can_merge:
            return "replace"
        return self.disposition("window", project_scope(self.caps, project_id))

    def begin(
        self,
        table: Table,
        disposition: Any,
        json_columns: JsonColumns = "auto",
        *,
        has_copies: bool = True,
    ) -> Any:
        """An item of no rows, all types, and how the load is written.

        Where no row comes twice, dlt need not sort them all to find out. That hint is set by its schema
        name, since dlt passes over False in a write disposition and an old True would stand.
        """
        hints = dlt.mark.make_hints(
            write_disposition=disposition,
            columns=column_hints(table, json_columns=json_columns, destination=self.destination),
            additional_table_hints={"x-stage-data-deduplicated": not has_copies},
        )
        return dlt.mark.with_hints(schema_of(table).empty_table(), hints)

    def load(
        self, reader: Reader, plans: list[Plan], disposition: Any, json_columns: JsonColumns = "auto"
    ) -> Iterator[Any]:
        """All rows of the plans, written that way.

        dlt's progress collector learns their total, before the first item starts it. Pages are counted as
        dlt resource metrics: `pages`, `rows`, `bytes` (of Arrow).
        """
        if self._collector is not None:
            self._collector.update(reader.table.name, inc=0, total=sum(plan.rows for plan in plans))
        yield self.begin(reader.table, disposition, json_columns, has_copies=False)
        metrics = dlt.current.resource_metrics()
        for page in chain.from_iterable(reader.iter_pages(plan) for plan in plans):
            metrics["pages"] = metrics.get("pages", 0) + 1
            metrics["rows"] = metrics.get("rows", 0) + page.num_rows
            metrics["bytes"] = metrics.get("bytes", 0) + page.nbytes
            yield page
        if reader.has_repeated:
            yield self.begin(reader.table, disposition, json_columns, has_copies=True)


def _qualified(caps: DestinationCapabilitiesContext, column: str) -> str:
    return "{table}." + caps.escape_identifier(caps.casefold_identifier(column))
