"""Django REST framework's limit and offset, page numbers and cursors, as PostHog's lists use them.

Not here: which lists there are and what else they do (`rest`, `rest_definitions`).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import Response

from posthog_emulator.envelope import ApiError, json_response

PAGE_SIZE = 100
PAGE_BY_NUMBER = 1_000


def page_of(
    request: Request,
    items: Sequence[dict[str, Any]],
    *,
    default: int = PAGE_SIZE,
    most: int | None = None,
    appended: Sequence[dict[str, Any]] = (),
) -> Response:
    """A page of items; `appended` come with the last one, count, but are not paged."""
    limit, offset = limit_and_offset(request, default=default, most=most)
    is_last = offset + limit >= len(items)
    return json_response(
        {
            "count": len(items) + len(appended),
            "next": None if is_last else link(request, limit, offset + limit),
            "previous": link(request, limit, max(0, offset - limit)) if offset > 0 else None,
            "results": [*items[offset : offset + limit], *(appended if is_last else ())],
        }
    )


def limit_and_offset(
    request: Request, *, default: int = PAGE_SIZE, most: int | None = None
) -> tuple[int, int]:
    """What a request asks for, as far as the list allows."""
    limit, offset = request.query_params.get("limit", ""), request.query_params.get("offset", "")
    rows = (int(limit) if limit.isdecimal() else 0) or default
    return min(rows, most or rows), int(offset) if offset.isdecimal() else 0


def page_by_number(request: Request, items: Sequence[dict[str, Any]]) -> Response:
    """A page of a thousand items, by `page`."""
    asked = request.query_params.get("page", "1")
    number = int(asked) if asked.isdecimal() else 0
    pages = max(1, -(-len(items) // PAGE_BY_NUMBER))
    if not 1 <= number <= pages:
        raise ApiError(404, "Invalid page.")
    return json_response(
        {
            "count": len(items),
            "next": _link(request, {"page": number + 1}) if number < pages else None,
            "previous": None,
            "results": items[(number - 1) * PAGE_BY_NUMBER : number * PAGE_BY_NUMBER],
        }
    )


def page_by_cursor(
    request: Request, items: Sequence[dict[str, Any]], order: str, *, most: int | None = None
) -> Response:
    """A page of items from the newest on, which tells neither their number nor its own.

    The cursor is the value of the last item but those equal to it, and how many of these have been given.

    Args:
        request: With `cursor`, and with `page_size` where that may be set.
        items: All of them.
        order: The member that orders, newest first.
        most: `page_size` at most; None where it may not be set.
    """
    asked = request.query_params.get("page_size", "")
    size = min(int(asked), most) if most and asked.isdecimal() and int(asked) else PAGE_SIZE
    position, skipped = _read_cursor(request.query_params.get("cursor", ""))
    ordered = sorted(items, key=lambda one: (str(one[order]), str(one["id"])), reverse=True)
    left = [one for one in ordered if not position or str(one[order]) < position][skipped:]
    page = left[:size]
    following = None
    if len(left) > size:
        last = str(page[-1][order])
        before = [str(one[order]) for one in page if str(one[order]) != last]
        cursor = (before[-1], len(page) - len(before)) if before else (position, skipped + len(page))
        following = _link(request, {"cursor": base64.b64encode("|".join(map(str, cursor)).encode()).decode()})
    return json_response({"next": following, "previous": None, "results": page})


def _read_cursor(text: str) -> tuple[str, int]:
    if not text:
        return "", 0
    try:
        position, skipped = base64.b64decode(text, validate=True).decode().split("|")
        return position, int(skipped)
    except ValueError:
        raise ApiError(404, "Invalid cursor") from None


def link(request: Request, limit: int, offset: int) -> str:
    """An absolute URL on whatever host the client says it called."""
    return _link(request, {"limit": limit, **({"offset": offset} if offset else {})}, without=("offset",))


def _link(request: Request, changes: dict[str, object], without: Sequence[str] = ()) -> str:
    kept = [
        (name, value)
        for name, value in parse_qsl(request.url.query, keep_blank_values=True)
        if name not in changes and name not in without
    ]
    host = request.headers.get("host", "localhost")
    query = urlencode([*kept, *changes.items()])
    return f"{request.url.scheme}://{host}{request.scope['posthog.path']}?{query}"
