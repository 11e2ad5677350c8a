"""Identity in the warehouse: a view that gives each event the person whom its distinct id belongs to now.

An event keeps the person whom PostHog gave it on arrival; merges come later, and PostHog lays them over the
stored events when it is asked. So does this view, over loaded tables and without a question to PostHog. Not
here: how those tables are kept up (`resources`), what PostHog would answer (`catalog`, `events.person_id`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import dlt
from dlt.common.schema import Schema
from dlt.destinations.exceptions import DatabaseException, DatabaseTerminalException
from dlt.destinations.sql_client import SqlClientBase
from sqlglot import exp

from posthog_source.catalog import EVENTS, PERSON_DISTINCT_IDS, PERSONS
from posthog_source.destination import can_merge
from posthog_source.errors import SettingsError
from posthog_source.pipeline import destination_of
from posthog_source.tables import Table

DIALECTS = ("bigquery", "databricks", "duckdb", "postgres", "redshift", "snowflake")
"""sqlglot's names. All of them replace views and tell 'a' from 'A' in a distinct id. Not ClickHouse, whose
LEFT JOIN gives empty text for a row that is not there."""

FIXED_VIEW_DIALECTS = ("postgres", "redshift")
"""Where a view that is replaced must keep its columns and may only get more at its end."""

PERSON_COLUMNS = ("created_at", "is_identified", "properties")
"""What the view shows of `persons`, named `person_…`."""

NEEDED = (EVENTS, PERSON_DISTINCT_IDS)


@dataclass(frozen=True)
class Relation:
    """A table or view of the warehouse, spelled as the warehouse has it.

    Attributes:
        path: Catalogue and dataset, as far as they are needed, and the name.
        columns: In order.
    """

    path: tuple[str, ...]
    columns: tuple[str, ...]


def create_person_view(
    pipeline: dlt.Pipeline, *, name: str = "events_with_person", schema_name: str | None = None
) -> str:
    """Makes a view beside the loaded tables: every event once, with the person whose it is now.

    It has all columns of `events`, where `person_id` is the person to whom `person_distinct_ids` gives the
    event's distinct id, and without one the event's own. That own value is `ingested_person_id`. With
    `persons` loaded, there are also `person_created_at`, `person_is_identified` and `person_properties`, as
    they are now and null where there is no such person; then `person_properties` of `events` are
    `ingested_person_properties`. Rows with a `deleted_at` count as gone.

    Make it again when columns have been added, or `persons`; the new view replaces the old one. On Postgres
    and Redshift, drop it before dropping its tables.

    `person_id` is what HogQL says of `events.person_id` at the same moment: an override if there is one, else
    the id on the row (query_api.md 4.1). So it is after $identify, $create_alias and $merge_dangerously,
    chains of them, splits, and deletions of persons, whose events fall back to the row's own id; also for
    personless events, whose id follows from the distinct id and belongs to nobody until someone is
    identified. It differs

    - where PostHog has squashed overrides (query_api.md 5.4) and the person is deleted afterwards: events
      that were read before keep the id that they came with, PostHog's rows have the deleted person's. Neither
      is anyone's now.
    - where a row's id is not its owner's and no override says so, such as nil on events older than ids on
      events. HogQL repeats the row; the view tells the owner, since `person_distinct_ids` knows every id and
      overrides only those that have changed hands. `personsOnEventsMode` `disabled` is of the view's mind.
    - where the tables are not of the same moment: what counts is the newest sync of `person_distinct_ids`.

    Args:
        pipeline: One that has loaded `events` and `person_distinct_ids`.
        name: The view's.
        schema_name: dlt's, for a clone of the source under another name; the pipeline's default otherwise.

    Returns:
        The view's full name, quoted, to be used in SQL.

    Raises:
        SettingsError: The destination has no such views, the tables are not loaded yet, or the name is taken.
    """
    dialect = _dialect_of(pipeline)
    schema = _loaded_schema(pipeline, schema_name)
    view = schema.naming.normalize_tables_path(name) if name.strip() else ""
    if not view or view in schema.tables:
        raise SettingsError(f"A view cannot be called {name!r}, as a table is. Give it another name=….")
    with pipeline.sql_client(schema.name) as client:
        tables = {table.name: _relation(client, schema, table) for table in _loaded(schema)}
        sql = build_person_view_sql(
            _path(client, view),
            tables[EVENTS.name],
            tables[PERSON_DISTINCT_IDS.name],
            tables.get(PERSONS.name),
            dialect=dialect,
            spell=lambda known: _column(client, schema.naming.normalize_identifier(known)),
        )
        qualified = client.make_qualified_table_name(view)
        try:
            _create(client, sql, qualified, dialect)
        except DatabaseException as error:
            reason = str(error).strip().splitlines()[0]
            raise SettingsError(
                f"The view {qualified} was refused: {reason.rstrip('.')}. If a table is missing, sync it "
                "first; if the name is taken, or other views need the old one, choose another name=…."
            ) from error
    return qualified


def build_person_view_sql(
    view: Sequence[str],
    events: Relation,
    person_distinct_ids: Relation,
    persons: Relation | None = None,
    *,
    dialect: str,
    spell: Callable[[str], str] = str,
) -> str:
    """The statement that makes or replaces the view.

    Args:
        view: Its path, as `Relation.path`.
        events: The loaded table.
        person_distinct_ids: The loaded table.
        persons: The loaded table, if it is.
        dialect: sqlglot's name of the destination's.
        spell: The warehouse's spelling of a name of the catalogue.
    """
    owner = exp.func("COALESCE", _of("ids", spell("person_id")), _of("events", spell("person_id")))
    shown: dict[str, exp.Expr] = {spell("person_id"): owner}
    if persons is not None:
        known = [name for name in PERSON_COLUMNS if spell(name) in persons.columns]
        shown |= {spell(f"person_{name}"): _of("persons", spell(name)) for name in known}

    query = exp.select(*_selected(events.columns, shown, spell)).from_(_aliased(events, "events"))
    query = _left_join(
        query, person_distinct_ids, "ids", {"distinct_id": _of("events", spell("distinct_id"))}, spell
    )
    if persons is not None:
        query = _left_join(query, persons, "persons", {"id": owner}, spell)
    created = exp.Create(this=_table(view), kind="VIEW", replace=True, expression=query)
    return created.sql(dialect=dialect, pretty=True)


def _selected(
    columns: Sequence[str], shown: dict[str, exp.Expr], spell: Callable[[str], str]
) -> list[exp.Expr]:
    """The event's columns in order, the person's in place of their namesakes or after all."""
    left = dict(shown)
    taken = {*columns, *shown}
    selected = []
    for column in columns:
        kept = column
        if column in left:
            selected.append(exp.alias_(left.pop(column), column, quoted=True))
            kept = _ingested(column, taken, spell)
        selected.append(exp.alias_(_of("events", column), kept, quoted=True))
    return selected + [exp.alias_(value, name, quoted=True) for name, value in left.items()]


def _ingested(column: str, taken: Collection[str], spell: Callable[[str], str]) -> str:
    """A name for the event's own value, even beside a promoted property that is called so."""
    name = f"{spell('ingested')}_{column}"
    return _ingested(name, taken, spell) if name in taken else name


