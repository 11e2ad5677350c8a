"""What can be exported: one frozen row per table, each choice with its why.

Rows are data: columns, keys, order, cursor, disposition, scope. Names after `field=` are PostHog's own,
where they differ from the column's. Not here: what a table is (`tables`), what
people define in PostHog (`definitions`), HogQL text (`query`), dlt (`resources`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace

from posthog_source.config import EventsSettings, PromotedKind
from posthog_source.definitions import DEFINITIONS, DETAILS
from posthog_source.errors import SettingsError
from posthog_source.tables import (
    DELETED_AT,
    PROJECT_ID,
    SYNCED_AT,
    AxisField,
    Column,
    Condition,
    HogqlTable,
    Kind,
    LabelField,
    Parts,
    RestTable,
    SortKey,
    Table,
    snake_case,
)

SESSION_FIELDS: tuple[tuple[str, Kind, str], ...] = (
    ("num_uniq_urls", "bigint", "Different addresses visited"),
    ("entry_current_url", "text", "First address"),
    ("entry_pathname", "text", "Its path"),
    ("entry_hostname", "text", "Its host"),
    ("entry_referring_domain", "text", "Where it came from"),
    ("end_current_url", "text", "Last address"),
    ("end_pathname", "text", "Its path"),
    ("end_hostname", "text", "Its host"),
    ("last_external_click_url", "text", "Where its last click to elsewhere led"),
    ("pageview_count", "bigint", "Pages seen"),
    ("autocapture_count", "bigint", "Clicks and the like"),
    ("screen_count", "bigint", "Screens seen, of an app"),
    ("session_duration", "bigint", "Seconds from its first event to its last"),
    ("channel_type", "text", "Kind of source, as PostHog classifies it"),
    ("is_bounce", "bool", "One page, no click, and less than ten seconds; null without a page"),
)
"""What both generations of PostHog's sessions have, less the dollar sign."""

EVENTS = HogqlTable(
    name="events",
    description="One row per event captured.",
    columns=(
        PROJECT_ID,
        Column("uuid", "uuid", "The event's id", is_required=True),
        Column("event", "text", "The event's name", is_required=True),
        Column("timestamp", "timestamp", "When it happened, by the client's clock", is_required=True),
        Column("created_at", "timestamp", "When PostHog received it, by its own clock"),
        Column("distinct_id", "text", "Who did it, as the client said", is_required=True),
        # HogQL's own person_id joins the overrides of merged persons into every query (query_api.md 4.1).
        Column("person_id", "uuid", "The person at ingestion", field="event_person_id", is_optional=True),
        Column("properties", "json", "Everything else that was captured"),
        Column("elements_chain", "text", "For autocapture: the elements clicked", is_optional=True),
        Column("session_id", "text", "Session", field="$session_id", is_optional=True),
        Column("window_id", "text", "Browser tab", field="$window_id", is_optional=True),
        Column("person_mode", "text", "full, propertyless or force_upgrade", is_optional=True),
        *(
            Column(
                f"group_{i}", "text", f"Key of the group of type {i}", field=f"$group_{i}", is_optional=True
            )
            for i in range(5)
        ),
        Column(
            "person_properties",
            "json",
            "The person's properties at ingestion",
            field="poe.properties",
            is_optional=True,
        ),
    ),
    primary_key=("project_id", "uuid"),
    disposition="window",
    scopes=("query:read",),
    sources=("events",),
    # ORDER BY (team_id, toDate(timestamp), event, cityHash64(distinct_id), …): query_api.md 5.1
    sort_key=SortKey(
        labels=(LabelField("timestamp", "day"), LabelField("event", "text")),
        axis=AxisField("distinct_id", "hash", then="uuid"),
    ),
    page_key=("timestamp", "uuid"),
    time_column="timestamp",
    arrival_column="created_at",
)

# Not `persons`, which hides the versions: they tell who changed, for few bytes (query_api.md 4.2).
PERSONS = HogqlTable(
    name="persons",
    description="One row per person as of now. Who was merged away or deleted has a deleted_at.",
    columns=(
        PROJECT_ID,
        Column("id", "uuid", "The person's id", is_required=True),
        Column("created_at", "timestamp", "When the person was first seen"),
        Column("is_identified", "bool", "Whether the person has been identified"),
        Column("properties", "json", "The person's properties"),
        Column(
            "last_seen_at",
            "timestamp",
            "Hour of the last event, where PostHog keeps it",
            is_optional=True,
            is_opt_in=True,
        ),
        Column("version", "bigint", "Grows with each change of the person", is_required=True),
        SYNCED_AT,
        DELETED_AT,
    ),
    primary_key=("project_id", "id"),
    disposition="sweep",
    scopes=("query:read",),
    sources=("raw_persons",),
    version_field="version",
    keeps_deleted=True,
    sort_key=SortKey(axis=AxisField("id", "uuid")),
    page_key=("id",),
)

