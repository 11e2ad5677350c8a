"""config: what cannot be right is one line that names the setting, and the key never shows."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthog_source.config import (
    CAPTURE_HOSTS,
    HOSTS,
    LOOPBACK_HOSTS,
    MAX_PAGE_ROWS,
    EventsSettings,
    Secret,
    Settings,
    TableSettings,
    build_settings,
    build_table_settings,
    explain_change,
    parse_api_key,
    parse_condition,
    parse_host,
    parse_instant,
    parse_project_id,
)
from posthog_source.errors import SettingsError

KEY = "phx_0123456789abcdefThatNobodyMaySee"
GOOD: Mapping[str, object] = {"project_id": 1, "api_key": KEY, "host": "eu"}

BAD: list[tuple[str, object]] = [
    ("project_id", None),
    ("project_id", ""),
    ("project_id", "abc"),
    ("project_id", "@current"),
    ("project_id", "1; DROP"),
    ("project_id", "1\n2"),
    ("project_id", 0),
    ("project_id", -1),
    ("project_id", 1.5),
    ("project_id", True),
    ("project_id", "\N{SUPERSCRIPT TWO}"),
    ("project_id", "9" * 5_000),
    ("api_key", None),
    ("api_key", ""),
    ("api_key", "   "),
    ("api_key", "phc_aProjectToken"),
    ("api_key", f"{KEY} {KEY}"),
    ("api_key", f"{KEY}\n{KEY}"),
    ("api_key", f"{KEY}\x00"),
    ("api_key", f"{KEY}ö"),
    ("api_key", f"{KEY}\N{HORIZONTAL ELLIPSIS}"),
    ("host", None),
    ("host", ""),
    ("host", "nowhere"),
    ("host", "ftp://posthog.example.com"),
    ("host", "http://posthog.example.com"),
    ("host", "https://posthog.example.com/project/1"),
    ("host", "https://posthog.example.com?x=1"),
    ("host", "https://posthog.example.com#x"),
    ("host", "https://user@posthog.example.com"),
    ("host", "https://user:word@posthog.example.com"),
    ("host", "https://:word@posthog.example.com"),
    ("host", "https://posthog.example.com:notaport"),
    ("host", "https://posthog.example.com:99999"),
    ("host", "https://"),
    ("host", "https://."),
    ("host", "https://posthog example.com"),
    ("host", "https://posthog.example.com\\x"),
    ("host", "https://posthog.example.com\x0b/x"),
    ("host", "https://posthog.example.com\u2028/x"),
    ("host", "https://[not-an-address]"),
    *(("host", f"https://{host}") for host in CAPTURE_HOSTS),
    *(("host", host.upper()) for host in CAPTURE_HOSTS),
    ("start_date", "yesterday"),
    ("start_date", "2026-13-01"),
    ("start_date", "2026-02-30"),
    ("start_date", "01/02/2026"),
    ("start_date", "2026-01-01\nT"),
    ("start_date", "0001-01-01T00:00:00+14:00"),
    ("end_date", "9999-12-31T23:59:59-14:00"),
    ("end_date", "tomorrow"),
    ("look_ahead", 0),
    ("look_ahead", "two"),
    ("look_ahead", 1.5),
    ("look_ahead", True),
    ("max_attempts", "1e400"),
    ("query_timeout_s", "long"),
    ("wait_deadline_s", []),
    ("look_ahead", 17),
    ("query_timeout_s", 0),
    ("query_timeout_s", -1.0),
    ("query_timeout_s", float("nan")),
    ("max_attempts", 0),
    ("wait_deadline_s", -1),
    ("wait_deadline_s", float("nan")),
    ("queries_per_minute", 0),
    ("queries_per_hour", 0),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_setting_that_cannot_be_right_is_one_line_that_names_it_and_where_to_set_it(
    name: str, value: object
) -> None:
    with pytest.raises(SettingsError) as caught:
        build_settings(**{**GOOD, name: value})

    message = str(caught.value)
    assert message.splitlines() == [message]
    assert name in message
    assert "[sources.posthog]" in message or f"SOURCES__POSTHOG__{name.upper()}" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lag_s", -1.0),
        ("lookback_s", -1.0),
        ("write_mode", "replace"),
        ("person_id", "latest"),
        ("json_columns", "jsonb"),
        ("page_rows", 0),
        ("page_rows", MAX_PAGE_ROWS + 1),
    ],
)
def test_an_events_setting_that_cannot_be_right_is_one_line_that_names_it(name: str, value: object) -> None:
    given_settings: dict[str, object] = {name: value}

    with pytest.raises(SettingsError, match=rf"^(events\.)?{name} must be .*\[sources\.posthog\]\.$"):
        EventsSettings(**given_settings)  # type: ignore[arg-type]


WRONG_EVENTS: list[tuple[str, object]] = [
    ("page_rows", "many"),
    ("page_rows", "1.5"),
    ("page_rows", None),
    ("lag_s", "5 minutes"),
    ("lag_s", "nan"),
    ("lookback_s", float("inf")),
    ("person_properties", "maybe"),
    ("properties", 2),
    ("event_names", "purchase"),
    ("event_names", '{"a": 1}'),
    ("event_names", [1, 2]),
    ("event_names", [""]),
    ("exclude_event_names", 5),
    ("where", "event = 'a') OR (1 = 1"),
    ("where", "(event = 'a'"),
    ("where", "event = 'a' -- or so"),
    ("where", "event = 'a' // or so"),
    ("where", "event = 'a' # or so"),
    ("where", "event = 'a' /* or so */"),
    ("where", "event = 'a'; SELECT 1"),
    ("where", "event = {v0}"),
    ("where", "event = 'a"),
    ("where", 'event = "a'),
    ("where", "event = 'it\\'"),
    ("promote", ["$browser"]),
    ("promote", '["$browser"]'),
    ("promote", "$browser"),
    ("promote", {"$browser": "varchar"}),
    ("promote", {"$browser": 5}),
    ("promote", {"": "text"}),
]


@pytest.mark.parametrize(("name", "value"), WRONG_EVENTS)
def test_what_is_written_about_events_and_cannot_be_right_is_one_line_that_names_it(
    name: str, value: object
) -> None:
    with pytest.raises(SettingsError, match=rf"^events\.{name} must be .*\[sources\.posthog\]\.$") as caught:
        build_table_settings(EventsSettings, "events", {name: value})

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("page_rows", "500", 500),
        ("lag_s", "60", 60.0),
        ("lag_s", 60, 60.0),
        ("properties", "false", False),
        ("properties", "True", True),
        ("event_names", '["b", "a", "b"]', ("a", "b")),
        ("event_names", ["b", "a"], ("a", "b")),
        ("event_names", "", ()),
        ("event_names", [], ()),
        ("exclude_event_names", ("b",), ("b",)),
        ("where", "  properties.plan = 'pro' ", "properties.plan = 'pro'"),
        ("where", None, ""),
        ("promote", {"$browser": "text"}, (("$browser", "text"),)),
        ("promote", '{"n": "double", "a.b": "bool"}', (("n", "double"), ("a.b", "bool"))),
        ("promote", "", ()),
    ],
)
def test_what_is_written_about_events_is_read_from_text_as_well(
    name: str, value: object, read: object
) -> None:
    assert getattr(build_table_settings(EventsSettings, "events", {name: value}), name) == read


@pytest.mark.parametrize(
    "text",
    [
        "event = 'a'",
        "event IN ('a)', 'b;', '--', '{c}', '#', 'it''s', 'it\\'s (')",
        '`odd;name` = 1 OR ("x)" = 2 AND (3 = 3))',
        "properties.$browser = 'x'\n  AND distinct_id NOT LIKE '%@test.com'",
        "amount / 2 - 1 > 0",
    ],
)
def test_a_condition_may_hold_anything_between_quotes_and_brackets_in_pairs(text: str) -> None:
    assert parse_condition(text, "events.where") == text


def test_a_name_that_is_wanted_and_unwanted_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"^events\.exclude_event_names must be names that"):
        EventsSettings(event_names=("a", "b"), exclude_event_names=("b",))


CHOSEN = EventsSettings(
    event_names=("a",), where="1 = 1", promote=(("n", "double"),), properties=False, person_id="current"
)


def test_a_choice_says_what_differs_from_the_defaults_and_survives_json() -> None:
    assert EventsSettings().choice() == {}
    assert EventsSettings(page_rows=5, write_mode="append").choice() == {}
    assert CHOSEN.choice() == {
        "event_names": ["a"],
        "where": "1 = 1",
        "promote": {"n": "double"},
        "properties": False,
        "person_id": "current",
    }
    assert json.loads(json.dumps(CHOSEN.choice())) == CHOSEN.choice()


def test_an_unchanged_or_unknown_choice_needs_no_explanation() -> None:
    assert explain_change(CHOSEN.choice(), CHOSEN.choice()) is None
    assert explain_change({}, {}) is None
    assert explain_change(None, CHOSEN.choice()) is None


def test_a_changed_choice_is_one_line_that_says_what_changed_and_how_to_apply_it() -> None:
    line = explain_change(
        EventsSettings(where="a = 1", event_names=("x",)).choice(),
        EventsSettings(where="a = 2", properties=False, event_names=("x",)).choice(),
    )

    assert line == (
        'events: properties changed from its default to false; where changed from "a = 1" to "a = 2". '
        "Rows already loaded stay as they were; to apply it to them, run a backfill of their time "
        "(start_date and end_date)."
    )


def test_a_promoted_property_that_changes_its_type_is_refused_in_one_line() -> None:
    text, double = (
        EventsSettings(promote=(("n", kind), ("m", "text"))).choice() for kind in ("text", "double")
    )

    with pytest.raises(SettingsError, match=r"^events\.promote must be text for 'n', .*\(not double\)\."):
        explain_change(text, double)


def test_the_line_about_a_changed_choice_stays_short() -> None:
    many = EventsSettings(event_names=tuple(f"event number {n}" for n in range(5_000)))

    line = explain_change({}, many.choice())

    assert line is not None
    assert len(line) < 500


@given(
    name=st.sampled_from(["project_id", "api_key", "host", "start_date", "end_date"]),
    value=st.text() | st.binary() | st.integers() | st.floats() | st.booleans() | st.lists(st.text()),
)
@settings(deadline=None, max_examples=150)
def test_no_value_whatever_is_anything_but_settings_or_one_line(name: str, value: object) -> None:
    try:
        build_settings(**{**GOOD, name: value})
    except SettingsError as error:
        message = str(error)
        assert message.splitlines() == [message]
        assert name in message


@given(st.text(alphabet="aZ0.-_:/@#?\\[]% \t\nposthg", max_size=40))
@settings(deadline=None, max_examples=150)
def test_a_host_that_is_taken_is_scheme_and_host_and_port_and_nothing_more(text: str) -> None:
    try:
        base_url = parse_host(text)
    except SettingsError:
        return

    parts = urlsplit(base_url)
    assert base_url == f"{parts.scheme}://{parts.netloc}"
    assert "@" not in parts.netloc
    assert parts.hostname
    assert not any(character.isspace() or character in "\\%" for character in base_url)


@pytest.mark.parametrize(
    ("value", "base_url"),
    [
        ("us", HOSTS["us"]),
        ("eu", HOSTS["eu"]),
        (" EU ", HOSTS["eu"]),
        ("https://us.posthog.com/", "https://us.posthog.com"),
        ("us.posthog.com", "https://us.posthog.com"),
        ("https://posthog.example.com:8443", "https://posthog.example.com:8443"),
        ("posthog.example.com:8443", "https://posthog.example.com:8443"),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_host_is_a_region_or_a_base_url(value: str, base_url: str) -> None:
    assert parse_host(value) == base_url


@pytest.mark.parametrize("host", LOOPBACK_HOSTS)
def test_only_this_machine_is_spoken_to_over_plain_http(host: str) -> None:
    netloc = f"[{host}]" if ":" in host else host

    assert parse_host(f"http://{netloc}:1") == f"http://{netloc}:1"


@pytest.mark.parametrize("host", CAPTURE_HOSTS)
def test_a_host_that_only_takes_events_in_is_answered_with_the_region_to_set(host: str) -> None:
    with pytest.raises(SettingsError, match=f"to '{host[:2]}'"):
        parse_host(f"https://{host}")


@pytest.mark.parametrize("value", [17, "17", " 17 "])
def test_a_project_is_its_number_or_the_text_of_it(value: object) -> None:
    assert parse_project_id(value) == 17


def test_a_key_is_stripped_of_what_copying_leaves_around_it() -> None:
    assert parse_api_key(f"  {KEY}\n").reveal() == KEY


def test_a_key_without_the_usual_beginning_is_let_through() -> None:
    assert parse_api_key("selfHosted123").reveal() == "selfHosted123"


def test_a_project_token_is_told_from_a_personal_key() -> None:
    with pytest.raises(SettingsError, match="project token"):
        parse_api_key("phc_abc")


@pytest.mark.parametrize("show", [repr, str, ascii, "{}".format, "{!r}".format, "%s".__mod__])
def test_a_secret_shows_in_no_text(show: Callable[[object], str]) -> None:
    assert KEY not in show(Secret(KEY))
    assert KEY not in show([Secret(KEY)])
    assert KEY not in show(build_settings(**GOOD))
    assert KEY not in show([build_settings(**GOOD)])


def test_the_key_shows_nowhere_in_a_traceback_even_with_all_local_values() -> None:
    config = build_settings(**GOOD)

    def fail(secret: Secret, shared: Settings) -> None:
        raise RuntimeError(f"{secret} {shared}")

    try:
        fail(config.api_key, config)
    except RuntimeError as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)

    text = "".join(told.format())
    assert "shared = Settings(" in text
    assert KEY not in text


@pytest.mark.parametrize("value", [f"{KEY} {KEY}", f"{KEY}ö", KEY.replace("phx_", "phc_")])
def test_a_key_that_is_refused_is_not_repeated_in_the_refusal(value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_api_key(value)

    assert value[4:20] not in str(caught.value)


def test_two_keys_that_are_the_same_are_equal_and_their_settings_too() -> None:
    assert build_settings(**GOOD) == build_settings(**GOOD)
    assert Secret(KEY) != Secret("other")


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (None, None),
        ("", None),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        (" 2026-01-31T12:00:00Z ", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00.123456", datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)),
        ("2026-01-31 12:00:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        (date(2026, 1, 31), datetime(2026, 1, 31, tzinfo=UTC)),
        (datetime(2026, 1, 31, 12), datetime(2026, 1, 31, 12, tzinfo=UTC)),  # noqa: DTZ001
        (
            datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=-5))),
            datetime(2026, 1, 31, 17, tzinfo=UTC),
        ),
    ],
)
def test_an_instant_is_iso_text_or_a_date_or_a_datetime_and_naive_means_utc(
    value: object, at: datetime | None
) -> None:
    parsed = parse_instant(value, "start_date")

    assert parsed == at
    assert parsed is None or parsed.utcoffset() == timedelta(0)


@pytest.fixture
def _far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose own zone is not UTC."""
    with monkeypatch.context() as environment:
        environment.setenv("TZ", "Pacific/Auckland")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_far_from_utc")
