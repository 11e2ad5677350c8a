"""Writes docs/settings.md from the code: `python docs/write_settings.py`. A test fails when it is stale.

A setting is there since the source takes it; what it means, docstrings say; what it may be, its type and the
refusal of what it may not.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from posthog_source import config, posthog_query, posthog_source, run_backfill, run_sync
from posthog_source.config import Secret, Settings
from posthog_source.errors import SettingsError
from posthog_source.query_tables import QuerySettings
from posthog_source.spelling import known_settings

PATH = Path(__file__).with_name("settings.md")

ARGUMENTS = {"base_url": "host", "start": "start_date", "end": "end_date"}
"""What some fields of `Settings` are called where they are set."""

NEEDED: Mapping[type, Mapping[str, Any]] = {
    Settings: {"project_id": 1, "api_key": Secret("phx_"), "base_url": ""},
    QuerySettings: {"name": "mine", "query": "SELECT 1 AS one"},
}
"""What cannot be left out."""

PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Secret: "text"}

UNTYPED = {"tables": "list of names", "queries": "list of tables, see below"}

TAKERS: tuple[Callable[..., Any], ...] = (posthog_source, posthog_query, run_sync, run_backfill)

NOTES = re.compile(r" \((?:\w+\.md|posthog/)[^)]*\)|, written by a person who is trusted")
"""What is for maintainers: where their fact sheets or PostHog's source say it, and who is trusted."""

HEAD = """# Settings

Made from the code by `docs/write_settings.py`.

A setting is taken from the first of these places that has it: an argument, the environment,
`.dlt/secrets.toml`, `.dlt/config.toml`. A value for one pipeline, in `[my_pipeline.sources.posthog]` or
`MY_PIPELINE__SOURCES__POSTHOG__…`, comes before a value for all. In the environment, lists and tables are
JSON. A clone, `posthog_source.clone(name="eu", section="eu")`, has `[sources.eu]`. `run_sync` and
`run_backfill` pass further arguments on to the source. A key that names no setting does nothing, and a
warning names the nearest one."""

QUERIES = (
    "Each is a table of your own. As arguments: `posthog_query(name, query, …)`, or "
    "`posthog_source(queries=[{…}, …])`. In the environment: all of them in `SOURCES__POSTHOG__QUERIES`."
)


def written() -> str:
    """The whole document."""
    known = known_settings(posthog_source)
    sections = {name: _settings_of(name) for name in known if name}
    lines = [HEAD, *_shared(known[""])]
    for name, kind in sections.items():
        how = f"As an argument: `posthog_source({name}={kind.__name__.replace('Settings', 'Config')}(…))`."
        lines += _section(f"[sources.posthog.{name}]", kind, how, f"SOURCES__POSTHOG__{name.upper()}__")
    return "\n".join([*lines, *_section("[[sources.posthog.queries]]", QuerySettings, QUERIES)]) + "\n"


def _settings_of(section: str) -> type[Any]:
    """The checked settings of a section: `EventsSettings` of `events`."""
    kind: type[Any] = getattr(config, f"{section.title().replace('_', '')}Settings")
    return kind


def _shared(names: frozenset[str]) -> Iterator[str]:
    """The section that all tables share, in the order of the source's arguments."""
    yield from ("", "## [sources.posthog]", "")
    yield from _row("setting", "environment", "may be", "default", "argument of", "meaning")
    yield from _row(*["---"] * 6)
    ours = {ARGUMENTS.get(name, name): (may_be, default) for name, may_be, default in _fields(Settings)}
    told = _told(posthog_source, "Args") | _told(Settings, "Attributes")
    for name, parameter in inspect.signature(posthog_source).parameters.items():
        if name in names:
            may_be, default = ours.get(name, (UNTYPED.get(name, ""), None))
            default = default if parameter.default is None else parameter.default
            takers = [f"`{each.__name__}`" for each in TAKERS if name in inspect.signature(each).parameters]
            variable = f"`SOURCES__POSTHOG__{name.upper()}`"
            yield from _row(f"`{name}`", variable, may_be, _shown(default), ", ".join(takers), told[name])


def _section(title: str, kind: type[Any], how: str, prefix: str = "") -> Iterator[str]:
    """A section with settings of its own; `prefix` is of their names in the environment, if they have any."""
    yield from ("", f"## {title}", "", how, "")
    heads = ["setting", *(["environment"] if prefix else []), "may be", "default", "meaning"]
    yield from _row(*heads)
    yield from _row(*["---"] * len(heads))
    told = _told(kind, "Attributes")
    for name, may_be, default in _fields(kind):
        variable = [f"`{prefix}{name.upper()}`"] if prefix else []
        yield from _row(f"`{name}`", *variable, may_be, _shown(default), told[name])


def _row(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"


def _fields(kind: type[Any]) -> Iterator[tuple[str, str, Any]]:
    """Names of a class's settings, what they may be, and their defaults."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        default = MISSING if each.name in NEEDED.get(kind, {}) else each.default
        yield each.name, _may_be(kind, each.name, hints[each.name]), default


def _may_be(kind: type[Any], name: str, hint: Any) -> str:
    """What a setting may be: by its type, and in the words of its refusal."""
    plain = _plain(hint)
    if "number" not in plain or "list" in plain:
        return plain
    said = [_refusal(kind, name, value) for value in (-1, 10**9)]
    words = next((each for each in said if each), "")
    return words if "number" in words else f"{plain}, {words}" if words else plain


def _refusal(kind: type[Any], name: str, value: int) -> str:
    """How a number is refused: the words that say what it may be; none if it is taken."""
    try:
        kind(**{**NEEDED.get(kind, {}), name: value})
    except SettingsError as error:
        found = re.search(r"must be (.+)\. Set it|has a \w+ that is not (.+), or", str(error))
        return (found[1] or found[2]) if found else ""
    return ""


def _plain(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), [each for each in get_args(hint) if each not in (type(None), ...)]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return _plain(inner[0])
    if origin is tuple and get_origin(inner[0]) is tuple:
        return f"table of names and one of {_plain(get_args(inner[0])[1])}"
    if origin is tuple:
        return f"list of {_plain(inner[0])}s"
    return "ISO date or time" if hint is datetime else PLAIN[hint]


def _shown(default: Any) -> str:
    if default is MISSING:
        return "required"
    if default in (None, "", ()):
        return ""
    return f"`{json.dumps(int(default) if isinstance(default, float) else default)}`"


def _told(owner: Any, title: str) -> dict[str, str]:
    """What a docstring says of each name under a title, with what those that its class inherits from say."""
    owners = reversed(owner.__mro__) if isinstance(owner, type) else (owner,)
    told: dict[str, str] = {}
    for each in owners:
        _, _, below = (inspect.getdoc(each) or "").partition(f"{title}:\n")
        entries = re.split(r"\n\n|\n(?=    \w)", below.split("\n\n", 1)[0])
        for name, text in (entry.strip().split(": ", 1) for entry in entries if ": " in entry):
            told[name] = NOTES.sub("", " ".join(text.split()).replace("``", "`"))
    return told


if __name__ == "__main__":
    PATH.write_text(written())
