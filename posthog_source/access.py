"""One table's check: whether the key may read it, its rows, what a first sync takes.

A request or two for each table. Not here: settings and warehouses (`checkup`), how tables are read
(`pagination`, `rest`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from posthog_source.catalog import COHORTS
from posthog_source.client import REST_RATES, Client
from posthog_source.config import EventsSettings, PeopleSettings, Settings
from posthog_source.definitions import INSIGHTS
from posthog_source.errors import AccessDeniedError, NotFoundError, QuotaSpentError
from posthog_source.pagination import Reader, Size
from posthog_source.rate_limit import Rate
from posthog_source.rest import fetch_size
from posthog_source.tables import HogqlTable, RateClass, RestTable, Table
from posthog_source.windows import Window

Access = Literal["readable", "denied", "absent"]
"""denied: the key lacks a scope, or may not read the project; absent: not in the plan or on the server."""

READ_SHARE = 1.25
"""What PostHog reads for what it hands out, at most and in pages of 25,000 rows (docs/cost.md)."""

PLAN_REQUESTS = 2
"""Questions before the first page of a table that is read in slices: how many rows, and where they lie."""


@dataclass(frozen=True, kw_only=True)
class TableCheck:
    """One table, as the key sees it.

    Attributes:
        name: The table.
        access: Whether it can be read.
        lacks: Scopes that the key has to be given, where that is what is wrong.
        advice: What is wrong, and what to do.
        rows: How many there are; None where PostHog does not tell.
        first_at: Time of the first row, of a table that has times.
        last_at: Of the last one.
        requests: Of a first sync, at least.
        read_bytes: What PostHog reads for a first sync, and bills where it bills that: by the size of the
            newest rows. None where that is not known.
        kept_up: How later syncs follow PostHog, in words.
        rate: Which of PostHog's limits they count against.
    """

    name: str
    access: Access
    lacks: tuple[str, ...] = ()
    advice: str = ""
    rows: int | None = None
    first_at: datetime | None = None
    last_at: datetime | None = None
    requests: int = 0
    read_bytes: int | None = None
    kept_up: str = ""
    rate: RateClass = "queries"


def check_table(client: Client, settings: Settings, table: Table) -> TableCheck:
    """Asks for a table's size.

    Raises:
        AuthenticationError, RateLimitedError, ServerError, …: All but what tells that this one table cannot
            be read.
    """
    try:
        return replace(_check(client, settings, table), kept_up=table.kept_up)
    except AccessDeniedError as error:
        lacks = tuple(scope for scope in table.scopes if f"'{scope}'" in str(error))
        return TableCheck(name=table.name, access="denied", lacks=lacks, advice=str(error))
    except (NotFoundError, QuotaSpentError) as error:
        return TableCheck(name=table.name, access="absent", advice=str(error))


def waiting_minutes(checks: Iterable[TableCheck], settings: Settings) -> float:
    """How long PostHog's limits alone hold up the requests of all those tables."""
    requests: dict[RateClass, int] = {}
    for check in checks:
        requests[check.rate] = requests.get(check.rate, 0) + check.requests
    return sum(_wait_s(count, _rates(rate, settings)) for rate, count in requests.items()) / 60


def _check(client: Client, settings: Settings, table: Table) -> TableCheck:
    if isinstance(table, HogqlTable):
        if COHORTS.scopes[0] in table.scopes:
            fetch_size(client, COHORTS)  # which cohorts have members, a list tells
        page_rows = (EventsSettings if table.time_column else PeopleSettings).page_rows
        reader = Reader(
            client, table, project_id=settings.project_id, page_rows=page_rows, look_ahead=1, may_repeat=False
        )
        since = settings.start if table.arrival_column else None
        size = reader.fetch_size(Window(since, settings.end or datetime.now(UTC)) if since else None)
        return TableCheck(
            name=table.name,
            access="readable",
            rows=size.rows,
            first_at=size.first_at,
            last_at=size.last_at,
            requests=PLAN_REQUESTS * len(table.sources) + -(-size.rows // page_rows),
            read_bytes=_fetch_read_bytes(reader, size) if table.arrival_column else None,
        )
    if not isinstance(table, RestTable):  # insight_results: a request for each insight
        insights = _check(client, settings, INSIGHTS)
        return replace(insights, name=table.name, rows=None, requests=insights.rows or 1)
    rows = fetch_size(client, table)
    pages = -(-(rows or 1) // (table.page_rows or rows or 1))
    return TableCheck(
        name=table.name,
        access="readable",
        rows=None if table.nested or table.each else rows,
        requests=(rows or 0) + 1 if table.each else max(1, pages) + max(0, len(table.passes) - 1),
        rate=table.rate_class,
    )


def _fetch_read_bytes(reader: Reader, size: Size) -> int | None:
    if size.last_at is None:
        return 0
    end = min(size.last_at, datetime.now(UTC))  # some clients' clocks are fast
    row_bytes = reader.fetch_row_bytes(Window(end - timedelta(days=1), end + timedelta(microseconds=1)))
    return round(size.rows * row_bytes * READ_SHARE) if row_bytes else None


def _rates(rate: RateClass, settings: Settings) -> tuple[Rate, ...]:
    if rate == "queries":
        return (Rate(settings.queries_per_minute, 60), Rate(settings.queries_per_hour, 3_600))
    return REST_RATES[rate]


def _wait_s(requests: int, rates: Iterable[Rate]) -> float:
    return max(max(0, requests - rate.calls) / rate.calls * rate.per_s for rate in rates)
