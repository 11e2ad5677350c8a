"""dlt's progress: drawn with rich, a bar for each table whose total is known; shared by pipelines at once.

Not here: totals (`destination` announces them).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

from dlt.common.runtime.collector_base import Collector
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from posthog_source.rate_limit import calls_left

QUIET_COUNTERS = ("Resources", "Files", "Items")
"""dlt's own counters that say nothing to a person."""


class RichProgress(Collector):
    """Pass it as `dlt.pipeline(progress=…)`. Silent where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.step = ""
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._bars = self._new_bars()

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
            step = self.step.partition(" ")[0].lower()
            self._tasks[name] = self._bars.add_task(f"{step:9} {name}", total=total)
        elif inc_total:
            known = self._bars.tasks[self._tasks[name]].total or 0
            self._bars.update(self._tasks[name], total=known + inc_total)
        self._bars.advance(self._tasks[name], inc)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: dlt copies a pipeline's collector for each step, and the terminal is one."""
        return self

    def _start(self, step: str) -> None:
        self.step = step
        self._bars.start()

    def _stop(self) -> None:
        self._bars.stop()
        self._bars = self._new_bars()
        self._tasks.clear()

    def _new_bars(self) -> Progress:
        return _Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _SpeedColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )


@contextmanager
def shared_progress(collector: Collector) -> Iterator[Collector]:
    """A collector for pipelines that run at once, drawn by the given one as what they read together.

    dlt's own begin and end with each step of a pipeline, which is one too many where two are under way.
    """
    with collector("Extract posthog"):
        yield _SharedProgress(collector)


class _Bars(Progress):
    """With a line below that says how much of PostHog's hourly limit is left."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        left = calls_left("queries")
        if left is not None:
            yield Text(f"  {left:,} queries left this hour")


class _SpeedColumn(ProgressColumn):
    """Of a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")


class _SharedProgress(Collector):
    """Hands on what is counted while pipelines extract, each in a thread of its own."""

    def __init__(self, collector: Collector) -> None:
        self.step = ""
        self._collector = collector
        self._lock = threading.Lock()
        self._has_total: dict[str, bool] = {}
        self._thread = threading.local()

    def update(
        self,
        name: str,
        inc: int = 1,
        total: int | None = None,
        inc_total: int | None = None,
        message: str | None = None,  # noqa: ARG002
        label: str | None = None,
    ) -> None:
        if label or not getattr(self._thread, "extracts", False):
            return
        more = inc_total if total is None else total
        with self._lock:
            has_total = self._has_total.get(name)
            self._has_total.setdefault(name, more is not None)
            if more is None or has_total is False:  # a counter that began without a total has none
                self._collector.update(name, inc)
            elif has_total:
                self._collector.update(name, inc, inc_total=more)
            else:
                self._collector.update(name, inc, total=more)

    def _start(self, step: str) -> None:
        self._thread.extracts = step.startswith("Extract")

    def _stop(self) -> None:
        self._thread.extracts = False
