"""The numbers behind saved insights: as PostHog computed them, kept beyond what an insight shows."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest

from posthog_source import ResultsConfig, find_cause, posthog_source
from posthog_source.catalog import INSIGHT_RESULT_DOCUMENTS, INSIGHT_RESULTS
from posthog_source.config import ResultsSettings
from posthog_source.errors import AccessDeniedError, ServerError, SettingsError, UnexpectedAnswerError
from posthog_source.insights import READERS, is_wanted, kind_of, rows_of
from tests.conftest import Files, Project, Warehouse, add_events

JANUARY = {"date_from": "2026-01-08", "date_to": "2026-01-12"}
COMPUTED = {"id": 7, "short_id": "abc", "last_refresh": "2026-01-10T23:30:00Z", "is_cached": True}


def answer(kind: str, result: Any, *, timezone: str = "Europe/Berlin", **query: Any) -> dict[str, Any]:
    """What PostHog answers of an insight, as far as it is read."""
    node = {"kind": "InsightVizNode", "source": {"kind": kind, **query}}
    return {**COMPUTED, "query": node, "result": result, "timezone": timezone}


def read(insight: dict[str, Any], *names: str) -> list[tuple[Any, ...]]:
    """Those columns of its rows."""
    return [tuple(row.get(name) for name in names) for row in rows_of(insight)]


def trend_item(**more: Any) -> dict[str, Any]:
    action = {"id": "page", "type": "events", "order": 1, "name": "page", "math": "total"}
    return {"action": action, "label": "page", "data": [1, 2], "days": ["2026-01-09", "2026-01-10"], **more}


def test_a_trend_is_a_row_a_day_under_its_place_in_the_definition() -> None:
    items = [
        trend_item(compare=True, compare_label="current", breakdown_value="DE"),
        trend_item(compare=True, compare_label="previous", breakdown_value=["Chrome", 3]),
    ]
    found = rows_of(answer("TrendsQuery", items, interval="week"))
    shared = {"insight_id": 7, "short_id": "abc", "kind": "TrendsQuery", "measure": "value", "step": 0}
    assert found[0] == shared | {
        "series_index": 1,
        "series_label": "page",
        "breakdown": "DE",
        "compare": "current",
        "date": "2026-01-09",
        "interval": "week",
        "value": 1,
        "computed_at": "2026-01-10T23:30:00Z",
        "is_cached": True,
    }
    assert [(row["breakdown"], row["compare"]) for row in found[2:]] == [('["Chrome",3]', "previous")] * 2


def test_a_formula_has_an_order_of_its_own_and_a_total_has_no_days() -> None:
    for action in (None, {"order": 0}):
        formula = trend_item(action=action, order=2, label="A / B")
        assert read(answer("TrendsQuery", [formula]), "series_index", "value") == [(2, 1), (2, 2)]
    plain = trend_item(action=None)
    assert read(answer("TrendsQuery", [plain, plain]), "series_index")[::2] == [(0,), (1,)]
    total = trend_item(data=[], days=[], count=0, aggregated_value=5)
    # computed at half past midnight in Berlin
    assert read(answer("TrendsQuery", [total]), "date", "interval", "value") == [("2026-01-11", None, 5)]


def test_what_comes_twice_when_clocks_go_back_stays_two_rows() -> None:
    minutes = ["2025-10-26 02:58:00", "2025-10-26 02:59:00"] * 2
    twice = trend_item(days=minutes, data=[1, 2, 3, 4])
    found = read(answer("TrendsQuery", [twice], interval="minute"), "date", "step", "value")
    assert found == list(zip(minutes, [0, 0, 1, 1], [1, 2, 3, 4], strict=True))


def test_a_funnel_is_a_row_a_step_and_measure() -> None:
    step = {"action_id": "a", "name": "a", "custom_name": None, "order": 0, "count": 5, "type": "events"}
    first = step | {"average_conversion_time": None, "median_conversion_time": None}
    second = step | {"custom_name": "Bought", "order": 1, "count": 2, "average_conversion_time": 9.5}
    expected = [
        (0, "a", "count", 5),
        (1, "Bought", "count", 2),
        (1, "Bought", "average_conversion_time", 9.5),
    ]
    names = ("step", "step_label", "measure", "value")
    assert read(answer("FunnelsQuery", [first, second]), *names) == expected
    broken_down = [[one | {"breakdown_value": [value]} for one in (first, second)] for value in ("DE", "US")]
    found = read(answer("FunnelsQuery", broken_down), "breakdown", *names)
    assert found == [(value, *row) for value in ("DE", "US") for row in expected]


def test_a_funnel_may_be_times_to_convert_or_a_trend() -> None:
    bins = {"bins": [[2220, 2], [42510, 0]], "average_conversion_time": 29_540.0}
    found = read(answer("FunnelsQuery", bins), "measure", "step", "value")
    assert found == [("count", 2220, 2), ("count", 42510, 0), ("average_conversion_time", 0, 29_540.0)]
    item = {"count": 2, "data": [100.0, 50.0], "days": ["2026-01-09", "2026-01-10"], "labels": ["", ""]}
    found = read(answer("FunnelsQuery", [item]), "measure", "date", "value")
    assert found == [("conversion_rate", "2026-01-09", 100.0), ("conversion_rate", "2026-01-10", 50.0)]


def test_retention_is_a_row_a_cohort_and_interval_since() -> None:
    values = [{"count": 3, "label": "Day 0"}, {"count": 1, "label": "Day 1", "aggregation_value": 4.5}]
    cohort = {"date": "2026-01-09T23:00:00Z", "label": "Day 0", "values": values}
    found = read(
        answer("RetentionQuery", [cohort], retentionFilter={"period": "Day"}),
        *("date", "interval", "step", "measure", "value"),
    )
    assert found == [
        ("2026-01-10", "day", 0, "count", 3),
        ("2026-01-10", "day", 1, "count", 1),
        ("2026-01-10", "day", 1, "aggregation_value", 4.5),
    ]


def test_paths_stickiness_and_lifecycle_have_rows_too() -> None:
    edge = {"source": "1_/", "target": "2_/pricing", "value": 3, "average_conversion_time": 60_000.0}
    found = read(answer("PathsQuery", [edge]), "breakdown", "step", "measure", "value")
    assert found == [
        ('["1_/","2_/pricing"]', 1, "count", 3),
        ('["1_/","2_/pricing"]', 1, "average_conversion_time", 60_000.0),
    ]
    sticky = trend_item(days=[1, 2], labels=["1 day", "2 days"])
    found = read(answer("StickinessQuery", [sticky]), "step", "step_label", "value", "interval")
    assert found == [(1, "1 day", 1, None), (2, "2 days", 2, None)]
    dormant = trend_item(status="dormant", data=[-4, 0])
    found = read(answer("LifecycleQuery", [dormant]), "series_index", "measure", "date", "value")
    assert found == [(1, "dormant", "2026-01-09", -4), (1, "dormant", "2026-01-10", 0)]


def test_hogql_has_its_own_rows() -> None:
    hogql = answer("HogQLQuery", [["a", 1], ["b", None]]) | {"columns": ["name", "n"]}
    found = read(hogql, "step", "row_values", "value")
    assert found == [(0, {"name": "a", "n": 1}, None), (1, {"name": "b", "n": None}, None)]
    assert read(hogql | {"columns": ["n", "n"]}, "row_values")[0] == (["a", 1],)


@pytest.mark.parametrize("kind", READERS)
def test_a_result_of_another_shape_is_an_error_of_one_line(kind: str) -> None:
    for result in ([{"surprise": 1}], ["text"], {"surprise": 1}, 5):
        with pytest.raises(UnexpectedAnswerError, match=f"insight abc does not look like one of a {kind}"):
            rows_of(answer(kind, result))
    assert rows_of(answer("WebOverviewQuery", [{"key": "views"}])) == []


def test_numbers_that_cannot_be_told_apart_are_not_loaded_as_one() -> None:
    with pytest.raises(UnexpectedAnswerError, match="numbers of insight abc cannot be told apart"):
        rows_of(answer("TrendsQuery", [trend_item(), trend_item()]))


def test_the_kind_is_that_of_the_query_and_not_of_how_it_is_shown() -> None:
    table = {"kind": "DataTableNode", "source": {"kind": "HogQLQuery", "query": "SELECT 1"}}
    assert kind_of({"query": table}) == "HogQLQuery"
    assert kind_of({"query": None, "filters": {"insight": "STICKINESS"}}) == "StickinessQuery"
    assert kind_of({"query": None, "filters": {}}) == ""


def test_insights_are_chosen_by_tag_dashboard_or_short_id_and_else_if_saved() -> None:
    insight = {"short_id": "abc", "tags": '["growth"]', "dashboards": "[3]", "saved": False}
    assert is_wanted(insight, ResultsSettings(tags=("growth", "other")))
    assert is_wanted(insight, ResultsSettings(tags=("other",), dashboards=(3,)))
    assert is_wanted(insight, ResultsSettings(short_ids=("abc",)))
    assert not is_wanted(insight, ResultsSettings(tags=("other",), dashboards=(4,), short_ids=("abd",)))
    assert is_wanted(insight, ResultsSettings())
    assert not is_wanted(insight | {"dashboards": None}, ResultsSettings())
    assert is_wanted(insight | {"dashboards": None, "saved": True}, ResultsSettings())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"refresh": "async"}, "results.refresh must be one of force_cache, blocking, force_blocking"),
        ({"dashboards": ["3"]}, "results.dashboards must be a list of whole numbers"),
        ({"tags": "growth"}, "results.tags must be a list of names"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    project: Project, warehouse: Warehouse, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        warehouse.sync(project, "insight_results", results=ResultsConfig(**setting))


def save(project: Project, query: dict[str, Any], **members: Any) -> int:
    """Save an insight; gives its number."""
    item = {"name": "one", "query": {"kind": "InsightVizNode", "source": query}, **members}
    return int(project.control("POST", "insights", items=[item])["ids"][0])


def trend(*events: str | None, dates: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    nodes = [{"kind": "EventsNode", "event": event, "math": "total"} for event in events]
    return {"kind": "TrendsQuery", "series": nodes, "dateRange": dates or JANUARY, **more}


def load(warehouse: Warehouse, project: Project, refresh: str = "force_blocking", **more: Any) -> None:
    chosen = {name: more.pop(name) for name in ("tags", "short_ids") if name in more}
    warehouse.sync(project, "insight_results", results=ResultsConfig(refresh=refresh, **chosen), **more)


def stored(warehouse: Warehouse, number: int, *columns: str) -> list[tuple[Any, ...]]:
    """Those columns of one insight's rows."""
    return warehouse.query(
        f"SELECT {', '.join(columns)} FROM insight_results WHERE insight_id = {number} ORDER BY ALL"
    )


