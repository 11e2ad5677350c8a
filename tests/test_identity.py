"""Identity in the warehouse: the view says of each event's person what PostHog says at that moment."""

from __future__ import annotations

import random
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pytest
import sqlglot
from sqlglot import exp

from posthog_source import EventsConfig, PeopleConfig, create_person_view, posthog_source
from posthog_source.catalog import EVENTS, PERSON_DISTINCT_IDS, PERSONS
from posthog_source.errors import SettingsError
from posthog_source.identity import DIALECTS, Relation, build_person_view_sql
from tests.conftest import Elsewhere, Files, Project, Warehouse, add_events, bearer

TABLES = ("events", "persons", "person_distinct_ids")
LATE = {"late_arrival_every_s": 0.0}
"""Each sync finds what has arrived since the last one, however old."""
SWEEP = PeopleConfig(sweep_every_days=0)
"""Deletions and splits leave no event."""
VERSIONED = ("person_distinct_id2", "person_distinct_id_overrides")
NIL = str(uuid.UUID(int=0))
SOMEONE, SOMEONE_ELSE = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
SHOWN = {
    "events": Relation(
        ("shop", "data", "events"), ("project_id", "uuid", "distinct_id", "person_id", "plan")
    ),
    "ids": Relation(("shop", "data", "person_distinct_ids"), ("project_id", "distinct_id", "person_id")),
    "persons": Relation(("shop", "data", "persons"), ("project_id", "id", "created_at", "properties")),
}


@dataclass
class Story:
    """What happened to a project's people, told event by event, oldest first."""

    project: Project
    told: int = 0
    at: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(hours=6))

    def send(self, name: str, distinct_id: str, **properties: Any) -> None:
        """An event, ten seconds after the last one."""
        self.told += 1
        stamp = (self.at + timedelta(seconds=10 * self.told)).isoformat()
        event = {"event": name, "distinct_id": distinct_id, "properties": properties, "timestamp": stamp}
        assert self.project.capture(event).is_success

    def page(self, distinct_id: str) -> None:
        self.send("page", distinct_id)

    def personless(self, distinct_id: str) -> None:
        self.send("page", distinct_id, **{"$process_person_profile": False})

    def identify(self, distinct_id: str, anonymous: str) -> None:
        self.send("$identify", distinct_id, **{"$anon_distinct_id": anonymous})

    def alias(self, distinct_id: str, other: str) -> None:
        self.send("$create_alias", distinct_id, alias=other)

    def merge(self, distinct_id: str, other: str) -> None:
        self.send("$merge_dangerously", distinct_id, alias=other)

    def delete(self, distinct_id: str) -> None:
        """The person behind a distinct id is deleted, with all its ids and their overrides."""
        owner = self.owners().get(distinct_id)
        if owner is not None:
            self.project.control("POST", "delete/persons", person_ids=[owner])

    def split(self, distinct_id: str) -> str:
        """A distinct id that someone has gets a person of its own."""
        person = str(uuid.uuid4())
        if distinct_id not in self.owners():
            return person
        for table in VERSIONED:
            self._rows(table, [distinct_id], person, is_deleted=0)
        created = pa.array([self.at], pa.timestamp("ms", "UTC"))
        self.project.rows("person", id=[person], created_at=created, properties=["{}"], version=[200])
        return person

    def squash(self) -> None:
        """Overrides are written into the stored events, and are gone then, as PostHog does each week."""
        self.project.control("POST", "squash", older_than_s=0)

    def owners(self) -> dict[str, str]:
        """As PostHog tells them."""
        return self.hogql("SELECT distinct_id, person_id FROM person_distinct_ids LIMIT 50000")

    def hogql(self, query: str, **modifiers: str) -> dict[str, str]:
        """PostHog's answer, of two columns."""
        asked = {"kind": "HogQLQuery", "query": query, "modifiers": modifiers}
        answer = self.project.server.http.post(
            f"/api/projects/{self.project.id}/query/",
            json={"refresh": "force_blocking", "query": asked},
            headers=bearer(self.project.api_key),
        )
        assert answer.is_success, answer.text
        return {str(left): str(right) for left, right in answer.json()["results"]}

    def persons_of_events(self) -> dict[str, str]:
        """Whose each event is now, as PostHog tells it."""
        return self.hogql("SELECT uuid, person_id FROM events LIMIT 50000")

    def _rows(self, table: str, ids: list[str], person: str, *, is_deleted: int) -> None:
        versions = " UNION ALL ".join(
            f"SELECT version FROM {one} WHERE team_id = {self.project.id}" for one in VERSIONED
        )
        newest = self.project.server.sql(f"SELECT max(version) FROM ({versions})")[0][0]
        count = len(ids)
        self.project.rows(
            table,
            distinct_id=ids,
            person_id=[person] * count,
            is_deleted=[is_deleted] * count,
            version=[int(newest) + 1] * count,
        )


