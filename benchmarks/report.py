"""What a scenario found: a Markdown table, its claims with whether they hold, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.job import Measured

PACKAGES = (
    "posthog-source", "dlt", "duckdb", "pyarrow", "httpx", "orjson", "chdb-core", "uvicorn",
)  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """Something said of the connector, and what was measured."""

    text: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Result:
    """What one scenario found.

    Attributes:
        scenario: Its name.
        title: What was done, with sizes.
        headings: Of the table.
        rows: Of the table.
        claims: Each with whether it holds.
        runs: All that was measured, for the JSON file.
    """

    scenario: str
    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    claims: Sequence[Claim]
    runs: Any = field(default_factory=dict)

    def as_markdown(self) -> str:
        """For the documentation."""
        text = f"### {self.scenario}\n\n{self.title}\n\n{_table(self.headings, self.rows)}\n"
        if self.claims:
            lines = [[claim.text, claim.measured, _yes(claim.holds)] for claim in self.claims]
            text += f"\n{_table(('claim', 'measured', 'holds'), lines)}\n"
        return text

    def save(self, folder: Path, arguments: Mapping[str, object]) -> None:
        """Writes `{scenario}.json`."""
        found = {
            "scenario": self.scenario,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": {name: version(name) for name in PACKAGES},
            "arguments": arguments,
            "title": self.title,
            "table": {"headings": self.headings, "rows": self.rows},
            "claims": [asdict(claim) for claim in self.claims],
            "runs": self.runs,
        }
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(found, indent=1, default=_plain, ensure_ascii=False)
        (folder / f"{self.scenario}.json").write_text(text + "\n")


def machine() -> dict[str, Any]:
    """What it ran on, and how busy that is."""
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    memory = re.search(r"MemTotal:\s+(\d+)", meminfo.read_text()) if meminfo.exists() else None
    return {
        "system": platform.platform(),
        "cpu": model[1] if model else platform.processor(),
        "cpus": os.cpu_count(),
        "memory_gb": round(int(memory[1]) / 2**20, 1) if memory else None,
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
    }


def equal_rows(measured: Mapping[str, Iterable[Measured]], *, expected: int) -> Claim:
    """Whether all contenders, in all runs, came to the same."""
    found = sorted({run.same for runs in measured.values() for run in runs})
    is_equal = len(found) == 1
    counts = f"{expected} rows, {expected} uuids"
    if is_equal and "uuids" in found[0]:
        is_equal = found[0].startswith(f"{counts},")
    elif is_equal and "rows" in found[0]:
        is_equal = found[0] == f"{expected} rows"
    return Claim("rows are equal", "; ".join(found), is_equal)


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Median, and from where to where."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)} to {format(max(values), form)})"


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} is no plain value")
