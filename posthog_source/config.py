"""Settings as frozen values, checked before anything is sent.

What a person may set, its default and the reason for it. Not here: where settings come from (toml,
environment, arguments), which is dlt's work and lives in `source`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from posthog_source.errors import SettingsError

HOSTS: Mapping[str, str] = {"us": "https://us.posthog.com", "eu": "https://eu.posthog.com"}
CAPTURE_HOSTS = ("us.i.posthog.com", "eu.i.posthog.com")
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

MAX_PAGE_ROWS = 50_000
"""PostHog lowers any larger LIMIT in silence (query_api.md 2.1)."""

VISIBILITY_S = 900
"""How long after created_at a row may be seen and still be read by an ordinary sync's lookback."""

MAX_SHOWN_CHARS = 100

WriteMode = Literal["window", "upsert", "append"]
JsonColumns = Literal["auto", "json", "text"]
PersonId = Literal["ingested", "current"]
Deletes = Literal["soft", "hard", "ignore"]
Refresh = Literal["force_cache", "blocking", "force_blocking"]
PromotedKind = Literal["text", "double", "bigint", "bool", "timestamp"]

HOGQL_PIECES = re.compile(
    r"""'(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | `(?:[^`\\]|\\.)*`  # quoted whole: nothing in it counts
    | -- | // | /\* | [\#;{}()'"`]""",
    re.DOTALL | re.VERBOSE,
)
"""What may end a HogQL condition early or hide what follows it, and the quotes in which it may not."""


@dataclass(frozen=True)
class Secret:
    """A value that never shows: not in repr, str, format or a traceback's locals."""

    _value: str = field(repr=False)

    def reveal(self) -> str:
        """The value itself, for the one header that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('…')"

    __str__ = __repr__


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all tables share.

    Attributes:
        project_id: PostHog's number of the project, as in its address bar.
        api_key: A personal API key (``phx_…``).
        base_url: Scheme and host, no trailing slash.
        start: First instant to export; None means the project's first event.
        end: First instant not to export; None means now less the lag, and moves the stored cursor.
        look_ahead: Queries in flight. PostHog allows a team 3 at once (query_api.md 2.4); two leave
            one for people.
        query_timeout_s: Most seconds without a byte of an answer. A query takes up to 10 s of ClickHouse
            time on Cloud or 60 s elsewhere, after up to 30 s of waiting for its turn.
        max_attempts: How often one request is tried before its error ends the run.
        wait_deadline_s: Most seconds that PostHog's limits may hold up one request in all. Its hourly limits
            ask for up to an hour.
        queries_per_minute: Queries a minute to keep to: PostHog's limit for a key (query_api.md 2.5).
        queries_per_hour: Queries an hour to keep to: PostHog's limit for a key (query_api.md 2.5).
        rows_per_commit: Most events that one load holds (a single day may exceed it by a tenth), or twice as
            many persons or distinct ids; the rest waits for the next load. `run_sync` and `run_backfill`
            default to 500,000; a plain `pipeline.run` reads everything at once.
        meter_reads: Whether to ask PostHog's query_log, once a table, how many bytes the queries read.
    """

    project_id: int
    api_key: Secret
    base_url: str
    start: datetime | None = None
    end: datetime | None = None
    look_ahead: int = 2
    query_timeout_s: float = 180.0
    max_attempts: int = 8
    wait_deadline_s: float = 3_900.0
    queries_per_minute: int = 240
    queries_per_hour: int = 2_400
    rows_per_commit: int | None = None
    meter_reads: bool = False

    @property
    def origin(self) -> str:
        """What is read, in words: cursors of another project or host are of no use for it."""
        return f"{self.base_url} project {self.project_id}"

    @property
    def is_resumed_by_dlt(self) -> bool:
        """Whether dlt may load by itself what a killed run has left: `run_sync` reads that again instead."""
        return self.rows_per_commit is None

    def __post_init__(self) -> None:
        _require(self.project_id > 0, "project_id", "a positive whole number")
        _require(1 <= self.look_ahead <= 16, "look_ahead", "from 1 to 16")
        _require(self.query_timeout_s > 0, "query_timeout_s", "above 0")
        _require(self.max_attempts >= 1, "max_attempts", "at least 1")
        _require(self.wait_deadline_s >= 0, "wait_deadline_s", "0 or more")
        _require(self.queries_per_minute >= 1, "queries_per_minute", "at least 1")
        _require(self.queries_per_hour >= 1, "queries_per_hour", "at least 1")
        _require(self.rows_per_commit is None or self.rows_per_commit >= 1, "rows_per_commit", "at least 1")
        if self.start and self.end and self.start >= self.end:
            raise SettingsError(
                f"start_date {self.start.isoformat()} is not before end_date {self.end.isoformat()}: "
                "set them under [sources.posthog] so that start_date comes first."
            )


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """What one table read by HogQL may need.

    Attributes:
        page_rows: Rows requested in one answer. `look_ahead` + 1 pages are held in memory; at 1 kB a row,
            25,000 rows are 25 MB of JSON. At most 50,000, PostHog's cap.
    """

    page_rows: int = 25_000

    def __post_init__(self) -> None:
        _require(1 <= self.page_rows <= MAX_PAGE_ROWS, "page_rows", f"from 1 to {MAX_PAGE_ROWS}")