@pytest.fixture
def story(busy_project: Project) -> Story:
    return Story(busy_project)


def persons_of_view(warehouse: Warehouse, view: str) -> dict[str, str]:
    rows = warehouse.query(f"SELECT uuid, person_id FROM {view}")
    assert len({row[0] for row in rows}) == len(rows)
    return dict(rows)


def synced_view(warehouse: Warehouse, story: Story, **events: Any) -> dict[str, str]:
    """Whose each event is, after a sync."""
    warehouse.sync(story.project, *TABLES, people=SWEEP, events=EventsConfig(**LATE | events))
    return persons_of_view(warehouse, create_person_view(warehouse.pipeline))


def columns_of(warehouse: Warehouse, view: str) -> list[str]:
    rows = warehouse.query(
        "SELECT column_name FROM information_schema.columns"
        f" WHERE table_name = '{view}' ORDER BY ordinal_position"
    )
    return [name for (name,) in rows]


def test_a_visitor_who_signs_up_keeps_what_was_done_before(story: Story, warehouse: Warehouse) -> None:
    story.page("ada")
    story.page("anon")
    story.identify("ada", "anon")

    seen = synced_view(warehouse, story)

    assert seen == story.persons_of_events()
    assert set(seen.values()) == {story.owners()["ada"]}
    kept = warehouse.query("SELECT count(DISTINCT ingested_person_id) FROM events_with_person")
    assert kept == [(2,)]


def test_aliases_and_chains_of_merges_end_with_the_last_person(story: Story, warehouse: Warehouse) -> None:
    for name in ("a", "b", "c", "d"):
        story.page(name)
    story.alias("b", "a")
    story.identify("c", "d")
    story.merge("c", "b")
    story.page("a")

    seen = synced_view(warehouse, story)

    assert seen == story.persons_of_events()
    assert set(seen.values()) == {story.owners()["c"]}


def test_a_refused_merge_leaves_two_people_apart(story: Story, warehouse: Warehouse) -> None:
    story.identify("ada", "anon-1")
    story.identify("grace", "anon-2")
    story.alias("ada", "grace")

    seen = synced_view(warehouse, story)

    assert seen == story.persons_of_events()
    assert len(set(seen.values())) == 2


def test_personless_events_are_nobodys_until_someone_is_identified(
    story: Story, warehouse: Warehouse
) -> None:
    story.page("ada")
    story.personless("stranger")
    story.personless("anon")

    before = synced_view(warehouse, story)
    assert before == story.persons_of_events()
    assert set(before.values()) - set(story.owners().values())

    story.identify("ada", "anon")
    after = synced_view(warehouse, story)

    assert after == story.persons_of_events()
    assert list(after.values()).count(story.owners()["ada"]) == 3
    nobody = warehouse.query("SELECT distinct_id FROM events_with_person WHERE person_is_identified IS NULL")
    assert nobody == [("stranger",)]


