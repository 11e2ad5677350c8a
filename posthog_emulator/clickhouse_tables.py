"""PostHog's ClickHouse tables: its names, types, engines, partitions and sort keys.

What a query reads follows from these, so they are part of the truth this emulator tells. Left out:
replication, sharding, codecs, skip indexes and the per-project materialised properties. Sessions and
recordings are in session_tables.py. Facts: in PostHog/posthog,
`posthog/models/{event,person,group,cohort}/sql.py`.
"""

from posthog_emulator.session_tables import SESSION_DDL


def _from_properties(name: str) -> str:
    # PostHog's expression, asked only of rows that hold the name: parsing each row seven times costs seconds.
    value = f"replaceRegexpAll(JSONExtractRaw(properties, '{name}'), '^\"|\"$', '')"
    return f"if(position(properties, '\"{name}\"') = 0, '', {value})"


# Without numbered blocks rows can be deleted only by a mutation, which takes seconds, and waits for ever
# while merges are stopped (generator_nasty.py). No query reads them before something is deleted or squashed.
NUMBERED_BLOCKS = "SETTINGS enable_block_number_column = 1, enable_block_offset_column = 1"

# Written at insert from `properties`, as PostHog's server does.
EXTRACTED = ("$group_0", "$group_1", "$group_2", "$group_3", "$group_4", "$session_id", "$window_id")
_EXTRACTED_COLUMNS = "".join(
    f"`{name}` String MATERIALIZED {_from_properties(name)},\n    " for name in EXTRACTED
)
_GROUP_COLUMNS = "".join(
    f"group{n}_properties String,\n    group{n}_created_at DateTime64(3),\n    " for n in range(5)
)

_ELEMENT_HREF = 'extract(elements_chain, \'(?::|")href="(.*?)"\')'
_ELEMENT_TEXTS = 'arrayDistinct(extractAll(elements_chain, \'(?::|")text="(.*?)"\'))'
_ELEMENT_IDS = 'arrayDistinct(extractAll(elements_chain, \'(?::|")attr_id="(.*?)"\'))'
_TAGS = "a|button|form|input|select|textarea|label"
_TAGS_TYPE = "Enum8('a' = 1, 'button', 'form', 'input', 'select', 'textarea', 'label')"
_ELEMENT_TAGS = f"arrayDistinct(extractAll(elements_chain, '(?:^|;)({_TAGS})(?:[.]|$|:)'))"

EVENTS = f"""
CREATE TABLE IF NOT EXISTS events (
    uuid UUID,
    event String,
    properties String,
    timestamp DateTime64(6, 'UTC'),
    team_id Int64,
    distinct_id String,
    elements_chain String,
    created_at DateTime64(6, 'UTC') DEFAULT now64(6),
    person_id UUID,
    person_created_at DateTime64(3),
    person_properties String,
    {_GROUP_COLUMNS}person_mode Enum8('full' = 0, 'propertyless' = 1, 'force_upgrade' = 2),
    historical_migration Bool,
    {_EXTRACTED_COLUMNS}elements_chain_href String MATERIALIZED {_ELEMENT_HREF},
    elements_chain_texts Array(String) MATERIALIZED {_ELEMENT_TEXTS},
    elements_chain_ids Array(String) MATERIALIZED {_ELEMENT_IDS},
    elements_chain_elements Array({_TAGS_TYPE}) MATERIALIZED {_ELEMENT_TAGS},
    _timestamp DateTime DEFAULT now(),
    _offset UInt64,
    inserted_at Nullable(DateTime64(6, 'UTC')) DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(_timestamp)
PARTITION BY toYYYYMM(timestamp)
ORDER BY (team_id, toDate(timestamp), event, cityHash64(distinct_id), cityHash64(uuid))
SAMPLE BY cityHash64(distinct_id)
{NUMBERED_BLOCKS}
"""

PERSON = """
CREATE TABLE IF NOT EXISTS person (
    id UUID,
    created_at DateTime64(3),
    team_id Int64,
    properties String,
    is_identified Int8,
    is_deleted Int8,
    version UInt64,
    last_seen_at Nullable(DateTime64(3)),
    _timestamp DateTime DEFAULT now(),
    _offset UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (team_id, id)
"""

PERSON_DISTINCT_ID2 = """
CREATE TABLE IF NOT EXISTS person_distinct_id2 (
    team_id Int64,
    distinct_id String,
    person_id UUID,
    is_deleted Int8,
    version Int64,
    _timestamp DateTime DEFAULT now(),
    _offset UInt64,
    _partition UInt64
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (team_id, distinct_id)
SETTINGS index_granularity = 512
"""

PERSON_DISTINCT_ID_OVERRIDES = (
    PERSON_DISTINCT_ID2.replace("person_distinct_id2", "person_distinct_id_overrides").rstrip()
    + f", {NUMBERED_BLOCKS.removeprefix('SETTINGS ')}"
)

GROUPS = """
CREATE TABLE IF NOT EXISTS groups (
    group_type_index UInt8,
    group_key String,
    created_at DateTime64(3),
    team_id Int64,
    group_properties String,
    _timestamp DateTime DEFAULT now(),
    _offset UInt64
)
ENGINE = ReplacingMergeTree(_timestamp)
ORDER BY (team_id, group_type_index, group_key)
"""

COHORTPEOPLE = f"""
CREATE TABLE IF NOT EXISTS cohortpeople (
    person_id UUID,
    cohort_id Int64,
    team_id Int64,
    sign Int8,
    version UInt64
)
ENGINE = CollapsingMergeTree(sign)
ORDER BY (team_id, cohort_id, person_id, version)
{NUMBERED_BLOCKS}
"""

PERSON_STATIC_COHORT = f"""
CREATE TABLE IF NOT EXISTS person_static_cohort (
    id UUID DEFAULT generateUUIDv4(),
    person_id UUID,
    cohort_id Int64,
    team_id Int64,
    _timestamp DateTime DEFAULT now(),
    _offset UInt64
)
ENGINE = ReplacingMergeTree(_timestamp)
ORDER BY (team_id, cohort_id, person_id, id)
{NUMBERED_BLOCKS}
"""

# What HogQL shows of `query_log_archive`; `query_id` is ClickHouse's own id of the query.
QUERY_LOG = """
CREATE TABLE IF NOT EXISTS query_log (
    event_date Date DEFAULT toDate(event_time),
    event_time DateTime('UTC'),
    ended_at_us Int64,
    team_id Int64,
    query_id String,
    client_query_id String,
    endpoint String,
    query String,
    query_start_time DateTime('UTC'),
    query_duration_ms UInt64,
    name String,
    created_by Int64,
    read_rows UInt64,
    read_bytes UInt64,
    result_rows UInt64,
    result_bytes UInt64,
    memory_usage UInt64,
    status String,
    exception_code Int32,
    exception_name String,
    is_personal_api_key_request Bool,
    api_key_mask String,
    cpu_microseconds Int64,
    real_time_microseconds Int64
)
ENGINE = MergeTree
ORDER BY (team_id, event_time)
"""

DDL = (
    EVENTS,
    PERSON,
    PERSON_DISTINCT_ID2,
    PERSON_DISTINCT_ID_OVERRIDES,
    GROUPS,
    COHORTPEOPLE,
    PERSON_STATIC_COHORT,
    QUERY_LOG,
    *SESSION_DDL,
)
