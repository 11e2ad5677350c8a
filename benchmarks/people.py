"""Scenario people: all persons into DuckDB beside the floor; memory for ten times as many; bytes read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import httpx

from benchmarks.bench import END, Bench
from benchmarks.job import Job, Measured
from benchmarks.programs import Project, replaying, run_contender, run_interleaved
from benchmarks.report import Claim, Result, equal_rows, spread

PERSONS = 1_000_000
TIMES = 10
PERSON_BYTES = 550
"""Of properties, as in read_cost.md."""

PAGE_QUERY = "posthog_source persons"
LEAST_SHARE = 0.8
MOST_GROWTH = 1.15
MOST_READ = 1.3


def people(bench: Bench) -> Result:
    """A first sweep of persons, and of their distinct ids."""
    many = bench.size(PERSONS, tiny=300)
    projects = {count: _make(bench, count) for count in (max(1, many // TIMES), many)}
    bench.emulator.optimize()
    with replaying(bench.emulator.url) as url:
        jobs = {count: _recorded(bench, url, project) for count, project in projects.items()}
        if not bench.is_tiny:
            jobs = {count: replace(job, warm_up=_few(jobs)) for count, job in jobs.items()}
        speed = run_interleaved(
            {name: (name, jobs[many]) for name in ("floor_persons", "connector_persons")}, bench.runs
        )
        memory = run_interleaved(
            {f"{count:,} persons": ("connector_persons_parquet", job) for count, job in jobs.items()},
            bench.runs,
        )
    reads = {
        table: _read(projects[many], bench.job(bench.emulator.url, projects[many]), table)
        for table in ("persons", "person_distinct_ids")
    }
    return Result(
        "people",
        f"A first sweep of {many:,} persons, each with {PERSON_BYTES} bytes of properties, into DuckDB and, "
        f"for memory, into Parquet files, pages of {jobs[many].page_rows:,} replayed from memory; median of "
        f"{bench.runs} (min to max).",
        ("contender", "rows/s", "MB at most"),
        [_line(label, many, runs) for label, runs in (speed | memory).items()],
        [equal_rows(speed, expected=many), *_claims(speed, memory), *_read_claims(reads)],
        {"measured": speed | memory, "reads": reads},
    )


def _make(bench: Bench, persons: int) -> Project:
    project = bench.emulator.project(
        events=1_000, persons=persons, days=1, end=END, person_bytes=PERSON_BYTES
    )
    project.control("PATCH", "", {"settings": {"person_last_seen": True}})
    return project


def _recorded(bench: Bench, url: str, project: Project) -> Job:
    """What to ask the replaying server, which knows all the answers then."""
    job = bench.job(url, project)
    before = len(_questions(url))
    run_contender("connector_persons", job)
    asked = _questions(url)[before:]
    return replace(job, queries=[query for query in asked if query and query["name"] == PAGE_QUERY])


def _few(jobs: Mapping[int, Job]) -> dict[str, Any]:
    """A warm-up with the smaller project."""
    job = jobs[min(jobs)]
    return {"project_id": job.project_id, "api_key": job.api_key, "queries": job.queries}


def _questions(url: str) -> list[dict[str, Any] | None]:
    found: list[dict[str, Any] | None] = httpx.get(f"{url}/_questions", timeout=60).json()
    return found


def _read(project: Project, job: Job, table: str) -> Mapping[str, float]:
    """What a sweep of a table costs, by the emulator's journal."""
    project.control("DELETE", "requests")
    measured = run_contender(f"connector_{table}", job)
    stats = project.control("GET", "stats")
    return {
        "requests": stats["requests"],
        "read_bytes": stats["read_bytes"],
        "exported_bytes": measured.extra["bytes"],
    }


def _line(label: str, rows: int, runs: Sequence[Measured]) -> list[str]:
    rows = int(runs[-1].extra.get("rows", rows))
    return [label, spread([rows / run.seconds for run in runs]), f"{max(run.peak_mb for run in runs):,.0f}"]


def _claims(speed: Mapping[str, Sequence[Measured]], memory: Mapping[str, Sequence[Measured]]) -> list[Claim]:
    floor_s, ours_s = (statistics.median(run.seconds for run in runs) for runs in speed.values())
    once, often = (statistics.median(run.peak_mb for run in runs) for runs in memory.values())
    return [
        Claim(
            f"at least {LEAST_SHARE} of the floor", f"{floor_s / ours_s:.2f}", floor_s / ours_s >= LEAST_SHARE
        ),
        Claim(
            f"{TIMES} times the persons take at most {MOST_GROWTH - 1:.0%} more memory",
            f"{once:,.0f} to {often:,.0f} MB: {often / once - 1:+.0%}",
            often <= once * MOST_GROWTH,
        ),
    ]


def _read_claims(reads: Mapping[str, Mapping[str, float]]) -> list[Claim]:
    return [
        Claim(
            f"{table}: reads at most {MOST_READ} times what it exports",
            f"{cost['read_bytes'] / cost['exported_bytes']:.2f} in {cost['requests']:.0f} requests",
            cost["read_bytes"] <= MOST_READ * cost["exported_bytes"],
        )
        for table, cost in reads.items()
    ]
