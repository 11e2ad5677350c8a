"""Writes down every request of every project: what was asked, what it read, what went over the wire.

It also finds out which project a request belongs to, since faults and the journal are kept per project.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posthog_emulator import capture
from posthog_emulator.auth import bearer
from posthog_emulator.state import Journal, Project, State

SUMS = ("read_rows", "read_bytes", "bytes_sent", "result_rows")
_PROJECT_PATH = re.compile(r"^/api/(?:projects|environments)/([^/]+)/?(.*)$")


class JournalMiddleware:
    """The outermost layer: addresses a request, times it and counts its bytes."""

    def __init__(self, app: ASGIApp, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and record it, unless it is for the control API."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["journal"] = {}
        scope["posthog.path"] = scope["path"]
        scope["path"] = _canonical(scope["path"])
        if scope["path"].startswith("/_emulator"):
            await self._app(scope, receive, send)
            return
        # The server's own send is a method of the connection's protocol: the only way to its socket.
        scope["posthog.transport"] = getattr(getattr(send, "__self__", None), "transport", None)
        project, resource, receive = await self._address(scope, receive)
        scope["posthog.project"], scope["posthog.resource"] = project, resource
        if project is None:
            await self._app(scope, receive, send)
        else:
            await self._record(project.journal, resource, scope, receive, send)

    async def _record(
        self, journal: Journal, resource: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        entry: dict[str, Any] = {
            "method": scope["method"],
            "path": scope["posthog.path"],
            "status": None,
            "started_at": self._state.now().isoformat(),
            "seconds": None,
            "bytes_sent": 0,
        }
        journal.entries.append(entry)
        scope["state"]["journal"] = entry

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry["status"] = message["status"]
            elif message["type"] == "http.response.body":
                entry["bytes_sent"] += len(message.get("body", b""))
            if not message.get("more_body", False) and message["type"] == "http.response.body":
                entry["seconds"] = round(time.perf_counter() - started, 6)
            await send(message)

        is_query = resource == "query" and scope["method"] == "POST"
        _enter(journal, is_query)
        started = time.perf_counter()
        try:
            await self._app(scope, receive, counted)
        finally:
            journal.queries_in_flight -= is_query
            entry["seconds"] = entry["seconds"] or round(time.perf_counter() - started, 6)

    async def _address(self, scope: Scope, receive: Receive) -> tuple[Project | None, str, Receive]:
        path = scope["path"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if path in capture.PATHS:
            body, receive = await _read_body(receive)
            token = bearer(headers.get("authorization", "")) or capture.find_token(headers, body, scope)
            return self._state.project_by_token(token), path.strip("/"), receive
        key = self._state.keys.get(bearer(headers.get("authorization", "")))
        match = _PROJECT_PATH.match(path)
        if match and match[1].isdecimal():
            return self._state.projects.get(int(match[1])), match[2], receive
        project = self._state.current_project(key) if key else None
        return project, match[2] if match else path.strip("/"), receive


def stats(journal: Journal) -> dict[str, Any]:
    """Sums over everything recorded."""
    entries = journal.entries
    return {
        "requests": len(entries),
        "queries": sum("query" in entry for entry in entries),
        **{name: _sum(entry.get(name) for entry in entries) for name in SUMS},
        "max_concurrent_queries": journal.max_concurrent_queries,
        "by_status": dict(Counter(str(entry["status"]) for entry in entries if entry["status"] is not None)),
    }


def _sum(values: Iterable[int | None]) -> int:
    return sum(value or 0 for value in values)


def _enter(journal: Journal, is_query: bool) -> None:
    journal.queries_in_flight += is_query
    journal.max_concurrent_queries = max(journal.max_concurrent_queries, journal.queries_in_flight)


def _canonical(path: str) -> str:
    """One form for every route: no trailing slash, and projects for environments."""
    path = path.rstrip("/") or "/"
    if path == "/api/environments" or path.startswith("/api/environments/"):
        return "/api/projects" + path.removeprefix("/api/environments")
    return path


async def _read_body(receive: Receive) -> tuple[bytes, Receive]:
    """A request's body, and a receive that plays it again."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        body.extend(message.get("body", b""))
        more = message.get("more_body", False)
    played = False

    async def replay() -> Message:
        nonlocal played
        if played:
            return await receive()
        played = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return bytes(body), replay
