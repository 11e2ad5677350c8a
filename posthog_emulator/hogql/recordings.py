"""HogQL's tables of session recordings, and the SELECTs that add up their rows.

`raw_session_replay_events` shows the stored rows, several a recording until they are merged, and it alone
tells when one was written (`_timestamp`). `session_replay_events` adds up what is asked of it and groups by
all else: `snapshot_source`, `snapshot_library` and `retention_period_days` split a recording whose rows
disagree, and the first two are states that no answer can hold. `grouped_session_replay_events`, of 2026, does
it right.
Left out: AI tags and the joins (`events`, `person`, `session`, `console_logs`). Facts: in PostHog/posthog,
`posthog/hogql/database/schema/session_replay_events.py`.
"""

from collections.abc import Mapping

from posthog_emulator.hogql.literals import identifier
from posthog_emulator.hogql.schema import Column, Table
from posthog_emulator.session_tables import RECORDINGS

_SUMMED = (
    *("click_count", "keypress_count", "mouse_activity_count", "active_milliseconds", "console_log_count"),
    *("console_warn_count", "console_error_count", "size", "event_count", "message_count"),
)
_IDS = {
    "session_id": Column("session_id"),
    "team_id": Column("team_id", "number", in_asterisk=False),
}
_SUMS = {name: Column(name, "number") for name in _SUMMED}
_TIMES = {"start_time": Column("", "datetime"), "end_time": Column("", "datetime")}
_KEPT = {
    "snapshot_source": Column("snapshot_source", nullable=True),
    "snapshot_library": Column("snapshot_library", nullable=True),
    "retention_period_days": Column("retention_period_days", "number", nullable=True),
    "is_deleted": Column("is_deleted", "number"),
}


def _urls(*, in_asterisk: bool) -> dict[str, Column]:
    return {
        "first_url": Column("first_url", nullable=True, in_asterisk=in_asterisk),
        "all_urls": Column("all_urls", "array", nullable=True),
    }


RAW_RECORDINGS = Table(
    "raw_session_replay_events",
    RECORDINGS,
    {
        **_IDS,
        "distinct_id": Column("distinct_id"),
        "min_first_timestamp": Column("min_first_timestamp", "datetime"),
        "max_last_timestamp": Column("max_last_timestamp", "datetime"),
        **_urls(in_asterisk=False),
        **_SUMS,
        **_KEPT,
        "_timestamp": Column("_timestamp", "datetime"),
    },
)
SPLIT_RECORDINGS = Table(
    "session_replay_events",
    RECORDINGS,
    {
        **_IDS,
        "distinct_id": Column("distinct_id"),
        **_urls(in_asterisk=True),
        **_SUMS,
        **_KEPT,
        **_TIMES,
    },
    is_lazy=True,
)
GROUPED_RECORDINGS = Table(
    "grouped_session_replay_events",
    RECORDINGS,
    {
        **_IDS,
        "distinct_id": Column("distinct_id"),
        **_TIMES,
        **_urls(in_asterisk=True),
        **_SUMS,
        **_KEPT,
    },
    is_lazy=True,
)
RECORDING_TABLES = (RAW_RECORDINGS, SPLIT_RECORDINGS, GROUPED_RECORDINGS)

_SPLIT_SQL = {
    "start_time": f"min({RECORDINGS}.min_first_timestamp)",
    "end_time": f"max({RECORDINGS}.max_last_timestamp)",
    "first_url": f"argMinMerge({RECORDINGS}.first_url)",
    "all_urls": f"groupUniqArrayArray({RECORDINGS}.all_urls)",
    **{name: f"sum({RECORDINGS}.{name})" for name in _SUMMED},
    "distinct_id": f"any({RECORDINGS}.distinct_id)",
    "is_deleted": f"max({RECORDINGS}.is_deleted)",
}
_GROUPED_SQL = _SPLIT_SQL | {
    "snapshot_source": f"argMinMerge({RECORDINGS}.snapshot_source)",
    "snapshot_library": f"argMinMerge({RECORDINGS}.snapshot_library)",
    "retention_period_days": f"max({RECORDINGS}.retention_period_days)",
    "distinct_id": f"argMax({RECORDINGS}.distinct_id, {RECORDINGS}.max_last_timestamp)",
}


def is_recordings(table: Table) -> bool:
    """Whether a table adds up the rows of recordings."""
    return table is SPLIT_RECORDINGS or table is GROUPED_RECORDINGS


def recordings_select(table: Table, fields: Mapping[str, Column], team_id: int) -> str:
    """Build the subquery for one use of a table of recordings, with the columns that are asked of it."""
    values = _GROUPED_SQL if table is GROUPED_RECORDINGS else _SPLIT_SQL
    keys = [name for name in table.columns if name in fields and name not in values]
    grouped = {name: f"{RECORDINGS}.{name}" for name in keys}
    if table is GROUPED_RECORDINGS:
        grouped |= {name: f"{RECORDINGS}.{name}" for name in _IDS}
    listed = ", ".join(f"{values.get(name, grouped.get(name))} AS {identifier(name)}" for name in fields)
    group_by = f" GROUP BY {', '.join(grouped.values())}" if grouped else ""
    guard = f"equals({RECORDINGS}.team_id, {team_id})"
    return f"SELECT {listed or '1'} FROM {RECORDINGS} WHERE {guard}{group_by}"
