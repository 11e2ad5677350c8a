"""What people define in PostHog: insights, dashboards, flags, surveys and the rest, a row of data each.

A table is its description, its members by type, and what its list wants to be asked (rest_api.md 3 and 4).
Free-form members stay JSON, what newer servers add becomes columns of text; secrets, and what depends on
whose key asks, are left out. Few lists can tell what changed, so most are read whole; deleted objects are not
listed, and so go from such tables. What takes a request for each object is a table of its own, read only
where it is asked for by name. Not here: how lists are read (`rest`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthog_source.tables import PROJECT_ID, Column, Kind, Pass, RestTable

SECRETS = (
    "secret_api_token", "secret_api_token_backup", "live_events_token", "api_token", "client_secret",
    "job_inputs", "destination",
)  # fmt: skip
"""Members that are or hold credentials (rest_api.md 8, 23); a batch export's destination does."""

OWN_VIEWS = (
    "user_access_level", "effective_restriction_level", "effective_privilege_level",
    "access_control_version", "last_viewed_at", "can_edit", "viewed",
)  # fmt: skip
"""Members that depend on whose key asks (rest_api.md 8, 24)."""

DROPPED = frozenset({*SECRETS, *OWN_VIEWS, "team_id", "team"})
"""Members that become no columns; the team is the project."""

WORDS: Mapping[str, str] = {
    "id": "PostHog's id",
    "short_id": "As in its address",
    "derived_name": "Name that PostHog makes from the definition",
    "saved": "Whether it was saved by a person",
    "favorited": "Whether it is a favourite",
    "dashboards": "Dashboards that show it",
    "dashboard_tiles": "Its tiles on dashboards",
    "last_refresh": "When its result was last computed",
    "created_by": "Who made it",
    "created_at": "When it was made",
    "updated_at": "When it was last saved",
    "last_updated_at": "When it was last saved",
    "last_modified_at": "When it was last edited",
    "last_modified_by": "Who edited it last",
    "updated_by": "Who saved it last",
    "deleted": "Always false: what is deleted is not listed",
    "user": "Who did it",
    "detail": "What changed",
    "item_id": "Id of what was changed",
    "scope": "Kind of what was changed",
    "filters": "Definition",
    "query": "Definition",
    "steps": "What it matches",
    "active": "Whether it is on",
    "enabled": "Whether it is on",
    "archived": "Whether it is archived",
    "verified_at": "When somebody vouched for it",
    "verified_by": "Who vouched for it",
    "last_called_at": "When it was last evaluated",
}
"""Of members whose names do not say it all; the others' descriptions are their names."""

ARCHIVED = (Pass(params={"archived": "false"}), Pass(params={"archived": "true"}))
"""Lists that hide what is archived; servers that do not know the parameter list the same twice."""


PROPERTY_KINDS = (
    *(Pass(params={"type": kind}, stamps={"type": kind}) for kind in ("event", "person", "session")),
    *(
        Pass(
            params={"type": "group", "group_type_index": str(index)},
            stamps={"type": "group", "group_type_index": index},
        )
        for index in range(5)
    ),
)
"""Lists of properties of events, persons, sessions and each kind of groups, whose items do not say whose."""


def _columns(members: Mapping[Kind, str], key: str) -> tuple[Column, ...]:
    """Columns of members by type."""
    found = [(name, kind) for kind, names in members.items() for name in names.split()]
    return (
        PROJECT_ID,
        *(
            Column(
                name,
                kind,
                WORDS.get(name, name.replace("_", " ").capitalize()),
                is_required=name == key,
            )
            for name, kind in found
        ),
    )


def _whole(
    name: str, description: str, scope: str, members: Mapping[Kind, str], *, path: str = "", **given: Any
) -> RestTable:
    """A table whose list is read whole each time, in pages that hold most projects' lists."""
    key = given.get("primary_key", ("project_id", "id"))
    defaults: dict[str, Any] = {
        "primary_key": key,
        "disposition": "snapshot",
        "params": {},
        "page_rows": 1_000,
        "rate_class": "default",
        "is_optional": True,
        "is_open": True,
        "dropped": DROPPED,
    }
    return RestTable(
        name=name,
        description=description,
        columns=_columns(members, key[-1]),
        scopes=tuple(f"{each}:read" for each in scope.split()),
        path=path or f"{name}/",
        **defaults | given,
    )


def _followed(cursor: str, param: str = "", *, overlap_s: float, activity: str = "") -> dict[str, Any]:
    """What a table has of which only changes are read: see `RestTable`."""
    return {
        "disposition": "merge",
        "cursor": cursor,
        "cursor_param": param,
        "overlap_s": overlap_s,
        "activity_scope": activity,
    }


