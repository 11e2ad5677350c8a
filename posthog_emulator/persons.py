"""Who did it: people, the ids they are known by, merges, groups and cohort members, as PostHog keeps them.

Events are read in capture.py; the rows of people, versions and all, are written here.
"""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pyarrow as pa

from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.state import Project

# posthog plugin-server person-uuid.ts: person ids follow from the first id they were seen under.
PERSON_NAMESPACE = uuid.UUID("932979b4-65c3-4424-8467-0b66ec27bc22")
PERSONLESS_CREATED_AT = datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
FORCE_UPGRADE_AFTER = timedelta(minutes=1)
DELETED_VERSION_STEP = 100
MAX_GROUP_TYPES = 5

_ILLEGAL_ANY_CASE = frozenset(
    {"anonymous", "guest", "distinctid", "distinct_id", "id", "not_authenticated", "email", "undefined"}
    | {"true", "false"}
)
_ILLEGAL = frozenset({"[object Object]", "NaN", "None", "none", "null", "0", "undefined"})
_UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_content", "utm_name", "utm_term", "gclid", "fbclid")
_CLIENT = (
    *("$app_build", "$app_name", "$app_namespace", "$app_version", "$browser", "$browser_version"),
    *("$device_type", "$current_url", "$pathname", "$os", "$os_name", "$os_version"),
    *("$referring_domain", "$referrer"),
)


@dataclass(frozen=True)
class PersonOnEvent:
    """What an event row says of its person."""

    id: str = str(uuid.UUID(int=0))
    created_at: datetime = PERSONLESS_CREATED_AT
    properties: str = "{}"
    mode: str = "full"


@dataclass
class Event:
    """One event on its way in: capture reads it, its person is found here."""

    uuid: uuid.UUID
    name: str
    distinct_id: str
    properties: dict[str, Any]
    timestamp: datetime
    created_at: datetime
    historical_migration: bool
    elements_chain: str = ""
    person: PersonOnEvent = field(default_factory=PersonOnEvent)

    @property
    def processes_person(self) -> bool:
        """Whether this event may make or change a person."""
        return self.properties.get("$process_person_profile") is not False


@dataclass(eq=False)
class Person:
    """One person as it stands now; the version is that of the last row written."""

    id: str
    properties: dict[str, Any]
    created_at: datetime
    version: int = -1
    is_identified: bool = False
    is_deleted: bool = False
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


