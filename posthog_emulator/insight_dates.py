"""Which time an insight tells of, and its intervals, in the project's timezone.

Facts: posthog/hogql_queries/utils/query_date_range.py and posthog/utils.py in PostHog/posthog. Weeks begin on
Sunday, as in a project that was never told otherwise. A date that is not understood is refused.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from posthog_emulator.envelope import ApiError

STARTS = {
    "hour": "toStartOfHour({0})",
    "day": "toStartOfDay({0})",
    "week": "toStartOfWeek({0}, 0)",
    "month": "toStartOfMonth({0})",
}
LABELS = {"hour": "%-d-%b %H:%M", "day": "%-d-%b-%Y", "week": "%-d-%b-%Y", "month": "%b %Y"}

_RELATIVE = re.compile(r"-(\d+)([hdwmy])")
_START = re.compile(r"([dwmy])Start")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Dates:
    """A stretch of time and its intervals.

    Attributes:
        start: First instant, in the project's zone.
        end: Last instant, included.
        interval: hour, day, week or month.
        relative_days: n where it is the last n days, which decides what came before it.
    """

    start: datetime
    end: datetime
    interval: str
    relative_days: int | None = None

    def starts(self) -> list[datetime]:
        """When each interval begins."""
        found, at = [], floor(self.start, self.interval)
        while at <= self.end:
            found.append(at)
            at = _next(at, self.interval)
        return found

    def buckets(self) -> list[str]:
        """What `bucket` gives for each interval."""
        if self.interval == "hour":
            return [str(int(at.timestamp())) for at in self.starts()]
        return [at.strftime("%Y-%m-%d") for at in self.starts()]

    def days(self) -> list[str]:
        """The intervals as PostHog writes them."""
        written = "%Y-%m-%d %H:%M:%S" if self.interval == "hour" else "%Y-%m-%d"
        return [at.strftime(written) for at in self.starts()]

    def labels(self) -> list[str]:
        """The intervals for people."""
        return [at.strftime(LABELS[self.interval]) for at in self.starts()]

    def bucket(self, of: str = "timestamp") -> str:
        """HogQL of the interval in which an instant lies."""
        start = STARTS[self.interval].format(of)
        if self.interval == "hour":
            return f"toUnixTimestamp({start})"  # the same hour may come twice on the clock
        return f"substring(toString({start}), 1, 10)"

    def condition(self) -> str:
        """HogQL condition of the events in it."""
        start, end = floor(self.start, self.interval), self.end
        return f"timestamp >= {_instant(start)} AND timestamp <= {_instant(end)}"

    def resolved(self) -> dict[str, datetime]:
        """PostHog's `resolved_date_range`."""
        return {"date_from": self.start, "date_to": self.end}

    def previous(self) -> Dates:
        """The stretch before it that PostHog compares it with (get_compare_period_dates)."""
        length = self.end.replace(tzinfo=None) - self.start.replace(tzinfo=None)
        day = (self.start - length).date()
        start = datetime.combine(day, self.start.timetz())
        if self.interval == "day" and self.relative_days and self.relative_days % 7 == 0:
            start += timedelta(days=1)  # "the last 7 days" are 8, today being one more
        return replace(self, start=start, end=start + length)


def read_dates(query: Mapping[str, Any], zone: ZoneInfo, now: datetime) -> Dates:
    """The dates of an insight query.

    Args:
        query: Its `dateRange` and `interval`.
        zone: The project's.
        now: The server's clock.
    """
    local = now.astimezone(zone)
    if query.get("kind") == "RetentionQuery":
        return _retention_dates(query, local)
    given = query.get("dateRange") or {}
    interval = str(query.get("interval") or "day")
    if interval not in STARTS:
        raise ApiError(400, f"posthog_emulator does not compute intervals of a {interval!r}.")
    if given.get("explicitDate"):
        raise ApiError(400, "posthog_emulator does not compute explicit dates.")
    text = str(given.get("date_from") or "-7d")
    start = _read(text, local)
    relative = _RELATIVE.fullmatch(text)
    days = int(relative[1]) if relative and relative[2] == "d" and not given.get("date_to") else None
    return Dates(start, _end(given.get("date_to"), local, interval), interval, days)


def floor(at: datetime, interval: str) -> datetime:
    """When the interval began."""
    at = at.replace(minute=0, second=0, microsecond=0)
    match interval:
        case "hour":
            return at
        case "day":
            return at.replace(hour=0)
        case "week":
            return at.replace(hour=0) - timedelta(days=at.isoweekday() % 7)
        case _:
            return at.replace(hour=0, day=1)


def _next(at: datetime, interval: str) -> datetime:
    match interval:
        case "hour":
            return (at.astimezone(UTC) + timedelta(hours=1)).astimezone(at.tzinfo)
        case "month":
            return (at + timedelta(days=32)).replace(day=1)
        case _:
            return at + timedelta(days=7 if interval == "week" else 1)  # on the clock on the wall


def _read(text: str, now: datetime) -> datetime:
    if relative := _RELATIVE.fullmatch(text):
        amount, unit = int(relative[1]), relative[2]
        match unit:
            case "h":
                return now - timedelta(hours=amount)
            case "d" | "w":
                return floor(now - timedelta(days=amount * (7 if unit == "w" else 1)), "day")
            case _:
                return floor(_months_before(now, amount * (12 if unit == "y" else 1)), "day")
    if start := _START.fullmatch(text):
        unit = {"d": "day", "w": "week", "m": "month", "y": "year"}[start[1]]
        return floor(now, "month").replace(month=1) if unit == "year" else floor(now, unit)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ApiError(400, f"posthog_emulator does not understand the date {text!r}.") from None
    return at.astimezone(now.tzinfo) if at.tzinfo else at.replace(tzinfo=now.tzinfo)


def _end(text: object, now: datetime, interval: str) -> datetime:
    if text and not _DATE.fullmatch(str(text)) and not _RELATIVE.fullmatch(str(text)):
        return _read(str(text), now)
    at = _read(str(text), now) if text else now
    if interval == "hour" and not text:
        return at.replace(minute=59, second=59, microsecond=999_999)
    return at.replace(hour=23, minute=59, second=59, microsecond=999_999)


def _retention_dates(query: Mapping[str, Any], now: datetime) -> Dates:
    """So many whole intervals up to the present one (QueryDateRangeWithIntervals)."""
    chosen = query["retentionFilter"]
    interval = str(chosen.get("period") or "Day").lower()
    if interval not in ("day", "week") or any((query.get("dateRange") or {}).values()):
        raise ApiError(400, "posthog_emulator computes the retention of days and weeks up to now only.")
    count = int(chosen.get("totalIntervals") or 7)
    last = floor(now, interval)
    length = timedelta(days=7 if interval == "week" else 1)
    return Dates(last - (count - 1) * length, last + length - timedelta(microseconds=1), interval)


def _months_before(at: datetime, months: int) -> datetime:
    year, month = divmod(at.year * 12 + at.month - 1 - months, 12)
    return at.replace(year=year, month=month + 1, day=min(at.day, monthrange(year, month + 1)[1]))


def _instant(at: datetime) -> str:
    return f"toDateTime64('{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}', 6, 'UTC')"