# Without an order PostHog sorts by a column that is mostly null, and offset paging skips and repeats rows;
# without basic=true each row carries its result (rest_api.md 4.4).
INSIGHTS = _whole(
    "insights",
    "One row per insight: its definition, not its results. Deleted ones go where the key may read the "
    "activity log, and stay as last seen elsewhere.",
    "insight",
    {
        "bigint": "id",
        "text": "short_id name derived_name description",
        "json": "query filters dashboards dashboard_tiles tags created_by",
        "bool": "saved favorited deleted",
        "timestamp": "created_at last_modified_at updated_at last_refresh",
    },
    params={"basic": "true", "order": "last_modified_at"},
    page_rows=500,
    rate_class="clickhouse",
    is_optional=False,
    is_open=False,
    **_followed("last_modified_at", "date_from", overlap_s=300.0, activity="Insight"),
)

DASHBOARDS = _whole(
    "dashboards",
    "One row per dashboard, those that no list shows too. Tiles are in dashboard_tiles.",
    "dashboard",
    {
        "bigint": "id restriction_level",
        "text": "name description creation_mode folder",
        "bool": "pinned is_shared deleted",
        "timestamp": "created_at last_accessed_at last_refresh",
        "json": "tags created_by",
    },
    passes=(Pass(params={}), Pass(params={"creation_mode": "unlisted"})),
    page_rows=10_000,  # no order can be asked for: one page is whole
)

# A dashboard's own list of tiles takes a GET each, which computes them and writes to the server.
DASHBOARD_TILES = _whole(
    "dashboard_tiles",
    "One row per insight on a dashboard, as the insights tell it; texts on dashboards are not among them.",
    "insight",
    {"bigint": "id dashboard_id insight_id", "bool": "deleted"},
    path="insights/",
    params={"basic": "true", "order": "id"},
    page_rows=500,
    rate_class="clickhouse",
    nested="dashboard_tiles",
    parent="insight_id",
)

FEATURE_FLAGS = _whole(
    "feature_flags",
    "One row per feature flag, archived ones too. PostHog bills each page like an evaluation of flags.",
    "feature_flag",
    {
        "bigint": "id version usage_dashboard",
        "text": "key name status evaluation_runtime bucketing_identifier creation_context",
        "bool": "active archived deleted ensure_experience_continuity performed_rollback"
        " has_enriched_analytics is_remote_configuration has_encrypted_payloads is_used_in_replay_settings",
        "timestamp": "created_at updated_at last_called_at",
        "json": "filters tags created_by last_modified_by experiment_set experiment_set_metadata surveys"
        " features rollback_conditions evaluation_contexts analytics_dashboards",
    },
    params={"order": "id"},
    passes=ARCHIVED,
    page_rows=10_000,  # billed by the page
)

EXPERIMENTS = _whole(
    "experiments",
    "One row per experiment, archived ones too. Newer servers list neither metrics nor saved metrics.",
    "experiment",
    {
        "bigint": "id holdout_id exposure_cohort",
        "text": "name description feature_flag_key type status conclusion conclusion_comment",
        "bool": "archived deleted only_count_matured_users",
        "timestamp": "start_date end_date created_at updated_at",
        "json": "feature_flag holdout parameters filters exposure_criteria metrics metrics_secondary"
        " saved_metrics secondary_metrics stats_config scheduling_config created_by"
        " primary_metrics_ordered_uuids secondary_metrics_ordered_uuids",
    },
    params={"order": "created_at"},
    passes=ARCHIVED,
)

EXPERIMENT_HOLDOUTS = _whole(
    "experiment_holdouts",
    "One row per group of people that experiments leave out.",
    "experiment",
    {
        "bigint": "id",
        "text": "name description",
        "timestamp": "created_at updated_at",
        "json": "filters created_by",
    },
    page_rows=10_000,  # no order can be asked for
)

EXPERIMENT_SAVED_METRICS = _whole(
    "experiment_saved_metrics",
    "One row per metric that experiments share.",
    "experiment",
    {
        "bigint": "id",
        "text": "name description",
        "timestamp": "created_at updated_at",
        "json": "query tags created_by",
    },
    page_rows=10_000,  # no order can be asked for
)

SURVEYS = _whole(
    "surveys",
    "One row per survey, archived ones too. Answers are events, `survey sent`.",
    "survey",
    {
        "uuid": "id",
        "bigint": "linked_flag_id linked_insight_id responses_limit iteration_count iteration_frequency_days",
        "text": "name description type schedule",
        "bool": "archived enable_partial_responses enable_iframe_embedding",
        "timestamp": "start_date end_date created_at",
        "json": "questions conditions appearance translations form_content feature_flag_keys linked_flag"
        " targeting_flag internal_targeting_flag created_by",
    },
    page_rows=10_000,  # no order can be asked for
)

