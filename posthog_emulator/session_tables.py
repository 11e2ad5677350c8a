"""PostHog's ClickHouse tables of sessions and recordings, and the views that fill them as rows come in.

Sessions are states of aggregate functions, made of the project's own events when those are inserted: an event
deleted later stays counted. PostHog keeps two generations, `raw_sessions` (v2) and `raw_sessions_v3`, and so
does this. Left out: what HogQL's `sessions` does not show (devices, places, flags, event names) and what came
after 2025 (hosts, e-mails). A number where a text should be is read as its text; v2 of PostHog reads nothing.
How HogQL reads these tables is in hogql/sessions.py and hogql/recordings.py. Facts: in PostHog/posthog,
`posthog/models/raw_sessions/sessions_{v2,v3}.py`, `posthog/session_recordings/sql/`.
"""

from collections.abc import Mapping

V2, V3 = "raw_sessions", "raw_sessions_v3"
RECORDINGS = "session_replay_events"

UTM = ("utm_source", "utm_campaign", "utm_medium", "utm_term", "utm_content")
V3_AD_IDS = (
    *("gclsrc", "dclid", "gbraid", "wbraid", "msclkid", "twclid", "li_fat_id", "mc_cid", "igshid", "ttclid"),
    *("epik", "qclid", "sccid", "_kx", "irclid"),
)
V2_AD_IDS = ("gclid", "gad_source", "fbclid", *V3_AD_IDS[:10], *V3_AD_IDS[13:])

_MOMENT = "DateTime64(6, 'UTC')"
_IS_PAGE = "event IN ('$pageview', '$screen')"
_IS_ACTIVITY = "event IN ('$pageview', '$screen', '$autocapture')"
_IS_VERSION_7 = "bitAnd(bitShiftRight(toUInt128(accurateCastOrNull({id}, 'UUID')), 76), 0xF) = 7"
_EPOCH = "toDateTime64(0, 6, 'UTC')"

# Of each event, what sessions are made of: parsed once for both generations, and kept by no table.
_TEXTS = {
    "url": "$current_url",
    "external_url": "$external_click_url",
    "referring_domain": "$referring_domain",
    **{name: name for name in (*UTM, "gclid", "gad_source", "fbclid", *V3_AD_IDS)},
}
_PARSED = {
    **{name: (key, "Nullable(String)") for name, key in _TEXTS.items()},
    "vitals_lcp": ("$web_vitals_LCP_value", "Nullable(Float64)"),
}

_EVENT_COLUMNS = {
    "team_id": "Int64",
    "session_id_v7": "UInt128",
    "distinct_id": "String",
    "timestamp": _MOMENT,
    "inserted_at": f"Nullable({_MOMENT})",
    "event": "String",
    "uuid": "UUID",
}
_PARSED_COLUMNS = ",\n    ".join(f"`{name}` {kind}" for name, (_, kind) in _PARSED.items())
_EVENT_DDL = ",\n    ".join(f"{name} {kind}" for name, kind in _EVENT_COLUMNS.items())

SESSION_EVENTS = f"""
CREATE TABLE IF NOT EXISTS session_events (
    {_EVENT_DDL},
    {_PARSED_COLUMNS}
)
ENGINE = Null
"""

_JSON_TYPE = "Tuple(" + ", ".join(f"`{key}` {kind}" for key, kind in _PARSED.values()) + ")"
SESSION_EVENTS_VIEW = f"""
CREATE MATERIALIZED VIEW IF NOT EXISTS session_events_mv TO session_events AS
WITH JSONExtract(properties, '{_JSON_TYPE}') AS parsed
SELECT team_id, toUInt128(accurateCast(`$session_id`, 'UUID')) AS session_id_v7, distinct_id, timestamp,
    inserted_at, event, uuid,
    {", ".join(f"tupleElement(parsed, '{key}') AS `{name}`" for name, (key, _) in _PARSED.items())}
FROM events
WHERE `$session_id` != '' AND {_IS_VERSION_7.format(id="`$session_id`")}
"""


def _state(function: str, kind: str, ordered_by: str = _MOMENT) -> str:
    return f"AggregateFunction({function}, {kind}, {ordered_by})"


