"""HogQL's `sessions`: its columns in PostHog's two generations, and the SELECT that adds up their rows.

A project reads generation 2 unless it or the query says `v3` (`modifiers.sessionTableVersion`; `auto` is v2).
Neither has a `person_id`: PostHog dropped it in October 2025. Which part of a generation is read follows from
the query's condition (session_where.py). Facts: in PostHog/posthog,
`posthog/hogql/database/schema/sessions_{v2,v3}.py`, `posthog/hogql/database/database.py`.
"""

from collections.abc import Mapping, Sequence

from posthog_emulator.hogql.channel_type import Entry, channel_type_sql
from posthog_emulator.hogql.literals import identifier
from posthog_emulator.hogql.schema import Column, Table
from posthog_emulator.session_tables import (
    UTM,
    V2,
    V2_AD_IDS,
    V2_STATES,
    V2_TIMESTAMP,
    V3,
    V3_AD_IDS,
    V3_STATES,
)

BOUNCE_S = 10  # sessions_v1.py: DEFAULT_BOUNCE_RATE_DURATION_SECONDS


def _hidden(kind: str) -> Column:
    return Column("", kind, nullable=True, in_asterisk=False)


def _columns(kinds: Mapping[str, str]) -> dict[str, Column]:
    return {name: Column("", kind, nullable=True) for name, kind in kinds.items()}


_URL_KINDS = {
    "$urls": "array",
    "$num_uniq_urls": "number",
    "$entry_current_url": "text",
    "$entry_pathname": "text",
    "$entry_hostname": "text",
    "$end_current_url": "text",
    "$end_pathname": "text",
    "$end_hostname": "text",
    "$entry_referring_domain": "text",
}
_TIME_KINDS = {"$start_timestamp": "datetime", "$end_timestamp": "datetime", "max_inserted_at": "datetime"}
_COUNT_KINDS = {"$pageview_count": "number", "$autocapture_count": "number", "$screen_count": "number"}
_EXIT = {"$exit_current_url": _hidden("text"), "$exit_pathname": _hidden("text")}
_IDS = {
    "session_id_v7": _hidden("number"),
    "team_id": _hidden("number"),
    "id": _hidden("text"),
}

SESSIONS_V2 = Table(
    "sessions",
    V2,
    {
        **_IDS,
        **_columns(
            {
                "session_id": "text",
                "distinct_id": "text",
                **_TIME_KINDS,
                **_URL_KINDS,
                **{f"$entry_{name}": "text" for name in (*UTM, *V2_AD_IDS)},
                **_COUNT_KINDS,
                "$channel_type": "text",
                "$session_duration": "number",
            }
        ),
        "duration": _hidden("number"),
        **_columns(
            {
                "$is_bounce": "bool",
                "$last_external_click_url": "text",
                "$page_screen_autocapture_count_up_to": "",
            }
        ),
        **_EXIT,
        **_columns({"$vitals_lcp": "number"}),
    },
    is_lazy=True,
)

SESSIONS_V3 = Table(
    "sessions",
    V3,
    {
        **_IDS,
        **_columns({"session_id": "text", "session_timestamp": "", "distinct_id": "text"}),
        **_columns({**_TIME_KINDS, **_URL_KINDS, "$last_external_click_url": "text"}),
        **_EXIT,
        **_columns({f"$entry_{name}": "text" for name in (*UTM, "fbclid")}),
        # Declared without a type, and so not in `*`, though they are plain text.
        "$entry_gclid": _hidden(""),
        "$entry_gad_source": _hidden(""),
        **_columns({"$entry_has_fbclid": "bool", "$entry_has_gclid": "bool", **_COUNT_KINDS}),
        "$page_screen_count_up_to": _hidden(""),
        **_columns({"$has_autocapture": "bool"}),
        "$entry_channel_type_properties": _hidden(""),
        **_columns({"$channel_type": "text", "$session_duration": "number"}),
        "duration": _hidden("number"),
        **_columns({"$is_bounce": "bool", "$has_replay_events": "bool"}),
        **_columns(
            {
                name: kind
                for ad_id in V3_AD_IDS
                for name, kind in ((f"$entry_{ad_id}", "text"), (f"$entry_has_{ad_id}", "bool"))
            }
        ),
    },
    is_lazy=True,
)


