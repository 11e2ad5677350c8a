"""Scenario memory: ten times the rows in the same memory, and how many rows a commit should have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from benchmarks.bench import DAYS, END, START, Bench
from benchmarks.job import Job, Measured
from benchmarks.programs import Project, run_interleaved
from benchmarks.report import Claim, Result, equal_rows, spread

TIMES = 10
COMMITTED_SHARE = 4
"""Tenths of the rows that the question of the commit's size is asked with."""

ROWS_PER_COMMIT = (200_000, 500_000, 1_000_000)
MOST_GROWTH = 1.15
MOST_MB = 600


def memory(bench: Bench) -> Result:
    """`run_backfill` from the emulator's disk, of all rows and of the first tenth."""
    few = bench.size(500_000, tiny=250)
    project = bench.emulator.project(
        shape="dense", events=few * TIMES, persons=max(1, few // 5), days=DAYS, end=END, properties_bytes=1000
    )
    bench.emulator.optimize()
    measured, claims = {}, []
    for share, jobs in _jobs(bench, project).items():
        found = run_interleaved(jobs, bench.runs)
        rows = project.count_rows(START, _end(share))
        claim = equal_rows(found, expected=rows)
        claims.append(replace(claim, text=f"{claim.text}: {rows:,}"))
        measured.update(found)
    return Result(
        "memory",
        f"`run_backfill` from the emulator's disk, ~1 kB an event, {few * TIMES / DAYS:,.0f} a day, pages of "
        f"{bench.page_rows(25_000):,}; median of {bench.runs} (min to max). Parquet files: the connector's "
        "own memory; DuckDB: with the database's, which loads in the same process.",
        ("destination, rows, rows per commit", "commits", "requests", "rows/s", "MB at most"),
        [_line(label, runs) for label, runs in measured.items()],
        [*_claims(measured), *claims],
        measured,
    )


def _jobs(bench: Bench, project: Project) -> Mapping[int, dict[str, tuple[str, Job]]]:
    """What to run, by the tenths of the rows that it reads."""
    warm_up_end = datetime.fromisoformat(START) + timedelta(hours=2)
    job = replace(
        bench.job(bench.emulator.url, project),
        warm_up=None if bench.is_tiny else {"end": warm_up_end.isoformat()},
    )
    size = job.rows_per_commit
    scale = job.page_rows / 25_000
    sizes = ROWS_PER_COMMIT[:1] if bench.is_tiny else ROWS_PER_COMMIT
    contenders = {"Parquet files": "backfill_parquet"}
    if not bench.is_tiny:
        contenders["DuckDB"] = "backfill_duckdb"
    jobs = {
        share: {
            f"{label}, {share / TIMES:.0%}, {int(size * scale):,}": (
                name,
                replace(job, end=_end(share), rows_per_commit=int(size * scale)),
            )
            for label, name in contenders.items()
        }
        for share in (1, TIMES)
    }
    jobs[COMMITTED_SHARE] = {
        f"DuckDB, {COMMITTED_SHARE / TIMES:.0%}, {int(size * scale):,}": (
            "backfill_duckdb",
            replace(job, end=_end(COMMITTED_SHARE), rows_per_commit=int(size * scale)),
        )
        for size in sizes
    }
    return jobs


def _end(tenths: int) -> str:
    """Where so many tenths of the rows end."""
    return (datetime.fromisoformat(START) + timedelta(days=DAYS * tenths / TIMES)).isoformat()


def _line(label: str, runs: Sequence[Measured]) -> list[str]:
    last = runs[-1].extra
    return [
        label,
        str(last["commits"]),
        str(last["requests"]),
        spread([run.extra["rows"] / run.seconds for run in runs]),
        spread([run.peak_mb for run in runs]),
    ]


def _claims(measured: Mapping[str, Sequence[Measured]]) -> list[Claim]:
    """Of the connector's own memory."""
    own = [runs for label, runs in measured.items() if label.startswith("Parquet files")]
    once, often = (statistics.median(run.peak_mb for run in runs) for runs in own)
    most = max(run.peak_mb for run in own[1])
    return [
        Claim(
            f"{TIMES} times the rows take at most {MOST_GROWTH - 1:.0%} more memory",
            f"{once:,.0f} to {often:,.0f} MB: {often / once - 1:+.0%}",
            often <= once * MOST_GROWTH,
        ),
        Claim(f"and less than {MOST_MB} MB", f"{most:,.0f} MB", most < MOST_MB),
    ]
