"""The tables HogQL shows, their columns, and where each lives in ClickHouse.

Facts: PostHog/posthog `posthog/hogql/database/schema/`. It does not say how lazy tables are read (`lazy.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from posthog_emulator.hogql.errors import QueryError


@dataclass(frozen=True)
class Column:
    """A column as HogQL knows it; `stored` is its name in ClickHouse."""

    stored: str
    kind: str = "text"
    nullable: bool = False
    in_asterisk: bool = True


@dataclass(frozen=True)
class Table:
    """A table as HogQL knows it; `groups` are dotted columns such as `poe.id`."""

    name: str
    stored: str
    columns: Mapping[str, Column]
    groups: Mapping[str, Mapping[str, Column]] = field(default_factory=dict)
    is_lazy: bool = False


def find_table(name: str) -> Table:
    """Look a table up by its HogQL name."""
    if name not in TABLES:
        raise QueryError(f"Unknown table `{name}`.")
    return TABLES[name]


PERSON_ON_EVENT = {
    "id": Column("person_id", "uuid"),
    "created_at": Column("person_created_at", "datetime"),
    "properties": Column("person_properties", "json"),
}
EVENTS = Table(
    "events",
    "events",
    {
        "uuid": Column("uuid", "uuid"),
        "event": Column("event"),
        "properties": Column("properties", "json"),
        "timestamp": Column("timestamp", "datetime"),
        "team_id": Column("team_id", "number", in_asterisk=False),
        "distinct_id": Column("distinct_id"),
        "elements_chain": Column("elements_chain"),
        "created_at": Column("created_at", "datetime"),
        "$session_id": Column("$session_id"),
        "$window_id": Column("$window_id"),
        "person_mode": Column("person_mode"),
        **{f"$group_{n}": Column(f"$group_{n}") for n in range(5)},
        "elements_chain_href": Column("elements_chain_href"),
        "elements_chain_texts": Column("elements_chain_texts", "array"),
        "elements_chain_ids": Column("elements_chain_ids", "array"),
        "elements_chain_elements": Column("elements_chain_elements", "array"),
        "person_id": Column("person_id", "uuid"),
        "event_person_id": Column("person_id", "uuid"),
    },
    {
        "poe": PERSON_ON_EVENT,
        "person": PERSON_ON_EVENT,
        **{
            f"goe_{n}": {
                "key": Column(f"$group_{n}"),
                "created_at": Column(f"group{n}_created_at", "datetime"),
                "properties": Column(f"group{n}_properties", "json"),
            }
            for n in range(5)
        },
    },
)

PERSON_COLUMNS = {
    "id": Column("id"),
    "created_at": Column("created_at", "datetime"),
    "team_id": Column("team_id", "number", in_asterisk=False),
    "properties": Column("properties", "json"),
    "is_identified": Column("is_identified", "bool"),
    "last_seen_at": Column("last_seen_at", "datetime", nullable=True),
}
VERSIONED = {"is_deleted": Column("is_deleted", "bool"), "version": Column("version", "number")}
PERSONS = Table("persons", "person", PERSON_COLUMNS, is_lazy=True)
RAW_PERSONS = Table("raw_persons", "person", {**PERSON_COLUMNS, **VERSIONED})

DISTINCT_ID_COLUMNS = {
    "team_id": Column("team_id", "number", in_asterisk=False),
    "distinct_id": Column("distinct_id"),
    "person_id": Column("person_id"),
}
GROUP_COLUMNS = {
    "index": Column("group_type_index", "number"),
    "team_id": Column("team_id", "number", in_asterisk=False),
    "key": Column("group_key"),
    "created_at": Column("created_at", "datetime"),
    "updated_at": Column("_timestamp", "datetime"),
    "properties": Column("group_properties", "json"),
}
COHORT_COLUMNS = {
    "person_id": Column("person_id"),
    "cohort_id": Column("cohort_id", "number"),
    "team_id": Column("team_id", "number", in_asterisk=False),
}
QUERY_LOG_COSTS = {
    "created_by": Column("created_by", "number"),
    "read_rows": Column("read_rows", "number"),
    "read_bytes": Column("read_bytes", "number"),
    "result_rows": Column("result_rows", "number"),
    "result_bytes": Column("result_bytes", "number"),
    "memory_usage": Column("memory_usage", "number"),
    "status": Column("status"),
    "exception_code": Column("exception_code", "number"),
    "is_personal_api_key_request": Column("is_personal_api_key_request", "bool"),
    "cpu_microseconds": Column("cpu_microseconds", "number"),
    "RealTimeMicroseconds": Column("real_time_microseconds", "number"),
}
QUERY_LOG_START = {
    "event_date": Column("event_date", "date"),
    "event_time": Column("event_time", "datetime"),
    "endpoint": Column("endpoint"),
    "query": Column("query"),
    "query_start_time": Column("query_start_time", "datetime"),
    "query_duration_ms": Column("query_duration_ms", "number"),
}
# query_log_archive.py: query_id is the client's id in the newest version, and ClickHouse's before.
QUERY_LOG = Table(
    "query_log",
    "query_log",
    {
        **QUERY_LOG_START,
        "query_id": Column("client_query_id"),
        "name": Column("name"),
        **QUERY_LOG_COSTS,
        "exception_name": Column("exception_name"),
        "api_key_mask": Column("api_key_mask"),
    },
)
OLD_QUERY_LOG = Table(
    "query_log",
    "query_log",
    {
        **QUERY_LOG_START,
        "query_id": Column("query_id"),
        "hogql_name": Column("name"),
        **QUERY_LOG_COSTS,
    },
)
NUMBERS = Table("numbers", "numbers", {"number": Column("number", "number")})

TABLES = {
    table.name: table
    for table in (
        EVENTS,
        PERSONS,
        RAW_PERSONS,
        Table("person_distinct_ids", "person_distinct_id2", DISTINCT_ID_COLUMNS, is_lazy=True),
        Table("raw_person_distinct_ids", "person_distinct_id2", {**DISTINCT_ID_COLUMNS, **VERSIONED}),
        Table(
            "person_distinct_id_overrides", "person_distinct_id_overrides", DISTINCT_ID_COLUMNS, is_lazy=True
        ),
        Table(
            "raw_person_distinct_id_overrides",
            "person_distinct_id_overrides",
            {**DISTINCT_ID_COLUMNS, **VERSIONED},
        ),
        Table("groups", "groups", GROUP_COLUMNS, is_lazy=True),
        Table("raw_groups", "groups", GROUP_COLUMNS),
        Table("cohort_people", "cohortpeople", COHORT_COLUMNS, is_lazy=True),
        Table(
            "raw_cohort_people",
            "cohortpeople",
            {**COHORT_COLUMNS, "sign": Column("sign", "number"), "version": Column("version", "number")},
        ),
        Table("static_cohort_people", "person_static_cohort", COHORT_COLUMNS),
        QUERY_LOG,
        NUMBERS,
    )
}
