"""verify: every row that differs is found, named and told apart; a repair touches its day and no other."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import dlt
import pytest
import sqlglot
from rich.console import Console
from typer.testing import CliRunner, Result

from posthog_source import EventsConfig, Verification, run_backfill, verify
from posthog_source.catalog import EVENTS, TABLES
from posthog_source.cli import app
from posthog_source.comparison import (
    BUCKET_ROWS,
    LISTED_ROWS,
    Checksum,
    Compared,
    Difference,
    Kind,
    choose_buckets,
    count_buckets,
    events_span,
)
from posthog_source.config import EventsSettings
from posthog_source.differences import tell
from posthog_source.errors import SettingsError
from posthog_source.fingerprint import CHUNK_BYTES, TEXT_BYTES, fingerprint_of
from posthog_source.heatmap import draw
from posthog_source.query import Settled
from posthog_source.stored import DIALECTS, Choice
from posthog_source.stored import Warehouse as Stored
from posthog_source.tables import DELETED_AT, Column, Table
from posthog_source.windows import Window
from tests.conftest import NO_LIMITS, PLAIN_EVENTS, Elsewhere, Files, Project, Server, Warehouse, add_events

DAY = timedelta(days=1)
START = datetime(2026, 1, 10, tzinfo=UTC)
DAYS = 4
END = START + DAYS * DAY
OF_A_DAY = 6
PNG = b"\x89PNG"


def uuid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012x}"


def four_days(project: Project, *, per_day: int = OF_A_DAY, **columns: Any) -> list[str]:
    """Some events on each of four days, that came when they happened."""
    count = DAYS * per_day
    times = [START + n // per_day * DAY + timedelta(hours=6, seconds=n) for n in range(count)]
    given = {"uuid": [uuid_of(n) for n in range(count)], "timestamp": times, "created_at": times}
    return add_events(project, count, **given | columns)


def compare(project: Project, warehouse: Warehouse, **arguments: Any) -> Verification:
    given: dict[str, Any] = {"tables": ["events"], "end": END} | project.credentials
    return verify(warehouse.pipeline, **given | arguments)


def named(found: Verification) -> set[tuple[str, str]]:
    """Kinds and keys."""
    return {(one.kind, one.key) for one in found.differences}


def queries(project: Project) -> list[str]:
    """Names of what PostHog was asked in HogQL."""
    return [str(one["name"]).removeprefix("posthog_source ") for one in project.requests() if one.get("name")]


@dataclass
class Synced:
    """A project and a warehouse that has it, copied for each test."""

    project: Project
    folder: Path
    uuids: list[str]

    def copy(self, to: Path) -> Warehouse:
        shutil.copy(self.folder / "warehouse.duckdb", to / "warehouse.duckdb")
        return Warehouse.at(to)


@pytest.fixture(scope="module")
def synced(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Synced:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    uuids = four_days(project)
    folder = tmp_path_factory.mktemp("synced")
    with Warehouse.at(folder).held() as warehouse:
        warehouse.sync(project, "events")
        warehouse.query(  # another project in the same table
            "INSERT INTO events "
            "SELECT * REPLACE (0 AS project_id, replace(uuid, '8000', '9000') AS uuid) FROM events"
        )
    return Synced(project, folder, uuids)


@pytest.fixture
def copied(synced: Synced, tmp_path: Path) -> Iterator[Warehouse]:
    with synced.copy(tmp_path).held() as warehouse:
        yield warehouse


def test_what_was_synced_is_the_same_and_one_query_on_each_side_says_so(
    synced: Synced, copied: Warehouse
) -> None:
    synced.project.forget_requests()

    found = compare(synced.project, copied)

    assert found.is_equal
    assert [(row.day, row.posthog_rows, row.warehouse_rows) for row in found.rows] == [
        ((START + n * DAY).date(), OF_A_DAY, OF_A_DAY) for n in range(DAYS)
    ]
    assert queries(synced.project) == ["events checksum"]


BREAKS: dict[Kind, str] = {
    "missing": "DELETE FROM events WHERE uuid = '{uuid}'",
    "extra": "INSERT INTO events SELECT * REPLACE ('{new}' AS uuid) FROM events WHERE uuid = '{uuid}'",
    "duplicate": "INSERT INTO events SELECT * FROM events WHERE uuid = '{uuid}'",
    "changed": "UPDATE events SET distinct_id = 'user-x' WHERE uuid = '{uuid}'",
}


@pytest.mark.parametrize("by_event", [False, True], ids=["by day", "by event"])
def test_each_of_a_missing_an_extra_a_duplicate_and_a_changed_row_is_found_and_named(
    synced: Synced, copied: Warehouse, by_event: bool
) -> None:
    new = uuid_of(10**6)
    expected = set()
    for n, (kind, sql) in enumerate(BREAKS.items()):  # each on a day of its own
        uuid = synced.uuids[n * OF_A_DAY + 3]
        copied.query(sql.format(uuid=uuid, new=new))
        expected.add(
            Difference("events", kind, new if kind == "extra" else uuid, (START + n * DAY).date(), "page")
        )

    found = compare(synced.project, copied, by_event=by_event)

    assert set(found.differences) == expected
    counts = [(row.missing, row.extra, row.duplicate, row.changed) for row in found.rows]
    assert counts == [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    assert [row.event for row in found.rows] == ["page" if by_event else ""] * DAYS


def odd_texts() -> list[str]:
    """Of lengths at which chunks begin and end, of letters of one byte and of several."""
    pick = random.Random(1)
    letters = [*map(chr, range(1, 128)), "é", "漢", "🦆", "\u200b", "\u00a0", "٣"]
    lengths = (0, 1, CHUNK_BYTES, 27, 28, 29, TEXT_BYTES, 60)
    texts = ["".join(pick.choices(letters, k=pick.choice(lengths))) for _ in range(200)]
    return [*texts, "-1", "+1", "1e5", " 1", "1 ", "\t1", "007", "'; --", "\\", "9" * 40, "NaN", "a\0b"]


LONG = "0187f0c5-2b3c-7d00-9a4e-5f6a7b8c9d0e of an old phone, 7"
CHANGES = (
    *(
        f"{name} = substr({name}, 1, {n}) || '~' || substr({name}, {n + 2})"
        for name in ("distinct_id", "event")
        for n in range(len(LONG))
    ),
    "distinct_id = distinct_id || '~'",
    "event = event || '~'",
    "event = ''",
    "timestamp = timestamp + INTERVAL '1 MICROSECOND'",
    "created_at = created_at - INTERVAL '1 MICROSECOND'",
)
SIZES = ("properties = '{\"a\": 12}'", "properties = NULL")
"""Not noticed where the warehouse writes JSON anew, as Postgres does."""


def test_both_sides_make_the_same_numbers_of_any_row_and_others_when_anything_changes(
    server: Server, tmp_path: Path, postgres: str
) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    texts = odd_texts()
    count = len(CHANGES) + len(SIZES)
    uuids = add_events(
        project,
        count + len(texts),
        event=[LONG] * count + texts,
        distinct_id=[LONG] * count + texts[::-1],
        properties=['{"a": 1}'] * (count + len(texts)),
        created_at=[START] * (count + len(texts)),
    )
    for name, destination, changes in (
        ("duckdb", dlt.destinations.duckdb(str(tmp_path / "one.duckdb")), (*CHANGES, *SIZES)),
        ("postgres", dlt.destinations.postgres(postgres), CHANGES),
    ):
        pipeline = dlt.pipeline(
            name, pipelines_dir=str(tmp_path), destination=destination, dataset_name="posthog_data"
        )
        warehouse = Elsewhere(tmp_path, pipeline)
        warehouse.sync(project, "events")
        found = compare(project, warehouse)
        assert found.is_equal, (name, found.differences)
        assert sum(row.warehouse_rows for row in found.rows) == len(uuids)

        with pipeline.sql_client() as client:
            for uuid, change in zip(uuids, changes, strict=False):
                client.execute_sql(f"UPDATE posthog_data.events SET {change} WHERE uuid = '{uuid}'")

        assert named(compare(project, warehouse)) == {("changed", uuid) for uuid in uuids[: len(changes)]}


def test_a_repair_reads_and_replaces_the_day_that_differs_and_no_other(
    synced: Synced, copied: Warehouse
) -> None:
    copied.query(f"DELETE FROM events WHERE uuid = '{synced.uuids[8]}'")
    copied.query(BREAKS["duplicate"].format(uuid=synced.uuids[9]))
    copied.query(BREAKS["extra"].format(uuid=synced.uuids[10], new=uuid_of(10**6)))
    copied.query("UPDATE events SET person_mode = 'as it was'")  # which is not compared
    synced.project.forget_requests()

    appending = EventsConfig(write_mode="append", promote={"a": "text"})
    found = compare(synced.project, copied, repair=True, events=appending)

    day = (START + DAY).date()
    assert (found.is_equal, found.repaired, found.differences) == (True, (day,), ())
    pages = [one for one in synced.project.requests() if one.get("name") == "posthog_source events"]
    assert sum(one["result_rows"] for one in pages) == OF_A_DAY
    rows = copied.query("SELECT project_id, timestamp::date, uuid, person_mode FROM events")
    own = [row for row in rows if row[0]]
    assert sorted(row[2] for row in own) == synced.uuids
    assert {row[1] for row in own if row[3] != "as it was"} == {day}
    assert {row[3] for row in rows if not row[0]} == {"as it was"}
    before = synced.folder / "warehouse.duckdb"
    assert cursor(copied.path / "warehouse.duckdb") == cursor(before)


def test_after_a_backfill_the_other_tables_are_compared_too(server: Server, tmp_path: Path) -> None:
    """dlt keeps the newest schema by the source's name, and a backfill is a pipeline of its own."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    four_days(project)
    project.rows("person", id=[uuid_of(n) for n in range(9)], version=[0] * 9)
    with Warehouse.at(tmp_path).held() as warehouse:
        warehouse.sync(project, "events", "persons")
        run_backfill(warehouse.pipeline, START, END, **project.credentials)

        found = compare(project, warehouse, tables=["events", "persons"])

    assert found.is_equal
    assert [row.warehouse_rows for row in found.rows if row.table == "persons"] == [9]