PERSON_DISTINCT_IDS = HogqlTable(
    name="person_distinct_ids",
    description="One row per distinct id: which person it belongs to now.",
    columns=(
        PROJECT_ID,
        Column("distinct_id", "text", "As on events", is_required=True),
        Column("person_id", "uuid", "The person it belongs to now", is_required=True),
        SYNCED_AT,
        DELETED_AT,
    ),
    primary_key=("project_id", "distinct_id"),
    disposition="sweep",
    scopes=("query:read",),
    sources=("person_distinct_ids",),
    sort_key=SortKey(labels=(LabelField("distinct_id", "text"),), is_sampled=True),
    page_key=("distinct_id",),
)

# Not `groups`, which takes the newest version of everything before it looks at the time of the change.
GROUPS = HogqlTable(
    name="groups",
    description="One row per group as last seen, such as a company; a group deleted in PostHog stays.",
    columns=(
        PROJECT_ID,
        Column("index", "bigint", "The group's type, as in group_types", is_required=True),
        Column("key", "text", "The group's key, as on events", is_required=True),
        Column("created_at", "timestamp", "When the group was first seen"),
        Column("updated_at", "timestamp", "When PostHog stored its last change", is_required=True),
        Column("properties", "json", "The group's properties"),
    ),
    primary_key=("project_id", "index", "key"),
    disposition="merge",
    scopes=("query:read",),
    sources=("raw_groups",),
    version_field="updated_at",
    # ORDER BY (team_id, group_type_index, group_key): posthog/models/group/sql.py
    sort_key=SortKey(
        labels=(LabelField("index", "bigint"), LabelField("key", "text")),
        is_sampled=True,
    ),
    page_key=("index", "key"),
    cursor="updated_at",
    overlap_s=300.0,
)

SESSIONS = HogqlTable(
    name="sessions",
    description="One row per session as last seen; it grows as its events arrive.",
    columns=(
        PROJECT_ID,
        Column("session_id", "text", "The session, as on events", is_required=True),
        Column("distinct_id", "text", "Who was last seen in it"),
        Column("start_timestamp", "timestamp", "Its first event", field="$start_timestamp", is_required=True),
        Column("end_timestamp", "timestamp", "Its last event", field="$end_timestamp", is_required=True),
        Column("max_inserted_at", "timestamp", "When PostHog stored its last event", is_required=True),
        Column("urls", "json", "Addresses visited", field="$urls", is_composed=True),
        *(Column(name, kind, description, field=f"${name}") for name, kind, description in SESSION_FIELDS),
        *(
            Column(f"entry_{name}", "text", f"Its {name} at the beginning", field=f"$entry_{name}")
            for name in ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
        ),
        *(
            Column(
                f"entry_{name}",
                "text",
                f"Its {name} at the beginning",
                field=f"$entry_{name}",
                is_optional=True,
            )
            for name in ("gclid", "gad_source", "fbclid")
        ),
    ),
    primary_key=("project_id", "session_id"),
    disposition="merge",
    scopes=("query:read",),
    sources=("sessions",),
    # Sorted by the time in the session's id, which no HogQL can name: PostHog derives bounds on it from those
    # on the start, three days to either side, so that a slice reads six days more than it holds.
    sort_key=SortKey(labels=(LabelField("$start_timestamp", "day"),), axis=AxisField("session_id", "hash")),
    page_key=("session_id",),
    cursor="max_inserted_at",
    overlap_s=900.0,
    lookback_days=3,
    late_lookback_days=30,
    is_open=True,
)