@dataclass(frozen=True, kw_only=True)
class ResultsSettings:
    """What only the results of insights need.

    An insight with one of the tags, on one of the dashboards or with one of the short ids is read; without
    any of the three, every saved one.

    Attributes:
        tags: Tags of the insights to load.
        dashboards: Numbers of the dashboards that show them.
        short_ids: Their short ids, as in their addresses.
        refresh: ``force_cache`` loads what PostHog has already computed, however old, and never makes it
            compute; ``blocking`` makes it compute results that it considers stale, which a range that was
            over when it was computed never is (posthog/caching/utils.py); ``force_blocking`` makes it
            compute everything.
    """

    tags: tuple[str, ...] = ()
    dashboards: tuple[int, ...] = ()
    short_ids: tuple[str, ...] = ()
    refresh: Refresh = "force_cache"

    def __post_init__(self) -> None:
        _require_choice(self.refresh, Refresh, "results.refresh")


TableKind = TypeVar("TableKind", bound=TableSettings | ResultsSettings)


@dataclass(frozen=True, kw_only=True)
class PeopleSettings(TableSettings):
    """What only the tables of people need.

    Attributes:
        sweep_every_days: Days between sweeps, which read all of persons and person_distinct_ids. In between,
            a sync reads those who did something; only a sweep finds people who were deleted, or edited in
            PostHog itself. The members of cohorts for which PostHog reports no change are read as often.
            0 reads everything every time.
        deletes: What happens to rows that are gone from PostHog: ``soft`` keeps them with a ``deleted_at``,
            since a row may only be hidden from the key's owner; ``hard`` deletes them; ``ignore`` leaves
            them as they are.
        cohort_history: Whether to record in the table cohort_people_history who entered and left which
            cohort, and when.
    """

    sweep_every_days: float = 7.0
    deletes: Deletes = "soft"
    cohort_history: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.sweep_every_days >= 0, "people.sweep_every_days", "0 or more")
        _require_choice(self.deletes, Deletes, "people.deletes")


