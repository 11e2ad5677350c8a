"""Django REST framework's limit and offset, as PostHog's lists use them.

Not here: which lists there are and what else they do (`rest`, `rest_definitions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import Response

from posthog_emulator.envelope import json_response

PAGE_SIZE = 100


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


def link(request: Request, limit: int, offset: int) -> str:
    """An absolute URL on whatever host the client says it called."""
    kept = [
        (name, value)
        for name, value in parse_qsl(request.url.query, keep_blank_values=True)
        if name not in ("limit", "offset")
    ]
    query = urlencode([*kept, ("limit", limit), *([("offset", offset)] if offset else [])])
    host = request.headers.get("host", "localhost")
    return f"{request.url.scheme}://{host}{request.scope['posthog.path']}?{query}"
