"""The dlt source: from toml, environment and arguments to checked settings, a client and resources.

Not here: what settings mean (`config`), what is read and how it is written (`resources`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import dlt
from dlt.common.configuration import configspec
from dlt.common.configuration.specs import BaseConfiguration
from dlt.common.typing import TSecretStrValue
from dlt.sources import DltResource

from posthog_source.catalog import choose_tables
from posthog_source.client import Client
from posthog_source.config import (
    EventsSettings,
    PeopleSettings,
    ResultsSettings,
    TableKind,
    build_settings,
    build_table_settings,
)
from posthog_source.events import utc_now
from posthog_source.logs import join_dlt
from posthog_source.queries import build_query
from posthog_source.query_tables import build_query_settings, parse_queries
from posthog_source.resources import build_resources
from posthog_source.spelling import known_settings, warn_of_unknown_keys

Written = Any
"""A setting as toml, the environment or Python has it. `config` reads it: where dlt finds another type than
declared, it stops with a traceback that says neither where to set it nor what it may be."""


@configspec
class EventsConfig(BaseConfiguration):
    """`[sources.posthog.events]`, or the `events` argument. See `posthog_source.config.EventsSettings`."""

    page_rows: Written = EventsSettings.page_rows
    lag_s: Written = EventsSettings.lag_s
    lookback_s: Written = EventsSettings.lookback_s
    late_arrival_days: Written = EventsSettings.late_arrival_days
    late_arrival_every_s: Written = EventsSettings.late_arrival_every_s
    future_days: Written = EventsSettings.future_days
    write_mode: Written = EventsSettings.write_mode
    person_id: Written = EventsSettings.person_id
    person_properties: Written = EventsSettings.person_properties
    properties: Written = EventsSettings.properties
    event_names: Written = EventsSettings.event_names
    exclude_event_names: Written = EventsSettings.exclude_event_names
    where: Written = EventsSettings.where
    promote: Written = EventsSettings.promote
    json_columns: Written = EventsSettings.json_columns


@configspec
class PeopleConfig(BaseConfiguration):
    """`[sources.posthog.people]`, or the `people` argument. See `posthog_source.config.PeopleSettings`."""

    page_rows: Written = PeopleSettings.page_rows
    sweep_every_days: Written = PeopleSettings.sweep_every_days
    deletes: Written = PeopleSettings.deletes
    cohort_history: Written = PeopleSettings.cohort_history


@configspec
class ResultsConfig(BaseConfiguration):
    """`[sources.posthog.results]`, or the `results` argument. See `posthog_source.config.ResultsSettings`."""

    tags: Written = ResultsSettings.tags
    dashboards: Written = ResultsSettings.dashboards
    short_ids: Written = ResultsSettings.short_ids
    refresh: Written = ResultsSettings.refresh


# The contract is not the resources': dlt checks theirs anew for each page, and the error of the first type
# that it does not match lives in a cycle with the frames that hold the page (dlt 1.31).
@dlt.source(name="posthog", section="posthog", schema_contract={"data_type": "freeze"})
def posthog_source(
    project_id: str | int | None = None,
    api_key: TSecretStrValue | None = None,
    host: str = "us",
    start_date: Any = None,
    end_date: Any = None,
    tables: Written = None,
    events: EventsConfig | None = None,
    people: PeopleConfig | None = None,
    results: ResultsConfig | None = None,
    queries: Written = None,
    look_ahead: Written = None,
    query_timeout_s: Written = None,
    max_attempts: Written = None,
    wait_deadline_s: Written = None,
    queries_per_minute: Written = None,
    queries_per_hour: Written = None,
    rows_per_commit: Written = None,
    meter_reads: Written = None,
) -> Iterable[DltResource]:
    """All of a PostHog project, as dlt resources: events, persons, cohorts, insights and the rest.

    Each argument may also come from `[sources.posthog]` in `.dlt/` or from `SOURCES__POSTHOG__…`.

    Args:
        project_id: PostHog's number of the project.
        api_key: A personal API key (`phx_…`) with `query:read`, and for other tables the scope that
            `posthog_source.catalog` names.
        host: `us`, `eu` or a base URL.
        start_date: First instant to export, ISO text or datetime, naive meaning UTC. Without it, the
            project's first event.
        end_date: First instant not to export. It makes a run a backfill of events: that window, the
            stored cursor left alone.
        tables: Names of tables, or of their groups: `events`, `people`, `definitions`; all by default. A
            table named here must be readable; of the others, those that this PostHog, plan or key does not
            have are left out with a warning. `results` is insight_results.
        events: Settings of the events table.
        people: Settings of the tables of people: persons, their distinct ids, cohort members.
        results: Settings of insight_results, which is loaded only where it is asked for by name, since it
            costs a request for each insight: `.with_resources("insight_results")`.
        queries: HogQL queries of your own, each a table: name, query, and if need be cursor, primary_key,
            lookback_s and page_rows. See `posthog_source.query_tables.QuerySettings`.
        look_ahead: Queries in flight, 2 by default. PostHog allows a team 3.
        query_timeout_s: Most seconds without a byte of an answer.
        max_attempts: Tries of a request that meets faults.
        wait_deadline_s: Longest wait that PostHog's limits may impose on one request.
        queries_per_minute: PostHog's limit for the key.
        queries_per_hour: The same.
        rows_per_commit: Events that one run reads at most, leaving the rest to the next; all by default.
        meter_reads: Ask PostHog's query_log, once a table, what its queries made PostHog read.

    Raises:
        SettingsError: A setting is missing or cannot be right; nothing was sent.
    """
    join_dlt()
    warn_of_unknown_keys(known_settings(posthog_source))
    settings = build_settings(
        project_id=project_id,
        api_key=api_key,
        host=host,
        start_date=start_date,
        end_date=end_date,
        look_ahead=look_ahead,
        query_timeout_s=query_timeout_s,
        max_attempts=max_attempts,
        wait_deadline_s=wait_deadline_s,
        queries_per_minute=queries_per_minute,
        queries_per_hour=queries_per_hour,
        rows_per_commit=rows_per_commit,
        meter_reads=meter_reads,
    )
    own = parse_queries(queries)
    wanted, named = choose_tables(tables, [query.name for query in own])
    made = build_resources(
        Client(settings),
        settings,
        events=table_settings(EventsSettings, "events", events or EventsConfig()),
        people=table_settings(PeopleSettings, "people", people or PeopleConfig()),
        results=table_settings(ResultsSettings, "results", results or ResultsConfig()),
        queries=own,
        named=named,
    )
    chosen = [resource for resource in made if resource.name in wanted]
    for resource in chosen if tables is not None else ():
        resource.selected = True
    return chosen


@dlt.source(name="posthog", section="posthog", schema_contract={"data_type": "freeze"})
def posthog_query(
    name: str,
    query: str,
    cursor: str | None = None,
    primary_key: Sequence[str] | str = (),
    lookback_s: Written = None,
    page_rows: Written = None,
    project_id: str | int | None = None,
    api_key: TSecretStrValue | None = None,
    host: str = "us",
    query_timeout_s: Written = None,
    max_attempts: Written = None,
    wait_deadline_s: Written = None,
    queries_per_minute: Written = None,
    queries_per_hour: Written = None,
    rows_per_commit: Written = None,
    meter_reads: Written = None,
) -> DltResource:
    """Any HogQL query as a table: `pipeline.run(posthog_query("plans", "SELECT …", primary_key=["plan"]))`.

    Columns and their types are those of the answer. Settings that are not given come from `[sources.posthog]`
    in `.dlt/` or from `SOURCES__POSTHOG__…`, as those of `posthog_source`.

    Args:
        name: Of the table.
        query: One HogQL SELECT, whose computed columns have names. All of its rows are loaded: PostHog's own
            limits of 100 and 50,000 rows do not apply. Times in it are UTC's.
        cursor: A column that grows, to read only what is new; else all rows are replaced each time.
        primary_key: Columns that no two rows have alike.
        lookback_s: How long before the cursor's newest value rows are read again.
        page_rows: Rows of an answer. What all of these mean: `posthog_source.query_tables.QuerySettings`.
        project_id: PostHog's number of the project.
        api_key: A personal API key (`phx_…`) with `query:read`.
        host: `us`, `eu` or a base URL.
        query_timeout_s: Most seconds without a byte of an answer.
        max_attempts: Tries of a request that meets faults.
        wait_deadline_s: Longest wait that PostHog's limits may impose on one request.
        queries_per_minute: PostHog's limit for the key.
        queries_per_hour: The same.
        rows_per_commit: For `run_sync`, which sets it; a query is loaded in one commit.
        meter_reads: Ask PostHog's query_log what the queries made PostHog read.

    Raises:
        SettingsError: A setting is missing or cannot be right; nothing was sent.
    """
    join_dlt()
    warn_of_unknown_keys(known_settings(posthog_source, posthog_query))
    settings = build_settings(
        project_id=project_id,
        api_key=api_key,
        host=host,
        query_timeout_s=query_timeout_s,
        max_attempts=max_attempts,
        wait_deadline_s=wait_deadline_s,
        queries_per_minute=queries_per_minute,
        queries_per_hour=queries_per_hour,
        rows_per_commit=rows_per_commit,
        meter_reads=meter_reads,
    )
    table = build_query_settings(
        {
            "name": name,
            "query": query,
            "cursor": cursor,
            "primary_key": primary_key,
            "lookback_s": lookback_s,
            "page_rows": page_rows,
        }
    )
    return build_query(Client(settings), settings, table, clock=utc_now)


def table_settings(kind: type[TableKind], section: str, config: BaseConfiguration) -> TableKind:
    """A table's settings as dlt has found them, checked."""
    values = {field.name: getattr(config, field.name) for field in fields(kind)}
    return build_table_settings(kind, section, values)
