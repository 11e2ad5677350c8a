"""errors: the drawn tree is the tree, and every refusal becomes one line that says what to do."""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from posthog_source import errors
from posthog_source.errors import (
    MAX_DETAIL_CHARS,
    AccessDeniedError,
    ApiError,
    AuthenticationError,
    LostQueryError,
    NotFoundError,
    PosthogSourceError,
    QueryRefusedError,
    QuotaSpentError,
    RateLimitedError,
    RedirectedError,
    ServerError,
    SettingsError,
    TooHeavyError,
    error_from_poll,
    error_from_response,
    find_cause,
    parse_retry_after,
)

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
WHERE = "POST /api/projects/1/query/ (events)"
CLASSES = sorted(
    {value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)},
    key=lambda kind: kind.__name__,
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def drawn_tree() -> dict[str, tuple[str | None, bool]]:
    """Name -> (parent, transient) as the docstring of `errors` draws them."""
    tree: dict[str, tuple[str | None, bool]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│├└─ ]*)(\w+Error)\b(.*)", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            tree[found[2]] = (path[depth - 1] if depth else None, found[3].endswith("transient"))
    return tree


def envelope(code: str = "", detail: object = "") -> bytes:
    return orjson.dumps({"type": "validation_error", "code": code, "detail": detail, "attr": None})


def test_the_drawing_and_the_classes_hold_the_same_errors() -> None:
    assert sorted(drawn_tree()) == [kind.__name__ for kind in CLASSES]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_drawn_under_its_parent(kind: type[Exception]) -> None:
    parent, _ = drawn_tree()[kind.__name__]

    assert kind.__bases__[0].__name__ == (parent or "Exception")


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_transient_exactly_where_drawn_so(kind: type[PosthogSourceError]) -> None:
    _, is_transient = drawn_tree()[kind.__name__]

    assert kind.transient is is_transient


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_says_in_its_first_line_what_it_is(kind: type[Exception]) -> None:
    first_line = (kind.__doc__ or "").split("\n", 1)[0]

    assert first_line.endswith(".")
    assert kind.__doc__ != (kind.__bases__[0].__doc__ or "")


def test_a_wrong_setting_is_also_a_value_error() -> None:
    assert issubclass(SettingsError, ValueError)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (301, "", RedirectedError),
        (302, "", RedirectedError),
        (308, "", RedirectedError),
        (400, "hogql_query_error", QueryRefusedError),
        (400, "hogql_syntax_error", QueryRefusedError),
        (400, "", QueryRefusedError),
        (400, "too_many_bytes", TooHeavyError),
        (401, "authentication_failed", AuthenticationError),
        (402, "payment_required", QuotaSpentError),
        (403, "permission_denied", AccessDeniedError),
        (404, "not_found", NotFoundError),
        (405, "method_not_allowed", QueryRefusedError),
        (413, "", QueryRefusedError),
        (429, "throttled", RateLimitedError),
        (500, "error", ServerError),
        (502, "", ServerError),
        (503, "database_unavailable", ServerError),
        (504, "", TooHeavyError),
        (512, "", TooHeavyError),
        (513, "clickhouse_memory_limit_exceeded", TooHeavyError),
        (520, "", ServerError),
    ],
)
def test_a_refusal_becomes_the_error_of_its_meaning(status: int, code: str, kind: type[ApiError]) -> None:
    error = error_from_response(status, {}, envelope(code), where=WHERE)

    assert type(error) is kind
    assert error.status == status
    assert error.code == code


@pytest.mark.parametrize("status", range(300, 600))
def test_every_status_becomes_an_error_of_one_line_that_names_status_and_request(status: int) -> None:
    for body in (b"", b"<html>\n<h1>Bad\r\ngateway</h1>", b"null", b"[]", envelope("x\ny", "first\nsecond")):
        error = error_from_response(status, {}, body, where=WHERE)

        assert isinstance(error, ApiError)
        assert error.status == status
        assert str(error).splitlines() == [str(error)]
        assert str(status) in str(error)
        assert WHERE in str(error)


