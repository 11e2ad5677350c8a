"""Person processing by PostHog's rules: whose an event is, merges, deletions and groups.

Events are read in capture.py; what one does to properties is in person_properties.py, rows in person_rows.py.
"""

from __future__ import annotations

import threading
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.person_properties import apply_event, json_object, same_json
from posthog_emulator.person_rows import (
    Group,
    Link,
    People,
    Person,
    insert_groups,
    insert_links,
    insert_persons,
    links_of,
    read_groups,
    read_people,
)
from posthog_emulator.state import Project

# posthog plugin-server person-uuid.ts: person ids follow from the first id they were seen under.
PERSON_NAMESPACE = uuid.UUID("932979b4-65c3-4424-8467-0b66ec27bc22")
PERSONLESS_CREATED_AT = datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
FORCE_UPGRADE_AFTER = timedelta(minutes=1)
DELETED_VERSION_STEP = 100
MAX_GROUP_TYPES = 5
LOAD_AT_ONCE = 500


_ILLEGAL_ANY_CASE = frozenset(
    {"anonymous", "guest", "distinctid", "distinct_id", "id", "not_authenticated", "email", "undefined"}
    | {"true", "false"}
)
_ILLEGAL = frozenset({"[object Object]", "NaN", "None", "none", "null", "0", "undefined"})


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


class UnknownPersonError(LookupError):
    """A person that is not there."""


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
                self._load(project, book, {one for event in events for one in _ids_of(event)})
            changes = _Changes(at=events[-1].created_at if events else None)
            for event in events:
                _process(project, book, changes, event)
            self._write(project, book, changes)

    def edit(
        self,
        project: Project,
        *,
        person_id: str | None = None,
        distinct_id: str | None = None,
        to_set: Mapping[str, Any],
        unset: Iterable[str],
    ) -> Person:
        """Change one person's properties without an event; a new version if that changes anything."""
        book = self._books[project.id]
        with book.lock:
            person = self._find(project, book, person_id, distinct_id)
            after = {key: one for key, one in {**person.properties, **to_set}.items() if key not in unset}
            if not same_json(person.properties, after):
                person.properties = after
                self._write(project, book, _Changes(persons={person.id: person}))
            return person

    def forget(self, project: Project) -> None:
        """Rows of this project were written by someone else: read them when they are needed."""
        book = self._books[project.id]
        with book.lock:
            book.people = People()
            book.groups = {}
            book.loaded = set()
            book.groups_loaded = False
            book.must_load = True

    def _find(self, project: Project, book: _Book, person_id: str | None, distinct_id: str | None) -> Person:
        if book.must_load:
            theirs = links_of(self._clickhouse, project.id, [person_id] if person_id else [])
            self._load(project, book, {distinct_id} if distinct_id else {row.distinct_id for row in theirs})
        links = book.people.links
        if distinct_id is not None:
            found = [links[distinct_id].person] if distinct_id in links else []
        else:
            found = [link.person for link in links.values() if link.person.id == person_id]
        if not found:
            raise UnknownPersonError(f"No person {person_id or distinct_id!r} that has a distinct id.")
        return found[0]

    def _load(self, project: Project, book: _Book, distinct_ids: set[str]) -> None:
        wanted = sorted(distinct_ids - book.people.links.keys() - book.loaded)
        for start in range(0, len(wanted), LOAD_AT_ONCE):
            some = wanted[start : start + LOAD_AT_ONCE]
            born = [person_uuid(project.id, one) for one in some]
            found = read_people(self._clickhouse, project.id, some, born)
            book.loaded.update(some, found.links)
            book.people.links |= {
                one: link for one, link in found.links.items() if one not in book.people.links
            }
            book.people.dead_links |= found.dead_links
            book.people.dead_persons |= found.dead_persons
        if not book.groups_loaded:
            book.groups_loaded = True
            book.groups = read_groups(self._clickhouse, project.id)

    def _write(self, project: Project, book: _Book, changes: _Changes) -> None:
        for person, stored in changes.touched.values():
            if person.id not in changes.persons:
                person.properties = stored
        for person in changes.persons.values():
            person.version += DELETED_VERSION_STEP if person.is_deleted else 1
            if person.is_deleted:
                book.people.dead_persons[person.id] = person.version
        if changes.persons:
            insert_persons(self._clickhouse, project.id, changes.persons.values())
        if changes.distinct_ids:
            moved = {one: book.people.links[one] for one in sorted(changes.distinct_ids)}
            insert_links(self._clickhouse, project.id, moved)
        if changes.groups:
            groups = {one: book.groups[one] for one in sorted(changes.groups)}
            insert_groups(self._clickhouse, project.id, groups, at=changes.at)


def person_uuid(team_id: int, distinct_id: str) -> str:
    """The id of the person first seen under this distinct id."""
    return str(uuid.uuid5(PERSON_NAMESPACE, f"{team_id}:{distinct_id}"))


