"""A seeded product to export: people, sessions, events, cohorts and insights of a small web and mobile app.

The same seed and end give the same rows, uuids included, in any project. Here is decided how much of what
falls when; the rows are made by SQL in generator_rows.py, the odd ones in generator_nasty.py.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from posthog_emulator import product
from posthog_emulator.clickhouse import ClickHouse
from posthog_emulator.cohorts import dynamic_cohort_rows, static_cohort_rows
from posthog_emulator.envelope import ApiError
from posthog_emulator.generator_nasty import KEEP_DUPLICATES, duplicates_sql, nasty_events, nasty_persons
from posthog_emulator.generator_recordings import recording_rows
from posthog_emulator.generator_rows import BUCKET_S, Buckets, RowMaker
from posthog_emulator.session_tables import RECORDINGS
from posthog_emulator.state import Project, State

SHAPES = ("product", "dense", "skewed", "sparse", "bursty")
SECOND_ID_SHARE = 0.3
GROUP_TYPES = ("organization", "workspace")
GROUP_PREFIXES = ("org", "workspace")
EVENTS_PER_STATEMENT = 500_000
NASTY_FROM_EVENTS = 1000


@dataclass(frozen=True)
class Plan:
    """What to make; the members of a `generate` call."""

    end: datetime
    seed: int = 1
    events: int = 200_000
    persons: int = 20_000
    days: int = 30
    event_names: int = 30
    properties_bytes: int = 900
    person_bytes: int = 0
    events_per_timestamp: int = 1
    late_share: float = 0.0
    late_days: int = 7
    shape: str = "product"
    cohorts: int = 6
    insights: int = 12
    nasty: bool = True

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, now: datetime) -> Plan:
        """A plan from a control call."""
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(body) - known)
        if unknown:
            raise ApiError(400, f"Unknown members: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
        given = {name: value for name, value in body.items() if value is not None}
        try:
            end = datetime.fromisoformat(given.pop("end")) if "end" in given else now
        except (TypeError, ValueError) as error:
            raise ApiError(400, "end is an ISO time.") from error
        plan = cls(end=end if end.tzinfo else end.replace(tzinfo=UTC), **given)
        if plan.shape not in SHAPES:
            raise ApiError(400, f"No shape {plan.shape!r}. There are: {', '.join(SHAPES)}.")
        if min(plan.events, plan.persons, plan.days, plan.event_names, plan.events_per_timestamp) < 1:
            raise ApiError(400, "events, persons, days, event_names and events_per_timestamp are at least 1.")
        return plan

    @property
    def start(self) -> datetime:
        """When the product's history begins."""
        return self.end - timedelta(days=self.days)

    @property
    def second_ids(self) -> int:
        """How many persons are known by an anonymous id too."""
        return int(self.persons * SECOND_ID_SHARE)

    @property
    def has_odd_rows(self) -> bool:
        """Whether there is room for the odd rows that were asked for."""
        return self.nasty and self.events >= NASTY_FROM_EVENTS

    def row_maker(self, team_id: int) -> RowMaker:
        """What writes this plan's SQL for one project."""
        return RowMaker(
            team_id=team_id,
            seed=self.seed,
            persons=self.persons,
            second_ids=self.second_ids,
            start=self.start,
            end=self.end,
            properties_bytes=self.properties_bytes,
            person_bytes=self.person_bytes,
            late_share=self.late_share,
            late_days=self.late_days,
            names=tuple(product.event_names(self.event_names)),
            is_skewed=self.shape == "skewed",
        )