SURVEY_RESPONSE_COUNTS = _whole(
    "survey_response_counts",
    "One row per survey that was answered: how often, as PostHog counts.",
    "survey",
    {"uuid": "id", "bigint": "count"},
    path="surveys/responses_count/",
    answer="counts",
)

EARLY_ACCESS_FEATURES = _whole(
    "early_access_features",
    "One row per feature that people may opt into early.",
    "early_access_feature",
    {
        "uuid": "id",
        "text": "name description stage documentation_url",
        "timestamp": "created_at",
        "json": "feature_flag payload created_by assignee",
    },
    path="early_access_feature/",
    page_rows=10_000,  # no order can be asked for
)

ACTIONS = _whole(
    "actions",
    "One row per action: events that were grouped under a name.",
    "action",
    {
        "bigint": "id",
        "text": "name description slack_message_format bytecode_error creation_context",
        "bool": "post_to_slack deleted is_calculating is_action",
        "timestamp": "created_at last_calculated_at pinned_at",
        "json": "steps tags created_by",
    },
    page_rows=0,  # comes whole, whatever is asked
)

ANNOTATIONS = _whole(
    "annotations",
    "One row per annotation; those of the whole organization are in each of its projects.",
    "annotation",
    {
        "bigint": "id dashboard_item dashboard_id",
        "text": "content creation_type scope dashboard_name insight_short_id insight_name"
        " insight_derived_name",
        "bool": "deleted",
        "timestamp": "date_marker created_at updated_at",
        "json": "tags created_by",
    },
    page_rows=10_000,  # no order can be asked for
)

NOTEBOOKS = _whole(
    "notebooks",
    "One row per notebook, without its content. Deleted ones go where the key may read the activity log, and "
    "stay as last seen elsewhere.",
    "notebook",
    {
        "uuid": "id",
        "text": "short_id title",
        "bool": "deleted",
        "timestamp": "created_at last_modified_at",
        "json": "created_by last_modified_by",
    },
    primary_key=("project_id", "short_id"),
    params={"order": "last_modified_at"},
    **_followed("last_modified_at", "date_from", overlap_s=60.0, activity="Notebook"),
)

EVENT_DEFINITIONS = _whole(
    "event_definitions",
    "One row per event name that PostHog knows.",
    "event_definition",
    {
        "uuid": "id",
        "bigint": "action_id",
        "text": "name description enforcement_mode promoted_property",
        "bool": "verified hidden is_action is_calculating post_to_slack",
        "timestamp": "created_at updated_at last_seen_at last_updated_at verified_at last_calculated_at",
        "json": "owner tags updated_by verified_by created_by default_columns media_preview_urls",
    },
    params={"ordering": "name"},
    page_rows=5_000,
)

PROPERTY_DEFINITIONS = _whole(
    "property_definitions",
    "One row per property that PostHog knows, of events, persons, groups and sessions.",
    "property_definition",
    {
        "uuid": "id",
        "text": "type name description property_type",
        "bigint": "group_type_index",
        "bool": "is_numerical is_seen_on_filtered_events verified hidden",
        "timestamp": "updated_at verified_at",
        "json": "tags updated_by verified_by",
    },
    passes=PROPERTY_KINDS,
    added_by="virtual",
    page_rows=5_000,
)

SESSION_RECORDING_PLAYLISTS = _whole(
    "session_recording_playlists",
    "One row per list of recordings.",
    "session_recording_playlist",
    {
        "bigint": "id",
        "text": "short_id name derived_name description type",
        "bool": "pinned deleted",
        "timestamp": "created_at last_modified_at",
        "json": "filters created_by last_modified_by recordings_counts",
    },
    params={"order": "created_at"},
    added_by="is_synthetic",
    page_rows=500,  # PostHog gives no more
    rate_class="clickhouse",
)

ERROR_TRACKING_ISSUES = _whole(
    "error_tracking_issues",
    "One row per issue of error tracking; issues merged into others are gone.",
    "error_tracking",
    {
        "uuid": "id",
        "text": "status name description",
        "timestamp": "first_seen",
        "json": "assignee external_issues cohort",
    },
    path="error_tracking/issues/",
    page_rows=10_000,  # no order can be asked for
)

