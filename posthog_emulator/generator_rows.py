"""The SQL that makes a plan's rows: every column a function of hashes of (seed, row number).

ClickHouse runs it, so 200,000 events take seconds; how many rows fall when is decided in generator.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from posthog_emulator import product

BUCKET_S = 3600
EVENTS_PER_SESSION = 8
PERSON_BYTES = 150
"""What a person's properties take without further text."""
# One big insert block costs five times as much as several small ones, all of it in page faults.
INSERT_SETTINGS = (
    " SETTINGS insert_allow_materialized_columns = 1, max_query_size = 10000000, max_threads = 2,"
    " max_partitions_per_insert_block = 0, max_block_size = 4096,"
    " min_insert_block_size_rows = 65536, min_insert_block_size_bytes = 0"
)
_BUCKET_US = BUCKET_S * 1_000_000
_DAY_MS = 86_400_000
_LATE_FROM_US = 300_000_000
_SESSIONS_PER_BUCKET = 100_000_000
_GOES_ON_ONE_IN = 13


@dataclass(frozen=True)
class Buckets:
    """Timestamps per hour of the plan, and how many events share each."""

    counts: Sequence[int]
    per_timestamp: int

    def starts(self) -> list[int]:
        """The number of the first timestamp of each bucket, and one past the last."""
        starts = [0]
        for count in self.counts:
            starts.append(starts[-1] + count)
        return starts


