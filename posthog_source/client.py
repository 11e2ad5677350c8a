"""The only socket: one HTTP client, authentication, time-outs, limits and retries.

`Client` asks and hands back what its caller's reader made of the bytes; reading is part of an attempt, so
that a cut answer is asked for again. Whether and when to ask again is decided by the error's own
`transient` and `retry_after_s`. Not here: what to ask (`query`), pages (`pagination`), rows (`arrow`).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

import httpx
import orjson
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from posthog_source.catalog import RateClass
from posthog_source.config import LOOPBACK_HOSTS, Settings
from posthog_source.errors import (
    ConnectionFailedError,
    DeadlineError,
    PosthogSourceError,
    RateLimitedError,
    ServerError,
    StuckCursorError,
    UnreadableAnswerError,
    error_from_response,
)
from posthog_source.query import Query
from posthog_source.rate_limit import Rate, RateLimiter

CONNECT_TIMEOUT_S = 10.0
FIRST_BUSY_WAIT_S = 30.0
"""Wait after a 429 that does not say how long: PostHog itself has queued the query that long already
(query_api.md 2.4)."""
LONGEST_BUSY_WAIT_S = 300.0
TELL_WAIT_S = 5.0

REST_RATES: Mapping[RateClass, tuple[Rate, ...]] = {
    "default": (Rate(480, 60), Rate(4_800, 3_600)),
    "clickhouse": (Rate(240, 60), Rate(1_200, 3_600)),
}
"""PostHog's limits of a key (rest_api.md 2.1)."""

MODIFIERS: Mapping[str, object] = {"convertToProjectTimezone": False}
"""Without it every time is read and written in the project's zone (query_api.md 6.2)."""

logger = logging.getLogger("posthog_source")

T = TypeVar("T")


