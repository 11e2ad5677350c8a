"""The lists of what people have defined: dashboards, flags, surveys, actions and their like, a row each.

Each keeps the paging, order and filter quirks of PostHog's (rest_api.md 3 and 4; 2026). Objects are put in by
the control API and never change by themselves, nor does the activity log grow by itself. Not here: cohorts,
insights, projects and organizations themselves (`rest`), kinds of groups (`group_types`).
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from posthog_emulator import definitions
from posthog_emulator.auth import Endpoint, Gate
from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.envelope import ApiError, json_response
from posthog_emulator.hogql import literals
from posthog_emulator.paging import page_by_cursor, page_by_number, page_of
from posthog_emulator.state import Project, State

REFUSALS = {
    402: ("This feature is not available in your plan.", "payment_required"),
    403: ("This action does not support Personal API Key access", "permission_denied"),
    404: ("Endpoint not found.", "not_found"),
}
"""What an unavailable list answers: not in the plan, not for keys, not on this server."""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One list.

    Attributes:
        path: Below the project; where `{parent}` is in it, there is a list for each of another list's items.
        scope: What a key needs.
        texts, numbers, flags, times, objects, lists: Names of an item's members beside its id.
        id_kind: What ids are.
        paging: `offset`; `pages` of 1,000 by number; `whole`, in one object; `cursor`, newest first.
        default: Items of a page that names no limit.
        most: Items of a page at most, whatever the limit.
        default_order: What the list is ordered by of itself; empty where that leaves ties, and so any order.
        order_param: Query parameter that orders.
        orders: What it may name; anything where empty. Others are a 400 where `is_strict`, else ignored.
        is_strict: See there.
        hides_archived: Unless `archived` is asked for.
        hides_unlisted: Unless `creation_mode=unlisted` is asked for.
        date_field: What `date_from` and `date_to` compare, both exclusive.
        added: Items that are in no table, as PostHog adds them to the last page.
        throttle: Which limits count.
        detail_key: Member by which a GET of one item finds it; empty where there is none. Only it has the
            members under `_detail`.
        is_organizations: Whether it stands below the organization, and takes the items of all its projects.
        after_days: `after` is that many days ago unless it is given; items made earlier are left out.
    """

    path: str
    scope: str
    texts: str = ""
    numbers: str = ""
    flags: str = ""
    times: str = ""
    objects: str = ""
    lists: str = ""
    id_kind: Literal["number", "uuid"] = "number"
    paging: Literal["offset", "pages", "whole", "cursor"] = "offset"
    default: int = 100
    most: int | None = None
    default_order: str = ""
    order_param: str = ""
    orders: tuple[str, ...] = ()
    is_strict: bool = False
    hides_archived: bool = False
    hides_unlisted: bool = False
    date_field: str = ""
    added: tuple[dict[str, Any], ...] = ()
    throttle: str = "default"
    detail_key: str = ""
    is_organizations: bool = False
    after_days: int = 0

    def item(self, state: State, given: Mapping[str, Any]) -> dict[str, Any]:
        """An object, whole, from whatever part of it is given."""
        now = state.now().isoformat().replace("+00:00", "Z")
        number = state.new_definition_id()
        blank: dict[str, Any] = {"id": str(uuid.uuid4()) if self.id_kind == "uuid" else number}
        for names, value in (
            (self.texts, ""),
            (self.numbers, 0),
            (self.flags, False),
            (self.times, now),
            (self.objects, None),
            (self.lists, []),
        ):
            blank |= dict.fromkeys(names.split(), value)
        if "short_id" in blank:
            blank["short_id"] = definitions.short_id(f"{self.path} {given.get('id', blank['id'])}")
        if "created_by" in blank:
            blank["created_by"] = definitions.user(state)
        return blank | dict(given)


