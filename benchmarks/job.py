"""What one contender is given (`Job`) and gives back (`Measured`), as JSON between processes."""

from __future__ import annotations

import json
import re
import resource
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NO_LIMIT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Job:
    """One contender's work.

    Attributes:
        url: Of the emulator or of the replaying server.
        project_id: Whose events.
        api_key: Of the emulator.
        start: First instant, ISO.
        end: First instant not to read.
        queries: Page queries that the connector asked, for contenders that ask no questions of their own.
        page_rows: Rows of a page.
        look_ahead: Requests in flight.
        rows_per_commit: As in `run_backfill`.
        warm_up: What is different about a smaller job that comes first, by attribute; None for no warm-up.
        address: Of a database's server, where the contender loads into one.
        storm: Faults that begin after the warm-up: the body of the emulator's `storm` call.
    """

    url: str
    project_id: int
    api_key: str
    start: str
    end: str
    queries: list[dict[str, Any]] = field(default_factory=list)
    page_rows: int = 25_000
    look_ahead: int = 2
    rows_per_commit: int = 500_000
    warm_up: dict[str, Any] | None = None
    address: str = ""
    storm: dict[str, Any] | None = None

    def save(self, path: Path) -> None:
        """Writes it to a file."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Job:
        """Reads it from a file."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What came of it.

    Attributes:
        same: What must be equal among contenders: rows, different uuids and a checksum of them, as far as
            the contender can know.
        seconds: Without imports and warm-up.
        peak_mb: Peak memory of the whole process.
        before_load_mb: The same before the database began to load, where there is such a moment.
        extra: Anything else worth keeping.
    """

    same: str
    seconds: float
    peak_mb: float
    before_load_mb: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def peak_mb() -> float:
    """Peak memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with what the parent process had at its peak
        (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(kilobytes) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
