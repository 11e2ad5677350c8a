"""A dlt resource per catalogue row: whole snapshots, whole lists, and what changed.

Not here: events (`events`), settings (`source`), pages (`pagination`, `rest`), how dlt is told
(`destination`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

import dlt
from dlt.sources import DltResource

from posthog_source.catalog import (
    COHORT_PEOPLE,
    COHORTS,
    INSIGHTS,
    PERSON_DISTINCT_IDS,
    PERSONS,
    HogqlTable,
    RestTable,
)
from posthog_source.client import Client
from posthog_source.config import EventsSettings, Settings, TableSettings
from posthog_source.destination import Target, build_resource, claim_state, metered
from posthog_source.events import EPOCH, build_events
from posthog_source.pagination import Reader
from posthog_source.rest import fetch_all, iter_changed


def build_resources(
    client: Client, settings: Settings, *, events: EventsSettings, people: TableSettings
) -> list[DltResource]:
    """All tables of the catalogue as dlt resources, in its order."""
    return [
        build_events(client, settings, events),
        _snapshot(client, settings, PERSONS, people),
        _snapshot(client, settings, PERSON_DISTINCT_IDS, people),
        _listing(client, settings, COHORTS),
        _snapshot(client, settings, COHORT_PEOPLE, people),
        _changes(client, settings, INSIGHTS),
    ]


def _snapshot(client: Client, settings: Settings, table: HogqlTable, config: TableSettings) -> DltResource:
    def snapshot() -> Iterator[Any]:
        target = Target.current(settings)
        with metered(client, settings) as own:
            reader = Reader(
                own,
                table,
                project_id=settings.project_id,
                page_rows=config.page_rows,
                look_ahead=settings.look_ahead,
                may_repeat=target.can_merge,
            )
            plans = reader.fetch_plans(None)
            yield from target.load(
                reader,
                chain.from_iterable(reader.iter_pages(plan) for plan in plans),
                lambda: target.replace(settings.project_id),
                rows=sum(plan.rows for plan in plans),
            )

    return build_resource(table, snapshot)


def _listing(client: Client, settings: Settings, table: RestTable) -> DltResource:
    def listing() -> Iterator[Any]:
        target = Target.current(settings)
        with metered(client, settings) as own:
            yield target.begin(table, target.replace(settings.project_id))
            rows = fetch_all(own, table, project_id=settings.project_id)
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
