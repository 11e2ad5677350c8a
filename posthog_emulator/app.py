"""Builds the ASGI application: the routes of all modules, behind the layers that every request passes.

From the outside in: journal, faults, gzip, routes. No endpoint is implemented here.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import re

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posthog_emulator.auth import Gate
from posthog_emulator.capture import Capture
from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.control import Control
from posthog_emulator.envelope import ApiError
from posthog_emulator.events_list import EventsList
from posthog_emulator.faults import FaultMiddleware
from posthog_emulator.group_types import GroupTypes
from posthog_emulator.journal import JournalMiddleware
from posthog_emulator.persons import Persons
from posthog_emulator.query_api import QueryApi
from posthog_emulator.rest import Rest
from posthog_emulator.rest_definitions import Definitions
from posthog_emulator.state import State
from posthog_emulator.throttle import Throttle

GZIP_FROM_BYTES = 200
# posthog/settings/web.py: gzip is given per path, and only to numeric project ids.
GZIP_PATHS = re.compile(r"^/api/projects/\d+/(query|insights|cohorts|persons)(/|$)")

log = logging.getLogger(__name__)


def build_app(clickhouse: ClickHouse, state: State) -> ASGIApp:
    """The application for one server."""
    gate = Gate(state, Throttle())
    persons = Persons(clickhouse)
    routes = [
        *Control(clickhouse, state, persons).routes(),
        *Capture(clickhouse, state, persons).routes(),
        *Rest(clickhouse, state, gate).routes(),
        *GroupTypes(state, gate).routes(),
        *Definitions(clickhouse, state, gate).routes(),
        *EventsList(clickhouse, state, gate).routes(),
        *(_under_project(route, gate) for route in QueryApi(clickhouse, state).routes()),
    ]
    application = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            500: _server_error,
        },
    )
    application.router.redirect_slashes = False
    return JournalMiddleware(FaultMiddleware(GzipMiddleware(application)), state)


class GzipMiddleware:
    """Compresses the answers that PostHog compresses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold an answer back until it is whole, then send it, compressed if that helps."""
        if not _may_compress(scope):
            await self._app(scope, receive, send)
            return
        start: Message = {}
        body = bytearray()

        async def hold(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body", False):
                await _send_compressed(start, bytes(body), send)

        await self._app(scope, receive, hold)


def _may_compress(scope: Scope) -> bool:
    project = scope.get("posthog.project")
    if project is None or not project.settings.gzip or not GZIP_PATHS.match(scope["path"]):
        return False
    return any(name == b"accept-encoding" and b"gzip" in value for name, value in scope["headers"])


async def _send_compressed(start: Message, body: bytes, send: Send) -> None:
    headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
    if len(body) >= GZIP_FROM_BYTES:
        body = await run_in_threadpool(gzip.compress, body, 1)
        headers += [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({**start, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _under_project(route: Route, gate: Gate) -> Route:
    guarded = gate.project(route.endpoint, ["query:read"], "api_queries")
    path = "/api/projects/{project_id}" + "/" + route.path.strip("/")
    return Route(path, guarded, methods=sorted(route.methods or {"GET"}))


async def _api_error(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler
    assert isinstance(error, ApiError)  # noqa: S101 - Starlette calls it for nothing else
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette calls it for nothing else
    if error.status_code == 404:
        return ApiError(404, "Endpoint not found.").response()
    if error.status_code == 405:
        return ApiError(405, f'Method "{request.method}" not allowed.').response()
    return ApiError(error.status_code, str(error.detail)).response()


async def _gone(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler
    """An answer that nobody reads, with the status that nginx logs then."""
    return Response(status_code=499)


async def _server_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, asyncio.CancelledError):
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ApiError(500).response()