def counted(warehouse: Warehouse, number: int) -> dict[str, float]:
    """Numbers of one insight by date."""
    rows = stored(warehouse, number, "date", "value")
    assert len(dict(rows)) == len(rows)
    return dict(rows)


@pytest.fixture
def small(project: Project) -> Project:
    """Two people and what they did on four days."""
    people = ["a", "b", "a", "a", "b", "a"]
    hours = [0, 1, 26, 27, 28, 60]
    add_events(
        project,
        6,
        event=["visit", "visit", "buy", "visit", "visit", "buy"],
        distinct_id=people,
        person_id=[str(uuid5(NAMESPACE_OID, one)) for one in people],
        timestamp=[datetime(2026, 1, 9, tzinfo=UTC) + timedelta(hours=at) for at in hours],
        properties=[f'{{"plan": "{plan}"}}' for plan in ("pro", "free", "pro", "pro", "free", "team")],
    )
    return project


def test_the_numbers_are_those_of_the_events_table(small: Project, warehouse: Warehouse) -> None:
    by_plan = {"breakdown": "plan", "breakdown_type": "event"}
    trended = save(small, trend("visit", "buy", breakdownFilter=by_plan))
    funnel = save(
        small, {"kind": "FunnelsQuery", "series": trend("visit", "buy")["series"], "dateRange": JANUARY}
    )
    text = "SELECT event, count() AS n FROM events GROUP BY event ORDER BY event"
    listed = save(small, {"kind": "HogQLQuery", "query": text})
    warehouse.sync(
        small, "events", "insight_results", results=ResultsConfig(refresh="blocking"), start_date="2026-01-01"
    )

    found = stored(warehouse, trended, "series_index", "breakdown", "date", "value")
    truth = warehouse.query(
        "SELECT if(event = 'visit', 0, 1) AS series, properties->>'plan' AS plan,"
        " strftime(timestamp AT TIME ZONE 'UTC', '%Y-%m-%d') AS day, count(*)::double"
        " FROM events GROUP BY ALL ORDER BY ALL"
    )
    assert [row for row in found if row[3]] == truth
    assert len(truth) == 6
    steps = stored(warehouse, funnel, "measure", "step", "value")
    assert [row for row in steps if row[0] == "count"] == [("count", 0, 2.0), ("count", 1, 1.0)]
    rows = stored(warehouse, listed, "step", "row_values::text")
    assert [json.loads(row) for _, row in rows] == [{"event": "buy", "n": 2}, {"event": "visit", "n": 4}]
    documents = warehouse.query(
        "SELECT insight_id, kind, result::text, is_cached FROM insight_result_documents"
    )
    assert {number: kind for number, kind, _, _ in documents} == {
        trended: "TrendsQuery",
        funnel: "FunnelsQuery",
        listed: "HogQLQuery",
    }
    for number, _, result, is_cached in documents:
        assert json.loads(result) == small.get(f"insights/{number}/").json()["result"]
        assert is_cached is False


