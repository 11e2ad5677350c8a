"""The package as others get it: what is in it, and that it works in a clean environment, elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pytest
from packaging.metadata import Metadata
from packaging.specifiers import SpecifierSet

import posthog_source
from tests.conftest import ROOT, Project, add_events, run_program
from tests.test_documents import blocks

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("posthog_source", "posthog_emulator")
PROJECTS = (ROOT / "docs" / "dlt-projects.md").read_text(encoding="utf-8")
PRIVATE = (".dlt/secrets.toml", "posthog.duckdb", ".venv/pyvenv.cfg")
"""What lies about in a folder that somebody works in."""

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = [
    found[1]
    for classifier in PROJECT["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
]
TIMEOUT_S = 600
"""Of anything here, on a busy machine."""

IMPORT_ALL = """
import importlib, importlib.metadata, pkgutil, posthog_source
for room in pkgutil.iter_modules(posthog_source.__path__):
    importlib.import_module(f"posthog_source.{room.name}")
for name in posthog_source.__all__:
    getattr(posthog_source, name)
assert importlib.metadata.version("posthog-source") == posthog_source.__version__
print(posthog_source.__file__)
"""


@dataclass(frozen=True)
class Distributions:
    """What a release uploads."""

    sdist: Path
    wheel: Path

    @property
    def sdist_files(self) -> set[str]:
        """Paths below its one folder."""
        with tarfile.open(self.sdist) as archive:
            return {name.split("/", 1)[1] for name in archive.getnames()}

    @property
    def wheel_files(self) -> set[str]:
        with ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    @property
    def metadata(self) -> Metadata:
        """Checked by the standard's own library."""
        (path,) = (name for name in self.wheel_files if name.endswith(".dist-info/METADATA"))
        with ZipFile(self.wheel) as archive:
            return Metadata.from_email(archive.read(path))


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds the wheel, and nothing of this repository."""

    folder: Path

    def run(self, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run one of its programs as a person would, somewhere else."""
        kept = {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR") if name in os.environ}
        given = {"DLT_DATA_DIR": str(cwd / "dlt"), "RUNTIME__DLTHUB_TELEMETRY": "false"}
        return subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=cwd,
            env=kept | given,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )


def find_python(version: str) -> str | None:
    """A Python of that version that is on this machine and starts."""
    if version == OWN:
        return sys.executable
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = f"python{version}"
    candidates = (shutil.which(named), *sorted(versions.glob(f"{version}.*/bin/{named}")))
    return next((str(path) for path in candidates if path and _starts(str(path))), None)


def _starts(python: str) -> bool:
    """Pyenv puts programs on the path that only say which versions it has."""
    return subprocess.run([python, "-c", "import venv"], capture_output=True, check=False).returncode == 0


