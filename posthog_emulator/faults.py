"""Scripted faults: wrong answers, broken connections, slow and lying servers, in order and counted.

Scripted ones come first; a request that none waits for is left to the project's storm (storm.py). They are
played at the level of ASGI and the socket, so what a client sees is what a broken server would do.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posthog_emulator.envelope import envelope
from posthog_emulator.state import Fault, FaultQueue, Project
from posthog_emulator.storm import Storm

# kind -> members it may have, besides "kind" and "times".
KINDS: Mapping[str, frozenset[str]] = {
    "status": frozenset({"status", "headers", "body", "over_rows"}),
    "pass": frozenset({"pass"}),
    "reset": frozenset(),
    "cut": frozenset({"after_bytes"}),
    "drip": frozenset({"seconds"}),
    "not_json": frozenset({"body", "headers"}),
    "stale": frozenset({"rows"}),
    "error_envelope": frozenset(),
    "error_field": frozenset(),
    "drop_rows": frozenset({"rows"}),
}
REQUIRED: Mapping[str, str] = {
    "status": "status",
    "cut": "after_bytes",
    "drip": "seconds",
    "drop_rows": "rows",
}
NEEDS_REAL_ANSWER = frozenset({"cut", "drip", "stale", "drop_rows", "error_field"})
# What changes the rows of an answer, so that an answer without any stays as it is.
CHANGES_ROWS = frozenset({"stale", "error_field", "drop_rows"})
DRIPS = 20


class UnknownFaultError(ValueError):
    """A script that the server cannot play."""


@dataclass
class Answer:
    """One whole answer, before it goes on the wire."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes:
        """The value of a header, or nothing."""
        return next((value for key, value in self.headers if key.lower() == name), b"")

    def with_body(self, body: bytes) -> Answer:
        """The same answer with another body."""
        kept = [(key, value) for key, value in self.headers if key.lower() != b"content-length"]
        return Answer(self.status, [*kept, (b"content-length", str(len(body)).encode())], body)


