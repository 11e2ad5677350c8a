"""Syncs a PostHog project into any dlt destination. Run it every hour; each run takes what is new.

    python pipelines/sync.py --destination duckdb
    python pipelines/sync.py --destination bigquery --dataset analytics --tables events persons

Settings come from .dlt/ or the environment: SOURCES__POSTHOG__PROJECT_ID, SOURCES__POSTHOG__API_KEY.
"""

import argparse
import sys

import dlt
from dlt.common.destination.exceptions import UnknownDestinationModule

from posthog_source import find_cause, run_sync


def main() -> int:
    """Returns the exit code: 0 done, 2 not done, with one line on stderr that says why."""
    parser = argparse.ArgumentParser(description="Sync a PostHog project into a warehouse.")
    parser.add_argument("--destination", default="duckdb", help="any dlt destination")
    parser.add_argument("--dataset", default="posthog_data", help="schema in the warehouse")
    parser.add_argument("--tables", nargs="*", default=(), help="all of them unless named")
    chosen = parser.parse_args()
    try:
        pipeline = dlt.pipeline(
            "posthog",
            destination=chosen.destination,
            dataset_name=chosen.dataset,
            progress=dlt.progress.log(log_period=5, dump_system_stats=False),
        )
        print(run_sync(pipeline, tables=chosen.tables))
    except UnknownDestinationModule:
        parser.error(f"dlt knows no destination {chosen.destination!r}")
    except Exception as error:
        if (cause := find_cause(error)) is None:
            raise
        print(cause, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
