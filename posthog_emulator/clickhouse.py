"""Runs SQL on embedded ClickHouse (chDB): PostHog's tables, inserts, answers in PostHog's JSON encoding.

It knows tables, rows and SQL. It does not know HogQL, projects or HTTP, and it trusts the SQL it is given.
"""

import queue
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from chdb import ChdbError
from chdb.session import Session

from posthog_emulator.clickhouse_json import NoJsonFormError, json_sql
from posthog_emulator.clickhouse_tables import DDL
from posthog_emulator.hogql import literals

# The log behind PostHog's `query_log`: only there stands what a query read that was stopped.
CONFIG = """<clickhouse>
  <query_log>
    <database>system</database>
    <table>query_log</table>
    <flush_interval_milliseconds>7500</flush_interval_milliseconds>
  </query_log>
</clickhouse>
"""

# Each value arrives as finished JSON text; the format only puts brackets and commas between them.
OUTPUT = {
    "format_custom_escaping_rule": "Raw",
    "format_custom_field_delimiter": ",",
    "format_custom_row_before_delimiter": "[",
    "format_custom_row_after_delimiter": "]",
    "format_custom_row_between_delimiter": ",",
    "format_custom_result_before_delimiter": "[",
    "format_custom_result_after_delimiter": "]",
    "output_format_json_quote_64bit_integers": 0,
    "output_format_json_escape_forward_slashes": 0,
    "output_format_json_validate_utf8": 1,
    "output_format_decimal_trailing_zeros": 1,
    "session_timezone": "UTC",
    # Remembers granules of earlier queries: what a query reads would depend on what was asked before it.
    "use_query_condition_cache": 0,
}
ERROR = re.compile(r"Code: (\d+)\. (?:DB::Exception: )?(.*?)(?: \(([A-Z][A-Z0-9_]+)\))?\s*$", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """One query's rows, already encoded, and what it cost."""

    columns: list[str]
    types: list[str]
    rows_json: bytes
    row_count: int
    read_rows: int
    read_bytes: int
    elapsed_s: float


@dataclass(frozen=True)
class Cost:
    """What ClickHouse logged of one query."""

    status: str
    exception_code: int
    read_rows: int
    read_bytes: int
    result_rows: int
    result_bytes: int
    memory_usage: int
    cpu_microseconds: int
    real_time_microseconds: int
    query_duration_ms: int


@dataclass(frozen=True)
class Progress:
    """How far a running query is; the members are PostHog's."""

    bytes_read: int
    rows_read: int
    estimated_rows_total: int
    time_elapsed: float
    active_cpu_time: int


class ClickHouseError(Exception):
    """ClickHouse refused or stopped a statement."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(f"Code: {code}. {message} ({name})")
        self.code = code
        self.name = name
        self.message = message


class ClickHouse:
    """The one engine of this process.

    Sessions on one path run their queries truly in parallel, while one session runs them one after another
    (measured on chDB 26.9: two 3 s queries take 3 s or 6 s). So each statement borrows a session of its own.
    """

    def __init__(self, data_dir: Path) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="posthog-emulator-rows-")
        config = Path(self._scratch.name) / "config.xml"
        config.write_text(CONFIG, encoding="utf-8")
        self._path = f"{data_dir}?config-file={config}"
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sessions: list[Any] = []
        self._lock = threading.Lock()
        self._files = 0
        for statement in DDL:
            self.execute(statement)

    def run(self, sql: str, *, settings: Mapping[str, object] = {}, query_id: str = "") -> Answer:
        """Answer one SELECT; with an id it is logged and can be cancelled. Blocks: call it from a thread."""
        sql = sql.strip().rstrip(";")
        given = dict(settings) | ({"log_comment": query_id, "log_queries": 1} if query_id else {})
        with self._session() as session:
            described = _query(session, f"DESCRIBE TABLE ({sql}){_settings(OUTPUT)}", "JSONCompactEachRow")
            declared = [orjson.loads(line) for line in described.bytes().split(b"\n") if line]
            types = [str(row[1]) for row in declared]
            try:
                shown = _as_json(sql, types)
            except NoJsonFormError:
                if _query(session, f"{sql}{_settings(given)}", "RowBinary").rows_read():
                    raise
                shown = f"SELECT '' FROM ({sql})"  # no row has nothing that cannot be written
            result = _query(session, shown + _settings({**given, **OUTPUT}), "CustomSeparated")
            return Answer(
                columns=[str(row[0]) for row in declared],
                types=types,
                rows_json=bytes(result.bytes()),
                row_count=result.rows_read(),  # chDB's name for the rows of the result
                read_rows=result.storage_rows_read(),
                read_bytes=result.storage_bytes_read(),
                elapsed_s=result.elapsed(),
            )

    def number(self, sql: str) -> int:
        """Run a SELECT of one number."""
        return int(orjson.loads(self.run(sql).rows_json)[0][0])

    def execute(self, sql: str) -> None:
        """Run a statement that has no answer, such as INSERT … SELECT."""
        with self._session() as session:
            _query(session, sql, "Null")

    def insert(self, table: str, rows: pa.Table) -> None:
        """Append rows; columns that are not given take the table's defaults."""
        if rows.num_rows == 0:
            return
        columns = ", ".join(f"`{name}`" for name in rows.column_names)
        path = self._new_file()
        try:
            # The fastest way in by two to three times, against Python(), Arrow files and send_insert.
            pq.write_table(rows, path, compression="NONE", use_dictionary=False, write_statistics=False)
            # Without optimize_on_insert=0 duplicates of one call would be merged before anyone can see them.
            self.execute(
                f"INSERT INTO {table} ({columns}) SETTINGS optimize_on_insert = 0 "
                f"SELECT {columns} FROM file('{path}', Parquet)"
            )
        finally:
            path.unlink(missing_ok=True)

    def optimize(self, table: str) -> None:
        """Merge all parts, as on a server that had time."""
        self.execute(f"OPTIMIZE TABLE {table} FINAL")

    def cancel(self, query_id_prefix: str) -> bool:
        """Kill the queries whose ids begin so; says whether there was one."""
        with self._session() as session:
            kill = f"KILL QUERY WHERE startsWith(Settings['log_comment'], {_literal(query_id_prefix)}) ASYNC"
            return bool(_query(session, kill, "TSV").bytes())

    def progress(self, query_id_prefix: str) -> Progress | None:
        """How far the running query is whose id begins so."""
        rows = orjson.loads(
            self.run(
                "SELECT toUInt64(read_bytes), toUInt64(read_rows), toUInt64(total_rows_approx), elapsed,"
                " toUInt64(ProfileEvents['OSCPUVirtualTimeMicroseconds']) FROM system.processes"
                f" WHERE startsWith(Settings['log_comment'], {_literal(query_id_prefix)})"
            ).rows_json
        )
        return Progress(*rows[0]) if rows else None

    def costs(self, query_ids: Sequence[str]) -> dict[str, Cost]:
        """What finished queries cost, by id: from ClickHouse's own log, so stopped queries too."""
        if not query_ids:
            return {}
        self.execute("SYSTEM FLUSH LOGS")
        listed = ", ".join(_literal(one) for one in query_ids)
        rows = orjson.loads(
            self.run(
                "SELECT log_comment, toString(type), exception_code, read_rows, read_bytes, result_rows,"
                " toUInt64(result_bytes), toUInt64(memory_usage),"
                " toUInt64(ProfileEvents['OSCPUVirtualTimeMicroseconds']),"
                " toUInt64(ProfileEvents['RealTimeMicroseconds']), toUInt64(query_duration_ms)"
                f" FROM system.query_log WHERE type != 'QueryStart' AND log_comment IN ({listed})"
            ).rows_json
        )
        return {row[0]: Cost(*row[1:]) for row in rows}

    def close(self) -> None:
        """Stop what runs and close every session; the engine stops with the last one."""
        self.execute("KILL QUERY WHERE query_id != queryID() ASYNC")
        with self._lock:
            sessions, self._sessions = self._sessions, []
        for session in sessions:
            session.close()
        self._scratch.cleanup()

    @contextmanager
    def _session(self) -> Iterator[Any]:
        try:
            session = self._idle.get_nowait()
        except queue.Empty:
            with self._lock:
                session = Session(self._path)  # type: ignore[no-untyped-call]
                self._sessions.append(session)
                _query(session, "SET log_queries = 0", "Null")  # only queries with an id are logged
        try:
            yield session
        except ClickHouseError:
            # chDB 26.9 puts what a failed query had already written in front of the session's next result.
            session.query("SELECT 1", "Null")
            raise
        finally:
            self._idle.put(session)

    def _new_file(self) -> Path:
        with self._lock:
            self._files += 1
            return Path(self._scratch.name) / f"{self._files}.parquet"


def _as_json(sql: str, types: list[str]) -> str:
    names = [f"_c{n}" for n in range(len(types))]
    values = ", ".join(json_sql(name, type_name) for name, type_name in zip(names, types, strict=True))
    # Positional names, because a SELECT may name two columns alike.
    return f"SELECT {values} FROM ({sql}) AS _answer ({', '.join(names)})"


def _query(session: Any, sql: str, output_format: str) -> Any:
    try:
        return session.query(sql, output_format)
    except ChdbError as error:
        raise _to_clickhouse_error(str(error)) from None


def _to_clickhouse_error(text: str) -> ClickHouseError:
    match = ERROR.search(text)
    if match is None:
        return ClickHouseError(1001, "STD_EXCEPTION", text)
    return ClickHouseError(int(match[1]), match[3] or "UNKNOWN_EXCEPTION", match[2])


def _settings(settings: Mapping[str, object]) -> str:
    if not settings:
        return ""
    return " SETTINGS " + ", ".join(f"{name} = {_literal(value)}" for name, value in settings.items())


def _literal(value: object) -> str:
    if isinstance(value, str):
        return literals.text(value)
    if isinstance(value, bool | int):
        return str(int(value))
    return repr(value)