def _columns(columns: Mapping[str, str]) -> str:
    return ",\n    ".join(f"{name} {kind}" for name, kind in columns.items())


_TIMES = {
    "min_timestamp": f"SimpleAggregateFunction(min, {_MOMENT})",
    "max_timestamp": f"SimpleAggregateFunction(max, {_MOMENT})",
    "max_inserted_at": f"SimpleAggregateFunction(max, {_MOMENT})",
}
_URLS = "SimpleAggregateFunction(groupUniqArrayArray, Array(String))"
_UUIDS = "Nullable(UUID)"
_COUNTED = {"pageview": "$pageview", "autocapture": "$autocapture", "screen": "$screen"}

_V2_FIRST = ("referring_domain", *UTM, *V2_AD_IDS)
_V2_COLUMNS = {
    "distinct_id": _state("argMax", "String"),
    **_TIMES,
    "urls": _URLS,
    "entry_url": _state("argMin", "String"),
    "end_url": _state("argMax", "String"),
    "last_external_click_url": _state("argMax", "String"),
    **{f"initial_{name}": _state("argMin", "String") for name in _V2_FIRST},
    **{f"{name}_uniq": f"AggregateFunction(uniq, {_UUIDS})" for name in _COUNTED},
    "page_screen_autocapture_uniq_up_to": f"AggregateFunction(uniqUpTo(1), {_UUIDS})",
    "vitals_lcp": _state("argMin", "Nullable(Float64)"),
}
V2_STATES = tuple(name for name, kind in _V2_COLUMNS.items() if kind.startswith("Aggregate"))
V2_TIMESTAMP = "fromUnixTimestamp(intDiv(toUInt64(bitShiftRight({table}session_id_v7, 80)), 1000))"

RAW_SESSIONS = f"""
CREATE TABLE IF NOT EXISTS {V2} (
    team_id Int64,
    session_id_v7 UInt128,
    {_columns(_V2_COLUMNS)}
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM({V2_TIMESTAMP.format(table="")})
ORDER BY (team_id, toStartOfHour({V2_TIMESTAMP.format(table="")}), cityHash64(session_id_v7), session_id_v7)
SAMPLE BY cityHash64(session_id_v7)
"""


def _uuids_of(condition: str) -> str:
    return f"CAST(if({condition}, uuid, NULL), '{_UUIDS}')"


def _counts(function: str) -> dict[str, str]:
    """Uuids rather than a number, so that an event which comes twice counts once."""
    return {f"{name}_uniq": f"{function}({_uuids_of(_is(event))})" for name, event in _COUNTED.items()}


def _is(event: str) -> str:
    return f"event = '{event}'"


_V2_VALUES = {
    "distinct_id": "argMaxState(one.distinct_id, timestamp)",
    "min_timestamp": "min(timestamp)",
    "max_timestamp": "max(timestamp)",
    "max_inserted_at": "max(coalesce(inserted_at, now64(6)))",
    "urls": "groupUniqArray(nullIf(url, ''))",
    # Not nullable here: an event without a value counts as one with an empty value.
    "entry_url": "argMinState(ifNull(url, ''), timestamp)",
    "end_url": "argMaxState(ifNull(url, ''), timestamp)",
    "last_external_click_url": "argMaxState(ifNull(external_url, ''), timestamp)",
    **{f"initial_{name}": f"argMinState(ifNull(`{name}`, ''), timestamp)" for name in _V2_FIRST},
    **_counts("uniqState"),
    "page_screen_autocapture_uniq_up_to": f"uniqUpToState(1)({_uuids_of(_IS_ACTIVITY)})",
    "vitals_lcp": "argMinState(one.vitals_lcp, timestamp)",
}

