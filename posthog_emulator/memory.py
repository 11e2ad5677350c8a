"""A bounded store of cached and async query answers, in place of PostHog's Redis.

PostHog keeps cached answers 7 days and async ones 20 minutes, in a store far larger than this process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

CACHE_LIFE = timedelta(days=7)
MAX_BYTES = 256 * 1024 * 1024
MAX_COUNT = 10_000


class Sized(Protocol):
    """Something whose size is known and may change."""

    @property
    def size(self) -> int:
        """Bytes of it, more or less."""


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)


@dataclass
class Bounds:
    """How much is kept."""

    max_bytes: int = MAX_BYTES
    max_count: int = MAX_COUNT


class Shelf(Generic[Key, Value]):
    """The newest things that fit, the newest one always; the oldest go first."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """What is kept under a key."""
        return self._kept.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep something, as the newest."""
        self._kept.pop(key, None)
        self._kept[key] = value
        self.shrink()

    def drop(self, key: Key) -> None:
        """Forget something."""
        self._kept.pop(key, None)

    def shrink(self) -> None:
        """Forget what does not fit; call it when something has grown."""
        kept_bytes = sum(value.size for value in self._kept.values())
        while len(self._kept) > 1 and (
            kept_bytes > self._bounds.max_bytes or len(self._kept) > self._bounds.max_count
        ):
            _, oldest = self._kept.popitem(last=False)
            kept_bytes -= oldest.size

    def items(self) -> Iterator[tuple[Key, Value]]:
        """All of it, oldest first; may be changed meanwhile."""
        yield from list(self._kept.items())


def is_kept(computed_at: datetime, now: datetime) -> bool:
    """Whether PostHog would still have a cached answer, however stale."""
    return now - computed_at < CACHE_LIFE
