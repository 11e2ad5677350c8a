"""The REST lists around the query endpoint: projects, users, organizations, cohorts, insights and persons.

Each keeps the paging, order and filter quirks that PostHog's has. Results of insights are `insight_results`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from posthog_emulator import definitions
from posthog_emulator.auth import Gate
from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.envelope import ApiError, json_response
from posthog_emulator.hogql import literals
from posthog_emulator.insight_results import InsightResults
from posthog_emulator.paging import limit_and_offset, link, page_of
from posthog_emulator.state import Project, State

COHORT_PERSON_DISTINCT_IDS = 10
INSIGHT_RESULT_FIELDS = (
    "order",
    "deleted",
    "cache_target_age",
    "next_allowed_client_refresh",
    "last_modified_by",
    "is_sample",
    "effective_restriction_level",
    "effective_privilege_level",
)
_NO_RESULT: Mapping[str, Any] = {
    "result": None,
    "hasMore": None,
    "columns": None,
    "is_cached": False,
    "query_status": None,
    "hogql": None,
    "types": None,
    "resolved_date_range": None,
    "alerts": [],
}
COHORT_HEAVY_FIELDS = ("filters", "query", "groups")

_RELATIVE_DATE = re.compile(r"^-?(\d+)([hdwmqy])$")
_RELATIVE_DAYS = {"d": 1, "w": 7, "m": 30, "q": 91, "y": 365}


class Rest:
    """The REST routes of one server."""

    def __init__(self, clickhouse: ClickHouse, state: State, gate: Gate) -> None:
        self._clickhouse = clickhouse
        self._state = state
        self._gate = gate
        self._results = InsightResults(clickhouse, state)
        self._shuffles = 0

    def routes(self) -> list[Route]:
        """Projects, users, organizations, cohorts, insights and persons."""
        project = "/api/projects/{project_id}"
        gate = self._gate
        cohort_read, insight_read, person_read = ["cohort:read"], ["insight:read"], ["person:read"]
        members = gate.project(
            self._cohort_persons, ["cohort:read", "person:read"], "clickhouse", burst_only=True
        )
        persons = gate.project(self._persons, person_read, "clickhouse", burst_only=True)
        return [
            Route("/api/projects", gate.account(self._projects, ["project:read"])),
            Route(project, gate.project(self._project, ["project:read"])),
            Route("/api/users/@me", gate.account(self._me, ["user:read"], restricted_keys=True)),
            Route("/api/users/{uuid}", gate.account(self._other_user, ["user:read"], restricted_keys=True)),
            Route("/api/organizations", gate.account(self._organizations, ["organization:read"])),
            Route(
                "/api/organizations/{organization_id}",
                gate.account(self._organization, ["organization:read"]),
            ),
            Route(f"{project}/cohorts", gate.project(self._cohorts, cohort_read)),
            Route(f"{project}/cohorts/{{cohort_id}}", gate.project(self._cohort, cohort_read)),
            Route(f"{project}/cohorts/{{cohort_id}}/persons", members),
            Route(f"{project}/insights", gate.project(self._insights, insight_read, "clickhouse")),
            Route(
                f"{project}/insights/{{insight_id}}", gate.project(self._insight, insight_read, "clickhouse")
            ),
            Route(f"{project}/persons", persons),
        ]

    async def _projects(self, request: Request) -> Response:
        search = request.query_params.get("search", "").lower()
        found = [one for one in self._state.projects.values() if search in one.name.lower()]
        return page_of(request, [self._project_basics(one) for one in found])

    async def _project(self, request: Request) -> Response:
        project: Project = request.state.project
        return json_response(
            self._project_basics(project)
            | {
                "created_at": project.created_at,
                "updated_at": project.created_at,
                "product_description": None,
                "has_group_types": bool(project.group_types),
                "group_types": [
                    {"group_type": name, "group_type_index": index}
                    for index, name in enumerate(project.group_types)
                ],
                "person_display_name_properties": None,
                "test_account_filters": [],
                "path_cleaning_filters": [],
                "week_start_day": None,
                "session_recording_opt_in": False,
                "modifiers": None,
                "secret_api_token": "phs_emulator_secret",
                "secret_api_token_backup": None,
                "live_events_token": "emulator-live-events-token",
            }
        )

    async def _me(self, request: Request) -> Response:
        current = self._state.current_project(request.state.key)
        return json_response(
            definitions.user(self._state)
            | {
                "date_joined": self._state.projects[1].created_at,
                "is_staff": False,
                "team": self._project_basics(current) if current else None,
                "organization": self._organization_basics(self._state.organization_id),
                "organizations": [
                    {
                        "id": self._state.organization_id,
                        "name": "Emulated",
                        "slug": "emulated",
                        "membership_level": 15,
                        "is_active": True,
                        "members_can_use_personal_api_keys": True,
                    }
                ],
            }
        )

    async def _other_user(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint
        raise ApiError(403, "As a non-staff user you're only allowed to access the `@me` user instance.")

    async def _organizations(self, request: Request) -> Response:
        return page_of(request, [self._organization_basics(one) for one in self._state.organization_ids()])

    async def _organization(self, request: Request) -> Response:
        wanted = request.path_params["organization_id"]
        wanted = self._state.organization_id if wanted == "@current" else wanted
        if wanted not in self._state.organization_ids():
            raise ApiError(404, "Organization not found.")
        return json_response(self._organization_basics(wanted))

    async def _cohorts(self, request: Request) -> Response:
        query, project = request.query_params, request.state.project
        search = query.get("search", "").lower()
        wanted_type = query.get("type")
        found = [
            one
            for one in _visible(project.cohorts)
            if search in str(one["name"]).lower()
            and (wanted_type not in ("static", "dynamic") or one["is_static"] == (wanted_type == "static"))
        ]
        found.sort(key=lambda one: str(one["created_at"]), reverse=True)
        if query.get("basic") == "true":
            found = [_without(one, COHORT_HEAVY_FIELDS) for one in found]
        return page_of(request, found)

    async def _cohort(self, request: Request) -> Response:
        return json_response(_find(request.state.project.cohorts, request.path_params["cohort_id"]))

    async def _cohort_persons(self, request: Request) -> Response:
        project: Project = request.state.project
        cohort = _find(project.cohorts, request.path_params["cohort_id"])
        where = f"id IN ({_member_sql(project, cohort)})"
        return await self._person_page(request, where, max_distinct_ids=COHORT_PERSON_DISTINCT_IDS)

    async def _persons(self, request: Request) -> Response:
        query = request.query_params
        if "properties" in query:
            raise ApiError(400, "posthog_emulator does not filter persons by properties.", attr="properties")
        where = ["1"]
        if "email" in query:
            where.append(f"JSONExtractString(newest_properties, 'email') = {literals.text(query['email'])}")
        if "distinct_id" in query:
            where.append(f"id IN ({_owner_sql(request.state.project, query['distinct_id'])})")
        if query.get("search"):
            text = literals.text(query["search"])
            owners = _owner_sql(request.state.project, query["search"])
            where.append(
                f"(positionCaseInsensitiveUTF8(JSONExtractString(newest_properties, 'email'), {text}) > 0"
                f" OR id IN ({owners}))"
            )
        return await self._person_page(request, " AND ".join(where))

    async def _person_page(
        self, request: Request, where: str, *, max_distinct_ids: int | None = None
    ) -> Response:
        project: Project = request.state.project
        limit, offset = limit_and_offset(request)
        page_rows = min(limit, project.settings.max_rows)
        sql = (
            "SELECT toString(id), newest_properties, newest_created_at, toUInt8(identified), last_seen"
            f" FROM ({_newest_persons_sql(project)}) WHERE {where}"
            f" ORDER BY newest_created_at DESC, id DESC LIMIT {page_rows} OFFSET {offset}"
        )
        rows = await self._rows(sql)
        distinct_ids = await self._distinct_ids(project, [row[0] for row in rows])
        results = [_person_item(row, distinct_ids.get(row[0], []), max_distinct_ids) for row in rows]
        # A page is full when it holds `limit` rows: above the row cap it never is, and paging ends too early.
        more = len(results) == limit
        body: dict[str, Any] = {
            "results": results,
            "next": link(request, limit, offset + limit) if more else None,
            "previous": link(request, limit, max(0, offset - limit)) if offset else None,
        }
        if "include_total" in request.query_params:
            total = await self._rows(f"SELECT count() FROM ({_newest_persons_sql(project)}) WHERE {where}")
            body["count"] = total[0][0]
        return json_response(body)

    async def _distinct_ids(self, project: Project, person_ids: Sequence[str]) -> dict[str, list[str]]:
        if not person_ids:
            return {}
        people = ", ".join(literals.text(one) for one in person_ids)
        sql = (
            "SELECT toString(owner), groupArray(distinct_id) FROM (SELECT distinct_id,"
            " argMax(person_id, version) AS owner FROM person_distinct_id2"
            f" WHERE team_id = {project.id} GROUP BY distinct_id HAVING argMax(is_deleted, version) = 0)"
            f" WHERE toString(owner) IN ({people}) GROUP BY owner"
        )
        return {row[0]: sorted(row[1]) for row in await self._rows(sql)}

    async def _rows(self, sql: str) -> list[list[Any]]:
        answer = await run_in_threadpool(self._clickhouse.run, sql)
        rows: list[list[Any]] = orjson.loads(answer.rows_json)
        return rows

    async def _insights(self, request: Request) -> Response:
        project: Project = request.state.project
        query = request.query_params
        found = [
            one
            for one in _visible(project.insights)
            if all(test(one) for test in _insight_tests(query, project, self._state.now()))
        ]
        found = _ordered(found, query.get("order"), self._shuffle)
        limit, offset = limit_and_offset(request)
        items = [self._basic_item(one, project) for one in found]
        if query.get("basic") != "true":
            shown = slice(offset, offset + limit)
            items[shown] = [await self._full_item(one, request) for one in found[shown]]
        return page_of(request, items)

    async def _insight(self, request: Request) -> Response:
        project: Project = request.state.project
        wanted = request.path_params["insight_id"]
        found = next((one for one in project.insights if one["short_id"] == wanted), None)
        insight = found if found and not found["deleted"] else _find(project.insights, wanted)
        return json_response(await self._full_item(insight, request))

    def _basic_item(self, insight: dict[str, Any], project: Project) -> dict[str, Any]:
        known = {"last_refresh": self._results.last_refresh(insight, project) or insight["last_refresh"]}
        return _without(insight, INSIGHT_RESULT_FIELDS) | known

    async def _full_item(self, insight: dict[str, Any], request: Request) -> dict[str, Any]:
        project, refresh = request.state.project, request.query_params.get("refresh")
        result = await run_in_threadpool(self._results.answer, insight, project, refresh)
        return {**_NO_RESULT, "timezone": project.timezone} | insight | result

    def _shuffle(self, items: list[dict[str, Any]]) -> None:
        """Another order each time, as Postgres may give equal keys in any."""
        self._shuffles += 1
        random.Random(self._shuffles).shuffle(items)  # noqa: S311 - nothing secret

    def _project_basics(self, project: Project) -> dict[str, Any]:
        return {
            "id": project.id,
            "uuid": project.uuid,
            "organization": self._state.organization_of(project),
            "project_id": project.id,
            "api_token": project.token,
            "name": project.name,
            "completed_snippet_onboarding": True,
            "has_completed_onboarding_for": {},
            "ingested_event": project.ingested_event,
            "is_demo": False,
            "timezone": project.timezone,
            "access_control": False,
        }

    def _organization_basics(self, organization_id: str) -> dict[str, Any]:
        projects = [self._project_basics(one) for one in self._state.projects_of(organization_id)]
        return {
            "id": organization_id,
            "name": "Emulated",
            "slug": "emulated",
            "created_at": self._state.projects[1].created_at,
            "updated_at": self._state.projects[1].created_at,
            "membership_level": 15,
            "teams": projects,
            "projects": projects,
            "available_product_features": [],
            "member_count": 1,
        }


def parse_date(text: str, zone: ZoneInfo, now: datetime) -> datetime | None:
    """A date filter: absolute, naive in the project's timezone, or relative (`-7d`); None filters nothing."""
    if relative := _RELATIVE_DATE.match(text):
        amount, unit = int(relative[1]), relative[2]
        ago = timedelta(hours=amount) if unit == "h" else timedelta(days=amount * _RELATIVE_DAYS[unit])
        return now - ago
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=zone)