class Persons:
    """The people of every project, remembered for speed and written through to ClickHouse."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse
        self._books: defaultdict[int, _Book] = defaultdict(_Book)

    def process(self, project: Project, events: Sequence[Event]) -> None:
        """Give each event its person, and write what changed about people and groups."""
        book = self._books[project.id]
        with book.lock:
            if book.must_load:
                self._load(project, book, events)
            changes = _Changes()
            for event in events:
                _process(project, book, changes, event)
            self._write(project, book, changes)

    def forget(self, project: Project) -> None:
        """Rows of this project were written by someone else: read them when they are needed."""
        book = self._books[project.id]
        with book.lock:
            book.links.clear()
            book.groups.clear()
            book.must_load = True

    def _load(self, project: Project, book: _Book, events: Sequence[Event]) -> None:
        wanted = {one for event in events for one in _ids_of(event)} - book.links.keys() - book.loaded
        if wanted:
            book.loaded |= wanted
            for link in self._clickhouse_links(project, f"distinct_id IN ({_sql_list(wanted)})"):
                self._load_person(project, book, link[1])
        if not book.groups_loaded:
            book.groups_loaded = True
            self._load_groups(project, book)

    def _load_person(self, project: Project, book: _Book, person_id: str) -> None:
        links = self._clickhouse_links(project, f"person_id = '{person_id}'")
        if all(distinct_id in book.links for distinct_id, _, _ in links):
            return
        person = self._clickhouse_person(project, person_id)
        for distinct_id, _, version in links:
            book.loaded.add(distinct_id)
            book.links[distinct_id] = Link(person, version)
            person.distinct_ids.add(distinct_id)

    def _clickhouse_links(self, project: Project, where: str) -> list[tuple[str, str, int]]:
        answer = self._clickhouse.run(
            "SELECT distinct_id, toString(argMax(person_id, version)), toInt64(max(version))"
            f" FROM person_distinct_id2 WHERE team_id = {project.id} AND distinct_id IN"
            f" (SELECT distinct_id FROM person_distinct_id2 WHERE team_id = {project.id} AND {where})"
            " GROUP BY distinct_id HAVING argMax(is_deleted, version) = 0"
        )
        return [(row[0], row[1], int(row[2])) for row in orjson.loads(answer.rows_json)]

    def _clickhouse_person(self, project: Project, person_id: str) -> Person:
        answer = self._clickhouse.run(
            "SELECT argMax(properties, version), toUnixTimestamp64Milli(argMax(created_at, version)),"
            " toInt64(max(version)), toUInt8(argMax(is_identified, version))"
            f" FROM person WHERE team_id = {project.id} AND id = '{person_id}' GROUP BY id"
        )
        rows = orjson.loads(answer.rows_json)
        if not rows:
            return Person(person_id, {}, datetime.now(UTC))
        properties, created_ms, version, is_identified = rows[0]
        return Person(
            person_id,
            orjson.loads(properties or "{}"),
            datetime.fromtimestamp(int(created_ms) / 1000, UTC),
            int(version),
            is_identified=bool(is_identified),
        )

    def _load_groups(self, project: Project, book: _Book) -> None:
        answer = self._clickhouse.run(
            "SELECT group_type_index, group_key, argMax(group_properties, _timestamp),"
            " toUnixTimestamp(argMax(created_at, _timestamp))"
            f" FROM groups WHERE team_id = {project.id} GROUP BY group_type_index, group_key"
        )
        for index, key, properties, created_s in orjson.loads(answer.rows_json):
            book.groups[int(index), key] = Group(
                orjson.loads(properties or "{}"), datetime.fromtimestamp(int(created_s), UTC)
            )

    def _write(self, project: Project, book: _Book, changes: _Changes) -> None:
        for person in changes.persons.values():
            person.version += DELETED_VERSION_STEP if person.is_deleted else 1
        if changes.persons:
            self._clickhouse.insert("person", _person_rows(project, changes.persons))
        if changes.distinct_ids:
            rows = [(one, book.links[one]) for one in sorted(changes.distinct_ids)]
            self._clickhouse.insert("person_distinct_id2", _link_rows(project, rows))
            moved = [(one, link) for one, link in rows if link.version > 0]
            if moved:
                self._clickhouse.insert("person_distinct_id_overrides", _link_rows(project, moved))
        if changes.groups:
            self._clickhouse.insert("groups", _group_rows(project, book, changes.groups))


def person_uuid(team_id: int, distinct_id: str) -> str:
    """The id of the person first seen under this distinct id."""
    return str(uuid.uuid5(PERSON_NAMESPACE, f"{team_id}:{distinct_id}"))


def is_illegal(distinct_id: str) -> bool:
    """Ids that stem from a client's mistake and must not merge half the world into one person."""
    bare = distinct_id.strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\"":
        bare = bare[1:-1]
    return bare == "" or bare.lower() in _ILLEGAL_ANY_CASE or bare in _ILLEGAL


def static_cohort_rows(team_id: int, cohort_id: int, person_ids: Sequence[str]) -> pa.Table:
    """Members of a cohort made from a list."""
    return pa.table(
        {
            "id": [str(uuid.uuid5(PERSON_NAMESPACE, f"{cohort_id}:{one}")) for one in person_ids],
            "person_id": pa.array(person_ids, pa.string()),
            "cohort_id": pa.array([cohort_id] * len(person_ids), pa.int64()),
            "team_id": pa.array([team_id] * len(person_ids), pa.int64()),
        }
    )


def dynamic_cohort_rows(team_id: int, cohort_id: int, version: int, person_ids: Sequence[str]) -> pa.Table:
    """Members of a cohort as one calculation found them; only the newest version counts."""
    return pa.table(
        {
            "person_id": pa.array(person_ids, pa.string()),
            "cohort_id": pa.array([cohort_id] * len(person_ids), pa.int64()),
            "team_id": pa.array([team_id] * len(person_ids), pa.int64()),
            "sign": pa.array([1] * len(person_ids), pa.int8()),
            "version": pa.array([version] * len(person_ids), pa.uint64()),
        }
    )


