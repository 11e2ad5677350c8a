"""One contender in a process of its own: `python -m benchmarks.contender NAME FOLDER`.

Reads `job.json` in the folder and prints one line of JSON, a `Measured`. The work is done once on a small
share before it is timed, by floors and connector alike: a first call of pyarrow, DuckDB or dlt imports
hundreds of modules, which says nothing about rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import httpx

from benchmarks.job import Job, Measured

JOB_FILE = "job.json"

Contender = Callable[[Job, Path], Measured]


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    contender, job = find(name), Job.load(folder / JOB_FILE)
    if job.warm_up:
        contender(replace(job, **job.warm_up), _made(folder / "warm_up"))
    if job.storm:
        storm = f"{job.url}/_emulator/projects/{job.project_id}/storm"
        httpx.post(storm, json=job.storm, timeout=60).raise_for_status()
    print(json.dumps(asdict(contender(job, _made(folder / "timed")))))


def find(name: str) -> Contender:
    """A contender; the floors' processes never import dlt."""
    if name.startswith("floor_"):
        from benchmarks import floors as module
    else:
        from benchmarks import connectors as module  # type: ignore[no-redef]
    contender: Contender = getattr(module, name)
    return contender


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
