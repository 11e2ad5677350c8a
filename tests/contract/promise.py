"""What a version promises of its tables, what has changed since, and which version that takes. Pure.

Not here: what the tables are now (`loaded`).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

HEAD = """\
# The tables that a version promises, with dlt's types, as a sync into DuckDB makes them. Between two
# releases it stays that of the last one. Made by `python -m tests.contract`.
"""
REQUIRED = ", required"


@dataclass(frozen=True)
class TablePromise:
    """A table; a column's type says whether it is never null."""

    disposition: str
    primary_key: tuple[str, ...]
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Promise:
    """The tables of a version, by name."""

    version: str
    tables: Mapping[str, TablePromise]


@dataclass(frozen=True)
class Change:
    """What somebody who reads the tables meets; `breaks` where it may break what they do."""

    subject: str
    what: str
    breaks: bool

    def __str__(self) -> str:
        return f"{self.subject} {self.what}{' (breaks)' if self.breaks else ''}"


@dataclass(frozen=True)
class Section:
    """A version of the changelog."""

    version: str
    is_released: bool
    text: str


def read_promise(text: str) -> Promise:
    """A promise as it was written."""
    written = tomllib.loads(text)
    return Promise(
        written.pop("version"),
        {
            name: TablePromise(table["disposition"], tuple(table["primary_key"]), table["columns"])
            for name, table in written.items()
        },
    )


def write_promise(promise: Promise) -> str:
    """A line for each column, so that a diff tells what has changed."""
    lines = [f'{HEAD}version = "{promise.version}"']
    for name, table in promise.tables.items():
        lines += ["", f"[{name}]", f'disposition = "{table.disposition}"']
        lines += [f"primary_key = {json.dumps(table.primary_key)}"]
        lines += [f'columns.{column} = "{kind}"' for column, kind in table.columns.items()]
    return "\n".join(lines) + "\n"


def read_changelog(text: str) -> list[Section]:
    """Its versions, the newest first: `## 1.2.3 - unreleased`, or a date."""
    found = re.findall(r"^## (\d+\.\d+\.\d+) - (\S+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return [
        Section(version, bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", when)), body)
        for version, when, body in found
    ]


def find_changes(before: Mapping[str, TablePromise], after: Mapping[str, TablePromise]) -> list[Change]:
    """What is otherwise now."""
    changes = [Change(name, "is gone", breaks=True) for name in before if name not in after]
    for name, table in after.items():
        if name in before:
            changes += _changes_of_table(name, before[name], table)
        else:
            changes.append(Change(name, "is new", breaks=False))
    return changes


def next_version(version: str, changes: Sequence[Change]) -> str:
    """The least version that may bring changes: SemVer, whose versions before 1.0 may break by a minor."""
    major, minor, _ = _numbers(version)
    breaks = any(change.breaks for change in changes)
    return f"{major + 1}.0.0" if major and breaks else f"{major}.{minor + 1}.0"


def find_breach(promise: Promise, now: Promise, changelog: Sequence[Section]) -> str | None:
    """What a version lacks to load other tables than the last one that was released; None if nothing."""
    changes = find_changes(promise.tables, now.tables)
    if not changes or not any(section.is_released for section in changelog):
        return None
    needed = next_version(promise.version, changes)
    if _numbers(now.version) < _numbers(needed):
        return (
            f"{_listed(changes)}\n{promise.version} promised otherwise. Take it back, or make it version "
            f"{needed}: in posthog_source/__init__.py, and as a new section of CHANGELOG.md."
        )
    untold = [
        change for change in changes if change.breaks and f"`{change.subject}`" not in changelog[0].text
    ]
    if untold:
        return (
            f"{_listed(untold)}\nWho relies on it has to read of it: name "
            f"{', '.join(f'`{change.subject}`' for change in untold)} in the newest section of CHANGELOG.md."
        )
    return None


def find_stale(promise: Promise, now: Promise, changelog: Sequence[Section]) -> str | None:
    """Why the promise is to be written anew; None while the newest version is in the making."""
    has_release = any(section.is_released for section in changelog)
    if promise == now or (has_release and not changelog[0].is_released):
        return None
    return (
        f"{_listed(find_changes(promise.tables, now.tables))}\n"
        f"{now.version} is {'released' if has_release else 'the first version, and not released yet'}. "
        "If the tables are meant to be so: python -m tests.contract"
    )


def _changes_of_table(name: str, before: TablePromise, after: TablePromise) -> Iterator[Change]:
    for what, was, now in (
        ("disposition", before.disposition, after.disposition),
        ("primary key", ", ".join(before.primary_key), ", ".join(after.primary_key)),
    ):
        if was != now:
            yield Change(name, f"has another {what}: {was}, now {now}", breaks=True)
    for column in {**before.columns, **after.columns}:
        subject, was, now = f"{name}.{column}", before.columns.get(column, ""), after.columns.get(column, "")
        if not now:
            yield Change(subject, "is gone", breaks=True)
        elif not was:  # dlt cannot add a column that is never null to a table that has rows
            yield Change(subject, f"is new: {now}", breaks=now.endswith(REQUIRED))
        elif was != now:
            yield Change(subject, f"was {was}, is {now}", breaks=now != was + REQUIRED)


def _numbers(version: str) -> tuple[int, int, int]:
    major, minor, patch = (int(number) for number in version.split("."))
    return major, minor, patch


def _listed(changes: Sequence[Change]) -> str:
    return "\n".join(f"  {change}" for change in changes)
