"""A dlt resource per query of a person's own.

Without a cursor each sync replaces all rows. With one it reads from the last sync's newest value on, that
value's rows included, and replaces rows of the same key; without a key, all rows from there on. Not here:
what a query's table is (`query_tables`), its pages (`query_pages`), how dlt is told (`destination`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import dlt
import pyarrow as pa
from dlt.sources import DltResource

from posthog_source.arrow import last_row
from posthog_source.client import Client
from posthog_source.config import Settings
from posthog_source.destination import MERGE, Target, build_resource, claim_state, metered
from posthog_source.query import Cell
from posthog_source.query_pages import fetch_table, iter_pages
from posthog_source.query_tables import (
    QuerySettings,
    declare,
    describe,
    explain_change,
    remember,
    start_of,
)
from posthog_source.tables import QueryTable

MADE_BY, NEWEST = "made_by", "newest"
"""Keys of the state: what the rows were made by; the cursor that the last sync came to."""

logger = logging.getLogger("posthog_source")


def build_query(
    client: Client, settings: Settings, query: QuerySettings, *, clock: Callable[[], datetime]
) -> DltResource:
    """A query as a dlt resource; each evaluation reads all that there is to read, in one commit."""

    def rows() -> Iterator[Any]:
        target = Target.current(settings)
        state = claim_state(settings) if query.cursor else dlt.current.resource_state()
        with metered(client, settings) as own:
            table = fetch_table(own, query)
            if change := explain_change(state.get(MADE_BY), table):
                logger.warning(change)
            now, start = clock(), _start(target, table, query, state)
            pages = iter_pages(
                own, table, project_id=settings.project_id, page_rows=query.page_rows, start=start
            )
            newest = _Newest(table)
            yield from target.write(
                table, newest.watch(pages), _disposition(target, table, start, settings.project_id)
            )
            state[MADE_BY] = describe(table)
            if newest.cell is not None:
                state[NEWEST] = remember(newest.cell, now=now)

    return build_resource(declare(query), rows)


class _Newest:
    """The largest cursor of pages that are ordered by it."""

    def __init__(self, table: QueryTable) -> None:
        self._names = [table.cursor] if table.cursor else []
        self.cell: Cell | None = None

    def watch(self, pages: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The pages."""
        for page in pages:
            self.cell = next(iter(last_row(page, self._names)), None) if page.num_rows else self.cell
            yield page


def _start(
    target: Target, table: QueryTable, query: QuerySettings, state: dict[str, Any]
) -> tuple[Cell, ...]:
    if table.cursor and not target.can_merge:
        logger.warning(
            "%s: %s cannot replace rows, so all of them are read each time.", table.name, target.destination
        )
        return ()
    return start_of(state.get(NEWEST), table, lookback_s=query.lookback_s)


def _disposition(target: Target, table: QueryTable, start: tuple[Cell, ...], project_id: int) -> Any:
    """How rows from a place on are written."""
    if table.disposition == "merge" and target.can_merge:
        return MERGE
    if not start or table.cursor is None:
        return target.replace(project_id)
    scope = f"{target.is_project(project_id)} AND {target.is_at_least(table.cursor, start[0])}"
    return target.disposition("window", scope)
