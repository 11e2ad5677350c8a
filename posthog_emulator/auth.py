"""API key, project, scopes, rate limit: checked in PostHog's order, refused in PostHog's words.

Not the project tokens of the capture endpoints.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import orjson
from starlette.requests import Request
from starlette.responses import Response

from posthog_emulator.envelope import ApiError
from posthog_emulator.state import DEFAULT_RATE_LIMITS, ApiKey, Project, State
from posthog_emulator.throttle import Throttle

Endpoint = Callable[[Request], Awaitable[Response]]


class Gate:
    """Lets requests through to an endpoint, or answers 401, 403, 404 or 429."""

    def __init__(self, state: State, throttle: Throttle) -> None:
        self._state = state
        self._throttle = throttle

    def project(
        self,
        endpoint: Endpoint,
        scopes: Sequence[str],
        throttle_class: str = "default",
        *,
        burst_only: bool = False,
    ) -> Endpoint:
        """Guard a route under a project; the endpoint finds `key` and `project` in `request.state`."""

        async def guarded(request: Request) -> Response:
            key = await self._authenticate(request)
            project = self._find_project(request.path_params["project_id"], key)
            _check_project(key, project)
            _check_scopes(key, scopes)
            self._check_rate(key, throttle_class, project, burst_only=burst_only)
            request.state.key, request.state.project = key, project
            return await endpoint(request)

        return guarded

    def account(
        self, endpoint: Endpoint, scopes: Sequence[str], *, restricted_keys: bool = False
    ) -> Endpoint:
        """Guard a route that belongs to no project."""

        async def guarded(request: Request) -> Response:
            key = await self._authenticate(request)
            if key.project_ids is not None and not restricted_keys:
                raise ApiError(
                    403, "API keys with scoped projects are only supported on project-based endpoints."
                )
            _check_scopes(key, scopes)
            self._check_rate(key, "default", self._state.current_project(key))
            request.state.key = key
            return await endpoint(request)

        return guarded

    async def _authenticate(self, request: Request) -> ApiKey:
        value, source = await _credentials(request)
        key = self._state.keys.get(value)
        if key is None:
            detail = f"Personal API key found in request {source} is invalid." if value else ""
            raise ApiError(
                401,
                detail or "Authentication credentials were not provided.",
                code="authentication_failed" if value else "not_authenticated",
                headers={"WWW-Authenticate": _challenge(request)},
            )
        return key

    def _find_project(self, text: str, key: ApiKey) -> Project:
        if text == "@current":
            project = self._state.current_project(key)
        else:
            project = self._state.projects.get(int(text)) if text.isdecimal() else None
        if project is None:
            raise ApiError(404, "Project not found.")
        return project

    def _check_rate(
        self, key: ApiKey, throttle_class: str, project: Project | None, *, burst_only: bool = False
    ) -> None:
        limits = (project.settings.rate_limits if project else DEFAULT_RATE_LIMITS)[throttle_class]
        wait_s = self._throttle.wait_s(key.value, throttle_class, limits[:1] if burst_only else limits)
        if wait_s is not None:
            raise ApiError(
                429,
                f"Request was throttled. Expected available in {wait_s} second{'' if wait_s == 1 else 's'}.",
                headers={"Retry-After": str(wait_s)},
            )


def bearer(header: str) -> str:
    """The token in an Authorization header, or nothing."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _credentials(request: Request) -> tuple[str, str]:
    """Header, then body, then query string: the order of posthog/auth.py."""
    if token := bearer(request.headers.get("authorization", "")):
        return token, "Authorization header"
    if request.headers.get("content-type", "").startswith("application/json"):
        token = _body_key(await request.body())
        if token:
            return token, "body"
    return request.query_params.get("personal_api_key", ""), "query string"


def _body_key(body: bytes) -> str:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    return str(data.get("personal_api_key", "")) if isinstance(data, dict) else ""


def _check_project(key: ApiKey, project: Project) -> None:
    if key.project_ids is not None and project.id not in key.project_ids:
        raise ApiError(403, f"API key does not have access to the requested project: ID {project.id}.")


def _check_scopes(key: ApiKey, scopes: Sequence[str]) -> None:
    for scope in scopes:
        if not key.allows(scope):
            raise ApiError(403, f"API key missing required scope '{scope}'")


def _challenge(request: Request) -> str:
    host = request.headers.get("host", "localhost")
    return f'Bearer resource_metadata="{request.url.scheme}://{host}/.well-known/oauth-protected-resource"'
