"""The warehouse's side of verify: the same checksums, fingerprints and keys as PostHog's, in its SQL.

dlt's client runs what sqlglot writes in the destination's dialect, so that any SQL destination can be asked,
and plain files through the DuckDB views that dlt makes of them. Not here: PostHog's side (`checksums`), what
follows from a difference (`comparison`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any

import dlt
import sqlglot
from dlt.common import json
from dlt.common.configuration.exceptions import ConfigurationException
from dlt.common.data_writers.escape import format_datetime_literal
from dlt.common.destination.exceptions import DestinationException
from dlt.common.schema import Schema
from dlt.destinations.sql_client import SqlClientBase
from dlt.pipeline.state_sync import load_pipeline_state_from_destination
from sqlglot import exp

from posthog_source.comparison import Checksum, Marked
from posthog_source.errors import SettingsError
from posthog_source.fingerprint import (
    CHUNK_BYTES,
    CHUNK_FACTORS,
    PART_BYTES,
    PRIME,
    TAIL_CHARS,
    TAIL_START,
    TEXT_BYTES,
    TEXT_PARTS,
    Fingerprint,
    Term,
)
from posthog_source.pipeline import database_file, destination_of, require_whole
from posthog_source.query import Settled
from posthog_source.tables import DELETED_AT, Table
from posthog_source.windows import EPOCH, Window

DIALECTS = ("bigquery", "clickhouse", "databricks", "duckdb", "postgres", "redshift", "snowflake")
"""sqlglot's names of those whose SQL is known here; tests run the second and fourth, and parse the rest."""

REWRITERS = ("bigquery", "clickhouse", "databricks", "postgres", "redshift", "snowflake")
"""Where a column of type JSON is not the text that was loaded."""

MICROS_OF_DAY = 86_400_000_000

MICROS = {
    "bigquery": "UNIX_MICROS({})",
    "clickhouse": "toUnixTimestamp64Micro({})",
    "databricks": "UNIX_MICROS({})",
    "duckdb": "EPOCH_US({})",
    "postgres": "CAST(EXTRACT(EPOCH FROM {}) * 1000000 AS BIGINT)",
    "redshift": "DATEDIFF(MICROSECOND, CAST('1970-01-01 00:00:00+00' AS TIMESTAMPTZ), {})",
    "snowflake": "DATE_PART(EPOCH_MICROSECOND, {})",
}
"""Microseconds since 1970 of a column, in each dialect's own SQL: sqlglot does not translate them."""

BYTES = {
    "bigquery": "BYTE_LENGTH({})",
    "clickhouse": "length({})",
    "databricks": "OCTET_LENGTH({})",
    "duckdb": "STRLEN({})",
    "postgres": "OCTET_LENGTH({})",
    "redshift": "OCTET_LENGTH({})",
    "snowflake": "OCTET_LENGTH({})",
}
"""Bytes of a text, likewise."""

HEX = {
    "bigquery": "TO_HEX(CAST({} AS BYTES))",
    "clickhouse": "hex({})",
    "databricks": "HEX({})",
    "duckdb": "HEX({})",
    "postgres": "ENCODE(CONVERT_TO({}, 'UTF8'), 'hex')",
    "redshift": "TO_HEX(TO_VARBYTE({}, 'utf-8'))",
    "snowflake": "HEX_ENCODE({})",
}
"""The digits of a text's bytes as UTF-8, likewise."""

NUMBER = {
    "bigquery": "CAST(CONCAT('0x', {}) AS INT64)",
    "clickhouse": "toInt64(reinterpretAsUInt64(reverse(unhex({}))))",
    "databricks": "CAST(CONV({}, 16, 10) AS BIGINT)",
    "duckdb": "CAST('0x' || {} AS BIGINT)",
    "postgres": "CAST(CAST('x' || LPAD({}, 16, '0') AS BIT(64)) AS BIGINT)",
    "redshift": "STRTOL({}, 16)",
    "snowflake": "TO_NUMBER({}, 'XXXXXXXXXXXXXX')",
}
"""The number that up to 14 such digits are, likewise."""

KEYS_AT_ONCE = 1_000
FETCHED_ROWS = 10_000


@dataclass(frozen=True)
class Choice:
    """Which rows of a table are asked for, beside those of the project that are not marked as deleted.

    Attributes:
        window: Bounds of the time column.
        settled: Only rows that were received so long ago.
        since: Bound of another column of times, and its name.
    """

    window: Window | None = None
    settled: Settled | None = None
    since: tuple[str, datetime] | None = None


