"""status: what runs have done, how far each table has been read, and what waits to be loaded.

Reads the warehouse and dlt's state; asks PostHog for nothing. Not here: the command line (`cli`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import dlt
from dlt.common.pipeline import TPipelineState
from dlt.destinations.exceptions import DatabaseUndefinedRelation
from dlt.pipeline.state_sync import load_pipeline_state_from_destination

from posthog_source.events import utc_now
from posthog_source.pipeline import database_file, destination_of, require_whole
from posthog_source.runs import RUNS_TABLE
from posthog_source.windows import EPOCH

RUN_COLUMNS = ("started_at", "finished_at", "kind", "status", "rows", "rows_left", "requests", "error")


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a pipeline stands.

    Attributes:
        pipeline: Its name.
        destination: Where to.
        runs: The last ones, newest first: what `_posthog_runs` says, by `RUN_COLUMNS`.
        cursors: By table: up to where it has been read, of those that are read on from there.
        lag: How far events are behind now; None where none were read.
        has_pending_data: Whether a run that was stopped has left something that the next one deals with
            first.
    """

    pipeline: str
    destination: str
    runs: tuple[Mapping[str, Any], ...]
    cursors: Mapping[str, datetime]
    lag: timedelta | None
    has_pending_data: bool

    @property
    def next_run(self) -> str:
        """What the next sync will do, in words."""
        if not self.cursors and not self.runs:
            return "The next sync is the first: it reads everything."
        first = "drops and reads again what the last run left, then " if self.has_pending_data else ""
        events = self.cursors.get("events")
        since = f"events from {events:%Y-%m-%d %H:%M} UTC on" if events else "all events"
        return f"The next sync {first}reads {since}, and what else has changed."


def fetch_status(pipeline: dlt.Pipeline, *, runs: int = 5, clock: Callable[[], datetime] = utc_now) -> Status:
    """Looks at a pipeline; its state is the destination's where this machine has none.

    Raises:
        SettingsError: It has no destination, or one that no run can open.
        dlt.destinations.exceptions.DestinationConnectionError: The warehouse cannot be reached.
    """
    require_whole(database_file(pipeline))
    destination = destination_of(pipeline)
    cursors = _cursors(_state(pipeline))
    events = cursors.get("events")
    return Status(
        pipeline=pipeline.pipeline_name,
        destination=f"{destination.destination_name}, dataset {pipeline.dataset_name}",
        runs=_last_runs(pipeline, runs),
        cursors=cursors,
        lag=clock() - events if events else None,
        has_pending_data=pipeline.has_pending_data,
    )


def _state(pipeline: dlt.Pipeline) -> TPipelineState:
    """The destination's, or else this machine's.

    dlt's own sync_destination would empty the working directory where the dataset is named wrongly.
    """
    client: Any = pipeline.destination_client()
    with client:
        is_there = client.is_storage_initialized()
        stored = load_pipeline_state_from_destination(pipeline.pipeline_name, client) if is_there else None
    return stored or pipeline.state


def _cursors(state: TPipelineState) -> dict[str, datetime]:
    found: dict[str, datetime] = {}
    for source in state.get("sources", {}).values():
        for name, resource in source.get("resources", {}).items():
            for cursor in resource.get("incremental", {}).values():
                value = cursor.get("last_value")
                if isinstance(value, datetime) and value > EPOCH:  # else nothing has been found yet
                    found[name] = value
    return found


def _last_runs(pipeline: dlt.Pipeline, count: int) -> tuple[Mapping[str, Any], ...]:
    with pipeline.sql_client() as client:
        table = client.make_qualified_table_name(RUNS_TABLE)
        names = ", ".join(client.escape_column_name(name) for name in RUN_COLUMNS)
        try:
            with client.execute_query(f"SELECT {names} FROM {table} ORDER BY started_at DESC") as cursor:
                rows = cursor.fetchmany(count)
        except DatabaseUndefinedRelation:
            return ()
    return tuple(dict(zip(RUN_COLUMNS, row, strict=True)) for row in rows)