RESOURCES = (
    Resource(
        path="dashboards",
        scope="dashboard:read",
        texts="name description creation_mode",
        numbers="restriction_level effective_restriction_level effective_privilege_level team_id",
        flags="pinned is_shared deleted",
        times="created_at last_accessed_at last_viewed_at last_refresh",
        objects="created_by user_access_level access_control_version",
        lists="tags",
        hides_unlisted=True,
        detail_key="id",
    ),
    Resource(
        path="feature_flags",
        scope="feature_flag:read",
        texts="name key status evaluation_runtime bucketing_identifier creation_context user_access_level",
        numbers="version usage_dashboard",
        flags="deleted active archived ensure_experience_continuity performed_rollback can_edit"
        " has_enriched_analytics is_remote_configuration has_encrypted_payloads is_used_in_replay_settings",
        times="created_at updated_at last_called_at",
        objects="filters created_by last_modified_by surveys features rollback_conditions",
        lists="experiment_set experiment_set_metadata tags evaluation_contexts analytics_dashboards",
        order_param="order",
        hides_archived=True,
    ),
    Resource(
        path="experiments",
        scope="experiment:read",
        texts="name description feature_flag_key type conclusion conclusion_comment status user_access_level",
        numbers="holdout_id exposure_cohort",
        flags="archived deleted only_count_matured_users",
        times="start_date end_date created_at updated_at",
        objects="feature_flag holdout parameters filters created_by exposure_criteria stats_config"
        " scheduling_config",
        lists="primary_metrics_ordered_uuids secondary_metrics_ordered_uuids",
        order_param="order",
        orders=("name", "created_at", "updated_at", "start_date", "end_date", "duration", "status"),
        is_strict=True,
        hides_archived=True,
        detail_key="id",
    ),
    Resource(
        path="experiment_holdouts",
        scope="experiment:read",
        texts="name description",
        times="created_at updated_at",
        objects="filters created_by",
    ),
    Resource(
        path="experiment_saved_metrics",
        scope="experiment:read",
        texts="name description user_access_level",
        times="created_at updated_at",
        objects="query created_by",
        lists="tags",
    ),
    Resource(
        path="surveys",
        scope="survey:read",
        id_kind="uuid",
        texts="name description type schedule user_access_level",
        numbers="linked_flag_id linked_insight_id responses_limit iteration_count iteration_frequency_days",
        flags="archived enable_partial_responses enable_iframe_embedding",
        times="created_at start_date end_date",
        objects="linked_flag targeting_flag internal_targeting_flag conditions appearance created_by"
        " translations form_content",
        lists="questions feature_flag_keys",
    ),
    Resource(
        path="early_access_feature",
        scope="early_access_feature:read",
        id_kind="uuid",
        texts="name description stage documentation_url",
        times="created_at",
        objects="feature_flag payload created_by",
    ),
    Resource(
        path="actions",
        scope="action:read",
        texts="name description slack_message_format bytecode_error creation_context user_access_level",
        numbers="team_id",
        flags="post_to_slack deleted is_calculating is_action",
        times="created_at last_calculated_at pinned_at",
        objects="created_by",
        lists="tags steps",
        paging="whole",
    ),
    Resource(
        path="annotations",
        scope="annotation:read",
        texts="content creation_type scope dashboard_name insight_short_id insight_name insight_derived_name",
        numbers="dashboard_item dashboard_id",
        flags="deleted",
        times="date_marker created_at updated_at",
        objects="created_by",
        lists="tags",
        default=1000,
    ),
    Resource(
        path="notebooks",
        scope="notebook:read",
        id_kind="uuid",
        texts="short_id title user_access_level",
        flags="deleted",
        times="created_at last_modified_at",
        objects="created_by last_modified_by",
        order_param="order",
        date_field="last_modified_at",
        detail_key="short_id",
    ),
    Resource(
        path="event_definitions",
        scope="event_definition:read",
        id_kind="uuid",
        texts="name description enforcement_mode promoted_property",
        flags="verified hidden is_action is_calculating post_to_slack",
        times="created_at updated_at last_seen_at last_updated_at verified_at",
        objects="owner updated_by verified_by created_by action_id last_calculated_at",
        lists="tags default_columns media_preview_urls",
        order_param="ordering",
        orders=("name", "last_seen_at", "last_seen_at::date"),
    ),
    Resource(
        path="property_definitions",
        scope="property_definition:read",
        id_kind="uuid",
        texts="name description property_type",
        flags="is_numerical verified hidden",
        times="updated_at",
        objects="is_seen_on_filtered_events updated_by verified_at verified_by",
        lists="tags",
        default_order="name",
    ),
    Resource(
        path="session_recording_playlists",
        scope="session_recording_playlist:read",
        texts="short_id name derived_name description type",
        flags="pinned deleted is_synthetic",
        times="created_at last_modified_at",
        objects="created_by filters last_modified_by recordings_counts",
        most=500,
        order_param="order",
        orders=("created_at", "last_modified_at", "name"),
        added=({"id": -1, "short_id": "synthetic-watch-history", "name": "History", "is_synthetic": True},),
        throttle="clickhouse",
    ),
    Resource(
        path="error_tracking/issues",
        scope="error_tracking:read",
        id_kind="uuid",
        texts="status name description",
        times="first_seen",
        objects="assignee cohort",
        lists="external_issues",
    ),
    Resource(
        path="alerts",
        scope="alert:read",
        id_kind="uuid",
        texts="name state calculation_interval",
        numbers="insight last_value",
        flags="enabled skip_weekend",
        times="created_at last_notified_at last_checked_at next_check_at",
        objects="created_by threshold condition config detector_config snoozed_until",
        lists="subscribed_users checks",
    ),
    Resource(
        path="subscriptions",
        scope="subscription:read",
        texts="insight_short_id resource_name target_type target_value frequency title summary",
        numbers="dashboard insight interval bysetpos count integration_id",
        flags="deleted",
        times="start_date created_at next_delivery_date",
        objects="until_date created_by",
        lists="byweekday dashboard_export_insights",
        order_param="ordering",
    ),
    Resource(
        path="endpoints",
        scope="endpoint:read",
        id_kind="uuid",
        texts="name description endpoint_path url ui_url derived_from_insight",
        numbers="data_freshness_seconds current_version versions_count",
        flags="is_active is_materialized",
        times="created_at updated_at last_executed_at",
        objects="query created_by materialization bucket_overrides",
        lists="columns",
    ),
    Resource(
        path="evaluations",
        scope="evaluation:read",
        id_kind="uuid",
        texts="name description status status_reason evaluation_type output_type",
        flags="enabled deleted",
        times="created_at updated_at",
        objects="evaluation_config output_config conditions model_configuration created_by",
        order_param="order_by",
        orders=("created_at", "updated_at", "name"),
    ),
    Resource(
        path="hog_functions",
        scope="hog_function:read",
        id_kind="uuid",
        texts="type name description hog icon_url",
        numbers="execution_order",
        flags="enabled",
        times="created_at updated_at",
        objects="created_by filters template status",
    ),
    Resource(
        path="batch_exports",
        scope="batch_export:read",
        id_kind="uuid",
        texts="name model interval timezone",
        numbers="team_id offset_day offset_hour",
        flags="paused",
        times="created_at last_updated_at last_paused_at start_at end_at",
        objects="destination schema filters",
        lists="latest_runs",
    ),
    Resource(
        path="batch_exports/{parent}/runs",
        scope="batch_export:read",
        id_kind="uuid",
        texts="status latest_error batch_export",
        numbers="records_completed records_total_count bytes_exported",
        times="created_at finished_at last_updated_at data_interval_start data_interval_end",
        objects="cursor backfill",
        paging="cursor",
        after_days=7,
    ),
    Resource(
        path="activity_log",
        scope="activity_log:read",
        id_kind="uuid",
        texts="organization_id client activity item_id scope",
        flags="unread was_impersonated is_system",
        times="created_at",
        objects="user detail",
        paging="cursor",
        most=1_000,
    ),
    Resource(
        path="members",
        scope="organization_member:read",
        id_kind="uuid",
        numbers="level",
        flags="is_2fa_enabled has_social_auth",
        times="joined_at updated_at last_login",
        objects="user",
        order_param="order",
        is_organizations=True,
    ),
    Resource(
        path="roles",
        scope="organization:read",
        id_kind="uuid",
        texts="name",
        flags="is_default",
        times="created_at",
        objects="created_by",
        lists="members",
        is_organizations=True,
    ),
    Resource(
        path="warehouse_saved_queries",
        scope="warehouse_view:read",
        id_kind="uuid",
        texts="name sync_frequency status managed_viewset_kind folder_id folder_name latest_error origin",
        flags="deleted is_materialized is_test",
        times="created_at last_run_at",
        objects="created_by expires_at",
        lists="columns",
        paging="pages",
    ),
    Resource(
        path="external_data_sources",
        scope="external_data_source:read",
        id_kind="uuid",
        texts="created_by status client_secret account_id source_type latest_error prefix description"
        " access_method engine",
        flags="supports_webhooks",
        times="created_at last_run_at",
        objects="job_inputs revenue_analytics_config",
        lists="schemas",
    ),
)
BY_PATH = {resource.path: resource for resource in RESOURCES}

