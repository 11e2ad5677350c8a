"""The resource insight_results: the numbers behind saved insights, with the answers that they were read from.

An answer replaces what it tells of: all of an insight's rows of the dates it has. Older dates stay, so that
history grows beyond the range that an insight shows. Each insight costs a request; PostHog computes only
where `refresh` says so. Not here: what a result means (`insights`), how dlt is told (`destination`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import dlt
import pyarrow as pa
from dlt.sources import DltResource

from posthog_source.arrow import items_to_table, parse_instant, stamp
from posthog_source.catalog import INSIGHT_RESULT_DOCUMENTS, INSIGHT_RESULTS
from posthog_source.client import Client
from posthog_source.config import ResultsSettings, Settings
from posthog_source.definitions import INSIGHTS
from posthog_source.destination import MERGE, Target, build_resource, metered
from posthog_source.errors import (
    AccessDeniedError,
    ApiError,
    NotFoundError,
    QueryRefusedError,
    ServerError,
    TooHeavyError,
    UnexpectedAnswerError,
)
from posthog_source.insights import (
    Item,
    document_of,
    error_of,
    is_computed,
    is_known,
    is_wanted,
    kind_of,
    rows_of,
)
from posthog_source.prefetch import ordered_prefetch
from posthog_source.rest import fetch_all

MERGE_KEY = ("project_id", "insight_id", "compare", "date")
"""What an answer replaces. Not without `compare`: what is a previous period was once the current one."""

OWN_FAULTS = (AccessDeniedError, NotFoundError, QueryRefusedError, TooHeavyError, ServerError)
"""Refusals that may be one insight's own; after all others PostHog would refuse the next one too."""

MOST_SERVER_ERRORS = 3
"""In a row: then it is not the insights that are broken."""

logger = logging.getLogger("posthog_source")


def build_results(
    client: Client, settings: Settings, config: ResultsSettings, *, clock: Callable[[], datetime]
) -> DltResource:
    """The results as a dlt resource, which is not selected: each insight costs a request."""

    def insight_results() -> Iterator[Any]:
        target = Target.current(settings)
        disposition = MERGE if target.can_merge else "append"
        tally = _Tally()
        with metered(client, settings) as own:
            wanted = _wanted(own, settings, config)
            yield from target.merge_beside(INSIGHT_RESULT_DOCUMENTS, (), disposition)
            yield target.begin(INSIGHT_RESULTS, disposition)
            for insight in _iter_computed(own, wanted, config, tally, depth=settings.look_ahead):
                document = items_to_table(
                    [document_of(insight)], INSIGHT_RESULT_DOCUMENTS, project_id=settings.project_id
                )
                document = stamp(document, synced_at=clock())
                yield dlt.mark.with_table_name(document, INSIGHT_RESULT_DOCUMENTS.name)
                rows = _rows(insight, settings.project_id)
                tally.rows += rows.num_rows
                yield rows
            tally.tell()
            dlt.current.resource_metrics().update(tally.metrics())

    resource = build_resource(INSIGHT_RESULTS, insight_results)
    resource.apply_hints(merge_key=MERGE_KEY)
    resource.selected = False
    return resource


@dataclass
class _Tally:
    """What came of the insights."""

    rows: int = 0
    insights: int = 0
    failed: int = 0
    not_computed: int = 0
    computed_at: list[datetime] = field(default_factory=list)

    def add(self, insight: Item) -> None:
        self.insights += 1
        if isinstance(at := insight.get("last_refresh"), str):
            self.computed_at.append(parse_instant(at))

    def metrics(self) -> dict[str, int]:
        return {
            "rows": self.rows,
            "insights": self.insights,
            "insights_failed": self.failed,
            "insights_not_computed": self.not_computed,
        }

    def tell(self) -> None:
        if self.computed_at:
            oldest, newest = (at(self.computed_at).isoformat(timespec="seconds") for at in (min, max))
            logger.info("insight_results: PostHog computed them between %s and %s.", oldest, newest)
        if self.not_computed:
            logger.warning(
                "insight_results: PostHog holds no result of %d insights, which are left as they are. To "
                'have it compute them, set refresh = "blocking" under [sources.posthog.results].',
                self.not_computed,
            )


def _wanted(client: Client, settings: Settings, config: ResultsSettings) -> list[Item]:
    """The insights to read, by number."""
    table = replace(INSIGHTS, params={**INSIGHTS.params, "order": "id"})
    _, listed = fetch_all(client, table, project_id=settings.project_id)
    wanted = [insight for insight in listed.to_pylist() if is_wanted(insight, config)]
    if missing := sorted(set(config.short_ids) - {str(insight["short_id"]) for insight in wanted}):
        logger.warning(
            "insight_results: there is no insight %s that this key may see. Set short_ids under "
            "[sources.posthog.results].",
            ", ".join(missing),
        )
    return wanted


def _iter_computed(
    client: Client, wanted: Iterable[Item], config: ResultsSettings, tally: _Tally, *, depth: int
) -> Iterator[Item]:
    """The insights that have a result, as PostHog answers each; the others are counted and told of."""
    server_errors = 0
    for listed, (insight, refusal) in _iter_answers(client, wanted, config, depth=depth):
        server_errors = server_errors + 1 if isinstance(refusal, ServerError) else 0
        if refusal and server_errors > MOST_SERVER_ERRORS:
            raise refusal
        if reason := refusal or error_of(insight):
            tally.failed += 1
            name = f"{listed['short_id']} ({listed['name'] or listed['derived_name'] or 'no name'})"
            logger.warning("insight_results: insight %s is left as it is, the others go on. %s", name, reason)
        elif not is_computed(insight):
            tally.not_computed += 1
        else:
            tally.add(insight)
            yield insight


def _iter_answers(
    client: Client, wanted: Iterable[Item], config: ResultsSettings, *, depth: int
) -> Iterator[tuple[Item, tuple[Item, ApiError | None]]]:
    """Each insight as it was listed, with what PostHog answers: the insight, or nothing and why."""
    params = {"refresh": config.refresh}
    computes = config.refresh != "force_cache"

    def fetch(listed: Item) -> tuple[Item, ApiError | None]:
        path = f"insights/{listed['id']}/"
        try:
            return client.get(path, params, rate="clickhouse", is_heavy=computes), None
        except OWN_FAULTS as error:
            return {}, error

    scope = client.cancel_scope()
    return ordered_prefetch(scope.bind(fetch), wanted, depth=depth, cancel=scope.cancel)


def _rows(insight: Item, project_id: int) -> pa.Table:
    """The numbers of an insight, as far as they can be told."""
    kind = kind_of(insight)
    if not is_known(kind):
        logger.warning(
            "insight_results: insight %s is a %s, of which no rows are made. Its result is in %s.",
            insight.get("short_id"),
            kind or "query of no kind",
            INSIGHT_RESULT_DOCUMENTS.name,
        )
    try:
        return items_to_table(rows_of(insight), INSIGHT_RESULTS, project_id=project_id)
    except UnexpectedAnswerError as error:
        logger.warning("insight_results: no rows are made of insight %s. %s", insight.get("short_id"), error)
        return items_to_table([], INSIGHT_RESULTS, project_id=project_id)