class Warehouse:
    """The loaded tables of one source. Asks one statement at a time.

    Args:
        pipeline: One that has loaded them.
        source_name: The source's name.

    Attributes:
        dialect: sqlglot's name of its SQL.
        caps: What dlt knows of it.
        state: What the source's last load has left in dlt's state, by resource.
        statements: How many have been asked.

    Raises:
        SettingsError: Nothing is loaded there, or its SQL is not known here.
    """

    def __init__(self, pipeline: dlt.Pipeline, source_name: str) -> None:
        self._destination = destination_of(pipeline)
        self.caps = self._destination.capabilities()
        self.dialect = str(self.caps.sqlglot_dialect)
        if self.dialect not in DIALECTS:
            raise SettingsError(
                f"{self._destination.destination_name} cannot be compared with PostHog. Destinations that "
                f"can: {', '.join(DIALECTS)}, those that speak as they do, and plain files."
            )
        self.statements = 0
        with self._telling():
            self._schema, self.state = self._restore(pipeline, source_name)

    def _restore(self, pipeline: dlt.Pipeline, source_name: str) -> tuple[Schema, Mapping[str, Any]]:
        """The source's schema and state as the destination has them, the working directory left as it is.

        What dlt's own sync_destination does would empty it where the dataset is named wrongly.
        """
        file = database_file(pipeline)
        if file and not file.exists():  # to open it would make an empty one
            raise SettingsError(
                f"There is no database {file}. Check --destination and its settings, or sync first."
            )
        require_whole(file)
        client: Any = pipeline.destination_client()
        with client:
            is_there = client.is_storage_initialized()
            found = client.get_stored_schema(source_name) if is_there else None
            state = load_pipeline_state_from_destination(pipeline.pipeline_name, client) if found else None
        if found is None:
            raise SettingsError(
                f"There is nothing of {source_name} in the dataset {pipeline.dataset_name} of "
                f"{self._destination.destination_name}. Check --destination and --dataset, or sync first."
            )
        schema = Schema.from_stored_schema(json.loads(found.schema))
        self._config = client.config
        sources: Mapping[str, Any] = (state or {}).get("sources", {})
        return schema, sources.get(source_name, {}).get("resources", {})

    def has(self, table: Table) -> bool:
        """Whether the table is loaded."""
        return bool(self._columns(table))

    def rewritten(self, table: Table) -> frozenset[str]:
        """Names of columns that are not there as PostHog sent them, or not there at all."""
        columns = self._columns(table)
        is_same = {
            name
            for name, column in columns.items()
            if column.get("data_type") != "json" or self.dialect not in REWRITERS
        }
        return frozenset(c.name for c in table.columns if self._normal(c.name) not in is_same)

    def table(self, table: Table, fingerprint: Fingerprint, project_id: int) -> Stored:
        """One table."""
        return Stored(self, table, fingerprint, project_id)

    @cached_property
    def last_load_at(self) -> datetime | None:
        """When this source's last load was done."""
        loads = exp.select(exp.Max(this=self._own("inserted_at"))).from_(self.relation("_dlt_loads"))
        mine = exp.EQ(this=self._own("schema_name"), expression=exp.Literal.string(self._schema.name))
        done = exp.EQ(this=self._own("status"), expression=exp.Literal.number(0))
        ((at,),) = self.fetch(loads.where(mine, done))
        return _aware(at) if at else None

    def fetch(self, statement: exp.Select) -> list[tuple[Any, ...]]:
        """All rows of an answer.

        Raises:
            SettingsError: The warehouse refuses, or cannot be reached.
        """
        self.statements += 1
        with self._client() as client, client.execute_query(statement.sql(dialect=self.dialect)) as found:
            return [tuple(row) for page in iter(lambda: found.fetchmany(FETCHED_ROWS), []) for row in page]

    def relation(self, name: str) -> exp.Table:
        """A table by its name in the catalogue."""
        own_name = self._schema.naming.normalize_tables_path(name)
        with self._client() as client:
            *before, last = client.make_qualified_table_name_path(own_name, quote=False)
        dataset, catalog = (*reversed(before), None, None)[:2]
        return exp.table_(last, db=dataset, catalog=catalog, quoted=True)

    def column(self, name: str) -> exp.Column:
        """A column by its name in the catalogue."""
        return self._own(self._normal(name))

    def instant(self, at: datetime) -> exp.Expr:
        """A literal."""
        own = self.caps.format_datetime_literal
        return self._parsed(str((format_datetime_literal if own is None else own)(at, 6)))

    def micros(self, column: exp.Expr) -> exp.Expr:
        """Microseconds since 1970."""
        return self._written(MICROS, column)

    def bytes(self, text: exp.Expr) -> exp.Expr:
        """Bytes of a text."""
        return self._written(BYTES, text)

    def hex(self, text: exp.Expr) -> exp.Expr:
        """The digits of a text's bytes."""
        return self._written(HEX, text)

    def number(self, digits: exp.Expr) -> exp.Expr:
        """The number that up to 14 such digits are."""
        return self._written(NUMBER, digits)

    def _written(self, spelled: Mapping[str, str], operand: exp.Expr) -> exp.Expr:
        return self._parsed(spelled[self.dialect].format(operand.sql(dialect=self.dialect)))

    def _parsed(self, sql: str) -> exp.Expr:
        return sqlglot.parse_one(sql, dialect=self.dialect)

    def _normal(self, name: str) -> str:
        return str(self._schema.naming.normalize_identifier(name))

    def _own(self, name: str) -> exp.Column:
        return exp.column(str(self.caps.casefold_identifier(name)), quoted=True)

    def _columns(self, table: Table) -> Mapping[str, Mapping[str, Any]]:
        name = self._schema.naming.normalize_tables_path(table.name)
        known: Mapping[str, Mapping[str, Any]] = self._schema.tables.get(name, {}).get("columns", {})
        return {column: hints for column, hints in known.items() if hints.get("data_type")}

    @contextmanager
    def _client(self) -> Iterator[SqlClientBase[Any]]:
        with self._telling():
            client = self._destination.client(self._schema, self._config)
            with client.sql_client as sql_client:
                yield sql_client

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """One line about what the warehouse refuses."""
        try:
            yield
        except (DestinationException, ConfigurationException) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise SettingsError(
                f"{self._destination.destination_name} refused: {reason}. Check --destination, --dataset and "
                "the credentials; if a table is missing, sync it first."
            ) from error