_V3_ENTRY = ("referring_domain", *UTM, "gclid", "gad_source", "fbclid")
_CHANNEL = (
    "Tuple(Nullable(String), Nullable(String), Nullable(String), Nullable(String),"
    " Boolean, Boolean, Nullable(String))"
)
_V3_COLUMNS = {
    "distinct_id": _state("argMax", "String"),
    "distinct_ids": "AggregateFunction(groupUniqArray, String)",
    **_TIMES,
    "urls": _URLS,
    "entry_url": _state("argMin", "Nullable(String)"),
    "end_url": _state("argMax", "Nullable(String)"),
    "last_external_click_url": _state("argMax", "Nullable(String)"),
    **{f"entry_{name}": _state("argMin", "Nullable(String)") for name in _V3_ENTRY},
    "entry_has_gclid": _state("argMin", "Boolean"),
    "entry_has_fbclid": _state("argMin", "Boolean"),
    "entry_ad_ids_map": _state("argMin", "Map(String, String)"),
    "entry_ad_ids_set": _state("argMin", "Array(String)"),
    "entry_channel_type_properties": _state("argMin", _CHANNEL),
    **{f"{name}_uniq": f"AggregateFunction(uniqExact, {_UUIDS})" for name in _COUNTED},
    "page_screen_uniq_up_to": f"AggregateFunction(uniqUpTo(1), {_UUIDS})",
    "has_autocapture": "SimpleAggregateFunction(max, Boolean)",
    "has_replay_events": "SimpleAggregateFunction(max, Boolean)",
}
V3_STATES = tuple(
    name
    for name, kind in _V3_COLUMNS.items()
    if kind.startswith("Aggregate") and name != "distinct_ids"  # not shown by HogQL
)

RAW_SESSIONS_V3 = f"""
CREATE TABLE IF NOT EXISTS {V3} (
    team_id Int64,
    session_id_v7 UInt128,
    session_timestamp DateTime64 MATERIALIZED
        fromUnixTimestamp64Milli(toUInt64(bitShiftRight(session_id_v7, 80))),
    {_columns(_V3_COLUMNS)}
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(session_timestamp)
ORDER BY (team_id, session_timestamp, session_id_v7)
"""

# What is said of a session's beginning comes from its pages, and from other events only if there is none.
_PAGES_FIRST = f"if({_IS_PAGE}, timestamp, timestamp + toIntervalYear(1))"
_PAGES_LAST = f"if({_IS_PAGE}, timestamp, timestamp - toIntervalYear(1))"
_AD_ID_PAIRS = ", ".join(f"('{name}', `{name}`)" for name in V3_AD_IDS)
_AD_IDS = f"arrayFilter(id -> isNotNull(id.2), [{_AD_ID_PAIRS}])"
_AD_ID_NAMES = f"arrayMap(id -> id.1, {_AD_IDS})"
_AD_ID_MAP = f"mapFromArrays({_AD_ID_NAMES}, arrayMap(id -> ifNull(id.2, ''), {_AD_IDS}))"
_CHANNEL_VALUES = (
    "tuple(utm_source, utm_medium, utm_campaign, referring_domain,"
    " CAST(isNotNull(gclid), 'Bool'), CAST(isNotNull(fbclid), 'Bool'), gad_source)"
)
_V3_VALUES = {
    "distinct_id": "argMaxState(one.distinct_id, timestamp)",
    "distinct_ids": "groupUniqArrayState(one.distinct_id)",
    "min_timestamp": "min(timestamp)",
    "max_timestamp": "max(timestamp)",
    "max_inserted_at": f"ifNull(max(inserted_at), {_EPOCH})",
    "urls": f"groupUniqArrayIf(url, {_IS_PAGE})",
    "entry_url": f"argMinState(url, {_PAGES_FIRST})",
    "end_url": f"argMaxState(url, {_PAGES_LAST})",
    "last_external_click_url": "argMaxState(external_url, timestamp)",
    **{f"entry_{name}": f"argMinState({name}, {_PAGES_FIRST})" for name in _V3_ENTRY},
    "entry_has_gclid": f"argMinState(CAST(isNotNull(gclid), 'Bool'), {_PAGES_FIRST})",
    "entry_has_fbclid": f"argMinState(CAST(isNotNull(fbclid), 'Bool'), {_PAGES_FIRST})",
    "entry_ad_ids_map": f"argMinState({_AD_ID_MAP}, {_PAGES_FIRST})",
    "entry_ad_ids_set": f"argMinState({_AD_ID_NAMES}, {_PAGES_FIRST})",
    "entry_channel_type_properties": f"argMinState({_CHANNEL_VALUES}, {_PAGES_FIRST})",
    **_counts("uniqExactState"),
    "page_screen_uniq_up_to": f"uniqUpToState(1)({_uuids_of(_IS_PAGE)})",
    "has_autocapture": "CAST(max(event = '$autocapture'), 'Bool')",
    "has_replay_events": "false",
}