def cursor(database: Path) -> Any:
    """What the pipeline that syncs remembers of events, as the warehouse has it."""
    pipeline = dlt.pipeline(
        "posthog",
        pipelines_dir=str(database.parent / "looked_at"),
        destination=dlt.destinations.duckdb(str(database)),
        dataset_name="posthog_data",
    )
    return Stored(pipeline, "posthog").state["events"]


def test_an_event_of_another_day_than_posthogs_is_changed_and_both_days_differ(
    synced: Synced, copied: Warehouse
) -> None:
    uuid = synced.uuids[0]
    copied.query(f"UPDATE events SET timestamp = timestamp + INTERVAL 2 DAY WHERE uuid = '{uuid}'")

    found = compare(synced.project, copied)

    assert found.differences == (Difference("events", "changed", uuid, START.date(), "page"),)
    assert [(row.changed, row.moved) for row in found.rows] == [(1, 0), (0, 0), (0, 1), (0, 0)]
    assert found.days == (START.date(), (START + 2 * DAY).date())  # to be read again
    assert named(compare(synced.project, copied, end=START + DAY)) == {("changed", uuid)}


def test_copies_that_posthog_keeps_are_no_difference(server: Server, tmp_path: Path) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    uuids = four_days(project)
    again = {"uuid": uuids[:3], "created_at": [START] * 3}
    day_later = [START + DAY + timedelta(hours=9)] * 3
    add_events(project, 3, **again, event=["another name"] * 3, timestamp=[START + timedelta(hours=6)] * 3)
    add_events(project, 3, **again, timestamp=day_later)
    with Warehouse.at(tmp_path).held() as warehouse:
        warehouse.sync(project, "events")  # in one load, of which one copy stays
        assert warehouse.uuids() == uuids
        assert compare(project, warehouse).is_equal

        warehouse.query(f"DELETE FROM events WHERE uuid = '{uuids[0]}'")
        assert named(compare(project, warehouse)) == {("missing", uuids[0])}