@pytest.mark.parametrize("status", [504, 512, 513])
def test_a_query_that_was_too_heavy_is_not_worth_asking_again(status: int) -> None:
    assert not error_from_response(status, {}, b"", where=WHERE).transient


@given(status=st.integers(300, 599), body=st.binary() | json_values.map(orjson.dumps))
@settings(deadline=None)
def test_no_body_whatever_breaks_the_reading_of_a_refusal(status: int, body: bytes) -> None:
    error = error_from_response(status, {}, body, where=WHERE)

    assert str(error).splitlines() == [str(error)]


@given(code=json_values, detail=json_values)
@settings(deadline=None)
def test_no_envelope_whatever_breaks_the_reading_of_a_refusal(code: object, detail: object) -> None:
    body = orjson.dumps({"code": code, "detail": detail})

    error = error_from_response(400, {}, body, where=WHERE)

    assert str(error).splitlines() == [str(error)]
    assert len(error.code) <= MAX_DETAIL_CHARS


@pytest.mark.parametrize("depth", [10, 500, 1_000])
def test_a_detail_nested_ever_so_deep_is_still_a_refusal(depth: int) -> None:
    body = b'{"detail":' + b"[" * depth + b"]" * depth + b"}"

    assert isinstance(error_from_response(400, {}, body, where=WHERE), QueryRefusedError)


def test_what_posthog_says_is_passed_on_but_bounded() -> None:
    short = error_from_response(400, {}, envelope("x", "Unknown column 'y'"), where=WHERE)
    long = error_from_response(400, {}, envelope("x", "z" * 100_000), where=WHERE)

    assert str(short).endswith("PostHog says: Unknown column 'y'")
    assert str(long).count("z") == MAX_DETAIL_CHARS


def test_a_redirect_says_where_to_and_which_setting_to_change() -> None:
    error = error_from_response(301, {"location": "https://eu.posthog.com/x"}, b"", where=WHERE)

    assert "https://eu.posthog.com/x" in str(error)
    assert "sources.posthog.host" in str(error)


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "sources.posthog.api_key"),
        (402, "billing period"),
        (403, "scope"),
        (404, "sources.posthog.project_id"),
    ],
)
def test_a_refusal_that_a_person_must_mend_says_how(status: int, hint: str) -> None:
    assert hint in str(error_from_response(status, {}, b"", where=WHERE))


def test_a_spent_quota_says_when_the_period_ends_if_posthog_does() -> None:
    body = orjson.dumps(
        {"code": "quota_limit_exceeded", "extra": {"billing_period_end": "2026-04-01T00:00:00Z"}}
    )

    assert "billing period, on 2026-04-01T00:00:00Z." in str(error_from_response(402, {}, body, where=WHERE))


@pytest.mark.parametrize("extra", [None, [], "x", {"billing_period_end": None}, {"other": 1}])
def test_a_spent_quota_of_which_posthog_says_no_more_is_told_as_well(extra: object) -> None:
    body = orjson.dumps({"code": "quota_limit_exceeded", "extra": extra})

    assert str(error_from_response(402, {}, body, where=WHERE)).endswith("the next billing period.")


def test_a_scope_that_is_known_to_be_needed_is_named() -> None:
    error = error_from_response(403, {}, b"", where=WHERE, scope="query:read")

    assert "the scope query:read" in str(error)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"query_status": {"error": True, "error_message": "too slow"}}, TooHeavyError),
        (500, {"query_status": {"error": True, "error_message": None}}, LostQueryError),
        (404, {"code": "not_found", "detail": "Query x not found"}, LostQueryError),
        (400, {"code": "invalid_input"}, QueryRefusedError),
        (401, {"code": "authentication_failed"}, AuthenticationError),
        (429, {"code": "throttled"}, RateLimitedError),
        (500, {"code": "error"}, ServerError),
        (502, "<html>", ServerError),
        (504, {"code": "error"}, TooHeavyError),
    ],
)
def test_a_query_that_failed_in_the_background_is_told_from_a_poll_that_failed(
    status: int, body: object, kind: type[ApiError]
) -> None:
    error = error_from_poll(status, {}, orjson.dumps(body), where=WHERE)

    assert type(error) is kind
    assert error.status == status
    assert str(error).splitlines() == [str(error)]


