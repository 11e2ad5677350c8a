"""The public endpoints that take events, in every shape that the SDKs send; errors are plain text.

Who a person is, is decided in persons.py; here an event is read, timed and written.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import secrets
import time
import uuid
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import orjson
import pyarrow as pa
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from posthog_emulator.auth import bearer
from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.envelope import json_response
from posthog_emulator.persons import Event, Persons
from posthog_emulator.state import Project, State

V1_PATH = "/i/v1/analytics/events"
BATCH_PATHS = frozenset({"/batch", V1_PATH})
PATHS = frozenset({"/batch", "/i/v0/e", "/e", "/capture", "/track", "/engage", V1_PATH})

MAX_BODY_BYTES = 2_000_000
MAX_BATCH_BYTES = 20_000_000
MAX_EVENT_BYTES = 1_000_000
MAX_NAME_LENGTH = 200
# rust/common/.../timestamp: later than this is the client's mistake, and becomes now.
FUTURE_LIMIT = timedelta(hours=23)
# The same file, 2026: a smaller difference of clocks may be the network, and is left alone.
CLOCK_SKEW_DEADBAND = timedelta(seconds=150)
PERSON_EVENTS = frozenset({"$identify", "$create_alias", "$merge_dangerously", "$groupidentify"})

_TOKEN = re.compile(rb"phc_[0-9A-Za-z_-]+")


class CaptureError(Exception):
    """A request that capture refuses as a whole."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Capture:
    """The capture endpoints of one server."""

    def __init__(self, clickhouse: ClickHouse, state: State, persons: Persons) -> None:
        self._clickhouse = clickhouse
        self._state = state
        self._persons = persons

    def routes(self) -> list[Route]:
        """All paths that SDKs post to."""
        return [Route(path, self._receive, methods=["POST"]) for path in sorted(PATHS)]

    async def _receive(self, request: Request) -> Response:
        try:
            return await self._take(request)
        except CaptureError as error:
            return PlainTextResponse(error.text, status_code=error.status)

    async def _take(self, request: Request) -> Response:
        path = request.url.path
        body = await request.body()
        limit = MAX_BATCH_BYTES if path in BATCH_PATHS else MAX_BODY_BYTES
        text = _unpack(body, request.headers, limit)
        payload = _parse(text)
        now = self._state.now()
        project = self._project(bearer(request.headers.get("authorization", "")) or _token(payload, request))
        raw_events, sent_at, historical = _read_envelope(payload, request)
        if not raw_events:
            raise CaptureError(400, "request holds no event")
        events = [
            event
            for raw in raw_events
            if (event := _read_event(raw, sent_at=sent_at, now=now, historical=historical))
        ]
        await run_in_threadpool(self._store, project, events)
        if path == V1_PATH:
            return json_response({"results": _v1_results(raw_events, {str(event.uuid) for event in events})})
        return json_response({"status": "Ok"})

    def _project(self, token: str) -> Project:
        if not token:
            raise CaptureError(401, "event submitted without an api_key")
        project = self._state.project_by_token(token)
        if project is None:
            raise CaptureError(401, "api_key does not resolve to a known project")
        return project

    def _store(self, project: Project, events: list[Event]) -> None:
        kept = [event for event in events if event.processes_person or event.name not in PERSON_EVENTS]
        if not kept:
            return
        self._persons.process(project, kept)
        self._clickhouse.insert("events", _event_rows(project, kept))
        project.ingested_event = True


def find_token(headers: Mapping[str, str], body: bytes, scope: Scope) -> str:
    """The project token somewhere in a request, before it is really parsed."""
    found = _TOKEN.search(scope.get("query_string", b""))
    if found is None:
        try:
            found = _TOKEN.search(_unpack(body, headers, MAX_BATCH_BYTES))
        except CaptureError:
            return ""
    return found[0].decode() if found else ""


