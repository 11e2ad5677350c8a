"""The product that the generator pretends to watch: its events, people, cohorts and insights.

Lists and weights only; rows are made in generator.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from posthog_emulator import definitions
from posthog_emulator.rest_definitions import RESOURCES
from posthog_emulator.state import State

# Most frequent first: the n-th is about 1/n as frequent as the first.
EVENT_NAMES = (
    "$pageview",
    "$autocapture",
    "$pageleave",
    "document viewed",
    "document edited",
    "search performed",
    "$screen",
    "comment added",
    "$feature_flag_called",
    "notification opened",
    "file uploaded",
    "$web_vitals",
    "document shared",
    "$identify",
    "signed in",
    "Application Opened",
    "export started",
    "member invited",
    "signed up",
    "integration connected",
    "onboarding step completed",
    "$rageclick",
    "template used",
    "trial started",
    "$exception",
    "survey sent",
    "upgraded plan",
    "invoice paid",
    "downgraded plan",
    "subscription cancelled",
)
FIRST_NAMES = (
    "Ada",
    "Grace",
    "Alan",
    "Edsger",
    "Barbara",
    "Donald",
    "Radia",
    "Ken",
    "Margaret",
    "Linus",
    "Frances",
    "Dennis",
)
LAST_NAMES = (
    "Lovelace",
    "Hopper",
    "Turing",
    "Dijkstra",
    "Liskov",
    "Knuth",
    "Perlman",
    "Thompson",
    "Hamilton",
    "Allen",
)
PLANS = ("free", "free", "free", "free", "pro", "pro", "team", "enterprise")
COUNTRIES = ("US", "US", "US", "DE", "GB", "FR", "NO", "BR", "IN", "JP", "CA", "NL")
BROWSERS = ("Chrome", "Chrome", "Chrome", "Safari", "Firefox", "Microsoft Edge")
SYSTEMS = ("Windows", "Windows", "Mac OS X", "Mac OS X", "Linux")
SOURCES = ("google", "google", "direct", "newsletter", "producthunt", "linkedin", "partner")
CAMPAIGNS = ("spring_launch", "brand", "retargeting", "webinar_12", "none")
REFERRERS = (
    "$direct",
    "$direct",
    "www.google.com",
    "news.ycombinator.com",
    "www.linkedin.com",
    "duckduckgo.com",
)
PATHS = (
    "/",
    "/documents",
    "/documents/42",
    "/search",
    "/settings/members",
    "/pricing",
    "/onboarding/3",
    "/login",
)
BUTTONS = ("Save", "Share", "Invite people", "Upgrade", "New document", "Cancel")
ELEMENT_BEFORE_TEXT = 'button.primary:attr__class="primary"nth-child="1"nth-of-type="1"text="'
ELEMENT_AFTER_TEXT = '";div:nth-child="2"nth-of-type="1"'
VOCABULARY = (
    *("invoice", "draft", "quarterly", "roadmap", "review", "budget", "customer", "onboarding", "meeting"),
    *("launch", "plan", "pricing", "feedback", "research", "interview", "summary", "contract", "renewal"),
    *("design", "system", "release", "checklist", "retention", "report", "notes", "agenda", "hiring"),
)
LOTTERY_TICKETS = 2000
COHORT_NAMES = ("Power users", "Beta list", "Trial users", "Churn risk", "Enterprise", "Newsletter import")


def event_names(count: int) -> list[str]:
    """So many names, most frequent first."""
    extra = [f"feature {number} used" for number in range(1, count - len(EVENT_NAMES) + 1)]
    return [*EVENT_NAMES[:count], *extra]


def lottery(names: Sequence[str]) -> list[str]:
    """Each name as often as it is likely to be drawn."""
    total = sum(1 / rank for rank in range(1, len(names) + 1))
    return [
        name
        for rank, name in enumerate(names, start=1)
        for _ in range(max(1, round(LOTTERY_TICKETS / rank / total)))
    ]


def organizations(persons: int) -> int:
    """How many customers so many people work for."""
    return max(1, persons // 25)


def words(seed: int) -> str:
    """A few kilobytes of text to cut pieces from."""
    chance = random.Random(seed)  # noqa: S311 - the same seed must give the same text
    return " ".join(f"{chance.choice(VOCABULARY)} {chance.randrange(10_000)}" for _ in range(400))


def cohorts(state: State, count: int, start: datetime) -> list[dict[str, Any]]:
    """Cohort definitions; every second one is static."""
    made = []
    for rank in range(count):
        plan = cohort_plan(rank)
        is_static = plan is None
        given: dict[str, Any] = {
            "name": COHORT_NAMES[rank % len(COHORT_NAMES)]
            + (f" {rank}" if rank >= len(COHORT_NAMES) else ""),
            "is_static": is_static,
            "version": None if is_static else rank + 2,
            "created_at": _iso(start + timedelta(hours=rank)),
            "last_calculation": _iso(start + timedelta(days=1, hours=rank)),
        }
        if not is_static:
            condition = {
                "key": "plan",
                "type": "person",
                "value": [plan],
                "operator": "exact",
            }
            given["filters"] = {
                "properties": {"type": "OR", "values": [{"type": "AND", "values": [condition]}]}
            }
        made.append(definitions.cohort(state, given))
    return made


def cohort_plan(rank: int) -> str | None:
    """The plan that the people of a dynamic cohort have; None for a static one."""
    return None if rank % 2 else PLANS[-1 - rank % 4]


def insights(
    state: State, count: int, start: datetime, end: datetime, chance: random.Random
) -> list[dict[str, Any]]:
    """Insight definitions changed at moments all over the plan; every sixth is deleted."""
    made = []
    for rank in range(count):
        name, query = _INSIGHTS[rank % len(_INSIGHTS)]
        created = start + (end - start) * chance.random() * 0.5
        modified = created + (end - created) * chance.random()
        given = {
            "name": name if rank < len(_INSIGHTS) else f"{name} {rank}",
            "query": query,
            "created_at": _iso(created),
            "updated_at": _iso(modified),
            "last_modified_at": _iso(modified),
            "deleted": rank % 6 == 5,
            "favorited": rank % 4 == 0,
            "tags": ["growth"] if rank % 3 == 0 else [],
            "dashboard_tiles": [{"id": 1_000 + rank, "dashboard_id": 1, "deleted": False}],
        }
        made.append(definitions.insight(state, given))
    return made


def defined(state: State, event_names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What else the product's people have defined, by list: events and properties, and two of each other."""
    given: dict[str, list[dict[str, Any]]] = {
        resource.path: [dict.fromkeys(resource.texts.split()[:1], f"{resource.path} {n}") for n in (1, 2)]
        for resource in RESOURCES
        if "{" not in resource.path
    }
    given |= {
        "event_definitions": [{"name": name} for name in event_names],
        "property_definitions": [
            {"name": name, "_type": kind, "_group_type_index": 0 if kind == "group" else None}
            for kind, names in _PROPERTIES.items()
            for name in names
        ],
        "feature_flags": [
            {"name": "New checkout", "key": "new-checkout", "active": True},
            {"name": "Old pricing", "key": "old-pricing", "archived": True},
        ],
        "dashboards": [{"name": "Growth", "pinned": True}, {"name": "Draft", "creation_mode": "unlisted"}],
    }
    by_path = {resource.path: resource for resource in RESOURCES}
    return {path: [by_path[path].item(state, one) for one in items] for path, items in given.items()}


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _series(*events: str) -> list[dict[str, Any]]:
    return [{"kind": "EventsNode", "event": event, "name": event, "math": "total"} for event in events]


