"""A dlt source that exports PostHog into any warehouse: every row once, at any size, in flat memory.

import dlt
from posthog_source import posthog_source

pipeline = dlt.pipeline("posthog", destination="duckdb", dataset_name="posthog_data")
pipeline.run(posthog_source())
"""

from posthog_source.errors import PosthogSourceError, find_cause
from posthog_source.identity import create_person_view
from posthog_source.report import Budget, RunReport
from posthog_source.runs import run_backfill, run_sync
from posthog_source.source import EventsConfig, PeopleConfig, ResultsConfig, posthog_query, posthog_source

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "EventsConfig",
    "PeopleConfig",
    "PosthogSourceError",
    "ResultsConfig",
    "RunReport",
    "__version__",
    "create_person_view",
    "find_cause",
    "posthog_query",
    "posthog_source",
    "run_backfill",
    "run_sync",
]