class Stored:
    """What the warehouse has of one table and project."""

    def __init__(self, warehouse: Warehouse, table: Table, fingerprint: Fingerprint, project_id: int) -> None:
        self._warehouse = warehouse
        self._table = table
        self._fingerprint = fingerprint
        self._project_id = project_id

    def fetch_days(self, choice: Choice, *, by_name: bool) -> dict[tuple[date, str], Checksum]:
        """By UTC day of the time column, and by the event's name or none."""
        found = self._warehouse.fetch(self.build_days(choice, by_name=by_name))
        return {
            (_instant_of(midnight).date(), str(name)): Checksum(int(count), int(total))
            for midnight, name, count, total in found
        }

    def build_days(self, choice: Choice, *, by_name: bool) -> exp.Select:
        """Midnight in microseconds, name, rows, checksum."""
        micros = self._warehouse.micros(self._column("timestamp"))
        midnight = exp.Sub(this=micros, expression=exp.Paren(this=_modulo(micros.copy(), MICROS_OF_DAY)))
        name = self._column("event") if by_name else exp.Literal.string("")
        rows = self._weighed(choice, {"row_midnight": midnight, "row_name": name})
        groups = [_inner("row_midnight"), _inner("row_name")]
        return exp.select(*groups, *_sums()).from_(rows).group_by(*groups)

    def fetch_buckets(self, choice: Choice, *, buckets: int) -> dict[int, Checksum]:
        """By bucket, of those that have rows."""
        found = self._warehouse.fetch(self.build_buckets(choice, buckets=buckets))
        return {int(number): Checksum(int(count), int(total)) for number, count, total in found}

    def build_buckets(self, choice: Choice, *, buckets: int) -> exp.Select:
        """Bucket, rows, checksum."""
        bucket = _modulo(_inner("row_weight"), buckets)
        return exp.select(bucket, *_sums()).from_(self._weighed(choice, {})).group_by(bucket.copy())

    def fetch_rows(self, choice: Choice, *, buckets: int, chosen: Sequence[int]) -> list[Marked]:
        """The rows of some buckets, each as often as it is there."""
        found = self._warehouse.fetch(self.build_rows(choice, buckets=buckets, chosen=chosen))
        return [_marked(row, key_cells=len(self._fingerprint.keys)) for row in found]

    def build_rows(self, choice: Choice, *, buckets: int, chosen: Sequence[int]) -> exp.Select:
        """The key's cells, fingerprint, and the event's name where there are events."""
        keys = {f"key_{n}": self._column(key.name) for n, key in enumerate(self._fingerprint.keys)}
        names = {"row_name": self._column("event")} if self._fingerprint.content else {}
        cells = [*map(_inner, keys), _product(), *map(_inner, names)]
        rows = exp.select(*cells).from_(self._weighed(choice, keys | names))
        return rows.where(_modulo(_inner("row_weight"), buckets).isin(*chosen)) if buckets > 1 else rows

    def fetch_keys(self) -> list[Marked]:
        """The keys of all rows, each as often as it is there."""
        cells = [self._column(name) for name in self._table.primary_key[1:]]
        statement = exp.select(*cells).from_(self._relation()).where(*self._conditions(Choice()))
        return [Marked(tuple(str(cell) for cell in row)) for row in self._warehouse.fetch(statement)]

    def fetch_times(self, uuids: Sequence[str]) -> dict[str, list[datetime]]:
        """When events of those uuids happened, wherever in the table they are."""
        times: dict[str, list[datetime]] = {}
        for first in range(0, len(uuids), KEYS_AT_ONCE):
            part = uuids[first : first + KEYS_AT_ONCE]
            for uuid, at in self._warehouse.fetch(self.build_times(part)):
                times.setdefault(str(uuid), []).append(_instant_of(at))
        return times

    def build_times(self, uuids: Sequence[str]) -> exp.Select:
        """Uuid, microseconds since 1970."""
        uuid = self._column("uuid")
        cells = exp.select(uuid, self._warehouse.micros(self._column("timestamp"))).from_(self._relation())
        return cells.where(*self._conditions(Choice()), uuid.copy().isin(*uuids))

    def _weighed(self, choice: Choice, passed: Mapping[str, exp.Expr]) -> exp.Subquery:
        """The chosen rows with their weight and content, and what is passed on, by its name.

        In two levels, as PostHog's are in several.
        """
        terms = list(enumerate((*self._fingerprint.weight, *self._fingerprint.content)))
        of_key = len(self._fingerprint.weight)
        cells = dict(passed)
        for n, term in terms:
            cells |= self._digits(n, term)
        digits = (
            exp.select(*(exp.alias_(cell, name, quoted=True) for name, cell in cells.items()))
            .from_(self._relation())
            .where(*self._conditions(choice))
        )
        weighed = exp.select(
            *(_inner(name) for name in passed),
            exp.alias_(self._sum_of(terms[:of_key]), "row_weight", quoted=True),
            exp.alias_(self._sum_of(terms[of_key:]), "row_content", quoted=True),
        ).from_(digits.subquery("rows_in_digits"))
        return weighed.subquery("rows_weighed")

    def _digits(self, n: int, term: Term) -> dict[str, exp.Expr]:
        """The cells that a term's number is made of."""
        cell = self._column(term.column.name)
        match term.measure:
            case "tail":
                return {f"digits_{n}": _substring(cell, TAIL_START, TAIL_CHARS)}
            case "text":
                text = exp.func("COALESCE", cell, exp.Literal.string(""))
                zeros = exp.Literal.string("00" * TEXT_BYTES)
                return {
                    f"digits_{n}": exp.DPipe(this=self._warehouse.hex(text), expression=zeros),
                    f"chars_{n}": exp.Length(this=text.copy()),
                }
            case "instant":
                return {f"raw_{n}": exp.func("COALESCE", self._warehouse.micros(cell), exp.Literal.number(0))}
            case "size":
                size = self._warehouse.bytes(exp.Cast(this=cell, to=exp.DataType.build("text")))
                return {f"raw_{n}": exp.func("COALESCE", size, exp.Literal.number(0))}
            case _:
                return {f"raw_{n}": cell}

    def _sum_of(self, terms: Iterable[tuple[int, Term]]) -> exp.Expr:
        """One and the remainder of what the terms add up to."""
        one = exp.Literal.number(1)
        parts = [
            _times(factor, _modulo(part, PRIME))
            for n, term in terms
            for factor, part in zip(term.factors, self._parts(n, term), strict=True)
        ]
        return exp.Add(this=one, expression=exp.Paren(this=_modulo(_added(parts), PRIME))) if parts else one

    def _parts(self, n: int, term: Term) -> list[exp.Expr]:
        """A term's numbers."""
        match term.measure:
            case "tail":
                return [self._warehouse.number(_inner(f"digits_{n}"))]
            case "text":
                parts = (self._part(_inner(f"digits_{n}"), PART_BYTES * part) for part in range(TEXT_PARTS))
                return [*parts, _inner(f"chars_{n}")]
            case _:
                return [_inner(f"raw_{n}")]

    def _part(self, digits: exp.Expr, start: int) -> exp.Expr:
        """The remainder of the number that the bytes of a text are from a place on."""
        chunks = []
        for n, factor in enumerate(CHUNK_FACTORS):
            at = 1 + 2 * (start + CHUNK_BYTES * n)
            number = self._warehouse.number(_substring(digits, at, 2 * CHUNK_BYTES))
            chunks.append(_modulo(_times(factor, _modulo(number, PRIME)), PRIME))
        return exp.Paren(this=_added(chunks))

    def _conditions(self, choice: Choice) -> list[exp.Expr]:
        project = exp.Literal.number(self._project_id)
        conditions: list[exp.Expr] = [exp.EQ(this=self._column("project_id"), expression=project)]
        absent = self._warehouse.rewritten(self._table)
        if DELETED_AT in self._table.columns and DELETED_AT.name not in absent:
            conditions.append(exp.Is(this=self._column(DELETED_AT.name), expression=exp.null()))
        if (flag := self._table.deleted_flag) and flag not in absent:
            is_deleted = exp.func("COALESCE", self._column(flag), exp.false())
            conditions.append(exp.Not(this=is_deleted))
        if choice.window:
            start, end = self._instant(choice.window.start), self._instant(choice.window.end)
            conditions.append(exp.GTE(this=self._column("timestamp"), expression=start))
            conditions.append(exp.LT(this=self._column("timestamp"), expression=end))
        if choice.since:
            name, at = choice.since
            conditions.append(exp.GTE(this=self._column(name), expression=self._instant(at)))
        return [*conditions, *(self._settled(choice.settled) if choice.settled else ())]

    def _settled(self, settled: Settled) -> list[exp.Expr]:
        created = self._column("created_at")
        delay = exp.Sub(
            this=self._warehouse.micros(created), expression=self._warehouse.micros(self._column("timestamp"))
        )
        in_time = exp.LT(this=delay, expression=exp.Literal.number(settled.late_by_s * 1_000_000))
        early = exp.LT(this=created.copy(), expression=self._instant(settled.late_before))
        before = exp.LT(this=created.copy(), expression=self._instant(settled.before))
        return [before, exp.or_(early, in_time)]

    def _relation(self) -> exp.Table:
        return self._warehouse.relation(self._table.name)

    def _column(self, name: str) -> exp.Column:
        return self._warehouse.column(name)

    def _instant(self, at: datetime) -> exp.Expr:
        return self._warehouse.instant(at)