def test_what_is_not_due_yet_is_not_missing_and_what_was_due_is(server: Server, tmp_path: Path) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    four_days(project)
    now = datetime.now(UTC)
    with Warehouse.at(tmp_path).held() as warehouse:
        warehouse.sync(project, "events")
        for number, (happened, came) in enumerate(
            (
                (now - timedelta(hours=2), now - timedelta(minutes=1)),  # a late one that came after the sync
                (now - timedelta(minutes=1), now - timedelta(minutes=1)),  # after the cursor
                (START, now + timedelta(seconds=5)),
                (
                    now - timedelta(hours=5),
                    now - timedelta(hours=5),
                ),  # nobody knows why this one is not there
            )
        ):
            add_events(project, 1, uuid=[uuid_of(10**6 + number)], timestamp=[happened], created_at=[came])

        assert named(compare(project, warehouse, end=None)) == {("missing", uuid_of(10**6 + 3))}


@pytest.mark.parametrize("can_replace", [True, False])
def test_late_events_that_no_sync_will_bring_are_due_at_once(can_replace: bool) -> None:
    state = {
        "incremental": {"timestamp": {"last_value": END.isoformat()}},
        "looked_for_arrivals_at": START.isoformat(),
    }

    _, settled = events_span(state, EventsSettings(), start=None, end=None, can_replace=can_replace)

    assert settled is not None
    assert (settled.late_before == settled.before) is not can_replace


