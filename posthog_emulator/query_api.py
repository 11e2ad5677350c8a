"""POST, GET and DELETE /query/: running HogQL now or later, from the cache or from ClickHouse.

It decides when a query runs and what is remembered of it. What the SQL says is `hogql/`, what a body may hold
`query_request.py`, what an answer holds `query_answer.py`. Rules: query_api.md, sections 1 to 3.
"""

import asyncio
import logging
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from posthog_emulator.clickhouse import Answer, ClickHouse, ClickHouseError, Progress
from posthog_emulator.envelope import ApiError, json_response
from posthog_emulator.hogql.printer import PRINTER_SETTINGS, Printed, print_query
from posthog_emulator.memory import Shelf, is_kept
from posthog_emulator.query_answer import QueryAnswer, build_answer, join_json
from posthog_emulator.query_errors import exposed_message, to_api_error
from posthog_emulator.query_log import QueryLog
from posthog_emulator.query_request import QueryRequest, label_prefix, read_request
from posthog_emulator.query_slots import QuerySlots
from posthog_emulator.state import Project, State

CANCELLED = "Cancelled query on clickhouse"
DEQUEUED = "Only tried to dequeue, not cancelling query on clickhouse"
NOT_STARTED = Progress(0, 0, 0, 0.0, 0)
LAZY_FRESHNESS = timedelta(hours=6)

logger = logging.getLogger("posthog_emulator")


@dataclass
class AsyncQuery:
    """A query that runs, or ran, without anyone waiting for it."""

    request: QueryRequest
    started_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None
    answer: QueryAnswer | None = None
    error: ApiError | None = None
    task: asyncio.Task[None] | None = None
    is_dequeued: bool = False

    @property
    def size(self) -> int:
        """Bytes of its rows."""
        return self.answer.size if self.answer else 0

    def status(self, progress: Progress | None = None) -> dict[str, Any]:
        """PostHog's `query_status`, without results."""
        return {
            "id": self.request.client_query_id,
            "team_id": self.request.project.id,
            "query_async": True,
            "complete": self.ended_at is not None,
            "error": self.error is not None,
            "error_message": exposed_message(self.error) if self.error else None,
            "start_time": self.started_at,
            "pickup_time": self.started_at,
            "end_time": self.ended_at,
            "expiration_time": self.expires_at,
            "task_id": self.request.client_query_id,
            "query_progress": asdict(progress) if progress else None,
            "labels": None,
            "insight_id": None,
            "dashboard_id": None,
        }

    def body(self, progress: Progress | None = None) -> bytes:
        """Write `{"query_status": …}`, with the whole response inside once there is one."""
        results = self.answer.body(is_cached=False) if self.answer else b"null"
        return b'{"query_status":' + join_json(self.status(progress), "results", results) + b"}"

    def http_status(self) -> int:
        """Tell running, done and failed apart."""
        if self.error is not None:
            return 400 if exposed_message(self.error) else 500
        return 200 if self.ended_at is not None else 202


@dataclass
class _Memory:
    """What the server remembers of queries, in PostHog's Redis."""

    answers: Shelf[str, QueryAnswer] = field(default_factory=Shelf)
    async_queries: Shelf[tuple[int, str], AsyncQuery] = field(default_factory=Shelf)


