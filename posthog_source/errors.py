"""Everything that can go wrong, as one tree, and the one place that reads PostHog's error answers.

    PosthogSourceError
    ├── SettingsError                a setting is missing or wrong; mostly told before anything is sent
    ├── ApiError                     PostHog answered, and the answer is a refusal (.status, .code)
    │   ├── QueryRefusedError        400  the query or request itself is at fault
    │   ├── AuthenticationError      401  key revoked, or another region's key
    │   ├── QuotaSpentError          402  plan or billing quota; not a matter of waiting
    │   ├── AccessDeniedError        403  a scope or a project that the key does not have
    │   ├── NotFoundError            404  nothing there that this key may see
    │   ├── RedirectedError          3xx  the host setting is not where PostHog answers
    │   ├── TooHeavyError            504, 512, 513, too_many_bytes: ask for less, never the same again
    │   ├── RateLimitedError         429  wait (.retry_after_s when PostHog says how long)   transient
    │   ├── LostQueryError           a query in the background is gone, or failed silently   transient
    │   └── ServerError              other 5xx                                               transient
    ├── ConnectionFailedError        no answer: reset, timed out, cut off                    transient
    │   └── UnreachableError         not even a connection: no such name, nobody listens     transient
    ├── UnreadableAnswerError        an answer that is not the JSON it should be             transient
    ├── DeadlineError                waiting any longer would pass the deadline that was set
    ├── InterruptedRunError          given up on purpose, half-way
    └── ExactnessError               better no load than a wrong one
        ├── StaleAnswerError         an answer from PostHog's cache to a question for live rows  transient
        ├── MissingRowsError         fewer rows arrived than PostHog counts
        ├── StuckCursorError         a page ended where it began
        └── UnexpectedAnswerError    columns or types that the table does not declare

``transient`` errors are worth asking again; `client` does so, below the page generators. Whether to ask
again is never decided by the text of a message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import ClassVar

import orjson

MAX_DETAIL_CHARS = 300

Body = bytes | memoryview
"""What came in an answer, unpacked."""


class PosthogSourceError(Exception):
    """Root of everything that this package raises on purpose. One line: what, where, what to do."""

    transient: ClassVar[bool] = False


class SettingsError(PosthogSourceError, ValueError):
    """A setting, an argument or the warehouse behind it cannot be right.

    The message names the setting, what it may be, and where to set it. Most are found before anything is
    sent; a condition or a query of your own is tried out by PostHog, whose words are passed on.
    """


class ApiError(PosthogSourceError):
    """PostHog answered with a refusal.

    Attributes:
        status: HTTP status.
        code: PostHog's machine code, such as ``hogql_query_error``; empty when the body had none.
    """

    def __init__(self, message: str, *, status: int, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class QueryRefusedError(ApiError):
    """400 and its kin: the request itself is at fault; asking again changes nothing.

    Where it is about a query or a condition of your own, PostHog's words say what is wrong with it. Else
    please report it, with the message: PostHog has changed.
    """


class AuthenticationError(ApiError):
    """401: the key is revoked or belongs to another region.

    PostHog says the same of both. Look first whether ``host`` is the region in PostHog's address bar, then
    make a new personal API key.
    """


class QuotaSpentError(ApiError):
    """402: the plan or its quota does not allow this until the billing period ends.

    What is committed stays, and the next sync goes on from there. Until then, raise the quota in PostHog, or
    name tables that the plan has with ``tables``.
    """


class AccessDeniedError(ApiError):
    """403: the key lacks a scope, or may not read this project.

    Give the key the scope that the message names; `posthog-source check` names those of all tables. A key
    that is restricted to projects cannot read what belongs to the organization, whatever its scopes: users,
    roles, organizations and projects.
    """


class NotFoundError(ApiError):
    """404: no such thing, or not visible to this key.

    Look whether ``project_id`` is the number in PostHog's address bar, in the region that ``host`` names, and
    whether the key's owner is a member of that project.
    """


class RedirectedError(ApiError):
    """3xx: PostHog lives elsewhere; the key is not sent after a redirect.

    Set ``host`` to the address in the message, if it is yours.
    """


class TooHeavyError(ApiError):
    """504, 512, 513 or ``too_many_bytes``: the same query will fail again, a smaller one will not.

    The connector asks for less by itself, and at last in the background, where PostHog gives a query more
    time. An error that still stands has failed there too: set a smaller ``page_rows``, leave out
    ``properties``, or make a query of your own lighter.
    """


class RateLimitedError(ApiError):
    """429: too many requests at once, in a minute or in an hour, or the quota of bytes is spent.

    The connector waits as long as PostHog says, and where it does not say, from half a minute on, longer each
    time. The waits end with ``wait_deadline_s``, in a `DeadlineError`. Then a quota may be spent, or others
    use the team's three places: look at PostHog's billing page, or run again later.

    Attributes:
        retry_after_s: Seconds to wait as PostHog says, or None when it does not say, which means that
            too many queries run at once or that the quota is spent (query_api.md 2.4, 2.6).
    """

    transient = True

    def __init__(
        self, message: str, *, status: int = 429, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.retry_after_s = retry_after_s


class ServerError(ApiError):
    """500, 502, 503 and their kin: PostHog's trouble, usually short.

    Run again later: what is committed stays. Raise ``max_attempts`` where it happens often.
    """

    transient = True

    def __init__(
        self, message: str, *, status: int, code: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.retry_after_s = retry_after_s


class LostQueryError(ApiError):
    """PostHog no longer knows a query that runs in the background, or that one failed without a word.

    Run again later: what is committed stays.
    """

    transient = True


class ConnectionFailedError(PosthogSourceError):
    """No answer, or half of one.

    Look at the network and at proxies between here and PostHog. Where answers are timed out on a slow line,
    set a smaller ``page_rows`` or a longer ``query_timeout_s``.
    """

    transient = True


class UnreachableError(ConnectionFailedError):
    """No connection at all: the host's name does not resolve, or nobody listens there.

    Check ``host``, and whether this machine may reach it.
    """

    transient = True


class UnreadableAnswerError(PosthogSourceError):
    """A successful answer whose body is not the JSON that it should be.

    Mostly something between here and PostHog has answered in its place, such as a proxy's login page: look at
    ``host`` and at proxies. If it stays, please report it.
    """

    transient = True


class DeadlineError(PosthogSourceError):
    """PostHog asks for a longer wait than ``wait_deadline_s`` leaves.

    Run again later, or raise ``wait_deadline_s``. What is committed stays.
    """


class InterruptedRunError(PosthogSourceError):
    """The request was given up on purpose: the run was interrupted, or its rows are wanted no more.

    Run the same again to go on after the last commit.
    """


class ExactnessError(PosthogSourceError):
    """Loading on would lose or double rows."""


class StaleAnswerError(ExactnessError):
    """PostHog served its cache although live rows were asked for.

    If it stays, something between here and PostHog keeps answers: have it let these through.
    """

    transient = True


class MissingRowsError(ExactnessError):
    """Fewer rows arrived than PostHog counts, and asking again did not bring them.

    The commit is not loaded. Run again later: PostHog's servers may not have had the same rows. If it stays,
    please report it.
    """


class StuckCursorError(ExactnessError):
    """A page's last row is not after the row that it should follow.

    Please report it, with the message.
    """


class UnexpectedAnswerError(ExactnessError):
    """Columns, shapes or values that the table does not declare.

    PostHog has changed, or a column of a query of your own holds different types: cast it there. Else please
    report it, with the message.
    """


_MEANINGS: Mapping[int, tuple[type[ApiError], str]] = {
    401: (
        AuthenticationError,
        (
            "the API key is revoked, or belongs to another region than this host. Check "
            "sources.posthog.api_key and sources.posthog.host."
        ),
    ),
    402: (
        QuotaSpentError,
        "the plan or its quota does not allow this; a spent quota opens again with the next billing period",
    ),
    403: (
        AccessDeniedError,
        "the API key may not do this. In PostHog > Settings > Personal API keys, give it ",
    ),
    404: (
        NotFoundError,
        "nothing there that this key may see. Check sources.posthog.project_id.",
    ),
    429: (RateLimitedError, "too many requests."),
    504: (TooHeavyError, "the query ran out of time."),
    512: (TooHeavyError, "the query would take too long."),
    513: (TooHeavyError, "the query needs too much memory."),
}


def error_from_response(
    status: int, headers: Mapping[str, str], body: Body, *, where: str, scope: str = ""
) -> ApiError:
    """Turns a refusal into the error that says what to do about it.

    Args:
        status: HTTP status, 300 or above.
        headers: The answer's headers, names in lower case.
        body: The answer's body, JSON or not.
        where: What was asked, for the message: ``"POST /api/projects/1/query/ (events)"``.
        scope: What the key needs for that, such as ``query:read``; empty when not known.

    The envelope is drf-exceptions-hog's ``{"type", "code", "detail", "attr"}``, sometimes with ``extra``
    (query_api.md 3).
    """
    envelope = _object(body)
    code = _text(envelope.get("code"))
    kind, what = _meaning(status, code)
    what += _particulars(kind, headers, envelope.get("extra"), scope)
    message = _say(status, where, what, envelope.get("detail"))
    if issubclass(kind, RateLimitedError | ServerError):
        retry_after_s = parse_retry_after(headers.get("retry-after"), now=datetime.now(UTC))
        return kind(message, status=status, code=code, retry_after_s=retry_after_s)
    return kind(message, status=status, code=code)


def error_from_poll(status: int, headers: Mapping[str, str], body: Body, *, where: str) -> ApiError:
    """As `error_from_response`, for an answer to the question how a query in the background is doing.

    The query's own failure comes without code: a 400 has PostHog's message, a 500 has none and is worth
    another try (query_api.md 1.5). A 400 is taken for too heavy, since the query is in the background
    for being so, and PostHog had no other fault to find with it before.
    """
    query_status = _object(body).get("query_status")
    if status == 404:
        return LostQueryError(_say(status, where, "it no longer knows this query.", ""), status=status)
    if not isinstance(query_status, dict):
        return error_from_response(status, headers, body, where=where)
    message = query_status.get("error_message")
    if status == 400:
        what = "the query is too heavy in the background as well."
        return TooHeavyError(_say(status, where, what, message), status=status)
    return LostQueryError(_say(status, where, "the query failed there.", message), status=status)


def find_cause(error: BaseException) -> PosthogSourceError | None:
    """The error of this package behind one that dlt has wrapped around it, if there is one."""
    return next((cause for cause in iter_causes(error) if isinstance(cause, PosthogSourceError)), None)


def iter_causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from or while handling, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Seconds to wait from a ``Retry-After`` header: whole seconds or an HTTP date; None if neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value.strip())
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - now).total_seconds())


def _meaning(status: int, code: str) -> tuple[type[ApiError], str]:
    """The error of a status, and what to do about it."""
    if status == 400 and code == "too_many_bytes":
        return TooHeavyError, "the query reads more than PostHog allows."
    if status in _MEANINGS:
        return _MEANINGS[status]
    if status >= 500:
        return ServerError, "a fault on its side."
    if status < 400:
        return RedirectedError, "it lives elsewhere. Set sources.posthog.host to where it answers: "
    return QueryRefusedError, f"it does not accept this request ({code or 'no code'})."


def _particulars(kind: type[ApiError], headers: Mapping[str, str], extra: object, scope: str) -> str:
    """The end of what to do, which differs from one refusal to the next."""
    if kind is RedirectedError:
        return headers.get("location", "?")
    if kind is AccessDeniedError:
        return f"the scope {scope} and this project." if scope else "the scope or the project that it lacks."
    if kind is QuotaSpentError:
        end = _text(extra.get("billing_period_end")) if isinstance(extra, dict) else ""
        return f", on {end}." if end else "."  # query_api.md 2.6
    return ""


def _say(status: int, where: str, what: str, detail: object) -> str:
    said = _text(detail)
    return f"PostHog answered {status} to {where}: {what}" + (f" PostHog says: {said}" if said else "")


def _object(body: Body) -> dict[str, object]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _text(value: object) -> str:
    """One line, bounded, whatever the server sent."""
    if not value:
        return ""
    try:
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
    except TypeError:  # nested too deep
        return ""
    return " ".join(text.split())[:MAX_DETAIL_CHARS]
