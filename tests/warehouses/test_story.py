"""The same story, told to every destination that can be had here: the same rows, types and deletions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from posthog_source import EventsConfig, PeopleConfig, Verification, run_backfill, run_sync, verify
from posthog_source.catalog import (
    COHORT_PEOPLE,
    GROUPS,
    PERSON_DISTINCT_IDS,
    PERSONS,
    events_table,
)
from posthog_source.config import EventsSettings
from posthog_source.definitions import FEATURE_FLAGS
from posthog_source.errors import SettingsError
from posthog_source.tables import HogqlTable, Table
from tests.conftest import NO_LIMITS, Project, Server
from tests.warehouses import story, truth
from tests.warehouses.places import PLACES, Place
from tests.warehouses.reading import read, read_type

pytestmark = pytest.mark.warehouses

PEOPLE = (PERSONS, PERSON_DISTINCT_IDS)
TABLES: tuple[Table, ...] = (*PEOPLE, GROUPS, COHORT_PEOPLE, FEATURE_FLAGS)
NAMES = ["events", *(table.name for table in TABLES)]
MOMENTS = ("synced_at", "deleted_at", "updated_at", "calculated_at")
"""Of the sync, or of the telling: no two are the same."""

Shelf = dict[str, pa.Table]


@dataclass
class Told:
    """A destination after the story.

    Attributes:
        chapters: What it held after each, by table.
        truths: What PostHog held then.
        warnings: What the connector said.
        types: What columns are there, by its own words.
        verified: What `verify` found at the end, or why it cannot.
    """

    place: Place
    pipeline: dlt.Pipeline
    chapters: list[Shelf] = field(default_factory=list)
    truths: list[Shelf] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    verified: Verification | SettingsError | None = None

    def tell(self, project: Project) -> None:
        """All of it."""
        story.begin(project)
        self._sync(project, 3, story.PROMOTED)
        self._remember(project, story.PROMOTED)
        story.go_on(project)
        self._sync(project, 1, story.PROMOTED_LATER)
        self._remember(project, story.PROMOTED_LATER)
        story.end(project)
        people = [table.name for table in PEOPLE]
        self._sync(project, 1, story.PROMOTED_LATER, tables=people, deletes="hard", sweep_every_days=0)
        backfilled = story.BACKFILLED.start, story.BACKFILLED.end
        events = EventsConfig(promote=story.PROMOTED_LATER, late_arrival_every_s=0)
        run_backfill(self.pipeline, *backfilled, events=events, **project.credentials)
        self._remember(project, story.PROMOTED_LATER)
        self._sync(project, 1, story.PROMOTED_LATER)
        self._remember(project, story.PROMOTED_LATER)
        self.types = {name: read_type(self.pipeline, events_of(story.PROMOTED), name) for name in TYPES}
        try:
            self.verified = verify(
                self.pipeline,
                end=story.NOW - 1.5 * story.HOUR,
                tables=["events", *people],
                events=events,
                **project.credentials,
            )
        except SettingsError as error:
            self.verified = error

    def _sync(
        self, project: Project, lag_hours: int, promote: dict[str, str], tables: Any = NAMES, **people: Any
    ) -> None:
        run_sync(
            self.pipeline,
            tables=tables,
            events=EventsConfig(lag_s=3_600 * lag_hours, late_arrival_every_s=0, promote=promote),
            people=PeopleConfig(page_rows=40, **people),
            **project.credentials,
        )

    def _remember(self, project: Project, promote: dict[str, str]) -> None:
        events = events_of(promote)
        self.chapters.append({table.name: read(self.pipeline, table) for table in (events, *TABLES)})
        self.truths.append(
            {
                "events": truth.true_events(project, events),
                "persons": truth.true_persons(project, PERSONS),
                "person_distinct_ids": truth.true_owners(project, PERSON_DISTINCT_IDS),
                "groups": truth.true_groups(project, GROUPS),
                "cohort_people": truth.true_members(project, COHORT_PEOPLE),
            }
        )


TYPES = ("project_id", "timestamp", "event", "properties", "price", "seats", "is_paid", "paid_at")


def events_of(promote: dict[str, str]) -> HogqlTable:
    settings = EventsSettings(promote=tuple(promote.items()))  # type: ignore[arg-type]
    return events_table(settings).without({"person_properties"})


@contextmanager
def heard() -> Iterator[list[str]]:
    """Warnings of the connector's."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("posthog_source")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


class Library:
    """Tells the story to a destination when it is first asked for; servers run until the end."""

    def __init__(self, server: Server, folder: Path, stack: ExitStack) -> None:
        self._server = server
        self._folder = folder
        self._stack = stack
        self._told: dict[str, Told] = {}

    def get(self, place: Place) -> Told:
        if place.name not in self._told:
            folder = self._folder / place.name
            folder.mkdir(exist_ok=True)
            pipeline = dlt.pipeline(
                "posthog",
                pipelines_dir=str(folder / "pipelines"),
                destination=self._stack.enter_context(place.open(folder)),
                dataset_name="posthog_data",
            )
            with heard() as warnings:
                told = Told(place, pipeline, warnings=warnings)
                told.tell(self._server.project(settings={"rate_limits": NO_LIMITS}))
            self._told[place.name] = told
        return self._told[place.name]


