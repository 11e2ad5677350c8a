"""What the server remembers outside ClickHouse: projects, keys, settings, definitions and the journal.

It is not where events or persons live, and it answers no requests.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from posthog_emulator.storm import Storm

DEFAULT_RATE_LIMITS: Mapping[str, tuple[int, int]] = {
    "api_queries": (240, 2400),
    "default": (480, 4800),
    "clickhouse": (240, 1200),
}
SESSION_TABLE_VERSIONS = ("auto", "v2", "v3")


class UnknownSettingError(ValueError):
    """A setting that does not exist, or a value it cannot have."""


@dataclass
class ProjectSettings:
    """How one project's server behaves; the defaults are PostHog's."""

    max_rows: int = 50_000
    default_rows: int = 100
    max_concurrent_queries: int = 3
    concurrency_wait_s: float = 30.0
    query_timeout_s: float = 10.0
    async_timeout_s: float = 600.0
    max_bytes_to_read: int = 0
    max_memory_bytes: int = 0
    rate_limits: dict[str, tuple[int, int]] = field(default_factory=lambda: dict(DEFAULT_RATE_LIMITS))
    latency_s: float = 0.0
    cache_ttl_s: float = 300.0
    offset_allowed: bool = False
    hidden_columns: tuple[str, ...] = ()
    hidden_tables: tuple[str, ...] = ()
    denied_tables: tuple[str, ...] = ()
    query_log_delay_s: float = 7.5
    old_query_log: bool = False
    session_table_version: str = "auto"
    group_types_api: bool = True
    async_status_life_s: float = 1200.0
    person_last_seen: bool = False
    gzip: bool = True
    unavailable: dict[str, int] = field(default_factory=dict)
    environments_only: tuple[str, ...] = ()
    organization_id: str = ""

    def update(self, changes: Mapping[str, Any]) -> None:
        """Change settings by name; `rate_limits` changes only the classes it names."""
        known = {item.name for item in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise UnknownSettingError(
                f"Unknown settings: {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
            )
        for name, value in changes.items():
            setattr(self, name, self._checked(name, value))

    def _checked(self, name: str, value: Any) -> Any:
        if name == "rate_limits":
            return self.rate_limits | _rate_limits(value)
        if name in {"hidden_columns", "hidden_tables", "denied_tables", "environments_only"}:
            if not isinstance(value, list):
                raise UnknownSettingError(f"{name} must be a list, not {value!r}.")
            return tuple(str(one) for one in value)
        if name == "session_table_version" and value not in SESSION_TABLE_VERSIONS:
            raise UnknownSettingError(
                f"{name} must be one of {', '.join(SESSION_TABLE_VERSIONS)}, not {value!r}."
            )
        wanted = type(getattr(self, name))
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not wanted:
            raise UnknownSettingError(f"{name} must be {wanted.__name__}, not {value!r}.")
        return value


@dataclass(frozen=True)
class ApiKey:
    """A personal API key; no scopes at all means a legacy key that may do anything."""

    value: str = field(repr=False)
    scopes: tuple[str, ...]
    project_ids: tuple[int, ...] | None

    def allows(self, scope: str) -> bool:
        """Whether this key may do what needs `scope`; write includes read."""
        if not self.scopes or "*" in self.scopes or scope in self.scopes:
            return True
        return scope.endswith(":read") and scope.removesuffix("read") + "write" in self.scopes


@dataclass
class Fault:
    """One scripted answer, waiting for a request that matches."""

    method: str | None
    path: str
    script: dict[str, Any]
    times: int = 1


@dataclass
class FaultQueue:
    """The scripted answers of one project, and how many were given."""

    waiting: list[Fault] = field(default_factory=list)
    fired: int = 0
    storm: Storm | None = None

    @property
    def remaining(self) -> int:
        """How many answers are still to be given."""
        return sum(fault.times for fault in self.waiting)


@dataclass
class Journal:
    """Every request of one project, in the order they came."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    queries_in_flight: int = 0
    max_concurrent_queries: int = 0

    def clear(self) -> None:
        """Forget what was recorded; requests in flight keep their own entry."""
        self.entries = []
        self.max_concurrent_queries = self.queries_in_flight


