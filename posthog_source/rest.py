"""REST lists -> rows under the table's declared schema.

Lists page by offset over an order that changes while it is read, so a page proves nothing: tables with a
cursor are paged by it, the others are compared with the list's own count. Not here: the socket
(`client`), warehouses (`resources`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

import pyarrow as pa

from posthog_source.arrow import items_to_table, parse_instant
from posthog_source.client import Client
from posthog_source.errors import MissingRowsError, UnexpectedAnswerError
from posthog_source.tables import RestTable

LIST_ATTEMPTS = 3
MICROSECOND = timedelta(microseconds=1)

Item = Mapping[str, object]

logger = logging.getLogger("posthog_source")


def fetch_all(client: Client, table: RestTable, *, project_id: int) -> pa.Table:
    """Every item of a list, once.

    Raises:
        MissingRowsError: Each of three listings held fewer items than its own count.
    """
    params = {**table.params, "limit": str(table.page_rows)}
    for _ in range(LIST_ATTEMPTS):
        items: dict[object, Item] = {}
        count = 0
        for page in client.list(table.path, params, rate=table.rate_class):
            items |= {_id(item, table): item for item in _results(page)}
            count = _int(page.get("count"))
        if len(items) >= count:
            return items_to_table(list(items.values()), table, project_id=project_id)
        logger.warning("%s: %d of %d came, the list changed; listing again.", table.name, len(items), count)
    raise MissingRowsError(
        f"{table.name}: PostHog counts {count} and lists {len(items)}, {LIST_ATTEMPTS} times over. "
        "Run again later."
    )


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