def generate(clickhouse: ClickHouse, state: State, project: Project, plan: Plan) -> dict[str, Any]:
    """Make it all; says how much of what."""
    started = time.perf_counter()
    for name in () if project.group_types else GROUP_TYPES:
        project.add_group_type(name)
    rows = plan.row_maker(project.id)
    _insert_people(clickhouse, rows)
    odd = _insert_odd_rows(clickhouse, project, plan) if plan.has_odd_rows else _Odd()
    _insert_events(clickhouse, plan, rows, plan.events - odd.events)
    duplicates = _insert_duplicates(clickhouse, project, plan) if plan.has_odd_rows else 0
    clickhouse.execute(recording_rows(project.id, plan.start, plan.end))
    cohorts = _insert_cohorts(clickhouse, state, project, plan, rows)
    chance = random.Random(plan.seed)  # noqa: S311 - the same seed must give the same insights
    insights = product.insights(state, plan.insights, plan.start, plan.end, chance)
    project.insights.extend(insights)
    for path, items in product.defined(state, rows.names).items():
        project.definitions.setdefault(path, []).extend(items)
    project.ingested_event = True
    return {
        "events": plan.events,
        "persons": plan.persons + odd.persons,
        "distinct_ids": plan.persons + plan.second_ids + odd.persons,
        "recordings": _count_recordings(clickhouse, project),
        "cohorts": len(cohorts),
        "insights": len(insights),
        "duplicates": duplicates,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _count_recordings(clickhouse: ClickHouse, project: Project) -> int:
    sql = f"SELECT uniqExact(session_id) FROM {RECORDINGS} WHERE team_id = {project.id}"
    return clickhouse.number(sql)


def bucket_counts(plan: Plan, events: int) -> list[int]:
    """How many timestamps fall into each hour; times events_per_timestamp they cover the events."""
    wanted = math.ceil(events / plan.events_per_timestamp)
    weights = _bucket_weights(plan)
    total = sum(weights)
    counts, owed = [], 0.0
    for weight in weights:
        owed += weight / total * wanted
        take = round(owed)
        counts.append(take)
        owed -= take
    counts[max(range(len(weights)), key=weights.__getitem__)] += wanted - sum(counts)
    return counts


@dataclass(frozen=True)
class _Odd:
    events: int = 0
    persons: int = 0


def _bucket_weights(plan: Plan) -> list[float]:
    hours = plan.days * 24
    chance = random.Random(plan.seed)  # noqa: S311 - the same plan must give the same rows
    bursts = {chance.randrange(hours) for _ in range(3)}
    empty_day = (plan.start + timedelta(days=plan.days / 2)).date() if plan.nasty and plan.days > 2 else None
    weights = []
    for hour in range(hours):
        at = plan.start + timedelta(hours=hour)
        is_empty = empty_day in (at.date(), (at + timedelta(seconds=BUCKET_S - 1)).date())
        weights.append(0.0 if is_empty else _hour_weight(plan.shape, hour, at, is_burst=hour in bursts))
    return weights if any(weights) else [1.0] * hours


def _hour_weight(shape: str, hour: int, at: datetime, *, is_burst: bool) -> float:
    if shape == "dense":
        return 1.0
    if shape == "sparse":
        return 1.0 if hour % (24 * 7) == 36 else 0.0
    day_and_night = 1.0 + 0.9 * math.sin((at.hour - 8) / 24 * 2 * math.pi)
    weight = day_and_night * (0.4 if at.weekday() >= 5 else 1.0)
    return weight * 1000 if shape == "bursty" and is_burst else weight


def _insert_people(clickhouse: ClickHouse, rows: RowMaker) -> None:
    clickhouse.execute(rows.person_rows())
    clickhouse.execute(rows.distinct_id_rows())
    for index, prefix in enumerate(GROUP_PREFIXES):
        clickhouse.execute(rows.group_rows(index, prefix))


def _insert_events(clickhouse: ClickHouse, plan: Plan, rows: RowMaker, events: int) -> None:
    buckets = Buckets(bucket_counts(plan, events), plan.events_per_timestamp)
    for first, last in _statements(buckets):
        clickhouse.execute(rows.event_rows(buckets, first, last, events))


def _statements(buckets: Buckets) -> list[tuple[int, int]]:
    """Ranges of buckets of about EVENTS_PER_STATEMENT events, to bound the memory of each."""
    ranges, first, held = [], 0, 0
    for bucket, count in enumerate(buckets.counts):
        held += count * buckets.per_timestamp
        if held >= EVENTS_PER_STATEMENT or (bucket == len(buckets.counts) - 1 and held):
            ranges.append((first, bucket + 1))
            first, held = bucket + 1, 0
    return ranges


def _insert_odd_rows(clickhouse: ClickHouse, project: Project, plan: Plan) -> _Odd:
    events = nasty_events(project.id, plan.start, plan.end, plan.seed)
    clickhouse.insert("events", events)
    persons, distinct_ids = nasty_persons(project.id, plan.end, plan.seed)
    clickhouse.insert("person", persons)
    clickhouse.insert("person_distinct_id2", distinct_ids)
    return _Odd(events.num_rows, persons.num_rows)


def _insert_duplicates(clickhouse: ClickHouse, project: Project, plan: Plan) -> int:
    for statement in KEEP_DUPLICATES:
        clickhouse.execute(statement)
    select, columns = duplicates_sql(project.id, plan.start, plan.end)
    count = clickhouse.number(f"SELECT count() FROM ({select})")
    clickhouse.execute(f"INSERT INTO events ({columns}) {select}")
    return count


def _insert_cohorts(
    clickhouse: ClickHouse, state: State, project: Project, plan: Plan, rows: RowMaker
) -> list[dict[str, Any]]:
    made = product.cohorts(state, plan.cohorts, plan.start)
    for rank, cohort in enumerate(made):
        answer = clickhouse.run(rows.people_in_cohort(rank, product.cohort_plan(rank)))
        people: list[str] = [row[0] for row in orjson.loads(answer.rows_json)]
        cohort["count"] = len(people)
        if cohort["is_static"]:
            clickhouse.insert("person_static_cohort", static_cohort_rows(project.id, cohort["id"], people))
        else:
            _insert_calculations(clickhouse, project, cohort, people)
    project.cohorts.extend(made)
    return made


def _insert_calculations(
    clickhouse: ClickHouse, project: Project, cohort: Mapping[str, Any], people: Sequence[str]
) -> None:
    """The newest calculation, and the one before it: a real server keeps that until it cleans up."""
    for version, members in ((cohort["version"] - 1, people[::2]), (cohort["version"], people)):
        clickhouse.insert("cohortpeople", dynamic_cohort_rows(project.id, cohort["id"], version, members))