class Client:
    """Asks one PostHog project. Thread-safe; close it, or use it as a context manager.

    Args:
        settings: Where, with which key, how patiently.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        queries = (Rate(settings.queries_per_minute, 60), Rate(settings.queries_per_hour, 3_600))
        rates: dict[RateClass, tuple[Rate, ...]] = {"queries": queries, **REST_RATES}
        self._limiters = {
            name: RateLimiter(limits, clock=clock, sleep=sleep) for name, limits in rates.items()
        }
        self._http = httpx.Client(
            base_url=settings.base_url,
            headers={"Authorization": f"Bearer {settings.api_key.reveal()}", "User-Agent": "posthog-source"},
            timeout=httpx.Timeout(settings.query_timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            trust_env=urlsplit(settings.base_url).hostname not in LOOPBACK_HOSTS,  # httpx proxies loopback
            follow_redirects=False,  # a redirect would take the key along, and turn POST into GET
        )
        self._places = threading.BoundedSemaphore(settings.look_ahead)
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

    def query(self, query: Query, read: Callable[[bytes], T]) -> T:
        """Asks for live rows and returns what `read` makes of the answer.

        Args:
            query: HogQL with its values.
            read: Turns the body into a value; may raise `UnreadableAnswerError` or `StaleAnswerError`,
                which are asked again.

        Raises:
            ApiError: PostHog refuses, after the tries that make sense.
            ConnectionFailedError: No answer after all tries.
            DeadlineError: PostHog asks for a longer wait than `wait_deadline_s`.
        """

        def build() -> bytes:
            return orjson.dumps(
                {
                    "query": {
                        "kind": "HogQLQuery",
                        "query": query.text,
                        "values": query.values,
                        "modifiers": MODIFIERS,
                        "name": query.name,
                    },
                    "refresh": "force_blocking",  # anything else may answer from the cache
                    "client_query_id": str(uuid.uuid4()),  # a used id may answer with its old result
                    "name": query.name,
                }
            )

        return self._ask("POST", self._path("query/"), read, build=build, rate="queries", label=query.name)

    def get(
        self, path: str, params: Mapping[str, str] | None = None, *, rate: RateClass = "default"
    ) -> dict[str, object]:
        """One JSON object from `/api/projects/:id/{path}`. Raises as `query`."""
        query_string = str(httpx.QueryParams(params)) if params else ""
        target = self._path(path) + (f"?{query_string}" if query_string else "")
        return self._ask("GET", target, _read_object, rate=rate)

    def list(
        self, path: str, params: Mapping[str, str], *, rate: RateClass = "default"
    ) -> Iterator[dict[str, object]]:
        """Pages of a REST list, each with `results`, until PostHog names no next one.

        Of `next`, only the query string is used: its host is whatever the server took itself for, and the
        key must not go there (rest_api.md 1.4).

        Raises:
            StuckCursorError: `next` leads back to the page it came with.
            ApiError, ConnectionFailedError, DeadlineError: As `query`.
        """
        asked: dict[str, str] | None = dict(params)
        while asked is not None:
            page = self.get(path, asked, rate=rate)
            yield page
            following = page.get("next")
            coming = dict(parse_qsl(urlsplit(following).query)) if isinstance(following, str) else None
            if coming == asked:
                raise StuckCursorError(f"PostHog's next page of {path} is the page itself.")
            asked = coming

    def _path(self, path: str) -> str:
        return f"/api/projects/{self._settings.project_id}/{path}"

    def _ask(
        self,
        method: str,
        target: str,
        read: Callable[[bytes], T],
        *,
        rate: RateClass,
        build: Callable[[], bytes] | None = None,
        label: str = "",
    ) -> T:
        where = f"{method} {target.split('?')[0]}" + (f" ({label})" if label else "")
        limiter = self._limiters[rate]
        patience = _Patience(self._settings, limiter, where)
        retrying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, PosthogSourceError) and error.transient),
            wait=patience.wait_s,
            stop=patience.is_over,
            sleep=self._sleep,
            before_sleep=patience.tell,
            reraise=True,
        )

        def attempt() -> T:
            waited_s = limiter.acquire()
            if waited_s > TELL_WAIT_S:
                logger.info("Waited %.0f s to keep PostHog's limits. %s", waited_s, where)
            try:
                with self._places:
                    return read(self._send(method, target, where, build() if build else None))
            except PosthogSourceError as error:
                patience.count(error)
                raise

        return retrying(attempt)

    def _send(self, method: str, target: str, where: str, content: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"} if content else None
        try:
            response = self._http.request(method, target, content=content, headers=headers)
        except httpx.DecodingError:
            raise UnreadableAnswerError(f"PostHog's answer to {where} does not unpack.") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ConnectionFailedError(
                f"No answer to {where} from {self._settings.base_url}: {reason}. Check host and network."
            ) from None
        if response.status_code >= 300:
            raise error_from_response(response.status_code, response.headers, response.content, where=where)
        return response.content


@dataclass
class _Patience:
    """How long one request goes on asking: imposed waits are bounded by time, faults by tries."""

    settings: Settings
    limiter: RateLimiter
    where: str
    faults: int = 0
    busy_answers: int = 0

    def count(self, error: PosthogSourceError) -> None:
        """Counts a failed attempt."""
        if isinstance(error, RateLimitedError):
            self.busy_answers += 1
        else:
            self.faults += 1

    def wait_s(self, state: RetryCallState) -> float:
        """Seconds before the next attempt, as the error says, else growing."""
        error = _error_of(state)
        if isinstance(error, RateLimitedError | ServerError) and error.retry_after_s is not None:
            return error.retry_after_s
        if isinstance(error, RateLimitedError):
            return min(LONGEST_BUSY_WAIT_S, FIRST_BUSY_WAIT_S * 2.0 ** (self.busy_answers - 1))
        return _fault_wait(state)

    def is_over(self, state: RetryCallState) -> bool:
        """Whether the last error stands."""
        error = _error_of(state)
        if self.faults >= self.settings.max_attempts:
            return True
        if isinstance(error, RateLimitedError | ServerError):
            wait_s = self.wait_s(state)
            if state.idle_for + wait_s > self.settings.wait_deadline_s:
                raise DeadlineError(
                    f"PostHog asks {self.where} to wait {wait_s:.0f} s more, beyond wait_deadline_s = "
                    f"{self.settings.wait_deadline_s:.0f}. Run later, or raise it under [sources.posthog]."
                ) from error
        return False

    def tell(self, state: RetryCallState) -> None:
        """Says so, and holds all threads when the limit is everybody's."""
        error = _error_of(state)
        wait_s = state.upcoming_sleep
        if isinstance(error, RateLimitedError):
            self.limiter.pause(wait_s)
        logger.warning("Asking again in %.1f s. %s", wait_s, error)


_fault_wait = wait_random_exponential(multiplier=0.5, max=30)


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _read_object(body: bytes) -> dict[str, object]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = None
    if not isinstance(parsed, dict):
        raise UnreadableAnswerError(f"PostHog answered 200 with {len(body)} bytes that are no JSON object.")
    return parsed
