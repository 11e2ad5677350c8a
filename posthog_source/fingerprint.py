"""What of a table's rows is compared with the warehouse, as a number that both sides can compute.

PostHog's HogQL and the warehouses' SQL have no hash in common: of cryptographic ones only PostHog's newest
versions know MD5, and nobody else knows cityHash64. What all of them can do is to take a text's bytes for a
number, and whole arithmetic. So a row's *fingerprint* is the *weight* of its key times the number of its
content, modulo a prime; and a checksum of many rows is the sum of their fingerprints. A row that changes,
comes or goes changes the sum. So do two rows that swap contents, since their weights differ. It is made to
notice accidents: whoever wants to forge a sum can, and one difference in two thousand million is missed.

Of a text, the first 56 bytes count, and its length. Not noticed is

- a text that changes beyond its 56th byte and keeps its length;
- JSON that changes and keeps its length; and where the warehouse rewrites JSON, any change of it;
- all columns that `fingerprint_of` does not name.

Not here: HogQL (`query`), SQL (`stored`), what follows from a difference (`comparison`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from posthog_source.tables import Column, HogqlTable

PRIME = 2**31 - 1
"""Products of two remainders, and sums of four thousand million of them, fit into 64 bits."""

CHUNK_BYTES = 7
"""Of a text, that a warehouse makes a number of at once: it fits into 64 bits, sign and all."""

PART_CHUNKS = 4
PART_BYTES = CHUNK_BYTES * PART_CHUNKS
"""That ClickHouse makes a number of at once, of 256 bits."""

TEXT_PARTS = 2
TEXT_BYTES = PART_BYTES * TEXT_PARTS
"""Shorter texts count as if zeros followed."""

CHUNK_FACTORS = tuple(256 ** (CHUNK_BYTES * n) % PRIME for n in reversed(range(PART_CHUNKS)))
"""What a part's chunks count in it, modulo the prime."""

TEXT_FACTORS = (3, 5, 7)
"""Of a text's parts, and of its length in characters."""

TAIL_START, TAIL_CHARS = 25, 12
"""The last digits of a uuid, which are random in every version, time-ordered ones included."""

Measure = Literal["tail", "text", "number", "instant", "size"]
"""How a column becomes a number: the tail of a uuid; a text's bytes and length; itself; microseconds since
1970; how many bytes it has."""

FACTORS = (1, 17, 19, 23, 29, 31, 37)


@dataclass(frozen=True)
class Term:
    """One column's share: each of its parts is a whole number."""

    column: Column
    measure: Measure
    factor: int

    @property
    def factors(self) -> tuple[int, ...]:
        """What each of its parts counts. Of a text there are three, else one."""
        return tuple(self.factor * each for each in (TEXT_FACTORS if self.measure == "text" else (1,)))


@dataclass(frozen=True)
class Fingerprint:
    """Which columns of a table are compared.

    Attributes:
        weight: The key's columns; their number also deals rows out to buckets.
        content: The others; empty where only keys are compared.
    """

    weight: tuple[Term, ...]
    content: tuple[Term, ...] = ()

    @property
    def keys(self) -> tuple[Column, ...]:
        """Columns that tell rows apart."""
        return tuple(term.column for term in self.weight)


def fingerprint_of(table: HogqlTable, *, without: Collection[str] = ()) -> Fingerprint:
    """The key; and of a table with times of arrival, its times, its required texts and the size of its JSON.

    Of other tables no content, since PostHog changes it as it goes; nor of events the person, whom PostHog
    writes anew into old rows (query_api.md 5.4).

    Args:
        table: As a person has chosen it.
        without: Names of columns that the two sides do not have alike.
    """
    keys = [table.column(name) for name in table.primary_key[1:]]
    if table.arrival_column is None:
        return Fingerprint(_terms(keys))
    compared = [
        column
        for column in table.asked
        if column not in keys and column.name not in without and not column.property_name
        if column.kind == "timestamp"
        or (column.kind == "text" and column.is_required)
        or _is_captured(column)
    ]
    return Fingerprint(_terms(keys), _terms(compared))


def _is_captured(column: Column) -> bool:
    """Whether it is the JSON that came with the row, and not what PostHog has put beside it."""
    return column.kind == "json" and not column.is_optional


def _terms(columns: Iterable[Column]) -> tuple[Term, ...]:
    return tuple(
        Term(column, _measure(column), factor) for column, factor in zip(columns, FACTORS, strict=False)
    )


def _measure(column: Column) -> Measure:
    match column.kind:
        case "uuid":
            return "tail"
        case "bigint":
            return "number"
        case "timestamp":
            return "instant"
        case "json":
            return "size"
        case _:
            return "text"
