"""PostHog's side of verify: checksums of a table by day or bucket, and the rows of buckets that differ.

Not here: HogQL (`query`), the warehouse's side (`stored`), what follows from a difference (`comparison`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

import orjson

from posthog_source.arrow import parse_instant
from posthog_source.comparison import Checksum, Marked
from posthog_source.config import MAX_PAGE_ROWS
from posthog_source.fingerprint import Fingerprint
from posthog_source.pagination import Reader, in_halves
from posthog_source.query import Among, build_bucket_checksums, build_day_checksums, build_fingerprints
from posthog_source.windows import Slice, Window


class Asked:
    """What PostHog has of one table.

    Args:
        reader: Of the table.
        fingerprint: What of its rows is compared.
        among: Which rows; None means all.
        slice_: Where they lie on the table's line.
    """

    def __init__(
        self, reader: Reader, fingerprint: Fingerprint, *, among: Among | None, slice_: Slice
    ) -> None:
        self._reader = reader
        self._fingerprint = fingerprint
        self._among = among
        self._slice = slice_

    def fetch_days(self, window: Window, *, by_name: bool) -> dict[tuple[date, str], Checksum]:
        """By UTC day, and by the event's name or none."""
        table = self._reader.table

        def fetch(part: Window) -> dict[date, list[tuple[str, Checksum]]]:
            query = build_day_checksums(
                table, table.sources[0], self._fingerprint, window=part, among=self._among, by_name=by_name
            )
            days = self._reader.ask(query, part)
            return {date.fromisoformat(day or ""): _by_name(*cells) for day, *cells in days}

        sums: dict[tuple[date, str], Checksum] = {}
        for day, names in in_halves(window, fetch).items():
            for name, found in names:
                sums[day, name] = sums.get((day, name), Checksum()) + found
        return sums

    def fetch_buckets(self, window: Window | None, *, buckets: int) -> dict[int, Checksum]:
        """By bucket, of those that have rows."""
        found: dict[int, Checksum] = {}
        for source in self._reader.table.sources:
            query = build_bucket_checksums(
                self._reader.table,
                source,
                self._fingerprint,
                slice_=self._slice,
                window=window,
                among=self._among,
                buckets=buckets,
            )
            for bucket, rows, checksum in self._reader.ask(query):
                number = int(bucket or 0)
                found[number] = found.get(number, Checksum()) + Checksum(int(rows or 0), int(checksum or 0))
        return found

    def fetch_rows(
        self, window: Window | None, *, buckets: int, chosen: Sequence[int], arrival: str | None = None
    ) -> list[Marked]:
        """The rows of some buckets, each once, or once for each content where copies differ."""
        rows: list[Marked] = []
        for source in self._reader.table.sources:
            query = build_fingerprints(
                self._reader.table,
                source,
                self._fingerprint,
                slice_=self._slice,
                window=window,
                among=self._among,
                buckets=buckets,
                chosen=chosen,
                arrival=arrival,
                limit=MAX_PAGE_ROWS,
            )
            rows += [_marked(*cells) for cells in self._reader.ask(query)]
        return rows


def _by_name(names: str | None, rows: str | None, checksums: str | None) -> list[tuple[str, Checksum]]:
    cells = (orjson.loads(cell or "[]") for cell in (names, rows, checksums))
    return [
        (str(name).replace("\0", "\ufffd"), Checksum(int(count), int(total)))
        for name, count, total in zip(*cells, strict=True)
    ]


def _marked(*cells: str | None) -> Marked:
    *key, fingerprint, arrived_at, name = (cell or "" for cell in cells)
    at: datetime | None = parse_instant(arrived_at) if arrived_at else None
    clean = tuple(text.replace("\0", "\ufffd") for text in key)
    return Marked(clean, int(fingerprint), name.replace("\0", "\ufffd"), at)