def test_events_of_a_deleted_person_fall_back_to_their_own(story: Story, warehouse: Warehouse) -> None:
    story.page("bob")
    story.page("ada")
    story.page("anon")
    story.identify("ada", "anon")
    merged = synced_view(warehouse, story)
    story.delete("ada")

    seen = synced_view(warehouse, story)

    assert seen == story.persons_of_events() != merged
    own = dict(warehouse.query("SELECT uuid, person_id FROM events"))
    assert seen == own


def test_a_distinct_id_that_is_split_off_takes_its_events_along(story: Story, warehouse: Warehouse) -> None:
    story.page("ada")
    story.page("anon")
    story.identify("ada", "anon")
    person = story.split("anon")

    seen = synced_view(warehouse, story)

    assert seen == story.persons_of_events()
    assert list(seen.values()).count(person) == 1


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_to_people_the_view_says_what_posthog_says(
    story: Story, warehouse: Warehouse, seed: int
) -> None:
    pick = random.Random(seed)
    ids = [f"id-{n}" for n in range(10)]
    alone: tuple[Callable[[str], object], ...] = (story.page, story.page, story.personless)
    together = (story.identify, story.alias, story.merge)
    for _ in range(60):
        pick.choice(alone)(pick.choice(ids))
        if pick.random() < 0.4:
            pick.choice(together)(*pick.sample(ids, 2))
    for one in pick.sample(ids, 2):
        pick.choice((story.delete, story.split))(one)

    seen = synced_view(warehouse, story)

    assert seen == story.persons_of_events()
    assert seen != dict(warehouse.query("SELECT uuid, person_id FROM events"))


def test_events_read_before_posthog_squashed_say_the_same_as_those_read_after(
    story: Story, warehouse: Warehouse
) -> None:
    story.page("ada")
    story.page("anon")
    story.identify("ada", "anon")
    before = synced_view(warehouse, story)
    story.squash()

    assert persons_of_view(warehouse, "events_with_person") == before == story.persons_of_events()
    assert synced_view(warehouse, story) == before


def test_a_deletion_after_a_squash_is_where_posthog_shows_a_person_who_is_gone(
    story: Story, warehouse: Warehouse
) -> None:
    story.page("ada")
    story.page("anon")
    story.identify("ada", "anon")
    warehouse.sync(story.project, *TABLES, people=SWEEP)
    ada = story.owners()["ada"]
    story.squash()
    story.delete("ada")
    warehouse.sync(story.project, "person_distinct_ids", "persons", people=SWEEP)

    seen = persons_of_view(warehouse, create_person_view(warehouse.pipeline))
    said = story.persons_of_events()

    assert set(said.values()) == {ada}
    assert sum(seen[one] != said[one] for one in said) == 1
    assert warehouse.query("SELECT count(*) FROM persons WHERE deleted_at IS NULL") == [(0,)]


def test_a_row_without_a_person_gets_the_owner_of_its_distinct_id(story: Story, warehouse: Warehouse) -> None:
    story.page("ada")
    (old,) = add_events(story.project, distinct_id=["ada"], person_id=[NIL])

    seen = synced_view(warehouse, story)

    assert story.persons_of_events()[old] == NIL  # nothing has overridden it
    assert seen[old] == story.owners()["ada"]


def test_events_read_with_their_current_person_are_told_the_same(story: Story, warehouse: Warehouse) -> None:
    story.page("ada")
    story.page("anon")
    story.identify("ada", "anon")

    seen = synced_view(warehouse, story, person_id="current")

    assert seen == story.persons_of_events()


def test_rows_that_are_marked_as_deleted_count_as_gone(story: Story, warehouse: Warehouse) -> None:
    uuids = add_events(story.project, 2, distinct_id=["gone", "here"], person_id=[SOMEONE] * 2)
    warehouse.sync(story.project, *TABLES, people=SWEEP)
    for distinct_id, deleted_at in (("gone", "'2026-01-11 00:00:00+00'"), ("here", "NULL")):
        warehouse.query(
            "INSERT INTO person_distinct_ids (project_id, distinct_id, person_id, deleted_at)"
            f" VALUES ({story.project.id}, '{distinct_id}', '{SOMEONE_ELSE}', {deleted_at})"
        )

    seen = persons_of_view(warehouse, create_person_view(warehouse.pipeline))

    assert seen == {uuids[0]: SOMEONE, uuids[1]: SOMEONE_ELSE}


