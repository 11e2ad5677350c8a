"""What dlt would ask of warehouses that cannot run here: their SQL, made without a connection, and parsed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dlt
import pytest
import sqlglot
from chdb.session import Session
from dlt.common.configuration.specs import BaseConfiguration
from dlt.common.destination import Destination
from dlt.common.schema import Schema
from sqlglot import exp

from posthog_source import posthog_source
from posthog_source.destination import Target, can_merge
from posthog_source.pipeline import OF_THE_PIPELINE, beside, configurations_of
from tests.conftest import NO_LIMITS, Project, Server, add_events
from tests.warehouses.story import KEYS

pytestmark = pytest.mark.warehouses

KEY = {"aws_access_key_id": "a", "aws_secret_access_key": "none", "region_name": "eu-west-1"}
LOGIN = {"host": "h", "username": "u", "password": "none", "database": "db"}
ITS_OWN = OF_THE_PIPELINE | {"staging_dataset_name_layout", "destination_name", "conn_pool"}
TABLES = ("events", "groups", "sessions", "feature_flags")


@dataclass(frozen=True)
class Checked:
    """A destination of which the SQL is looked at.

    Attributes:
        name: As in docs/destinations.md.
        make: The destination; nobody is asked.
        driver: The module that dlt's client needs.
        json_type: Of a JSON column.
        layout: How a new table of events lies; empty where that is left to the warehouse.
        strategy: How rows are replaced.
        is_staged: Whether files go through a bucket.
    """

    name: str
    make: Callable[[], Destination[Any, Any]]
    driver: str
    json_type: str
    layout: str = ""
    strategy: str = "delete-insert"
    is_staged: bool = False


def _bigquery() -> Destination[Any, Any]:
    login: Any = {"project_id": "p", "private_key": "none", "client_email": "nobody@example.com"}
    return dlt.destinations.bigquery(credentials=login)


def _databricks() -> Destination[Any, Any]:
    login = {"catalog": "db", "server_hostname": "h", "http_path": "p", "access_token": "none"}
    return dlt.destinations.databricks(credentials=login)


def _athena() -> Destination[Any, Any]:
    return dlt.destinations.athena(query_result_bucket="s3://b/r", credentials=KEY, force_iceberg=True)


CHECKED = (
    Checked(
        "bigquery",
        _bigquery,
        driver="google.cloud.bigquery",
        json_type="STRING",
        layout="PARTITION BY DATE(`timestamp`)",
    ),
    Checked(
        "snowflake",
        lambda: dlt.destinations.snowflake(credentials=LOGIN),
        driver="snowflake.connector",
        json_type="VARCHAR",
        layout='CLUSTER BY ("TIMESTAMP")',
    ),
    Checked(
        "databricks",
        _databricks,
        driver="databricks.sql",
        json_type="STRING",
        layout="CLUSTER BY (`timestamp`)",
        is_staged=True,
    ),
    Checked(
        "clickhouse",
        lambda: dlt.destinations.clickhouse(credentials=LOGIN),
        driver="clickhouse_driver",
        json_type="String",
        layout="PARTITION BY toYYYYMM(timestamp)",
    ),
    Checked(
        "redshift",
        lambda: dlt.destinations.redshift(credentials=LOGIN),
        driver="psycopg2",
        json_type="VARCHAR(MAX)",
        layout='"timestamp" timestamp with time zone SORTKEY',
        is_staged=True,
    ),
    Checked("athena", _athena, driver="pyathena", json_type="string", is_staged=True),
    Checked(
        "motherduck",
        lambda: dlt.destinations.motherduck(credentials={"database": "db", "password": "none"}),
        driver="duckdb",
        json_type="JSON",
    ),
)


@dataclass
class Made:
    """The SQL of one destination, for tables as the connector has declared them."""

    checked: Checked
    client: Any
    dialect: str
    schema: Schema = field(repr=False)

    def create(self, table: str) -> str:
        columns = list(self.schema.get_table_columns(table).values())
        return str(self.client._get_table_update_sql(table, columns, False)[0])

    def alter(self, table: str, column: str) -> list[str]:
        columns = [self.schema.get_table_columns(table)[column]]
        return [str(statement) for statement in self.client._get_table_update_sql(table, columns, True)]

    def merge(self, table: str) -> list[str]:
        jobs = self.client._create_merge_followup_jobs([self.client.prepare_load_table(table)])
        return [line for job in jobs for line in Path(job.new_file_path()).read_text().splitlines() if line]

    def parse(self, statement: str) -> exp.Expr:
        known = statement.replace(" SORTKEY", "")  # of a column, which sqlglot does not know
        return sqlglot.parse_one(known.rstrip().rstrip(";"), dialect=self.dialect)


def keep(_: Any) -> None:
    """The source as it is."""


def pipeline_of(checked: Checked, folder: Path) -> dlt.Pipeline:
    if importlib.util.find_spec(checked.driver.split(".", maxsplit=1)[0]) is None:
        pytest.skip(f"{checked.driver} is not installed")
    bucket = dlt.destinations.filesystem("s3://b/staging", credentials=KEY)
    return dlt.pipeline(
        "posthog",
        pipelines_dir=str(folder),
        destination=checked.make(),
        staging=bucket if checked.is_staged else None,
        dataset_name="posthog_data",
    )


def build(checked: Checked, project: Project, folder: Path, change: Callable[[Any], None] = keep) -> Made:
    pipeline = pipeline_of(checked, folder)
    source = posthog_source(**project.credentials).with_resources(*TABLES)
    change(source)
    pipeline.extract(source)
    schema = pipeline.default_schema
    client, _ = pipeline._get_destination_clients(schema)
    return Made(checked, client, str(client.capabilities.sqlglot_dialect), schema)


@pytest.mark.parametrize("checked", CHECKED, ids=lambda checked: checked.name)
def test_a_pipeline_beside_another_loads_to_where_that_does_by_the_same_settings(
    checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTHOG__DESTINATION__INFO_TABLES_QUERY_THRESHOLD", "77")
    monkeypatch.setenv("POSTHOG__DESTINATION__FILESYSTEM__MAX_STATE_FILES", "7")

    def plain(value: Any) -> Any:
        if not isinstance(value, BaseConfiguration):
            return value
        return {name: plain(one) for name, one in dict(value).items() if name not in ITS_OWN}

    def settings(pipeline: dlt.Pipeline) -> list[Any]:
        return [plain(config) for config in configurations_of(pipeline) if config]

    given = pipeline_of(checked, tmp_path)
    expected = settings(given)

    other = beside(given, "backfill")
    found = settings(other)
    urls = [each.pop("bucket_url") for each in (*expected[1:], *found[1:])]

    assert found == expected
    layouts = {config.staging_dataset_name_layout for config in configurations_of(other) if config}
    assert layouts == {"%s_staging_posthog_backfill"}
    apart = "s3://b/staging" if checked.name == "athena" else "s3://b/staging/posthog_backfill"
    assert urls == ["s3://b/staging", apart] * checked.is_staged
    assert expected[0]["info_tables_query_threshold"] == 77
    assert [each["max_state_files"] for each in expected[1:]] == [7] * checked.is_staged


@pytest.fixture(scope="module")
def shop(server: Server) -> Project:
    project = server.project(settings={"rate_limits": NO_LIMITS})
    add_events(project, 3)
    return project


@pytest.fixture(scope="module", params=CHECKED, ids=lambda checked: checked.name)
def made(request: pytest.FixtureRequest, shop: Project, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return build(request.param, shop, tmp_path_factory.mktemp(request.param.name))


def test_a_new_table_of_events_lies_by_time_and_one_of_groups_does_not(made: Made) -> None:
    created = made.create("events")

    assert made.checked.layout in created
    parsed = made.parse(created)
    assert isinstance(parsed, exp.Create)
    assert isinstance(parsed.this, exp.Schema)
    words = ("PARTITION", "CLUSTER", "SORTKEY")
    assert [word in created.upper() for word in words] == [word in made.checked.layout for word in words]
    assert not any(word in made.create("groups").upper() for word in words)


def test_sessions_lie_by_their_start(made: Made) -> None:
    name = "START_TIMESTAMP" if made.checked.name == "snowflake" else "start_timestamp"
    expected = made.checked.layout.replace('"TIMESTAMP"', f'"{name}"').replace("timestamp)", f"{name})")
    expected = expected.replace("`timestamp`", f"`{name}`").replace('"timestamp"', f'"{name}"')

    assert expected in made.create("sessions")


def test_a_table_that_is_there_is_left_as_it_lies(made: Made) -> None:
    statements = made.alter("events", "person_mode")

    assert statements
    laid_out = [statement for statement in statements if re.search("PARTITION|CLUSTER|SORTKEY", statement)]
    assert len(laid_out) == (made.checked.name == "snowflake")


def test_json_is_declared_as_the_page_says(made: Made) -> None:
    kind = rf"\Wproperties\W (?:Nullable\()?{re.escape(made.checked.json_type)}"

    assert re.search(kind, made.create("events"), re.IGNORECASE)


def test_a_window_is_deleted_by_bounds_of_time_that_the_warehouse_can_prune(made: Made) -> None:
    assert can_merge(made.client.capabilities)
    assert made.client.prepare_load_table("events")["x-merge-strategy"] == made.checked.strategy

    parsed = [made.parse(statement) for statement in made.merge("events")]

    (delete,) = [statement for statement in parsed if isinstance(statement, exp.Delete)]
    where = delete.args["where"]
    bounds = {(type(one), one.this.name.lower()) for one in where.find_all(exp.GTE, exp.LT, exp.EQ)}
    assert bounds == {(exp.EQ, "project_id"), (exp.GTE, "timestamp"), (exp.LT, "timestamp")}
    assert all(len(column.parts) == 1 for column in where.find_all(exp.Column))
    assert any(isinstance(statement, exp.Insert) for statement in parsed)


@pytest.mark.parametrize("table", TABLES)
def test_all_that_a_load_asks_is_sql_of_the_warehouse(made: Made, table: str) -> None:
    for statement in (made.create(table), *made.merge(table)):
        assert not isinstance(made.parse(statement), exp.Command), statement


@pytest.mark.parametrize("checked", CHECKED, ids=lambda checked: checked.name)
def test_texts_in_conditions_are_what_they_were(checked: Checked) -> None:
    caps = checked.make().capabilities()
    target = Target(checked.name, caps, None, may_resume=True)
    if str(target.is_named("x", ["a"])).endswith("(E'a')"):
        pytest.skip("a spelling of DuckDB's, which is run")

    condition = sqlglot.parse_one(target.is_named("distinct_id", KEYS).format(), dialect=caps.sqlglot_dialect)

    assert [literal.name for literal in condition.find_all(exp.Literal)] == list(KEYS)


def _cluster_by_name(source: Any) -> None:
    source.events.apply_hints(columns={"event": {"cluster": True}})


def _nothing(source: Any) -> None:
    source.events.apply_hints(columns={"timestamp": {"cluster": False}})


@pytest.mark.parametrize(
    ("change", "by"), [(_cluster_by_name, ["EVENT"]), (_nothing, [])], ids=["other", "none"]
)
def test_what_a_person_has_set_stays(
    shop: Project, tmp_path: Path, change: Callable[[Any], None], by: list[str]
) -> None:
    (snowflake,) = [one for one in CHECKED if one.name == "snowflake"]

    created = build(snowflake, shop, tmp_path, change).create("events")

    assert re.findall(r'CLUSTER BY \("(\w+)"\)', created) == by


def test_clickhouse_itself_takes_the_table_and_the_window(shop: Project, tmp_path: Path) -> None:
    (clickhouse,) = [one for one in CHECKED if one.name == "clickhouse"]
    made = build(clickhouse, shop, tmp_path / "pipelines")
    created = made.create("events")
    rows = "toDateTime64('2026-01-10', 6, 'UTC') + number * 86400 * 100, 'user' FROM numbers(10)"

    with Session(str(tmp_path / "clickhouse")) as session:
        session.query("CREATE DATABASE db")
        session.query(created)
        session.query(created.replace("posthog_data___", "posthog_data_staging___"))
        session.query(
            "INSERT INTO db.posthog_data___events (project_id, uuid, event, timestamp, distinct_id)"
            f" SELECT {shop.id}, toString(number), 'page', {rows}"
        )
        for statement in made.merge("events"):
            session.query(statement)
        found = session.query(
            "SELECT count() > 0, min(timestamp) > now() - 3600 FROM db.posthog_data___events"
        )

    assert str(found).split() == ["1,1"]
