"""Results of insights: computed on the events, remembered, and refused where they would be guessed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import httpx
import pytest

from posthog_emulator.insight_queries import walk
from posthog_emulator.insight_results import Result
from tests.emulator.asking import add_events
from tests.emulator.conftest import Project, Server

DAY = datetime(2026, 1, 10, tzinfo=UTC)
JANUARY = {"date_from": "2026-01-08", "date_to": "2026-01-11"}
REFUSED = "posthog_emulator does not compute"


def series(*events: str | None, **more: Any) -> list[dict[str, Any]]:
    return [{"kind": "EventsNode", "event": event, **more} for event in events]


def save(project: Project, query: dict[str, Any]) -> int:
    """Save an insight; gives its number."""
    node = {"kind": "InsightVizNode", "source": query}
    return int(project.control("POST", "insights", items=[{"name": "one", "query": node}])["ids"][0])


def ask_insight(project: Project, number: int, refresh: str | None = "force_blocking") -> httpx.Response:
    return project.get(f"insights/{number}/", **({} if refresh is None else {"refresh": refresh}))


def result_of(project: Project, query: dict[str, Any]) -> Any:
    answer = ask_insight(project, save(project, query))
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def by(*people: str) -> dict[str, list[str]]:
    """Columns that say who did it."""
    return {"distinct_id": list(people), "person_id": [str(uuid5(NAMESPACE_OID, one)) for one in people]}


def happened(*hours: float) -> list[datetime]:
    return [DAY + timedelta(hours=at) for at in hours]


def test_a_trend_counts_the_events_of_each_day(project: Project) -> None:
    add_events(project, 4, timestamp=happened(-20, 1, 2, 30), **by("a", "b", "b", "c"))
    query = {
        "kind": "TrendsQuery",
        "series": series("page") + series("page", math="dau"),
        "dateRange": JANUARY,
    }
    total, people = result_of(project, query)
    assert total["days"] == ["2026-01-08", "2026-01-09", "2026-01-10", "2026-01-11"]
    assert total["data"] == [0, 1, 2, 1]
    assert total["count"] == 4.0
    assert [total["action"]["order"], people["action"]["order"]] == [0, 1]
    assert people["data"] == [0, 1, 1, 1]


def test_days_are_the_projects_own(server: Server) -> None:
    tokyo = server.project(timezone="Asia/Tokyo")
    add_events(tokyo, 2, timestamp=happened(14, 16))
    query = {"kind": "TrendsQuery", "series": series("page"), "dateRange": JANUARY}
    assert result_of(tokyo, query)[0]["data"] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("interval", "days", "data"),
    [
        ("week", ["2026-01-04", "2026-01-11"], [1, 1]),
        ("month", ["2026-01-01"], [2]),
        ("hour", None, None),
    ],
)
def test_intervals_are_hours_weeks_from_sunday_and_months(
    project: Project, interval: str, days: list[str] | None, data: list[int] | None
) -> None:
    add_events(project, 2, timestamp=happened(1.5, 24))
    query = {"kind": "TrendsQuery", "series": series("page"), "dateRange": JANUARY, "interval": interval}
    found = result_of(project, query)[0]
    if interval == "hour":
        assert len(found["days"]) == 96
        assert found["data"][found["days"].index("2026-01-10 01:00:00")] == 1
    else:
        assert (found["days"], found["data"]) == (days, data)


def test_an_hour_that_comes_twice_is_counted_twice(server: Server) -> None:
    berlin = server.project(timezone="Europe/Berlin")
    night = datetime(2025, 10, 26, tzinfo=UTC)
    add_events(berlin, 3, timestamp=[night, night + timedelta(hours=1), night + timedelta(hours=1)])
    one_day = {"date_from": "2025-10-26", "date_to": "2025-10-26"}
    query = {"kind": "TrendsQuery", "series": series("page"), "dateRange": one_day, "interval": "hour"}
    found = result_of(berlin, query)[0]
    assert len(found["days"]) == 25
    pairs = list(zip(found["days"], found["data"], strict=True))
    assert pairs[2:4] == [("2025-10-26 02:00:00", 1), ("2025-10-26 02:00:00", 2)]


def test_a_breakdown_has_a_series_for_each_value_and_one_for_the_rest(project: Project) -> None:
    plans = ["pro", "pro", "pro", "free", "free", "team"]
    properties = [*(f'{{"plan": "{plan}"}}' for plan in plans), "{}"]
    add_events(project, 7, timestamp=happened(*range(7)), properties=properties)
    chosen = {"breakdown": "plan", "breakdown_type": "event"}
    query = {"kind": "TrendsQuery", "series": series("page"), "dateRange": JANUARY, "breakdownFilter": chosen}
    found = {item["breakdown_value"]: item["count"] for item in result_of(project, query)}
    assert found == {"pro": 3, "free": 2, "team": 1, "$$_posthog_breakdown_null_$$": 1}
    query["breakdownFilter"] = chosen | {"breakdown_limit": 2}
    answer = ask_insight(project, save(project, query)).json()
    found = {item["breakdown_value"]: item["count"] for item in answer["result"]}
    assert found == {"pro": 3, "free": 2, "$$_posthog_breakdown_other_$$": 2}
    assert answer["hasMore"]


def test_a_comparison_adds_the_period_before(project: Project) -> None:
    add_events(project, 3, timestamp=happened(-24 * 4, 1, 2))
    compared = {"dateRange": JANUARY, "compareFilter": {"compare": True}}
    current, previous = result_of(project, {"kind": "TrendsQuery", "series": series("page"), **compared})
    assert (current["compare_label"], current["data"]) == ("current", [0, 0, 2, 0])
    assert (previous["compare_label"], previous["data"]) == ("previous", [0, 0, 1, 0])
    assert previous["days"] == ["2026-01-04", "2026-01-05", "2026-01-06", "2026-01-07"]


def test_the_last_seven_days_are_eight_and_compared_by_weekday(project: Project) -> None:
    query = {
        "kind": "TrendsQuery",
        "series": series(None),
        "dateRange": {"date_from": "-7d"},
        "compareFilter": {"compare": True},
    }
    current, previous = result_of(project, query)
    assert len(current["days"]) == len(previous["days"]) == 8
    first, before = (datetime.fromisoformat(item["days"][0]) for item in (current, previous))
    assert first - before == timedelta(days=7)


def test_a_total_has_one_number(project: Project) -> None:
    add_events(project, 3, timestamp=happened(-20, 1, 2), **by("a", "a", "b"))
    query = {
        "kind": "TrendsQuery",
        "series": series("page", math="dau"),
        "dateRange": JANUARY,
        "trendsFilter": {"display": "ActionsPie"},
    }
    (found,) = result_of(project, query)
    assert (found["aggregated_value"], found["data"]) == (2, [])


def test_a_funnel_follows_each_person_through_its_window(project: Project) -> None:
    add_events(
        project,
        7,
        event=["visit", "visit", "visit", "buy", "buy", "sign", "sign"],
        **by("a", "b", "c", "a", "c", "a", "b"),
        timestamp=happened(0, 0, 5, 3, 4, 1, 30),
    )
    query = {
        "kind": "FunnelsQuery",
        "series": series("visit", "sign", "buy"),
        "dateRange": JANUARY,
        "funnelsFilter": {"funnelWindowInterval": 1, "funnelWindowIntervalUnit": "day"},
    }
    steps = result_of(project, query)
    assert [(step["order"], step["name"], step["count"]) for step in steps] == [
        (0, "visit", 3),
        (1, "sign", 1),
        (2, "buy", 1),
    ]
    assert [step["average_conversion_time"] for step in steps] == [None, 3_600.0, 7_200.0]


def test_a_funnel_with_a_breakdown_is_one_funnel_a_value(project: Project) -> None:
    add_events(
        project,
        3,
        event=["visit", "visit", "sign"],
        **by("a", "b", "a"),
        timestamp=happened(0, 0, 1),
        properties=['{"plan": "pro"}', '{"plan": "free"}', '{"plan": "free"}'],
    )
    query = {
        "kind": "FunnelsQuery",
        "series": series("visit", "sign"),
        "dateRange": JANUARY,
        "breakdownFilter": {"breakdown": "plan"},
    }
    found = {
        funnel[0]["breakdown_value"][0]: [s["count"] for s in funnel] for funnel in result_of(project, query)
    }
    assert found == {"pro": [1, 1], "free": [1, 0]}


def test_one_event_takes_one_step_and_the_longest_way_counts() -> None:
    assert walk([(0, "a"), (1, "a")], ["a", "a"], 10) == [0, 1]
    assert walk([(0, "a")], ["a", "a"], 10) == [0]
    assert walk([(0, "a"), (9, "a"), (12, "b")], ["a", "b"], 5) == [9, 12]
    assert walk([(0, "a"), (1, "b"), (5, "a")], ["a", "b"], 10) == [0, 1]
    assert walk([(0, "b"), (1, "x")], ["a", "b"], 10) == []


def test_retention_counts_who_comes_back(project: Project) -> None:
    today = datetime.now(UTC).replace(hour=0, minute=0, second=1, microsecond=0)
    days = [today - timedelta(days=ago) for ago in (2, 2, 1, 0, 1)]
    add_events(
        project,
        5,
        event=["sign", "sign", "read", "read", "sign"],
        **by("a", "b", "a", "a", "a"),
        timestamp=days,
    )
    chosen = {
        "period": "Day",
        "totalIntervals": 3,
        "targetEntity": {"id": "sign", "type": "events"},
        "returningEntity": {"id": "read", "type": "events"},
    }
    found = result_of(project, {"kind": "RetentionQuery", "retentionFilter": chosen})
    assert [[value["count"] for value in cohort["values"]] for cohort in found] == [
        [2, 1, 1],
        [1, 1, 0],
        [0, 0, 0],
    ]
    assert [cohort["date"][:10] for cohort in found] == [
        f"{at:%Y-%m-%d}" for at in (days[0], days[2], days[3])
    ]
    first = chosen | {"retentionType": "retention_first_time"}
    found = result_of(project, {"kind": "RetentionQuery", "retentionFilter": first})
    assert [cohort["values"][0]["count"] for cohort in found] == [2, 0, 0]


def test_stickiness_counts_people_by_how_many_days_they_came(project: Project) -> None:
    add_events(project, 4, timestamp=happened(0, 1, 30, 2), **by("a", "a", "a", "b"))
    (found,) = result_of(project, {"kind": "StickinessQuery", "series": series("page"), "dateRange": JANUARY})
    assert (found["days"], found["data"]) == ([1, 2, 3, 4], [1, 1, 0, 0])


def test_a_hogql_insight_has_its_own_rows_and_the_default_limit(project: Project) -> None:
    add_events(project, 120)
    answer = ask_insight(
        project, save(project, {"kind": "HogQLQuery", "query": "SELECT event, 1 AS n FROM events"})
    )
    body = answer.json()
    assert body["columns"] == ["event", "n"]
    assert body["types"][0] == ["event", "String"]
    assert body["result"] == [["page", 1]] * 100
    assert body["hasMore"]


def test_a_result_is_computed_when_asked_and_remembered(project: Project) -> None:
    add_events(project, 1)
    number = save(project, {"kind": "TrendsQuery", "series": series("page"), "dateRange": JANUARY})
    for refresh in (None, "force_cache", "no such thing"):
        body = ask_insight(project, number, refresh).json()
        assert (body["result"], body["last_refresh"], body["is_cached"]) == (None, None, False)
    first = ask_insight(project, number, "blocking").json()
    assert (first["result"][0]["count"], first["is_cached"]) == (1, False)
    add_events(project, 1)
    for refresh in (None, "blocking"):
        again = ask_insight(project, number, refresh).json()
        assert (again["result"], again["last_refresh"]) == (first["result"], first["last_refresh"])
        assert again["is_cached"]
    assert ask_insight(project, number, "true").json()["result"][0]["count"] == 2
    listed = project.get("insights/", order="id").json()["results"][0]
    assert listed["result"][0]["count"] == 2
    basic = project.get("insights/", order="id", basic="true").json()["results"][0]
    assert "result" not in basic
    assert basic["last_refresh"] == listed["last_refresh"]


def test_a_result_grows_stale_unless_its_time_was_over() -> None:
    hour = timedelta(hours=1)
    for tells_until, is_stale in ((None, True), (DAY + hour, True), (DAY - hour, False)):
        result = Result(b"{}", DAY, DAY + 6 * hour, tells_until)
        assert not result.is_stale(DAY + 5 * hour)
        assert result.is_stale(DAY + 7 * hour) is is_stale


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "PathsQuery"}, f"{REFUSED} 'PathsQuery'"),
        ({"properties": [{"key": "plan"}]}, f"{REFUSED} properties of TrendsQuery"),
        ({"series": series("page", math="sum")}, f"{REFUSED} the math 'sum'"),
        ({"trendsFilter": {"formula": "A / 2"}}, f"{REFUSED} formula of trendsFilter"),
        ({"breakdownFilter": {"breakdown": 1, "breakdown_type": "cohort"}}, f"{REFUSED} breakdowns"),
        ({"dateRange": {"date_from": "yesterday"}}, "does not understand the date 'yesterday'"),
        ({"dateRange": {"date_from": "all"}}, "does not understand the date 'all'"),
        ({"interval": "minute"}, f"{REFUSED} intervals of a 'minute'"),
    ],
)
def test_what_would_be_guessed_is_refused(project: Project, changes: dict[str, Any], message: str) -> None:
    query = {"kind": "TrendsQuery", "series": series("page"), "dateRange": JANUARY} | changes
    answer = ask_insight(project, save(project, query))
    assert answer.status_code == 400
    assert message in answer.json()["detail"]


def test_a_bad_hogql_insight_is_a_400_and_the_background_is_refused(project: Project) -> None:
    number = save(project, {"kind": "HogQLQuery", "query": "SELECT nothing FROM events"})
    assert ask_insight(project, number).status_code == 400
    assert ask_insight(project, number, "async").status_code == 400


def test_all_insights_of_the_generator_can_be_computed(project: Project) -> None:
    project.generate(events=5_000, persons=20, days=3, insights=9, properties_bytes=50)
    insights = project.get("insights/", order="id", basic="true").json()["results"]
    for insight in insights:
        answer = ask_insight(project, insight["id"])
        assert answer.status_code == 200, answer.text
        assert answer.json()["result"], insight["name"]