@dataclass(frozen=True, kw_only=True)
class EventsSettings(TableSettings):
    """What only events need.

    Attributes:
        lag_s: The newest window ends this many seconds before now, at a whole second, since an event becomes
            visible only some time after its ``created_at``.
        lookback_s: A sync also reads again, and replaces, this many seconds before its last window, and so
            finds events that arrived late by less. If that crosses midnight it costs the read of another
            day, within a day nothing more (read_cost.md).
        late_arrival_days: How many days late an event may arrive and still be found: mobile and offline
            clients send days later. 0 searches for none.
        future_days: How many days ahead of now to read events, which clients with fast clocks send; 0 leaves
            them until that time comes. They never move the cursor.
        late_arrival_every_s: Seconds between searches for late events. Each makes PostHog read two narrow
            columns of all those days, and a granule of 8,192 rows for each late row.
        write_mode: ``window`` replaces the synced window, ``upsert`` merges by uuid, ``append`` only adds.
        person_id: ``ingested`` is the person at ingestion, as in PostHog's own exports; ``current``
            follows merges, at the cost of a join in every query.
        person_properties: Whether to load the person's properties as stored on the event.
        properties: Whether to load the event's properties.
        event_names: Names of the events to read; empty means all.
        exclude_event_names: Names of events to leave out.
        where: A HogQL condition that the events must meet, sent as it is written, so never make it from
            untrusted input; empty means none. PostHog tries it out before anything is read.
        promote: Properties that get a column of their own, and its type. The value is taken from the stored
            JSON, not by PostHog's guess of the property's type, which can lose it (hogql.md 5); a value that
            does not fit is null.
        json_columns: Type of ``properties`` in the warehouse: ``json``, ``text``, or ``auto``, which is json
            if the destination can load that from Parquet or CSV.
    """

    lag_s: float = 300.0
    lookback_s: float = 3_600.0
    late_arrival_days: float = 30.0
    late_arrival_every_s: float = 86_400.0
    future_days: float = 0.0
    write_mode: WriteMode = "window"
    person_id: PersonId = "ingested"
    person_properties: bool = False
    properties: bool = True
    event_names: tuple[str, ...] = ()
    exclude_event_names: tuple[str, ...] = ()
    where: str = ""
    promote: tuple[tuple[str, PromotedKind], ...] = ()
    json_columns: JsonColumns = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.lag_s >= 0, "events.lag_s", "0 or more")
        _require(self.lookback_s >= 0, "events.lookback_s", "0 or more")
        _require(self.late_arrival_days >= 0, "events.late_arrival_days", "0 or more")
        _require(self.late_arrival_every_s >= 0, "events.late_arrival_every_s", "0 or more")
        _require(self.future_days >= 0, "events.future_days", "0 or more")
        _require(not (self.future_days and self.write_mode == "append"), "events.future_days", "0 to append")
        _require_choice(self.write_mode, WriteMode, "events.write_mode")
        _require_choice(self.person_id, PersonId, "events.person_id")
        _require_choice(self.json_columns, JsonColumns, "events.json_columns")
        _require(
            not set(self.event_names) & set(self.exclude_event_names),
            "events.exclude_event_names",
            "names that event_names does not have",
        )

    @property
    def late_by_s(self) -> int:
        """From how late on an event is missed by ordinary syncs: lag and lookback had passed."""
        return max(0, int(self.lag_s + self.lookback_s - VISIBILITY_S))

    def choice(self) -> dict[str, object]:
        """What is read of the events, as plain JSON: only what differs from the defaults."""
        chosen = {name: getattr(self, name) for name in CHOICE}
        plain = chosen | {
            "event_names": list(self.event_names),
            "exclude_event_names": list(self.exclude_event_names),
            "promote": dict(self.promote),
        }
        return {name: plain[name] for name in CHOICE if chosen[name] != getattr(EventsSettings, name)}


CHOICE = (
    "event_names",
    "exclude_event_names",
    "where",
    "promote",
    "properties",
    "person_properties",
    "person_id",
)
"""Settings of events that decide which rows and columns are read."""


def explain_change(old: Mapping[str, object] | None, new: Mapping[str, object]) -> str | None:
    """One line about a choice of events that differs from the one that earlier loads were made with.

    Args:
        old: What `EventsSettings.choice` was then; None when it is not known.
        new: What it is now.

    Raises:
        SettingsError: A promoted property changed its type, which a column of a warehouse cannot.
    """
    if old is None or old == new:
        return None
    before, now = _promoted(old), _promoted(new)
    for name in before.keys() & now.keys():
        _require(
            before[name] == now[name],
            "events.promote",
            f"{before[name]} for {name!r}, as its column is already (not {now[name]})",
        )
    changes = [
        f"{name} changed from {_shown(old, name)} to {_shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return (
        f"events: {'; '.join(changes)}. Rows already loaded stay as they were; to apply it to them, run a "
        "backfill of their time (start_date and end_date)."
    )


def build_settings(
    *,
    project_id: object,
    api_key: object,
    host: object,
    start_date: object = None,
    end_date: object = None,
    **limits: Any,
) -> Settings:
    """Checks what a person wrote and returns it as `Settings`.

    Args:
        project_id: A whole number, or its text.
        api_key: Text beginning ``phx_`` (any other is let through, since self-hosted servers differ,
            except a project token ``phc_…``).
        host: ``us``, ``eu`` or a base URL.
        start_date: ISO text, date or datetime; naive means UTC.
        end_date: The same.
        limits: The remaining fields of `Settings`; None keeps a default.

    Raises:
        SettingsError: One line that names the setting, where to set it and what it may be.
    """
    return Settings(
        project_id=parse_project_id(project_id),
        api_key=parse_api_key(api_key),
        base_url=parse_host(host),
        start=parse_instant(start_date, "start_date"),
        end=parse_instant(end_date, "end_date"),
        **{
            name: _parse(value, getattr(Settings, name), name)
            for name, value in limits.items()
            if value is not None
        },
    )


