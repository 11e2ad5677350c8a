"""The only socket: one HTTP client, authentication, time-outs, limits and retries.

`Client` asks and hands back what its caller's reader made of the bytes; reading is part of an attempt, so
that a cut answer is asked for again. Whether and when to ask again is decided by the error's own
`transient` and `retry_after_s`. Not here: what to ask (`query`), pages (`pagination`), rows (`arrow`).
"""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain, repeat
from types import TracebackType
from typing import Literal, ParamSpec, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

import httpx
import orjson
import pyarrow as pa
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from posthog_source.config import LOOPBACK_HOSTS, Settings
from posthog_source.errors import (
    Body,
    ConnectionFailedError,
    DeadlineError,
    InterruptedRunError,
    LostQueryError,
    PosthogSourceError,
    RateLimitedError,
    ServerError,
    StuckCursorError,
    TooHeavyError,
    UnreachableError,
    UnreadableAnswerError,
    error_from_poll,
    error_from_response,
)
from posthog_source.query import Query
from posthog_source.rate_limit import Gate, Rate, Turn, shared_gate
from posthog_source.tables import RateClass
from posthog_source.tracing import Value, span

CONNECT_TIMEOUT_S = 10.0
FIRST_CONTACT_TRIES = 3
"""Connections tried before the first answer: until then a wrong host setting is likelier than a fault."""
FIRST_BUSY_WAIT_S = 30.0
"""Wait after a 429 that does not say how long: PostHog itself has queued the query that long already
(query_api.md 2.4)."""
LONGEST_BUSY_WAIT_S = 300.0
TELL_WAIT_S = 5.0
LONGEST_GOODBYE_S = 3.0
"""How long telling PostHog to stop queries may take."""

ASYNC_DEADLINE_S = 660.0
"""Longest wait for a query in the background: PostHog runs it for up to 600 s (query_api.md 2.2), after up
to 30 s for a free place (2.4), and its workers need a while to pick it up."""

REST_RATES: Mapping[str, tuple[Rate, ...]] = {
    "default": (Rate(480, 60), Rate(4_800, 3_600)),
    "clickhouse": (Rate(240, 60), Rate(1_200, 3_600)),
}
"""PostHog's limits of a key (rest_api.md 2.1)."""

ERROR_MEMBERS = frozenset({"type", "code", "detail", "attr"})
"""Of the object that PostHog tells an error with (query_api.md 3)."""

MODIFIERS: Mapping[str, object] = {"convertToProjectTimezone": False}
"""Without it every time is read and written in the project's zone (query_api.md 6.2)."""

logger = logging.getLogger("posthog_source")

P = ParamSpec("P")
T = TypeVar("T")

Parent = Literal["projects", "environments", "server"]
"""What a REST path stands below: the project, by its name or the older one, or `/api/` itself."""


@dataclass(frozen=True)
class Usage:
    """What a client has cost so far. `later - earlier` is what came between.

    Attributes:
        requests: Sent, whatever came of them.
        retries: Requests sent again, after faults and limits alike.
        waited_s: Seconds waited because PostHog's limits or its `Retry-After` said so, of all threads
            together.
        backed_off_s: Seconds waited after faults, likewise.
        received_bytes: Bodies as they came over the wire, compressed; of answers that came whole.
        queries: Queries among the requests, without polls.
    """

    requests: int = 0
    retries: int = 0
    waited_s: float = 0.0
    backed_off_s: float = 0.0
    received_bytes: int = 0
    queries: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass
class Proof:
    """What a server has shown of itself.

    Attributes:
        rows: Rows that it has handed out in one answer: one with fewer was not cut by a lower cap of its own.
    """

    rows: int = 0