class _Book:
    """What is remembered of one project."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.links: dict[str, Link] = {}
        self.groups: dict[tuple[int, str], Group] = {}
        self.personless: set[str] = set()
        self.loaded: set[str] = set()
        self.groups_loaded = False
        self.must_load = False


@dataclass
class _Changes:
    persons: dict[str, Person] = field(default_factory=dict)
    distinct_ids: set[str] = field(default_factory=set)
    groups: set[tuple[int, str]] = field(default_factory=set)


def _process(project: Project, book: _Book, changes: _Changes, event: Event) -> None:
    if not event.processes_person:
        event.person = _propertyless(project, book, event)
        return
    _add_groups(project, book, changes, event)
    _merge_if_asked(project, book, changes, event)
    link = book.links.get(event.distinct_id)
    person = link.person if link else _create(project, book, changes, [event.distinct_id], event.timestamp)
    if _apply_properties(person, event):
        changes.persons[person.id] = person
    event.person = PersonOnEvent(
        person.id, person.created_at, orjson.dumps(person.properties).decode(), "full"
    )


def _propertyless(project: Project, book: _Book, event: Event) -> PersonOnEvent:
    link = book.links.get(event.distinct_id)
    for key in ("$set", "$set_once", "$unset"):
        event.properties.pop(key, None)
    if link is None:
        book.personless.add(event.distinct_id)
        return PersonOnEvent(person_uuid(project.id, event.distinct_id), mode="propertyless")
    if event.timestamp - link.person.created_at > FORCE_UPGRADE_AFTER:
        properties = orjson.dumps(link.person.properties).decode()
        return PersonOnEvent(link.person.id, link.person.created_at, properties, "force_upgrade")
    return PersonOnEvent(link.person.id, link.person.created_at, mode="propertyless")


def _merge_if_asked(project: Project, book: _Book, changes: _Changes, event: Event) -> None:
    properties = event.properties
    if event.name in ("$create_alias", "$merge_dangerously"):
        other = properties.get("alias")
    elif event.name == "$identify":
        other = properties.get("$anon_distinct_id")
    else:
        return
    if other in (None, ""):
        return
    other, into = str(other), event.distinct_id
    if other == into or is_illegal(other) or is_illegal(into):
        return
    _merge_ids(project, book, changes, other, into, event)


def _merge_ids(project: Project, book: _Book, changes: _Changes, other: str, into: str, event: Event) -> None:
    mine, theirs = book.links.get(into), book.links.get(other)
    if mine is None and theirs is None:
        person = _create(project, book, changes, [into, other], event.timestamp)
    elif theirs is None and mine is not None:
        person = mine.person
        _attach(book, changes, person, other)
    elif mine is None and theirs is not None:
        person = theirs.person
        _attach(book, changes, person, into)
    elif mine is not None and theirs is not None:
        person = mine.person
        refused = theirs.person.is_identified and event.name != "$merge_dangerously"
        if person is not theirs.person and not refused:
            _merge_people(book, changes, source=theirs.person, target=person)
    if not person.is_identified:
        person.is_identified = True
        changes.persons[person.id] = person


def _create(
    project: Project, book: _Book, changes: _Changes, distinct_ids: list[str], created_at: datetime
) -> Person:
    person = Person(person_uuid(project.id, distinct_ids[0]), {}, created_at)
    changes.persons[person.id] = person
    for distinct_id in distinct_ids:
        _attach(book, changes, person, distinct_id, first=distinct_id == distinct_ids[0])
    return person


def _attach(book: _Book, changes: _Changes, person: Person, distinct_id: str, *, first: bool = False) -> None:
    """A distinct id once seen without a person gets version 1, which makes an override of its old events."""
    was_personless = distinct_id in book.personless and not first
    book.links[distinct_id] = Link(person, 1 if was_personless else 0)
    person.distinct_ids.add(distinct_id)
    changes.distinct_ids.add(distinct_id)


def _merge_people(book: _Book, changes: _Changes, *, source: Person, target: Person) -> None:
    target.properties = {**source.properties, **target.properties}
    target.created_at = min(source.created_at, target.created_at)
    target.version = max(source.version, target.version)
    target.is_identified = True
    for distinct_id in sorted(source.distinct_ids):
        link = book.links[distinct_id]
        book.links[distinct_id] = Link(target, link.version + 1)
        changes.distinct_ids.add(distinct_id)
    target.distinct_ids |= source.distinct_ids
    source.distinct_ids = set()
    source.is_deleted = True
    changes.persons[source.id] = source
    changes.persons[target.id] = target


def _apply_properties(person: Person, event: Event) -> bool:
    properties = event.properties
    automatic = _automatic_properties(properties)
    before = dict(person.properties)
    once = {f"$initial_{key.removeprefix('$')}": value for key, value in automatic.items()}
    for key, value in {**once, **_object(properties.get("$set_once"))}.items():
        person.properties.setdefault(key, value)
    person.properties.update({**automatic, **_object(properties.get("$set"))})
    unset = properties.get("$unset")
    for key in unset if isinstance(unset, list | dict) else ():
        person.properties.pop(key, None)
    return person.properties != before


def _automatic_properties(properties: dict[str, Any]) -> dict[str, Any]:
    """What a client says of itself; a server SDK's own operating system is not its user's."""
    if properties.get("$is_server"):
        return {key: properties[key] for key in _UTM if key in properties}
    return {key: properties[key] for key in (*_CLIENT, *_UTM) if key in properties}


def _add_groups(project: Project, book: _Book, changes: _Changes, event: Event) -> None:
    groups = event.properties.get("$groups")
    for group_type, key in groups.items() if isinstance(groups, dict) else ():
        index = _group_type_index(project, str(group_type))
        if index is not None:
            event.properties[f"$group_{index}"] = key
    if event.name == "$groupidentify":
        _upsert_group(project, book, changes, event)


def _upsert_group(project: Project, book: _Book, changes: _Changes, event: Event) -> None:
    group_type, key = event.properties.get("$group_type"), event.properties.get("$group_key")
    index = _group_type_index(project, str(group_type)) if group_type and key not in (None, "") else None
    if index is None:
        return
    group = book.groups.setdefault((index, str(key)), Group({}, event.timestamp))
    group.properties.update(_object(event.properties.get("$group_set")))
    changes.groups.add((index, str(key)))


def _group_type_index(project: Project, group_type: str) -> int | None:
    if group_type not in project.group_types:
        if len(project.group_types) >= MAX_GROUP_TYPES:
            return None
        project.group_types.append(group_type)
    return project.group_types.index(group_type)


def _ids_of(event: Event) -> Iterable[str]:
    yield event.distinct_id
    for key in ("$anon_distinct_id", "alias"):
        if event.properties.get(key):
            yield str(event.properties[key])


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sql_list(values: Iterable[str]) -> str:
    return ", ".join("'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'" for value in sorted(values))


def _person_rows(project: Project, persons: dict[str, Person]) -> pa.Table:
    people = list(persons.values())
    return pa.table(
        {
            "id": [person.id for person in people],
            "created_at": pa.array([person.created_at for person in people], pa.timestamp("ms", tz="UTC")),
            "team_id": pa.array([project.id] * len(people), pa.int64()),
            "properties": [orjson.dumps(person.properties).decode() for person in people],
            "is_identified": pa.array([int(person.is_identified) for person in people], pa.int8()),
            "is_deleted": pa.array([int(person.is_deleted) for person in people], pa.int8()),
            "version": pa.array([person.version for person in people], pa.uint64()),
        }
    )


def _link_rows(project: Project, rows: Sequence[tuple[str, Link]]) -> pa.Table:
    return pa.table(
        {
            "team_id": pa.array([project.id] * len(rows), pa.int64()),
            "distinct_id": [distinct_id for distinct_id, _ in rows],
            "person_id": [link.person.id for _, link in rows],
            "is_deleted": pa.array([0] * len(rows), pa.int8()),
            "version": pa.array([link.version for _, link in rows], pa.int64()),
        }
    )


def _group_rows(project: Project, book: _Book, keys: set[tuple[int, str]]) -> pa.Table:
    ordered = sorted(keys)
    return pa.table(
        {
            "group_type_index": pa.array([index for index, _ in ordered], pa.uint8()),
            "group_key": [key for _, key in ordered],
            "created_at": pa.array(
                [book.groups[one].created_at for one in ordered], pa.timestamp("s", tz="UTC")
            ),
            "team_id": pa.array([project.id] * len(ordered), pa.int64()),
            "group_properties": [orjson.dumps(book.groups[one].properties).decode() for one in ordered],
        }
    )