def _raw_columns(states: Sequence[str]) -> dict[str, Column]:
    """The rows as they are stored; a state has no form in an answer, but argMinMerge and its like read it."""
    return {
        "session_id_v7": Column("session_id_v7", "number", in_asterisk=False),
        "team_id": Column("team_id", "number", in_asterisk=False),
        "min_timestamp": Column("min_timestamp", "datetime"),
        "max_timestamp": Column("max_timestamp", "datetime"),
        "max_inserted_at": Column("max_inserted_at", "datetime"),
        "urls": Column("urls", "array"),
        **{name: Column(name, "", in_asterisk=False) for name in states},
    }


RAW_SESSIONS_V2 = Table("raw_sessions", V2, _raw_columns(V2_STATES))
RAW_SESSIONS_V3 = Table(
    "raw_sessions_v3",
    V3,
    {
        **_raw_columns(V3_STATES),
        "session_timestamp": Column("session_timestamp", "", in_asterisk=False),
        "has_autocapture": Column("has_autocapture", "bool"),
        "has_replay_events": Column("has_replay_events", "bool"),
    },
)
SESSION_TABLES = (SESSIONS_V2, RAW_SESSIONS_V2, RAW_SESSIONS_V3)


def is_sessions(table: Table | None) -> bool:
    """Whether a table is `sessions`, of either generation."""
    return table is SESSIONS_V2 or table is SESSIONS_V3


def began_sql(table: Table) -> str:
    """Build the SQL of when a stored session began by its id, which is what its rows are sorted by."""
    return f"{V3}.session_timestamp" if table is SESSIONS_V3 else V2_TIMESTAMP.format(table=f"{V2}.")


def sessions_select(table: Table, fields: Mapping[str, Column], team_id: int, bound: str) -> str:
    """Build the subquery for one use of `sessions`: one row each, with the columns that are asked of it."""
    values = _V3_SQL if table is SESSIONS_V3 else _V2_SQL
    names = [name for name in table.columns if name in fields or name == "session_id_v7"]
    stored = {name: f"{table.stored}.{name}" for name in names}
    listed = ", ".join(f"{values.get(name, stored[name])} AS {identifier(name)}" for name in names)
    condition = f"equals({table.stored}.team_id, {team_id})"
    condition = f"and({condition}, {bound})" if bound else condition
    keys = ", ".join(stored[name] for name in names if name not in values)
    return f"SELECT {listed} FROM {table.stored} WHERE {condition} GROUP BY {keys}"


def _first(column: str) -> str:
    return f"argMinMerge({column})"


def _last(column: str) -> str:
    return f"argMaxMerge({column})"


def _common_sql(table: str) -> dict[str, str]:
    # ClickHouse keeps the halves of a UUID in the other order than those of a number of 128 bits.
    number = f"{table}.session_id_v7"
    text = f"toString(reinterpretAsUUID(bitOr(bitShiftLeft({number}, 64), bitShiftRight({number}, 64))))"
    start, end = f"min({table}.min_timestamp)", f"max({table}.max_timestamp)"
    urls = f"arrayDistinct(arrayFlatten(groupArray({table}.urls)))"
    duration = f"dateDiff('second', {start}, {end})"
    return {
        "id": text,
        "session_id": text,
        "$start_timestamp": start,
        "$end_timestamp": end,
        "max_inserted_at": f"max({table}.max_inserted_at)",
        "$urls": urls,
        "$num_uniq_urls": f"length({urls})",
        "$session_duration": duration,
        "duration": duration,
    }


def _page_sql(entry: str, end: str) -> dict[str, str]:
    return {
        "$entry_current_url": entry,
        "$entry_pathname": f"path({entry})",
        "$entry_hostname": f"domain({entry})",
        "$end_current_url": end,
        "$end_pathname": f"path({end})",
        "$end_hostname": f"domain({end})",
        "$exit_current_url": end,
        "$exit_pathname": f"path({end})",
    }