def _view(target: str, values: Mapping[str, str]) -> str:
    """Grouped a block at a time, which leaves the rows that ClickHouse makes of them on insert anyway."""
    listed = ", ".join(f"{value} AS {name}" for name, value in values.items())
    return (
        f"CREATE MATERIALIZED VIEW IF NOT EXISTS {target}_mv TO {target} AS"
        f" SELECT team_id, session_id_v7, {listed} FROM session_events AS one GROUP BY team_id, session_id_v7"
    )


RECORDING_DDL = f"""
CREATE TABLE IF NOT EXISTS {RECORDINGS} (
    session_id String,
    team_id Int64,
    distinct_id String,
    min_first_timestamp SimpleAggregateFunction(min, {_MOMENT}),
    max_last_timestamp SimpleAggregateFunction(max, {_MOMENT}),
    block_first_timestamps SimpleAggregateFunction(groupArrayArray, Array({_MOMENT})),
    block_last_timestamps SimpleAggregateFunction(groupArrayArray, Array({_MOMENT})),
    block_urls SimpleAggregateFunction(groupArrayArray, Array(String)),
    first_url AggregateFunction(argMin, Nullable(String), {_MOMENT}),
    all_urls SimpleAggregateFunction(groupUniqArrayArray, Array(String)),
    click_count SimpleAggregateFunction(sum, Int64),
    keypress_count SimpleAggregateFunction(sum, Int64),
    mouse_activity_count SimpleAggregateFunction(sum, Int64),
    active_milliseconds SimpleAggregateFunction(sum, Int64),
    console_log_count SimpleAggregateFunction(sum, Int64),
    console_warn_count SimpleAggregateFunction(sum, Int64),
    console_error_count SimpleAggregateFunction(sum, Int64),
    size SimpleAggregateFunction(sum, Int64),
    message_count SimpleAggregateFunction(sum, Int64),
    event_count SimpleAggregateFunction(sum, Int64),
    snapshot_source AggregateFunction(argMin, LowCardinality(Nullable(String)), {_MOMENT}),
    snapshot_library AggregateFunction(argMin, Nullable(String), {_MOMENT}),
    _timestamp SimpleAggregateFunction(max, DateTime),
    retention_period_days SimpleAggregateFunction(max, Nullable(Int64)),
    is_deleted SimpleAggregateFunction(max, UInt8)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(min_first_timestamp)
ORDER BY (toDate(min_first_timestamp), team_id, session_id)
SETTINGS index_granularity = 512, allow_dimensions_outside_sorting_key = 1
"""

