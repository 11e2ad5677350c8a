"""Insight queries on the project's events: TrendsQuery, FunnelsQuery, RetentionQuery and StickinessQuery.

ClickHouse counts, by way of the same HogQL as the query endpoint; what is left is put into the shapes of
PostHog's query runners (posthog/hogql_queries/insights). A member that would change a number and is not
carried out is refused, never ignored. Not here: what is remembered of results (`insight_results`), HogQL
insights, dates (`insight_dates`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from statistics import mean, median
from typing import Any, NoReturn

from posthog_emulator.envelope import ApiError
from posthog_emulator.hogql import literals
from posthog_emulator.insight_dates import Dates

Ask = Callable[[str], list[list[Any]]]
"""All rows of a HogQL query, however many."""

NOTHING = "''"
BREAKDOWN_LIMIT = 25
BREAKDOWN_NULL = "$$_posthog_breakdown_null_$$"
BREAKDOWN_OTHER = "$$_posthog_breakdown_other_$$"
TOTAL_VALUE_DISPLAYS = {"ActionsBarValue", "ActionsPie", "ActionsTable"}
DATED_DISPLAYS = {None, "ActionsLineGraph", "ActionsBar", "ActionsAreaGraph"}
MATHS = {None: "count()", "total": "count()", "dau": "count(DISTINCT person_id)"}
WINDOW_S = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 604_800}

# Members that are carried out; of others only empty values pass.
SERIES_MEMBERS = {"kind", "event", "name", "custom_name", "math"}
SHARED_MEMBERS = {"kind", "series", "interval", "dateRange", "filterTestAccounts", "tags", "version"}
MEMBERS: Mapping[str, set[str]] = {
    "TrendsQuery": SHARED_MEMBERS | {"trendsFilter", "breakdownFilter", "compareFilter"},
    "FunnelsQuery": SHARED_MEMBERS | {"funnelsFilter", "breakdownFilter"},
    "StickinessQuery": SHARED_MEMBERS | {"stickinessFilter"},
    "RetentionQuery": (SHARED_MEMBERS - {"series", "interval"}) | {"retentionFilter"},
}
FILTER_MEMBERS: Mapping[str, set[str]] = {
    "trendsFilter": {"display", "showLegend", "showValuesOnSeries"},
    "breakdownFilter": {"breakdown", "breakdown_type", "breakdown_limit"},
    "compareFilter": {"compare"},
    "funnelsFilter": {
        *("funnelVizType", "funnelOrderType", "funnelWindowInterval", "funnelWindowIntervalUnit", "layout")
    },
    "stickinessFilter": {"display", "showLegend"},
    "retentionFilter": {"period", "totalIntervals", "targetEntity", "returningEntity", "retentionType"},
}


def compute(query: Mapping[str, Any], dates: Dates, ask: Ask) -> dict[str, Any]:
    """The result of an insight query, with the members that stand beside it.

    Raises:
        ApiError: 400, for what PostHog computes and this emulator does not.
    """
    _check(query)
    return _COMPUTED[str(query["kind"])](query, dates, ask)


def _trends(query: Mapping[str, Any], dates: Dates, ask: Ask) -> dict[str, Any]:
    display = (query.get("trendsFilter") or {}).get("display")
    if display not in DATED_DISPLAYS | TOTAL_VALUE_DISPLAYS:
        _refuse(f"the display {display!r}")
    is_compared = bool((query.get("compareFilter") or {}).get("compare"))
    periods = [("current", dates), ("previous", dates.previous())] if is_compared else [("", dates)]
    result: list[dict[str, Any]] = []
    for label, period in periods:
        for order, node in enumerate(query["series"]):
            for item in _trend(query, node, period, ask, is_total=display in TOTAL_VALUE_DISPLAYS):
                item["action"] = _action(node, order, period)
                if label:
                    item |= {"compare": True, "compare_label": label}
                if "breakdown_value" in item and len(query["series"]) > 1:
                    item["label"] = f"{_name(node)} - {item['label']}"
                result.append(item)
    has_more = any(item.get("breakdown_value") == BREAKDOWN_OTHER for item in result)
    return {"result": result, "hasMore": has_more, "resolved_date_range": dates.resolved()}


def _trend(
    query: Mapping[str, Any], node: Mapping[str, Any], dates: Dates, ask: Ask, *, is_total: bool
) -> list[dict[str, Any]]:
    """One series, in as many parts as it has values of the breakdown."""
    where = f"{_is_event([node.get('event')])} AND {dates.condition()}"
    value = _breakdown(query)
    kept = _top(ask, value, where, query) if value else [""]
    part = f"if(has({literals.literal(kept)}, {value}), {value}, '{BREAKDOWN_OTHER}')" if value else "''"
    bucket = "''" if is_total else dates.bucket()
    rows = ask(
        f"SELECT {part} AS part, {bucket} AS bucket, {MATHS[node.get('math')]} FROM events"
        f" WHERE {where} GROUP BY part, bucket"
    )
    found = {(row[0], str(row[1])): row[2] for row in rows}
    others = [BREAKDOWN_OTHER] if any(name == BREAKDOWN_OTHER for name, _ in found) else []
    items = []
    for name in [*kept, *others]:
        data = [] if is_total else [found.get((name, key), 0) for key in dates.buckets()]
        item: dict[str, Any] = {
            "data": data,
            "days": dates.days(),
            "count": 0 if is_total else float(sum(data)),
            "label": _name(node),
        }
        if is_total:
            item["aggregated_value"] = found.get((name, ""), 0)
        else:
            item["labels"] = dates.labels()
        if value:
            item |= {"label": name, "breakdown_value": name}
        items.append(item)
    return items


def _top(ask: Ask, value: str, where: str, query: Mapping[str, Any]) -> list[str]:
    """The most frequent values of a breakdown; those without one come last, as on PostHog."""
    limit = int(query["breakdownFilter"].get("breakdown_limit") or BREAKDOWN_LIMIT)
    rows = ask(
        f"SELECT {value} AS part, count() AS n FROM events WHERE {where} GROUP BY part ORDER BY n DESC, part"
    )
    kept = [str(row[0]) for row in rows][:limit]
    return sorted(kept, key=lambda name: name == BREAKDOWN_NULL)


def _stickiness(query: Mapping[str, Any], dates: Dates, ask: Ask) -> dict[str, Any]:
    result = []
    for order, node in enumerate(query["series"]):
        rows = ask(
            f"SELECT active, count() FROM (SELECT person_id, count(DISTINCT {dates.bucket()}) AS active"
            f" FROM events WHERE {_is_event([node.get('event')])} AND {dates.condition()} GROUP BY person_id)"
            " GROUP BY active"
        )
        found = {row[0]: row[1] for row in rows}
        days = list(range(1, len(dates.buckets()) + 1))
        data = [found.get(day, 0) for day in days]
        unit = dates.interval
        result.append(
            {
                "count": sum(data),
                "data": data,
                "days": days,
                "label": _name(node),
                "labels": [f"{day} {unit}{'' if day == 1 else 's'}" for day in days],
                "action": _action(node, order, dates),
            }
        )
    return {"result": result, "resolved_date_range": dates.resolved()}


def _funnel(query: Mapping[str, Any], dates: Dates, ask: Ask) -> dict[str, Any]:
    chosen = query.get("funnelsFilter") or {}
    if chosen.get("funnelVizType") not in (None, "steps"):
        _refuse(f"funnels as {chosen['funnelVizType']!r}")
    if chosen.get("funnelOrderType") not in (None, "ordered"):
        _refuse(f"funnels of {chosen['funnelOrderType']!r} order")
    unit = chosen.get("funnelWindowIntervalUnit") or "day"
    if unit not in WINDOW_S:
        _refuse(f"a funnel's window in {unit!r}")
    window_s = WINDOW_S[unit] * int(chosen.get("funnelWindowInterval") or 14)
    steps = query["series"]
    events = [node.get("event") for node in steps]
    value = _breakdown(query)
    rows = ask(
        "SELECT toString(person_id) AS person, toUnixTimestamp64Milli(timestamp) AS at, event,"
        f" {value or NOTHING} FROM events"
        f" WHERE {_is_event(events)} AND {dates.condition()} ORDER BY person, at, event"
    )
    people: dict[str, list[list[float]]] = {}
    for _, own in groupby(rows, key=lambda row: row[0]):
        found = list(own)
        # The first value that a person has stands for all their events: first_touch, PostHog's default.
        name = next((row[3] for row in found if row[3] not in ("", BREAKDOWN_NULL)), "")
        if times := walk([(row[1] / 1000, row[2]) for row in found], events, window_s):
            people.setdefault(name, []).append(times)
    if not value:
        return {"result": _steps(steps, people.get("", [])), "resolved_date_range": dates.resolved()}
    ranked = sorted(people, key=lambda name: (-len(people[name]), name))
    if len(ranked) > int(query["breakdownFilter"].get("breakdown_limit") or BREAKDOWN_LIMIT):
        _refuse("funnels with more values of a breakdown than its limit")
    result = [
        [step | {"breakdown": [name], "breakdown_value": [name]} for step in _steps(steps, people[name])]
        for name in ranked
    ]
    return {"result": result, "resolved_date_range": dates.resolved()}


def walk(events: Iterable[tuple[float, str]], steps: Sequence[str | None], window_s: float) -> list[float]:
    """How far one person got, and when they reached each step: the longest way, and of those the first.

    Args:
        events: Instants in seconds and names, in order of time.
        steps: The event of each step; None is any.
        window_s: Longest time from the first step to the last.
    """
    ways: list[list[float]] = [[] for _ in steps]
    longest: list[float] = []
    for at, name in events:
        for index in reversed(range(len(steps))):  # one event takes one step
            if steps[index] not in (None, name):
                continue
            before = ways[index - 1] if index else []
            if index == 0 or (before and at - before[0] <= window_s):
                ways[index] = [*before, at]
                longest = ways[index] if index >= len(longest) else longest
    return longest


def _steps(nodes: Sequence[Mapping[str, Any]], people: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for order, node in enumerate(nodes):
        there = [times for times in people if len(times) > order]
        took_s = [times[order] - times[order - 1] for times in there] if order else []
        made.append(
            {
                "action_id": node.get("event"),
                "name": _name(node),
                "custom_name": node.get("custom_name"),
                "order": order,
                "people": [],
                "count": len(there),
                "type": "events",
                "average_conversion_time": mean(took_s) if took_s else None,
                "median_conversion_time": median(took_s) if took_s else None,
            }
        )
    return made


def _retention(query: Mapping[str, Any], dates: Dates, ask: Ask) -> dict[str, Any]:
    chosen = query["retentionFilter"]
    kind = chosen.get("retentionType") or "retention_recurring"
    if kind not in ("retention_recurring", "retention_first_time"):
        _refuse(f"the retention type {kind!r}")
    target, returning = (_entity(chosen.get(name)) for name in ("targetEntity", "returningEntity"))
    buckets = dates.buckets()
    begun = _intervals(ask, dates, target)
    if kind == "retention_first_time":
        firsts = ask(
            f"SELECT toString(person_id) AS person, {dates.bucket('min(timestamp)')} FROM events"
            f" WHERE {_is_event([target])} GROUP BY person"
        )
        first = {row[0]: str(row[1]) for row in firsts}
        begun = {person: found & {first[person]} for person, found in begun.items()}
    back = _intervals(ask, dates, returning)
    result = []
    for start, date in enumerate(dates.starts()):
        cohort = {person for person, found in begun.items() if buckets[start] in found}
        counts = [
            sum(buckets[start + step] in back.get(person, ()) for person in cohort)
            if start + step < len(buckets)
            else 0
            for step in range(len(buckets))
        ]
        counts[0] = len(cohort)
        unit = dates.interval.title()
        result.append(
            {
                "values": [{"count": count, "label": f"{unit} {n}"} for n, count in enumerate(counts)],
                "label": f"{unit} {start}",
                "date": date,
            }
        )
    return {"result": result}


def _intervals(ask: Ask, dates: Dates, event: str | None) -> dict[str, set[str]]:
    """In which intervals each person did it."""
    rows = ask(
        f"SELECT DISTINCT toString(person_id), {dates.bucket()} FROM events"
        f" WHERE {_is_event([event])} AND {dates.condition()}"
    )
    found: dict[str, set[str]] = {}
    for person, bucket in rows:
        found.setdefault(person, set()).add(str(bucket))
    return found


_COMPUTED: Mapping[str, Callable[[Mapping[str, Any], Dates, Ask], dict[str, Any]]] = {
    "TrendsQuery": _trends,
    "FunnelsQuery": _funnel,
    "RetentionQuery": _retention,
    "StickinessQuery": _stickiness,
}


def _check(query: Mapping[str, Any]) -> None:
    kind = query.get("kind")
    if kind not in MEMBERS:
        _refuse(f"{kind!r}")
    _only(query, MEMBERS[str(kind)], str(kind))
    for name, members in FILTER_MEMBERS.items():
        _only(query.get(name) or {}, members, name)
    for node in query.get("series") or []:
        if node.get("kind") != "EventsNode":
            _refuse(f"a series of {node.get('kind')!r}")
        _only(node, SERIES_MEMBERS, "a series")
        if node.get("math") not in MATHS:
            _refuse(f"the math {node['math']!r}")
    if "series" in MEMBERS[str(kind)] and not query.get("series"):
        raise ApiError(400, "Field required", attr="query.series")


def _only(given: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(name for name, value in given.items() if name not in known and value)
    if unknown:
        _refuse(f"{', '.join(unknown)} of {where}")


def _refuse(what: str) -> NoReturn:
    raise ApiError(400, f"posthog_emulator does not compute {what}.")


def _breakdown(query: Mapping[str, Any]) -> str:
    """The HogQL of a breakdown's value; empty without one."""
    chosen = query.get("breakdownFilter") or {}
    name = chosen.get("breakdown")
    if not name:
        return ""
    if chosen.get("breakdown_type") not in (None, "event") or not isinstance(name, str):
        _refuse("breakdowns but by one property of the event")
    return f"ifNull(nullIf(toString(properties.{literals.identifier(name)}), ''), '{BREAKDOWN_NULL}')"


def _is_event(names: Sequence[str | None]) -> str:
    """HogQL condition of the events; None is any."""
    if None in names:
        return "1"
    return f"event IN ({', '.join(literals.text(str(name)) for name in names)})"


def _entity(entity: Mapping[str, Any] | None) -> str | None:
    if entity is None:
        return "$pageview"  # PostHog's default
    if entity.get("type") not in (None, "events"):
        _refuse(f"retention of {entity['type']!r}")
    _only(entity, {"id", "name", "type", "kind", "order", "uuid"}, "an entity")
    return entity.get("id")


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("event") or "All events")


def _action(node: Mapping[str, Any], order: int, dates: Dates) -> dict[str, Any]:
    return {
        "days": dates.starts(),
        "id": node.get("event"),
        "type": "events",
        "order": order,
        "name": _name(node),
        "custom_name": node.get("custom_name"),
        "math": node.get("math"),
        "math_property": None,
        "math_hogql": None,
        "math_group_type_index": None,
        "properties": {},
    }