def build_table_settings(kind: type[TableKind], section: str, values: Mapping[str, object]) -> TableKind:
    """Checks what a person wrote in a table's section.

    Args:
        kind: `EventsSettings`, `PeopleSettings` or `ResultsSettings`.
        section: Below ``[sources.posthog.…]``, for messages.
        values: As toml, the environment or Python gave them: numbers and lists may be text.

    Raises:
        SettingsError: One line that names the setting, where to set it and what it may be.
    """
    readers: Mapping[str, Callable[[object, str], Any]] = {
        "event_names": parse_names,
        "exclude_event_names": parse_names,
        "tags": parse_names,
        "short_ids": parse_names,
        "dashboards": parse_numbers,
        "where": parse_condition,
        "promote": parse_promote,
    }
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{section}.{name}"
        read = readers.get(name)
        parsed[name] = read(value, where) if read else _parse(value, getattr(kind, name), where)
    return kind(**parsed)


def parse_project_id(value: object) -> int:
    """The project's number.

    Raises:
        SettingsError: It is missing or no number; ``@current`` follows its owner's clicks
            (rest_api.md 1.1), so it is no setting.
    """
    if value is None or value == "":
        raise SettingsError(
            "project_id is not set. Set project_id under [sources.posthog] in .dlt/secrets.toml, or "
            "SOURCES__POSTHOG__PROJECT_ID: the number in PostHog's address bar."
        )
    text = str(value).strip()
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise SettingsError(
            "project_id is no number. Set SOURCES__POSTHOG__PROJECT_ID to the one in PostHog's address bar."
        )
    return int(text)


def parse_api_key(value: object) -> Secret:
    """The key, hidden.

    Raises:
        SettingsError: It is missing, has spaces or line breaks inside, or is a project token.
    """
    text = str(value).strip() if value else ""
    if not text:
        raise SettingsError(
            "api_key is not set. Set api_key under [sources.posthog] in .dlt/secrets.toml, or "
            "SOURCES__POSTHOG__API_KEY: a personal API key (phx_…) with the scope query:read."
        )
    if text.startswith("phc_"):
        raise SettingsError(
            "api_key is a project token (phc_…), which can only send events. Set SOURCES__POSTHOG__API_KEY "
            "to a personal API key (phx_…) with the scope query:read."
        )
    if not text.isascii() or not text.isprintable() or " " in text:
        raise SettingsError(
            "api_key has spaces or special characters inside. Copy it again, whole, into "
            "SOURCES__POSTHOG__API_KEY."
        )
    return Secret(text)


def parse_host(value: object) -> str:
    """The base URL for ``us``, ``eu`` or a URL of one's own.

    Raises:
        SettingsError: It is neither, or names a capture host, or would send the key in the clear.
    """
    text = str(value).strip().rstrip("/") if value else ""
    if text.lower() in HOSTS:
        return HOSTS[text.lower()]
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        host = ""
    is_named = re.fullmatch(r"(?!-)[\w-]+(\.[\w-]+)*\.?", host) and ("." in host or "://" in text)
    if not is_named and host not in LOOPBACK_HOSTS:
        raise SettingsError(  # a value in the wrong place may be the key: none is repeated
            "host is no address. Set host under [sources.posthog] to 'us', 'eu' or the base URL of your "
            "PostHog, such as https://posthog.example.com."
        )
    if host in CAPTURE_HOSTS:
        raise SettingsError(
            f"host is {host}, which only takes events in. Set host under [sources.posthog] to "
            f"{host.split('.', 1)[0]!r}."
        )
    more = "@" in parts.netloc or parts.query or parts.fragment or parts.path
    if more or parts.scheme not in ("http", "https"):
        raise SettingsError(
            "host has more than scheme, name and port. Set host under [sources.posthog] to the base URL."
        )
    if parts.scheme == "http" and host not in LOOPBACK_HOSTS:
        raise SettingsError(
            f"host is http://{host}, where the key would travel in the clear. Set host under "
            "[sources.posthog] to its https:// address."
        )
    return f"{parts.scheme}://{parts.netloc}"


def parse_instant(value: object, name: str) -> datetime | None:
    """An aware UTC datetime from ISO text, a date or a datetime; naive means UTC; empty means None.

    Raises:
        SettingsError: The text is no ISO date.
    """
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        at = value
    elif isinstance(value, date):
        at = datetime(value.year, value.month, value.day, tzinfo=UTC)
    else:
        try:
            at = datetime.fromisoformat(str(value).strip())
        except ValueError:
            raise SettingsError(
                f"{name} is {str(value)!r}, which is no ISO date. Set {name} under [sources.posthog] to "
                "one such as 2026-01-31 or 2026-01-31T12:00:00Z."
            ) from None
    try:
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except OverflowError:
        raise SettingsError(
            f"{name} is {str(value)!r}, which is out of range. Set {name} under [sources.posthog] to "
            "one such as 2026-01-31 or 2026-01-31T12:00:00Z."
        ) from None