def _visible(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in items if not one["deleted"]]


def _find(items: Iterable[dict[str, Any]], number: str) -> dict[str, Any]:
    found = next((one for one in _visible(items) if str(one["id"]) == number), None)
    if found is None:
        raise ApiError(404, "Not found.")
    return found


def _without(item: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in names}


def _ordered(
    items: list[dict[str, Any]], order: str | None, shuffle: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Sorted as Postgres does: equal keys in any order, nulls last, or first when descending."""
    shuffle(items)
    name = (order or "order").removeprefix("-")
    if items and name not in items[0]:
        raise ApiError(500)
    descending = bool(order) and str(order).startswith("-")
    items.sort(
        key=lambda one: (one[name] is None, one[name] if one[name] is not None else 0), reverse=descending
    )
    return items


def _insight_tests(
    query: Mapping[str, str], project: Project, now: datetime
) -> list[Callable[[dict[str, Any]], bool]]:
    tests: list[Callable[[dict[str, Any]], bool]] = []
    for parameter, field, sign in (
        ("date_from", "last_modified_at", 1),
        ("date_to", "last_modified_at", -1),
        ("created_date_from", "created_at", 1),
        ("created_date_to", "created_at", -1),
    ):
        bound = parse_date(query[parameter], project.zone, now) if query.get(parameter) else None
        if bound:
            tests.append(_date_test(field, bound, sign))
    if "short_id" in query:
        tests.append(lambda one: bool(one["short_id"] == query["short_id"]))
    if "saved" in query:
        tests.append(lambda one: bool(one["saved"] == (query["saved"] == "true")))
    if "favorited" in query:
        tests.append(lambda one: bool(one["favorited"]))
    if query.get("search"):
        tests.append(lambda one: query["search"].lower() in f"{one['name']} {one['description']}".lower())
    return tests


def _date_test(field: str, bound: datetime, sign: int) -> Callable[[dict[str, Any]], bool]:
    def strictly_beyond(one: dict[str, Any]) -> bool:
        value = datetime.fromisoformat(one[field])
        return value > bound if sign > 0 else value < bound

    return strictly_beyond


def _person_item(row: list[Any], distinct_ids: list[str], max_distinct_ids: int | None) -> dict[str, Any]:
    person_id, properties_text, created_at, is_identified, last_seen_at = row
    properties = orjson.loads(properties_text or "{}")
    name = properties.get("email") or properties.get("name") or properties.get("username")
    return {
        "id": int(person_id.replace("-", "")[-8:], 16) % 2**31,
        "uuid": person_id,
        "name": name or (distinct_ids[0] if distinct_ids else person_id),
        "distinct_ids": distinct_ids[:max_distinct_ids],
        "properties": properties,
        "created_at": created_at,
        "is_identified": bool(is_identified),
        "last_seen_at": last_seen_at,
    }


def _newest_persons_sql(project: Project) -> str:
    return (
        "SELECT id, argMax(properties, version) AS newest_properties,"
        " toTimeZone(argMax(created_at, version), 'UTC') AS newest_created_at,"
        " argMax(is_identified, version) AS identified, "
        + (
            "toTimeZone(argMax(last_seen_at, version), 'UTC')"
            if project.settings.person_last_seen
            else "NULL"
        )
        + " AS last_seen"
        f" FROM person WHERE team_id = {project.id} GROUP BY id HAVING argMax(is_deleted, version) = 0"
    )


def _owner_sql(project: Project, distinct_id: str) -> str:
    return (
        "SELECT argMax(person_id, version) FROM person_distinct_id2"
        f" WHERE team_id = {project.id} AND distinct_id = {literals.text(distinct_id)}"
        " GROUP BY distinct_id HAVING argMax(is_deleted, version) = 0"
    )


def _member_sql(project: Project, cohort: Mapping[str, Any]) -> str:
    scope = f"team_id = {project.id} AND cohort_id = {int(cohort['id'])}"
    if cohort["is_static"]:
        return f"SELECT person_id FROM person_static_cohort WHERE {scope}"
    return (
        f"SELECT person_id FROM cohortpeople WHERE {scope} AND version = {int(cohort['version'] or 0)}"
        " GROUP BY person_id HAVING sum(sign) > 0"
    )
