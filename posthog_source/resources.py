"""A dlt resource per catalogue row: whole lists, and what changed of others.

Not here: events (`events`), people (`people`), members of cohorts (`membership`), a person's own queries
(`queries`), settings (`source`), pages (`pagination`, `rest`), how dlt is told (`destination`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import dlt
from dlt.sources import DltResource

from posthog_source.catalog import COHORTS, GROUP_TYPES, GROUPS, INSIGHTS, SESSION_REPLAYS, SESSIONS
from posthog_source.changing import build_changing
from posthog_source.client import Client
from posthog_source.config import EventsSettings, PeopleSettings, Settings
from posthog_source.destination import Target, build_resource, claim_state, metered
from posthog_source.errors import NotFoundError
from posthog_source.events import EPOCH, build_events, utc_now
from posthog_source.membership import build_membership
from posthog_source.people import build_people
from posthog_source.queries import build_query
from posthog_source.query_tables import QuerySettings
from posthog_source.rest import fetch_all, iter_changed
from posthog_source.tables import RestTable

logger = logging.getLogger("posthog_source")


def build_resources(
    client: Client,
    settings: Settings,
    *,
    events: EventsSettings,
    people: PeopleSettings,
    queries: Sequence[QuerySettings] = (),
    clock: Callable[[], datetime] = utc_now,
) -> list[DltResource]:
    """All tables of the catalogue as dlt resources, in its order, and a person's own queries."""
    return [
        build_events(client, settings, events, clock=clock),
        *build_people(client, settings, events=events, people=people, clock=clock),
        build_changing(client, settings, GROUPS, people, clock=clock),
        _listing(client, settings, GROUP_TYPES),
        build_changing(client, settings, SESSIONS, people, clock=clock),
        build_changing(client, settings, SESSION_REPLAYS, people, clock=clock),
        _listing(client, settings, COHORTS),
        build_membership(client, settings, people, clock=clock),
        _changes(client, settings, INSIGHTS),
        *(build_query(client, settings, query, clock=clock) for query in queries),
    ]


def _listing(client: Client, settings: Settings, table: RestTable) -> DltResource:
    def listing() -> Iterator[Any]:
        target = Target.current(settings)
        with metered(client, settings) as own:
            try:
                rows = fetch_all(own, table, project_id=settings.project_id)
            except NotFoundError as error:
                if not table.is_optional:
                    raise
                logger.warning("%s is left as it is: not every PostHog serves it. %s", table.name, error)
                return
            yield target.begin(table, target.replace(settings.project_id))
            dlt.current.resource_metrics()["rows"] = rows.num_rows
            yield rows

    return build_resource(table, listing)


def _changes(client: Client, settings: Settings, table: RestTable) -> DltResource:
    def changes(
        cursor: dlt.sources.incremental[datetime] = dlt.sources.incremental(  # noqa: B008
            table.cursor or "", initial_value=EPOCH
        ),
    ) -> Iterator[Any]:
        target = Target.current(settings)
        claim_state(settings)
        since = cursor.start_value or EPOCH
        cursor.advance(since)  # PostHog applies the range; dlt is not to filter again
        is_first = since == EPOCH or not target.can_merge
        yield target.begin(table, {"disposition": "merge"} if target.can_merge else "replace")
        asked_since = None if is_first else since - timedelta(seconds=table.overlap_s)
        rows = 0
        with metered(client, settings) as own:
            for page, newest in iter_changed(own, table, project_id=settings.project_id, since=asked_since):
                rows += page.num_rows
                yield page
                cursor.advance(max(since, newest))
            dlt.current.resource_metrics()["rows"] = rows

    return build_resource(table, changes)
