"""dlt's progress, drawn with rich: a bar for each table whose total is known.

Not here: totals (`resources` announces them).
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from dlt.common.runtime.collector_base import Collector
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

QUIET_COUNTERS = ("Resources", "Files", "Items")
"""dlt's own counters that say nothing to a person."""


class RichProgress(Collector):
    """Pass it as `dlt.pipeline(progress=…)`, and use it as a context manager around the runs."""

    def __init__(self, console: Console) -> None:
        self.step = ""
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(  # noqa: D102 - dlt's protocol
        self,
        name: str,
        inc: int = 1,
        total: int | None = None,
        inc_total: int | None = None,
        message: str | None = None,  # noqa: ARG002
        label: str | None = None,
    ) -> None:
        if label or name in QUIET_COUNTERS or name.startswith("_dlt"):
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(
                f"{self.step.split()[0].lower():9} {name}", total=total
            )
        task = self._tasks[name]
        known = self._progress.tasks[self._progress.task_ids.index(task)].total
        if inc_total and known is not None:
            self._progress.update(task, total=known + inc_total)
        self._progress.advance(task, inc)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: dlt copies a pipeline's collector for each step, and the terminal is one."""
        return self

    def _start(self, step: str) -> None:
        self.step = step

    def _stop(self) -> None:
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._tasks.clear()
