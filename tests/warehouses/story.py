"""What happens in a PostHog project, in four chapters, the same for every warehouse.

The rows are exact, so that all that differs between two tellings is the project's number and when they were
synced. Not here: where the rows go (`places`), what must hold there (`test_story`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from posthog_source.windows import Window
from tests.conftest import Project

NOW = datetime.now(UTC).replace(second=0, microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)
DAYS = 8
OF_A_DAY = 25
FIRST = NOW - DAYS * DAY
BACKFILLED = Window(FIRST + DAY, FIRST + 2 * DAY)
"""Read again in the third chapter."""

PEOPLE = 40
MERGED = 3
"""Who is somebody else from the second chapter on."""

PROMOTED = {"plan": "text", "price": "double", "seats": "bigint", "is_paid": "bool", "paid_at": "timestamp"}
PROMOTED_LATER = PROMOTED | {"coupon": "text"}

ODD_TEXTS = (
    "",
    " ",
    "\\N",
    "\\.",
    "NULL",
    'say "hi", it\'s; `x` -- /* */',
    "two\nlines\r\n\tand a tab",
    "%s {table} {0} $1 :name ?",
    "naïve \N{GRINNING FACE} \N{ZERO WIDTH JOINER}",
    "back\\slash \\\\ \\n",
    "Case",
    "case",
    "cåse",
    "padded ",
    "padded",
    "L" * 70_000,
)
"""Texts that a loader, a merge or a column may spoil."""

KEYS = ODD_TEXTS[1:-1]
"""Those that may be a key."""

ODD_VALUES: tuple[Any, ...] = (
    {"deep": [{"er": {"est": [1, "2", None, True, [], {}]}}], "": "no name"},
    {"big": 2**53 + 1, "half": 0.5, "small": 1e-7, "minus": -1},
    {"text": list(ODD_TEXTS[:-1])},
    {"long": ODD_TEXTS[-1]},
    {
        "plan": "pro",
        "price": 12.25,
        "seats": 2**53 + 1,
        "is_paid": True,
        "paid_at": "2026-02-03T04:05:06.789012Z",
    },
    {"plan": "", "price": "free", "seats": 1.5, "is_paid": "maybe", "paid_at": "soon"},
    {"plan": None, "price": -0.1, "seats": -3, "is_paid": False, "paid_at": "1999-12-31 23:59:59"},
)


PROMOTED_VALUES: dict[int, tuple[Any, ...]] = {
    4: ("pro", 12.25, 2**53 + 1, True, datetime(2026, 2, 3, 4, 5, 6, 789012, UTC)),
    5: ("", None, None, None, None),
    6: (None, -0.1, -3, False, datetime(1999, 12, 31, 23, 59, 59, 0, UTC)),
}
"""What becomes of those in columns of their own; null where there is nothing, or what does not fit."""

LATE = {"plan": "late", "coupon": "WELCOME"}


def uuid_of(kind: int, number: int) -> str:
    """An id; of events (1), of persons (2)."""
    return f"0000000{kind}-0000-4000-8000-{number:012x}"


def begin(project: Project) -> None:
    """The first chapter: a week of events, people, groups, a cohort and flags."""
    count = DAYS * OF_A_DAY
    send_events(
        project,
        range(count),
        at=[FIRST + DAY * (n // OF_A_DAY) + n % OF_A_DAY * (HOUR / 2 + MICROSECOND) for n in range(count)],
        event=[KEYS[n % len(KEYS)] if n % 3 == 0 else f"event {n % 4}" for n in range(count)],
        distinct_id=[KEYS[n % len(KEYS)] if n % 5 == 0 else f"user-{n % PEOPLE}" for n in range(count)],
        properties=[
            json.dumps(ODD_VALUES[n % len(ODD_VALUES)], ensure_ascii=n % 2 == 0) for n in range(count)
        ],
        elements_chain=[ODD_TEXTS[n % len(ODD_TEXTS)] for n in range(count)],
    )
    send_events(project, [3_000], at=[NOW - 3.5 * HOUR])  # which the second chapter deletes
    write_persons(project, range(PEOPLE), version=1, plan="free")
    own_distinct_ids(project, {f"user-{n}": n for n in range(PEOPLE)} | dict.fromkeys(KEYS, 1))
    write_groups(project, range(6), size="small")
    project.control("PUT", "definitions/feature_flags", items=[_flag(n) for n in range(3)])
    (cohort,) = project.control("POST", "cohorts", items=[{"name": "friends", "is_static": True}])["ids"]
    project.control("POST", f"cohorts/{cohort}/members", add=[uuid_of(2, n) for n in range(5)])


def go_on(project: Project) -> None:
    """The second: new events and late ones, one deleted, people who change and merge, a flag less."""
    people = [*KEYS, *(f"user-{n}" for n in range(12)), "newcomer"]
    send_events(
        project,
        range(1_000, 1_000 + len(people)),
        at=[NOW - 2 * HOUR + n * MICROSECOND for n in range(len(people))],
        distinct_id=people,
    )
    send_events(
        project,
        range(2_000, 2_007),
        at=[NOW - 5 * DAY + n * HOUR for n in range(7)],
        created_at=[NOW - 2 * HOUR] * 7,
        properties=[json.dumps(LATE)] * 7,
    )
    project.control("POST", "delete/events", uuids=[uuid_of(1, 3_000)])
    write_persons(project, range(5, 12), version=2, plan="pro")
    write_persons(project, [PEOPLE], version=1, plan="free")
    own_distinct_ids(project, {f"user-{MERGED}": 4, "newcomer": PEOPLE}, version=2)
    project.rows("person", id=[uuid_of(2, MERGED)], version=[2], is_deleted=[1])
    write_groups(project, (5, 6), size="large")
    project.control("PUT", "definitions/feature_flags", items=[_flag(0), _flag(3) | {"fresh": "new"}])
    (cohort,) = project.get("cohorts/").json()["results"]
    project.control(
        "POST", f"cohorts/{cohort['id']}/members", remove=[uuid_of(2, 0)], add=[uuid_of(2, 6), uuid_of(2, 7)]
    )


def end(project: Project) -> None:
    """The third: an old event is gone, and so are two people."""
    project.control("POST", "delete/events", uuids=[uuid_of(1, OF_A_DAY + 1)])
    project.control("POST", "delete/persons", person_ids=[uuid_of(2, 30), uuid_of(2, 31)])


def send_events(
    project: Project, numbers: Sequence[int], *, at: Sequence[datetime], **columns: Sequence[Any]
) -> None:
    """Events with those numbers, which came when they happened unless told otherwise."""
    count = len(numbers)
    project.rows(
        "events",
        **{
            "uuid": [uuid_of(1, n) for n in numbers],
            "event": ["page"] * count,
            "timestamp": list(at),
            "created_at": [each + 17 * MICROSECOND for each in at],
            "distinct_id": [f"user-{n % PEOPLE}" for n in numbers],
            "person_id": [uuid_of(2, n % PEOPLE) for n in numbers],
            "properties": ["{}"] * count,
            **columns,
        },
    )


def write_persons(project: Project, numbers: Sequence[int], *, version: int, **properties: Any) -> None:
    """A version of each."""
    count = len(numbers)
    project.rows(
        "person",
        id=[uuid_of(2, n) for n in numbers],
        created_at=[FIRST + n * timedelta(milliseconds=1) for n in numbers],
        properties=[
            json.dumps({"n": n, "name": ODD_TEXTS[n % len(ODD_TEXTS)]} | properties) for n in numbers
        ],
        is_identified=[n % 2 for n in numbers],
        version=[version] * count,
    )


def own_distinct_ids(project: Project, owners: dict[str, int], *, version: int = 1) -> None:
    """Whose they are."""
    project.rows(
        "person_distinct_id2",
        distinct_id=list(owners),
        person_id=[uuid_of(2, n) for n in owners.values()],
        version=[version] * len(owners),
    )


def write_groups(project: Project, numbers: Sequence[int], **properties: Any) -> None:
    """A version of each."""
    count = len(numbers)
    project.rows(
        "groups",
        group_type_index=[n % 2 for n in numbers],
        group_key=[f"group {n}" for n in numbers],
        created_at=[FIRST] * count,
        group_properties=[json.dumps({"n": n} | properties) for n in numbers],
    )


def _flag(number: int) -> dict[str, Any]:
    return {
        "id": number + 1,
        "key": f"flag-{number}",
        "active": number % 2 == 0,
        "filters": {"groups": [{"rollout_percentage": number}], "odd": list(ODD_TEXTS[:-1])},
        "tags": [],
        "created_at": (FIRST + number * MICROSECOND).isoformat(),
        "last_called_at": FIRST.isoformat(),
    }