# Not `session_replay_events`, which does not tell when a recording was last written, and makes two of one
# whose parts disagree on how long to keep it (posthog/hogql/database/schema/session_replay_events.py).
SESSION_REPLAYS = HogqlTable(
    name="session_replays",
    description="One row per session recording as last seen: what is told of it, not what it shows.",
    columns=(
        PROJECT_ID,
        Column("session_id", "text", "The session that it shows", is_required=True),
        Column(
            "distinct_id", "text", "Who was last seen in it", summed="argMax(distinct_id, max_last_timestamp)"
        ),
        Column(
            "start_time", "timestamp", "Its beginning", is_required=True, summed="min(min_first_timestamp)"
        ),
        Column("end_time", "timestamp", "Its end", is_required=True, summed="max(max_last_timestamp)"),
        Column(
            "last_written_at", "timestamp", "When it last grew", is_required=True, summed="max(_timestamp)"
        ),
        Column("first_url", "text", "First address", summed="argMinMerge(first_url)", is_optional=True),
        Column(
            "all_urls",
            "json",
            "Addresses visited",
            summed="arraySort(groupUniqArrayArray(all_urls))",
            is_composed=True,
            is_optional=True,
        ),
        *(
            Column(name, "bigint", description, summed=f"sum({name})", is_optional=is_optional)
            for name, description, is_optional in (
                ("click_count", "Clicks", False),
                ("keypress_count", "Keys pressed", False),
                ("mouse_activity_count", "Movements of the mouse", False),
                ("active_milliseconds", "How long somebody was at it", False),
                ("console_log_count", "Lines in the browser's console", False),
                ("console_warn_count", "Warnings there", False),
                ("console_error_count", "Errors there", False),
                ("size", "Bytes", True),
                ("event_count", "Recorded changes of the page", True),
                ("message_count", "Messages that brought them", True),
            )
        ),
        Column(
            "snapshot_source",
            "text",
            "web or mobile",
            summed="argMinMerge(snapshot_source)",
            is_optional=True,
        ),
        Column(
            "snapshot_library",
            "text",
            "The library that recorded it",
            summed="argMinMerge(snapshot_library)",
            is_optional=True,
        ),
        Column(
            "retention_period_days",
            "bigint",
            "How long PostHog keeps it",
            summed="max(retention_period_days)",
            is_optional=True,
        ),
        Column("is_deleted", "bool", "Whether it was deleted", summed="max(is_deleted)", is_optional=True),
    ),
    primary_key=("project_id", "session_id"),
    disposition="merge",
    scopes=("query:read",),
    sources=("raw_session_replay_events",),
    # ORDER BY (toDate(min_first_timestamp), team_id, session_id): session_replay_event_sql.py in posthog/
    # session_recordings/sql. A session lasts a day at most.
    parts=Parts("min_first_timestamp", spread_days=1),
    sort_key=SortKey(labels=(LabelField("start_time", "day"),), axis=AxisField("session_id", "hash")),
    page_key=("session_id",),
    cursor="last_written_at",
    overlap_s=900.0,
    lookback_days=3,
    late_lookback_days=30,
)

GROUP_TYPES = RestTable(
    name="group_types",
    description="One row per type of groups.",
    columns=(
        PROJECT_ID,
        Column("group_type_index", "bigint", "Its number, as groups have it", is_required=True),
        Column("group_type", "text", "Its name"),
        Column("name_singular", "text", "What people call one"),
        Column("name_plural", "text", "What people call several"),
        Column("detail_dashboard", "bigint", "The dashboard that shows one"),
        Column("default_columns", "json", "Columns of PostHog's list of them"),
        Column("created_at", "timestamp", "When it was first seen"),
    ),
    primary_key=("project_id", "group_type_index"),
    disposition="snapshot",
    scopes=("group:read",),
    # Only PostHog's EE builds serve it, as a bare array (rest_api.md 4.15).
    path="groups_types/",
    params={},
    page_rows=100,
    rate_class="default",
    is_optional=True,
)

COHORT_PEOPLE = HogqlTable(
    name="cohort_people",
    description="One row per member of each cohort, static and dynamic, as last calculated by PostHog.",
    columns=(
        PROJECT_ID,
        Column("cohort_id", "bigint", "The cohort", is_required=True),
        Column("person_id", "uuid", "The member", is_required=True),
    ),
    primary_key=("project_id", "cohort_id", "person_id"),
    disposition="group",
    scopes=("query:read", "cohort:read"),
    sources=("cohort_people", "static_cohort_people"),
    sort_key=SortKey(labels=(LabelField("cohort_id", "bigint"),), axis=AxisField("person_id", "uuid")),
    page_key=("cohort_id", "person_id"),
)

COHORT_HISTORY = Table(
    name="cohort_people_history",
    description="One row per stay of a person in a cohort.",
    columns=(
        PROJECT_ID,
        Column("cohort_id", "bigint", "The cohort", is_required=True),
        Column("person_id", "uuid", "The member", is_required=True),
        Column(
            "entered_at",
            "timestamp",
            "The calculation that first had the member, of those that were read; where PostHog tells no new "
            "one, the sync that found it",
            is_required=True,
        ),
        Column(
            "left_at",
            "timestamp",
            "The calculation that first lacked the member, of those that were read; where PostHog tells no "
            "new one, the sync that found it; null while it is in",
        ),
    ),
    primary_key=("project_id", "cohort_id", "person_id", "entered_at"),
    disposition="merge",
    scopes=COHORT_PEOPLE.scopes,
)

