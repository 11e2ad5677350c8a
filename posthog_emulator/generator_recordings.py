"""Recordings of a share of the sessions that a plan made: the SQL that writes them, ten minutes a row.

All of it follows from a session's own events and from hashes of its id, so the same plan gives the same rows.
"""

from __future__ import annotations

from datetime import datetime

from posthog_emulator.session_tables import RECORDING_BATCHES, RECORDINGS

RECORDED_ONE_IN = 5
BATCH_MINUTES = 10
_COLUMNS = {
    "session_id": "session",
    "distinct_id": "argMax(distinct_id, timestamp)",
    "first_timestamp": "min(timestamp) AS first",
    "last_timestamp": "max(timestamp)",
    "first_url": "argMin(url, timestamp)",
    "urls": "groupUniqArrayIf(url, url != '')",
    "click_count": "countIf(event = '$autocapture')",
    "keypress_count": "xxHash64(session, batch, 'keys') % 60",
    "mouse_activity_count": "xxHash64(session, batch, 'mouse') % 400",
    "active_milliseconds": "toInt64(dateDiff('millisecond', min(timestamp), max(timestamp)) / 2)",
    "console_log_count": "xxHash64(session, batch, 'log') % 7",
    "console_warn_count": "xxHash64(session, batch, 'warn') % 3",
    "console_error_count": "countIf(event = '$exception')",
    "size": "20000 + xxHash64(session, batch, 'size') % 400000",
    "event_count": "count() * 40",
    "message_count": "1 + xxHash64(session, batch, 'messages') % 3",
    "snapshot_source": "if(countIf(event = '$screen') > 2, 'mobile', 'web')",
    "snapshot_library": "'web'",
    "retention_period_days": "30",
    "_timestamp": "toDateTime(max(arrived)) + 5",
}


def recording_rows(team_id: int, start: datetime, end: datetime) -> str:
    """Write the SQL; sessions that have a recording already are left alone."""
    between = " AND ".join(
        f"timestamp {sign} fromUnixTimestamp64Micro(toInt64({int(at.timestamp() * 1_000_000)}), 'UTC')"
        for sign, at in ((">=", start), ("<", end))
    )
    recorded = f"SELECT session_id FROM {RECORDINGS} WHERE team_id = {team_id}"
    events = (
        "SELECT `$session_id` AS session, distinct_id, timestamp, event,"
        " ifNull(inserted_at, created_at) AS arrived,"
        f" toStartOfInterval(timestamp, INTERVAL {BATCH_MINUTES} MINUTE) AS batch,"
        " JSONExtractString(properties, '$current_url') AS url"
        f" FROM events WHERE team_id = {team_id} AND {between} AND `$session_id` != ''"
        f" AND cityHash64(`$session_id`) % {RECORDED_ONE_IN} = 0 AND `$session_id` NOT IN ({recorded})"
    )
    return (
        f"INSERT INTO {RECORDING_BATCHES} (team_id, {', '.join(_COLUMNS)})"
        f" SELECT {team_id}, {', '.join(_COLUMNS.values())} FROM ({events}) GROUP BY session, batch"
    )