class Client:
    """Asks one PostHog project. Thread-safe; close it, or use it as a context manager.

    All clients of a key and host in a process share PostHog's limits and the places for open requests; of
    different settings the stricter count. A client with a clock or sleep of its own shares with nobody.

    Args:
        settings: Where, with which key, how patiently.
        clock: Monotonic seconds.
        sleep: Waits that many seconds. Without it, waits end at once when they are cancelled.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._settings = settings
        self._gate = _gate_of(settings, clock, sleep)
        trust_env = urlsplit(settings.base_url).hostname not in LOOPBACK_HOSTS  # httpx proxies loopback
        self._http = httpx.Client(
            base_url=settings.base_url,
            headers={"Authorization": f"Bearer {settings.api_key.reveal()}", "User-Agent": "posthog-source"},
            timeout=httpx.Timeout(settings.query_timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            trust_env=trust_env,
            verify=_certificates(trust_env),
            follow_redirects=False,  # a redirect would take the key along, and turn POST into GET
        )
        self._lock = threading.Lock()
        self._usage = Usage()
        self._calls: set[_Call] = set()
        self._has_answered = threading.Event()
        self.proof = Proof()
        self._is_cancelled = threading.Event()
        self._label = _new_label()
        self._whole: Client | None = None
        self._thread = threading.local()
        self._close = weakref.finalize(self, self._http.close)

    def __repr__(self) -> str:
        return f"Client({self._settings.base_url!r}, project_id={self._settings.project_id})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._close()

    def metered(self) -> Client:
        """This client, counting only what is asked through what is returned."""
        own = copy(self)
        own._usage, own._label, own._whole = Usage(), _new_label(), self  # closed with the last of them
        return own

    @property
    def usage(self) -> Usage:
        """What all requests so far have cost."""
        with self._lock:
            return self._usage

    @property
    def query_label(self) -> str:
        """Part of the `client_query_id` of each query asked through this object, and of no other."""
        return self._label

    def wait(self, seconds: float) -> None:
        """Waits, unless cancelled."""
        self._gate.wait(seconds, check=lambda _: self._check(None))

    def cancel(self) -> None:
        """Gives up everything, now and later: what waits, what is in flight, and what is yet to be asked.

        PostHog is told to stop the queries in flight. For good; every request of any thread raises
        `InterruptedRunError` from now on.
        """
        self._is_cancelled.set()
        self._give_up(*self._calls_of(None))

    def cancel_scope(self) -> CancelScope:
        """For requests that may be given up together, while the client goes on."""
        return CancelScope(self)

    def query(self, query: Query, read: Callable[[Body], T]) -> T:
        """Asks for live rows and returns what `read` makes of the answer.

        Args:
            query: HogQL with its values.
            read: Turns the body into a value; may raise `UnreadableAnswerError` or `StaleAnswerError`,
                which are asked again.

        Raises:
            ApiError: PostHog refuses, after the tries that make sense.
            ConnectionFailedError: No answer after all tries.
            DeadlineError: PostHog asks for a longer wait than `wait_deadline_s`.
            InterruptedRunError: It was given up.
        """
        # Anything but force_blocking may answer from the cache.
        request = self._query_request(query, refresh="force_blocking")
        return self._ask(request, lambda answer, _: read(_accept(answer, request)))

    def query_async(self, query: Query, read: Callable[[Body], T]) -> T:
        """As `query`, in the background, where PostHog lets a query run for minutes instead of seconds.

        For a query that `query` found too heavy and that cannot be made smaller. It takes a place of
        PostHog's, and one of ours, until it is done; polls count against the limits as queries do.

        Raises:
            TooHeavyError: It failed in the background, for which PostHog gives a message and no code, or
                was not done in `ASYNC_DEADLINE_S`, all tries together.
            ApiError, ConnectionFailedError, DeadlineError, InterruptedRunError: As `query`.
        """
        request = self._query_request(query, refresh="force_async")
        patience = self._patience(request)
        polled_s = 0.0

        def await_answer(submitted: _Answer, call: _Call) -> T:
            nonlocal polled_s
            _accept(submitted, request)
            poll = self._poll_request(call.query_id, query.name)
            for wait_s in poll_waits():
                self._gate.wait(wait_s, check=patience.check)
                polled_s += wait_s
                answer = self._ask(poll, lambda polled, _: _read_poll(polled, read, poll), patience)
                if answer is not None:
                    return answer[0]
                if polled_s >= ASYNC_DEADLINE_S:
                    break
            self._give_up(call)
            raise TooHeavyError(
                f"{request.where} is not done after {polled_s:.0f} s in the background. Ask for less.",
                status=202,
            )

        return self._ask(request, await_answer, patience)

    def get(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        rate: RateClass = "default",
        parent: Parent = "projects",
        is_heavy: bool = False,
    ) -> dict[str, object]:
        """One JSON object from `/api/projects/:id/{path}`, or below another parent. Raises as `query`.

        Where PostHog has to compute it (`is_heavy`) and gives up, it is not asked again.
        """
        return self._get(path, params, rate, _read_object, parent, is_heavy=is_heavy)

    def list(
        self,
        path: str,
        params: Mapping[str, str],
        *,
        rate: RateClass = "default",
        parent: Parent = "projects",
    ) -> Iterator[dict[str, object]]:
        """Pages of a REST list, each with `results`, until PostHog names no next one.

        Some servers have some lists only under the older `/api/environments/:id/` (rest_api.md 1.1).

        Of `next`, only the query string is used: its host is whatever the server took itself for, and the
        key must not go there (rest_api.md 1.4).

        Raises:
            StuckCursorError: `next` leads back to the page it came with.
            ApiError, ConnectionFailedError, DeadlineError, InterruptedRunError: As `query`.
        """
        asked: dict[str, str] | None = dict(params)
        while asked is not None:
            page = self._get(path, asked, rate, _read_page, parent)
            yield page
            following = page.get("next")
            coming = dict(parse_qsl(urlsplit(following).query)) if isinstance(following, str) else None
            if coming == asked:
                raise StuckCursorError(f"PostHog's next page of {path} is the page itself.")
            asked = coming

    def _get(
        self,
        path: str,
        params: Mapping[str, str] | None,
        rate: RateClass,
        read: Callable[[Body], dict[str, object]],
        parent: Parent = "projects",
        *,
        is_heavy: bool = False,
    ) -> dict[str, object]:
        query_string = str(httpx.QueryParams(params)) if params else ""
        target = self._path(path, parent) + (f"?{query_string}" if query_string else "")
        request = _Request("GET", target, rate, is_heavy=is_heavy)
        return self._ask(request, lambda answer, _: read(_accept(answer, request)))

    def _path(self, path: str, parent: Parent = "projects") -> str:
        return f"/api/{path}" if parent == "server" else f"/api/{parent}/{self._settings.project_id}/{path}"

    def _query_request(self, query: Query, *, refresh: str) -> _Request:
        def build(query_id: str) -> bytes:
            return orjson.dumps(
                {
                    "query": {
                        "kind": "HogQLQuery",
                        "query": query.text,
                        "values": query.values,
                        "modifiers": MODIFIERS,
                        "name": query.name,
                    },
                    "refresh": refresh,
                    "client_query_id": query_id,
                    "name": query.name,
                }
            )

        is_heavy = refresh == "force_blocking"
        path = self._path("query/")
        return _Request(
            "POST", path, "queries", query.name, build=build, scope="query:read", is_heavy=is_heavy
        )

    def _poll_request(self, query_id: str, name: str) -> _Request:
        target = self._path(f"query/{query_id}/?show_progress=true")
        return _Request("GET", target, "queries", name, is_poll=True)

    def _patience(self, request: _Request) -> _Patience:
        return _Patience(self, request, getattr(self._thread, "scope", None))

    def _ask(
        self,
        request: _Request,
        receive: Callable[[_Answer, _Call], T],
        patience: _Patience | None = None,
    ) -> T:
        patience = patience or self._patience(request)
        retrying = Retrying(
            retry=retry_if_exception(request.is_worth_asking_again),
            wait=patience.wait_s,
            stop=patience.is_over,
            sleep=patience.sleep,
            before_sleep=patience.tell,
            reraise=True,
        )

        def attempt() -> T:
            with self._call(request, patience) as call:
                try:
                    answer = receive(self._send(request, call), call)
                except PosthogSourceError as error:
                    patience.check(0.0)
                    if request.is_worth_asking_again(error):
                        patience.count(error, call.turn)
                    raise
                self._gate.widen()
                return answer

        return retrying(attempt)

    @contextmanager
    def _call(self, request: _Request, patience: _Patience) -> Iterator[_Call]:
        """A request's way through the gate and back."""
        turn = self._gate.enter(request.rate, check=patience.check, takes_place=not request.is_poll)
        if turn.waited_s > TELL_WAIT_S:
            logger.info("Waited %.0f s to keep PostHog's limits. %s", turn.waited_s, request.where)
        call = _Call(patience.scope, turn, f"{self._label}{uuid.uuid4().hex[-12:]}" if request.build else "")
        try:
            self._begin(call)
            yield call
        except Exception:
            raise
        except BaseException:  # Ctrl-C: nobody waits for the answer any more
            self._give_up(call)
            raise
        finally:
            self._gate.leave(turn)
            with self._lock:
                self._calls.discard(call)

    def _begin(self, call: _Call) -> None:
        """Enters a call where `cancel` finds it, unless it came first."""
        with self._lock:
            self._check(call.scope)
            self._calls.add(call)
            self._usage += Usage(waited_s=call.turn.waited_s)

    @contextmanager
    def _in_scope(self, scope: CancelScope) -> Iterator[None]:
        """This thread's requests belong to that scope."""
        before = getattr(self._thread, "scope", None)
        self._thread.scope = scope
        try:
            yield
        finally:
            self._thread.scope = before

    def _check(self, scope: CancelScope | None) -> None:
        if self._is_cancelled.is_set() or (scope and scope.is_cancelled):
            raise InterruptedRunError("Given up before PostHog answered: interrupted, or wanted no more.")

    def _send(self, request: _Request, call: _Call) -> _Answer:
        content = request.build(call.query_id) if request.build else None
        headers = {"Content-Type": "application/json"} if content else None
        self._spend(Usage(requests=1, queries=1 if content else 0))
        try:
            answer = self._receive(request, content, headers)
        except httpx.DecodingError:
            raise UnreadableAnswerError(f"PostHog's answer to {request.where} does not unpack.") from None
        except httpx.HTTPError as error:
            if isinstance(error, httpx.ReadTimeout) and call.query_id:
                self._stop_query(call.query_id)  # it would go on, next to its own repetition
            raise self._no_answer(request, error) from None
        self._has_answered.set()
        self._spend(Usage(received_bytes=answer.received_bytes))
        return answer

    def _receive(
        self, request: _Request, content: bytes | None, headers: Mapping[str, str] | None
    ) -> _Answer:
        """The answer, whole."""
        with span(request.method, self._attributes(request), is_request=True) as opened:
            with self._http.stream(
                request.method, request.target, content=content, headers=headers
            ) as response:
                body = _join(deque(response.iter_bytes()))
            answer = _Answer(response.status_code, response.headers, body, response.num_bytes_downloaded)
            opened.tell(
                {
                    "http.response.status_code": answer.status,
                    "http.response.body.size": answer.received_bytes,
                }
            )
            if answer.status >= 400:
                opened.fail(str(answer.status))
        return answer

    def _attributes(self, request: _Request) -> dict[str, Value]:
        """What a span tells of a request; the query string may hold what a person wrote."""
        at = urlsplit(self._settings.base_url)
        told: dict[str, Value] = {
            "http.request.method": request.method,
            "server.address": at.hostname or "",
            "server.port": at.port or (443 if at.scheme == "https" else 80),
            "url.full": self._settings.base_url + request.target.split("?")[0],
        }
        return told | ({"posthog_source.query": request.label} if request.label else {})

    def _no_answer(self, request: _Request, error: httpx.HTTPError) -> ConnectionFailedError:
        is_unreachable = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        kind = UnreachableError if is_unreachable else ConnectionFailedError
        reason = str(error) or type(error).__name__
        return kind(
            f"No answer to {request.where} from {self._settings.base_url}: {reason}. Check host and network."
        )

    def _spend(self, cost: Usage) -> None:
        with self._lock:
            self._usage += cost

    def _calls_of(self, scope: CancelScope | None) -> tuple[_Call, ...]:
        with self._lock:
            return tuple(call for call in self._calls if scope is None or call.scope is scope)

    def _give_up(self, *calls: _Call) -> None:
        """Ends waits, has PostHog stop the queries in flight, and frees the places of all that hangs on.

        A thread that PostHog still does not answer is left to its time-out.
        """
        self._gate.wake()
        goodbyes = [
            threading.Thread(target=self._stop_query, args=(call.query_id,), daemon=True)
            for call in calls
            if call.query_id
        ]
        with suppress(RuntimeError):  # no thread starts any more while the process ends
            for goodbye in goodbyes:
                goodbye.start()
            until = time.monotonic() + LONGEST_GOODBYE_S
            for goodbye in goodbyes:
                goodbye.join(max(0.0, until - time.monotonic()))
        for call in calls:
            self._gate.leave(call.turn)

    def _stop_query(self, query_id: str) -> None:
        """Asks PostHog to stop a query; best effort (query_api.md 1.5)."""
        self._gate.count("queries")
        self._spend(Usage(requests=1))
        try:
            self._http.delete(self._path(f"query/{query_id}/"), timeout=LONGEST_GOODBYE_S)
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: closed meanwhile
            logger.debug("Query %s was not stopped: %s", query_id, error)


