"""The odd rows that real projects have and tidy test data has not: each kind a few times.

Strange text, strange clocks, strange sizes, and rows that are there twice since nothing has merged them yet.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import pyarrow as pa

HUGE_PROPERTIES_BYTES = 100_000
DUPLICATE_EVERY = 1009
MAX_DUPLICATES = 50
# Else ClickHouse would merge the duplicates away at a moment of its own choosing.
KEEP_DUPLICATES = (
    "SYSTEM STOP MERGES events",
    "ALTER TABLE events MODIFY SETTING parts_to_delay_insert = 10000, parts_to_throw_insert = 20000",
)
LOSE_DUPLICATES = "SYSTEM START MERGES events"

# (event, properties as the exact JSON text, distinct id)
_STRANGE_TEXT = (
    ("emoji 🦔 event", '{"title":"naïve café ☕ 日本語 العربية","plan":"free"}', "user_ünïcode_🦔"),
    ("nul escape", '{"title":"before\\u0000after"}', "user_nul"),
    ("lone surrogate escape", '{"title":"half \\ud83e of a hedgehog"}', "user_surrogate"),
    ("", '{"note":"an event whose name is the empty string"}', "user_empty_name"),
    ("null members", '{"plan":null,"nested":{"a":null,"b":[null,1]},"list":[]}', "user_nulls"),
    (
        "quotes ' \" \\ and\ttabs\nlines",
        '{"text":"quote \\" backslash \\\\ newline \\n tab \\t"}',
        'o\'brien \\ "x"',
    ),
    ("empty properties", "{}", "user_empty"),
    (
        "big numbers",
        '{"big":9007199254740993,"huge":1e308,"negative":-0.0,"exact":12345678901234567890}',
        "user_numbers",
    ),
    ("duplicate keys", '{"a":1,"a":2,"b":"x"}', "user_duplicate_keys"),
    ("spaces", '{ "spaced" : true , "list" : [ 1 , 2 ] }', "user spaced id"),
    ("percent %s {braces} --", '{"sql":"\'; DROP TABLE events; --","template":"{x} %s %d"}', "user_%s"),
)


@dataclass(frozen=True)
class _Odd:
    event: str
    properties: str
    distinct_id: str
    timestamp: datetime
    created_at: datetime


def nasty_events(team_id: int, start: datetime, end: datetime, seed: int) -> pa.Table:
    """The odd events themselves."""
    odd = list(_odd_events(start, end))
    moment = pa.timestamp("us", tz="UTC")
    people = [_person_id(one.distinct_id, seed) for one in odd]
    return pa.table(
        {
            "uuid": [str(uuid.uuid5(_namespace(seed), f"event {number}")) for number in range(len(odd))],
            "event": [one.event for one in odd],
            "properties": [one.properties for one in odd],
            "timestamp": pa.array([one.timestamp for one in odd], moment),
            "team_id": pa.array([team_id] * len(odd), pa.int64()),
            "distinct_id": [one.distinct_id for one in odd],
            "created_at": pa.array([one.created_at for one in odd], moment),
            "person_id": people,
            "person_created_at": pa.array([start] * len(odd), moment),
            "person_properties": ["{}"] * len(odd),
            "person_mode": ["full" if number % 4 else "propertyless" for number in range(len(odd))],
        }
    )


def nasty_persons(team_id: int, end: datetime, seed: int) -> tuple[pa.Table, pa.Table]:
    """The people of the odd events, and their distinct ids."""
    names = sorted({one.distinct_id for one in _odd_events(end - timedelta(days=1), end)})
    people = [_person_id(name, seed) for name in names]
    created = pa.array([end - timedelta(days=2)] * len(names), pa.timestamp("ms", tz="UTC"))
    ids = pa.array([team_id] * len(names), pa.int64())
    persons = {
        "id": people,
        "created_at": created,
        "team_id": ids,
        "properties": ['{"name":"Ödd 🦔","nothing":null}'] * len(names),
    }
    return pa.table(persons), pa.table({"team_id": ids, "distinct_id": names, "person_id": people})


def duplicates_sql(team_id: int, start: datetime, end: datetime) -> tuple[str, str]:
    """A SELECT of rows to write once more, as a client that retried does, and its columns."""
    columns = (
        "uuid, event, properties, timestamp, team_id, distinct_id, elements_chain, created_at, person_id,"
        " person_created_at, person_properties, person_mode"
    )
    select = (
        f"SELECT {columns} FROM events WHERE team_id = {team_id}"
        f" AND timestamp >= {_literal(start)} AND timestamp < {_literal(end)}"
        f" AND cityHash64(uuid) % {DUPLICATE_EVERY} = 0 ORDER BY timestamp, uuid LIMIT {MAX_DUPLICATES}"
    )
    return select, columns


def _odd_events(start: datetime, end: datetime) -> Iterator[_Odd]:
    middle = start + (end - start) / 3
    for number, (event, properties, distinct_id) in enumerate(_STRANGE_TEXT):
        at = middle + timedelta(seconds=number)
        yield _Odd(event, properties, distinct_id, at, at + timedelta(seconds=3))
    yield _Odd("huge properties", _huge(), "user_huge", middle, middle + timedelta(seconds=3))
    # Clocks that are years off; the server's own created_at is right.
    for years, name in ((-20, "past"), (-3, "past"), (2, "future")):
        arrived = end - timedelta(hours=1)
        yield _Odd(
            "wrong clock",
            f'{{"clock":"{name}"}}',
            f"user_clock_{name}",
            arrived + timedelta(days=365 * years),
            arrived,
        )
    # Times without a fraction are written without one.
    for number in range(3):
        at = (middle + timedelta(minutes=number)).replace(microsecond=0)
        yield _Odd("whole second", "{}", "user_whole_second", at, at + timedelta(seconds=2))


def _huge() -> str:
    chance = random.Random(7)  # noqa: S311 - the same text every time
    return (
        '{"blob":"' + "".join(chance.choices("abcdefghijklmnopqrstuvwxyz ", k=HUGE_PROPERTIES_BYTES)) + '"}'
    )


def _namespace(seed: int) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, f"posthog_emulator seed {seed}")


def _person_id(distinct_id: str, seed: int) -> str:
    return str(uuid.uuid5(_namespace(seed), f"person {distinct_id}"))


def _literal(at: datetime) -> str:
    return f"fromUnixTimestamp64Micro(toInt64({int(at.timestamp() * 1_000_000)}), 'UTC')"
