"""A dynamic cohort's filters as one condition in ClickHouse's SQL, over people's newest `properties`.

Conditions on person properties and groups of them; whatever else PostHog knows (behaviour, other cohorts,
negation, more operators) is refused, not guessed. Facts: `posthog/hogql/property.py` in PostHog/posthog.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from posthog_emulator.envelope import ApiError
from posthog_emulator.hogql import literals

CONDITION_MEMBERS = {"key", "type", "value", "operator", "negation"}
GROUP_MEMBERS = {"type", "values"}


def filters_sql(filters: Any) -> str:
    """Who is meant by a cohort's `filters`; nobody, if they say nothing."""
    if not isinstance(filters, dict) or set(filters) != {"properties"}:
        raise _refused("filters that are not {'properties': …}")
    root = filters["properties"]
    if isinstance(root, dict) and root.get("values") == []:
        return "0"
    return _group_sql(root)


def _group_sql(group: Any) -> str:
    if not isinstance(group, dict) or set(group) != GROUP_MEMBERS or group["type"] not in {"AND", "OR"}:
        raise _refused(f"the group {_short(group)}")
    values = group["values"]
    if not isinstance(values, list) or not values:
        raise _refused(f"the group {_short(group)}")
    parts = [_group_sql(one) if _is_group(one) else _condition_sql(one) for one in values]
    joint = f" {group['type']} "
    return f"({joint.join(parts)})"


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and "values" in value


def _condition_sql(condition: Any) -> str:
    is_known = (
        isinstance(condition, dict)
        and set(condition) <= CONDITION_MEMBERS
        and condition.get("type") == "person"
        and isinstance(condition.get("key"), str)
        and not condition.get("negation")
    )
    if not is_known:
        raise _refused(f"the condition {_short(condition)}")
    operator = condition.get("operator", "exact")
    if operator not in OPERATORS:
        raise _refused(f"the operator {operator!r}")
    return OPERATORS[operator](_property_sql(condition["key"]), condition.get("value"))


def _property_sql(key: str) -> str:
    """PostHog's reading of a property: its text without quotes; NULL if it is null or not there."""
    raw = f"nullIf(nullIf(JSONExtractRaw(properties, {literals.text(key)}), ''), 'null')"
    return f"replaceRegexpAll({raw}, '^\"|\"$', '')"


def _exact(text: str, value: Any) -> str:
    return f"ifNull({text} IN ({_texts(value)}), 0)"


def _is_not(text: str, value: Any) -> str:
    """Also of those who do not have the property."""
    return f"ifNull({text} NOT IN ({_texts(value)}), 1)"


def _contains(text: str, value: Any) -> str:
    """PostHog escapes neither % nor _ here."""
    values = value if isinstance(value, list) and value else [value]
    tests = [f"ifNull({text} ILIKE {literals.text(f'%{_text(one)}%')}, 0)" for one in values]
    return f"({' OR '.join(tests)})"


def _is_set(text: str, _value: Any) -> str:
    return f"isNotNull({text})"


def _is_not_set(text: str, _value: Any) -> str:
    return f"isNull({text})"


def _greater(text: str, value: Any) -> str:
    return f"ifNull(toFloat64OrNull({text}) > {_number(value)}, 0)"


def _less(text: str, value: Any) -> str:
    return f"ifNull(toFloat64OrNull({text}) < {_number(value)}, 0)"


OPERATORS: Mapping[str, Callable[[str, Any], str]] = {
    "exact": _exact,
    "is_not": _is_not,
    "icontains": _contains,
    "is_set": _is_set,
    "is_not_set": _is_not_set,
    "gt": _greater,
    "lt": _less,
}


def _texts(value: Any) -> str:
    values = value if isinstance(value, list) and value else [value]
    return ", ".join(literals.text(_text(one)) for one in values)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return orjson.dumps(value).decode()
    raise _refused(f"the value {_short(value)}")


def _number(value: Any) -> float:
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    try:
        if isinstance(one, str | int | float) and not isinstance(one, bool):
            return float(one)
    except ValueError:
        pass
    raise _refused(f"{_short(value)} where a number is compared")


def _short(value: Any) -> str:
    return repr(value)[:200]


def _refused(what: str) -> ApiError:
    return ApiError(400, f"posthog_emulator does not calculate a cohort with {what}.", attr="filters")
