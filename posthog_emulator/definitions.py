"""Default members of cohorts and insights, as PostHog's API shows them. Others: rest_definitions.py.

Where they are kept is state.py, how they are listed is rest.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from posthog_emulator.state import State

USER_ID = 1
USER_EMAIL = "founder@example.com"


def user(state: State) -> dict[str, Any]:
    """The one person who uses this server, as shown inside other objects."""
    return {
        "id": USER_ID,
        "uuid": state.user_uuid,
        "distinct_id": "emulator-founder",
        "first_name": "Ada",
        "last_name": "Founder",
        "email": USER_EMAIL,
        "is_email_verified": True,
        "hedgehog_config": None,
        "role_at_organization": "founder",
    }


def cohort(state: State, given: Mapping[str, Any]) -> dict[str, Any]:
    """A cohort."""
    number = int(given.get("id") or state.new_definition_id())
    now = state.now().isoformat().replace("+00:00", "Z")
    return {
        "id": number,
        "name": f"Cohort {number}",
        "description": "",
        "groups": [],
        "deleted": False,
        "filters": {"properties": {"type": "OR", "values": []}},
        "query": None,
        "version": None if given.get("is_static") else 1,
        "pending_version": None,
        "is_calculating": False,
        "created_by": user(state),
        "created_at": now,
        "last_calculation": now,
        "last_backfill_person_properties_at": None,
        "errors_calculating": 0,
        "last_error_message": None,
        "count": 0,
        "is_static": False,
        "cohort_type": None,
        "experiment_set": [],
        **given,
    } | {"id": number}


def insight(state: State, given: Mapping[str, Any]) -> dict[str, Any]:
    """An insight, without its result."""
    number = int(given.get("id") or state.new_definition_id())
    created_at = str(given.get("created_at") or state.now().isoformat().replace("+00:00", "Z"))
    return {
        "id": number,
        "short_id": short_id(f"insight {number}"),
        "name": "",
        "derived_name": None,
        "filters": {},
        "query": None,
        "order": None,
        "deleted": False,
        "dashboards": [],
        "dashboard_tiles": [],
        "description": "",
        "last_refresh": None,
        "cache_target_age": None,
        "next_allowed_client_refresh": None,
        "refreshing": False,
        "saved": True,
        "tags": [],
        "updated_at": created_at,
        "created_by": user(state),
        "created_at": created_at,
        "last_modified_at": created_at,
        "last_modified_by": user(state),
        "favorited": False,
        "is_sample": False,
        "effective_restriction_level": 21,
        "effective_privilege_level": 37,
        "user_access_level": "manager",
        "last_viewed_at": None,
        **given,
    } | {"id": number}


def short_id(text: str) -> str:
    """What stands for an object in addresses."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