def test_a_rerun_replaces_the_dates_it_tells_of_and_keeps_older_ones(
    small: Project, warehouse: Warehouse
) -> None:
    number = save(small, trend("visit", breakdownFilter={"breakdown": "plan"}))
    other = save(small, trend("visit", interval="week"))
    load(warehouse, small)
    first = stored(warehouse, number, "date", "breakdown", "value")
    assert len(first) == 10
    weeks = counted(warehouse, other)

    later = {"date_from": "2026-01-10", "date_to": "2026-01-13"}
    save(small, trend("visit", dates=later), id=number)
    add_events(small, 3, event=["visit"] * 3, uuid=[f"00000000-0000-4000-8000-9{n:011x}" for n in range(3)])
    load(warehouse, small)

    older = [row for row in first if row[0] < "2026-01-10"]
    assert len(older) == 4
    newer = {"2026-01-10": 5.0, "2026-01-11": 0.0, "2026-01-12": 0.0, "2026-01-13": 0.0}
    found = stored(warehouse, number, "date", "breakdown", "value")
    assert found == older + [(date, "", value) for date, value in newer.items()]
    assert counted(warehouse, other) == weeks | {"2026-01-04": weeks["2026-01-04"] + 3}
    before = warehouse.query("SELECT count(*) FROM insight_results")
    load(warehouse, small)
    assert warehouse.query("SELECT count(*) FROM insight_results") == before