def test_what_was_left_out_on_purpose_is_not_missing(server: Server, tmp_path: Path) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    uuids = four_days(project)
    other = {"uuid": [uuid_of(10**6)], "created_at": [START]}
    add_events(project, 1, **other, event=["noise"])
    chosen = EventsConfig(exclude_event_names=["noise"], where="distinct_id != 'user-3'", properties=False)
    with Warehouse.at(tmp_path).held() as warehouse:
        warehouse.sync(project, "events", events=chosen)
        assert len(warehouse.uuids()) == len(uuids) - 1

        assert compare(project, warehouse, events=chosen).is_equal
        assert named(compare(project, warehouse)) == {("missing", uuids[3]), ("missing", uuid_of(10**6))}


def test_a_backfilled_time_is_compared_when_it_is_told(server: Server, warehouse: Warehouse) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    uuids = four_days(project)
    run_backfill(warehouse.pipeline, START, START + 2 * DAY, **project.credentials)

    with pytest.raises(SettingsError, match=r"synced none.*--from and --to"):
        compare(project, warehouse, end=None)
    assert compare(project, warehouse, start=START, end=START + 2 * DAY).is_equal
    found = compare(project, warehouse, start=START, end=START + 3 * DAY)
    assert named(found) == {("missing", uuid) for uuid in uuids[2 * OF_A_DAY : 3 * OF_A_DAY]}


def test_of_a_large_day_only_buckets_that_differ_are_listed(server: Server, tmp_path: Path) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    count = LISTED_ROWS + 1
    times = [START] * count
    uuids = add_events(project, count, timestamp=times, created_at=times)
    with Warehouse.at(tmp_path).held() as warehouse:
        warehouse.sync(project, "events")
        warehouse.query(f"DELETE FROM events WHERE uuid = '{uuids[77]}'")
        project.forget_requests()

        assert named(compare(project, warehouse)) == {("missing", uuids[77])}
        asked = [one for one in project.requests() if one.get("name")]
        assert queries(project) == ["events checksum", "events checksum", "events fingerprint"]
        assert asked[-1]["result_rows"] < 2 * BUCKET_ROWS

        warehouse.query("DELETE FROM events")
        found = compare(project, warehouse)
        assert (found.rows[0].missing, found.differences) == (count, ())


def test_a_day_with_too_many_differences_is_looked_at_in_part() -> None:
    ours = {bucket: Checksum(BUCKET_ROWS, bucket) for bucket in range(1_000)}
    theirs = {bucket: Checksum(BUCKET_ROWS, -1) for bucket in range(1_000)}

    chosen, is_complete = choose_buckets(range(1_000), theirs, ours)

    assert len(chosen) == LISTED_ROWS // BUCKET_ROWS
    assert not is_complete
    assert not Compared("events", None, "", 1, 1, is_complete=False).is_equal
    assert all(count_buckets(rows) <= LISTED_ROWS for rows in (0, 1, LISTED_ROWS, 10**6, 10**9))


@pytest.fixture(scope="module")
def product(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, Warehouse]]:
    """All tables, synced."""
    project = server.project(settings={"rate_limits": NO_LIMITS})
    project.api_key = server.api_key  # which sees organizations, too
    project.server.control("PATCH", "clock", now="2026-01-16T00:00:00Z")  # when definitions are made
    project.generate(events=300, persons=100, days=3, end="2026-01-15T00:00:00Z", properties_bytes=50)
    project.server.control("PATCH", "clock", now=None)
    with Warehouse.at(tmp_path_factory.mktemp("product")).held() as warehouse:
        warehouse.sync(project)
        yield project, warehouse


def test_every_table_of_the_catalogue_is_the_same_and_tells_what_it_lacks_and_has_too_many_of(
    product: tuple[Project, Warehouse],
) -> None:
    project, warehouse = product
    counts = warehouse.counts()
    tables = [table for table in TABLES if counts[table.name] and table is not EVENTS]
    for table in tables:
        spoil(warehouse, table)

    found = compare(project, warehouse, tables=[])

    assert all(row.is_equal for row in found.rows if row.day)
    told = {
        row.table: (row.missing, row.extra, row.duplicate, row.changed) for row in found.rows if not row.day
    }
    assert {name: told[name] for name in told if counts[name]} == dict.fromkeys(
        (table.name for table in tables), (1, 1, 0, 0)
    )


