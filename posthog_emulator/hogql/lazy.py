"""How the lazy tables are read: the subquery that takes a table's place, and what it costs.

Lazy tables show the newest version of each row and hide deleted ones. The shapes follow PostHog's printer,
because their cost is what an exporter has to live with. Facts: `posthog/hogql/database/schema/persons.py`,
`…/argmax.py` and neighbours in PostHog/posthog.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from posthog_emulator.hogql.literals import identifier
from posthog_emulator.hogql.schema import Column, Table

IN_ORDER = " SETTINGS optimize_aggregation_in_order=1"


@dataclass(frozen=True)
class Pushed:
    """What of the outer query goes inside: PostHog does this only for SELECTs straight from `persons`."""

    where: str = ""  # over `where_optimization`
    order_by: str = ""  # over `person`
    limit: int | None = None


def lazy_select(
    table: Table,
    fields: Mapping[str, Column],
    team_id: int,
    cohorts: Sequence[tuple[int, int]],
    pushed: Pushed,
) -> str:
    """Build the subquery for one use of a lazy table, with the columns that are asked of it."""
    if table.name == "persons":
        return persons_select(fields, team_id, pushed)
    if table.name == "groups":
        return _argmax_select("groups", fields, ("index", "key"), "_timestamp", team_id)
    if table.name == "cohort_people":
        return _cohort_people_select(fields, team_id, cohorts)
    having = f"{_latest(table.stored, 'is_deleted', 'version')} = 0"
    select = _argmax_select(
        table.stored, {**fields, "person_id": Column("person_id")}, ("distinct_id",), "version", team_id
    )
    return f"{select} HAVING {having}{IN_ORDER if table.name == 'person_distinct_ids' else ''}"


def overrides_select(team_id: int) -> str:
    """Build the subquery that events join for their current person."""
    table = "person_distinct_id_overrides"
    select = _argmax_select(table, {"person_id": Column("person_id")}, ("distinct_id",), "version", team_id)
    return f"{select} HAVING {_latest(table, 'is_deleted', 'version')} = 0{IN_ORDER}"


def persons_select(fields: Mapping[str, Column], team_id: int, pushed: Pushed) -> str:
    """Build the persons subquery: V1 (argMax of each column), or V2 for the wide `properties`."""
    living = (
        f"{_latest('person', 'is_deleted', 'version')} = 0 AND "
        f"{_latest('person', 'created_at', 'version')} < now64(6, 'UTC') + toIntervalDay(1)"
    )
    if pushed.where or "properties" not in fields:
        select = _argmax_select("person", fields, ("id",), "version", team_id, pushed.where)
        return f"{select} HAVING {living}{'' if pushed.where else IN_ORDER}"
    order = f" ORDER BY {pushed.order_by}" if pushed.order_by else ""
    limit = f" LIMIT {pushed.limit} OFFSET 0" if pushed.limit is not None else ""
    newest = (
        "SELECT person.id AS id, max(person.version) AS version FROM person "
        f"WHERE person.team_id = {team_id} GROUP BY person.id HAVING {living}{order}{limit}"
    )
    columns = ", ".join(f"person.{column.stored} AS {name}" for name, column in {"id": ID, **fields}.items())
    return (
        f"SELECT {columns} FROM person WHERE person.team_id = {team_id} "
        f"AND in(tuple(person.id, person.version), ({newest})){IN_ORDER}"
    )


ID = Column("id")


def _argmax_select(
    stored: str,
    fields: Mapping[str, Column],
    key: Sequence[str],
    version: str,
    team_id: int,
    where: str = "",
) -> str:
    keys = {name: fields.get(name) or KEYS[name] for name in key}
    latest = [
        f"{_latest(stored, column.stored, version)} AS {identifier(name)}"
        for name, column in fields.items()
        if name not in keys
    ]
    grouped = [f"{stored}.{column.stored} AS {identifier(name)}" for name, column in keys.items()]
    guard = f"{stored}.team_id = {team_id}"
    if where:
        ids = f"SELECT where_optimization.id AS id FROM {stored} AS where_optimization WHERE {where}"
        guard += f" AND in({stored}.id, ({ids}))"
    group_by = ", ".join(f"{stored}.{column.stored}" for column in keys.values())
    return f"SELECT {', '.join(latest + grouped)} FROM {stored} WHERE {guard} GROUP BY {group_by}"


KEYS = {
    "id": ID,
    "distinct_id": Column("distinct_id"),
    "index": Column("group_type_index", "number"),
    "key": Column("group_key"),
}


def _latest(table: str, column: str, version: str) -> str:
    return f"argMax({table}.{column}, {table}.{version})"


def _cohort_people_select(
    fields: Mapping[str, Column], team_id: int, cohorts: Sequence[tuple[int, int]]
) -> str:
    columns = {"person_id": Column("person_id"), "cohort_id": Column("cohort_id"), **fields}
    names = ", ".join(f"cohortpeople.{column.stored} AS {name}" for name, column in columns.items())
    group_by = ", ".join(f"cohortpeople.{column.stored}" for column in columns.values())
    versions = ", ".join(f"({cohort}, {version})" for cohort, version in cohorts)
    current = f"in(tuple(cohortpeople.cohort_id, cohortpeople.version), [{versions}])" if cohorts else "0"
    return (
        f"SELECT {names} FROM cohortpeople WHERE cohortpeople.team_id = {team_id} AND {current} "
        f"GROUP BY {group_by} HAVING sum(cohortpeople.sign) > 0"
    )