def parse_names(value: object, name: str) -> tuple[str, ...]:
    """Names without repeats, sorted: from a list or its JSON; empty means none.

    Raises:
        SettingsError: It is no list of texts.
    """
    names = from_json(value) or ()
    is_list = isinstance(names, list | tuple | set | frozenset)
    _require(
        is_list and all(isinstance(each, str) and each for each in names),
        name,
        'a list of names, such as ["sign up", "$pageview"]',
    )
    return tuple(sorted(set(names)))


def parse_numbers(value: object, name: str) -> tuple[int, ...]:
    """Whole numbers without repeats, sorted: from a list or its JSON; empty means none.

    Raises:
        SettingsError: It is no list of whole numbers.
    """
    numbers = from_json(value) or ()
    is_list = isinstance(numbers, list | tuple | set | frozenset)
    _require(
        is_list and all(isinstance(each, int) and not isinstance(each, bool) for each in numbers),
        name,
        "a list of whole numbers, such as [12, 34]",
    )
    return tuple(sorted(set(numbers)))


def parse_promote(value: object, name: str) -> tuple[tuple[str, PromotedKind], ...]:
    """Property names and the types of their columns: from a table or its JSON; empty means none.

    Raises:
        SettingsError: It is something else, or a type is none of those that there are.
    """
    promoted = from_json(value) or {}
    kinds = get_args(PromotedKind)
    _require(
        isinstance(promoted, Mapping)
        and all(isinstance(each, str) and each for each in promoted)
        and all(kind in kinds for kind in promoted.values()),
        name,
        f'property names and types ({", ".join(kinds)}), such as {{"$browser": "text"}}',
    )
    return tuple(promoted.items())


def parse_condition(value: object, name: str) -> str:
    """A HogQL condition as written, fit to stand between parentheses inside a query.

    Whether PostHog understands it is for PostHog to say. This holds off slips of the pen that would change
    the query around it; it is no guard against a person who means harm, and reads what the key may read.

    Raises:
        SettingsError: It is no text, or has a comment, a semicolon, a brace, an open quote or an unpaired
            parenthesis.
    """
    text = str(value or "").strip()
    depth = 0
    for piece in HOGQL_PIECES.findall(text):
        depth += {"(": 1, ")": -1}.get(piece, 0)
        is_harmless = piece in "()" or (len(piece) > 1 and piece[0] in "'\"`")
        _require(depth >= 0 and is_harmless, name, f"one HogQL condition; it has a stray {piece}")
    _require(depth == 0, name, "one HogQL condition; it has a ( that is never closed")
    return text


def from_json(value: object) -> Any:
    """The value, or what its text says, as the environment has no lists."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except ValueError:
        return value


def _parse(value: object, default: object, name: str) -> Any:
    """A value of the default's type, from itself or its text; texts are left to their own checks."""
    match default:
        case bool():
            return _parse_switch(value, name)
        case int() | None:
            return _parse_whole(value, name)
        case float():
            return _parse_number(value, name)
        case _:
            return value


def _parse_switch(value: object, name: str) -> bool:
    text = str(value).strip().lower()
    _require(text in ("true", "false", "1", "0", "yes", "no", "on", "off"), name, "true or false")
    return text in ("true", "1", "yes", "on")


def _parse_whole(value: object, name: str) -> int:
    number = _parse_number(value, name)
    _require(number == int(number), name, "a whole number")
    return int(number)


def _parse_number(value: object, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        number = math.nan
    _require(math.isfinite(number), name, "a number")
    return number


def _promoted(choice: Mapping[str, object]) -> Mapping[str, object]:
    promoted = choice.get("promote")
    return promoted if isinstance(promoted, Mapping) else {}


def _shown(choice: Mapping[str, object], name: str) -> str:
    """A setting as it is written, shortened."""
    if name not in choice:
        return "its default"
    text = json.dumps(choice[name], ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"


def _require(condition: bool, name: str, allowed: str) -> None:
    if not condition:
        raise SettingsError(f"{name} must be {allowed}. Set it under [sources.posthog].")


def _require_choice(value: str, choices: Any, name: str) -> None:
    _require(value in get_args(choices), name, "one of " + ", ".join(get_args(choices)))
