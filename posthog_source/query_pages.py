"""Pages of a person's own SELECT: every row exactly once, whatever the size of a page.

Pages are asked for in the order of the page key, each from the last one's last key on. The rows of that key
are handed on with the later page, which has all of them: so rows that share a key are never parted, and two
of one primary key always meet. Not here: HogQL (`query`), tables of the catalogue, which are read along
PostHog's own sort key (`pagination`), dlt (`queries`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from posthog_source.arrow import Answer, last_row, read_answer, read_types, replace_nul, to_table
from posthog_source.client import Client
from posthog_source.config import MAX_PAGE_ROWS
from posthog_source.errors import Body, QueryRefusedError, SettingsError, StuckCursorError, TooHeavyError
from posthog_source.query import Cell, Query, build_proof, build_result_page, build_result_types
from posthog_source.query_tables import QuerySettings, complete
from posthog_source.tables import QueryTable

logger = logging.getLogger("posthog_source")

T = TypeVar("T")


def fetch_table(client: Client, query: QuerySettings) -> QueryTable:
    """The table that a query makes, by the types that PostHog tells.

    Raises:
        SettingsError: PostHog does not take the query, with its own words; or see `complete`.
    """
    asking = _Asking(client)
    try:
        types = asking.ask(build_result_types(query.name, query.statement), read_types)
    except QueryRefusedError as error:
        raise SettingsError(f"{query.where} is no query that PostHog takes. {error}") from error
    return complete(query, types)


def iter_pages(
    client: Client, table: QueryTable, *, project_id: int, page_rows: int, start: Sequence[Cell] = ()
) -> Iterator[pa.Table]:
    """All rows of a query from a place on, in page-key order, under the table's schema.

    Args:
        client: Whom to ask.
        table: From `fetch_table`.
        project_id: Stamped on each row.
        page_rows: Rows asked for in one answer.
        start: Leading values of the page key.

    Raises:
        SettingsError: The rows cannot be told apart well enough to be read in pages, or exactly once.
        StuckCursorError, UnexpectedAnswerError, ApiError, …: See `errors`.
    """
    asking = _Asking(client)
    while True:
        answer = asking.ask(build_result_page(table, start=start, limit=page_rows), read_answer)
        page = to_table(_checked(answer, table), table, project_id=project_id)
        _check_keys(page, table)
        page_rows = asking.prove(answer.rows, page_rows)
        is_last = answer.rows < page_rows or _is_all(table, answer.rows)
        kept = page.num_rows if is_last else _whole_keys(page, table, page_rows)
        if kept:
            yield replace_nul(page.slice(0, kept), table)
        if is_last:
            return
        following = last_row(page, table.page_key)
        if following == tuple(start):
            raise StuckCursorError(
                f"{table.name}: a page ends with the row that it began with. Please report this."
            )
        start = following


class _Asking:
    """Asks a query's questions, in the background from the first one on that PostHog finds too heavy."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._is_heavy = False

    def ask(self, query: Query, read: Callable[[Body], T]) -> T:
        if not self._is_heavy:
            try:
                return self._client.query(query, read)
            except TooHeavyError as error:
                logger.warning("%s: asking in the background. %s", query.name, error)
                self._is_heavy = True
        return self._client.query_async(query, read)

    def prove(self, received: int, limit: int) -> int:
        """How many rows PostHog hands out of `limit`: a short page is the last only if it could be longer.

        PostHog lowers a LIMIT above its cap in silence (query_api.md 2.1). Asking once for rows that cost
        nothing tells; asking on would run a person's query again.
        """
        proof = self._client.proof
        if proof.rows <= received < limit:
            cap = self.ask(build_proof(limit), read_answer).rows
            proof.rows = max(proof.rows, cap)
            return max(received, cap)
        proof.rows = max(proof.rows, received)
        return limit


def _checked(answer: Answer, table: QueryTable) -> Answer:
    """The answer, whose keys are not null."""
    for column, cells in zip(table.asked, answer.columns, strict=False):
        if column.name in table.page_key and cells.null_count:
            raise SettingsError(
                f"The query {table.name} answers null for {column.name}, its cursor or in its primary_key. "
                "Leave such rows out (IS NOT NULL) or give them a value (ifNull)."
            )
    return answer


def _check_keys(page: pa.Table, table: QueryTable) -> None:
    """Refuses keys that are no numbers, and two rows of one primary key, which would become one."""
    for name in table.page_key:
        if table.column(name).kind == "float" and not pc.all(pc.is_finite(page.column(name))).as_py():
            raise SettingsError(
                f"The query {table.name} answers NaN or infinity for {name}, its cursor or in its "
                "primary_key. Leave such rows out (isFinite)."
            )
    again = _repeats(page, table.page_key) if table.primary_key else None
    if again is not None:
        raise SettingsError(
            f"The query {table.name} has two rows with {_shown(table.page_key, again)}. Set its primary_key "
            "to columns that no two rows have alike."
        )


def _repeats(page: pa.Table, names: Sequence[str]) -> tuple[Cell, ...] | None:
    """A key that two rows have, in a page ordered by it."""
    is_same = pa.array([True] * max(0, page.num_rows - 1), pa.bool_())
    for name in names:
        values = page.column(name)
        is_same = pc.and_(is_same, pc.equal(values.slice(1), values.slice(0, max(0, page.num_rows - 1))))
    row = pc.index(is_same, value=True).as_py()
    return last_row(page.slice(0, row + 1), names) if row >= 0 else None


def _is_all(table: QueryTable, rows: int) -> bool:
    """Whether a page has all rows, by the query's own LIMIT."""
    limit = table.statement.limit
    return limit is not None and rows >= limit


def _whole_keys(page: pa.Table, table: QueryTable, page_rows: int) -> int:
    """How many rows of a full page come before those of its last key, of which there may be more."""
    if table.statement.has_limit:
        raise SettingsError(
            f"The query {table.name} has a LIMIT of its own and fills a page of {page_rows} rows; a second "
            f"page might see another choice of rows. Raise page_rows (to {MAX_PAGE_ROWS} at most), or lower "
            "the LIMIT, or leave it out and set a primary_key."
        )
    if not table.page_key:
        raise SettingsError(
            f"The query {table.name} has {page_rows} rows or more, and no order to read the others in. Set "
            "its primary_key to columns that no two rows have alike."
        )
    last = last_row(page, table.page_key)
    is_last = pa.array([True] * page.num_rows, pa.bool_())
    for name, cell in zip(table.page_key, last, strict=True):
        is_last = pc.and_(is_last, pc.equal(page.column(name), pa.scalar(cell, page.schema.field(name).type)))
    kept = int(pc.index(is_last, value=True).as_py())
    if kept == 0:
        raise SettingsError(
            f"The query {table.name} has {page_rows} rows or more with {_shown(table.page_key, last)}, which "
            "cannot be told apart. Set its primary_key, or raise page_rows."
        )
    return kept


def _shown(names: Sequence[str], cells: Sequence[Cell]) -> str:
    return ", ".join(f"{name} = {cell}" for name, cell in zip(names, cells, strict=True))