def build_environment(python: str, folder: Path, requirement: str) -> Environment:
    """Without a pip of its own, which would take longer than all the rest."""
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "--disable-pip-version-check", "--quiet"]
    for command in (
        [python, "-m", "venv", "--without-pip", str(folder)],
        [*pip, "install", "--no-compile", requirement],
        [*pip, "check"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return Environment(folder)


def kept_files() -> set[str]:
    """All that git keeps, or will."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {path for path in listed.splitlines() if (ROOT / path).is_file()}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Gone afterwards: pytest would keep gigabytes of environments."""
    with TemporaryDirectory(prefix="posthog-source-package-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def distributions(folder: Path) -> Distributions:
    """The sdist of a checkout in which somebody has worked, and the wheel built from that sdist."""
    checkout = folder / "checkout"
    for path in kept_files():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, checkout / path)
    for path in PRIVATE:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text("nobody's business")
    command = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return Distributions(sdist, wheel)


@pytest.fixture(scope="module")
def environments(distributions: Distributions, folder: Path) -> Iterator[Mapping[str, Future[Environment]]]:
    """`plain` is without extras, the others, one for each Python that is here, with `demo`. Made at once."""
    pythons = {version: python for version in PYTHONS if (python := find_python(version))}
    wheel = str(distributions.wheel)
    with ThreadPoolExecutor() as pool:
        made = {"plain": pool.submit(build_environment, sys.executable, folder / "plain", wheel)}
        for version, python in pythons.items():
            made[version] = pool.submit(build_environment, python, folder / version, f"{wheel}[demo]")
        yield made


@pytest.fixture
def plain(environments: Mapping[str, Future[Environment]]) -> Environment:
    return environments["plain"].result()


def test_the_pythons_that_are_declared_are_all_that_may_install_it_up_to_the_newest() -> None:
    allowed = SpecifierSet(PROJECT["requires-python"])
    newest = int(PYTHONS[-1].removeprefix("3."))

    assert [f"3.{minor}" for minor in range(newest + 1) if f"3.{minor}" in allowed] == PYTHONS


def test_the_code_works_when_it_is_copied_into_a_dlt_project(project: Project, tmp_path: Path) -> None:
    add_events(project, 3)
    (commands,) = blocks(PROJECTS, "sh")
    copied = commands.replace("../posthog_source/", f"{ROOT}/")
    subprocess.run(["sh", "-ec", copied], cwd=tmp_path, check=True, timeout=TIMEOUT_S)

    where = run_program("-c", "import posthog_source; print(posthog_source.__file__)", cwd=tmp_path)
    done = run_program("posthog_pipeline.py", "--tables", "events", cwd=tmp_path, project=project)

    assert Path(where.stdout.strip()).is_relative_to(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "events: 3" in done.stdout


def test_the_requirements_of_copied_code_are_the_packages() -> None:
    (requirements,) = blocks(PROJECTS, "text")

    assert requirements.splitlines() == PROJECT["dependencies"]


@pytest.mark.package
def test_the_sdist_holds_what_git_keeps_and_nothing_private(distributions: Distributions) -> None:
    assert distributions.sdist_files == kept_files() | {"PKG-INFO"}
    assert distributions.sdist_files.isdisjoint(PRIVATE)


@pytest.mark.package
def test_the_wheel_holds_the_two_packages_with_their_types_and_nothing_else(
    distributions: Distributions,
) -> None:
    about = {path for path in distributions.wheel_files if ".dist-info/" in path}

    assert distributions.wheel_files - about == {
        path for path in kept_files() if path.split("/")[0] in PACKAGES
    }
    assert "posthog_source/py.typed" in distributions.wheel_files
    assert any(path.endswith("/licenses/LICENSE") for path in about)


@pytest.mark.package
def test_the_metadata_is_whole_and_its_version_the_codes(distributions: Distributions) -> None:
    metadata = distributions.metadata

    assert (metadata.name, str(metadata.version)) == (PROJECT["name"], posthog_source.__version__)
    assert metadata.summary == PROJECT["description"]
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata.description_content_type == "text/markdown"
    assert (metadata.license_expression, metadata.license_files) == ("MIT", ["LICENSE"])
    assert metadata.requires_python == SpecifierSet(PROJECT["requires-python"])
    assert set(metadata.provides_extra or ()) == set(PROJECT["optional-dependencies"])


@pytest.mark.package
def test_without_extras_everything_can_be_imported_from_anywhere(plain: Environment, tmp_path: Path) -> None:
    done = plain.run("python", "-c", IMPORT_ALL, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(plain.folder)


@pytest.mark.package
def test_without_extras_the_command_line_says_what_there_is(plain: Environment, tmp_path: Path) -> None:
    done = plain.run("posthog-source", "--help", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "sync" in done.stdout


@pytest.mark.package
def test_without_extras_the_demo_says_in_one_line_what_to_install(plain: Environment, tmp_path: Path) -> None:
    done = plain.run("posthog-source", "demo", cwd=tmp_path)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("pip install 'posthog-source[demo]'.")


@pytest.mark.package
def test_without_extras_the_emulator_says_in_one_line_what_to_install(
    plain: Environment, tmp_path: Path
) -> None:
    done = plain.run("python", "-m", "posthog_emulator", cwd=tmp_path)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("pip install 'posthog-source[demo]'.")


@pytest.mark.package
@pytest.mark.parametrize("command", [("posthog-source", "sync"), ("python", str(ROOT / "pipelines/sync.py"))])
def test_without_settings_a_sync_says_in_one_line_what_to_set(
    plain: Environment, tmp_path: Path, command: tuple[str, str]
) -> None:
    done = plain.run(*command, cwd=tmp_path)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "SOURCES__POSTHOG__PROJECT_ID" in line


@pytest.mark.package
@pytest.mark.parametrize("version", PYTHONS)
def test_with_its_extra_the_demo_runs_anywhere_under_every_python(
    environments: Mapping[str, Future[Environment]], tmp_path: Path, version: str
) -> None:
    if version not in environments:
        pytest.skip(f"no Python {version} on this machine")
    environment = environments[version].result()

    done = environment.run(
        "posthog-source", "demo", "--events", "500", "--persons", "50", "--days", "2", cwd=tmp_path
    )

    assert done.returncode == 0, done.stderr
    assert re.search(r"^\W*events\s+[\d,]+\s+\+540\b", done.stdout, re.MULTILINE)
    assert (tmp_path / "posthog_demo.duckdb").exists()
