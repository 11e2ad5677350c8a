"""docs/settings.md and the files of .dlt: every setting, and none that is not."""

from __future__ import annotations

import re
import runpy
import tomllib
from dataclasses import fields

import pytest

from posthog_source import posthog_source
from posthog_source.query_tables import QuerySettings
from posthog_source.spelling import find_unknown, known_settings
from tests.conftest import ROOT

DOCUMENT = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
KNOWN = known_settings(posthog_source)


def rows(section: str) -> dict[str, list[str]]:
    """The cells of each setting of a section of the document."""
    _, _, below = DOCUMENT.partition(f"\n## {section}\n")
    found = re.findall(r"^\| `(\w+)` \| (.+) \|$", below.split("\n## ", 1)[0], re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in found}


def test_the_document_of_settings_is_what_the_code_says() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "write_settings.py"))

    assert made["written"]() == DOCUMENT, "run python docs/write_settings.py"


@pytest.mark.parametrize("section", KNOWN, ids=lambda section: section or "shared")
def test_each_setting_is_told_with_its_variable_what_it_may_be_and_what_it_means(section: str) -> None:
    told = rows(f"[sources.posthog{'.' if section else ''}{section}]")

    assert set(told) == KNOWN[section]
    for name, (variable, may_be, *_, meaning) in told.items():
        path = [part for part in ("sources", "posthog", section, name) if part]
        assert variable == f"`{'__'.join(path).upper()}`"
        assert may_be
        assert meaning.endswith(".")


def test_each_setting_of_a_query_is_told_with_what_it_means() -> None:
    told = rows("[[sources.posthog.queries]]")

    assert set(told) == {field.name for field in fields(QuerySettings)}
    assert all(cells[0] and cells[-1].endswith(".") for cells in told.values())


@pytest.mark.parametrize("name", ["config.toml", "secrets.toml.example"])
def test_the_settings_files_of_the_repository_set_only_what_exists(name: str) -> None:
    """Also where the line is a comment, to be uncommented."""
    text = (ROOT / ".dlt" / name).read_text(encoding="utf-8")
    for shown in (text, re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.MULTILINE)):
        section = tomllib.loads(shown)["sources"]["posthog"]
        paths = [
            (key, *below)
            for key, value in section.items()
            for below in ([(inner,) for inner in value] if isinstance(value, dict) else [()])
        ]
        assert [path for path in paths if find_unknown(path, KNOWN)] == []
        for query in section.get("queries", ()):
            assert set(query) <= {field.name for field in fields(QuerySettings)}
