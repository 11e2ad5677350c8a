"""The squash: PostHog's weekly job that writes into stored events whose person they are now.

It rewrites `person_id` in place and drops the overrides that said so. It decides no merges (persons.py), and
touches nothing else of an event. Facts: query_api.md 5.4; `posthog/dags/person_overrides.py` in PostHog.
"""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.deletion import AT_ONCE
from posthog_emulator.state import Project

OLDER_THAN_S = 172_800.0


def squash(
    clickhouse: ClickHouse, project: Project, *, now: datetime, older_than_s: float = OLDER_THAN_S
) -> dict[str, int]:
    """Squash the overrides written so long ago; gives the events rewritten and the override rows dropped.

    A newer override of the same distinct id stays and still counts. As in PostHog the newest old row says the
    person, even if it also says that the distinct id was deleted.
    """
    before = int((now - timedelta(seconds=older_than_s)).timestamp() * 1_000_000)
    snapshot = f"squash_{uuid.uuid4().hex}"
    clickhouse.execute(
        f"CREATE TABLE {snapshot} (distinct_id String, person_id UUID, version Int64)"
        " ENGINE = Join(ANY, LEFT, distinct_id)"
    )
    try:
        clickhouse.execute(
            f"INSERT INTO {snapshot} SELECT distinct_id, argMax(person_id, version), max(version)"
            f" FROM person_distinct_id_overrides WHERE team_id = {project.id}"
            f" AND _timestamp < fromUnixTimestamp64Micro(toInt64({before})) GROUP BY distinct_id"
        )
        return {
            "events": _rewrite_events(clickhouse, project, snapshot),
            "overrides": _drop_overrides(clickhouse, project, snapshot),
        }
    finally:
        clickhouse.execute(f"DROP TABLE {snapshot}")


def _rewrite_events(clickhouse: ClickHouse, project: Project, snapshot: str) -> int:
    """Patch the rows instead of rewriting their parts: that also works while nothing merges."""
    owner = f"joinGet('{snapshot}', 'person_id', distinct_id)"
    where = (
        f"team_id = {project.id} AND distinct_id IN (SELECT distinct_id FROM {snapshot})"
        f" AND person_id != {owner}"
    )
    count = clickhouse.number(f"SELECT count() FROM events WHERE {where}")
    if count:
        clickhouse.execute(f"UPDATE events SET person_id = {owner} WHERE {where}")
    return count


def _drop_overrides(clickhouse: ClickHouse, project: Project, snapshot: str) -> int:
    where = (
        f"team_id = {project.id} AND distinct_id IN (SELECT distinct_id FROM {snapshot})"
        f" AND version <= joinGet('{snapshot}', 'version', distinct_id)"
    )
    count = clickhouse.number(f"SELECT count() FROM person_distinct_id_overrides WHERE {where}")
    if count:
        clickhouse.execute(f"DELETE FROM person_distinct_id_overrides WHERE {where} {AT_ONCE}")
    return count