class QueryApi:
    """The query endpoint of every project."""

    def __init__(self, clickhouse: ClickHouse, state: State) -> None:
        self._clickhouse = clickhouse
        self._state = state
        self._memory = _Memory()
        self._slots = QuerySlots()
        self._log = QueryLog(clickhouse)

    def routes(self) -> list[Route]:
        """Paths relative to a project."""
        return [
            Route("/query/", self._create, methods=["POST"]),
            Route("/query/{query_id}/", self._retrieve, methods=["GET"]),
            Route("/query/{query_id}/", self._destroy, methods=["DELETE"]),
            Route("/query/{kind}/", self._refuse_action, methods=["POST"]),
            Route("/query/{query_id}/log/", self._refuse_action, methods=["GET"]),
        ]

    async def _create(self, http: Request) -> Response:
        request = read_request(await http.body(), http.state.project)
        journal = _journal(http, request)
        cached = self._find_cached(request.cache_key)
        if self._may_serve(request, cached):
            assert cached is not None  # noqa: S101 - _may_serve said so
            return self._respond(cached, journal, is_cached=True)
        if _runs_async(request.refresh, cached):
            return self._start_async(request, cached, journal)
        answer = await self._compute(request, journal, is_async=False)
        return self._respond(answer, journal, is_cached=False)

    def _may_serve(self, request: QueryRequest, cached: QueryAnswer | None) -> bool:
        if cached is None or request.refresh.startswith("force_"):
            return False
        freshness = timedelta(seconds=request.project.settings.cache_ttl_s)
        if request.refresh == "lazy_async":
            freshness = max(freshness, LAZY_FRESHNESS)
        return self._state.now() - cached.computed_at < freshness

    def _respond(self, answer: QueryAnswer, journal: dict[str, Any], *, is_cached: bool) -> Response:
        journal.update(is_cached=is_cached, result_rows=answer.row_count)
        if is_cached:
            journal.update(read_rows=0, read_bytes=0)
        return _json(answer.body(is_cached=is_cached), 200)

    def _start_async(
        self, request: QueryRequest, stale: QueryAnswer | None, journal: dict[str, Any]
    ) -> Response:
        self._forget_expired()
        key = (request.project.id, request.client_query_id)
        running = self._find_async(*key)
        if running is not None and request.refresh != "force_async":
            # Re-using an id gives the earlier query, whatever is asked now (execute_async.py).
            return _json(running.body(), running.http_status())
        now = self._state.now()
        query = AsyncQuery(request, now, now + _status_life(request.project))
        self._memory.async_queries.put(key, query)
        query.task = asyncio.create_task(self._run_async(query, journal))
        status = {**query.status(), "results": None}
        if request.refresh == "force_async":
            return json_response({"query_status": status}, status=202)
        if stale is not None:
            journal.update(is_cached=True)
            return _json(stale.body(is_cached=True, query_status=status), 202)
        return json_response({"cache_key": request.cache_key, "query_status": status}, status=202)

    async def _run_async(self, query: AsyncQuery, journal: dict[str, Any]) -> None:
        try:
            query.answer = await self._compute(query.request, journal, is_async=True, queued=query)
        except ApiError as error:
            query.error = error
        except Exception:
            logger.exception("A query in the background failed.")
            query.error = ApiError(500)
        query.ended_at = self._state.now()
        query.expires_at = query.ended_at + _status_life(query.request.project)
        self._memory.async_queries.shrink()

    async def _compute(
        self,
        request: QueryRequest,
        journal: dict[str, Any],
        *,
        is_async: bool,
        queued: AsyncQuery | None = None,
    ) -> QueryAnswer:
        async with self._slots.slot(request.project):
            await asyncio.sleep(request.project.settings.latency_s)
            if queued is not None and queued.is_dequeued:
                raise ApiError(500)
            try:
                printed, answer = await run_in_threadpool(self._run, request, journal, is_async=is_async)
            except Exception as error:
                raise to_api_error(error) from error
        result = build_answer(request, printed, answer, self._state.now())
        journal.update(
            read_rows=result.read_rows,
            read_bytes=result.read_bytes,
            result_rows=result.row_count,
            is_cached=False,
        )
        self._memory.answers.put(request.cache_key, result)
        return result

    def _run(
        self, request: QueryRequest, journal: dict[str, Any], *, is_async: bool
    ) -> tuple[Printed, Answer]:
        """Print and run one query; in a thread."""
        printed = print_query(request.query, request.context())
        if "query_log" in printed.sql:
            self._log.flush()
        started_at, label = (
            datetime.now(UTC),
            request.label(),
        )  # real ones: ClickHouse's clock filters the log
        error = None
        try:
            answer = self._clickhouse.run(
                printed.sql, settings=_limits(request.project, is_async=is_async), query_id=label
            )
        except ClickHouseError as failure:
            error = failure
        self._log.add(
            started_at,
            datetime.now(UTC),
            error,
            team_id=request.project.id,
            query_id=label,
            client_query_id=request.client_query_id,
            query=request.query,
            name=request.name,
            endpoint=f"/api/projects/{request.project.id}/query/",
            api_key_mask=journal.get("api_key_mask", ""),
        )
        if error is None:
            return printed, answer
        if cost := self._clickhouse.costs([label]).get(label):
            journal.update(
                read_rows=cost.read_rows, read_bytes=cost.read_bytes
            )  # PostHog bills it all the same
        raise error

    async def _retrieve(self, http: Request) -> Response:
        query = self._find_async(http.state.project.id, http.path_params["query_id"])
        if query is None:
            raise _not_found(http)
        progress = None
        if http.query_params.get("show_progress") == "true" and query.ended_at is None:
            prefix = query.request.label_prefix
            progress = await run_in_threadpool(self._clickhouse.progress, prefix) or NOT_STARTED
        return _json(query.body(progress), query.http_status())

    async def _destroy(self, http: Request) -> Response:
        """Cancel a query, async or not: execute_async.py, cancel_query."""
        project, query_id = http.state.project, http.path_params["query_id"]
        query = self._find_async(project.id, query_id)
        if query is not None and query.ended_at is not None:
            return json_response({"message": "Query already complete"})
        if query is not None:
            query.is_dequeued = True
            self._memory.async_queries.drop((project.id, query_id))
        if http.query_params.get("dequeue_only") == "true":
            return json_response({"message": DEQUEUED})
        await run_in_threadpool(self._clickhouse.cancel, label_prefix(project.id, query_id))
        return json_response({"message": CANCELLED})

    async def _refuse_action(self, _http: Request) -> Response:
        # posthog/permissions.py: these actions are in no scope's list.
        raise ApiError(403, "This action does not support personal API key access")

    def _find_cached(self, key: str) -> QueryAnswer | None:
        cached = self._memory.answers.get(key)
        if cached is not None and not is_kept(cached.computed_at, self._state.now()):
            self._memory.answers.drop(key)
            return None
        return cached

    def _find_async(self, project_id: int, query_id: str) -> AsyncQuery | None:
        query = self._memory.async_queries.get((project_id, query_id))
        return query if query is not None and query.expires_at > self._state.now() else None

    def _forget_expired(self) -> None:
        now = self._state.now()
        for key, query in self._memory.async_queries.items():
            if query.expires_at <= now:
                self._memory.async_queries.drop(key)