ALERTS = _whole(
    "alerts",
    "One row per alert on an insight.",
    "alert",
    {
        "uuid": "id",
        "bigint": "insight",
        "double": "last_value",
        "text": "name state calculation_interval",
        "bool": "enabled skip_weekend",
        "timestamp": "created_at last_notified_at last_checked_at next_check_at snoozed_until",
        "json": "created_by subscribed_users threshold condition config detector_config checks",
    },
    page_rows=10_000,  # no order can be asked for
)

SUBSCRIPTIONS = _whole(
    "subscriptions",
    "One row per subscription to an insight or a dashboard.",
    "subscription",
    {
        "bigint": "id dashboard insight interval bysetpos count integration_id",
        "text": "title summary insight_short_id resource_name target_type target_value frequency",
        "bool": "deleted",
        "timestamp": "start_date until_date created_at next_delivery_date",
        "json": "byweekday dashboard_export_insights created_by",
    },
    params={"ordering": "created_at"},
)

ENDPOINTS = _whole(
    "endpoints",
    "One row per query that has an address of its own.",
    "endpoint",
    {
        "uuid": "id",
        "bigint": "data_freshness_seconds current_version versions_count",
        "text": "name description endpoint_path url ui_url derived_from_insight",
        "bool": "is_active is_materialized",
        "timestamp": "created_at updated_at last_executed_at",
        "json": "query columns materialization bucket_overrides created_by",
    },
    page_rows=10_000,  # no order can be asked for
)

EVALUATIONS = _whole(
    "evaluations",
    "One row per evaluation of AI answers; what they found are events, `$ai_evaluation`.",
    "evaluation",
    {
        "uuid": "id",
        "text": "name description status status_reason evaluation_type output_type",
        "bool": "enabled deleted",
        "timestamp": "created_at updated_at",
        "json": "evaluation_config output_config conditions model_configuration created_by",
    },
    params={"order_by": "created_at"},
)

HOG_FUNCTIONS = _whole(
    "hog_functions",
    "One row per function written in Hog: destinations, transformations and the like.",
    "hog_function",
    {
        "uuid": "id",
        "bigint": "execution_order",
        "text": "type name description hog icon_url",
        "bool": "enabled",
        "timestamp": "created_at updated_at",
        "json": "filters template status created_by",
    },
    page_rows=10_000,  # no order can be asked for
)

BATCH_EXPORTS = _whole(
    "batch_exports",
    "One row per batch export, without its destination, which has credentials.",
    "batch_export",
    {
        "uuid": "id",
        "bigint": "offset_day offset_hour",
        "text": "name model interval timezone",
        "bool": "paused",
        "timestamp": "created_at last_updated_at last_paused_at start_at end_at",
        "json": "schema filters latest_runs",
    },
    page_rows=10_000,  # no order can be asked for
)

BATCH_EXPORT_RUNS = _whole(
    "batch_export_runs",
    "One row per run of a batch export, as it was when last seen within a week of its beginning.",
    "batch_export",
    {
        "uuid": "id batch_export backfill",
        "bigint": "records_completed records_total_count bytes_exported",
        "text": "status latest_error cursor",
        "timestamp": "created_at finished_at last_updated_at data_interval_start data_interval_end",
    },
    path="batch_exports/{id}/runs/",
    each=BATCH_EXPORTS,
    params={"after": "2020-01-01T00:00:00+00:00"},  # else PostHog goes back seven days
    is_newest_first=True,
    **_followed("created_at", "after", overlap_s=7 * 86_400.0),  # a run changes until it is finished
)

WAREHOUSE_SAVED_QUERIES = _whole(
    "warehouse_saved_queries",
    "One row per saved query of PostHog's own warehouse, without its SQL.",
    "warehouse_view",
    {
        "uuid": "id",
        "text": "name status sync_frequency managed_viewset_kind folder_id folder_name latest_error origin",
        "bool": "deleted is_materialized is_test",
        "timestamp": "created_at last_run_at expires_at",
        "json": "columns created_by",
    },
    page_rows=0,  # by page number, a thousand each
)

EXTERNAL_DATA_SOURCES = _whole(
    "external_data_sources",
    "One row per source of PostHog's own warehouse, without its credentials.",
    "external_data_source",
    {
        "uuid": "id",
        "text": "source_type status account_id latest_error prefix description access_method engine"
        " created_by",
        "bool": "supports_webhooks",
        "timestamp": "created_at last_run_at",
        "json": "schemas revenue_analytics_config",
    },
    page_rows=10_000,  # no order can be asked for
)

