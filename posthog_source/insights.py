"""What an insight's answer says: its result by kind -> rows of insight_results. Pure.

The shapes are those of PostHog's query runners (posthog/hogql_queries/insights; rest_api.md 5.2). Results
have no keys of their own; what tells two numbers apart is the series' place in the definition, breakdown,
comparison, step and date. Not here: which insights, and what they cost (`results`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, cast
from zoneinfo import ZoneInfo

import orjson

from posthog_source.arrow import parse_instant
from posthog_source.catalog import INSIGHT_RESULT_DOCUMENTS, INSIGHT_RESULTS
from posthog_source.config import ResultsSettings
from posthog_source.errors import UnexpectedAnswerError

Item = Mapping[str, object]
Row = dict[str, object]

KEY = INSIGHT_RESULTS.primary_key[1:]
LISTS = ("tags", "dashboards")

PATH_STEP = re.compile(r"(\d+)_(.*)", re.DOTALL)
"""A node of a path carries its step: `2_/pricing`."""


def is_wanted(insight: Item, settings: ResultsSettings) -> bool:
    """Whether the result of a listed insight is to be read.

    Args:
        insight: Its row of the table insights; `tags` and `dashboards` are JSON text.
        settings: Which.
    """
    tags, dashboards = (set(orjson.loads(cast("str", insight[name]) or "[]")) for name in LISTS)
    if settings.tags or settings.dashboards or settings.short_ids:
        return (
            not tags.isdisjoint(settings.tags)
            or not dashboards.isdisjoint(settings.dashboards)
            or insight["short_id"] in settings.short_ids
        )
    # What was made on a dashboard need not be marked as saved.
    return bool(insight["saved"] or dashboards)


def kind_of(insight: Item) -> str:
    """The kind of query, without the nodes that say how it is shown; empty where there is none."""
    query = definition_of(insight)
    if query:
        return str(query.get("kind", ""))
    filters = insight.get("filters")
    shown_as = filters.get("insight") if isinstance(filters, dict) else None
    return f"{str(shown_as).title()}Query" if shown_as else ""


def definition_of(insight: Item) -> Mapping[str, Any]:
    """The query itself; empty where the insight has an older form of definition."""
    query = insight.get("query")
    while isinstance(query, dict) and isinstance(query.get("source"), dict):
        query = query["source"]
    return query if isinstance(query, dict) else {}


def error_of(insight: Item) -> str | None:
    """What PostHog says went wrong, in an answer that is no refusal."""
    status = insight.get("query_status")
    if isinstance(status, dict) and status.get("error"):
        return str(status.get("error_message") or "PostHog does not say why")
    return None


def is_computed(insight: Item) -> bool:
    """Whether there is a result."""
    return insight.get("result") is not None


def is_known(kind: str) -> bool:
    """Whether rows can be made of such a result."""
    return kind in READERS


def document_of(insight: Item) -> Row:
    """The row of insight_result_documents."""
    return {
        **insight,
        "insight_id": insight["id"],
        "kind": kind_of(insight),
        "computed_at": insight.get("last_refresh"),
    }


def rows_of(insight: Item) -> list[Row]:
    """The rows of insight_results; none for a kind that is not known.

    Args:
        insight: As `GET insights/:id/` answers it, with a result.

    Raises:
        UnexpectedAnswerError: The result does not look like one of its kind, or has two rows of one key, of
            which a warehouse would keep one.
    """
    kind = kind_of(insight)
    read = READERS.get(kind)
    if read is None:
        return []
    shared = {
        "insight_id": insight["id"],
        "short_id": insight.get("short_id"),
        "kind": kind,
        "series_index": 0,
        "breakdown": "",
        "compare": "",
        "measure": "value",
        "step": 0,
        "computed_at": insight.get("last_refresh"),
        "is_cached": insight.get("is_cached"),
    }
    try:
        undated = {"date": _computed_on(insight), "interval": None}
        rows = [shared | undated | row for row in read(insight)]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise UnexpectedAnswerError(
            f"insight_results: the result of insight {insight.get('short_id')} does not look like one of a "
            f"{kind}. It is in {INSIGHT_RESULT_DOCUMENTS.name} as it is."
        ) from None
    if len({tuple(row[name] for name in KEY) for row in rows}) < len(rows):
        raise UnexpectedAnswerError(
            f"insight_results: numbers of insight {insight.get('short_id')} cannot be told apart. Its result "
            f"is in {INSIGHT_RESULT_DOCUMENTS.name} as it is."
        )
    return rows


def _trends(insight: Item) -> Iterator[Row]:
    for position, item in enumerate(_items(insight)):
        series = _series(item, position)
        if "aggregated_value" in item and not item.get("data"):
            yield series | {"value": item["aggregated_value"]}
        else:
            yield from _dated(item, series, _interval(insight))


def _lifecycle(insight: Item) -> Iterator[Row]:
    for position, item in enumerate(_items(insight)):
        series = _series(item, position) | {"measure": item["status"]}
        yield from _dated(item, series, _interval(insight))


def _stickiness(insight: Item) -> Iterator[Row]:
    for position, item in enumerate(_items(insight)):
        series = _series(item, position) | {"measure": "count"}
        for step, label, value in zip(item["days"], item["labels"], item["data"], strict=True):
            yield series | {"step": int(step), "step_label": label, "value": value}


def _funnels(insight: Item) -> Iterator[Row]:
    result = cast("Any", insight["result"])
    if isinstance(result, dict):
        yield from _time_to_convert(result)
        return
    for steps in result if result and isinstance(result[0], list) else [result]:
        for item in steps:
            if "data" in item:
                series = _series(item, 0) | {"series_index": 0, "measure": "conversion_rate"}
                yield from _dated(item, series, _interval(insight))
            else:
                yield from _funnel_step(item)


def _funnel_step(item: Mapping[str, Any]) -> Iterator[Row]:
    step = {
        "breakdown": _breakdown(item),
        "compare": item.get("compare_label") or "",
        "step": item["order"],
        "step_label": item.get("custom_name") or item.get("name"),
    }
    yield step | {"measure": "count", "value": item["count"]}
    for measure in ("average_conversion_time", "median_conversion_time"):
        if item.get(measure) is not None:
            yield step | {"measure": measure, "value": item[measure]}


def _time_to_convert(result: Mapping[str, Any]) -> Iterator[Row]:
    for seconds, count in result["bins"]:
        yield {"measure": "count", "step": int(seconds), "step_label": f"{seconds} s", "value": count}
    for measure in ("average_conversion_time", "median_conversion_time"):
        if result.get(measure) is not None:
            yield {"measure": measure, "value": result[measure]}


def _retention(insight: Item) -> Iterator[Row]:
    period = str(definition_of(insight).get("retentionFilter", {}).get("period") or "Day").lower()
    for item in _items(insight):
        cohort = {
            "series_label": item["label"],
            "breakdown": _breakdown(item),
            "date": _local(parse_instant(item["date"]), insight, period),
            "interval": period,
        }
        for step, value in enumerate(item["values"]):
            labelled = cohort | {"step": step, "step_label": value.get("label")}
            yield labelled | {"measure": "count", "value": value["count"]}
            if value.get("aggregation_value") is not None:
                yield labelled | {"measure": "aggregation_value", "value": value["aggregation_value"]}


def _paths(insight: Item) -> Iterator[Row]:
    for item in _items(insight):
        found = PATH_STEP.fullmatch(item["source"])
        edge = {
            "breakdown": orjson.dumps([item["source"], item["target"]]).decode(),
            "step": int(found[1]) if found else 0,
            "step_label": f"{item['source']} → {item['target']}",
        }
        yield edge | {"measure": "count", "value": item["value"]}
        if item.get("average_conversion_time") is not None:
            measure = "average_conversion_time"
            yield edge | {"measure": measure, "value": item[measure]}


def _hogql(insight: Item) -> Iterator[Row]:
    names = cast("Sequence[str]", insight["columns"])
    are_unique = len(set(names)) == len(names)
    for step, cells in enumerate(cast("Iterable[Sequence[object]]", insight["result"])):
        values = dict(zip(names, cells, strict=True)) if are_unique else cells
        yield {"measure": "row", "step": step, "row_values": values}


READERS: Mapping[str, Callable[[Item], Iterator[Row]]] = {
    "TrendsQuery": _trends,
    "FunnelsQuery": _funnels,
    "RetentionQuery": _retention,
    "PathsQuery": _paths,
    "StickinessQuery": _stickiness,
    "LifecycleQuery": _lifecycle,
    "HogQLQuery": _hogql,
}
"""How each kind of result is read."""


def _items(insight: Item) -> list[Mapping[str, Any]]:
    return cast("list[Mapping[str, Any]]", insight["result"])


def _series(item: Mapping[str, Any], position: int) -> Row:
    """What the numbers of one series share.

    Places in a result follow the numbers; those in the definition stay, so they are the key: `order`, which
    formulas have, else `action.order`.
    """
    action = item.get("action") or {}
    return {
        "series_index": next(
            (order for order in (item.get("order"), action.get("order")) if order is not None), position
        ),
        "series_label": item.get("label"),
        "breakdown": _breakdown(item),
        "compare": item.get("compare_label") or "",
    }


def _dated(item: Mapping[str, Any], series: Row, interval: str) -> Iterator[Row]:
    times: Counter[str] = Counter()
    for date, value in zip(item["days"], item["data"], strict=True):
        step = times[date]  # 1 in the hour that comes a second time, when clocks go back
        yield series | {"step": step, "date": str(date), "interval": interval, "value": value}
        times[date] += 1


def _breakdown(item: Mapping[str, Any]) -> str:
    value = item.get("breakdown_value")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or isinstance(value, str):
        return value or ""
    return orjson.dumps(value).decode()


def _interval(insight: Item) -> str:
    return str(definition_of(insight).get("interval") or "day")


def _computed_on(insight: Item) -> str:
    """The day of the computation in the project's time."""
    at = insight.get("last_refresh")
    return _local(parse_instant(at), insight, "day") if isinstance(at, str) else ""


def _local(at: datetime, insight: Item, interval: str) -> str:
    """As PostHog writes the dates of a trend: in the project's time, with the hour only where it matters."""
    local = at.astimezone(ZoneInfo(str(insight.get("timezone") or "UTC")))
    return local.strftime("%Y-%m-%d %H:%M:%S" if interval in ("hour", "minute") else "%Y-%m-%d")