def spoil(warehouse: Warehouse, table: Table) -> None:
    """Adds a row, and one more that is marked as deleted, where that is done; and takes one away."""
    columns = [table.column(name) for name in table.primary_key[1:]]
    keys = ", ".join(f'"{column.name}"' for column in columns)
    first = warehouse.query(f'SELECT {keys} FROM "{table.name}" ORDER BY {keys} LIMIT 1')[0]
    where = " AND ".join(f"\"{c.name}\" = '{key}'" for c, key in zip(columns, first, strict=True))
    odd = [f"{odd_key(columns[-1], 1)} AS {columns[-1].name}"]
    if DELETED_AT in table.columns:
        odd.append(f"{odd_key(columns[-1], 2)} AS {columns[-1].name}, now() AS deleted_at")
    for replaced in odd:
        warehouse.query(
            f'INSERT INTO "{table.name}" SELECT * REPLACE ({replaced}) FROM "{table.name}" WHERE {where}'
        )
    warehouse.query(f'DELETE FROM "{table.name}" WHERE {where}')


def odd_key(column: Column, number: int) -> str:
    match column.kind:
        case "bigint":
            return str(10**9 + number)
        case "uuid":
            return f"'{uuid_of(10**9 + number)}'"
        case _:
            return f"'nobody has this {number}'"


def test_people_who_came_since_the_sync_are_not_missing(product: tuple[Project, Warehouse]) -> None:
    project, warehouse = product
    before = compare(project, warehouse, tables=["persons"]).rows[0]
    project.capture({"event": "$identify", "distinct_id": "newcomer", "properties": {}})

    after = compare(project, warehouse, tables=["persons"]).rows[0]

    assert (after.posthog_rows, after.missing) == (before.posthog_rows + 1, before.missing)


def test_people_who_are_marked_as_gone_are_no_extra_rows(server: Server, warehouse: Warehouse) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    project.capture(*({"event": "seen", "distinct_id": f"user-{n}"} for n in range(6)))
    people = ["persons", "person_distinct_ids"]
    warehouse.sync(project, *people, people={"sweep_every_days": 0})
    project.control("POST", "delete/persons", person_ids=[project.person_ids()["user-0"]])
    assert not compare(project, warehouse, tables=people).is_equal

    warehouse.sync(project, *people, people={"sweep_every_days": 0})

    assert warehouse.query("SELECT count(*) FROM persons WHERE deleted_at IS NOT NULL") == [(1,)]
    assert compare(project, warehouse, tables=people).is_equal


def test_tables_that_posthog_does_not_show_are_told_in_a_line() -> None:
    written = StringIO()
    skipped = (("alerts", "why there are none"), ("roles", "another reason"))

    tell(Verification((), skipped=skipped), Console(file=written, width=200))

    assert "Not compared: alerts, roles. Of alerts: why there are none\n" in written.getvalue()


def test_plain_files_are_compared_and_not_repaired(server: Server, files: Files) -> None:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    uuids = four_days(project)
    files.sync(project, "events")
    assert compare(project, files).is_equal
    project.control("POST", "delete/events", uuids=uuids[:1])

    assert named(compare(project, files)) == {("extra", uuids[0])}
    with pytest.raises(SettingsError, match="filesystem cannot replace rows"):
        compare(project, files, repair=True)


def test_a_destination_whose_sql_is_not_known_is_refused(synced: Synced, tmp_path: Path) -> None:
    dummy = dlt.destinations.dummy()
    pipeline = dlt.pipeline("posthog", pipelines_dir=str(tmp_path), destination=dummy, dataset_name="none")

    with pytest.raises(SettingsError, match="dummy cannot be compared with PostHog"):
        compare(synced.project, Elsewhere(tmp_path, pipeline))


