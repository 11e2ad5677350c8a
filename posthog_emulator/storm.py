"""Random faults from a seeded generator.

Whether the n-th request of a storm fails depends on the seed and on n alone; how, also on what it asks.
How a fault is played is faults.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

BAD_GATEWAY = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>nginx</body>\r\n</html>\r\n"
ANYWHERE = (
    "429_seconds",
    "429_date",
    "429_bare",
    "500",
    "502_html",
    "503",
    "503_seconds",
    "504",
    "cut",
    "drip",
    "reset",
    "not_json",
    "error_envelope",
)
# What only a query can get: nothing else is cached, estimated, or given a share of ClickHouse's memory.
QUERIES_ONLY = ("512", "513", "error_field", "stale")
KINDS = (*ANYWHERE, *QUERIES_ONLY)


class UnknownStormError(ValueError):
    """A storm that cannot be raised."""


@dataclass
class Storm:
    """One project's storm, and what it did so far."""

    probability: float
    seed: int = 1
    kinds: Sequence[str] = KINDS
    method: str | None = None
    path: str = ""
    retry_after_s: int = 1
    drip_s: float = 0.1
    requests: int = field(default=0, init=False)
    served: Counter[str] = field(default_factory=Counter, init=False)
    _chance: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)  # noqa: S311 - the same seed must give the same storm

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Storm:
        """A storm from a control call, checked."""
        known = [item.name for item in fields(cls) if item.init]
        unknown = sorted(set(body) - set(known))
        if unknown:
            raise UnknownStormError(f"Unknown members: {', '.join(unknown)}. Known: {', '.join(known)}.")
        given = {name: value for name, value in body.items() if value is not None}
        strange = sorted(set(given.get("kinds", KINDS)) - set(KINDS))
        if strange:
            raise UnknownStormError(f"Unknown kinds: {', '.join(strange)}. Known: {', '.join(KINDS)}.")
        storm = cls(**{"probability": 0.2, **given})
        if not 0 <= storm.probability <= 1:
            raise UnknownStormError(f"probability is between 0 and 1, not {storm.probability!r}.")
        storm.path = storm.path.strip("/")
        storm.method = storm.method.upper() if storm.method else None
        return storm

    def next_kind(self, resource: str) -> tuple[str, float] | None:
        """What the next request gets, if not what it asks for, and how far to play it, as a share."""
        fails, which, share = self._chance.random(), self._chance.random(), self._chance.random()
        self.requests += 1
        is_query = resource == "query" or resource.startswith("query/")
        kinds = [kind for kind in self.kinds if is_query or kind in ANYWHERE]
        if fails >= self.probability or not kinds:
            return None
        return kinds[int(which * len(kinds))], share

    def script(self, kind: str, share: float) -> dict[str, Any]:
        """What faults.py plays for a kind."""
        seconds = {"Retry-After": str(self.retry_after_s)}
        if kind == "429_seconds":
            return {"status": 429, "headers": seconds}
        if kind == "429_date":
            return {"status": 429, "headers": {"Retry-After": self._date()}}
        if kind == "429_bare":
            return {"status": 429}
        if kind == "502_html":
            return {"status": 502, "body": BAD_GATEWAY, "headers": {"Content-Type": "text/html"}}
        if kind == "503_seconds":
            return {"status": 503, "headers": seconds}
        if kind == "cut":
            return {"kind": "cut", "share": share}
        if kind == "drip":
            return {"kind": "drip", "seconds": self.drip_s}
        if kind == "stale":
            return {"kind": "stale", "rows": 1}
        return {"status": int(kind)} if kind.isdecimal() else {"kind": kind}

    def counts(self) -> dict[str, Any]:
        """What it did so far."""
        return {
            "requests": self.requests,
            "faults": self.served.total(),
            "served": dict(sorted((+self.served).items())),
        }

    def _date(self) -> str:
        # A date has whole seconds: the one after the wait, so that nobody is asked to come back too early.
        at = datetime.now(UTC) + timedelta(seconds=self.retry_after_s + 1)
        return format_datetime(at.replace(microsecond=0), usegmt=True)
