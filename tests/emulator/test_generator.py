"""Generated data: reproducible, with the sizes and shapes asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from posthog_emulator.generator import SHAPES, Plan, bucket_counts
from tests.emulator.conftest import Project, Server

END = "2026-03-01T00:00:00Z"


def generate(project: Project, **plan: Any) -> dict[str, Any]:
    body = {"end": END, "events": 5000, "persons": 400} | plan
    made: dict[str, Any] = project.control("POST", "generate", **body)
    return made


def fingerprint(project: Project) -> list[list[Any]]:
    return project.server.sql(
        "SELECT count(), sum(cityHash64(uuid, event, properties, timestamp, distinct_id, person_id,"
        f" created_at, person_properties)) FROM events WHERE team_id = {project.id}"
    )


def test_two_hundred_thousand_events_in_seconds(project: Project) -> None:
    made = generate(project, events=200_000, persons=20_000, nasty=False)
    assert made["events"] == 200_000
    assert made["distinct_ids"] == 26_000
    assert made["seconds"] < 30
    assert project.measure("count(), uniqExact(uuid)") == [[200_000, 200_000]]


def test_the_same_seed_makes_the_same_rows_in_any_project(server: Server) -> None:
    first, again, other = server.project(), server.project(), server.project()
    generate(first, seed=3)
    generate(again, seed=3)
    generate(other, seed=4)
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)


def test_the_answer_counts_what_is_there(project: Project) -> None:
    made = generate(project)
    scope = f"WHERE team_id = {project.id}"
    queries = {
        "events": f"SELECT uniqExact(uuid) FROM events {scope}",
        "persons": f"SELECT uniqExact(id) FROM person {scope}",
        "distinct_ids": f"SELECT uniqExact(distinct_id) FROM person_distinct_id2 {scope}",
    }
    counts = {name: project.server.sql(sql)[0][0] for name, sql in queries.items()}
    assert counts == {name: made[name] for name in queries}
    assert project.server.sql(f"SELECT count() FROM events {scope}") == [
        [made["events"] + made["duplicates"]]
    ]
    assert made["duplicates"] > 0


def test_every_event_belongs_to_the_person_its_distinct_id_belongs_to(project: Project) -> None:
    generate(project)
    strangers = project.server.sql(
        f"SELECT count() FROM events WHERE team_id = {project.id} AND (distinct_id, person_id) NOT IN"
        f" (SELECT distinct_id, person_id FROM person_distinct_id2 WHERE team_id = {project.id})"
    )
    assert strangers == [[0]]


def test_a_persons_properties_are_the_same_on_its_events(project: Project) -> None:
    generate(project, nasty=False)
    different = project.server.sql(
        f"SELECT count() FROM events WHERE team_id = {project.id} AND (person_id, person_properties) NOT IN"
        f" (SELECT id, properties FROM person WHERE team_id = {project.id})"
    )
    assert different == [[0]]


def test_so_many_events_share_each_timestamp(project: Project) -> None:
    generate(project, events=3700, events_per_timestamp=37, nasty=False)
    shared = project.server.sql(
        f"SELECT uniqExact(n) AS kinds, any(n), count() FROM (SELECT count() AS n FROM events"
        f" WHERE team_id = {project.id} GROUP BY timestamp)"
    )
    assert shared == [[1, 37, 100]]


@pytest.mark.parametrize("mean", [150, 900, 4000])
def test_properties_have_the_size_that_was_asked_for(project: Project, mean: int) -> None:
    generate(project, properties_bytes=mean, nasty=False)
    average, broken = project.measure("avg(length(properties)), countIf(NOT isValidJSON(properties))")[0]
    assert average == pytest.approx(mean, rel=0.25)
    assert broken == 0


def test_late_events_arrive_days_after_they_happened_but_not_after_the_end(project: Project) -> None:
    generate(project, late_share=0.2, late_days=5, nasty=False)
    delay = "toFloat64(created_at - timestamp)"
    late, longest, newest = project.measure(f"countIf({delay} > 200), max({delay}) / 86400, max(created_at)")[
        0
    ]
    assert 800 < late < 1200
    assert 4 < longest <= 5
    assert newest < "2026-03-01T00:00:30Z"


def test_events_fall_inside_the_plan_and_one_day_is_empty(project: Project) -> None:
    generate(project, days=10)
    days = project.server.sql(
        f"SELECT DISTINCT toString(toDate(timestamp)) FROM events WHERE team_id = {project.id}"
        " AND event != 'wrong clock'"
    )
    assert sorted(row[0] for row in days) == [
        f"2026-02-{day}" for day in (19, 20, 21, 22, 23, 25, 26, 27, 28)
    ]


def test_a_skewed_product_has_one_event_and_one_user_above_all(project: Project) -> None:
    generate(project, shape="skewed", nasty=False)
    top_event = project.measure("count()", "GROUP BY event ORDER BY count() DESC LIMIT 1")[0][0]
    top_user = project.measure("count()", "GROUP BY distinct_id ORDER BY count() DESC LIMIT 1")[0][0]
    assert top_event == pytest.approx(0.95 * 5000, rel=0.02)
    assert top_user == pytest.approx(0.20 * 5000, rel=0.15)


def test_a_quiet_product_has_fifty_events_on_each_day_of_five_years(project: Project) -> None:
    generate(
        project,
        shape="dense",
        events=91_300,
        days=1826,
        persons=100,
        properties_bytes=10,
        nasty=False,
        cohorts=0,
    )
    fewest, most, days = project.server.sql(
        "SELECT min(events), max(events), count() FROM (SELECT toDate(timestamp) AS day, count() AS events"
        f" FROM events WHERE team_id = {project.id} GROUP BY day)"
    )[0]
    assert (fewest, most, days) == (50, 50, 1826)


def test_a_dense_day_is_even_and_has_all_the_names(project: Project) -> None:
    generate(project, shape="dense", events=24_000, days=1, event_names=30, properties_bytes=10, nasty=False)
    hours = project.measure("count()", "GROUP BY toStartOfHour(timestamp)")
    assert hours == [[1000]] * 24
    assert project.measure("uniqExact(event)") == [[30]]


def test_a_bursty_product_has_most_of_its_events_in_three_hours(project: Project) -> None:
    generate(project, shape="bursty", events=20_000, properties_bytes=10, nasty=False)
    hours = project.measure("count()", "GROUP BY toStartOfHour(timestamp) ORDER BY count() DESC LIMIT 3")
    assert sum(hour[0] for hour in hours) > 0.7 * 20_000


def test_the_nasty_rows_are_all_there(project: Project) -> None:
    generate(project)
    names = {row[0] for row in project.measure("DISTINCT event")}
    assert {
        "",
        "emoji 🦔 event",
        "nul escape",
        "lone surrogate escape",
        "huge properties",
        "wrong clock",
    } <= names
    assert project.events("length(properties) > 100000", "event = 'huge properties'") == [[1]]
    assert project.events("position(properties, '\\\\ud83e') > 0", "event = 'lone surrogate escape'") == [[1]]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("events", [1, 999, 20_000])
@pytest.mark.parametrize("per_timestamp", [1, 37])
def test_the_hours_hold_exactly_the_events_in_any_shape(shape: str, events: int, per_timestamp: int) -> None:
    plan = Plan.from_json(
        {"end": END, "shape": shape, "events_per_timestamp": per_timestamp}, now=datetime.now(UTC)
    )
    counts = bucket_counts(plan, events)
    assert sum(counts) == -(-events // per_timestamp)
    assert min(counts) >= 0


def test_cohorts_have_members_and_an_older_calculation(project: Project) -> None:
    generate(project, cohorts=4)
    cohorts = {one["id"]: one for one in project.get("cohorts/").json()["results"]}
    assert [one["is_static"] for one in cohorts.values()].count(True) == 2
    for number, cohort in cohorts.items():
        table = "person_static_cohort" if cohort["is_static"] else "cohortpeople"
        where = "" if cohort["is_static"] else f" AND version = {cohort['version']}"
        members = project.server.sql(
            f"SELECT count() FROM {table} WHERE team_id = {project.id} AND cohort_id = {number}{where}"
        )
        assert members == [[cohort["count"]]]
        assert cohort["count"] > 0
    older = project.server.sql(
        f"SELECT uniqExact(version) / uniqExact(cohort_id) FROM cohortpeople WHERE team_id = {project.id}"
    )
    assert older[0][0] > 1


def test_insights_are_of_several_kinds_and_changed_at_different_times(project: Project) -> None:
    generate(project, insights=12)
    insights = project.get("insights/", limit="100").json()["results"]
    assert len(insights) == 10
    kinds = {one["query"]["source"]["kind"] for one in insights}
    assert kinds == {"TrendsQuery", "FunnelsQuery", "RetentionQuery", "StickinessQuery", "HogQLQuery"}
    assert len({one["last_modified_at"] for one in insights}) == 10
    assert {one["order"] for one in insights} == {None}


@pytest.mark.parametrize("plan", [{"shape": "round"}, {"colour": 1}, {"events": 0}])
def test_a_plan_that_cannot_be_is_refused(server: Server, project: Project, plan: dict[str, Any]) -> None:
    assert server.http.post(f"/_emulator/projects/{project.id}/generate", json=plan).status_code == 400


def test_sessions_have_several_events_and_some_go_on_over_midnight(project: Project) -> None:
    generate(project, events=20_000, persons=2000, nasty=False)
    sessions = (
        "SELECT count() AS n, min(timestamp) AS first, max(timestamp) AS last,"
        " uniqExact(person_id) AS people, `$session_id` AS id"
        f" FROM events WHERE team_id = {project.id} GROUP BY id"
    )
    several, crossing, longest, strangers = project.server.sql(
        "SELECT countIf(n > 3) / count(), countIf(toDate(first) != toDate(last)),"
        " max(dateDiff('minute', first, last)), countIf(people > 1 AND toDate(first) = toDate(last))"
        f" FROM ({sessions})"
    )[0]
    assert several > 0.8
    assert 25 < crossing < 100
    assert longest < 120
    assert strangers == 0


def test_a_late_event_makes_its_session_arrive_late(project: Project) -> None:
    generate(project, late_share=0.1, late_days=5, nasty=False)
    late = project.server.sql(
        "SELECT countIf(arrived > last + INTERVAL 1 DAY) / count()"
        " FROM (SELECT max(max_inserted_at) AS arrived, max(max_timestamp) AS last"
        f" FROM raw_sessions WHERE team_id = {project.id} GROUP BY session_id_v7)"
    )
    assert 0.1 < late[0][0] < 0.9