@dataclass(frozen=True)
class RowMaker:
    """Writes the SQL for one project and one plan."""

    team_id: int
    seed: int
    persons: int
    second_ids: int
    start: datetime
    end: datetime
    properties_bytes: int
    person_bytes: int
    late_share: float
    late_days: int
    names: tuple[str, ...]
    is_skewed: bool

    def person_rows(self) -> str:
        """Every person once, as first written."""
        person = self._person("p")
        return (
            "INSERT INTO person (id, created_at, team_id, properties, is_identified, version)"
            f" SELECT {person['id']}, {person['created_at']}, {self.team_id}, {person['properties']},"
            f" {self._hash('identified', 'p')} % 3 != 0, 0 FROM {self._people()}"
        )

    def distinct_id_rows(self) -> str:
        """One id for each person, and an anonymous one for some."""
        person = self._person("p")
        one, both = f"[{person['distinct_id']}]", f"[{person['distinct_id']}, {person['anonymous_id']}]"
        return (
            "INSERT INTO person_distinct_id2 (team_id, distinct_id, person_id, version)"
            f" SELECT {self.team_id}, arrayJoin(if(p < {self.second_ids}, {both}, {one})),"
            f" {person['id']}, 0 FROM {self._people()}"
        )

    def group_rows(self, index: int, prefix: str) -> str:
        """Every group of one type, last changed at some time of the plan."""
        properties = _json_object(
            [
                _text("name", f"concat('{prefix.title()} ', toString(number))"),
                _number("seats", f"1 + {self._hash('seats', 'number')} % 500"),
            ]
        )
        created = f"fromUnixTimestamp64Milli(toInt64({_milliseconds(self.start)}), 'UTC')"
        seconds = max(1, int((self.end - self.start).total_seconds()))
        updated = f"toDateTime({created}) + {self._hash(f'{prefix} updated', 'number')} % {seconds}"
        return (
            "INSERT INTO groups"
            " (group_type_index, group_key, created_at, team_id, group_properties, _timestamp)"
            f" SELECT {index}, concat('{prefix}_', toString(number)), {created}, {self.team_id},"
            f" {properties}, {updated} FROM numbers({product.organizations(self.persons)})"
        )

    def people_in_cohort(self, rank: int, plan_name: str | None) -> str:
        """The people a cohort's condition finds; without one, some."""
        chosen = f"{self._hash(f'cohort {rank}', 'p')} % {2 ** (rank + 2)} = 0"
        where = f"{self._pick(product.PLANS, 'plan', 'p')} = '{plan_name}'" if plan_name else chosen
        return f"SELECT toString({self._person('p')['id']}) FROM {self._people()} WHERE {where}"

    def event_rows(self, buckets: Buckets, first: int, last: int, events: int) -> str:
        """The events of some buckets: number -> timestamp and session -> person and name -> columns."""
        columns = self._event_columns()
        return (
            f"INSERT INTO events ({', '.join(columns)}) SELECT {', '.join(columns.values())}"
            f" FROM ({self._dressed(self._peopled(self._placed(buckets, first, last, events)))})"
            f"{INSERT_SETTINGS}"
        )

    def _placed(self, buckets: Buckets, first: int, last: int, events: int) -> str:
        per_timestamp, starts = buckets.per_timestamp, buckets.starts()
        first_event, last_event = starts[first] * per_timestamp, min(starts[last] * per_timestamp, events)
        filled = [bucket for bucket in range(first, last) if buckets.counts[bucket]]
        counts, firsts = [buckets.counts[one] for one in filled], [starts[one] for one in filled]
        bucket_rows = (
            "SELECT one.1 AS bucket, toUInt64(one.2) AS timestamps, toUInt64(one.3) AS starts, 1 AS always"
            f" FROM (SELECT arrayJoin(arrayZip({_array(filled)}, {_array(counts)}, {_array(firsts)})) AS one)"
        )
        numbers = (
            f"SELECT number AS n, intDiv(number, {per_timestamp}) AS moment, 1 AS always"
            f" FROM numbers_mt({first_event}, {last_event - first_event})"
        )
        # A timestamp somewhere in its own share of the hour, so that no two fall together by chance.
        spread = (
            f"intDiv(toUInt64({_BUCKET_US}) * k + {self._hash('at', 'moment')} % {_BUCKET_US}, timestamps)"
        )
        events_in_bucket = f"timestamps * {per_timestamp}"
        at_us = f"{_microseconds(self.start)} + b * {_BUCKET_US} + toInt64({spread})"
        return (
            "SELECT toInt64(bucket) AS b, n, moment - starts AS k,"
            f" k * {per_timestamp} + n % {per_timestamp} AS q,"
            f" intDiv({events_in_bucket} + {EVENTS_PER_SESSION - 1}, {EVENTS_PER_SESSION}) AS sessions,"
            f" toUInt64(b) * {_SESSIONS_PER_BUCKET} + q % sessions AS s, intDiv(q, sessions) AS position,"
            f" {at_us} AS at_us"
            f" FROM ({numbers}) AS numbers ASOF INNER JOIN ({bucket_rows}) AS buckets"
            " ON numbers.always = buckets.always AND numbers.moment >= buckets.starts"
        )

    def _peopled(self, placed: str) -> str:
        anyone = f"toUInt64(floor({self.persons} * pow({self._unit('who', 's')}, 2)))"
        others = f"least(greatest({anyone}, toUInt64(1)), toUInt64({self.persons - 1}))"
        who = f"if({self._is_heavy_user()}, toUInt64(0), {others})" if self.is_skewed else anyone
        return f"SELECT *, {who} AS p, {self._name()} AS event FROM ({placed})"

    def _dressed(self, peopled: str) -> str:
        session_ms = f"intDiv({_microseconds(self.start)}, 1000) + session_bucket * {BUCKET_S * 1000}"
        organization = f"toString({self._hash('org', 'p')} % {product.organizations(self.persons)})"
        return (
            "SELECT *, fromUnixTimestamp64Micro(at_us, 'UTC') AS at,"
            f" {self._arrived()} AS arrived,"
            f" if({self._goes_on()}, b - 1, b) AS session_bucket,"
            f" if({self._goes_on()}, s - {_SESSIONS_PER_BUCKET}, s) AS session_number,"
            f" {self._uuid7(session_ms, 'session', 'session_number')} AS session,"
            f" concat('org_', {organization}) AS organization FROM ({peopled})"
        )

    def _goes_on(self) -> str:
        """Whether a session of the day's first hour is one of the last hour of the day before.

        As on a device that stays open: whoever is there then is another person.
        """
        if (self.start.minute, self.start.second, self.start.microsecond) != (0, 0, 0):
            return "0"  # then a bucket that holds midnight holds its sessions too
        is_first_hour = f"b > 0 AND ({self.start.hour} + b) % 24 = 0"
        return f"({is_first_hour} AND s % {_SESSIONS_PER_BUCKET} % {_GOES_ON_ONE_IN} = 0)"

    def _event_columns(self) -> dict[str, str]:
        person = self._person("p")
        is_anonymous = (
            f"(p < {self.second_ids} AND NOT ({self._is_heavy_user()})"
            f" AND {self._hash('anonymous', 's')} % 3 = 0)"
        )
        return {
            "uuid": f"toUUID({self._uuid7('intDiv(at_us, 1000)', 'event', 'n')})",
            "event": "event",
            "timestamp": "at",
            "team_id": str(self.team_id),
            "distinct_id": f"if({is_anonymous}, {person['anonymous_id']}, {person['distinct_id']})",
            "elements_chain": self._elements(),
            "created_at": "arrived",
            "person_id": person["id"],
            "person_created_at": person["created_at"],
            "person_properties": person["properties"],
            "properties": self._properties(),
            "`$session_id`": "session",
            "`$group_0`": "organization",
            "_timestamp": "toDateTime(arrived) + 1",
            "inserted_at": "arrived + INTERVAL 1 SECOND",
        }

    def _is_heavy_user(self) -> str:
        return f"{self._hash('heavy', 's')} % 5 = 0" if self.is_skewed else "0"

    def _arrived(self) -> str:
        """Seconds after the event, or for a late share minutes to days, but then not after the plan's end."""
        promptly = f"toInt64(500000 + {self._hash('prompt', 'n')} % 20000000)"
        if not self.late_share:
            return f"fromUnixTimestamp64Micro(at_us + {promptly}, 'UTC')"
        longest = f"least(toInt64({self.late_days * _DAY_MS * 1000}), {_microseconds(self.end)} - at_us)"
        room = f"({longest} - {_LATE_FROM_US})"
        late_by = f"{_LATE_FROM_US} + toInt64({self._hash('late by', 'n')} % toUInt64(greatest({room}, 1)))"
        is_late = f"{self._unit('late', 'n')} < {self.late_share} AND {room} > 0"
        return f"fromUnixTimestamp64Micro(at_us + if({is_late}, {late_by}, {promptly}), 'UTC')"

    def _name(self) -> str:
        most, others = self.names[0], list(self.names[1:])
        if self.is_skewed:
            return self._pick([most] * (95 * len(others) or 1) + others * 5, "name", "n")
        return f"if(position = 0, '{most}', {self._pick(product.lottery(self.names), 'name', 'n')})"

    def _person(self, number: str) -> dict[str, str]:
        """Columns of a person as functions of its number, so that person rows and event rows agree."""
        created_ms = (
            f"{_milliseconds(self.start)} - toInt64({self._hash('created', number)} % {180 * _DAY_MS})"
        )
        first = self._pick(product.FIRST_NAMES, "first", number)
        last = self._pick(product.LAST_NAMES, "last", number)
        properties = [
            _text("email", f"concat(lower({first}), '.', lower({last}), toString({number}), '@example.com')"),
            _text("name", f"concat({first}, ' ', {last})"),
            _text("plan", self._pick(product.PLANS, "plan", number)),
            _text("$geoip_country_code", self._pick(product.COUNTRIES, "country", number)),
            _text("$initial_utm_source", self._pick(product.SOURCES, "source", number)),
            _number("seats", f"1 + {self._hash('seats', number)} % 50"),
        ]
        if self.person_bytes > PERSON_BYTES:
            properties.append(_text("about", self._words(self.person_bytes - PERSON_BYTES, number)))
        return {
            "id": f"toUUID({self._uuid5('person', number)})",
            "created_at": f"fromUnixTimestamp64Milli({created_ms}, 'UTC')",
            "distinct_id": f"concat('user_', toString({number}))",
            "anonymous_id": self._uuid5("anonymous", number),
            "properties": _json_object(properties),
        }

    def _properties(self) -> str:
        """JSON text of about `properties_bytes`: the most telling members first, then as many more as fit."""
        chosen: list[str] = []
        left = self.properties_bytes - 2
        for size, member in self._members():
            if size > left and chosen:
                break
            chosen.append(member)
            left -= size
        if left > 25:
            chosen.append(_text("$el_text", self._words(left - 13)))
        return _json_object(chosen)

    def _members(self) -> list[tuple[int, str]]:
        """Members of an event's properties, with the mean size of each."""
        is_mobile = f"({self._hash('device', 'p')} % 10 < 3)"
        browser = self._pick(product.BROWSERS, "browser", "p")
        path = self._pick(product.PATHS, "path", "n")
        return [
            (52, _text("$session_id", "session")),
            (15, _text("plan", self._pick(product.PLANS, "plan", "p"))),
            (51, _text("$current_url", f"concat('https://app.example.com', {path})")),
            (25, _text("$pathname", path)),
            (21, _text("$group_0", "organization")),
            (37, _raw("$groups", _json_object([_text("organization", "organization")]))),
            (23, _text("$browser", f"if({is_mobile}, 'Mobile Safari', {browser})")),
            (23, _number("$browser_version", f"100 + {self._hash('version', 'p')} % 40")),
            (15, _text("$os", f"if({is_mobile}, 'iOS', {self._pick(product.SYSTEMS, 'os', 'p')})")),
            (17, _number("revenue", f"round({self._unit('revenue', 'n')} * 500, 2)")),
            (10, _number("items", f"{self._hash('items', 'n')} % 9")),
            (24, _text("utm_source", self._pick(product.SOURCES, "source", "s"))),
            (27, _text("utm_campaign", self._pick(product.CAMPAIGNS, "campaign", "s"))),
            (36, _text("$referring_domain", self._pick(product.REFERRERS, "referrer", "s"))),
            (21, _raw("$screen_width", "'1920'")),
            (22, _raw("$screen_height", "'1080'")),
            (13, _text("$lib", "'web'")),
            (25, _text("$lib_version", "'1.298.0'")),
            (22, _raw("$is_identified", "'true'")),
            (27, _text("$geoip_country_code", self._pick(product.COUNTRIES, "country", "p"))),
            (25, _text("$device_type", f"if({is_mobile}, 'Mobile', 'Desktop')")),
            (26, _number("$time", "at_us / 1000000")),
            (12, _raw("beta", "'null'")),
        ]

    def _words(self, mean: int, number: str = "n") -> str:
        """Text of very different lengths around a mean, as a function of a number."""
        soup = product.words(self.seed)
        enough = f"repeat('{soup}', {2 + 2 * mean // len(soup)})"
        length = f"toUInt32({mean} * 0.2 + {self._hash('length', number)} % {max(1, int(mean * 1.6))})"
        return f"substring({enough}, 1 + {self._hash('words', number)} % {len(soup)}, {length})"

    def _elements(self) -> str:
        text = self._pick(product.BUTTONS, "button", "n")
        chain = f"concat('{product.ELEMENT_BEFORE_TEXT}', {text}, '{product.ELEMENT_AFTER_TEXT}')"
        return f"if(event = '$autocapture', {chain}, '')"

    def _people(self) -> str:
        return f"(SELECT number AS p FROM numbers({self.persons}))"

    def _hash(self, what: str, of: str) -> str:
        return f"xxHash64({self.seed}, '{what}', {of})"

    def _unit(self, what: str, of: str) -> str:
        return f"({self._hash(what, of)} % 1000003 / 1000003)"

    def _pick(self, values: Sequence[str], what: str, of: str) -> str:
        return f"{_array(values)}[1 + {self._hash(what, of)} % {len(values)}]"

    def _uuid7(self, milliseconds: str, what: str, of: str) -> str:
        moment = f"leftPad(lower(hex(toUInt64({milliseconds}))), 16, '0')"
        return self._uuid(f"substring({moment}, 5)", "7", what, of)

    def _uuid5(self, what: str, of: str) -> str:
        return self._uuid(f"lower(substring(hex({self._hash(what + ' head', of)}), 1, 12))", "5", what, of)

    def _uuid(self, head: str, version: str, what: str, of: str) -> str:
        """The text of a uuid: twelve hex digits, the version, and hashes."""
        alias = f"{what}_{of}"
        middle, tail = (f"lower(hex({self._hash(f'{what} {part}', of)}))" for part in ("middle", "tail"))
        variant = f"substring('89ab', 1 + {self._hash(f'{what} variant', of)} % 4, 1)"
        return (
            f"concat(substring({head} AS {alias}_head, 1, 8), '-',"
            f" substring({alias}_head, 9, 4), '-{version}',"
            f" substring({middle} AS {alias}_middle, 1, 3), '-', {variant},"
            f" substring({alias}_middle, 4, 3), '-', substring({tail}, 1, 12))"
        )


def _json_object(members: Sequence[str]) -> str:
    between = ", ',', "
    return f"concat('{{', {between.join(members)}, '}}')"


def _text(name: str, value: str) -> str:
    return f"'\"{name}\":\"', {value}, '\"'"


def _number(name: str, value: str) -> str:
    return _raw(name, f"toString({value})")


def _raw(name: str, json_text: str) -> str:
    return f"'\"{name}\":', {json_text}"


def _array(values: Sequence[object]) -> str:
    return "[" + ", ".join(f"'{one}'" if isinstance(one, str) else str(one) for one in values) + "]"


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _microseconds(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000 + at.microsecond