@dataclass
class Project:
    """One PostHog project; its id is the team_id of its rows in ClickHouse."""

    id: int
    name: str
    token: str
    timezone: str
    settings: ProjectSettings
    uuid: str
    created_at: datetime
    cohorts: list[dict[str, Any]] = field(default_factory=list)
    insights: list[dict[str, Any]] = field(default_factory=list)
    definitions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    group_types: list[str] = field(default_factory=list)
    group_type_details: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: FaultQueue = field(default_factory=FaultQueue)
    journal: Journal = field(default_factory=Journal)
    ingested_event: bool = False

    @property
    def zone(self) -> ZoneInfo:
        """The project's timezone."""
        return ZoneInfo(self.timezone)

    def add_group_type(self, name: str) -> None:
        """Note a kind of groups that was seen, if it is new."""
        if name not in self.group_types:
            self.group_types.append(name)
            self.group_type_details[name] = {"created_at": datetime.now(UTC)}


class State:
    """All projects and keys of this server."""

    def __init__(self) -> None:
        self.projects: dict[int, Project] = {}
        self.keys: dict[str, ApiKey] = {}
        self.organization_id = str(uuid.uuid4())
        self.user_uuid = str(uuid.uuid4())
        self._next_definition_id = 1
        self._ahead = timedelta()

    def now(self) -> datetime:
        """The server's clock."""
        return datetime.now(UTC) + self._ahead

    def set_clock(self, now: datetime | None) -> None:
        """Puts the clock forward or back, from where it goes on; None puts it right again."""
        self._ahead = now - datetime.now(UTC) if now else timedelta()

    def create_project(self, *, name: str = "", timezone: str = "UTC") -> Project:
        """A new, empty project."""
        check_timezone(timezone)
        number = len(self.projects) + 1
        project = Project(
            id=number,
            name=name or f"Project {number}",
            token="phc_" + secrets.token_hex(20),
            timezone=timezone,
            settings=ProjectSettings(),
            uuid=str(uuid.uuid4()),
            created_at=self.now(),
        )
        self.projects[number] = project
        return project

    def create_key(self, scopes: Iterable[str], project_ids: Iterable[int] | None) -> ApiKey:
        """A new personal API key."""
        key = ApiKey(
            value="phx_" + secrets.token_hex(20),
            scopes=tuple(scopes),
            project_ids=None if project_ids is None else tuple(project_ids),
        )
        self.keys[key.value] = key
        return key

    def project_by_token(self, token: str) -> Project | None:
        """The project that a `phc_` token writes to."""
        return next((project for project in self.projects.values() if project.token == token), None)

    def current_project(self, key: ApiKey) -> Project | None:
        """What `@current` means to the owner of a key."""
        if key.project_ids is None:
            return next(iter(self.projects.values()))
        return next((self.projects[n] for n in key.project_ids if n in self.projects), None)

    def organization_of(self, project: Project) -> str:
        """The organization that a project belongs to: the server's own unless its settings name another."""
        return project.settings.organization_id or self.organization_id

    def organization_ids(self) -> list[str]:
        """All organizations, the server's own first."""
        found = [self.organization_of(project) for project in self.projects.values()]
        return list(dict.fromkeys([self.organization_id, *found]))

    def projects_of(self, organization_id: str) -> list[Project]:
        """An organization's projects."""
        return [one for one in self.projects.values() if self.organization_of(one) == organization_id]

    def new_definition_id(self) -> int:
        """The next number; those that a control call gave are not known here."""
        number = self._next_definition_id
        self._next_definition_id += 1
        return number


def check_timezone(name: str) -> None:
    """Refuse a timezone that does not exist."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise UnknownSettingError(f"Unknown timezone: {name!r}.") from error


def _rate_limits(value: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    unknown = sorted(set(value) - set(DEFAULT_RATE_LIMITS))
    if unknown:
        raise UnknownSettingError(f"Unknown throttle classes: {', '.join(unknown)}.")
    return {name: (int(limits[0]), int(limits[1])) for name, limits in value.items()}