RESPONSES_COUNT = "surveys/responses_count"
SERVED = {RESPONSES_COUNT} | {resource.path for resource in RESOURCES if not resource.is_organizations}
"""Lists that a project may be without."""


class Definitions:
    """The routes of one server."""

    def __init__(self, clickhouse: ClickHouse, state: State, gate: Gate) -> None:
        self._clickhouse = clickhouse
        self._state = state
        self._gate = gate
        self._shuffles = 0

    def routes(self) -> list[Route]:
        """Every list, and what else is told of its items."""
        project = "/api/projects/{project_id}"
        counts = self._gate.project(self._survey_responses, ["survey:read"])
        routes = [Route(f"{project}/{RESPONSES_COUNT}", self._if_served(RESPONSES_COUNT, counts))]
        for one in RESOURCES:
            if one.is_organizations:
                route = self._gate.account(self._answer_for_organization(one), [one.scope])
                routes.append(Route(f"/api/organizations/{{organization_id}}/{one.path}", route))
                continue
            route = self._gate.project(self._answer_for_project(one), [one.scope], one.throttle)
            routes.append(Route(f"{project}/{one.path}", self._if_served(one.path, route)))
            if one.detail_key:
                detail = self._gate.project(_detail_of(one), [one.scope], one.throttle)
                routes.append(Route(f"{project}/{one.path}/{{item}}", self._if_served(one.path, detail)))
        return routes

    def _answer_for_project(self, resource: Resource) -> Endpoint:
        async def answer(request: Request) -> Response:
            return self._answer(request, resource, request.state.project.definitions.get(resource.path, []))

        return answer

    def _answer_for_organization(self, resource: Resource) -> Endpoint:
        async def answer(request: Request) -> Response:
            if resource.path == "roles" and request.query_params:
                raise ApiError(500)  # older servers hand every parameter to the database (rest_api.md 4.19)
            projects = self._state.projects_of(request.path_params["organization_id"])
            if not projects:
                raise ApiError(404, "Organization not found.")
            items = [item for one in projects for item in one.definitions.get(resource.path, [])]
            return self._answer(request, resource, items)

        return answer

    def _answer(self, request: Request, resource: Resource, items: Sequence[dict[str, Any]]) -> Response:
        found = [one for one in items if _is_shown(resource, one, request, self._state.now())]
        return _answer(request, resource, self._ordered(resource, found, request))

    async def _survey_responses(self, request: Request) -> Response:
        """How many answers each survey has, of those that are there."""
        project: Project = request.state.project
        ids = ", ".join(literals.text(one["id"]) for one in project.definitions.get("surveys", [])) or "''"
        sql = (
            "SELECT JSONExtractString(properties, '$survey_id') AS survey, count() FROM events"
            f" WHERE team_id = {project.id} AND event = 'survey sent' AND survey IN ({ids})"
            " GROUP BY survey"
        )
        answer = await run_in_threadpool(self._clickhouse.run, sql)
        return json_response({survey: int(count) for survey, count in orjson.loads(answer.rows_json)})

    def _if_served(self, path: str, guarded: Endpoint) -> Endpoint:
        """Only where the project has the list at all."""

        async def if_served(request: Request) -> Response:
            number = request.path_params["project_id"]
            project = self._state.projects.get(int(number)) if number.isdecimal() else None
            status = project.settings.unavailable.get(path) if project else None
            is_elsewhere = project and path in project.settings.environments_only
            if status == 404 or (is_elsewhere and request.scope["posthog.path"].startswith("/api/projects/")):
                raise ApiError(404, REFUSALS[404][0])
            if status in REFUSALS:
                raise ApiError(status, REFUSALS[status][0], code=REFUSALS[status][1])
            return await guarded(request)

        return if_served

    def _ordered(
        self, resource: Resource, items: list[dict[str, Any]], request: Request
    ) -> list[dict[str, Any]]:
        """As asked, or in another order each time, as Postgres may give equal keys in any."""
        asked = request.query_params.get(resource.order_param) if resource.order_param else None
        order = asked or resource.default_order
        name = order.removeprefix("-")
        if order and resource.orders and name not in resource.orders and resource.is_strict:
            raise ApiError(400, f"Invalid order: {order}", attr=resource.order_param)
        self._shuffles += 1
        random.Random(self._shuffles).shuffle(items)  # noqa: S311 - nothing secret
        if order and (not asked or not resource.orders or name in resource.orders):
            items.sort(
                key=lambda one: (one.get(name) is None, 0 if one.get(name) is None else one[name]),
                reverse=order.startswith("-"),
            )
        return items