COHORTS = RestTable(
    name="cohorts",
    description="One row per cohort; deleted cohorts are gone.",
    columns=(
        PROJECT_ID,
        Column("id", "bigint", "The cohort's number", is_required=True),
        Column("name", "text", "Name"),
        Column("description", "text", "Description"),
        Column("groups", "json", "Definition, the older form"),
        Column("filters", "json", "Definition"),
        Column("query", "json", "Definition of a static cohort made from a query"),
        Column("deleted", "bool", "Always false: PostHog does not list deleted cohorts"),
        Column("version", "bigint", "Grows with each calculation"),
        Column("pending_version", "bigint", "The calculation under way"),
        Column("is_calculating", "bool", "Whether members are being calculated"),
        Column("is_static", "bool", "Whether members were listed rather than defined"),
        Column("cohort_type", "text", "Kind of definition"),
        Column("count", "bigint", "Members at the last calculation"),
        Column("errors_calculating", "bigint", "Failed calculations in a row"),
        Column("last_error_message", "text", "The last one's message"),
        Column("created_by", "json", "Who made it"),
        Column("created_at", "timestamp", "When it was made"),
        Column("last_calculation", "timestamp", "When members were last calculated; not when it was edited"),
        Column("experiment_set", "json", "Experiments that use it"),
    ),
    primary_key=("project_id", "id"),
    # No updated_at and no way to ask for changes (rest_api.md 4.3): every sync lists them all.
    disposition="snapshot",
    scopes=("cohort:read",),
    path="cohorts/",
    params={},
    page_rows=1_000,
    rate_class="default",
)

INSIGHT_RESULTS = Table(
    name="insight_results",
    description="One row per number that a saved insight shows, as last computed for its date.",
    columns=(
        PROJECT_ID,
        Column("insight_id", "bigint", "The insight's number", is_required=True),
        Column("short_id", "text", "As in its address"),
        Column("kind", "text", "Kind of query, such as TrendsQuery", is_required=True),
        Column("series_index", "bigint", "Which of the insight's series, from 0", is_required=True),
        Column("series_label", "text", "The series as PostHog calls it"),
        Column(
            "breakdown",
            "text",
            "Value that the series is broken down by, several as a JSON list; of paths, from where to where; "
            "empty without one",
            is_required=True,
        ),
        Column("compare", "text", "current or previous; empty where nothing is compared", is_required=True),
        Column(
            "measure",
            "text",
            "What the value is: value, count, conversion_rate (percent), average_conversion_time and "
            "median_conversion_time (seconds; of paths, milliseconds), aggregation_value, row, or a "
            "lifecycle's new, returning, resurrecting and dormant",
            is_required=True,
        ),
        Column(
            "step",
            "bigint",
            "Of funnels and paths the step, of retention the intervals since, of stickiness the intervals "
            "active, of time to convert the least seconds, of HogQL the row; 1 for the second of two "
            "dates that are called the same; else 0",
            is_required=True,
        ),
        Column("step_label", "text", "The step as PostHog calls it"),
        Column(
            "date",
            "text",
            "Beginning of the interval in the project's time; of a result without dates, the day it was "
            "computed",
            is_required=True,
        ),
        Column("interval", "text", "Length of an interval, such as day; null for a result without dates"),
        Column("value", "double", "The number; null where PostHog has none"),
        Column("row_values", "json", "Of HogQL: the row, by column"),
        Column("computed_at", "timestamp", "When PostHog computed it"),
        Column("is_cached", "bool", "Whether PostHog had computed it before it was asked"),
    ),
    primary_key=(
        *("project_id", "insight_id", "series_index", "breakdown", "compare", "measure", "step", "date"),
    ),
    disposition="merge",
    scopes=("insight:read",),
)

