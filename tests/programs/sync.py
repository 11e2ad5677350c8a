"""A process of its own that syncs or backfills, and says which step it is in: made to be killed.

It is forked from a server that has imported everything and opened nothing, since a test of fifty kills would
else mostly import. DuckDB, sockets and threads come after the fork.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, get_args

import dlt
from dlt.common.runtime.collector_base import Collector
from dlt.extract import DltSource
from dlt.sources import DltResource

from posthog_source import posthog_source, run_backfill, run_sync
from posthog_source.client import Client
from posthog_source.config import EventsSettings, PeopleSettings, ResultsSettings, build_settings
from posthog_source.resources import build_resources

Step = Literal["extract", "normalize", "load", "between"]
STEPS: tuple[Step, ...] = get_args(Step)

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.programs.sync", "duckdb", "pytest"])

_REAPING = threading.Lock()
"""How a process ended can be read once, and to start one reads it of all that have: of two threads, one that
joins a process while the other starts one may find nothing, which multiprocessing takes for 255."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        folder: Of the DuckDB file and the working directory.
        source: Arguments of the source.
        rows_per_commit: As `run_sync`.
        tables: Of a sync.
        backfill: Further arguments of `run_backfill`; None for a sync.
        now: What the clock says; None for the real one.
    """

    folder: Path
    source: Mapping[str, Any]
    rows_per_commit: int
    tables: tuple[str, ...] = ("events",)
    backfill: Mapping[str, Any] | None = None
    now: datetime | None = None

    @property
    def warehouse(self) -> Path:
        """The DuckDB file."""
        return self.folder / "warehouse.duckdb"

    @property
    def working_directory(self) -> Path:
        """Dlt's."""
        return self.folder / "pipelines"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """That a step of the n-th commit of a process began, and when, on the monotonic clock."""

    commit: int
    step: Step
    at_s: float


@dataclass
class Process:
    """A run under way."""

    job: Job
    moments: list[Moment] = field(default_factory=list)
    said: str = ""

    def __post_init__(self) -> None:
        self._ear, mouth = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=_run, args=(self.job, mouth), daemon=True)
        self.started_s = time.monotonic()
        with _REAPING:
            self._process.start()
        mouth.close()

    def follow_to(self, commit: int, step: Step) -> bool:
        """Listens until a step begins; False when the run ends before."""
        while not any((each.commit, each.step) == (commit, step) for each in self.moments):
            if not self._hear():
                return False
        return True

    def follow_until(self, at_s: float) -> bool:
        """Listens until that instant of the monotonic clock; False when the run ends before."""
        while self._ear.poll(max(0.0, at_s - time.monotonic())):
            if not self._hear():
                return False
        return True

    def kill(self) -> bool:
        """SIGKILL, and hears out what it had said; whether it had not yet come to its end."""
        self._process.kill()
        self._hear_out()
        return self._process.exitcode == -9

    def finish(self) -> None:
        """Waits for the end, which must be a good one."""
        self._hear_out()
        assert (self._process.exitcode, self.said) == (0, "done")

    def _hear_out(self) -> None:
        while self._hear():
            pass
        wait([self._process.sentinel])
        with _REAPING:
            self._process.join()
        self._ear.close()

    def _hear(self) -> bool:
        try:
            said = self._ear.recv()
        except (EOFError, OSError):
            return False
        if isinstance(said, Moment):
            self.moments.append(said)
        else:
            self.said = said
        return True


def source_at(now: datetime) -> Callable[..., DltSource]:
    """`posthog_source` as if it were then."""

    def source(
        events: EventsSettings = EventsSettings(),  # noqa: B008 - frozen
        people: PeopleSettings = PeopleSettings(),  # noqa: B008
        tables: Sequence[str] = (),
        **given: Any,
    ) -> DltSource:
        settings = build_settings(**given)

        @dlt.source(name="posthog", section="posthog", schema_contract={"data_type": "freeze"})
        def posthog() -> Iterable[DltResource]:
            return build_resources(
                Client(settings),
                settings,
                events=events,
                people=people,
                results=ResultsSettings(),
                clock=lambda: now,
            )

        return posthog().with_resources(*tables) if tables else posthog()

    return source


class _Teller(Collector):
    """Tells of a pipeline's steps as they begin; `between` is what follows a load."""

    def __init__(self, mouth: Connection) -> None:
        self._mouth = mouth
        self._commit = 1

    def update(self, *_: Any, **__: Any) -> None:
        """Rows are not told of."""

    def _start(self, step: str) -> None:
        kind = step.split(" ", 1)[0].lower()
        self._tell(next(each for each in STEPS if each == kind))

    def _stop(self) -> None:
        if self.step.startswith("Load "):
            self._tell("between")
            self._commit += 1

    def _tell(self, step: Step) -> None:
        self._mouth.send(Moment(commit=self._commit, step=step, at_s=time.monotonic()))


def _run(job: Job, mouth: Connection) -> None:
    try:
        pipeline = dlt.pipeline(
            "posthog",
            pipelines_dir=str(job.working_directory),
            destination=dlt.destinations.duckdb(str(job.warehouse)),
            dataset_name="posthog_data",
            progress=_Teller(mouth),
        )
        arguments = {"rows_per_commit": job.rows_per_commit, **job.source}
        if job.backfill is None:
            run_sync(
                pipeline, source_at(job.now) if job.now else posthog_source, tables=job.tables, **arguments
            )
        else:
            run_backfill(pipeline, **job.backfill, **arguments)
    except BaseException as error:
        mouth.send(f"{type(error).__name__}: {error}")
        raise
    mouth.send("done")