def test_what_posthog_says_of_a_failure_in_the_background_is_passed_on() -> None:
    body = orjson.dumps({"query_status": {"error": True, "error_message": "first\nsecond"}})

    assert str(error_from_poll(400, {}, body, where=WHERE)).endswith("PostHog says: first second")


@given(status=st.integers(300, 599), body=st.binary() | json_values.map(orjson.dumps))
@settings(deadline=None)
def test_no_body_whatever_breaks_the_reading_of_a_poll(status: int, body: bytes) -> None:
    assert error_from_poll(status, {}, body, where=WHERE).status == status


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_posthog_asks_for_is_carried_by_the_error(status: int) -> None:
    error = error_from_response(status, {"retry-after": "17"}, b"", where=WHERE)

    assert isinstance(error, RateLimitedError | ServerError)
    assert error.retry_after_s == 17.0


@pytest.mark.parametrize("status", [429, 503])
def test_without_a_retry_after_the_wait_is_not_known(status: int) -> None:
    error = error_from_response(status, {}, b"", where=WHERE)

    assert isinstance(error, RateLimitedError | ServerError)
    assert error.retry_after_s is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("1", 1.0),
        (" 30 ", 30.0),
        ("3600", 3600.0),
        ("Wed, 04 Mar 2026 05:06:17 GMT", 10.0),
        ("Wed, 04 Mar 2026 06:06:17 +0100", 10.0),
        ("Wed, 04 Mar 2026 05:06:17 -0000", 10.0),
        ("Wed, 04 Mar 2026 05:06:17", 10.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("Wed, 32 Mar 2026 05:06:17 GMT", None),
        ("\N{SUPERSCRIPT TWO}", None),
        ("Wed, 04 Mar 99999999999999999999 05:06:17 GMT", None),
        ("Wed, 04 Mar 2026 05:06:17 +99999999999999999999", None),
    ],
)
def test_a_retry_after_is_whole_seconds_or_a_date_or_nothing(
    value: str | None, seconds: float | None
) -> None:
    assert parse_retry_after(value, now=NOW) == seconds


def test_a_retry_after_date_in_the_past_means_no_wait() -> None:
    assert parse_retry_after("Wed, 04 Mar 2026 05:06:06 GMT", now=NOW) == 0.0


@given(st.integers(0, 10**7))
def test_seconds_and_the_date_that_many_seconds_ahead_mean_the_same_wait(seconds: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)

    assert parse_retry_after(str(seconds), now=NOW) == parse_retry_after(date, now=NOW) == seconds


@example("0\x1f")  # whitespace to str.strip, not to float
@given(st.text() | st.text(alphabet="0123456789 :+-,GMTWedMar\N{SUPERSCRIPT TWO}"))
def test_no_retry_after_whatever_is_a_crash_or_a_wait_below_zero(value: str) -> None:
    wait_s = parse_retry_after(value, now=NOW)

    assert wait_s is None or wait_s >= 0


def test_the_cause_is_found_however_deep_it_is_wrapped() -> None:
    cause = SettingsError("set this")
    middle = RuntimeError("dlt, extract")
    middle.__cause__ = cause
    outer = RuntimeError("dlt, pipeline")
    outer.__context__ = middle

    assert find_cause(outer) is cause
    assert find_cause(cause) is cause


def test_an_error_of_another_making_has_no_cause_here() -> None:
    assert find_cause(RuntimeError("disk full")) is None
