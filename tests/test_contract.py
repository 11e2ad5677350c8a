"""The tables are part of what a version promises: what changes them takes another version, and is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Server
from tests.contract.loaded import CHANGELOG, KNOWN, PATH, kept_promise, sync_everything
from tests.contract.promise import (
    Promise,
    Section,
    TablePromise,
    find_breach,
    find_changes,
    find_stale,
    read_changelog,
    read_promise,
    write_promise,
)

TABLE = TablePromise(
    "merge", ("project_id", "id"), {"id": "bigint, required", "name": "text", "size": "bigint"}
)
TABLES = {"things": TABLE, "others": TABLE}
RELEASED = Section("0.1.0", is_released=True, text="")

BREAKING = {
    "things": lambda t: None,
    "things.size": lambda t: replace(t, columns={"id": "bigint, required", "name": "text"}),
    "things.name": lambda t: replace(t, columns={**t.columns, "name": "json"}),
    "things.id": lambda t: replace(t, columns={**t.columns, "id": "bigint"}),
    "things.more": lambda t: replace(t, columns={**t.columns, "more": "text, required"}),
}
HARMLESS = {
    "things.more": lambda t: replace(t, columns={**t.columns, "more": "text"}),
    "things.size": lambda t: replace(t, columns={**t.columns, "size": "bigint, required"}),
}
Alteration = Callable[[TablePromise], TablePromise | None]


def altered(alter: Alteration) -> dict[str, TablePromise]:
    table = alter(TABLE)
    return {"others": TABLE} | ({} if table is None else {"things": table})


def in_making(version: str, text: str = "") -> list[Section]:
    return [Section(version, is_released=False, text=text), RELEASED]


def test_what_a_sync_loads_is_what_was_promised_or_its_version_says_so(
    server: Server, tmp_path: Path
) -> None:
    now = sync_everything(server, tmp_path)

    assert set(KNOWN) < set(now.tables)
    breach = find_breach(kept_promise(), now, CHANGELOG)
    assert breach is None, breach
    stale = find_stale(kept_promise(), now, CHANGELOG)
    assert stale is None, stale


def test_the_promise_is_kept_as_it_is_written_anew() -> None:
    assert write_promise(kept_promise()) == PATH.read_text(encoding="utf-8")
    assert read_promise(write_promise(Promise("1.2.3", TABLES))) == Promise("1.2.3", TABLES)


@pytest.mark.parametrize(("subject", "alter"), BREAKING.items())
def test_what_breaks_takes_a_minor_version_before_the_first_major_and_a_line_of_the_changelog(
    subject: str, alter: Alteration
) -> None:
    promise, tables = Promise("0.1.0", TABLES), altered(alter)

    early = find_breach(promise, Promise("0.1.1", tables), in_making("0.1.1", f"`{subject}`"))
    assert early is not None
    assert "make it version 0.2.0" in early
    silent = find_breach(promise, Promise("0.2.0", tables), in_making("0.2.0", f"{subject}s, `{subject}s`"))
    assert silent is not None
    assert f"name `{subject}` in" in silent
    assert find_breach(promise, Promise("0.2.0", tables), in_making("0.2.0", f"`{subject}`")) is None


@pytest.mark.parametrize("alter", BREAKING.values(), ids=BREAKING)
def test_what_breaks_takes_a_major_version_afterwards(alter: Alteration) -> None:
    breach = find_breach(Promise("1.4.2", TABLES), Promise("1.5.0", altered(alter)), in_making("1.5.0"))

    assert breach is not None
    assert "make it version 2.0.0" in breach


@pytest.mark.parametrize("alter", HARMLESS.values(), ids=HARMLESS)
def test_what_is_new_takes_a_minor_version(alter: Alteration) -> None:
    promise, tables = Promise("1.4.2", TABLES), altered(alter)

    early = find_breach(promise, Promise("1.4.3", tables), in_making("1.4.3"))
    assert early is not None
    assert "make it version 1.5.0" in early
    assert find_breach(promise, Promise("1.5.0", tables), in_making("1.5.0")) is None


def test_a_table_more_is_new_and_another_key_or_disposition_breaks() -> None:
    other = replace(TABLE, disposition="snapshot", primary_key=("id",))

    found = find_changes({"things": TABLE}, {"things": other, "more": TABLE})

    assert [str(change) for change in found] == [
        "things has another disposition: merge, now snapshot (breaks)",
        "things has another primary key: project_id, id, now id (breaks)",
        "more is new",
    ]


def test_what_is_not_released_yet_may_change_as_long_as_it_is_written_down() -> None:
    promise, now = Promise("0.1.0", TABLES), Promise("0.1.0", {"things": TABLE})
    first = [replace(RELEASED, is_released=False)]

    assert find_breach(promise, now, first) is None
    stale = find_stale(promise, now, first)
    assert stale is not None
    assert "others is gone (breaks)" in stale
    assert "python -m tests.contract" in stale


def test_between_releases_the_promise_stays_and_a_release_writes_its_own() -> None:
    promise, now = Promise("0.1.0", TABLES), Promise("0.2.0", {**TABLES, "more": TABLE})

    assert find_stale(promise, now, in_making("0.2.0")) is None
    assert find_stale(promise, now, [replace(RELEASED, version="0.2.0"), RELEASED]) is not None
    assert find_stale(now, now, [replace(RELEASED, version="0.2.0"), RELEASED]) is None


def test_the_changelog_says_which_versions_are_released() -> None:
    written = "# Changelog\n\n## 0.2.0 - unreleased\n\n- B\n\n## 0.1.0 - 2026-12-01\n\n- A\n"

    assert read_changelog(written) == [
        Section("0.2.0", is_released=False, text="\n- B\n\n"),
        Section("0.1.0", is_released=True, text="\n- A\n"),
    ]
    assert CHANGELOG
