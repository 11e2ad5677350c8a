"""Eviction of the bounded answer cache."""

from __future__ import annotations

from dataclasses import dataclass

from posthog_emulator.memory import Bounds, Shelf


@dataclass
class Thing:
    size: int


def kept(shelf: Shelf[str, Thing]) -> list[str]:
    return [key for key, _ in shelf.items()]


def test_the_oldest_goes_when_there_are_too_many_bytes() -> None:
    shelf: Shelf[str, Thing] = Shelf(Bounds(max_bytes=10))
    for name in "abc":
        shelf.put(name, Thing(4))
    assert kept(shelf) == ["b", "c"]


def test_the_oldest_goes_when_there_are_too_many() -> None:
    shelf: Shelf[str, Thing] = Shelf(Bounds(max_count=2))
    for name in "abc":
        shelf.put(name, Thing(0))
    assert kept(shelf) == ["b", "c"]


def test_the_newest_is_kept_whatever_its_size() -> None:
    shelf: Shelf[str, Thing] = Shelf(Bounds(max_bytes=10))
    shelf.put("a", Thing(1))
    shelf.put("b", Thing(100))
    assert kept(shelf) == ["b"]


def test_what_is_written_again_is_the_newest() -> None:
    shelf: Shelf[str, Thing] = Shelf(Bounds(max_count=2))
    for name in "abac":
        shelf.put(name, Thing(0))
    assert kept(shelf) == ["a", "c"]


def test_what_grows_counts_when_it_has_grown() -> None:
    shelf: Shelf[str, Thing] = Shelf(Bounds(max_bytes=10))
    first, second = Thing(0), Thing(0)
    shelf.put("a", first)
    shelf.put("b", second)
    second.size = 100
    shelf.shrink()
    assert kept(shelf) == ["b"]
