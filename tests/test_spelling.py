"""spelling: what is misspelt or misplaced is told with the right name; what is right, or dlt's, is not."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from dlt.common.configuration.container import Container
from dlt.common.configuration.providers import ConfigProvider, ConfigTomlProvider, VaultDocProvider
from dlt.common.configuration.resolve import inject_section
from dlt.common.configuration.specs import PluggableRunContext
from dlt.common.configuration.specs.config_section_context import ConfigSectionContext

from posthog_source import posthog_query, posthog_source
from posthog_source.errors import SettingsError
from posthog_source.query_tables import QuerySettings
from posthog_source.spelling import OF_DLT, find_unknown, known_settings, nearest, warn_of_unknown_keys
from tests.conftest import run_program

KEY = "phx_ThatNobodyMaySee"
KNOWN = known_settings(posthog_source)
PATHS = [tuple(filter(None, (section, name))) for section in KNOWN for name in sorted(KNOWN[section])]

CREDENTIALS: dict[str, Any] = {"project_id": 1, "api_key": KEY}

PROGRAM = """
import dlt
from posthog_source import posthog_query, posthog_source
{}
"""


def said_by(folder: Path, program: str) -> list[str]:
    """What lines on stderr say of a program that makes sources in a folder."""
    done = run_program("-c", PROGRAM.format(program), cwd=folder)
    assert done.returncode == 0, done.stderr
    return [line.rsplit("|", 1)[-1] for line in done.stderr.splitlines()]


def write(folder: Path, **files: str) -> None:
    """Files of `.dlt`, by name less `.toml`."""
    (folder / ".dlt").mkdir()
    for name, text in files.items():
        (folder / ".dlt" / f"{name}.toml").write_text(text, encoding="utf-8")


def variable(*path: str) -> str:
    return "__".join(("SOURCES", "POSTHOG", *path)).upper()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "posthog_source")
    return caplog


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_each_setting_is_what_was_meant_where_its_last_letter_is_missing(path: tuple[str, ...]) -> None:
    wrong = (*path[:-1], path[-1][:-1])

    assert find_unknown(path, KNOWN) == ()
    assert find_unknown(wrong, KNOWN) == wrong
    assert nearest(wrong, KNOWN) == [path]


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_each_setting_that_stands_in_another_section_is_shown_where_it_belongs(
    path: tuple[str, ...],
) -> None:
    for section in KNOWN:
        wrong = (*filter(None, (section,)), path[-1])
        if path[-1] not in KNOWN[section]:
            assert find_unknown(wrong, KNOWN) == wrong
            assert path in nearest(wrong, KNOWN)


@pytest.mark.parametrize("path", PATHS, ids=".".join)
def test_a_setting_of_a_section_that_is_misspelt_is_told_once_for_the_section(path: tuple[str, ...]) -> None:
    if len(path) == 2:
        section = path[0][:-1]

        assert find_unknown((section, path[1]), KNOWN) == (section,)
        assert nearest((section,), KNOWN) == [path[:1]]


def test_every_setting_may_stand_in_the_environment_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    for path in PATHS:
        monkeypatch.setenv(variable(*path), "")
    for name in OF_DLT:
        monkeypatch.setenv(variable(name, "below"), "1")

    with pytest.raises(ValueError, match="host is no address"):
        posthog_source(**CREDENTIALS)

    assert warnings.messages == []


def test_what_is_misspelt_in_the_environment_is_one_warning_each_and_never_its_value(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOURCES__POSTHOG__API_KYE", KEY)
    monkeypatch.setenv("SOURCES__POSTHOG__EVENTS__LOKBACK_S", "1")
    monkeypatch.setenv("SOURCES__POSTHOG__PEOPLE__WRITE_MODE", "append")
    monkeypatch.setenv("SOURCES__POSTHOG__BANANA", "1")

    posthog_source(**CREDENTIALS)

    assert KEY not in warnings.text
    told = {message.split()[0]: message.rsplit(". ", 1)[1] for message in warnings.messages}
    assert len(warnings.messages) == 4
    assert told["SOURCES__POSTHOG__API_KYE"] == "Did you mean SOURCES__POSTHOG__API_KEY?"
    assert told["SOURCES__POSTHOG__EVENTS__LOKBACK_S"] == "Did you mean SOURCES__POSTHOG__EVENTS__LOOKBACK_S?"
    assert (
        told["SOURCES__POSTHOG__PEOPLE__WRITE_MODE"] == "Did you mean SOURCES__POSTHOG__EVENTS__WRITE_MODE?"
    )
    assert told["SOURCES__POSTHOG__BANANA"].startswith("There are api_key, end_date, events, ")


def test_a_misspelt_key_is_told_before_the_error_that_it_leads_to(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOURCES__POSTHOG__API_KYE", KEY)

    with pytest.raises(ValueError, match="api_key is not set"):
        posthog_source(project_id=1)

    assert len(warnings.messages) == 1


def test_a_query_that_is_made_by_itself_takes_the_settings_of_both_sources(
    monkeypatch: pytest.MonkeyPatch, warnings: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOURCES__POSTHOG__PAGE_ROWS", "10")
    monkeypatch.setenv("SOURCES__POSTHOG__EVENTS__PAGE_ROWS", "10")
    monkeypatch.setenv("SOURCES__POSTHOG__CURSER", "day")

    posthog_query("mine", "SELECT 1 AS one", **CREDENTIALS)

    (message,) = warnings.messages
    assert message.endswith("Did you mean SOURCES__POSTHOG__CURSOR?")


def test_what_is_misspelt_in_toml_is_told_with_its_section_and_its_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        config=(
            "[sources.posthog]\nlook_ahed = 3\npage_rows = 10\nmax_table_nesting = 0\nroot_key = true\n"
            'schema_contract = "evolve"\n'
            "[sources.posthog.data_writer]\nfile_max_items = 100\n"
            "[sources.posthog.schema]\nnaming = 'snake_case'\n"
            '[sources.posthog.events]\npagerows = 5\npromote = { "$browser" = "text" }\n'
            '[sources.posthog.event]\nwhere = "1"\nlag_s = 1\n'
            "[sources.posthog.posthog.events]\nlag_s = 1\n"
            "[sources.other]\nlook_ahed = 1\n"
            "[my_pipeline.sources.posthog]\nlook_ahead = 1\n"
            "[[sources.posthog.queries]]\nname = 'mine'\nquery = 'SELECT 1 AS one'\n"
        ),
        secrets=f'[sources.posthog]\nproject_id = 1\napi_key = "{KEY}"\napi_kye = "{KEY}"\n',
    )

    said = said_by(tmp_path, "posthog_source()")

    assert said == [
        f"{written} is no setting and does nothing. Did you mean {meant}?"
        for written, meant in (
            ("api_kye under [sources.posthog] in secrets.toml", "api_key under [sources.posthog]"),
            ("look_ahed under [sources.posthog] in config.toml", "look_ahead under [sources.posthog]"),
            (
                "page_rows under [sources.posthog] in config.toml",
                "page_rows under [sources.posthog.events] or page_rows under [sources.posthog.people]",
            ),
            (
                "pagerows under [sources.posthog.events] in config.toml",
                "page_rows under [sources.posthog.events]",
            ),
            ("event under [sources.posthog] in config.toml", "events under [sources.posthog]"),
        )
    ]


def test_what_stands_below_the_name_of_the_active_pipeline_is_looked_through_too(tmp_path: Path) -> None:
    credentials = f'[sources.posthog]\nproject_id = 1\napi_key = "{KEY}"\n'
    write(
        tmp_path,
        config="[nightly.sources.posthog]\nlook_ahed = 1\n[hourly.sources.posthog]\nlook_ahed = 1\n",
        secrets=credentials,
    )
    program = (
        "import os\n"
        'os.environ["NIGHTLY__SOURCES__POSTHOG__HOTS"] = "eu"\n'
        'dlt.pipeline("nightly", pipelines_dir="here")\n'
        "posthog_source()"
    )

    assert [line.split(" is no ")[0] for line in said_by(tmp_path, program)] == [
        "NIGHTLY__SOURCES__POSTHOG__HOTS in the environment",
        "look_ahed under [nightly.sources.posthog] in config.toml",
    ]


def test_a_clone_is_looked_through_by_its_own_sections_and_each_source_once(tmp_path: Path) -> None:
    program = (
        'posthog_source.clone(name="eu", section="eu")()\n'
        'posthog_source.clone(name="staging")()\n'
        "posthog_source()"
    )
    write(
        tmp_path,
        config=(
            '[sources.eu]\nhots = "eu"\n[sources.posthog]\nhosts = "eu"\n'
            '[sources.posthog.staging]\nhost = "us"\n[sources.staging]\nhos = "us"\n'
        ),
        secrets="".join(
            f'[sources.{name}]\nproject_id = 1\napi_key = "{KEY}"\n' for name in ("eu", "posthog")
        ),
    )

    said = said_by(tmp_path, program)

    assert [line.split(" is no ")[0] for line in said] == [
        "hots under [sources.eu] in config.toml",
        "hosts under [sources.posthog] in config.toml",
        "hos under [sources.staging] in config.toml",
        "hosts under [sources.posthog] in config.toml",
    ]


@pytest.mark.parametrize("name", [field.name for field in fields(QuerySettings)])
def test_a_setting_of_a_query_that_is_misspelt_stops_with_the_right_name(name: str) -> None:
    query = {"name": "mine", "query": "SELECT 1 AS one", f"{name}s": KEY}

    with pytest.raises(SettingsError) as refusal:
        posthog_source(**CREDENTIALS, queries=[query])

    assert str(refusal.value) == f"The query mine has no setting {name}s. Did you mean {name}?"


class Vault(VaultDocProvider):
    """Remembers what it is asked for over its network."""

    def __init__(self) -> None:
        super().__init__(only_secrets=False, only_toml_fragments=False, list_secrets=True)
        self.asked: list[str] = []

    @property
    def name(self) -> str:
        return "vault"

    def _look_vault(self, full_key: str, hint: type) -> Any:
        self.asked.append(full_key)
        return None

    def _list_vault(self) -> set[str]:
        self.asked.append("everything")
        return {"sources-posthog"}


def warn_with(provider: ConfigProvider) -> None:
    """Looks for unknown keys where there is one provider more."""
    providers = Container()[PluggableRunContext].providers.providers
    providers.append(provider)
    try:
        with inject_section(ConfigSectionContext(sections=("sources", "posthog", "posthog"))):
            warn_of_unknown_keys(KNOWN)
    finally:
        providers.remove(provider)


def test_a_vault_is_asked_for_nothing() -> None:
    vault = Vault()

    warn_with(vault)

    assert vault.asked == []


def test_a_file_for_all_projects_of_a_machine_is_told_from_the_projects_own(
    tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    for folder in ("own", "all"):
        (tmp_path / folder).mkdir()
        text = f'[sources.posthog]\nhost_of_{folder} = "eu"\n'
        (tmp_path / folder / "config.toml").write_text(text, encoding="utf-8")

    warn_with(ConfigTomlProvider(str(tmp_path / "own"), str(tmp_path / "all")))

    assert {message.split(" is no ")[0] for message in warnings.messages} == {
        "host_of_own under [sources.posthog] in config.toml",
        "host_of_all under [sources.posthog] in global:config.toml",
    }