def test_two_projects_in_a_dataset_do_not_borrow_each_others_people(
    story: Story, warehouse: Warehouse
) -> None:
    other = Story(story.project.server.project())
    for one in (story, other):
        one.page("ada")
        one.page("anon")
    story.identify("ada", "anon")
    warehouse.sync(story.project, *TABLES, people=SWEEP)
    beside = Warehouse.at(warehouse.path, "other")
    beside.sync(other.project, *TABLES)

    seen = persons_of_view(beside, create_person_view(beside.pipeline))

    assert seen == story.persons_of_events() | other.persons_of_events()
    warehouse.pipeline.activate()


def test_the_view_shows_the_person_of_today_beside_that_of_the_event(
    story: Story, warehouse: Warehouse
) -> None:
    story.send("page", "ada", **{"$set": {"plan": "free"}})
    story.send("page", "ada", **{"$set": {"plan": "pro"}})

    synced_view(warehouse, story, person_properties=True, promote={"plan": "text"})

    now = "person_properties ->> 'plan'"
    rows = f"SELECT ingested_person_properties ->> 'plan', {now} FROM events_with_person ORDER BY timestamp"
    assert warehouse.query(rows) == [("free", "pro"), ("pro", "pro")]
    own = [column.name for column in EVENTS.columns]
    own.insert(own.index("person_id") + 1, "ingested_person_id")
    own.insert(own.index("person_properties") + 1, "ingested_person_properties")
    added = ["plan", "person_created_at", "person_is_identified"]
    assert columns_of(warehouse, "events_with_person") == own + added
    assert set(columns_of(warehouse, "events")) <= {*own, *added}


def test_a_view_made_again_has_the_columns_that_came_since(story: Story, warehouse: Warehouse) -> None:
    story.send("page", "ada", plan="pro")
    warehouse.sync(story.project, "events", "person_distinct_ids", people=SWEEP)
    create_person_view(warehouse.pipeline)
    assert "person_properties" not in columns_of(warehouse, "events_with_person")

    story.send("page", "ada", plan="max")
    warehouse.sync(
        story.project, *TABLES, people=SWEEP, events=EventsConfig(promote={"plan": "text"}, **LATE)
    )
    create_person_view(warehouse.pipeline)

    assert {"plan", "person_properties"} <= set(columns_of(warehouse, "events_with_person"))


def test_events_of_a_server_that_tells_no_person_get_the_owner(story: Story, warehouse: Warehouse) -> None:
    story.page("ada")
    story.project.settings(hidden_columns=["events.event_person_id"])

    seen = synced_view(warehouse, story)

    assert set(seen.values()) == {story.owners()["ada"]}
    assert warehouse.query("SELECT ingested_person_id FROM events_with_person") == [(None,)]


def test_a_lost_working_directory_is_learnt_from_the_destination(story: Story, warehouse: Warehouse) -> None:
    story.page("ada")
    warehouse.sync(story.project, *TABLES, people=SWEEP)
    shutil.rmtree(warehouse.path / "pipelines")

    view = create_person_view(Warehouse.at(warehouse.path).pipeline, name="Who Did It")

    assert view.endswith('"posthog_data"."who_did_it"')
    assert persons_of_view(warehouse, view) == story.persons_of_events()
    warehouse.pipeline.activate()


def test_a_clone_of_the_source_has_a_view_of_its_own(story: Story, warehouse: Warehouse) -> None:
    story.page("ada")
    source = posthog_source.clone(name="posthog_eu", section="posthog_eu")
    warehouse.pipeline.run([{"note": "first"}], table_name="notes")
    warehouse.pipeline.run(source(**story.project.credentials).with_resources(*TABLES))

    with pytest.raises(SettingsError, match="has not loaded events and person_distinct_ids"):
        create_person_view(warehouse.pipeline)
    view = create_person_view(warehouse.pipeline, schema_name="posthog_eu")

    assert persons_of_view(warehouse, view) == story.persons_of_events()