def _runs_async(refresh: str, cached: QueryAnswer | None) -> bool:
    if refresh == "async_except_on_cache_miss":
        return cached is not None
    return refresh in {"async", "force_async", "lazy_async"}


def _limits(project: Project, *, is_async: bool) -> dict[str, object]:
    settings = project.settings
    limits: dict[str, object] = dict(PRINTER_SETTINGS)
    limits["max_execution_time"] = settings.async_timeout_s if is_async else settings.query_timeout_s
    if settings.max_bytes_to_read:
        limits["max_bytes_to_read"] = settings.max_bytes_to_read
    if settings.max_memory_bytes:
        limits["max_memory_usage"] = settings.max_memory_bytes
    return limits


def _status_life(project: Project) -> timedelta:
    return timedelta(seconds=project.settings.async_status_life_s)


def _journal(http: Request, request: QueryRequest) -> dict[str, Any]:
    journal: dict[str, Any] = getattr(http.state, "journal", {})
    journal.update(
        query=request.query,
        name=request.name,
        client_query_id=request.client_query_id,
        is_cached=False,
        api_key_mask=_mask(http.state.key.value),
    )
    return journal


def _mask(key: str) -> str:
    return f"{key[:4]}...{key[-4:]}"


def _json(body: bytes, status: int) -> Response:
    return Response(body, status_code=status, media_type="application/json")


def _not_found(http: Request) -> ApiError:
    query_id, project = http.path_params["query_id"], http.state.project
    return ApiError(404, f"Query {query_id} not found for team {project.id}")