def test_every_dialect_gets_sql_that_it_parses(synced: Synced, copied: Warehouse) -> None:
    warehouse = Stored(copied.pipeline, "posthog")
    table = warehouse.table(EVENTS, fingerprint_of(PLAIN_EVENTS), 1)
    for dialect in DIALECTS:
        warehouse.dialect = dialect
        for statement in (
            table.build_days(Choice(Window(START, END), Settled(END, START, 60)), by_name=True),
            table.build_buckets(Choice(), buckets=7),
            table.build_rows(Choice(), buckets=7, chosen=[1, 2]),
            table.build_times([uuid_of(1)]),
        ):
            sql = statement.sql(dialect=dialect)
            assert sqlglot.parse_one(sql, dialect=dialect).sql(dialect=dialect) == sql


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, dlt's own included."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DLT_DATA_DIR", str(tmp_path / "dlt"))
    return tmp_path


def run(synced: Synced, *words: str) -> Result:
    """The command as a person types it; words with = are of the environment."""
    credentials = synced.project.credentials.items()
    given = {f"SOURCES__POSTHOG__{name.upper()}": str(value) for name, value in credentials}
    given |= {"DESTINATION__DUCKDB__CREDENTIALS": "warehouse.duckdb"}
    given |= dict(word.split("=") for word in words if "=" in word)
    return CliRunner().invoke(app, ["verify", *(word for word in words if "=" not in word)], env=given)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--from yesterday", "start is 'yesterday', which is no ISO date"),
        ("--from 2026-01-02 --to 2026-01-01", "is not before end"),
        ("--from 2050-01-01", "nothing to compare"),
        ("--tables evnets", "names evnets"),
        ("--tables persons", "persons is not loaded"),
        ("--by week", "--by is 'week'"),
        ("--dataset elsewhere", "nothing of posthog in the dataset elsewhere"),
        ("--tables events --plot no/such/folder/days.png", "cannot be written"),
        ("SOURCES__POSTHOG__API_KEY=phx_of_someone_else", "sources.posthog.api_key"),
        ("SOURCES__POSTHOG__PROJECT_ID=999", "has synced"),
        ("DESTINATION__DUCKDB__CREDENTIALS=none.duckdb", "There is no database"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_with_exit_code_2(
    synced: Synced, folder: Path, command: str, words: str
) -> None:
    with synced.copy(folder).held():
        found = run(synced, *command.split())

    assert (found.exit_code, found.stdout) == (2, "")
    lines = [line for line in found.stderr.splitlines() if "|dlt|" not in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert synced.project.api_key not in found.stderr
    assert "phx_of_someone_else" not in found.stderr
    assert not (folder / "none.duckdb").exists()


def test_the_command_tells_people_machines_and_eyes_what_differs(synced: Synced, folder: Path) -> None:
    with synced.copy(folder).held() as warehouse:
        warehouse.query(BREAKS["missing"].format(uuid=synced.uuids[1]))
        plain = run(synced, "--plot", "days.png")
        by_event = run(synced, "--by", "event", "--to", "2026-01-11")
        machine = run(synced, "--json")
        equal = run(synced, "--from", "2026-01-11")

    assert [one.exit_code for one in (plain, by_event, machine, equal)] == [1, 1, 1, 0], plain
    lines = [line.split() for line in plain.stdout.splitlines()]
    assert lines[:2] == [
        ["table", "day", "PostHog", "warehouse", "missing", "extra", "duplicate", "changed"],
        ["events", "2026-01-10", "6", "5", "1"],
    ]
    assert ["events", "missing", synced.uuids[1], "2026-01-10", "page"] in lines
    assert plain.stdout.endswith("events: verify --repair reads those days again and replaces them.\n")
    assert (folder / "days.png").read_bytes().startswith(PNG)
    assert by_event.stdout.splitlines()[1].split() == ["events", "2026-01-10", "page", "6", "5", "1"]
    told = json.loads(machine.stdout)
    assert (told["is_equal"], [one["key"] for one in told["differences"]]) == (False, [synced.uuids[1]])
    assert equal.stdout.endswith(": all the same.\n")


def test_a_picture_of_years_has_a_row_for_each_that_has_events(tmp_path: Path) -> None:
    days = [date(2006, 3, 1), *(date(2025, 12, 1) + n * DAY for n in range(60))]
    rows = tuple(Compared("events", day, "", 9, 9, missing=n % 7 // 6) for n, day in enumerate(days))

    draw(Verification(rows), tmp_path / "days.png")
    draw(Verification(rows[-1:]), tmp_path / "day.png")

    tall, small = (int.from_bytes((tmp_path / name).read_bytes()[20:24]) for name in ("days.png", "day.png"))
    assert tall > 2 * small
    with pytest.raises(SettingsError, match="no days"):
        draw(Verification(()), tmp_path / "none.png")