def test_what_is_a_previous_period_now_does_not_replace_what_was_current(
    small: Project, warehouse: Warehouse
) -> None:
    number = save(small, trend("visit"))
    load(warehouse, small)
    current = counted(warehouse, number)
    later = {"date_from": "2026-01-13", "date_to": "2026-01-17"}
    save(small, trend("visit", dates=later, compareFilter={"compare": True}), id=number)
    load(warehouse, small)
    rows = warehouse.query("SELECT compare, date, value FROM insight_results")
    assert {date: value for compare, date, value in rows if not compare} == current
    assert {date: value for compare, date, value in rows if compare == "previous"} == current


def test_a_broken_insight_is_told_of_and_neither_stops_the_others_nor_loses_its_rows(
    small: Project, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("broken", "gone", "strange", "heavy")
    broken, gone, strange, heavy = (save(small, trend("visit"), name=name) for name in names)
    fine = save(small, trend("buy"))
    load(warehouse, small)
    before = {number: counted(warehouse, number) for number in (broken, gone, strange, heavy)}
    save(small, {"kind": "HogQLQuery", "query": "SELECT nothing FROM events"}, id=broken, name="broken")
    failed = {"error": True, "error_message": "It is Friday."}
    body = {**COMPUTED, "id": strange, "query": trend("visit"), "result": None, "query_status": failed}
    small.faults(f"insights/{gone}", {"status": 404})
    small.faults(f"insights/{strange}", {"status": 200, "body": body})
    small.faults(f"insights/{heavy}", {"status": 504, "times": 2})
    add_events(small, 1, event=["buy"], uuid=["00000000-0000-4000-8000-900000000000"])
    small.forget_requests()

    with caplog.at_level(logging.WARNING, "posthog_source"):
        load(warehouse, small)

    assert {number: counted(warehouse, number) for number in before} == before
    assert counted(warehouse, fine)["2026-01-10"] == 2.0
    told = [record.getMessage() for record in caplog.records]
    assert [sum(f"({name})" in line for line in told) for name in names] == [1, 1, 1, 1]
    assert any("It is Friday." in line for line in told)
    assert len(told) == 4
    assert len(small.requests()) == 6  # what was too heavy would be so again


def test_server_errors_in_a_row_are_no_insights_fault(small: Project, warehouse: Warehouse) -> None:
    for _ in range(5):
        save(small, trend("visit"))
    load(warehouse, small)
    small.faults("insights", *({"pass": True},), *[{"status": 500}] * 3, method="GET")
    load(warehouse, small, max_attempts=1, look_ahead=1)
    small.faults("insights", *({"pass": True},), *[{"status": 500}] * 5, method="GET")
    with pytest.raises(Exception, match="500") as failure:
        load(warehouse, small, max_attempts=1, look_ahead=1)
    assert isinstance(find_cause(failure.value), ServerError)


def test_an_unknown_kind_gives_its_document(
    small: Project, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    number = save(small, trend("visit"))
    result = [{"key": "views", "value": 12}]
    body = {**answer("WebOverviewQuery", result), "id": number, "short_id": "web1", "future_member": 1}
    small.faults(f"insights/{number}", {"status": 200, "body": body})
    with caplog.at_level(logging.WARNING, "posthog_source"):
        load(warehouse, small)
    assert warehouse.query("SELECT count(*) FROM insight_results") == [(0,)]
    ((kind, document),) = warehouse.query("SELECT kind, result::text FROM insight_result_documents")
    assert (kind, json.loads(document)) == ("WebOverviewQuery", result)
    assert "insight web1 is a WebOverviewQuery, of which no rows are made" in caplog.text


def test_a_number_that_is_none_stops_no_other(
    small: Project, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    strange, fine = save(small, trend("visit")), save(small, trend("buy"))
    body = {**answer("TrendsQuery", [trend_item(data=["many", 2])]), "id": strange}
    small.faults(f"insights/{strange}", {"status": 200, "body": body})
    load(warehouse, small)
    assert warehouse.query("SELECT DISTINCT insight_id FROM insight_results") == [(fine,)]
    assert "insight_results.value: PostHog answered a value that is no double" in caplog.text


def test_by_default_posthog_computes_nothing_and_a_result_says_how_old_it_is(
    small: Project, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    cold, warm = save(small, trend("visit")), save(small, trend("buy"))
    computed = small.get(f"insights/{warm}/", refresh="blocking").json()["last_refresh"]
    with caplog.at_level(logging.INFO, "posthog_source"):
        warehouse.sync(small, "insight_results")
    assert set(counted(warehouse, warm).values()) == {0.0, 1.0}
    assert counted(warehouse, cold) == {}
    ages = warehouse.query("SELECT DISTINCT is_cached, computed_at FROM insight_results")
    assert ages == [(True, datetime.fromisoformat(computed))]
    assert "PostHog holds no result of 1 insights" in caplog.text
    assert f"computed them between {computed[:19]}" in caplog.text
    assert small.get(f"insights/{cold}/").json()["result"] is None


def test_results_are_loaded_only_where_asked_for_and_as_chosen(
    small: Project, warehouse: Warehouse, caplog: pytest.LogCaptureFixture
) -> None:
    tagged, plain = save(small, trend("visit"), tags=["growth"]), save(small, trend("visit"))
    warehouse.sync(small, start_date="2026-01-01")
    assert "insight_results" not in {
        name for (name,) in warehouse.query("SELECT table_name FROM information_schema.tables")
    }
    load(warehouse, small, tags=["growth"], short_ids=["nowhere1"])
    assert counted(warehouse, tagged)
    assert not counted(warehouse, plain)
    assert "there is no insight nowhere1 that this key may see" in caplog.text


def test_both_tables_are_as_the_catalogue_says(small: Project, warehouse: Warehouse) -> None:
    save(small, trend("visit"))
    load(warehouse, small)
    load(warehouse, small)
    for table in (INSIGHT_RESULTS, INSIGHT_RESULT_DOCUMENTS):
        schema = warehouse.pipeline.default_schema.tables[table.name]
        assert schema["description"] == table.description
        columns = {name: found for name, found in schema["columns"].items() if not name.startswith("_dlt")}
        assert list(columns) == [column.name for column in table.columns]
        for column in table.columns:
            assert columns[column.name]["description"] == column.description
            assert columns[column.name].get("nullable", True) is not column.is_required
        keys = {name for name, column in columns.items() if column.get("primary_key")}
        assert keys == set(table.primary_key)
        (counts,) = warehouse.query(
            f"SELECT count(*), count(DISTINCT ({', '.join(table.primary_key)})) FROM {table.name}"
        )
        assert counts[0] == counts[1] > 0


def test_plain_files_grow(small: Project, files: Files) -> None:
    save(small, trend("visit"))
    for _ in range(2):
        source = posthog_source(**small.credentials, results=ResultsConfig(refresh="blocking"))
        files.pipeline.run(source.with_resources("insight_results"), loader_file_format="parquet")
    for table, rows in ((INSIGHT_RESULTS, 10), (INSIGHT_RESULT_DOCUMENTS, 2)):
        assert len(files.rows(table.name)) == rows


def test_a_key_without_the_scope_is_told_which(small: Project, warehouse: Warehouse) -> None:
    key = small.server.key(["query:read"], [small.id])
    with pytest.raises(Exception, match="insight:read") as failure:
        load(warehouse, small, api_key=key)
    assert isinstance(find_cause(failure.value), AccessDeniedError)
