"""Builds every dlt resource of the source; itself reads the REST tables, whole or by a cursor.

Not here: events (`events`), people (`people`), members of cohorts (`membership`), a person's own queries
(`queries`), settings (`source`), pages (`pagination`, `rest`), how dlt is told (`destination`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import dlt
from dlt.extract.decorators import get_source
from dlt.sources import DltResource

from posthog_source.catalog import COHORTS, GROUP_TYPES, GROUPS, ON_REQUEST, SESSION_REPLAYS, SESSIONS
from posthog_source.changing import build_changing
from posthog_source.client import Client
from posthog_source.config import EventsSettings, PeopleSettings, ResultsSettings, Settings
from posthog_source.definitions import DEFINITIONS, DETAILS
from posthog_source.destination import Target, build_resource, claim_state, metered
from posthog_source.errors import AccessDeniedError, NotFoundError, QuotaSpentError
from posthog_source.events import build_events, utc_now
from posthog_source.membership import build_membership
from posthog_source.people import build_people
from posthog_source.queries import build_query
from posthog_source.query_tables import QuerySettings
from posthog_source.rest import Activity, fetch_activity, fetch_all, gone_to_table, iter_changed
from posthog_source.results import build_results
from posthog_source.tables import RestTable
from posthog_source.windows import EPOCH

ACTIVITY_OVERLAP = timedelta(minutes=5)
"""Of what the activity log tells, read again: an entry may be seen only some time after it says."""

logger = logging.getLogger("posthog_source")


def build_resources(
    client: Client,
    settings: Settings,
    *,
    events: EventsSettings,
    people: PeopleSettings,
    results: ResultsSettings,
    queries: Sequence[QuerySettings] = (),
    named: Collection[str] = (),
    clock: Callable[[], datetime] = utc_now,
) -> list[DltResource]:
    """All tables of the catalogue as dlt resources, in its order, and a person's own queries.

    Those on request are not selected; `named` are those asked for by name.
    """
    return [
        build_events(client, settings, events, clock=clock),
        *build_people(client, settings, events=events, people=people, clock=clock),
        build_changing(client, settings, GROUPS, people, clock=clock),
        _listing(client, settings, GROUP_TYPES, named),
        build_changing(client, settings, SESSIONS, people, clock=clock),
        build_changing(client, settings, SESSION_REPLAYS, people, clock=clock),
        _listing(client, settings, COHORTS, named),
        build_membership(client, settings, people, clock=clock),
        *(_definition(client, settings, table, named) for table in (*DEFINITIONS, *DETAILS)),
        build_results(client, settings, results, clock=clock),
        *(build_query(client, settings, query, clock=clock) for query in queries),
    ]


def _definition(client: Client, settings: Settings, table: RestTable, named: Collection[str]) -> DltResource:
    build = _changes if table.cursor else _listing
    resource = build(client, settings, table, named)
    resource.selected = table not in DETAILS
    return resource


def _listing(client: Client, settings: Settings, table: RestTable, named: Collection[str]) -> DltResource:
    def listing() -> Iterator[Any]:
        target = Target.current(settings)
        with metered(client, settings) as own, _left_out(table, named):
            found, rows = fetch_all(own, table, project_id=settings.project_id)
            yield target.begin(found, target.replace(settings.project_id))
            dlt.current.resource_metrics()["rows"] = rows.num_rows
            yield rows

    return build_resource(table, listing)


def _changes(client: Client, settings: Settings, table: RestTable, named: Collection[str]) -> DltResource:
    def changes(
        cursor: dlt.sources.incremental[datetime] = dlt.sources.incremental(  # noqa: B008
            table.cursor or "", initial_value=EPOCH
        ),
    ) -> Iterator[Any]:
        target = Target.current(settings)
        state = claim_state(settings)
        since = cursor.start_value or EPOCH
        cursor.advance(since)  # PostHog applies the range; dlt is not to filter again
        is_first = since == EPOCH or not target.can_merge
        yield target.begin(table, {"disposition": "merge"} if target.can_merge else "replace")
        asked_since = None if is_first else since - timedelta(seconds=table.overlap_s)
        rows = 0
        with metered(client, settings) as own, _left_out(table, named):
            activity = _fetch_activity(own, table, state) if target.can_merge else Activity(None)
            if activity.deleted:
                yield gone_to_table(activity.deleted, table, project_id=settings.project_id)
            asked_since = None if activity.has_restored else asked_since
            for page, newest in iter_changed(own, table, project_id=settings.project_id, since=asked_since):
                rows += page.num_rows
                yield page
                since = max(since, newest)
            cursor.advance(since)  # not before all has come: what is left out half-way is read anew
            dlt.current.resource_metrics()["rows"] = rows

    return build_resource(table, changes)


def _fetch_activity(client: Client, table: RestTable, state: dict[str, Any]) -> Activity:
    """What the activity log tells since the last sync; nothing for a table that does without it.

    Where this plan, key or server has no such log, deleted objects stay as last seen.
    """
    if not table.activity_scope:
        return Activity(None)
    read_until = datetime.fromisoformat(state.get("activity_until", EPOCH.isoformat()))
    since = read_until - ACTIVITY_OVERLAP if "activity_until" in state else None
    try:
        activity = fetch_activity(client, table, since=since)
    except (AccessDeniedError, NotFoundError, QuotaSpentError) as error:
        if error.code == "quota_limit_exceeded":
            raise
        logger.info("%s: what was deleted stays as last seen. %s", table.name, error)
        return Activity(None)
    state["activity_until"] = max(read_until, activity.newest or EPOCH).isoformat()
    return activity


@contextmanager
def _left_out(table: RestTable, named: Collection[str]) -> Iterator[None]:
    """Leaves a table as it is, with a warning, that this PostHog, plan or key does not have.

    Unless it was asked for by name, or is missing since the quota is spent.
    """
    try:
        yield
    except (AccessDeniedError, NotFoundError, QuotaSpentError) as error:
        is_chosen = table.name in named or _is_chosen()
        if not table.is_optional or is_chosen or error.code == "quota_limit_exceeded":
            raise
        logger.warning("%s is left as it is: not every PostHog, plan or key has it. %s", table.name, error)


def _is_chosen() -> bool:
    """Whether somebody has chosen among the running source's tables, with `with_resources`."""
    source, on_request = get_source(), {table.name for table in ON_REQUEST}
    return not set(source.resources) - on_request <= set(source.selected_resources)
