"""What import-linter's contracts do not say: pure rooms touch nothing, and the door is the way in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import posthog_source

ROOT = Path(__file__).parents[1]
ROOMS = sorted(ROOT.glob("posthog_source/*.py"))
PIPELINES = sorted(ROOT.glob("pipelines/*.py"))

PURE_ROOMS = ("arrow", "catalog", "config", "errors", "query", "windows")
WORLDLY = frozenset(
    {"asyncio", "concurrent", "dlt", "httpx", "io", "logging", "multiprocessing", "os", "pathlib", "random"}
    | {"requests", "secrets", "shutil", "socket", "ssl", "subprocess", "tempfile", "tenacity", "threading"}
    | {"time", "urllib.request"}
)
"""Modules that reach for the clock, the network, the disk, other threads or the log."""

DRAWERS = ("base", "common", "helpers", "misc", "utils")


def imported_by(path: Path) -> set[str]:
    """Full names of everything imported anywhere in a file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("room", PURE_ROOMS)
def test_a_pure_room_reaches_for_nothing_outside_itself(room: str) -> None:
    names = imported_by(ROOT / f"posthog_source/{room}.py")

    assert {name for name in names if name in WORLDLY or name.split(".", 1)[0] in WORLDLY} == set()


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.stem)
def test_every_room_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""

    assert docstring.split("\n", 1)[0].endswith((".", ":"))


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.stem)
def test_no_room_is_a_drawer_for_odds_and_ends(path: Path) -> None:
    assert path.stem not in DRAWERS


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.stem)
def test_no_room_imports_the_emulator_or_the_tests(path: Path) -> None:
    roots = {name.split(".", 1)[0] for name in imported_by(path)}

    assert roots.isdisjoint({"posthog_emulator", "tests", "benchmarks", "pipelines"})


def test_hogql_is_written_in_one_room_only() -> None:
    writers = {
        path.stem
        for path in ROOMS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("SELECT ")
    }

    assert writers - {"demo", "destination", "status"} == {"query"}  # those ask the warehouse, in SQL


def test_the_door_shows_exactly_what_it_says() -> None:
    assert sorted(posthog_source.__all__) == posthog_source.__all__
    assert sorted({*posthog_source._ROOMS, "__version__"}) == posthog_source.__all__
    for name in posthog_source.__all__:
        assert getattr(posthog_source, name) is not None
    with pytest.raises(AttributeError, match="'nothing'"):
        posthog_source.nothing  # noqa: B018


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_what_a_person_copies_comes_in_by_the_door(path: Path) -> None:
    rooms = {f"posthog_source.{room.stem}" for room in ROOMS}
    allowed = {f"posthog_source.{name}" for name in posthog_source.__all__}

    assert imported_by(path) & rooms <= allowed