def _left_join(
    query: exp.Select,
    relation: Relation,
    alias: str,
    keys: dict[str, exp.Expr],
    spell: Callable[[str], str],
) -> exp.Select:
    """The query beside the rows with those keys, of the same project and not deleted."""
    pairs = {"project_id": _of("events", spell("project_id"))} | keys
    matches: list[exp.Expr] = [
        exp.EQ(this=_of(alias, spell(name)), expression=value.copy()) for name, value in pairs.items()
    ]
    if spell("deleted_at") in relation.columns:
        matches.append(exp.Is(this=_of(alias, spell("deleted_at")), expression=exp.null()))
    return query.join(_aliased(relation, alias), on=exp.and_(*matches), join_type="left")


def _of(alias: str, column: str) -> exp.Expr:
    return exp.column(column, table=alias, quoted=True)


def _aliased(relation: Relation, alias: str) -> exp.Expr:
    return exp.alias_(_table(relation.path), alias, table=True, quoted=True)


def _table(path: Sequence[str]) -> exp.Table:
    *before, name = path
    dataset, catalog = (*reversed(before), None, None)[:2]
    return exp.table_(name, db=dataset, catalog=catalog, quoted=True)


def _dialect_of(pipeline: dlt.Pipeline) -> str:
    """What sqlglot calls the destination's SQL."""
    destination = destination_of(pipeline)
    caps = destination.capabilities()
    dialect = str(caps.sqlglot_dialect)
    if not can_merge(caps) or dialect not in DIALECTS:  # plain files speak DuckDB, and keep no view
        raise SettingsError(
            f"{destination.destination_name} cannot hold the person view. Destinations that can: "
            f"{', '.join(DIALECTS)}. Elsewhere, join person_distinct_ids on (project_id, distinct_id)."
        )
    return dialect


def _loaded_schema(pipeline: dlt.Pipeline, schema_name: str | None) -> Schema:
    """The schema that has the tables, from the destination where the working directory does not know it."""
    if _find_schema(pipeline, schema_name) is None:
        pipeline.sync_destination()
    schema = _find_schema(pipeline, schema_name)
    if schema is None:
        names = [table.name for table in NEEDED]
        raise SettingsError(
            f"The pipeline {pipeline.pipeline_name} has not loaded {' and '.join(names)} into "
            f"{pipeline.dataset_name} yet. Sync them first: run_sync(pipeline, tables={names})."
        )
    return schema


def _find_schema(pipeline: dlt.Pipeline, schema_name: str | None) -> Schema | None:
    name = schema_name or pipeline.default_schema_name
    if not name or name not in pipeline.schemas:
        return None
    schema = pipeline.schemas[name]
    return schema if all(table in _loaded(schema) for table in NEEDED) else None


def _loaded(schema: Schema) -> list[Table]:
    """Which tables of the view there are."""
    names = {name for name in schema.tables if schema.get_table_columns(name)}
    return [table for table in (*NEEDED, PERSONS) if schema.naming.normalize_tables_path(table.name) in names]


def _relation(client: SqlClientBase[Any], schema: Schema, table: Table) -> Relation:
    """A loaded table, with the catalogue's columns first and in its order; dlt's is by their hints."""
    name = schema.naming.normalize_tables_path(table.name)
    loaded = list(schema.get_table_columns(name))
    known = [schema.naming.normalize_identifier(column.name) for column in table.columns]
    ordered = [*(one for one in known if one in loaded), *(one for one in loaded if one not in known)]
    return Relation(_path(client, name), tuple(_column(client, one) for one in ordered))


def _path(client: SqlClientBase[Any], table: str) -> tuple[str, ...]:
    return tuple(client.make_qualified_table_name_path(table, quote=False))


def _column(client: SqlClientBase[Any], name: str) -> str:
    return client.escape_column_name(name, quote=False)


def _create(client: SqlClientBase[Any], sql: str, view: str, dialect: str) -> None:
    """Replaces the view; where its columns cannot change, drops it first if they have."""
    try:
        client.execute_sql(sql)
    except DatabaseTerminalException:
        if dialect not in FIXED_VIEW_DIALECTS:
            raise
        with client.begin_transaction():
            client.execute_sql(f"DROP VIEW IF EXISTS {view}")
            client.execute_sql(sql)
