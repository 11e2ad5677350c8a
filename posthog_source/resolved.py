"""A source's settings as dlt would give them, without building resources: for verify and plan_backfill.

Not here: what settings mean (`config`), the source itself (`source`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from dlt.common.configuration import known_sections, with_config
from dlt.common.configuration.container import Container
from dlt.common.pipeline import PipelineContext
from dlt.common.typing import TSecretStrValue  # noqa: F401  # dlt looks up what a source's arguments are here
from dlt.sources import DltSource

from posthog_source.catalog import choose_tables
from posthog_source.config import EventsSettings, Settings, build_settings
from posthog_source.pipeline import settings_below
from posthog_source.query_tables import parse_queries
from posthog_source.source import EventsConfig, PeopleConfig, ResultsConfig, Written, table_settings


@dataclass(frozen=True)
class Resolved:
    """Arguments, toml and the environment, as one.

    Attributes:
        settings: What all tables share.
        events: Settings of events.
        wanted: Names of the tables.
        named: Those of them that are called by their own names.
    """

    settings: Settings
    events: EventsSettings
    wanted: Set[str]
    named: Set[str]


def resolve(source: Callable[..., DltSource], **given: Any) -> Resolved:
    """What the source would be made with, from the places where it looks, those of the active pipeline first.

    Args:
        source: `posthog_source`, or a clone of it.
        given: Arguments of the source.

    Raises:
        SettingsError: A setting is missing or cannot be right.
    """

    def read(**written: Any) -> Resolved:
        return _resolved(**written)

    signature = inspect.signature(source)
    parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in signature.parameters.values()]
    read.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    section = str(getattr(source, "section", None) or "posthog")
    looking = with_config(read, sections=(known_sections.SOURCES, section, name_of(source)))
    active = Container()[PipelineContext]
    name = active.pipeline().pipeline_name if active.is_active() else None
    with settings_below(name):
        found: Resolved = looking(**given)
    return found


def name_of(source: Callable[..., DltSource]) -> str:
    """Under which name dlt keeps a source's schema and state."""
    return str(getattr(source, "name", None) or "posthog")


def replacing(events: EventsSettings) -> EventsConfig:
    """The same settings of events, but that rows are replaced by windows, whatever syncs do.

    Marked as resolved, so that dlt takes them as they are: the environment would have the last word else.
    """
    config = EventsConfig(**vars(events) | {"promote": dict(events.promote), "write_mode": "window"})
    config.resolve()
    return config


def _resolved(
    *,
    tables: Written,
    events: EventsConfig | None,
    people: PeopleConfig | None,  # noqa: ARG001
    results: ResultsConfig | None,  # noqa: ARG001
    queries: Written,
    **shared: Any,
) -> Resolved:
    wanted, named = choose_tables(tables, [query.name for query in parse_queries(queries)])
    chosen = table_settings(EventsSettings, "events", events or EventsConfig())
    return Resolved(build_settings(**shared), chosen, wanted, named)