@pytest.fixture(scope="module")
def library(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    with ExitStack() as stack:
        yield Library(server, tmp_path_factory.mktemp("library"), stack)


@pytest.fixture(params=PLACES, ids=lambda place: place.name)
def told(request: pytest.FixtureRequest, library: Library) -> Told:
    return library.get(request.param)


def living(table: pa.Table) -> pa.Table:
    """Rows that are not marked as gone."""
    if "deleted_at" not in table.column_names:
        return table
    return table.filter(pc.is_null(table.column("deleted_at")))


def differences(found: pa.Table, true: pa.Table) -> list[str]:
    """Some cells that differ, in words; both are in the order of their keys."""
    named = found.select(true.column_names)
    if named.num_rows != true.num_rows:
        keys = [
            set(map(tuple, map(dict.values, table.select(true.column_names[:3]).to_pylist())))
            for table in (named, true)
        ]
        return [
            f"{named.num_rows} rows, not {true.num_rows}",
            f"too many: {list(keys[0] - keys[1])[:3]}",
            f"missing: {list(keys[1] - keys[0])[:3]}",
        ]
    pairs = zip(named.to_pylist(), true.to_pylist(), strict=True)
    cells = ((n, name, one[name], two[name]) for n, (one, two) in enumerate(pairs) for name in one)
    odd = (f"row {n}, {name}: {one!r:.80}, not {two!r:.80}" for n, name, one, two in cells if one != two)
    return list(islice(odd, 5))


def comparable(table: pa.Table) -> pa.Table:
    """Less what no two tellings have alike: the project's number and its cohort's, and when it was synced."""
    for name in ("project_id", "cohort_id", "created_by"):
        if name in table.column_names:
            table = table.drop_columns([name])
    for name in MOMENTS:
        if name in table.column_names:
            index = table.column_names.index(name)
            table = table.set_column(index, name, pc.is_null(table.column(name)))
    return table


def test_a_full_load_has_every_row_and_every_value(told: Told) -> None:
    found, true = told.chapters[0], told.truths[0]

    for name, table in true.items():
        assert differences(living(found[name]), table) == [], name
    assert found["feature_flags"].column("key").to_pylist() == ["flag-0", "flag-1", "flag-2"]


def test_a_sync_brings_what_is_new_late_or_changed_and_takes_what_is_gone(told: Told) -> None:
    found, true = told.chapters[1], told.truths[1]

    if not told.place.strategy:
        uuids = true["events"].column("uuid").to_pylist()
        late = [story.uuid_of(1, n) for n in range(2_000, 2_007)]
        kept = sorted({*uuids, story.uuid_of(1, 3_000)} - set(late))
        assert found["events"].column("uuid").to_pylist() == kept
        found = found | {"events": select(found["events"], uuids)}
        true = true | {"events": select(true["events"], kept)}
    for name, table in true.items():
        assert differences(living(found[name]), table) == [], name
    flags = found["feature_flags"].column("key").to_pylist()
    assert flags == ["flag-0", "flag-3"]


def test_people_who_are_gone_are_marked_then_deleted_where_a_person_wants_that(told: Told) -> None:
    gone = [[row for row in chapter["persons"].to_pylist() if row["deleted_at"]] for chapter in told.chapters]

    marked = [story.uuid_of(2, story.MERGED)] if told.place.strategy else []
    assert [[row["id"] for row in rows] for rows in gone] == [[], marked, marked, marked]
    for name in ("persons", "person_distinct_ids"):
        assert differences(living(told.chapters[2][name]), told.truths[2][name]) == [], name


def test_a_backfill_replaces_its_window_or_adds_it_again(told: Told) -> None:
    events, before = told.chapters[2]["events"], told.chapters[1]["events"]

    if told.place.strategy:
        assert differences(events, told.truths[2]["events"]) == []
        return
    window = story.BACKFILLED
    read = [
        row["uuid"]
        for row in told.truths[2]["events"].to_pylist()
        if window.start <= row["timestamp"] < window.end
    ]
    assert len(read) == story.OF_A_DAY - 1
    assert sorted([*before.column("uuid").to_pylist(), *read]) == events.column("uuid").to_pylist()


def test_a_sync_of_nothing_new_changes_nothing(told: Told) -> None:
    for name, table in told.chapters[3].items():
        assert differences(comparable(table), comparable(told.chapters[2][name])) == [], name


@pytest.mark.parametrize("chapter", range(4))
def test_every_destination_holds_the_same_as_duckdb(library: Library, told: Told, chapter: int) -> None:
    first = library.get(PLACES[0])

    for name, table in told.chapters[chapter].items():
        if told.place.strategy or (name == "events" and chapter == 0):
            assert differences(comparable(table), comparable(first.chapters[chapter][name])) == [], name


def test_only_those_that_cannot_replace_rows_say_so(told: Told) -> None:
    said = {warning for warning in told.warnings if "cannot replace rows" in warning}

    assert len(said) == (0 if told.place.strategy else 1)
    assert all("De-duplicate by uuid on read." in warning for warning in said)


def test_columns_are_of_the_types_that_the_page_says(told: Told) -> None:
    assert told.types["properties"] == told.place.json_type
    assert len({told.types[name] for name in ("timestamp", "paid_at")}) == 1


def test_verify_finds_all_the_same_or_names_what_was_not_replaced_or_says_that_it_cannot(told: Told) -> None:
    if not told.place.verifies:
        assert isinstance(told.verified, SettingsError)
        assert "cannot be compared with PostHog" in str(told.verified)
        assert "\n" not in str(told.verified)
        return
    assert isinstance(told.verified, Verification)
    counts = Counter(difference.kind for difference in told.verified.differences)
    gone, late, again = 2, 7, story.OF_A_DAY - 1
    expected = {} if told.place.strategy else {"extra": gone, "missing": late, "duplicate": again}
    assert counts == expected


def select(events: pa.Table, uuids: Collection[str]) -> pa.Table:
    return events.filter(pc.is_in(events.column("uuid"), value_set=pa.array(uuids)))
