"""The scenario of destinations: each beside its own bare floor, the same pages by its plain client."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.job import Measured
from benchmarks.programs import run_interleaved
from benchmarks.report import Result, equal_rows, spread
from benchmarks.servers import running_postgres

ROWS = 200_000

PAIRS = {
    "duckdb": ("floor_duckdb", "connector_append"),
    "postgres": ("floor_postgres", "connector_postgres"),
    "filesystem": ("floor_parquet", "connector_parquet"),
    "delta": ("floor_delta", "connector_delta"),
}
"""Contenders by destination, the floor first."""

NEEDED = {"postgres": "psycopg2", "delta": "deltalake"}
"""Packages of the extra `warehouses`."""


def destinations(bench: Bench) -> Result:
    """Events into tables that are new."""
    replayed = bench.replayed(bench.size(ROWS))
    with running_postgres() as address:
        absent = {name for name, package in NEEDED.items() if importlib.util.find_spec(package) is None}
        absent |= {"postgres"} if address is None else set()
        pairs = {name: pair for name, pair in PAIRS.items() if name not in absent}
        job = replace(replayed.job, address=address or "")
        jobs = {contender: (contender, job) for pair in pairs.values() for contender in pair}
        if not bench.is_tiny:  # uncounted: the replaying server learns the answers
            run_interleaved({"connector_append": jobs["connector_append"]}, 1)
        measured = run_interleaved(jobs, bench.runs)
    left_out = f" Not installed: {', '.join(sorted(absent))}." if absent else ""
    return Result(
        "destinations",
        f"events into new tables of each destination: {replayed.rows:,} events, pages of {job.page_rows:,} "
        f"replayed from memory, median of {bench.runs} (min to max).{left_out}",
        ("destination", "floor, rows/s", "connector, rows/s", "of the floor", "MB, floor", "MB, connector"),
        [_line(name, pair, measured, replayed.rows) for name, pair in pairs.items()],
        [equal_rows(measured, expected=replayed.rows)],
        measured,
    )


def _line(
    name: str, pair: tuple[str, str], measured: Mapping[str, Sequence[Measured]], rows: int
) -> list[str]:
    floor, ours = ([rows / run.seconds for run in measured[contender]] for contender in pair)
    peaks = (f"{max(run.peak_mb for run in measured[contender]):,.0f}" for contender in pair)
    share = statistics.median(ours) / statistics.median(floor)
    return [name, spread(floor), spread(ours), f"{share:.2f}", *peaks]