def event_time(
    timestamp: datetime | None, *, sent_at: datetime | None, now: datetime, offset_ms: float | None = None
) -> datetime:
    """When an event happened by the server's clock (rust/common timestamp parsing, 2026)."""
    result = timestamp or now
    if timestamp and sent_at:
        result = timestamp - _correctable(sent_at - now)
    if offset_ms is not None:
        result = now - timedelta(milliseconds=offset_ms)
    return now if result - now > FUTURE_LIMIT else result


def uuid7(at: datetime | None = None) -> uuid.UUID:
    """A time-ordered uuid, as PostHog gives to events that have none."""
    milliseconds = int((at.timestamp() if at else time.time()) * 1000)
    value = (
        (milliseconds << 80)
        | (0x7 << 76)
        | (secrets.randbits(12) << 64)
        | (0b10 << 62)
        | secrets.randbits(62)
    )
    return uuid.UUID(int=value)


def _correctable(skew: timedelta) -> timedelta:
    if abs(skew) <= CLOCK_SKEW_DEADBAND:
        return timedelta()
    return skew - CLOCK_SKEW_DEADBAND if skew > timedelta() else skew + CLOCK_SKEW_DEADBAND


def _unpack(body: bytes, headers: Mapping[str, str], limit: int) -> bytes:
    if len(body) > limit:
        raise CaptureError(413, f"maximum event size exceeded: {len(body)} bytes")
    try:
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        elif headers.get("content-encoding") == "deflate":
            body = zlib.decompress(body)
        if body[:5] == b"data=":
            body = base64.b64decode(parse_qs(body.decode())["data"][0] + "==")
    except (OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        raise CaptureError(400, f"failed to decode request: {error}") from error
    if len(body) > limit:
        raise CaptureError(413, f"maximum event size exceeded: {len(body)} bytes")
    return body


def _parse(text: bytes) -> Any:
    if not text:
        raise CaptureError(400, "request missing data payload")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _parse_leniently(text)


def _parse_leniently(text: bytes) -> Any:
    """Lone surrogates become U+FFFD (rust/capture/src/passes/invalid_surrogates.rs)."""
    try:
        data = json.loads(text)
        clean = (
            json.dumps(data, ensure_ascii=False).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )
        return orjson.loads(clean)
    except ValueError as error:
        raise CaptureError(400, f"failed to parse request: {error}") from error


def _token(payload: Any, request: Request) -> str:
    if not isinstance(payload, dict | list):
        raise CaptureError(400, "failed to parse request: neither an event nor a list of them")
    candidates = (
        [payload] if isinstance(payload, dict) else [item for item in payload if isinstance(item, dict)]
    )
    tokens = {found for item in candidates if (found := _token_of(item))}
    if len(tokens) > 1:
        raise CaptureError(401, "batch submitted with inconsistent api_key values")
    return (
        next(iter(tokens), "")
        or request.query_params.get("token", "")
        or request.query_params.get("api_key", "")
    )


def _token_of(item: Mapping[str, Any]) -> str:
    properties = item.get("properties")
    nested = properties.get("token") if isinstance(properties, dict) else None
    return str(item.get("api_key") or item.get("token") or item.get("$token") or nested or "")


def _read_envelope(payload: Any, request: Request) -> tuple[list[Any], datetime | None, bool]:
    """Events, the client's clock when it sent them, and whether they are a migration."""
    if isinstance(payload, list):
        return payload, _sent_at(None, request), False
    if not isinstance(payload, dict):
        raise CaptureError(400, "failed to hydrate events from request: expected an object or an array")
    if "batch" not in payload:
        return [payload], _sent_at(payload.get("sent_at"), request), False
    if not isinstance(payload["batch"], list):
        raise CaptureError(400, "failed to hydrate events from request: batch is not an array")
    return (
        payload["batch"],
        _sent_at(payload.get("sent_at"), request),
        bool(payload.get("historical_migration")),
    )


def _sent_at(given: Any, request: Request) -> datetime | None:
    if given:
        return _parse_time(given)
    if header := request.headers.get("posthog-request-timestamp"):
        return _parse_time(header)
    milliseconds = request.query_params.get("_", "")
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds.isdecimal() else None


def _read_event(raw: Any, *, sent_at: datetime | None, now: datetime, historical: bool) -> Event | None:
    """One event, or nothing: what cannot be an event is dropped and the client is told 200."""
    if not isinstance(raw, dict):
        return None
    if len(orjson.dumps(raw)) > MAX_EVENT_BYTES:
        raise CaptureError(413, "maximum event size exceeded: event too large for the broker")
    properties = _properties(raw)
    name = raw.get("event")
    distinct_id = raw.get("distinct_id", properties.get("distinct_id"))
    if not name or not isinstance(name, str) or distinct_id in (None, ""):
        return None
    options = raw.get("options") if isinstance(raw.get("options"), dict) else {}
    ignore_sent_at = properties.get("$ignore_sent_at") or (options or {}).get("disable_skew_correction")
    timestamp = event_time(
        _parse_time(raw.get("timestamp")),
        sent_at=None if ignore_sent_at else sent_at,
        now=now,
        offset_ms=raw.get("offset"),
    )
    return Event(
        uuid=_uuid(raw.get("uuid"), timestamp),
        name=name[:MAX_NAME_LENGTH],
        distinct_id=(distinct_id if isinstance(distinct_id, str) else orjson.dumps(distinct_id).decode())[
            :MAX_NAME_LENGTH
        ],
        elements_chain=str(properties.pop("$elements_chain", "")),
        properties=properties,
        timestamp=timestamp,
        created_at=now,
        historical_migration=historical,
    )


def _properties(raw: Mapping[str, Any]) -> dict[str, Any]:
    """An event's properties with what newer and older SDKs send beside them."""
    given = raw.get("properties")
    properties = dict(given) if isinstance(given, dict) else {}
    for key in ("$set", "$set_once"):
        if isinstance(raw.get(key), dict):
            properties[key] = {**raw[key], **properties.get(key, {})}
    for field_name in ("session_id", "window_id"):
        if isinstance(raw.get(field_name), str):
            properties[f"${field_name}"] = raw[field_name]
    options = raw.get("options")
    if isinstance(options, dict) and isinstance(options.get("process_person_profile"), bool):
        properties["$process_person_profile"] = options["process_person_profile"]
    return properties


def _uuid(given: Any, timestamp: datetime) -> uuid.UUID:
    if not given:
        return uuid7(timestamp)
    try:
        return uuid.UUID(str(given))
    except ValueError as error:
        raise CaptureError(400, f"failed to hydrate events from request: {error}") from error


def _parse_time(given: Any) -> datetime | None:
    if isinstance(given, int | float) and not isinstance(given, bool):
        return datetime.fromtimestamp(given / 1000 if given > 1e11 else given, UTC)
    if not isinstance(given, str):
        return None
    try:
        parsed = datetime.fromisoformat(given)
    except ValueError:
        return None
    return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _event_rows(project: Project, events: list[Event]) -> pa.Table:
    moment = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "uuid": [str(event.uuid) for event in events],
            "event": [event.name for event in events],
            "properties": [orjson.dumps(event.properties).decode() for event in events],
            "timestamp": pa.array([event.timestamp for event in events], moment),
            "team_id": pa.array([project.id] * len(events), pa.int64()),
            "distinct_id": [event.distinct_id for event in events],
            "elements_chain": [event.elements_chain for event in events],
            "created_at": pa.array([event.created_at for event in events], moment),
            "person_id": [event.person.id for event in events],
            "person_created_at": pa.array([event.person.created_at for event in events], moment),
            "person_properties": [event.person.properties for event in events],
            "person_mode": [event.person.mode for event in events],
            "historical_migration": [event.historical_migration for event in events],
        }
    )


def _v1_results(raw_events: list[Any], kept: set[str]) -> dict[str, dict[str, str]]:
    given = [str(raw.get("uuid")) for raw in raw_events if isinstance(raw, dict) and raw.get("uuid")]
    return {
        one: {"result": "ok"} if one in kept else {"result": "drop", "details": "invalid event"}
        for one in given
    }
