"""A dlt source that exports PostHog into any warehouse: every row once, at any size, in flat memory.

import dlt
from posthog_source import posthog_source

pipeline = dlt.pipeline("posthog", destination="duckdb", dataset_name="posthog_data")
pipeline.run(posthog_source())

What is behind the door is imported when it is asked for: dlt takes a second, and the command line's help
does without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posthog_source.checkup import Checkup, check
    from posthog_source.comparison import Verification
    from posthog_source.errors import PosthogSourceError, find_cause
    from posthog_source.identity import create_person_view
    from posthog_source.ranges import BackfillRange, plan_backfill
    from posthog_source.report import Budget, RunReport
    from posthog_source.runs import run_backfill, run_sync
    from posthog_source.source import EventsConfig, PeopleConfig, ResultsConfig, posthog_query, posthog_source
    from posthog_source.verification import verify

__version__ = "0.1.0"

__all__ = [
    "BackfillRange",
    "Budget",
    "Checkup",
    "EventsConfig",
    "PeopleConfig",
    "PosthogSourceError",
    "ResultsConfig",
    "RunReport",
    "Verification",
    "__version__",
    "check",
    "create_person_view",
    "find_cause",
    "plan_backfill",
    "posthog_query",
    "posthog_source",
    "run_backfill",
    "run_sync",
    "verify",
]

_ROOMS = {
    "BackfillRange": "ranges",
    "Budget": "report",
    "Checkup": "checkup",
    "EventsConfig": "source",
    "PeopleConfig": "source",
    "PosthogSourceError": "errors",
    "ResultsConfig": "source",
    "RunReport": "report",
    "Verification": "comparison",
    "check": "checkup",
    "create_person_view": "identity",
    "find_cause": "errors",
    "plan_backfill": "ranges",
    "posthog_query": "source",
    "posthog_source": "source",
    "run_backfill": "runs",
    "run_sync": "runs",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
