"""What an event does to the properties of its person, and when that is worth a new version.

Plain values in and out: whose properties they are is persons.py. Facts, 2026: in PostHog/posthog,
`nodejs/src/ingestion/common/persons/person-update.ts`, `nodejs/src/common/persons/person-property-utils.ts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

PERSON_EVENTS = frozenset({"$identify", "$create_alias", "$merge_dangerously", "$set"})
NO_PERSON_UPDATE_EVENTS = frozenset({"$exception", "$$heatmap"})
# They change with every page: alone they make no new version, unless the person did not have them yet.
FILTERED_PROPERTIES = frozenset(
    {"$current_url", "$pathname", "$referring_domain", "$referrer", "$raw_user_agent"}
    | {"$screen_height", "$screen_width", "$viewport_height", "$viewport_width"}
    | {"$browser", "$browser_version", "$device_type", "$os", "$os_name", "$os_version"}
    | {"$geoip_postal_code", "$geoip_time_zone", "$geoip_latitude", "$geoip_longitude"}
    | {"$geoip_accuracy_radius", "$geoip_city_confidence", "$geoip_country_confidence"}
    | {"$geoip_postal_code_confidence"}
    | {f"$geoip_subdivision_{n}_{part}" for n in (1, 2, 3) for part in ("code", "name")}
    | {f"$geoip_subdivision_{n}_confidence" for n in (1, 2)}
)

_UTM = ("utm_source", "utm_medium", "utm_campaign", "utm_content", "utm_name", "utm_term", "gclid", "fbclid")
_CLIENT = (
    *("$app_build", "$app_name", "$app_namespace", "$app_version", "$browser", "$browser_version"),
    *("$device_type", "$current_url", "$pathname", "$os", "$os_name", "$os_version"),
    *("$referring_domain", "$referrer"),
)


def apply_event(
    before: Mapping[str, Any], name: str, properties: Mapping[str, Any], *, is_new: bool
) -> tuple[dict[str, Any], bool]:
    """The person's properties as this event shows them, and whether they are to be kept."""
    if name in NO_PERSON_UPDATE_EVENTS and not is_new:
        return dict(before), False
    automatic = _automatic_properties(properties)
    once = {f"$initial_{key.removeprefix('$')}": value for key, value in automatic.items()}
    once |= json_object(properties.get("$set_once"))
    given = {**automatic, **json_object(properties.get("$set"))}
    first = {key: value for key, value in once.items() if _is_absent(before, key, value)}
    changed = {
        key: value for key, value in given.items() if key not in before or not same_json(before[key], value)
    }
    unset = properties.get("$unset")
    gone = {key for key in unset if key in before} if isinstance(unset, list | dict) else set()
    after = {key: value for key, value in {**before, **first, **changed}.items() if key not in gone}
    worth_it = name in PERSON_EVENTS or any(
        key not in before or key not in FILTERED_PROPERTIES for key in changed
    )
    return after, bool(first or gone or (changed and worth_it))


def json_object(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON, where 1 is not true."""
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)


def _is_absent(before: Mapping[str, Any], key: str, value: Any) -> bool:
    """A null is no first value that a later one could not follow."""
    return key not in before or (before[key] is None and value is not None)


def _automatic_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    """What a client says of itself; a server SDK's own operating system is not its user's."""
    if properties.get("$is_server"):
        return {key: properties[key] for key in _UTM if key in properties}
    return {key: properties[key] for key in (*_CLIENT, *_UTM) if key in properties}