def _v2_sql() -> dict[str, str]:
    def text(value: str) -> str:
        return f"nullIf(nullIf({value}, 'null'), '')"

    entries = ("referring_domain", *UTM, *V2_AD_IDS)
    first = {f"$entry_{name}": text(_first(f"{V2}.initial_{name}")) for name in entries}
    common = _common_sql(V2)
    pageviews, autocaptures = f"uniqMerge({V2}.pageview_uniq)", f"uniqMerge({V2}.autocapture_uniq)"
    return {
        **common,
        **_page_sql(text(_first(f"{V2}.entry_url")), text(_last(f"{V2}.end_url"))),
        **first,
        "distinct_id": f"nullIf({_last(f'{V2}.distinct_id')}, 'null')",
        "$pageview_count": pageviews,
        "$autocapture_count": autocaptures,
        "$screen_count": f"uniqMerge({V2}.screen_uniq)",
        "$last_external_click_url": text(_last(f"{V2}.last_external_click_url")),
        "$page_screen_autocapture_count_up_to": f"uniqUpToMerge(1)({V2}.page_screen_autocapture_uniq_up_to)",
        "$vitals_lcp": _first(f"{V2}.vitals_lcp"),
        "$is_bounce": _bounce_sql(pageviews, f"greater({autocaptures}, 0)", common["duration"]),
        "$channel_type": channel_type_sql(
            Entry(
                source=first["$entry_utm_source"],
                medium=first["$entry_utm_medium"],
                campaign=first["$entry_utm_campaign"],
                referring_domain=first["$entry_referring_domain"],
                has_gclid=f"isNotNull({first['$entry_gclid']})",
                has_fbclid=f"isNotNull({first['$entry_fbclid']})",
                gad_source=first["$entry_gad_source"],
            )
        ),
    }


def _v3_sql() -> dict[str, str]:
    entries = ("referring_domain", *UTM, "gclid", "gad_source", "fbclid", "has_gclid", "has_fbclid")
    common = _common_sql(V3)
    pages, autocapture = f"uniqUpToMerge(1)({V3}.page_screen_uniq_up_to)", f"max({V3}.has_autocapture)"
    channel = _first(f"{V3}.entry_channel_type_properties")
    source, medium, campaign, domain, has_gclid, has_fbclid, gad_source = (
        f"tupleElement({channel}, {n})" for n in range(1, 8)
    )
    ad_ids: dict[str, str] = {}
    for name in V3_AD_IDS:
        ad_ids[f"$entry_{name}"] = f"arrayElement({_first(f'{V3}.entry_ad_ids_map')}, '{name}')"
        ad_ids[f"$entry_has_{name}"] = f"has({_first(f'{V3}.entry_ad_ids_set')}, '{name}')"
    return {
        **common,
        **_page_sql(_first(f"{V3}.entry_url"), _last(f"{V3}.end_url")),
        **{f"$entry_{name}": _first(f"{V3}.entry_{name}") for name in entries},
        **ad_ids,
        "distinct_id": _last(f"{V3}.distinct_id"),
        "$pageview_count": f"uniqExactMerge({V3}.pageview_uniq)",
        "$autocapture_count": f"uniqExactMerge({V3}.autocapture_uniq)",
        "$screen_count": f"uniqExactMerge({V3}.screen_uniq)",
        "$last_external_click_url": _last(f"{V3}.last_external_click_url"),
        "$page_screen_count_up_to": pages,
        "$has_autocapture": autocapture,
        "$has_replay_events": f"max({V3}.has_replay_events)",
        "$entry_channel_type_properties": channel,
        "$is_bounce": _bounce_sql(pages, autocapture, common["duration"]),
        "$channel_type": channel_type_sql(
            Entry(source, medium, campaign, domain, has_gclid, has_fbclid, gad_source)
        ),
    }


def _bounce_sql(pages: str, has_autocapture: str, duration: str) -> str:
    """Nothing without a page; else whether there was one page, no click, and no ten seconds."""
    stayed = f"or(greater({pages}, 1), {has_autocapture}, greaterOrEquals({duration}, {BOUNCE_S}))"
    return f"if(equals({pages}, 0), NULL, not({stayed}))"


_V2_SQL, _V3_SQL = _v2_sql(), _v3_sql()