class FaultMiddleware:
    """Gives each request the next fault that waits for it, if any."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, honestly or as scripted."""
        project: Project | None = scope.get("posthog.project")
        if project is None or not (project.faults.waiting or project.faults.storm):
            await self._app(scope, receive, send)
            return
        matching = [fault for fault in project.faults.waiting if _is_for(fault, scope)]
        guards = [fault for fault in matching if "over_rows" in fault.script]
        fault = next((fault for fault in matching if fault not in guards), None)
        chosen = _Scripted(fault, project.faults) if fault else _from_storm(project.faults.storm, scope)
        if chosen is None and not guards:
            await self._app(scope, receive, send)
            return
        await self._play(chosen, guards, project.faults, scope, receive, send)

    async def _play(
        self,
        chosen: _Chosen | None,
        guards: list[Fault],
        queue: FaultQueue,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        kind = kind_of(chosen.script) if chosen else "pass"
        if chosen:
            chosen.use()
        if chosen and kind not in NEEDS_REAL_ANSWER and kind != "pass":
            _note(scope, chosen.name)
            await _answer_without_asking(chosen.script, kind, scope, receive, send)
            return
        answer = await _real_answer(self._app, scope, receive)
        guard = next((guard for guard in guards if _row_count(answer) > int(guard.script["over_rows"])), None)
        if guard:
            if chosen:
                chosen.give_back()
            scripted = _Scripted(guard, queue)
            scripted.use()
            _note(scope, scripted.name)
            await _send_whole(_scripted_answer(guard.script), send)
            return
        if chosen and kind in CHANGES_ROWS and answer.status != 200:
            chosen.give_back()
            kind = "pass"
        if chosen and kind != "pass":
            _note(scope, chosen.name)
        await _send_changed(answer, kind, chosen.script if chosen else {}, scope, receive, send)


class _Chosen(Protocol):
    """The fault a request gets."""

    script: Mapping[str, Any]
    name: str

    def use(self) -> None:
        """Count it."""

    def give_back(self) -> None:
        """Do as if it had not been used."""


class _Scripted:
    """One that waited in the queue."""

    def __init__(self, fault: Fault, queue: FaultQueue) -> None:
        self.script: Mapping[str, Any] = fault.script
        kind = kind_of(fault.script)
        self.name = str(fault.script["status"]) if kind == "status" else kind
        self._fault, self._queue = fault, queue

    def use(self) -> None:
        self._fault.times -= 1
        if self._fault.times <= 0:
            self._queue.waiting.remove(self._fault)
        self._queue.fired += kind_of(self.script) != "pass"

    def give_back(self) -> None:
        if self._fault.times <= 0:
            self._queue.waiting.insert(0, self._fault)
        self._fault.times += 1
        self._queue.fired -= kind_of(self.script) != "pass"


class _Stormy:
    """One that a storm drew."""

    def __init__(self, storm: Storm, kind: str, share: float) -> None:
        self.script: Mapping[str, Any] = storm.script(kind, share)
        self.name = f"storm {kind}"
        self._storm, self._kind = storm, kind

    def use(self) -> None:
        self._storm.served[self._kind] += 1

    def give_back(self) -> None:
        self._storm.served[self._kind] -= 1


def _from_storm(storm: Storm | None, scope: Scope) -> _Stormy | None:
    if storm is None or not _is_for(storm, scope):
        return None
    drawn = storm.next_kind(str(scope["posthog.resource"]))
    return _Stormy(storm, *drawn) if drawn else None


def parse_faults(body: Mapping[str, Any]) -> list[Fault]:
    """The faults of a control call, checked."""
    method = body.get("method")
    path = str(body.get("path", "")).strip("/")
    return [_parse_fault(script, method, path) for script in body.get("faults", [])]


def kind_of(script: Mapping[str, Any]) -> str:
    """What a script does."""
    if "kind" in script:
        return str(script["kind"])
    return "pass" if script.get("pass") else "status"


def _parse_fault(script: Any, method: str | None, path: str) -> Fault:
    if not isinstance(script, dict):
        raise UnknownFaultError(f"A fault is an object, not {script!r}.")
    kind = kind_of(script)
    if kind not in KINDS:
        raise UnknownFaultError(f"Unknown fault kind {kind!r}. Known: {', '.join(sorted(KINDS))}.")
    unknown = sorted(set(script) - KINDS[kind] - {"kind", "times"})
    if unknown:
        raise UnknownFaultError(f"A {kind} fault does not take {', '.join(unknown)}.")
    if kind in REQUIRED and REQUIRED[kind] not in script:
        raise UnknownFaultError(f"A {kind} fault needs {REQUIRED[kind]}.")
    return Fault(
        method=method.upper() if method else None, path=path, script=script, times=int(script.get("times", 1))
    )


def _is_for(fault: Fault | Storm, scope: Scope) -> bool:
    if fault.method and fault.method != scope["method"]:
        return False
    return str(scope["posthog.resource"]).startswith(fault.path)


def _note(scope: Scope, name: str) -> None:
    scope["state"]["journal"]["fault"] = name


async def _answer_without_asking(
    script: Mapping[str, Any], kind: str, scope: Scope, receive: Receive, send: Send
) -> None:
    if kind == "reset":
        await _reset(scope, receive)
        return
    await _send_whole(_scripted_answer(script), send)


async def _send_changed(
    answer: Answer, kind: str, script: Mapping[str, Any], scope: Scope, receive: Receive, send: Send
) -> None:
    if kind == "cut":
        after = (
            int(script["after_bytes"]) if "after_bytes" in script else int(script["share"] * len(answer.body))
        )
        await _cut(answer, after, scope, receive, send)
    elif kind == "drip":
        await _drip(answer, float(script["seconds"]), send)
    elif kind == "stale":
        await _send_whole(
            _edit_json(answer, lambda body: _mark_stale(body, int(script.get("rows", 0)))), send
        )
    elif kind == "error_field":
        await _send_whole(_edit_json(answer, _empty_with_error), send)
    elif kind == "drop_rows":
        await _send_whole(_edit_json(answer, lambda body: _drop_rows(body, int(script["rows"]))), send)
    else:
        await _send_whole(answer, send)


async def _real_answer(app: ASGIApp, scope: Scope, receive: Receive) -> Answer:
    start: MutableMapping[str, Any] = {}
    body = bytearray()

    async def collect(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    await app(scope, receive, collect)
    return Answer(start["status"], list(start["headers"]), bytes(body))


def _scripted_answer(script: Mapping[str, Any]) -> Answer:
    if script.get("kind") == "not_json":
        status, content_type = 200, b"text/html"
        body = str(script.get("body", "<html><body>Bad gateway</body></html>")).encode()
    elif script.get("kind") == "error_envelope":
        status, content_type, body = 200, b"application/json", orjson.dumps(envelope(500))
    else:
        status, content_type = int(script["status"]), b"application/json"
        given = script.get("body")
        body = given.encode() if isinstance(given, str) else orjson.dumps(given or envelope(status))
    headers = [
        (name.lower().encode(), str(value).encode()) for name, value in script.get("headers", {}).items()
    ]
    if not any(name == b"content-type" for name, _ in headers):
        headers.append((b"content-type", content_type))
    return Answer(status, headers, b"").with_body(body)


async def _send_whole(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _cut(answer: Answer, after_bytes: int, scope: Scope, receive: Receive, send: Send) -> None:
    """The first bytes of an answer under its true Content-Length, then the connection closes."""
    if after_bytes >= len(answer.body):
        after_bytes = max(0, len(answer.body) - 1)
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body[:after_bytes], "more_body": True})
    scope["posthog.transport"].close()
    await _wait_for_disconnect(receive)


async def _drip(answer: Answer, seconds: float, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    size = max(1, -(-len(answer.body) // DRIPS))
    pieces = [answer.body[i : i + size] for i in range(0, len(answer.body), size)]
    for piece in pieces:
        await asyncio.sleep(seconds / len(pieces))
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _reset(scope: Scope, receive: Receive) -> None:
    """Closes the socket with a RST, as a dying process or a proxy does, once the request has all arrived."""
    while (await receive()).get("more_body", False):
        pass
    transport = scope["posthog.transport"]
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await _wait_for_disconnect(receive)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _edit_json(answer: Answer, change: Callable[[dict[str, Any]], None]) -> Answer:
    body = _decoded(answer)
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return answer
    if not isinstance(data, dict):
        return answer
    change(data)
    edited = orjson.dumps(data)
    zipped = answer.header(b"content-encoding") == b"gzip"
    return answer.with_body(gzip.compress(edited, 1) if zipped else edited)


def _decoded(answer: Answer) -> bytes:
    return gzip.decompress(answer.body) if answer.header(b"content-encoding") == b"gzip" else answer.body


def _row_count(answer: Answer) -> int:
    try:
        data = orjson.loads(_decoded(answer))
    except orjson.JSONDecodeError:
        return 0
    rows = _rows_of(data) if isinstance(data, dict) else None
    return 0 if rows is None else len(rows)


def _result_of(body: dict[str, Any]) -> dict[str, Any]:
    """What holds the rows of an answer; in that of an async query it sits two levels deeper."""
    status = body.get("query_status")
    nested = status.get("results") if isinstance(status, dict) else None
    return nested if isinstance(nested, dict) else body


def _rows_of(body: dict[str, Any]) -> list[Any] | None:
    rows = _result_of(body).get("results")
    return rows if isinstance(rows, list) else None


def _drop_rows(body: dict[str, Any], rows: int) -> None:
    found = _rows_of(body)
    if found is not None and rows > 0:
        del found[-rows:]


def _mark_stale(body: dict[str, Any], rows: int) -> None:
    """An answer from before the last so many rows were there."""
    _drop_rows(body, rows)
    _result_of(body)["is_cached"] = True


def _empty_with_error(body: dict[str, Any]) -> None:
    """How PostHog hides a ClickHouse error in a 200 (query_api.md, section 3)."""
    if _rows_of(body) is not None:
        _result_of(body).update(
            results=[], columns=[], types=[], error="ClickHouse error while executing query."
        )