def _instant_of(micros: Any) -> datetime:
    return EPOCH + timedelta(microseconds=int(micros))


def _marked(row: Sequence[Any], *, key_cells: int) -> Marked:
    key, fingerprint, name = row[:key_cells], row[key_cells], row[key_cells + 1 :]
    return Marked(tuple(str(cell) for cell in key), int(fingerprint), str(name[0] or "") if name else "")


def _inner(name: str) -> exp.Column:
    """A column of a level below, named here."""
    return exp.column(name, quoted=True)


def _sums() -> tuple[exp.Expr, exp.Expr]:
    return exp.Count(this=exp.Star()), exp.Sum(this=_product())


def _product() -> exp.Expr:
    weight, content = (_inner(name) for name in ("row_weight", "row_content"))
    return _modulo(exp.Mul(this=weight, expression=content), PRIME)


def _modulo(value: exp.Expr, by: int) -> exp.Expr:
    return exp.Mod(this=exp.Paren(this=value), expression=exp.Literal.number(by))


def _times(factor: int, value: exp.Expr) -> exp.Expr:
    return exp.Mul(this=exp.Literal.number(factor), expression=exp.Paren(this=value))


def _added(parts: Sequence[exp.Expr]) -> exp.Expr:
    first, *others = parts
    for part in others:
        first = exp.Add(this=first, expression=part)
    return first


def _substring(text: exp.Expr, start: int, chars: int) -> exp.Expr:
    return exp.func("SUBSTRING", text.copy(), exp.Literal.number(start), exp.Literal.number(chars))


def _aware(at: datetime) -> datetime:
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