@pytest.mark.parametrize(
    "value",
    ["2026-01-31", "2026-01-31T00:00", date(2026, 1, 31), datetime(2026, 1, 31)],  # noqa: DTZ001
)
def test_a_naive_instant_means_utc_on_a_machine_of_any_zone(value: object) -> None:
    assert time.timezone != 0
    assert parse_instant(value, "start_date") == datetime(2026, 1, 31, tzinfo=UTC)


@given(st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001
def test_an_instant_and_its_iso_text_are_the_same_instant(at: datetime) -> None:
    parsed = parse_instant(at, "end_date")

    assert parsed == at.replace(tzinfo=UTC)
    assert parse_instant(at.isoformat(), "end_date") == parsed


@pytest.mark.parametrize("end", ["2026-01-01", "2025-12-31T23:59:59.999999", "2026-01-01T01:00:00+01:00"])
def test_an_end_that_is_not_after_the_start_is_one_line_that_names_both(end: str) -> None:
    with pytest.raises(SettingsError, match=r"start_date .* end_date .* \[sources\.posthog\]"):
        build_settings(**GOOD, start_date="2026-01-01", end_date=end)


def test_an_end_a_microsecond_after_the_start_is_a_window() -> None:
    config = build_settings(**GOOD, start_date="2026-01-01", end_date="2026-01-01T00:00:00.000001")

    assert config.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert config.end == datetime(2026, 1, 1, microsecond=1, tzinfo=UTC)


def test_a_limit_that_is_not_given_keeps_its_default() -> None:
    assert build_settings(**GOOD, look_ahead=None, max_attempts=3) == Settings(
        project_id=1, api_key=Secret(KEY), base_url=HOSTS["eu"], max_attempts=3
    )


def test_the_defaults_stay_inside_what_posthog_allows() -> None:
    config = build_settings(**GOOD)

    assert config.look_ahead < 3  # a team's concurrent queries, one of them left for people
    assert config.queries_per_minute <= 240
    assert config.queries_per_hour <= 2_400
    assert TableSettings().page_rows <= MAX_PAGE_ROWS == 50_000
    assert EventsSettings().person_id == "ingested"


def test_settings_are_frozen() -> None:
    config = build_settings(**GOOD)

    with pytest.raises(AttributeError):
        config.project_id = 2  # type: ignore[misc]