ACTIVITY_LOG = _whole(
    "activity_log",
    "One row per change that somebody made in PostHog, as far back as the plan keeps them.",
    "activity_log",
    {
        "uuid": "id organization_id",
        "text": "activity scope item_id client",
        "bool": "was_impersonated is_system",
        "timestamp": "created_at",
        "json": "user detail",
    },
    params={"page_size": "1000"},
    is_newest_first=True,
    **_followed("created_at", overlap_s=300.0),
)

USERS = _whole(
    "users",
    "One row per member of the project's organization.",
    "organization_member project",
    {
        "uuid": "id",
        "bigint": "level",
        "bool": "is_2fa_enabled has_social_auth",
        "timestamp": "joined_at updated_at last_login",
        "json": "user",
    },
    path="members/",
    root="organization",
    params={"order": "joined_at"},
)

ROLES = _whole(
    "roles",
    "One row per role in the project's organization.",
    "organization project",
    {
        "uuid": "id",
        "text": "name",
        "bool": "is_default",
        "timestamp": "created_at",
        "json": "members created_by",
    },
    root="organization",
    page_rows=0,  # older servers take no parameters at all
)

ORGANIZATIONS = _whole(
    "organizations",
    "One row per organization that the key may see.",
    "organization",
    {
        "uuid": "id",
        "text": "name slug",
        "bigint": "membership_level plugins_access_level member_count",
        "bool": "enforce_2fa is_member_join_email_enabled is_ai_data_processing_approved",
        "timestamp": "created_at updated_at",
        "json": "metadata available_product_features",
    },
    root="server",
    page_rows=10_000,  # no order can be asked for
    dropped=DROPPED | {"teams", "projects"},  # which hold the projects' tokens
)

PROJECTS = _whole(
    "projects",
    "One row per project that the key may see.",
    "project",
    {
        "bigint": "id",
        "uuid": "uuid organization",
        "text": "name timezone",
        "bool": "ingested_event is_demo completed_snippet_onboarding access_control",
        "json": "has_completed_onboarding_for",
    },
    root="server",
    page_rows=10_000,  # no order can be asked for
)

EXPERIMENT_METRICS = _whole(
    "experiment_metrics",
    "One row per experiment: what it measures, which newer servers' lists leave out.",
    "experiment",
    {
        "bigint": "id",
        "json": "metrics metrics_secondary saved_metrics",
        "timestamp": "updated_at",
    },
    path="experiments/{id}/",
    each=EXPERIMENTS,
    answer="object",
    is_open=False,
)

NOTEBOOK_CONTENTS = _whole(
    "notebook_contents",
    "One row per notebook: its content, a ProseMirror document.",
    "notebook",
    {
        "uuid": "id",
        "text": "short_id title text_content",
        "bigint": "version",
        "json": "content",
        "timestamp": "last_modified_at",
    },
    path="notebooks/{short_id}/",
    each=NOTEBOOKS,
    answer="object",
    is_open=False,
)

DASHBOARD_CONTENTS = _whole(
    "dashboard_contents",
    "One row per dashboard: its tiles with their results, computed for the purpose. Reading it counts as a "
    "visit.",
    "dashboard",
    {"bigint": "id", "text": "name", "json": "tiles filters variables"},
    path="dashboards/{id}/",
    each=DASHBOARDS,
    answer="object",
    is_open=False,
)

DETAILS: tuple[RestTable, ...] = (EXPERIMENT_METRICS, NOTEBOOK_CONTENTS, DASHBOARD_CONTENTS)
"""Those that take a request for each object."""

DEFINITIONS: tuple[RestTable, ...] = (
    INSIGHTS,
    DASHBOARDS,
    DASHBOARD_TILES,
    FEATURE_FLAGS,
    EXPERIMENTS,
    EXPERIMENT_HOLDOUTS,
    EXPERIMENT_SAVED_METRICS,
    SURVEYS,
    SURVEY_RESPONSE_COUNTS,
    EARLY_ACCESS_FEATURES,
    ACTIONS,
    ANNOTATIONS,
    NOTEBOOKS,
    EVENT_DEFINITIONS,
    PROPERTY_DEFINITIONS,
    SESSION_RECORDING_PLAYLISTS,
    ERROR_TRACKING_ISSUES,
    ALERTS,
    SUBSCRIPTIONS,
    ENDPOINTS,
    EVALUATIONS,
    HOG_FUNCTIONS,
    BATCH_EXPORTS,
    BATCH_EXPORT_RUNS,
    WAREHOUSE_SAVED_QUERIES,
    EXTERNAL_DATA_SOURCES,
    ACTIVITY_LOG,
    USERS,
    ROLES,
    ORGANIZATIONS,
    PROJECTS,
)
"""In the order in which they are read."""