# What one Kafka message says of a recording; the table the control API writes to.
RECORDING_BATCHES = "session_replay_batches"
RECORDING_BATCHES_DDL = f"""
CREATE TABLE IF NOT EXISTS {RECORDING_BATCHES} (
    session_id String,
    team_id Int64,
    distinct_id String,
    first_timestamp {_MOMENT},
    last_timestamp {_MOMENT} DEFAULT first_timestamp,
    block_url Nullable(String),
    first_url Nullable(String),
    urls Array(String) DEFAULT if(isNull(first_url), [], [assumeNotNull(first_url)]),
    click_count Int64,
    keypress_count Int64,
    mouse_activity_count Int64,
    active_milliseconds Int64,
    console_log_count Int64,
    console_warn_count Int64,
    console_error_count Int64,
    size Int64,
    event_count Int64,
    message_count Int64 DEFAULT 1,
    snapshot_source LowCardinality(Nullable(String)),
    snapshot_library Nullable(String),
    retention_period_days Nullable(Int64),
    is_deleted UInt8,
    _timestamp DateTime DEFAULT now()
)
ENGINE = Null
"""
_SUMS = (
    *("click_count", "keypress_count", "mouse_activity_count", "active_milliseconds", "console_log_count"),
    *("console_warn_count", "console_error_count", "size", "message_count", "event_count"),
)
RECORDING_VIEW = f"""
CREATE MATERIALIZED VIEW IF NOT EXISTS {RECORDINGS}_mv TO {RECORDINGS} AS
SELECT session_id, team_id, any(distinct_id) AS distinct_id,
    min(first_timestamp) AS min_first_timestamp, max(last_timestamp) AS max_last_timestamp,
    groupArrayIf(first_timestamp, block_url != '') AS block_first_timestamps,
    groupArrayIf(last_timestamp, block_url != '') AS block_last_timestamps,
    groupArrayIf(assumeNotNull(block_url), block_url != '') AS block_urls,
    argMinState(batch.first_url, first_timestamp) AS first_url,
    groupUniqArrayArray(urls) AS all_urls,
    {", ".join(f"sum(batch.{name}) AS {name}" for name in _SUMS)},
    argMinState(batch.snapshot_source, first_timestamp) AS snapshot_source,
    argMinState(batch.snapshot_library, first_timestamp) AS snapshot_library,
    max(batch._timestamp) AS _timestamp, max(batch.retention_period_days) AS retention_period_days,
    max(batch.is_deleted) AS is_deleted
FROM {RECORDING_BATCHES} AS batch GROUP BY session_id, team_id
"""

# A recording marks its session, and makes one where there are no events: without text, arrived in 1970.
_LATEST, _EARLIEST = (
    f"fromUnixTimestamp64Micro(toInt64({sign}9223372036854775000), 'UTC')" for sign in ("", "-")
)
_NO_TEXT = "CAST(NULL, 'Nullable(String)')"
_RECORDED = {
    "distinct_id": f"argMaxState(distinct_id, {_EARLIEST})",
    "distinct_ids": "groupUniqArrayState(distinct_id)",
    "min_timestamp": "min(first_timestamp)",
    "max_timestamp": "max(first_timestamp)",
    "max_inserted_at": _EPOCH,
    "entry_has_gclid": f"argMinState(CAST(false, 'Bool'), {_LATEST})",
    "entry_has_fbclid": f"argMinState(CAST(false, 'Bool'), {_LATEST})",
    "entry_ad_ids_map": f"argMinState(CAST(map(), 'Map(String, String)'), {_LATEST})",
    "entry_ad_ids_set": f"argMinState(CAST([], 'Array(String)'), {_LATEST})",
    "entry_channel_type_properties": (
        f"argMinState(CAST(tuple({_NO_TEXT}, {_NO_TEXT}, {_NO_TEXT}, {_NO_TEXT}, false, false, {_NO_TEXT}),"
        f" '{_CHANNEL}'), {_LATEST})"
    ),
    "has_replay_events": "true",
}
RECORDED_SESSIONS_VIEW = (
    f"CREATE MATERIALIZED VIEW IF NOT EXISTS {V3}_recordings_mv TO {V3} AS"
    " SELECT team_id, session_id_v7, "
    + ", ".join(f"out_{name} AS {name}" for name in _RECORDED)
    + " FROM (SELECT team_id, toUInt128(accurateCast(session_id, 'UUID')) AS session_id_v7, "
    + ", ".join(f"{value} AS out_{name}" for name, value in _RECORDED.items())
    + f" FROM {RECORDING_BATCHES} WHERE {_IS_VERSION_7.format(id='session_id')}"
    " GROUP BY team_id, session_id_v7)"
)

SESSION_DDL = (
    SESSION_EVENTS,
    RAW_SESSIONS,
    RAW_SESSIONS_V3,
    SESSION_EVENTS_VIEW,
    _view(V2, _V2_VALUES),
    _view(V3, _V3_VALUES),
    RECORDING_DDL,
    RECORDING_BATCHES_DDL,
    RECORDING_VIEW,
    RECORDED_SESSIONS_VIEW,
)
