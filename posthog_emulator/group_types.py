"""What kinds of groups a project has: PostHog's `groups_types` list, which only its EE builds serve.

The kinds are seen in capture, made by the generator, or set by the control API. Groups themselves are rows in
ClickHouse. Facts: PostHog/posthog `ee/clickhouse/views/groups.py`, `posthog/models/group_type_mapping.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from posthog_emulator.auth import Gate
from posthog_emulator.envelope import ApiError, json_response
from posthog_emulator.state import Project, State

MAX_GROUP_TYPES = 5
SETTABLE = {"name_singular", "name_plural", "detail_dashboard", "default_columns", "created_at"}


class GroupTypes:
    """The route of one server."""

    def __init__(self, state: State, gate: Gate) -> None:
        self._state = state
        self._guarded = gate.project(self._list, ["group:read"])

    def routes(self) -> list[Route]:
        """The one list."""
        return [Route("/api/projects/{project_id}/groups_types", self._if_served)]

    async def _if_served(self, request: Request) -> Response:
        """A server without the route knows it for no one, whatever the key."""
        number = request.path_params["project_id"]
        project = self._state.projects.get(int(number)) if number.isdecimal() else None
        if project is not None and not project.settings.group_types_api:
            raise ApiError(404, "Endpoint not found.")
        return await self._guarded(request)

    async def _list(self, request: Request) -> Response:
        project: Project = request.state.project
        return json_response(items(project))


def items(project: Project) -> list[dict[str, Any]]:
    """All kinds of groups, by their index."""
    return [
        {
            "group_type": name,
            "group_type_index": index,
            "name_singular": None,
            "name_plural": None,
            "detail_dashboard": None,
            "default_columns": None,
            "created_at": None,
            **project.group_type_details.get(name, {}),
        }
        for index, name in enumerate(project.group_types)
    ]


def set_group_type(project: Project, given: Mapping[str, Any]) -> None:
    """Add a kind of groups, or say more of one that is there."""
    name = str(given["group_type"])
    unknown = sorted(set(given) - SETTABLE - {"group_type"})
    if unknown:
        raise ApiError(400, f"Unknown members: {', '.join(unknown)}.")
    if name not in project.group_types and len(project.group_types) >= MAX_GROUP_TYPES:
        raise ApiError(400, f"A project has {MAX_GROUP_TYPES} group types at most.")
    project.add_group_type(name)
    project.group_type_details[name].update({key: given[key] for key in SETTABLE & set(given)})