def find_resource(path: str) -> Resource:
    """The list of that path.

    Raises:
        ApiError: There is none.
    """
    if path not in BY_PATH:
        raise ApiError(404, f"No list {path!r}. There are: {', '.join(sorted(BY_PATH))}.")
    return BY_PATH[path]


def _detail_of(resource: Resource) -> Endpoint:
    """One item, with what only its own GET tells."""

    async def answer(request: Request) -> Response:
        wanted = request.path_params["item"]
        for one in request.state.project.definitions.get(resource.path, []):
            if str(one[resource.detail_key]) == wanted and not one.get("deleted"):
                return json_response(_public(one) | one.get("_detail", {}))
        raise ApiError(404, "Not found.")

    return answer


def _is_shown(resource: Resource, item: Mapping[str, Any], request: Request, now: datetime) -> bool:
    query = request.query_params
    if item.get("deleted") or item.get("_parent") != request.path_params.get("parent"):
        return False
    if resource.path == "activity_log" and query.get("scope", item["scope"]) != item["scope"]:
        return False
    if resource.after_days:
        after = query.get("after")
        bound = datetime.fromisoformat(after) if after else now - timedelta(days=resource.after_days)
        bound = bound if bound.tzinfo else bound.replace(tzinfo=UTC)
        return bound <= datetime.fromisoformat(item["created_at"]) <= now
    if resource.hides_archived and bool(item.get("archived")) != (query.get("archived") == "true"):
        return False
    if resource.hides_unlisted:
        is_unlisted = item.get("creation_mode") == "unlisted"
        if is_unlisted != (query.get("creation_mode") == "unlisted"):
            return False
    if resource.path == "property_definitions" and not _is_of_type(item, query):
        return False
    if resource.date_field:
        return _is_between(datetime.fromisoformat(item[resource.date_field]), query)
    return True


