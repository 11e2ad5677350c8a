"""The rows of people and groups in ClickHouse: read as they stand now, and written anew.

It knows PostHog's tables. What becomes of people, and with which version, is decided in persons.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa

from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.hogql import literals

_LINK = "toString(argMax(person_id, version)), toInt64(max(version)), toUInt8(argMax(is_deleted, version))"
# argMax passes over NULL, a tuple of it does not.
_PERSON = (
    "toString(id), argMax(properties, version), toUnixTimestamp64Milli(argMax(created_at, version)),"
    " toInt64(max(version)), toUInt8(argMax(is_identified, version)), toUInt8(argMax(is_deleted, version)),"
    " toUnixTimestamp64Milli(tupleElement(argMax(tuple(last_seen_at), version), 1))"
)


@dataclass(eq=False)
class Person:
    """One person as it stands now; the version is that of the last row written."""

    id: str
    properties: dict[str, Any]
    created_at: datetime
    version: int = -1
    is_identified: bool = False
    is_deleted: bool = False
    last_seen_at: datetime | None = None
    distinct_ids: set[str] = field(default_factory=set)


@dataclass
class Link:
    """A distinct id and whom it belongs to."""

    person: Person
    version: int


@dataclass
class Group:
    """One group as it stands now."""

    properties: dict[str, Any]
    created_at: datetime


@dataclass
class People:
    """Living people by their distinct ids, and the versions that the dead were left with."""

    links: dict[str, Link] = field(default_factory=dict)
    dead_links: dict[str, int] = field(default_factory=dict)
    dead_persons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _LinkRow:
    distinct_id: str
    owner: str
    version: int
    is_deleted: int


def read_people(
    clickhouse: ClickHouse, team_id: int, distinct_ids: Iterable[str], person_ids: Iterable[str]
) -> People:
    """Read the owners of some distinct ids, whole, and which of these ids and persons are dead."""
    asked = _links(clickhouse, team_id, f"distinct_id IN ({_sql_list(distinct_ids)})")
    owners = {row.owner for row in asked if not row.is_deleted}
    persons, dead_persons = _persons(clickhouse, team_id, owners, {*owners, *person_ids})
    links = {}
    for row in links_of(clickhouse, team_id, owners):
        person = persons.get(row.owner) or Person(row.owner, {}, datetime.now(UTC))
        persons[row.owner] = person
        person.distinct_ids.add(row.distinct_id)
        links[row.distinct_id] = Link(person, row.version)
    return People(links, {row.distinct_id: row.version for row in asked if row.is_deleted}, dead_persons)


def links_of(clickhouse: ClickHouse, team_id: int, person_ids: Iterable[str]) -> list[_LinkRow]:
    """Every distinct id that belongs to one of these persons now."""
    owners = set(person_ids)
    if not owners:
        return []
    ever_theirs = (
        f"SELECT distinct_id FROM person_distinct_id2 WHERE team_id = {team_id}"
        f" AND person_id IN ({_sql_list(owners)})"
    )
    rows = _links(clickhouse, team_id, f"distinct_id IN ({ever_theirs})")
    return [row for row in rows if row.owner in owners and not row.is_deleted]


def read_groups(clickhouse: ClickHouse, team_id: int) -> dict[tuple[int, str], Group]:
    """Every group of a project."""
    answer = clickhouse.run(
        "SELECT group_type_index, group_key, argMax(group_properties, _timestamp),"
        " toUnixTimestamp(argMax(created_at, _timestamp))"
        f" FROM groups WHERE team_id = {team_id} GROUP BY group_type_index, group_key"
    )
    return {
        (int(index), key): Group(
            orjson.loads(properties or "{}"), datetime.fromtimestamp(int(created_s), UTC)
        )
        for index, key, properties, created_s in orjson.loads(answer.rows_json)
    }


def insert_persons(clickhouse: ClickHouse, team_id: int, persons: Iterable[Person]) -> None:
    """Write each person as it stands now."""
    people = list(persons)
    milliseconds = pa.timestamp("ms", tz="UTC")
    table = {
        "id": [person.id for person in people],
        "created_at": pa.array([person.created_at for person in people], milliseconds),
        "team_id": pa.array([team_id] * len(people), pa.int64()),
        "properties": [orjson.dumps(person.properties).decode() for person in people],
        "is_identified": pa.array([int(person.is_identified) for person in people], pa.int8()),
        "is_deleted": pa.array([int(person.is_deleted) for person in people], pa.int8()),
        "version": pa.array([person.version for person in people], pa.uint64()),
        "last_seen_at": pa.array([person.last_seen_at for person in people], milliseconds),
    }
    clickhouse.insert("person", pa.table(table))


def insert_links(clickhouse: ClickHouse, team_id: int, links: Mapping[str, Link]) -> None:
    """Write to whom distinct ids belong; those that were not born so also override older events."""
    clickhouse.insert("person_distinct_id2", _link_rows(team_id, links))
    # posthog/models/person/sql.py, PERSON_DISTINCT_ID_OVERRIDES_MV_SQL: only what has a version above 0.
    moved = {distinct_id: link for distinct_id, link in links.items() if link.version > 0}
    clickhouse.insert("person_distinct_id_overrides", _link_rows(team_id, moved))


def insert_groups(
    clickhouse: ClickHouse, team_id: int, groups: Mapping[tuple[int, str], Group], *, at: datetime | None
) -> None:
    """Write each group as it stands at that time, by default now."""
    table = {
        "group_type_index": pa.array([index for index, _ in groups], pa.uint8()),
        "group_key": pa.array([key for _, key in groups], pa.string()),
        "created_at": pa.array([one.created_at for one in groups.values()], pa.timestamp("s", tz="UTC")),
        "team_id": pa.array([team_id] * len(groups), pa.int64()),
        "group_properties": pa.array(
            [orjson.dumps(one.properties).decode() for one in groups.values()], pa.string()
        ),
        "_timestamp": pa.array([at] * len(groups), pa.timestamp("s", tz="UTC")),
    }
    clickhouse.insert("groups", pa.table(table))


def _links(clickhouse: ClickHouse, team_id: int, where: str) -> list[_LinkRow]:
    answer = clickhouse.run(
        f"SELECT distinct_id, {_LINK} FROM person_distinct_id2"
        f" WHERE team_id = {team_id} AND {where} GROUP BY distinct_id"
    )
    return [_LinkRow(*row) for row in orjson.loads(answer.rows_json)]


def _persons(
    clickhouse: ClickHouse, team_id: int, owners: set[str], person_ids: set[str]
) -> tuple[dict[str, Person], dict[str, int]]:
    """Owners as they stand now, and the versions of those others that are dead."""
    answer = clickhouse.run(
        f"SELECT {_PERSON} FROM person"
        f" WHERE team_id = {team_id} AND id IN ({_sql_list(person_ids)}) GROUP BY id"
    )
    persons, dead = {}, {}
    for one, properties, created_ms, version, is_identified, is_deleted, seen_ms in orjson.loads(
        answer.rows_json
    ):
        if one in owners:
            persons[one] = Person(
                one,
                orjson.loads(properties or "{}"),
                _from_ms(created_ms),
                int(version),
                is_identified=bool(is_identified),
                last_seen_at=None if seen_ms is None else _from_ms(seen_ms),
            )
        elif is_deleted:
            dead[one] = int(version)
    return persons, dead


def _from_ms(milliseconds: Any) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _sql_list(values: Iterable[str]) -> str:
    return ", ".join(map(literals.text, sorted(values))) or "NULL"


def _link_rows(team_id: int, links: Mapping[str, Link]) -> pa.Table:
    people: Sequence[Link] = list(links.values())
    return pa.table(
        {
            "team_id": pa.array([team_id] * len(people), pa.int64()),
            "distinct_id": pa.array(list(links), pa.string()),
            "person_id": pa.array([link.person.id for link in people], pa.string()),
            "is_deleted": pa.array([0] * len(people), pa.int8()),
            "version": pa.array([link.version for link in people], pa.int64()),
        }
    )
