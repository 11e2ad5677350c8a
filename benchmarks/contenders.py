"""What is timed, each in a process of its own: `python -m benchmarks.contenders NAME URL DIR …`.

Prints one line of JSON: rows, seconds without imports, peak memory in MB of the whole process, and of the
part before the database begins to load.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import dlt
import duckdb
import httpx
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import json as pa_json

from posthog_source import EventsConfig, posthog_source

QUERIES_FILE = "queries.json"
"""The page queries that the connector asked, recorded by the warm-up."""


class Measured(NamedTuple):
    """Rows loaded, the seconds that took, and the peak memory in MB before the database began to load."""

    rows: int
    seconds: float
    peak_mb_before_load: float


def floor(url: str, folder: Path, *, has_staging: bool = False) -> Measured:
    """The same pages -> Arrow -> Parquet -> DuckDB, by hand, two requests in flight.

    With `has_staging`, the rows are copied once more inside DuckDB, as every merge must.
    """
    started = time.monotonic()
    queries = json.loads((folder / QUERIES_FILE).read_text())
    parquet = str(folder / "floor.parquet")
    rows = 0
    with httpx.Client(base_url=url, timeout=300) as client, ThreadPoolExecutor(2) as executor:

        def fetch(query: object) -> pa.Table:
            headers = {"Authorization": f"Bearer {os.environ['BENCHMARK_API_KEY']}"}
            body = orjson.dumps({"query": query, "refresh": "force_blocking"})
            answer = client.post("/api/projects/1/query/", content=body, headers=headers)
            return _parse(answer.content)

        writer = None
        for page in executor.map(fetch, queries):
            writer = writer or pq.ParquetWriter(parquet, page.schema)
            writer.write_table(page)
            rows += page.num_rows
        if writer:
            writer.close()
    before_load_mb = peak_mb()
    with duckdb.connect(str(folder / "floor.duckdb")) as connection:
        connection.execute(f"CREATE TABLE staging AS SELECT * FROM read_parquet('{parquet}')")
        if has_staging:
            connection.execute("CREATE TABLE events AS SELECT * FROM staging")
    return Measured(rows, time.monotonic() - started, before_load_mb)


def floor_with_staging(url: str, folder: Path) -> Measured:
    """The floor of any merge."""
    return floor(url, folder, has_staging=True)


def connector(url: str, folder: Path, *, write_mode: str = "window") -> Measured:
    """The connector, as a user runs it."""
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    os.environ["DATA_WRITER__FILE_MAX_BYTES"] = "268435456"
    started = time.monotonic()
    pipeline = dlt.pipeline(
        "benchmark",
        pipelines_dir=str(folder / "pipelines"),
        destination=dlt.destinations.duckdb(str(folder / "connector.duckdb")),
        dataset_name="posthog_data",
    )
    source = posthog_source(
        project_id=1,
        api_key=os.environ["BENCHMARK_API_KEY"],
        host=url,
        start_date=os.environ["BENCHMARK_START"],
        end_date=os.environ["BENCHMARK_END"],
        events=EventsConfig(write_mode=write_mode),
        queries_per_minute=1_000_000,
        queries_per_hour=1_000_000,
    )
    pipeline.extract(source.with_resources("events"))
    pipeline.normalize()
    before_load_mb = peak_mb()
    pipeline.load()
    seconds = time.monotonic() - started
    with pipeline.sql_client() as client:
        found = client.execute_sql("SELECT count(*) FROM posthog_data.events")
    for step in pipeline.last_trace.steps if pipeline.last_trace else ():
        print(f"  {step.step}: {(step.finished_at - step.started_at).total_seconds():.2f} s", file=sys.stderr)
    return Measured(int(found[0][0]) if found else 0, seconds, before_load_mb)


def connector_append(url: str, folder: Path) -> Measured:
    """The connector, only adding."""
    return connector(url, folder, write_mode="append")


CONTENDERS: dict[str, Callable[[str, Path], Measured]] = {
    function.__name__: function for function in (floor, floor_with_staging, connector_append, connector)
}


def _parse(body: bytes) -> pa.Table:
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
    for name in ("timestamp", "created_at"):
        columns[name] = pc.cast(columns[name], pa.timestamp("us", "UTC"))
    return pa.table(columns)


def peak_mb() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    name, url, folder = sys.argv[1:]
    measured = CONTENDERS[name](url, Path(folder))
    result = {"rows": measured.rows, "seconds": measured.seconds, "peak_mb": peak_mb()}
    result["peak_mb_before_load"] = measured.peak_mb_before_load
    print(json.dumps({key: round(value, 3) for key, value in result.items()}))
