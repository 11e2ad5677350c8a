"""The programs that a benchmark starts: the emulator, the replaying server, and contenders."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.contender import JOB_FILE
from benchmarks.job import NO_LIMIT, Job, Measured

ROOT = Path(__file__).resolve().parents[1]
LONGEST_CALL_S = 3_600
RATE_LIMITS = {name: [NO_LIMIT, NO_LIMIT] for name in ("api_queries", "default", "clickhouse")}


@dataclass(frozen=True)
class Emulator:
    """A running emulator."""

    url: str
    http: httpx.Client

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Calls its control API."""
        answer = self.http.request(method, f"/_emulator/{path}", json=body)
        if not answer.is_success:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def sql(self, text: str) -> list[list[Any]]:
        """Asks ClickHouse itself."""
        rows: list[list[Any]] = self.control("POST", "sql", {"sql": text})["rows"]
        return rows

    def optimize(self) -> None:
        """Merges all parts."""
        self.control("POST", "optimize")

    def project(self, **plan: Any) -> Project:
        """A project with a seeded product's events, without limits of rate; `plan` as in `generate`."""
        made = self.control("POST", "projects", {"settings": {"rate_limits": RATE_LIMITS}})
        project = Project(self, made["project_id"], made["api_key"])
        project.control("POST", "generate", {"seed": 1, "nasty": False, "cohorts": 1, "insights": 1, **plan})
        return project


@dataclass(frozen=True)
class Project:
    """One of its projects."""

    emulator: Emulator
    id: int
    api_key: str

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Calls its control API."""
        return self.emulator.control(method, f"projects/{self.id}/{path}".rstrip("/"), body)

    def select(self, columns: str, tail: str = "") -> list[list[Any]]:
        """Asks ClickHouse about the project's events."""
        return self.emulator.sql(f"SELECT {columns} FROM events WHERE team_id = {self.id} {tail}")

    def count_rows(self, start: str, end: str) -> int:
        """Its events in a window."""
        bounds = " AND ".join(
            f"timestamp {sign} parseDateTime64BestEffort('{at}', 6, 'UTC')"
            for sign, at in ((">=", start), ("<", end))
        )
        return int(self.select("count()", f"AND {bounds}")[0][0])


@contextmanager
def running_emulator() -> Iterator[Emulator]:
    """An emulator of one's own; its tables are on disk and deleted with it."""
    with _program("posthog_emulator", "--stop-with-stdin") as line:
        url = json.loads(line)["url"]
        with httpx.Client(base_url=url, timeout=LONGEST_CALL_S) as http:
            yield Emulator(url, http)


@contextmanager
def replaying(upstream: str) -> Iterator[str]:
    """A server that asks another each question once; its address."""
    with _program("benchmarks.replay", upstream) as line:
        yield line.strip()


def run_contender(name: str, job: Job) -> Measured:
    """A contender in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="posthog-benchmark-") as folder:
        job.save(Path(folder) / JOB_FILE)
        command = [sys.executable, "-m", "benchmarks.contender", name, folder]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    measured = Measured(**json.loads(printed.splitlines()[-1]))
    print(f"{name:22} {measured}", file=sys.stderr, flush=True)
    return measured


def run_interleaved(jobs: Mapping[str, tuple[str, Job]], runs: int) -> dict[str, list[Measured]]:
    """Each contender so many times, in turn."""
    measured: dict[str, list[Measured]] = {label: [] for label in jobs}
    for _ in range(runs):
        for label, (name, job) in jobs.items():
            measured[label].append(run_contender(name, job))
    return measured


@contextmanager
def _program(module: str, *arguments: str) -> Iterator[str]:
    """A Python program that has printed its first line."""
    command = [sys.executable, "-m", module, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        try:
            yield process.stdout.readline() if process.stdout else ""
        finally:
            process.terminate()
