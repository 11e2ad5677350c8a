"""REST lists -> rows under the table's declared schema.

Lists page by offset over an order that changes while it is read, so a page proves nothing: tables with a
cursor are paged by it, the others are compared with the list's own count. What is gone is in no list; for
tables that are not read whole, PostHog's activity log tells. Not here: the socket (`client`), warehouses
(`resources`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pyarrow as pa

from posthog_source.arrow import items_to_table, parse_instant
from posthog_source.client import Client, Parent
from posthog_source.errors import (
    MissingRowsError,
    NotFoundError,
    StuckCursorError,
    UnexpectedAnswerError,
)
from posthog_source.tables import Column, Pass, RestTable, snake_case
from posthog_source.windows import EPOCH

LIST_ATTEMPTS = 3
SECRET = re.compile("secret|token|password|credential|api_key|private_key")
"""Names of members that are never exported unless a table names them."""

MICROSECOND = timedelta(microseconds=1)

ACTIVITY_PAGE_ROWS = 1_000
"""The most that PostHog gives (rest_api.md 4.17)."""

Item = Mapping[str, object]

logger = logging.getLogger("posthog_source")


@dataclass(frozen=True)
class Activity:
    """What the activity log tells of a table's objects.

    Attributes:
        newest: When its newest entry was made; None where it has none.
        deleted: Keys of the objects that were deleted and did not come back.
        has_restored: Whether some came back, which their list does not tell.
    """

    newest: datetime | None
    deleted: tuple[object, ...] = ()
    has_restored: bool = False


def fetch_all(client: Client, table: RestTable, *, project_id: int) -> tuple[RestTable, pa.Table]:
    """Every row of a list, once, and the table with the columns that the server has beside its own.

    Raises:
        MissingRowsError: Each of three listings held fewer items than its own count.
        NotFoundError, AccessDeniedError, QuotaSpentError, …: See `errors`.
    """
    rows: dict[object, Item] = {_id(row, table): row for row in _iter_rows(client, table)}
    found = _with_unknown(table, rows.values())
    return found, items_to_table(list(rows.values()), found, project_id=project_id)


def iter_changed(
    client: Client, table: RestTable, *, project_id: int, since: datetime | None
) -> Iterator[tuple[pa.Table, datetime]]:
    """Pages of items in the order of the table's cursor, from `since` on, each with its newest cursor.

    An item edited meanwhile moves to the end and comes again; the newest version is the last to come.
    """
    if table.is_newest_first:
        yield from _iter_newest(client, table, project_id=project_id, since=since)
        return
    seen: dict[object, datetime] = {}
    limit = table.page_rows
    while True:
        params = {**table.params, "limit": str(limit)}
        if since is not None:
            # Exclusive, so a microsecond earlier takes the edge again (rest_api.md 4.4).
            params[table.cursor_param] = (since - MICROSECOND).astimezone(UTC).isoformat()
        page = next(client.list(table.path, params, rate=table.rate_class))
        items = {_id(item, table): item for item in _results(page)}
        fresh = [item for key, item in items.items() if seen.get(key) != _instant(item, table)]
        if fresh:
            seen |= {key: _instant(item, table) for key, item in items.items()}
            since = max(seen.values())
            seen = {key: at for key, at in seen.items() if at == since}  # what the next page repeats
            yield items_to_table(fresh, _with_unknown(table, fresh), project_id=project_id), since
        if not page.get("next"):
            return
        if not fresh:
            if len(items) < limit:
                raise StuckCursorError(
                    f"PostHog hands out {len(items)} of {table.path} at most, and they share one instant."
                )
            limit *= 2  # more items share one instant than fit a page


def fetch_size(client: Client, table: RestTable) -> int | None:
    """How many items there are, by the list's own count; None where it tells none.

    Of a table that is read for each of another list's items: how many those are.
    """
    if table.each is not None:
        return fetch_size(client, table.each)
    if table.answer == "counts":
        return len(client.get(table.path, table.params, rate=table.rate_class))
    counts: list[object] = []
    path, parent = _address(client, table)
    for each in table.passes or (Pass(params={}),):
        size = {"page_size": "1"} if table.is_newest_first else {"limit": "1"} if table.page_rows else {}
        page = next(_iter_list(client, table, {**table.params, **each.params, **size}, path, parent))
        counts.append(page.get("count", None if table.is_newest_first else len(_results(page))))
    known = [count for count in counts if isinstance(count, int)]
    return sum(known) if len(known) == len(counts) else None


def fetch_activity(client: Client, table: RestTable, *, since: datetime | None) -> Activity:
    """What the activity log tells of a table's objects since then; of its newest entry only, without that.

    Raises:
        QuotaSpentError, AccessDeniedError, NotFoundError: This plan, key or server has none.
    """
    params = {
        "scope": table.activity_scope,
        "page_size": str(ACTIVITY_PAGE_ROWS if since else 1),
    }
    newest: datetime | None = None
    last: dict[object, bool] = {}
    for page in client.list("activity_log/", params):
        for entry in _results(page):
            at = _instant_of(entry.get("created_at"), "activity_log.created_at")
            newest = newest or at
            if since is None or at < since:
                return _activity(newest, last)
            is_deletion = _is_deletion(entry)
            if is_deletion is not None:
                last.setdefault(_key_of(entry, table), is_deletion)
    return _activity(newest, last)


def gone_to_table(keys: Sequence[object], table: RestTable, *, project_id: int) -> pa.Table:
    """Rows of objects that are gone, of which no more than their keys is known."""
    name = table.column(table.primary_key[-1]).source
    return items_to_table([{name: key, "deleted": True} for key in keys], table, project_id=project_id)


def _activity(newest: datetime | None, last: Mapping[object, bool]) -> Activity:
    deleted = tuple(key for key, is_deletion in last.items() if is_deletion)
    return Activity(newest, deleted, has_restored=len(deleted) < len(last))


def _is_deletion(entry: Item) -> bool | None:
    """Whether an entry tells that something was deleted, or (False) that it came back; None for others.

    Older servers tell of both as changes of the member `deleted` (posthog/api/insight.py).
    """
    activity, detail = entry.get("activity"), entry.get("detail")
    if activity in ("deleted", "restored"):
        return activity == "deleted"
    changes = detail.get("changes") if isinstance(detail, dict) else None
    for change in changes or ():
        if change.get("field") == "deleted":
            return bool(change.get("after"))
    return None


def _key_of(entry: Item, table: RestTable) -> object:
    """The key of the object that an entry is about: its number, or as its address has it."""
    detail = entry.get("detail")
    if table.primary_key[-1] == "short_id" and isinstance(detail, dict):
        return detail.get("short_id") or entry.get("item_id")
    return entry.get("item_id")


def _iter_newest(
    client: Client, table: RestTable, *, project_id: int, since: datetime | None
) -> Iterator[tuple[pa.Table, datetime]]:
    """Pages of items from the newest down to `since`."""
    asked = {**table.params}
    if since is not None and table.cursor_param:
        asked[table.cursor_param] = since.astimezone(UTC).isoformat()
    for owner in list(_iter_rows(client, table.each)) if table.each else [{}]:
        for page in _pages_of_one(client, table, owner, asked):
            items = _results(page)
            fresh = [item for item in items if since is None or _instant(item, table) >= since]
            if fresh:
                newest = max(_instant(item, table) for item in fresh)
                yield items_to_table(fresh, _with_unknown(table, fresh), project_id=project_id), newest
            if len(fresh) < len(items):
                break


def _iter_rows(client: Client, table: RestTable) -> Iterator[Item]:
    """The rows of a table that is read whole, stamped; some may come again."""
    if table.each is not None:
        for owner in list(_iter_rows(client, table.each)):
            yield from _rows_of_one(client, table, owner)
    elif table.answer == "counts":
        counts = client.get(table.path, table.params, rate=table.rate_class)
        yield from ({"id": key, "count": count} for key, count in counts.items())
    else:
        for each in table.passes or (Pass(params={}),):
            for item in _fetch_pass(client, table, each.params):
                yield from ({**row, **each.stamps} for row in _rows_of(item, table))


def _pages_of_one(
    client: Client, table: RestTable, owner: Item, params: Mapping[str, str]
) -> Iterator[dict[str, object]]:
    """The list of one item of another list; nothing where it has gone meanwhile."""
    path = table.path.format_map(owner)
    try:
        yield from client.list(path, params, rate=table.rate_class)
    except NotFoundError:
        if not owner:
            raise
        _tell_gone(table, path)


def _rows_of_one(client: Client, table: RestTable, owner: Item) -> Iterator[Item]:
    """What there is for one item of another list; nothing where it has gone meanwhile."""
    path = table.path.format_map(owner)
    try:
        yield client.get(path, table.params, rate=table.rate_class)
    except NotFoundError:
        _tell_gone(table, path)


def _tell_gone(table: RestTable, path: str) -> None:
    logger.warning("%s: %s has gone while its list was read.", table.name, path)


def _fetch_pass(client: Client, table: RestTable, params: Mapping[str, str]) -> list[Item]:
    """One listing, compared with its own count."""
    asked = {**table.params, **params} | ({"limit": str(table.page_rows)} if table.page_rows else {})
    path, parent = _address(client, table)
    for _ in range(LIST_ATTEMPTS):
        items: dict[object, Item] = {}
        count = 0
        for page in _iter_list(client, table, asked, path, parent):
            items |= {_id(item, table): item for item in _results(page)}
            count = _int(page.get("count"))
        if len(items) >= count:
            return [item for item in items.values() if not item.get(table.added_by)]
        logger.warning("%s: %d of %d came, the list changed; listing again.", table.name, len(items), count)
    raise MissingRowsError(
        f"{table.name}: PostHog counts {count} and lists {len(items)}, {LIST_ATTEMPTS} times over. "
        "Run again later."
    )


def _address(client: Client, table: RestTable) -> tuple[str, Parent]:
    """Where a list is. The organization is the project's: the key owner's own is the one last looked at."""
    match table.root:
        case "project":
            return table.path, "projects"
        case "organization":
            return f"organizations/{_fetch_organization(client)}/{table.path}", "server"
        case "server":
            return table.path, "server"


def _fetch_organization(client: Client) -> str:
    organization = client.get("").get("organization")
    if not isinstance(organization, str):
        raise UnexpectedAnswerError("PostHog does not say which organization the project belongs to.")
    return organization


def _iter_list(
    client: Client, table: RestTable, params: Mapping[str, str], path: str, parent: Parent
) -> Iterator[Item]:
    try:
        yield from client.list(path, params, rate=table.rate_class, parent=parent)
    except NotFoundError:
        if not table.is_optional or parent == "server":
            raise
        yield from client.list(path, params, rate=table.rate_class, parent="environments")


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
    return _instant_of(item.get(table.cursor or ""), f"{table.name}.{table.cursor}")


def _instant_of(value: object, where: str) -> datetime:
    try:
        return parse_instant(value) if isinstance(value, str) else EPOCH
    except ValueError:
        raise UnexpectedAnswerError(f"{where}: PostHog answered a value that is no timestamp.") from None


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
