"""The bare floor, by hand: the connector's page queries, two requests in flight; no dlt, none of our code."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import duckdb
import httpx
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv
from pyarrow import json as pa_json

from benchmarks.job import Job, Measured, peak_mb

Answer = TypeVar("Answer")

TIMES = frozenset({"timestamp", "created_at", "created_at_text"})
"""Columns that are cast."""

SUMS = "count(*), count(DISTINCT uuid), bit_xor(hash(uuid::VARCHAR))"
"""SQL of what must be equal among contenders."""


def floor_extract(job: Job, folder: Path) -> Measured:  # noqa: ARG001 - as the others
    """Bytes only."""
    started = time.monotonic()
    received = sum(len(body) for body in _iter_bodies(job))
    seconds = time.monotonic() - started
    return Measured(same=f"{received} bytes", seconds=seconds, peak_mb=peak_mb())


def floor_arrow(job: Job, folder: Path) -> Measured:  # noqa: ARG001 - as the others
    """Pages -> Arrow."""
    started = time.monotonic()
    rows = sum(page.num_rows for page in _iter_pages(job))
    seconds = time.monotonic() - started
    return Measured(same=f"{rows} rows", seconds=seconds, peak_mb=peak_mb())


def floor_parquet(job: Job, folder: Path) -> Measured:
    """Pages -> Arrow -> one Parquet file."""
    started = time.monotonic()
    parquet = _write(job, folder)
    seconds = time.monotonic() - started
    peak = peak_mb()
    return Measured(same=sums(f"read_parquet('{parquet}')"), seconds=seconds, peak_mb=peak)


def floor_duckdb(job: Job, folder: Path) -> Measured:
    """Pages -> Arrow -> Parquet -> DuckDB."""
    return _load(job, folder, "CREATE TABLE events AS SELECT * FROM read_parquet('{parquet}')")


def floor_persons(job: Job, folder: Path) -> Measured:
    """The same, of persons."""
    return _load(
        job, folder, "CREATE TABLE persons AS SELECT * FROM read_parquet('{parquet}')", table="persons"
    )


def floor_duckdb_staged(job: Job, folder: Path) -> Measured:
    """The same, the rows copied once more inside DuckDB, as every merge must."""
    return _load(
        job,
        folder,
        "CREATE TABLE staging AS SELECT * FROM read_parquet('{parquet}')",
        "CREATE TABLE events AS SELECT * FROM staging",
    )


def floor_duckdb_replaced(job: Job, folder: Path) -> Measured:
    """By way of a staging table into a table that has the rows already, as a merge does."""
    floor_duckdb(job, folder)
    return _load(
        job,
        folder,
        "CREATE TABLE staging AS SELECT * FROM read_parquet('{parquet}')",
        "BEGIN",
        "DELETE FROM events WHERE timestamp IS NOT NULL",
        "INSERT INTO events SELECT * FROM staging",
        "COMMIT",
    )


def floor_postgres(job: Job, folder: Path) -> Measured:  # noqa: ARG001 - as the others
    """Pages -> Arrow -> COPY."""
    import psycopg2

    started = time.monotonic()
    with psycopg2.connect(job.address) as connection, connection.cursor() as cursor:
        is_new = True
        for page in _iter_pages(job):
            if is_new:
                cursor.execute("DROP TABLE IF EXISTS floor")
                cursor.execute(f"CREATE TABLE floor ({', '.join(map(_postgres_column, page.schema))})")
                is_new = False
            buffer = io.BytesIO()
            csv.write_csv(page, buffer, csv.WriteOptions(include_header=False))
            buffer.seek(0)
            cursor.copy_expert("COPY floor FROM STDIN (FORMAT CSV)", buffer)
    seconds = time.monotonic() - started
    return Measured(same=postgres_sums(job.address, "floor"), seconds=seconds, peak_mb=peak_mb())


def floor_delta(job: Job, folder: Path) -> Measured:
    """Pages -> Arrow -> a Delta table."""
    import deltalake

    started = time.monotonic()
    pages = iter(_iter_pages(job))
    first = next(pages)
    batches = (batch for page in chain([first], pages) for batch in page.to_batches())
    reader = pa.RecordBatchReader.from_batches(first.schema, batches)
    deltalake.write_deltalake(str(folder / "delta"), reader)
    seconds = time.monotonic() - started
    peak = peak_mb()
    return Measured(same=sums(f"read_parquet('{folder}/delta/*.parquet')"), seconds=seconds, peak_mb=peak)


def postgres_sums(address: str, table: str) -> str:
    """What must be equal among contenders, of a table in Postgres."""
    import psycopg2

    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT uuid FROM {table}")
        uuids = pa.table({"uuid": [uuid for (uuid,) in cursor]})
    with duckdb.connect() as database:
        database.register("events", uuids)
        rows, different, checksum = database.execute(f"SELECT {SUMS} FROM events").fetchall()[0]
    return f"{rows} rows, {different} uuids, checksum {checksum}"


def sums(table: str, database: Path | None = None) -> str:
    """What must be equal among contenders."""
    with duckdb.connect(str(database or ":memory:")) as connection:
        rows, uuids, checksum = connection.execute(f"SELECT {SUMS} FROM {table}").fetchall()[0]
    return f"{rows} rows, {uuids} uuids, checksum {checksum}"


def _iter_bodies(job: Job) -> Iterator[bytes]:
    yield from _iter_answers(job, bytes)


def _iter_pages(job: Job) -> Iterator[pa.Table]:
    yield from _iter_answers(job, _parse)


def _iter_answers(job: Job, read: Callable[[bytes], Answer]) -> Iterator[Answer]:
    """Answers in the queries' order, as many requests in flight as the job says."""
    headers = {"Authorization": f"Bearer {job.api_key}"}
    with httpx.Client(base_url=job.url, timeout=300) as client, ThreadPoolExecutor(job.look_ahead) as pool:

        def fetch(query: object) -> Answer:
            body = orjson.dumps({"query": query, "refresh": "force_blocking"})
            answer = client.post(f"/api/projects/{job.project_id}/query/", content=body, headers=headers)
            return read(answer.raise_for_status().content)

        queries = iter(job.queries)
        in_flight = deque(pool.submit(fetch, query) for query in islice(queries, job.look_ahead))
        while in_flight:
            answer = in_flight.popleft().result()
            in_flight.extend(pool.submit(fetch, query) for query in islice(queries, 1))
            yield answer


