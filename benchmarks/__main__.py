"""Runs the contenders in turn and prints their medians: `python -m benchmarks --events 200000 --runs 3`."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from benchmarks.contenders import CONTENDERS, QUERIES_FILE

RESULTS = Path(__file__).parent / "results"
START, END = "2026-01-01T00:00:00Z", "2026-01-31T00:00:00Z"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--properties-bytes", type=int, default=900, help="mean; a row is about 300 more")
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    with emulator() as posthog, replaying(posthog["url"]) as url:
        generate(posthog, events=chosen.events, properties_bytes=chosen.properties_bytes)
        os.environ |= {
            "BENCHMARK_API_KEY": posthog["api_key"],
            "BENCHMARK_START": START,
            "BENCHMARK_END": END,
        }
        queries = warm_up(url)
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(chosen.runs):
            for name, runs in measured.items():
                runs.append(run(name, url, queries))
    report(measured, vars(chosen))


@contextmanager
def emulator() -> Iterator[Mapping[str, Any]]:
    with program("posthog_emulator", "--stop-with-stdin") as line:
        yield json.loads(line)


@contextmanager
def replaying(upstream: str) -> Iterator[str]:
    with program("benchmarks.replay", upstream) as line:
        yield line.strip()


@contextmanager
def program(module: str, *arguments: str) -> Iterator[str]:
    """A Python program that has printed its first line."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline() if process.stdout else ""
        finally:
            process.terminate()


def generate(posthog: Mapping[str, Any], *, events: int, properties_bytes: int) -> None:
    body = {
        "seed": 1, "events": events, "persons": max(1, events // 10), "days": 30, "end": END,
        "properties_bytes": properties_bytes, "nasty": False,
    }  # fmt: skip
    url = f"{posthog['url']}/_emulator"
    httpx.post(f"{url}/projects/1/generate", json=body, timeout=600).raise_for_status()
    httpx.post(f"{url}/optimize", timeout=600).raise_for_status()


def warm_up(url: str) -> list[Any]:
    """One uncounted run: the replaying server learns the answers, and we learn the questions for pages."""
    run("connector", url, [])
    asked = httpx.get(f"{url}/_questions", timeout=60).json()
    return [query for query in asked if query and query["name"] == "posthog_source events"]


def run(name: str, url: str, queries: list[Any]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / QUERIES_FILE).write_text(json.dumps(queries))
        command = [sys.executable, "-m", "benchmarks.contenders", name, url, folder]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(printed.splitlines()[-1])
    print(f"{name:20} {result}", file=sys.stderr)
    return result


def report(measured: Mapping[str, list[dict[str, float]]], arguments: Mapping[str, object]) -> None:
    rates = {name: [r["rows"] / r["seconds"] for r in runs] for name, runs in measured.items()}
    floor = statistics.median(rates["floor"])
    print(f"{'':20} {'rows/s':>9} {'min':>9} {'max':>9} {'of floor':>9} {'MB':>9} {'with load':>9}")
    for name, values in rates.items():
        before_load_mb = max(r["peak_mb_before_load"] for r in measured[name])
        peak_mb = max(r["peak_mb"] for r in measured[name])
        median = statistics.median(values)
        spread = f"{median:9,.0f} {min(values):9,.0f} {max(values):9,.0f}"
        print(f"{name:20} {spread} {median / floor:9.2f} {before_load_mb:9,.0f} {peak_mb:9,.0f}")
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpus": os.cpu_count(), "python": platform.python_version()} | {
        name: version(name) for name in ("dlt", "duckdb", "pyarrow")
    }
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    result = {"at": at, "machine": machine, "arguments": arguments, "runs": measured}
    (RESULTS / "events_to_duckdb.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