def is_illegal(distinct_id: str) -> bool:
    """Ids that stem from a client's mistake and must not merge half the world into one person."""
    bare = distinct_id
    if len(bare) > 2 and bare[0] == bare[-1] and bare[0] in "'\"":
        bare = bare[1:-1]
    return distinct_id.strip() == "" or bare.lower() in _ILLEGAL_ANY_CASE or bare in _ILLEGAL


class _Book:
    """What is remembered of one project."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.people = People()
        self.groups: dict[tuple[int, str], Group] = {}
        self.loaded: set[str] = set()
        self.groups_loaded = False
        self.must_load = False


@dataclass
class _Changes:
    """What one batch is to write, and when; `touched` are people with the properties they had before it."""

    at: datetime | None = None
    persons: dict[str, Person] = field(default_factory=dict)
    distinct_ids: set[str] = field(default_factory=set)
    groups: set[tuple[int, str]] = field(default_factory=set)
    touched: dict[str, tuple[Person, dict[str, Any]]] = field(default_factory=dict)


def _process(project: Project, book: _Book, changes: _Changes, event: Event) -> None:
    if not event.processes_person:
        event.person = _propertyless(project, book, event)
        return
    _add_groups(project, book, changes, event)
    _merge_if_asked(project, book, changes, event)
    link = book.people.links.get(event.distinct_id)
    person = link.person if link else _create(project, book, changes, [event.distinct_id], event.timestamp)
    changes.touched.setdefault(person.id, (person, dict(person.properties)))
    person.properties, is_changed = apply_event(
        person.properties, event.name, event.properties, is_new=link is None
    )
    is_seen = project.settings.person_last_seen and _see(person, event)
    if is_changed or is_seen:
        changes.persons[person.id] = person
    event.person = PersonOnEvent(
        person.id, person.created_at, orjson.dumps(person.properties).decode(), "full"
    )


def _propertyless(project: Project, book: _Book, event: Event) -> PersonOnEvent:
    link = book.people.links.get(event.distinct_id)
    for key in ("$set", "$set_once", "$unset"):
        event.properties.pop(key, None)
    if link is None:
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
    mine, theirs = book.people.links.get(into), book.people.links.get(other)
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
    """Make a person, or raise a dead one, whose versions then go on from those it died with."""
    person = Person(person_uuid(project.id, distinct_ids[0]), {}, created_at, last_seen_at=_hour(created_at))
    person.version = book.people.dead_persons.pop(person.id, person.version)
    changes.persons[person.id] = person
    for distinct_id in distinct_ids:
        _attach(book, changes, person, distinct_id, is_first=distinct_id == distinct_ids[0])
    return person


def _attach(
    book: _Book, changes: _Changes, person: Person, distinct_id: str, *, is_first: bool = False
) -> None:
    """Give a person one more id.

    Version 1 overrides whatever personless events the id had; the first id needs none, since the person's
    own id follows from it (nodejs/src/ingestion/common/persons/person-merge-postgres.ts, 2026).
    """
    dead = book.people.dead_links.pop(distinct_id, None)
    version = int(not is_first) if dead is None else dead + 1
    book.people.links[distinct_id] = Link(person, version)
    person.distinct_ids.add(distinct_id)
    changes.distinct_ids.add(distinct_id)


def _merge_people(book: _Book, changes: _Changes, *, source: Person, target: Person) -> None:
    target.properties = {**source.properties, **target.properties}
    target.created_at = min(source.created_at, target.created_at)
    source.version = max(source.version, 0)  # -1 is a person of this very batch, whom PostHog has written
    target.version = max(source.version, target.version)
    target.is_identified = True
    for distinct_id in sorted(source.distinct_ids):
        link = book.people.links[distinct_id]
        book.people.links[distinct_id] = Link(target, link.version + 1)
        changes.distinct_ids.add(distinct_id)
    target.distinct_ids |= source.distinct_ids
    source.distinct_ids = set()
    source.is_deleted = True
    changes.persons[source.id] = source
    changes.persons[target.id] = target


def _see(person: Person, event: Event) -> bool:
    """Move when a person was last seen, by the hour and only forward; whether it moved."""
    seen_at = _hour(event.timestamp)
    if event.properties.get("$update_person_last_seen_at") is False:
        return False
    if person.last_seen_at is not None and seen_at <= person.last_seen_at:
        return False
    person.last_seen_at = seen_at
    return True


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
    known = book.groups.get((index, str(key)))
    before = known.properties if known else {}
    after = {**before, **json_object(event.properties.get("$group_set"))}
    if known is None or not same_json(before, after):
        created_at = min(known.created_at, event.timestamp) if known else event.timestamp
        book.groups[index, str(key)] = Group(after, created_at)
        changes.groups.add((index, str(key)))


def _group_type_index(project: Project, group_type: str) -> int | None:
    if group_type not in project.group_types:
        if len(project.group_types) >= MAX_GROUP_TYPES:
            return None
        project.add_group_type(group_type)
    return project.group_types.index(group_type)


def _ids_of(event: Event) -> Iterable[str]:
    yield event.distinct_id
    for key in ("$anon_distinct_id", "alias"):
        if event.properties.get(key):
            yield str(event.properties[key])


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)