def _load(job: Job, folder: Path, *statements: str, table: str = "events") -> Measured:
    """Pages -> Arrow -> Parquet -> DuckDB, which is told what to do with the file."""
    started = time.monotonic()
    parquet = _write(job, folder)
    before_load_mb = peak_mb()
    with duckdb.connect(str(folder / "floor.duckdb")) as connection:
        for statement in statements:
            connection.execute(statement.format(parquet=parquet))
    seconds = time.monotonic() - started
    peak = peak_mb()
    with duckdb.connect(str(folder / "floor.duckdb")) as connection:
        rows = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
    return Measured(
        same=sums("events", folder / "floor.duckdb") if table == "events" else f"{rows} rows",
        seconds=seconds,
        peak_mb=peak,
        before_load_mb=before_load_mb,
    )


def _write(job: Job, folder: Path) -> Path:
    parquet = folder / "floor.parquet"
    writer = None
    for page in _iter_pages(job):
        writer = writer or pq.ParquetWriter(parquet, page.schema)
        writer.write_table(page)
    if writer:
        writer.close()
    return parquet


def _postgres_column(column: pa.Field) -> str:
    """Its definition; JSON as such."""
    is_time = pa.types.is_timestamp(column.type)
    kind = "timestamptz" if is_time else "jsonb" if column.name == "properties" else "text"
    return f'"{column.name}" {kind}'


def _parse(body: bytes) -> pa.Table:
    """An answer as a table: every cell is text, times are cast."""
    schema = pa.schema([("results", pa.list_(pa.list_(pa.string()))), ("columns", pa.list_(pa.string()))])
    parsed = pa_json.read_json(
        pa.BufferReader(body),
        read_options=pa_json.ReadOptions(block_size=len(body) + 1, use_threads=False),
        parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    names = parsed.column("columns").combine_chunks().flatten().to_pylist()
    rows = parsed.column("results").combine_chunks().flatten()
    cells = rows.flatten()
    first = pa.array(range(0, len(cells), len(names)), pa.int64())
    columns = {name: cells.take(pc.add(first, i)) for i, name in enumerate(names)}
    for name in TIMES & columns.keys():
        zoned = pc.replace_substring_regex(columns[name], r"(\d)$", r"\1Z")  # persons' times have no zone
        columns[name] = pc.cast(zoned, pa.timestamp("us", "UTC"))
    return pa.table(columns)