# Not a column of insight_results, which would repeat up to megabytes with each number.
INSIGHT_RESULT_DOCUMENTS = Table(
    name="insight_result_documents",
    description="One row per saved insight: its last result as PostHog answered it.",
    columns=(
        PROJECT_ID,
        Column("insight_id", "bigint", "The insight's number", is_required=True),
        Column("short_id", "text", "As in its address"),
        Column("name", "text", "Name"),
        Column("kind", "text", "Kind of query, such as TrendsQuery", is_required=True),
        Column("query", "json", "The definition that was computed"),
        Column("result", "json", "The result"),
        Column("columns", "json", "Of HogQL: names of the columns"),
        Column("types", "json", "Of HogQL: their names and ClickHouse types"),
        Column("has_more", "bool", "Whether PostHog left some of it out", field="hasMore"),
        Column("resolved_date_range", "json", "First and last instant that it tells of"),
        Column("timezone", "text", "The project's timezone, in which its dates are"),
        Column("computed_at", "timestamp", "When PostHog computed it"),
        Column("is_cached", "bool", "Whether PostHog had computed it before it was asked"),
        SYNCED_AT,
    ),
    primary_key=("project_id", "insight_id"),
    disposition="merge",
    scopes=("insight:read",),
)

TABLES: tuple[Table, ...] = (
    EVENTS,
    PERSONS,
    PERSON_DISTINCT_IDS,
    GROUPS,
    GROUP_TYPES,
    SESSIONS,
    SESSION_REPLAYS,
    COHORTS,
    COHORT_PEOPLE,
    *DEFINITIONS,
)
"""Everything that is exported unless told otherwise, in the order in which it is."""

ON_REQUEST: tuple[Table, ...] = (*DETAILS, INSIGHT_RESULTS)
"""What is exported only where it is asked for by name, since it costs a request for each object."""

TABLE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "events": (EVENTS.name,),
    "people": tuple(t.name for t in TABLES if t is not EVENTS and t not in DEFINITIONS),
    "definitions": tuple(table.name for table in DEFINITIONS),
    "results": (INSIGHT_RESULTS.name,),
}
"""Names for several tables at once."""


def choose_tables(written: object, queries: Iterable[str] = ()) -> tuple[Set[str], Set[str]]:
    """The tables that a person wants, and those of them that are called by their own names.

    Args:
        written: Names of tables and of groups of them, as a list or with commas between; None for all,
            of which those on request stay unselected.
        queries: Names of a person's own queries, which are tables too.

    Raises:
        SettingsError: A name that neither a table nor a group has.
    """
    known = {*(table.name for table in (*TABLES, *ON_REQUEST)), *queries}
    if written is None:
        return known, set()
    texts = written.split(",") if isinstance(written, str) else written
    if not isinstance(texts, Iterable):
        texts = [texts]
    names = [str(text).strip() for text in texts]
    if unknown := [name for name in names if name not in known | TABLE_GROUPS.keys()]:
        raise SettingsError(
            f"sources.posthog.tables names {', '.join(unknown) or 'nothing'}; there are the groups "
            f"{', '.join(TABLE_GROUPS)}, and the tables {', '.join(sorted(known))}."
        )
    wanted = {table for name in names for table in TABLE_GROUPS.get(name, (name,))}
    return wanted, {name for name in names if name not in TABLE_GROUPS}


def events_table(config: EventsSettings) -> HogqlTable:
    """The events table as chosen: its columns and its rows.

    Raises:
        SettingsError: Promoted properties of which no column, or no column each, can be made.
    """
    is_chosen = {"properties": config.properties, "person_properties": config.person_properties}
    table = EVENTS.without({name for name, is_wanted in is_chosen.items() if not is_wanted})
    if config.person_id == "current":
        table = table.reading({"person_id": "person_id"})
    condition = Condition(
        field="event", only=config.event_names, never=config.exclude_event_names, where=config.where
    )
    return replace(
        table,
        columns=table.columns + _promoted(config.promote),
        condition=condition if condition != Condition(field="event") else None,
    )


def _promoted(promote: Sequence[tuple[str, PromotedKind]]) -> tuple[Column, ...]:
    """Columns of events made from properties."""
    made: dict[str, Column] = {}
    for property_name, kind in promote:
        name = _column_name(property_name)
        if name in made:
            raise SettingsError(
                f"events.promote names {made[name].property_name!r} and {property_name!r}, which would both "
                f"be the column {name}. Promote one of them. Set it under [sources.posthog.events]."
            )
        description = f"The event's property {property_name}"
        made[name] = Column(name, kind, description, property_name=property_name)
    return tuple(made.values())


def _column_name(property_name: str) -> str:
    name = snake_case(property_name)
    if not name:
        raise SettingsError(
            f"events.promote names {property_name!r}, which has no Latin letter or digit to name a column "
            "by. Read it from the column properties. Set it under [sources.posthog.events]."
        )
    is_taken = name in {column.name for column in EVENTS.columns}
    return f"properties_{name}" if is_taken or name[0].isdigit() else name
