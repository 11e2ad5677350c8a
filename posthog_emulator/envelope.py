"""PostHog's error envelope, the same for every route of the private API.

Not the capture endpoints: they answer in plain text.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response

# drf-exceptions-hog: status -> (type, code, detail) when nothing more is known.
DEFAULTS: Mapping[int, tuple[str, str, str]] = {
    400: ("validation_error", "invalid_input", "Invalid input."),
    401: ("authentication_error", "authentication_failed", "Incorrect authentication credentials."),
    402: ("server_error", "quota_limit_exceeded", "You have reached your quota limit."),
    403: ("authentication_error", "permission_denied", "You do not have permission to perform this action."),
    404: ("invalid_request", "not_found", "Not found."),
    405: ("invalid_request", "method_not_allowed", "Method not allowed."),
    413: ("invalid_request", "error", "Request body exceeded settings.DATA_UPLOAD_MAX_MEMORY_SIZE."),
    429: ("throttled_error", "throttled", "Request was throttled."),
    500: ("server_error", "error", "A server error occurred."),
    502: ("server_error", "error", "Bad gateway."),
    503: (
        "server_error",
        "error",
        "Queries are a little too busy right now. We're working to free up resources.",
    ),
    504: ("server_error", "error", "Query has hit the max execution time before completing."),
    512: ("server_error", "error", "Estimated query execution time is too long."),
    513: ("server_error", "clickhouse_memory_limit_exceeded", "Query has reached its memory limit."),
}


class ApiError(Exception):
    """An answer that is not the one asked for."""

    def __init__(
        self,
        status: int,
        detail: str = "",
        *,
        code: str = "",
        attr: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code
        self.attr = attr
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The answer on the wire."""
        body = envelope(self.status, self.detail, code=self.code, attr=self.attr)
        return json_response(body, status=self.status, headers=self.headers)


def envelope(
    status: int, detail: str = "", *, code: str = "", attr: str | None = None
) -> dict[str, str | None]:
    """The JSON of an error."""
    default_type, default_code, default_detail = DEFAULTS.get(status, DEFAULTS[400 if status < 500 else 500])
    return {
        "type": default_type,
        "code": code or default_code,
        "detail": detail or default_detail,
        "attr": attr,
    }


def json_response(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer, written as PostHog writes it."""
    content = orjson.dumps(body, option=orjson.OPT_UTC_Z)
    return Response(content, status_code=status, headers=headers, media_type="application/json")