def test_tables_that_are_not_loaded_are_named_with_what_to_do(story: Story, warehouse: Warehouse) -> None:
    for tables in ((), ("events",), ("person_distinct_ids",)):
        if tables:
            warehouse.sync(story.project, *tables, people=SWEEP)
        if tables == ("person_distinct_ids",):
            break
        with pytest.raises(SettingsError) as raised:
            create_person_view(warehouse.pipeline)
        assert str(raised.value) == (
            "The pipeline posthog has not loaded events and person_distinct_ids into posthog_data yet. "
            "Sync them first: run_sync(pipeline, tables=['events', 'person_distinct_ids'])."
        )


def test_tables_that_were_dropped_are_an_error_of_one_line(story: Story, warehouse: Warehouse) -> None:
    story.page("ada")
    warehouse.sync(story.project, *TABLES, people=SWEEP)
    warehouse.query("DROP TABLE person_distinct_ids")

    with pytest.raises(
        SettingsError, match=r'"events_with_person" was refused: .*person_distinct_ids'
    ) as raised:
        create_person_view(warehouse.pipeline)

    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["events", "Persons", "", "  "])
def test_a_view_takes_no_tables_name(story: Story, warehouse: Warehouse, name: str) -> None:
    story.page("ada")
    warehouse.sync(story.project, *TABLES, people=SWEEP)

    with pytest.raises(SettingsError, match="another name"):
        create_person_view(warehouse.pipeline, name=name)

    assert warehouse.query("SELECT count(*) FROM events") == [(1,)]


def test_a_name_that_something_else_has_is_refused(story: Story, warehouse: Warehouse) -> None:
    story.page("ada")
    warehouse.sync(story.project, *TABLES, people=SWEEP)
    warehouse.query("CREATE TABLE mine AS SELECT 1 AS one")

    with pytest.raises(SettingsError, match="choose another name"):
        create_person_view(warehouse.pipeline, name="mine")

    assert warehouse.query("SELECT one FROM mine") == [(1,)]


def test_plain_files_hold_no_view(story: Story, files: Files) -> None:
    with pytest.raises(SettingsError, match=r"^filesystem cannot hold the person view\. .*join person_dist"):
        create_person_view(files.pipeline)


def test_a_pipeline_without_a_destination_is_told_to_get_one(tmp_path: Path) -> None:
    pipeline = dlt.pipeline("nowhere", pipelines_dir=str(tmp_path))

    with pytest.raises(SettingsError, match="no destination"):
        create_person_view(pipeline)


