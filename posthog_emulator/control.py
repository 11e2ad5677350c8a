"""The control API under /_emulator/: projects, keys, exact rows, faults and measurements.

PostHog has nothing like it; it takes no key and the server listens on loopback only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pyarrow as pa
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from posthog_emulator import definitions, deletion, group_types
from posthog_emulator.clickhouse import ClickHouse, ClickHouseError
from posthog_emulator.cohorts import EDITABLE, Cohorts
from posthog_emulator.envelope import ApiError, json_response
from posthog_emulator.faults import UnknownFaultError, parse_faults
from posthog_emulator.generator import Plan, generate
from posthog_emulator.generator_nasty import LOSE_DUPLICATES
from posthog_emulator.journal import stats
from posthog_emulator.persons import Persons, UnknownPersonError
from posthog_emulator.rest_definitions import REFUSALS, SERVED, find_resource
from posthog_emulator.session_tables import RECORDING_BATCHES, RECORDINGS, V2, V3
from posthog_emulator.squash import OLDER_THAN_S, squash
from posthog_emulator.state import Project, ProjectSettings, State, UnknownSettingError, check_timezone
from posthog_emulator.storm import Storm, UnknownStormError

DATA_TABLES = (
    "events",
    "person",
    "person_distinct_id2",
    "person_distinct_id_overrides",
    "groups",
    "cohortpeople",
    "person_static_cohort",
    RECORDINGS,
)
# Written as the messages come, and added up by a view.
WRITTEN_TO = {RECORDINGS: RECORDING_BATCHES}
STATE_TABLES = (V2, V3)

REMEMBERED_TABLES = ("person", "person_distinct_id2", "groups")


class Control:
    """The control API of one server."""

    def __init__(self, clickhouse: ClickHouse, state: State, persons: Persons) -> None:
        self._clickhouse = clickhouse
        self._state = state
        self._persons = persons
        self._cohorts = Cohorts(clickhouse, state)

    def routes(self) -> list[Route]:
        """Everything under /_emulator/."""
        project = "/_emulator/projects/{project_id:int}"
        table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("POST", "/_emulator/projects", self._create_project),
            ("PATCH", project, self._change_project),
            ("POST", "/_emulator/keys", self._create_key),
            ("POST", "/_emulator/keys/revoke", self._revoke_key),
            ("POST", f"{project}/generate", self._generate),
            ("POST", f"{project}/rows/{{table}}", self._append_rows),
            ("POST", f"{project}/cohorts", self._append_cohorts),
            ("POST", f"{project}/cohorts/recalculate", self._recalculate_cohorts),
            ("POST", f"{project}/cohorts/{{cohort_id:int}}/members", self._change_members),
            ("PATCH", f"{project}/cohorts/{{cohort_id:int}}", self._edit_cohort),
            ("DELETE", f"{project}/cohorts/{{cohort_id:int}}", self._delete_cohort),
            ("POST", f"{project}/insights", self._append_insights),
            ("POST", f"{project}/definitions/{{resource:path}}", self._append_definitions),
            ("PUT", f"{project}/definitions/{{resource:path}}", self._append_definitions),
            ("POST", f"{project}/group_types", self._set_group_types),
            ("PATCH", "/_emulator/clock", self._set_clock),
            ("POST", "/_emulator/sql", self._sql),
            ("POST", "/_emulator/optimize", self._optimize),
            ("POST", f"{project}/faults", self._add_faults),
            ("GET", f"{project}/faults", self._count_faults),
            ("DELETE", f"{project}/faults", self._clear_faults),
            ("POST", f"{project}/storm", self._start_storm),
            ("GET", f"{project}/storm", self._count_storm),
            ("DELETE", f"{project}/storm", self._end_storm),
            ("POST", f"{project}/delete/events", self._delete_events),
            ("POST", f"{project}/delete/persons", self._delete_persons),
            ("PATCH", f"{project}/persons", self._edit_person),
            ("POST", f"{project}/squash", self._squash),
            ("GET", f"{project}/requests", self._requests),
            ("DELETE", f"{project}/requests", self._clear_requests),
            ("GET", f"{project}/stats", self._stats),
        ]
        return [
            Route(path, _with_clear_errors(endpoint), methods=[method]) for method, path, endpoint in table
        ]

    async def _create_project(self, request: Request) -> Response:
        body = await _json(request, {"timezone", "name", "settings"})
        changes = body.get("settings", {})
        _check_changes(ProjectSettings(), changes)
        project = self._state.create_project(name=body.get("name", ""), timezone=body.get("timezone", "UTC"))
        project.settings.update(changes)
        key = self._state.create_key(["*"], [project.id])
        made = {"project_id": project.id, "project_token": project.token, "api_key": key.value}
        return json_response(made, status=201)

    async def _change_project(self, request: Request) -> Response:
        project = self._project(request)
        body = await _json(request, {"timezone", "name", "settings"})
        if "timezone" in body:
            check_timezone(body["timezone"])
        changes = body.get("settings", {})
        _check_changes(project.settings, changes)
        project.settings.update(changes)
        project.timezone = body.get("timezone", project.timezone)
        project.name = body.get("name", project.name)
        return json_response({"project_id": project.id, "timezone": project.timezone, "name": project.name})

    async def _create_key(self, request: Request) -> Response:
        body = await _json(request, {"scopes", "project_ids"})
        key = self._state.create_key(body.get("scopes", ["*"]), body.get("project_ids"))
        return json_response({"api_key": key.value}, status=201)

    async def _revoke_key(self, request: Request) -> Response:
        body = await _json(request, {"api_key"})
        revoked = self._state.keys.pop(body["api_key"], None)
        return json_response({"revoked": revoked is not None})

    async def _generate(self, request: Request) -> Response:
        project = self._project(request)
        plan = Plan.from_json(await _json(request, None), now=self._state.now())
        made = await run_in_threadpool(generate, self._clickhouse, self._state, project, plan)
        self._persons.forget(project)
        return json_response(made)

    async def _append_rows(self, request: Request) -> Response:
        project, table = self._project(request), request.path_params["table"]
        if table not in DATA_TABLES:
            raise ApiError(400, f"No table {table!r}. There are: {', '.join(DATA_TABLES)}.")
        body = await request.body()
        rows = await run_in_threadpool(self._insert, project, table, body)
        if table in REMEMBERED_TABLES:
            self._persons.forget(project)
        return json_response({"rows": rows})

    def _insert(self, project: Project, table: str, body: bytes) -> int:
        try:
            rows = pa.ipc.open_stream(body).read_all()
        except pa.ArrowInvalid as error:
            raise ApiError(400, f"The body is not an Arrow IPC stream: {error}") from error
        if "team_id" in rows.column_names:
            rows = rows.drop_columns("team_id")
        rows = rows.append_column("team_id", pa.array([project.id] * rows.num_rows, pa.int64()))
        self._clickhouse.insert(WRITTEN_TO.get(table, table), rows)
        return int(rows.num_rows)

    async def _append_cohorts(self, request: Request) -> Response:
        project = self._project(request)
        body = await _json(request, {"items"})
        made = [definitions.cohort(self._state, item) for item in body["items"]]
        project.cohorts.extend(made)
        return json_response({"ids": [item["id"] for item in made]}, status=201)

    async def _recalculate_cohorts(self, request: Request) -> Response:
        project, body = self._project(request), await _json(request, {"cohort_ids"})
        done = await run_in_threadpool(self._cohorts.recalculate, project, body.get("cohort_ids"))
        return json_response({"cohorts": done})

    async def _change_members(self, request: Request) -> Response:
        project, body = self._project(request), await _json(request, {"add", "remove"})
        changed = await run_in_threadpool(
            self._cohorts.change_members,
            project,
            request.path_params["cohort_id"],
            add=body.get("add", []),
            remove=body.get("remove", []),
        )
        return json_response(changed)

    async def _edit_cohort(self, request: Request) -> Response:
        project, changes = self._project(request), await _json(request, EDITABLE)
        return json_response(self._cohorts.edit(project, request.path_params["cohort_id"], changes))

    async def _delete_cohort(self, request: Request) -> Response:
        project = self._project(request)
        return json_response(self._cohorts.delete(project, request.path_params["cohort_id"]))

    async def _append_insights(self, request: Request) -> Response:
        project = self._project(request)
        body = await _json(request, {"items"})
        made = [definitions.insight(self._state, item) for item in body["items"]]
        replaced = {item["id"] for item in made}
        project.insights = [one for one in project.insights if one["id"] not in replaced] + made
        return json_response({"ids": [item["id"] for item in made]}, status=201)

    async def _append_definitions(self, request: Request) -> Response:
        """PUT leaves no others."""
        project, body = self._project(request), await _json(request, {"items"})
        resource = find_resource(request.path_params["resource"])
        made = [resource.item(self._state, item) for item in body["items"]]
        kept = [] if request.method == "PUT" else project.definitions.get(resource.path, [])
        project.definitions[resource.path] = [*kept, *made]
        return json_response({"ids": [item.get("id") for item in made]}, status=201)

    async def _set_group_types(self, request: Request) -> Response:
        project = self._project(request)
        body = await _json(request, {"items"})
        for item in body["items"]:
            group_types.set_group_type(project, item)
        return json_response({"group_types": project.group_types}, status=201)

    async def _set_clock(self, request: Request) -> Response:
        given = (await _json(request, {"now"})).get("now")
        try:
            self._state.set_clock(_instant(given) if given is not None else None)
        except (TypeError, ValueError) as error:
            raise ApiError(400, "now is an ISO time, or null for the real one.", attr="now") from error
        return json_response({"now": self._state.now().isoformat()})

    async def _sql(self, request: Request) -> Response:
        body = await _json(request, {"sql"})
        answer = await run_in_threadpool(self._clickhouse.run, body["sql"])
        head = orjson.dumps(
            {
                "columns": answer.columns,
                "types": answer.types,
                "read_rows": answer.read_rows,
                "read_bytes": answer.read_bytes,
            }
        )
        return Response(head[:-1] + b',"rows":' + answer.rows_json + b"}", media_type="application/json")

    async def _optimize(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint
        await run_in_threadpool(self._clickhouse.execute, LOSE_DUPLICATES)
        for table in (*DATA_TABLES, *STATE_TABLES):
            await run_in_threadpool(self._clickhouse.optimize, table)
        return json_response({"tables": list(DATA_TABLES)})

    async def _add_faults(self, request: Request) -> Response:
        project = self._project(request)
        project.faults.waiting.extend(parse_faults(await _json(request, {"method", "path", "faults"})))
        return json_response(
            {"remaining": project.faults.remaining, "fired": project.faults.fired}, status=201
        )

    async def _count_faults(self, request: Request) -> Response:
        faults = self._project(request).faults
        return json_response({"remaining": faults.remaining, "fired": faults.fired})

    async def _clear_faults(self, request: Request) -> Response:
        faults = self._project(request).faults
        faults.waiting.clear()
        faults.fired = 0
        return json_response({"remaining": 0, "fired": 0})

    async def _start_storm(self, request: Request) -> Response:
        faults = self._project(request).faults
        faults.storm = Storm.from_json(await _json(request, None))
        return json_response(faults.storm.counts(), status=201)

    async def _count_storm(self, request: Request) -> Response:
        return json_response(_counts(self._project(request).faults.storm))

    async def _end_storm(self, request: Request) -> Response:
        """End it; says what it did."""
        faults = self._project(request).faults
        storm, faults.storm = faults.storm, None
        return json_response(_counts(storm))

    async def _delete_events(self, request: Request) -> Response:
        project, body = self._project(request), await _json(request, {"where", "uuids"})
        condition = deletion.condition(body, "uuid", "uuids")
        rows = await run_in_threadpool(deletion.delete_events, self._clickhouse, project, condition)
        return json_response({"rows": rows})

    async def _delete_persons(self, request: Request) -> Response:
        project = self._project(request)
        body = await _json(request, {"where", "person_ids", "delete_events"})
        condition = deletion.condition(body, "id", "person_ids")
        deleted = await run_in_threadpool(
            deletion.delete_persons,
            self._clickhouse,
            project,
            condition,
            with_events=bool(body.get("delete_events")),
        )
        self._persons.forget(project)
        return json_response(deleted)

    async def _edit_person(self, request: Request) -> Response:
        """Change a person and leave no event; PostHog's own person page captures a `$set` for it."""
        project = self._project(request)
        body = await _json(request, {"person_id", "distinct_id", "set", "unset"})
        to_set, unset = body.get("set", {}), body.get("unset", [])
        if ("person_id" in body) == ("distinct_id" in body):
            raise ApiError(400, "Say whom: either person_id or distinct_id.")
        if not isinstance(to_set, dict) or not isinstance(unset, list):
            raise ApiError(400, "set is an object and unset a list of names.")
        try:
            person = await run_in_threadpool(
                self._persons.edit,
                project,
                person_id=str(body["person_id"]).lower() if "person_id" in body else None,
                distinct_id=str(body["distinct_id"]) if "distinct_id" in body else None,
                to_set=to_set,
                unset=unset,
            )
        except UnknownPersonError as error:
            raise ApiError(404, str(error)) from error
        return json_response(
            {"person_id": person.id, "version": person.version, "properties": person.properties}
        )

    async def _squash(self, request: Request) -> Response:
        project, body = self._project(request), await _json(request, {"older_than_s"})
        older_than_s = body.get("older_than_s", OLDER_THAN_S)
        if isinstance(older_than_s, bool) or not isinstance(older_than_s, int | float) or older_than_s < 0:
            raise ApiError(400, "older_than_s is a number of seconds.", attr="older_than_s")
        done = await run_in_threadpool(
            squash, self._clickhouse, project, now=datetime.now(UTC), older_than_s=older_than_s
        )
        return json_response(done)

    async def _requests(self, request: Request) -> Response:
        return json_response(self._project(request).journal.entries)

    async def _clear_requests(self, request: Request) -> Response:
        self._project(request).journal.clear()
        return json_response([])

    async def _stats(self, request: Request) -> Response:
        return json_response(stats(self._project(request).journal))

    def _project(self, request: Request) -> Project:
        project = self._state.projects.get(request.path_params["project_id"])
        if project is None:
            raise ApiError(404, "Project not found.")
        return project


