"""REST lists -> rows under the table's declared schema.

Lists page by offset over an order that changes while it is read, so a page proves nothing: tables with a
cursor are paged by it, the others are compared with the list's own count. Not here: the socket
(`client`), warehouses (`resources`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pyarrow as pa

from posthog_source.arrow import items_to_table, parse_instant
from posthog_source.client import Client
from posthog_source.errors import MissingRowsError, NotFoundError, UnexpectedAnswerError
from posthog_source.tables import Column, Pass, RestTable, snake_case

LIST_ATTEMPTS = 3
SECRET = re.compile("secret|token|password|credential|api_key|private_key")
"""Names of members that are never exported unless a table names them."""

MICROSECOND = timedelta(microseconds=1)

Item = Mapping[str, object]

logger = logging.getLogger("posthog_source")


def fetch_all(client: Client, table: RestTable, *, project_id: int) -> tuple[RestTable, pa.Table]:
    """Every row of a list, once, and the table with the columns that the server has beside its own.

    Raises:
        MissingRowsError: Each of three listings held fewer items than its own count.
        NotFoundError, AccessDeniedError, QuotaSpentError, …: See `errors`.
    """
    rows: dict[object, Item] = {}
    for each in table.passes or (Pass(params={}),):
        for item in _fetch_pass(client, table, each.params):
            rows |= {_id(row, table): {**row, **each.stamps} for row in _rows_of(item, table)}
    found = _with_unknown(table, rows.values())
    return found, items_to_table(list(rows.values()), found, project_id=project_id)


def iter_changed(
    client: Client, table: RestTable, *, project_id: int, since: datetime | None
) -> Iterator[tuple[pa.Table, datetime]]:
    """Pages of items in the order of the table's cursor, from `since` on, each with its newest cursor.

    An item edited meanwhile moves to the end and comes again; the newest version is the last to come.
    """
    seen: dict[object, datetime] = {}
    limit = table.page_rows
    while True:
        params = {**table.params, "limit": str(limit)}
        if since is not None:
            # Exclusive, so a microsecond earlier takes the edge again (rest_api.md 4.4).
            params[table.cursor_param] = (since - MICROSECOND).astimezone(UTC).isoformat()
        page = client.get(table.path, params, rate=table.rate_class)
        items = {_id(item, table): item for item in _results(page)}
        fresh = [item for key, item in items.items() if seen.get(key) != _instant(item, table)]
        if fresh:
            seen |= {key: _instant(item, table) for key, item in items.items()}
            since = max(seen.values())
            seen = {key: at for key, at in seen.items() if at == since}  # what the next page repeats
            yield items_to_table(fresh, table, project_id=project_id), since
        if not page.get("next"):
            return
        if not fresh:
            limit *= 2  # more items share one instant than fit a page


def _fetch_pass(client: Client, table: RestTable, params: Mapping[str, str]) -> list[Item]:
    """One listing, compared with its own count."""
    asked = {**table.params, **params} | ({"limit": str(table.page_rows)} if table.page_rows else {})
    for _ in range(LIST_ATTEMPTS):
        items: dict[object, Item] = {}
        count = 0
        for page in _iter_list(client, table, asked):
            items |= {_id(item, table): item for item in _results(page)}
            count = _int(page.get("count"))
        if len(items) >= count:
            return [item for item in items.values() if not item.get(table.added_by)]
        logger.warning("%s: %d of %d came, the list changed; listing again.", table.name, len(items), count)
    raise MissingRowsError(
        f"{table.name}: PostHog counts {count} and lists {len(items)}, {LIST_ATTEMPTS} times over. "
        "Run again later."
    )


def _iter_list(client: Client, table: RestTable, params: Mapping[str, str]) -> Iterator[Item]:
    try:
        yield from client.list(table.path, params, rate=table.rate_class)
    except NotFoundError:
        if not table.is_optional:
            raise
        yield from client.list(table.path, params, rate=table.rate_class, parent="environments")


def _rows_of(item: Item, table: RestTable) -> Iterator[Item]:
    """The item itself, or those in it."""
    if not table.nested:
        yield item
        return
    for row in cast("list[Item]", item.get(table.nested) or []):
        yield {**row, table.parent: item["id"]}


def _with_unknown(table: RestTable, rows: Iterable[Item]) -> RestTable:
    """The table with a column of text for each member that it does not name and that has a value.

    Text, since one day's number may be another day's name, and a column keeps its type.
    """
    if not table.is_open:
        return table
    known = {column.source for column in table.columns} | table.dropped | {table.added_by}
    met = dict.fromkeys(name for row in rows for name, value in row.items() if value is not None)
    names = {column.name for column in table.columns}
    new: dict[str, Column] = {}
    for member in met:
        name = snake_case(member)
        if member not in known and name and name not in names and not SECRET.search(name):
            new[name] = Column(name, "text", f"PostHog's {member}", field=member)
    return replace(table, columns=(*table.columns, *new.values()))


def _results(page: Item) -> list[Item]:
    return cast("list[Item]", page["results"])  # a list, or the client had not handed the page on


def _id(item: Item, table: RestTable) -> object:
    name = table.column(table.primary_key[-1]).source
    if name not in item:
        raise UnexpectedAnswerError(f"{table.name}: PostHog lists an item without an {name}.")
    return item[name]


def _instant(item: Item, table: RestTable) -> datetime:
    """An item's cursor; one that was never edited sorts first."""
    text = item.get(table.cursor or "")
    try:
        return parse_instant(text) if isinstance(text, str) else datetime.min.replace(tzinfo=UTC)
    except ValueError:
        raise UnexpectedAnswerError(
            f"{table.name}.{table.cursor}: PostHog answered a value that is no timestamp."
        ) from None


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