def _is_between(changed_at: datetime, query: Mapping[str, str]) -> bool:
    """Both bounds are exclusive."""
    first, last = (_bound(query, name) for name in ("date_from", "date_to"))
    return (not first or changed_at > first) and (not last or changed_at < last)


def _bound(query: Mapping[str, str], name: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(query[name]) if query.get(name) else None
    except ValueError:
        raise ApiError(400, f"posthog_emulator takes ISO times as {name} here.") from None
    return at.replace(tzinfo=UTC) if at and at.tzinfo is None else at


def _is_of_type(item: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    """PostHog's items do not say of what they are the property; the control API does."""
    wanted = query.get("type", "event")
    if wanted == "group" and not query.get("group_type_index", "").isdecimal():
        raise ApiError(400, "`group_type_index` must be set for `group` type", attr="group_type_index")
    index = int(query.get("group_type_index", 0)) if wanted == "group" else None
    return bool(item.get("_type", "event") == wanted and item.get("_group_type_index") == index)


def _answer(request: Request, resource: Resource, items: Sequence[dict[str, Any]]) -> Response:
    shown = [_public(one) for one in items]
    if resource.paging == "whole":
        return json_response({"results": shown})
    if resource.paging == "pages":
        return page_by_number(request, shown)
    if resource.paging == "cursor":
        return page_by_cursor(request, shown, "created_at", most=resource.most)
    added: Sequence[dict[str, Any]] = resource.added
    if resource.path == "property_definitions" and request.query_params.get("type") in ("person", "group"):
        added = [{"id": "$builtin_virtual", "name": "$virt_initial_channel_type", "virtual": True}]
    return page_of(request, shown, default=resource.default, most=resource.most, appended=added)


def _public(item: Mapping[str, Any]) -> dict[str, Any]:
    """Less what only the emulator knows."""
    return {name: value for name, value in item.items() if not name.startswith("_")}
