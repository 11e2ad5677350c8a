"""Scenarios of speed: beside the floor, step by step; with a slow server; in a storm of faults."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from benchmarks.bench import DAYS, END, START, WARM_UP_END, Bench
from benchmarks.job import Measured
from benchmarks.programs import run_contender, run_interleaved
from benchmarks.report import Claim, Result, equal_rows, spread

STEPS = {
    "extract": ("bytes only", ("floor_extract", "connector_extract")),
    "arrow": ("extract to Arrow", ("floor_arrow", "connector_arrow")),
    "append": ("append to DuckDB", ("floor_duckdb", "connector_append")),
    "window": (
        "the default write mode, into a DuckDB that does not have the window yet",
        ("floor_duckdb", "floor_duckdb_staged", "connector_window"),
    ),
    "replace": (
        "the default write mode, into a DuckDB that has all the rows already",
        ("floor_duckdb_replaced", "connector_replaced"),
    ),
    "parquet": ("Parquet files by dlt's filesystem destination", ("floor_parquet", "connector_parquet")),
}
"""Scenarios beside the floor: what they do, and who runs; the floor first."""

ROWS = 500_000
"""Of one load: what a commit of `run_sync` and `run_backfill` has."""

LEAST_SHARES = {
    "append": {"floor_duckdb": 0.85},
    "window": {"floor_duckdb": 0.6, "floor_duckdb_staged": 0.85},
    "replace": {"floor_duckdb_replaced": 0.85},
}
"""Of each floor's rows/s, what the connector is to reach."""

MOST_MB = 700
"""Of the connector before DuckDB's own load."""

MEASURED_FRESH = ("append", "window")
"""Where DuckDB has loaded next to nothing before in the same process."""

LATENCY_S, TINY_LATENCY_S = 1.5, 0.05
LEAST_GAIN = 2.2
STORM = {"probability": 0.2, "path": "query"}
STORM_PAGE_ROWS = 2_000
"""Few, so that there are enough requests to fail."""

TINY_KINDS = (
    "429_seconds",
    "500",
    "cut",
    "reset",
    "not_json",
    "error_envelope",
    "512",
    "error_field",
    "stale",
)
"""Of faults; after one of the others the connector waits for half a minute."""


def step(name: str) -> Callable[[Bench], Result]:
    """The scenario of that name in `STEPS`."""
    what, contenders = STEPS[name]

    def scenario(bench: Bench) -> Result:
        replayed = bench.replayed(bench.size(ROWS))
        jobs = {contender: (contender, replayed.job) for contender in contenders}
        if not bench.is_tiny:  # uncounted: the replaying server learns the answers
            run_interleaved(jobs, 1)
        measured = run_interleaved(jobs, bench.runs)
        return Result(
            name,
            f"{what}: {replayed.rows:,} events, pages of {replayed.job.page_rows:,} replayed from memory, "
            f"median of {bench.runs} (min to max).",
            ("contender", "rows/s", "of the floor", "seconds", "MB before load", "MB at most"),
            _lines(measured, replayed.rows),
            [equal_rows(measured, expected=replayed.rows), *_claims(name, measured)],
            measured,
        )

    return scenario


def look_ahead(bench: Bench) -> Result:
    """Every query waits; how much of that do more queries in flight hide?"""
    replayed = bench.replayed(bench.size(1_000_000))
    latency_s = TINY_LATENCY_S if bench.is_tiny else LATENCY_S
    jobs = {
        f"look-ahead {depth}": ("connector_read", replace(replayed.job, look_ahead=depth))
        for depth in ((1, 3) if bench.is_tiny else (1, 2, 3))
    }
    if not bench.is_tiny:
        run_contender("connector_read", replayed.job)
    replayed.wait_longer(latency_s)
    measured = run_interleaved(jobs, bench.runs)
    replayed.wait_longer(0)
    seconds = {label: statistics.median(run.seconds for run in runs) for label, runs in measured.items()}
    sequential_s = seconds["look-ahead 1"]
    gain = sequential_s / seconds["look-ahead 3"]
    return Result(
        "look_ahead",
        f"dlt's extract step with {latency_s} s of latency per query: {replayed.rows:,} events in "
        f"{len(replayed.job.queries)} pages of {replayed.job.page_rows:,} at most, replayed from memory, "
        f"median of {bench.runs} (min to max).",
        ("queries in flight", "seconds", "times sequential"),
        [
            [label, spread([run.seconds for run in runs], ".1f"), f"{sequential_s / seconds[label]:.2f}"]
            for label, runs in measured.items()
        ],
        [
            equal_rows(measured, expected=replayed.rows),
            Claim(f"3 in flight: at least {LEAST_GAIN} times sequential", f"{gain:.2f}", gain >= LEAST_GAIN),
        ],
        measured,
    )  # fmt: skip


def storm(bench: Bench) -> Result:
    """A fifth of all requests fail; nothing may change but the time."""
    project = bench.emulator.project(events=bench.size(200_000), days=DAYS, end=END)
    bench.emulator.optimize()
    job = replace(
        bench.job(bench.emulator.url, project, page_rows=STORM_PAGE_ROWS), warm_up={"end": WARM_UP_END}
    )
    weather = STORM | ({"kinds": TINY_KINDS} if bench.is_tiny else {})
    measured: dict[str, list[Measured]] = {"calm": [], "storm": []}
    counts = []
    for seed in range(1, bench.runs + 1):
        measured["calm"].append(run_contender("connector_window", job))
        stormy = replace(job, storm=weather | {"seed": seed})
        measured["storm"].append(run_contender("connector_window", stormy))
        counts.append(project.control("DELETE", "storm"))
    rows = project.count_rows(START, END)
    faults, requests = (sum(count[name] for count in counts) for name in ("faults", "requests"))
    return Result(
        "storm",
        f"{rows:,} events from the emulator into DuckDB, pages of {job.page_rows:,}; {faults} of {requests} "
        f"requests failed in the storms; median of {bench.runs} (min to max).",
        ("weather", "seconds"),
        [[label, spread([run.seconds for run in runs], ".1f")] for label, runs in measured.items()],
        [equal_rows(measured, expected=rows)],
        {"measured": measured, "storms": counts},
    )


def _lines(measured: Mapping[str, Sequence[Measured]], rows: int) -> list[list[str]]:
    rates = {name: [rows / run.seconds for run in runs] for name, runs in measured.items()}
    floor = statistics.median(next(iter(rates.values())))
    return [
        [
            name,
            spread(rates[name]),
            f"{statistics.median(rates[name]) / floor:.2f}",
            spread([run.seconds for run in runs], ".2f"),
            _most([run.before_load_mb for run in runs]),
            _most([run.peak_mb for run in runs]),
        ]
        for name, runs in measured.items()
    ]


def _claims(name: str, measured: Mapping[str, Sequence[Measured]]) -> Iterator[Claim]:
    seconds = {who: statistics.median(run.seconds for run in runs) for who, runs in measured.items()}
    ours = next(who for who in measured if who.startswith("connector"))
    for floor, least in LEAST_SHARES.get(name, {}).items():
        share = seconds[floor] / seconds[ours]
        yield Claim(f"{ours}: at least {least} of {floor}", f"{share:.2f}", share >= least)
    known = [run.before_load_mb for run in measured[ours] if run.before_load_mb is not None]
    if known and name in MEASURED_FRESH:
        yield Claim(f"{ours}: under {MOST_MB} MB", f"{max(known):,.0f}", max(known) < MOST_MB)


def _most(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):,.0f}" if known else ""