def _insight_node(source: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "InsightVizNode", "source": source}


def _sql_node(text: str) -> dict[str, Any]:
    return {"kind": "DataVisualizationNode", "source": {"kind": "HogQLQuery", "query": text}}


def _trend(*events: str, **more: Any) -> dict[str, Any]:
    return _insight_node(
        {
            "kind": "TrendsQuery",
            "series": _series(*events),
            "interval": "day",
            "dateRange": {"date_from": "-30d"},
            "trendsFilter": {"display": "ActionsLineGraph"},
            **more,
        }
    )


_PROPERTIES = {
    "event": ("$browser", "$current_url", "plan"),
    "person": ("email", "plan"),
    "session": ("$session_duration",),
    "group": ("industry",),
}

_INSIGHTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Pageviews", _trend("$pageview")),
    (
        "Activation funnel",
        _insight_node(
            {
                "kind": "FunnelsQuery",
                "series": _series("signed up", "onboarding step completed", "document edited"),
                "dateRange": {"date_from": "-30d"},
                "funnelsFilter": {"funnelVizType": "steps", "funnelWindowInterval": 14},
            }
        ),
    ),
    (
        "Weekly retention",
        _insight_node(
            {
                "kind": "RetentionQuery",
                "retentionFilter": {
                    "period": "Week",
                    "totalIntervals": 8,
                    "targetEntity": {"id": "signed up", "type": "events"},
                    "returningEntity": {"id": "document edited", "type": "events"},
                    "retentionType": "retention_first_time",
                },
            }
        ),
    ),
    (
        "Daily active people",
        _sql_node(
            "SELECT toDate(timestamp) AS day, count(DISTINCT person_id) FROM events GROUP BY day ORDER BY day"
        ),
    ),
    (
        "Upgrades by plan",
        _trend("upgraded plan", breakdownFilter={"breakdown": "plan", "breakdown_type": "event"}),
    ),
    ("Sign-ups against cancellations", _trend("signed up", "subscription cancelled")),
    (
        "Events by name",
        _sql_node("SELECT event, count() FROM events GROUP BY event ORDER BY count() DESC LIMIT 50"),
    ),
    (
        "People this week against the last",
        _trend("$pageview", dateRange={"date_from": "-7d"}, compareFilter={"compare": True}),
    ),
    (
        "Stickiness of documents",
        _insight_node(
            {
                "kind": "StickinessQuery",
                "series": _series("document viewed"),
                "interval": "day",
                "dateRange": {"date_from": "-30d"},
            }
        ),
    ),
)