def _counts(storm: Storm | None) -> dict[str, Any]:
    return storm.counts() if storm else {"requests": 0, "faults": 0, "served": {}}


async def _json(request: Request, known: set[str] | None) -> dict[str, Any]:
    """The body; with `known`, members that mean nothing are refused rather than ignored."""
    text = await request.body()
    try:
        body = orjson.loads(text or b"{}")
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The body is not a JSON object.")
    unknown = sorted(set(body) - known) if known is not None else []
    if unknown:
        raise ApiError(400, f"Unknown members: {', '.join(unknown)}.")
    return body


def _instant(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _check_changes(settings: ProjectSettings, changes: Mapping[str, Any]) -> None:
    """That all the changes can be made, and that each would do something.

    Raises:
        UnknownSettingError: One cannot, or names a list or a status that means nothing.
    """
    changed = replace(settings)
    changed.update(changes)
    if unknown := {*changed.unavailable, *changed.environments_only} - SERVED:
        raise UnknownSettingError(f"No list {min(unknown)!r}. There are: {', '.join(sorted(SERVED))}.")
    if others := set(changed.unavailable.values()) - set(REFUSALS):
        raise UnknownSettingError(f"No list answers {others}, but {list(REFUSALS)}.")


def _with_clear_errors(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def checked(request: Request) -> Response:
        try:
            return await endpoint(request)
        except (UnknownSettingError, UnknownFaultError, UnknownStormError, ClickHouseError) as error:
            raise ApiError(400, str(error)) from error
        except KeyError as error:
            raise ApiError(400, f"Missing member: {error}.", attr=str(error.args[0])) from error

    return checked