@pytest.mark.parametrize("spell", [str, str.upper], ids=["lower", "upper"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gets_sql_that_it_parses(dialect: str, spell: Callable[[str], str]) -> None:
    spelled = {
        name: Relation(tuple(map(spell, one.path)), tuple(map(spell, one.columns)))
        for name, one in SHOWN.items()
    }

    sql = build_person_view_sql(
        tuple(map(spell, ("shop", "data", "view"))), *spelled.values(), dialect=dialect, spell=spell
    )
    view = sqlglot.parse_one(sql, dialect=dialect)

    assert sql.startswith("CREATE OR REPLACE VIEW ")
    assert isinstance(view, exp.Create)
    assert view.find(exp.Star) is None
    assert all(one.args["quoted"] for one in view.find_all(exp.Identifier))
    tables = {".".join(part.name for part in table.parts) for table in view.find_all(exp.Table)}
    assert tables == {spell(f"shop.data.{name}") for name in ("view", *TABLES)}
    assert view.expression.named_selects == [
        spell(name)
        for name in (
            *("project_id", "uuid", "distinct_id", "person_id", "ingested_person_id", "plan"),
            *("person_created_at", "person_properties"),
        )
    ]


def test_the_sql_of_a_view_is_what_it_says() -> None:
    ids = Relation(("d", "ids"), (*SHOWN["ids"].columns, "deleted_at"))

    sql = build_person_view_sql(
        ("d", "v"), Relation(("d", "e"), ("uuid", "person_id")), ids, dialect="duckdb"
    )

    assert " ".join(sql.split()) == (
        'CREATE OR REPLACE VIEW "d"."v" AS SELECT "events"."uuid" AS "uuid", '
        'COALESCE("ids"."person_id", "events"."person_id") AS "person_id", '
        '"events"."person_id" AS "ingested_person_id" '
        'FROM "d"."e" AS "events" LEFT JOIN "d"."ids" AS "ids" '
        'ON "ids"."project_id" = "events"."project_id" '
        'AND "ids"."distinct_id" = "events"."distinct_id" '
        'AND "ids"."deleted_at" IS NULL'
    )


def test_properties_that_are_called_like_the_views_columns_are_kept() -> None:
    events = Relation(
        ("d", "e"), ("person_id", "ingested_person_id", "person_created_at", "ingested_person_created_at")
    )

    sql = build_person_view_sql(("d", "v"), events, SHOWN["ids"], SHOWN["persons"], dialect="postgres")

    names = sqlglot.parse_one(sql, dialect="postgres").expression.named_selects
    assert len(set(names)) == len(names) == 7
    assert '"events"."person_id" AS "ingested_ingested_person_id"' in sql
    assert '"events"."ingested_person_id" AS "ingested_person_id"' in sql
    assert '"persons"."created_at" AS "person_created_at"' in sql


def test_the_view_asks_for_columns_that_the_catalogue_has() -> None:
    known = {table.name: {column.name for column in table.columns} for table in (EVENTS, PERSONS)}
    known["ids"] = {column.name for column in PERSON_DISTINCT_IDS.columns}
    sql = build_person_view_sql(
        ("v",),
        *(
            Relation((table.name,), tuple(column.name for column in table.columns))
            for table in (EVENTS, PERSON_DISTINCT_IDS, PERSONS)
        ),
        dialect="duckdb",
    )

    for column in sqlglot.parse_one(sql, dialect="duckdb").find_all(exp.Column):
        assert column.name in known[column.table]


def test_postgres_says_the_same_and_takes_new_columns(story: Story, postgres: str, tmp_path: Path) -> None:
    pipeline = dlt.pipeline(
        "posthog",
        pipelines_dir=str(tmp_path),
        destination=dlt.destinations.postgres(postgres),
        dataset_name="posthog_data",
    )
    warehouse = Elsewhere(tmp_path, pipeline)
    story.page("ada")
    story.page("anon")
    story.identify("ada", "anon")
    warehouse.sync(story.project, "events", "person_distinct_ids", people=SWEEP)
    view = create_person_view(pipeline)
    assert persons_of_view(warehouse, view) == story.persons_of_events()

    story.send("page", "anon", plan="pro")
    story.merge("grace", "ada")
    warehouse.sync(
        story.project, *TABLES, people=SWEEP, events=EventsConfig(promote={"plan": "text"}, **LATE)
    )
    assert create_person_view(pipeline) == view

    assert persons_of_view(warehouse, view) == story.persons_of_events()
    assert {"plan", "person_properties"} <= set(columns_of(warehouse, "events_with_person"))

    warehouse.query(f"CREATE VIEW posthog_data.mine AS SELECT person_id FROM {view}")
    assert create_person_view(pipeline) == view
    story.send("page", "anon", size="xl")
    warehouse.sync(
        story.project, *TABLES, people=SWEEP, events=EventsConfig(promote={"size": "text"}, **LATE)
    )
    with pytest.raises(SettingsError, match="other views need the old one"):
        create_person_view(pipeline)
    assert persons_of_view(warehouse, view) == story.persons_of_events()
