"""check: whether a sync would work, and what the first one takes.

Asks PostHog for each table and the warehouse whether it can be written; loads nothing. Not here: how a table
is asked for (`access`), the command line (`cli`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import dlt
from dlt.common.typing import TSecretStrValue
from dlt.extract.exceptions import ResourceExtractionError
from dlt.sources import DltResource

from posthog_source.access import TableCheck, check_table, waiting_minutes
from posthog_source.catalog import ON_REQUEST, TABLES, choose_tables, events_table
from posthog_source.client import Client
from posthog_source.config import EventsSettings, Settings, build_settings, parse_instant
from posthog_source.errors import AccessDeniedError, SettingsError, find_cause
from posthog_source.pipeline import destination_of
from posthog_source.query_tables import parse_queries
from posthog_source.source import EventsConfig, Written, table_settings
from posthog_source.tables import RestTable, Table

PROBE_TABLE = "_posthog_check"

YEAR = timedelta(days=365.25)
NEARLY = timedelta(days=2)
"""Of a year's end: a project has events on most days, though not on all."""


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What was found.

    Attributes:
        base_url: PostHog's address.
        project_id: The project.
        project_name: Its name, where the key may read it.
        timezone: Its timezone, which only PostHog's own pages use: everything is exported in UTC.
        destination: Where to, and whether that can be written; None where nobody said where.
        tables: By table.
        missing: Names of tables that cannot be read and would end a sync: those that every PostHog has, and
            those that were asked for by name. Others are left out with a warning.
        hidden_before: Before when PostHog may have events that it does not show; None where nothing looks so.
        waiting_minutes: How long PostHog's limits alone hold up a first sync.
    """

    base_url: str
    project_id: int
    project_name: str | None
    timezone: str | None
    destination: str | None
    tables: tuple[TableCheck, ...]
    missing: tuple[str, ...]
    hidden_before: datetime | None
    waiting_minutes: float

    @property
    def requests(self) -> int:
        """Of a first sync."""
        return sum(table.requests for table in self.tables)

    @property
    def advice(self) -> list[str]:
        """What to mend, what a sync needs first; a line each."""
        where = "In PostHog > Settings > Personal API keys, give the key"
        lacking = [(table.name in self.missing, scope) for table in self.tables for scope in table.lacks]
        needed = dict.fromkeys(scope for is_needed, scope in lacking if is_needed)
        others = dict.fromkeys(scope for is_needed, scope in lacking if scope not in needed)
        told: dict[str, list[str]] = {}
        for table in self.tables:
            if table.advice and not table.lacks:
                told.setdefault(table.advice, []).append(table.name)
        return [
            *([f"{where} {', '.join(needed)}: a sync needs them."] if needed else []),
            *([f"{where} {', '.join(others)}: a sync leaves their tables out."] if others else []),
            *(f"{', '.join(names)}: {what}" for what, names in told.items()),
        ]

    @property
    def read_bytes(self) -> int:
        """What PostHog reads for the events of a first sync."""
        return sum(table.read_bytes or 0 for table in self.tables)


def check(pipeline: dlt.Pipeline | None = None, **settings: Any) -> Checkup:
    """Asks PostHog and the warehouse whether a sync would work.

    Args:
        pipeline: Where to; None checks PostHog alone.
        settings: Of `posthog_source`, as far as they change what can be read: `project_id`, `api_key`,
            `host`, `start_date`, `tables`, `events`; the rest come from `.dlt/` or the environment.

    Raises:
        SettingsError: A setting cannot be right, or the warehouse cannot be written.
        AuthenticationError, NotFoundError, ConnectionFailedError, …: No table can be read at all.
    """
    if pipeline:
        pipeline.activate()  # settings may stand below its name
    destination = _check_destination(pipeline) if pipeline else None
    try:
        (found,) = list(_checked(**settings))
    except ResourceExtractionError as error:
        raise find_cause(error) or error from None
    return Checkup(destination=destination, **found)


@dlt.source(name="posthog", section="posthog")
def _checked(
    project_id: str | int | None = None,
    api_key: TSecretStrValue | None = None,
    host: str = "us",
    start_date: Any = None,
    tables: Written = None,
    events: EventsConfig | None = None,
    query_timeout_s: Written = None,
    max_attempts: Written = None,
    queries_per_minute: Written = None,
    queries_per_hour: Written = None,
    queries: Written = None,
) -> DltResource:
    """One row, the checkup's. A source, since dlt gives settings to nothing else."""
    settings = build_settings(
        project_id=project_id,
        api_key=api_key,
        host=host,
        start_date=start_date,
        query_timeout_s=query_timeout_s,
        max_attempts=max_attempts,
        queries_per_minute=queries_per_minute,
        queries_per_hour=queries_per_hour,
    )
    wanted, named = choose_tables(tables, [query.name for query in parse_queries(queries)])
    chosen = table_settings(EventsSettings, "events", events or EventsConfig())
    known = (events_table(chosen), *TABLES[1:], *ON_REQUEST)
    on_request = {table.name for table in ON_REQUEST} - named
    asked = [table for table in known if table.name in wanted - on_request]

    def rows() -> Iterator[dict[str, Any]]:
        with Client(settings) as client:
            project = _fetch_project(client)
            found = tuple(check_table(client, settings, table) for table in asked)
        yield {
            "base_url": settings.base_url,
            "project_id": settings.project_id,
            "project_name": project.get("name"),
            "timezone": project.get("timezone"),
            "tables": found,
            "missing": tuple(
                one.name
                for one, table in zip(found, asked, strict=True)
                if one.access != "readable" and (table.name in named or not _is_optional(table))
            ),
            "hidden_before": _hidden_before(found, project, settings),
            "waiting_minutes": waiting_minutes(found, settings),
        }

    return dlt.resource(rows, name=PROBE_TABLE)


def _is_optional(table: Table) -> bool:
    return isinstance(table, RestTable) and table.is_optional


def is_cut_short(first_at: datetime, created_at: datetime, now: datetime) -> bool:
    """Whether a project's first event looks like where PostHog begins to show them, not where they begin.

    A plan keeps events for some years, and older ones just do not appear (query_api.md 2.7): then the first
    one is of about so many whole years ago, and the project is older.
    """
    years = round((now - first_at) / YEAR)
    is_round = abs(now - first_at - years * YEAR) < NEARLY
    return years > 0 and is_round and created_at < first_at - NEARLY


def _hidden_before(
    found: Sequence[TableCheck], project: Mapping[str, Any], settings: Settings
) -> datetime | None:
    created_at = parse_instant(project.get("created_at"), "created_at")
    first_at = next((one.first_at for one in found if one.read_bytes), None)
    if settings.start or not (created_at and first_at):
        return None
    return first_at if is_cut_short(first_at, created_at, datetime.now(UTC)) else None


def _fetch_project(client: Client) -> dict[str, Any]:
    """The project itself; nothing where the key may not read it, which no table needs."""
    try:
        return client.get("")
    except AccessDeniedError:
        return {}


def _check_destination(pipeline: dlt.Pipeline) -> str:
    """Where to, in words.

    Raises:
        SettingsError: It cannot be reached or written.
    """
    kind = destination_of(pipeline).destination_name
    try:
        with pipeline.destination_client() as client:
            client.initialize_storage()
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingsError(f"{kind} cannot be written: {said}") from error
    return f"{kind}, dataset {pipeline.dataset_name}"