class CancelScope:
    """Requests that may be given up together, without harm to others of their client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.is_cancelled = False

    def bind(self, work: Callable[P, T]) -> Callable[P, T]:
        """The same work, whose requests to the client belong to this scope."""

        def bound(*args: P.args, **kwargs: P.kwargs) -> T:
            with self._client._in_scope(self):
                return work(*args, **kwargs)

        return bound

    def cancel(self) -> None:
        """Gives up its requests, as `Client.cancel` does all. For good; more work wants a new scope."""
        self.is_cancelled = True
        self._client._give_up(*self._client._calls_of(self))


def _new_label() -> str:
    """The beginning of a uuid, to be ended by twelve digits."""
    return str(uuid.uuid4())[:-12]


def poll_waits() -> Iterator[float]:
    """Seconds before each poll of a query in the background: growing, since polls count as queries do."""
    return chain((1.0, 2.0, 4.0, 8.0), repeat(15.0))


def unwrap_answer(body: Body) -> Body:
    """The answer inside a finished query's status, byte for byte, as `query` would have had it.

    Not parsed and written again: that loses what only the reader knows to mend, such as half a surrogate
    pair. At 130 MB/s it takes nothing beside a query that PostHog ran for more than 10 s.

    Raises:
        UnreadableAnswerError: There is none, or it is cut.
    """
    key = _RESULTS.search(body)
    at, depth = key.end() if key else len(body), 0
    while brace := _TO_BRACE.match(body, at):
        depth += 1 if brace[1] == b"{" else -1
        at = brace.end()
        if depth == 0 and key:
            return body[key.end() : at]
    raise UnreadableAnswerError(f"PostHog answered a poll with {len(body)} bytes without a whole answer.")


_RESULTS = re.compile(rb'"results"\s*:\s*(?=\{)')
"""Inside a JSON string the quotes would be escaped, so this is a key; the outermost one comes first."""
_TO_BRACE = re.compile(rb'(?:[^"{}]|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+([{}])', re.DOTALL)
"""Up to the next brace that is not inside a string."""


@dataclass(frozen=True)
class _Request:
    """What is asked.

    Attributes:
        method: HTTP method.
        target: Path and query string.
        rate: The limit that it counts against.
        label: For people.
        build: Makes the body of a query from its id, which is new for each try: a used one may answer
            with its old result (query_api.md 1.5).
        scope: What the key needs for it, where known.
        is_poll: It asks after a query in the background, which has a place already.
        is_heavy: PostHog computes the answer while we wait, and may find that too heavy; anything else that
            it says so of is a fault of the moment.
    """

    method: str
    target: str
    rate: RateClass
    label: str = ""
    build: Callable[[str], bytes] | None = None
    scope: str = ""
    is_poll: bool = False
    is_heavy: bool = False

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.method} {self.target.split('?')[0]}" + (f" ({self.label})" if self.label else "")

    def is_worth_asking_again(self, error: BaseException) -> bool:
        """Whether the same once more may help: not a poll for a query that is gone."""
        if self.is_poll and isinstance(error, LostQueryError):
            return False
        if isinstance(error, TooHeavyError):
            return not self.is_heavy and error.status >= 500
        return isinstance(error, PosthogSourceError) and error.transient


@dataclass(frozen=True)
class _Answer:
    """What came.

    Attributes:
        status: HTTP status.
        headers: Names in lower case.
        body: Unpacked.
        received_bytes: Of the body, as they came over the wire.
    """

    status: int
    headers: Mapping[str, str]
    body: memoryview
    received_bytes: int


@dataclass(eq=False)
class _Call:
    """A request on its way.

    Attributes:
        scope: What it may be given up with.
        turn: Its passage through the gate.
        query_id: Name under which PostHog can be told to stop it, if it is a query.
    """

    scope: CancelScope | None
    turn: Turn
    query_id: str


@dataclass
class _Patience:
    """How long one request goes on asking: imposed waits are bounded by time, faults by tries."""

    client: Client
    request: _Request
    scope: CancelScope | None
    faults: int = 0
    busy_answers: int = 0

    @property
    def _deadline_s(self) -> float:
        return self.client._settings.wait_deadline_s

    def check(self, pause_s: float) -> None:
        """Ends a wait that is given up, or that has no prospect of ending in time."""
        self.client._check(self.scope)
        if pause_s > self._deadline_s:
            raise DeadlineError(self._beyond_deadline(pause_s))

    def count(self, error: PosthogSourceError, turn: Turn) -> None:
        """Counts a failed attempt, and holds everyone when the limit is everybody's.

        While the attempt still has its place: nobody may take it and go through before the pause.
        """
        if not isinstance(error, RateLimitedError):
            self.faults += 1
            return
        self.busy_answers += 1
        gate = self.client._gate
        if error.retry_after_s is None:
            gate.pause(self.request.rate, self._imposed_s(error) or 0.0)
            gate.narrow()
        else:
            gate.refuse(self.request.rate, turn, error.retry_after_s)

    def wait_s(self, state: RetryCallState) -> float:
        """Seconds before the next attempt, as the error says, else growing."""
        imposed_s = self._imposed_s(_error_of(state))
        return _fault_wait(state) if imposed_s is None else imposed_s

    def is_over(self, state: RetryCallState) -> bool:
        """Whether the last error stands."""
        error = _error_of(state)
        if self.faults >= self._tries(error):
            return True
        imposed_s = self._imposed_s(error)
        if imposed_s is not None and state.idle_for + imposed_s > self._deadline_s:
            raise DeadlineError(self._beyond_deadline(imposed_s, error)) from error
        return False

    def tell(self, state: RetryCallState) -> None:
        """Says what is waited for, and puts it down."""
        wait_s, error = state.upcoming_sleep, _error_of(state)
        is_imposed = self._imposed_s(error) is not None
        cost = Usage(retries=1, waited_s=wait_s) if is_imposed else Usage(retries=1, backed_off_s=wait_s)
        self.client._spend(cost)
        logger.warning("Asking again in %.1f s. %s", wait_s, error)

    def sleep(self, seconds: float) -> None:
        """Waits for the next attempt, unless it is given up."""
        self.client._gate.wait(seconds, check=self.check)

    def _imposed_s(self, error: BaseException | None) -> float | None:
        """The wait that PostHog imposes, if it does."""
        if isinstance(error, RateLimitedError | ServerError) and error.retry_after_s is not None:
            return error.retry_after_s
        if isinstance(error, RateLimitedError):
            return min(LONGEST_BUSY_WAIT_S, FIRST_BUSY_WAIT_S * 2.0 ** (self.busy_answers - 1))
        return None

    def _tries(self, error: BaseException | None) -> int:
        tries = self.client._settings.max_attempts
        if isinstance(error, UnreachableError) and not self.client._has_answered.is_set():
            return min(tries, FIRST_CONTACT_TRIES)
        return tries

    def _beyond_deadline(self, wait_s: float, error: BaseException | None = None) -> str:
        if isinstance(error, RateLimitedError) and error.retry_after_s is None:
            return (
                f"PostHog has refused {self.request.where} for wait_deadline_s = {self._deadline_s:.0f} and "
                "does not say until when: other queries take all places, or a quota is spent. See PostHog's "
                f"billing page, or run again later. {error}"
            )
        until = datetime.now(UTC) + timedelta(seconds=wait_s)
        return (
            f"PostHog's limits hold {self.request.where} for {wait_s:.0f} s more, until "
            f"{until:%Y-%m-%d %H:%M:%S} UTC, beyond wait_deadline_s = {self._deadline_s:.0f}. "
            "Run after that, or raise it under [sources.posthog]."
        )


_fault_wait = wait_random_exponential(multiplier=0.5, max=30)


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


@lru_cache
def _certificates(trust_env: bool) -> ssl.SSLContext:
    """Whom to trust: to read them takes 25 ms, and a process that runs more than once has many clients."""
    return httpx.create_ssl_context(trust_env=trust_env)


def _gate_of(
    settings: Settings, clock: Callable[[], float] | None, sleep: Callable[[float], object] | None
) -> Gate:
    queries = (Rate(settings.queries_per_minute, 60), Rate(settings.queries_per_hour, 3_600))
    rates: dict[str, tuple[Rate, ...]] = {"queries": queries, **REST_RATES}
    if clock or sleep:
        return Gate(rates, places=settings.look_ahead, clock=clock or time.monotonic, sleep=sleep)
    owner = f"{settings.base_url} {settings.api_key.reveal()}"
    return shared_gate(hashlib.sha256(owner.encode()).hexdigest(), rates, places=settings.look_ahead)


def _join(pieces: deque[bytes]) -> memoryview:
    """Pieces as one, in Arrow's memory, letting go of each on the way.

    httpx would hold the pieces and their sum at once, and Python does not give back to the machine what
    objects so large, each of another size, have taken.
    """
    body = memoryview(pa.allocate_buffer(sum(map(len, pieces)))).cast("B")
    at = 0
    while pieces:
        piece = pieces.popleft()
        body[at : at + len(piece)] = piece
        at += len(piece)
    return body


def _accept(answer: _Answer, request: _Request) -> memoryview:
    """The body, unless the answer is a refusal."""
    if answer.status >= 300:
        raise error_from_response(
            answer.status,
            answer.headers,
            answer.body,
            where=request.where,
            scope=request.scope,
        )
    return answer.body


def _read_poll(answer: _Answer, read: Callable[[Body], T], request: _Request) -> tuple[T] | None:
    """What `read` makes of a query that is done; None while it runs."""
    if answer.status == 202:
        return None
    if answer.status >= 300:
        raise error_from_poll(answer.status, answer.headers, answer.body, where=request.where)
    return (read(unwrap_answer(answer.body)),)


def _read_object(body: Body) -> dict[str, object]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise UnreadableAnswerError(f"PostHog answered 200 with {len(body)} bytes that are no JSON object.")
    if parsed.keys() >= ERROR_MEMBERS:
        raise UnreadableAnswerError("PostHog answered 200 with an error in place of what was asked for.")
    return parsed


def _read_page(body: Body) -> dict[str, object]:
    if body[:1] == b"[":  # some lists come bare and whole (rest_api.md 4.15)
        body = b'{"results":%b,"next":null}' % bytes(body)
    page = _read_object(body)
    if not isinstance(page.get("results"), list):
        raise UnreadableAnswerError("PostHog answered 200 to a list with an object that has no results.")
    return page
