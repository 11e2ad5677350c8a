"""Reads a span of PostHog events again, whatever a sync has read. Stopped, it goes on when started again.

    python pipelines/backfill.py 2024-01-01 2026-01-01 --destination duckdb
    python pipelines/backfill.py 2024-01-01 2026-01-01 --destination snowflake --parallel 2

Give it the destination and dataset of pipelines/sync.py, whose syncs may go on meanwhile.
"""

import argparse
import sys

import dlt
from dlt.common.destination.exceptions import UnknownDestinationModule

from posthog_source import find_cause, run_backfill


def main() -> int:
    """Returns the exit code: 0 done, 2 not done, with one line on stderr that says why."""
    parser = argparse.ArgumentParser(description="Read a span of PostHog events again.")
    parser.add_argument("start", help="first day, such as 2024-01-01")
    parser.add_argument("end", help="first day not to be read")
    parser.add_argument("--destination", default="duckdb", help="any dlt destination")
    parser.add_argument("--dataset", default="posthog_data", help="schema in the warehouse")
    parser.add_argument("--parallel", type=int, default=1, help="ranges read at once")
    chosen = parser.parse_args()
    try:
        pipeline = dlt.pipeline("posthog", destination=chosen.destination, dataset_name=chosen.dataset)
        print(run_backfill(pipeline, chosen.start, chosen.end, parallel=chosen.parallel))
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
