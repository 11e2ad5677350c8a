"""The body of POST /query/, checked: what is asked, how fresh the answer must be, and for whom.

Nothing is run here. A member PostHog has and this emulator has not is refused, never ignored.
"""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from posthog_emulator.envelope import ApiError
from posthog_emulator.hogql.scope import Context
from posthog_emulator.state import SESSION_TABLE_VERSIONS, Project, ProjectSettings

REFRESH_MODES = {
    "blocking",
    "force_blocking",
    "async",
    "force_async",
    "async_except_on_cache_miss",
    "lazy_async",
}
BODY_MEMBERS = {"query", "refresh", "client_query_id", "async", "name", "personal_api_key"}
QUERY_MEMBERS = {"kind", "query", "values", "modifiers", "name", "tags", "version"}
EMPTY_MEMBERS = {"filters", "variables", "filters_override", "variables_override", "response", "explain"}
PERSON_MODES = {
    "person_id_override_properties_on_events": True,
    "person_id_no_override_properties_on_events": False,
}


@dataclass(frozen=True)
class QueryRequest:
    """One accepted request."""

    project: Project
    query: str
    refresh: str
    client_query_id: str
    name: str
    modifiers: Mapping[str, Any]
    cache_key: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def label(self) -> str:
        """ClickHouse's id of one run of it: whoever asks twice under one id runs two queries."""
        return f"{self.label_prefix}{uuid.uuid4().hex[:8]}"

    @property
    def label_prefix(self) -> str:
        """What the ids of all its runs begin with."""
        return label_prefix(self.project.id, self.client_query_id)

    def context(self) -> Context:
        """Everything the printer needs to know of the asker."""
        settings = self.project.settings
        mode = self.modifiers.get("personsOnEventsMode", "person_id_override_properties_on_events")
        return Context(
            team_id=self.project.id,
            timezone=self.project.timezone,
            converts_timezone=self.modifiers.get("convertToProjectTimezone") is not False,
            overrides_person_id=PERSON_MODES[mode],
            max_rows=settings.max_rows,
            default_rows=settings.default_rows,
            offset_allowed=settings.offset_allowed,
            hidden_columns=_hidden_columns(settings),
            hidden_tables=settings.hidden_tables,
            denied_tables=settings.denied_tables,
            query_log_delay_s=settings.query_log_delay_s,
            old_query_log=settings.old_query_log,
            sessions_v3=self._session_version() == "v3",
            cohorts=_current_cohorts(self.project),
            values=self.values,
        )

    def _session_version(self) -> str:
        return str(self.modifiers.get("sessionTableVersion", self.project.settings.session_table_version))


def label_prefix(project_id: int, client_query_id: str) -> str:
    """What the ids begin with that ClickHouse gives to the queries of one client_query_id."""
    return f"{project_id}_{client_query_id}_"


def read_request(body: bytes, project: Project) -> QueryRequest:
    """Check a request's body."""
    data = _json_object(body)
    query = data.get("query")
    if not isinstance(query, dict):
        raise ApiError(400, "This field is required.", code="required", attr="query")
    if query.get("kind") != "HogQLQuery":
        raise ApiError(400, f"posthog_emulator answers only HogQLQuery, not {query.get('kind')!r}.")
    if not isinstance(query.get("query"), str):
        raise ApiError(400, "Field required", attr="query.query")
    _refuse_unknown(data, BODY_MEMBERS)
    _refuse_unknown(query, QUERY_MEMBERS)
    modifiers = query.get("modifiers") or {}
    _check_modifiers(modifiers)
    return QueryRequest(
        project=project,
        query=query["query"],
        refresh=_refresh_mode(data),
        client_query_id=str(data.get("client_query_id") or uuid.uuid4().hex),
        name=str(data.get("name") or query.get("name") or ""),
        modifiers=modifiers,
        cache_key=_cache_key(query, project),
        values=query.get("values") or {},
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"JSON parse error - {error}", code="parse_error") from error
    if not isinstance(data, dict):
        raise ApiError(400, "Invalid data. Expected a dictionary.")
    return data


def _refuse_unknown(data: Mapping[str, Any], known: set[str]) -> None:
    for name, value in data.items():
        if name in known or (name in EMPTY_MEMBERS and not value):
            continue
        raise ApiError(400, f"posthog_emulator does not know {name!r} in a query.", attr=name)


def _check_modifiers(modifiers: Any) -> None:
    if not isinstance(modifiers, dict):
        raise ApiError(400, "Input should be a valid dictionary", attr="query.modifiers")
    for name, value in modifiers.items():
        is_known = (
            (name == "convertToProjectTimezone" and (value is None or isinstance(value, bool)))
            or (name == "personsOnEventsMode" and value in PERSON_MODES)
            or (name == "sessionTableVersion" and value in SESSION_TABLE_VERSIONS)
        )
        if not is_known:
            raise ApiError(400, f"posthog_emulator does not emulate the modifier {name}={value!r}.")


def _refresh_mode(data: Mapping[str, Any]) -> str:
    refresh = data.get("refresh")
    if refresh is None and data.get("async"):
        return "async"
    if refresh is True:
        return "force_blocking"
    if refresh in {None, False, "force_cache"}:
        return "blocking"  # posthog/api/query.py: this endpoint always computes what is stale
    if refresh not in REFRESH_MODES:
        raise ApiError(400, f"{refresh!r} is not a valid refresh mode.", attr="refresh")
    return str(refresh)


def _cache_key(query: Mapping[str, Any], project: Project) -> str:
    payload = {
        "query": {name: value for name, value in query.items() if name != "tags"},
        "team": project.id,
        "timezone": project.timezone,
    }
    digest = hashlib.sha256(orjson.dumps(payload, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return f"cache_{project.id}_{digest}"


def _hidden_columns(settings: ProjectSettings) -> tuple[str, ...]:
    last_seen = ("persons.last_seen_at", "raw_persons.last_seen_at")
    return settings.hidden_columns + (() if settings.person_last_seen else last_seen)


def _current_cohorts(project: Project) -> list[tuple[int, int]]:
    return [
        (int(cohort["id"]), int(cohort["version"]))
        for cohort in project.cohorts
        if not cohort["is_static"] and not cohort["deleted"] and cohort["version"] is not None
    ]
