"""The destinations that the story is told to, each empty, and what is to be true of it.

Not here: what is loaded (`story`), how it is read back (`reading`).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import dlt
import pytest
from dlt.common.destination import Destination

from tests.conftest import ROOT, running_postgres

PAGE = ROOT / "docs" / "destinations.md"
EXTENSIONS = ("ducklake", "delta", "iceberg", "avro")
"""Of DuckDB, which downloads them by itself where there is a network."""

Open = Callable[[Path], AbstractContextManager[Destination[Any, Any]]]


@dataclass(frozen=True)
class Place:
    """A destination.

    Attributes:
        name: As in docs/destinations.md.
        open: Starts what it needs.
        json_type: What the warehouse says that a JSON column is.
        strategy: How dlt replaces rows there; None where it only adds them.
        verifies: Whether `verify` knows its SQL.
    """

    name: str
    open: Open
    json_type: str
    strategy: Literal["delete-insert"] | None = "delete-insert"
    verifies: bool = True


@contextmanager
def _duckdb(folder: Path) -> Iterator[Destination[Any, Any]]:
    yield dlt.destinations.duckdb(str(folder / "warehouse.duckdb"))


@contextmanager
def _ducklake(folder: Path) -> Iterator[Destination[Any, Any]]:
    from dlt.destinations.impl.ducklake.configuration import DuckLakeCredentials

    install_extensions()
    credentials = DuckLakeCredentials(
        "lake", catalog=f"duckdb:///{folder / 'catalog.duckdb'}", storage=f"file://{folder / 'lake'}"
    )
    yield dlt.destinations.ducklake(credentials=credentials)


@contextmanager
def _postgres(folder: Path) -> Iterator[Destination[Any, Any]]:
    with running_postgres() as address:
        yield dlt.destinations.postgres(address)


@contextmanager
def _files(folder: Path) -> Iterator[Destination[Any, Any]]:
    yield dlt.destinations.filesystem(str(folder / "files"))


def _open_tables(table_format: str, package: str) -> Open:
    @contextmanager
    def opened(folder: Path) -> Iterator[Destination[Any, Any]]:
        pytest.importorskip(package)
        install_extensions()
        yield dlt.destinations.filesystem(str(folder / "files"), preferred_table_format=table_format)

    return opened


@contextmanager
def _sqlite(folder: Path) -> Iterator[Destination[Any, Any]]:
    pytest.importorskip("sqlalchemy")
    yield dlt.destinations.sqlalchemy(f"sqlite:///{folder / 'warehouse.sqlite'}")


@contextmanager
def _mariadb(folder: Path) -> Iterator[Destination[Any, Any]]:
    """As docs/destinations.md says, by its own words."""
    with running_mariadb() as address:
        made: dict[str, Any] = {"address": address}
        (snippet,) = re.findall(
            r"```python\n([^`]*MysqlVariantTypeMapper.*?)```", PAGE.read_text(), re.DOTALL
        )
        exec(snippet, made)
        yield made["destination"]


PLACES = (
    Place("duckdb", _duckdb, json_type="JSON"),
    Place("ducklake", _ducklake, json_type="JSON"),
    Place("postgres", _postgres, json_type="jsonb"),
    Place("sqlite", _sqlite, json_type="TEXT", verifies=False),
    Place("mariadb", _mariadb, json_type="longtext", verifies=False),
    Place("filesystem", _files, json_type="VARCHAR", strategy=None),
    Place("delta", _open_tables("delta", "deltalake"), json_type="VARCHAR", strategy=None),
    Place("iceberg", _open_tables("iceberg", "pyiceberg"), json_type="VARCHAR", strategy=None),
)


def install_extensions() -> None:
    """DuckDB's extensions from their packages into its home, or else the test is left out."""
    if any(importlib.util.find_spec(f"duckdb_extension_{name}") is None for name in EXTENSIONS):
        pytest.skip("DuckDB's extensions are not installed")
    from duckdb_extensions import import_extension

    for name in EXTENSIONS:
        import_extension(name)


@contextmanager
def running_mariadb() -> Iterator[str]:
    """The address of an empty MariaDB, where a server's programs and a driver are installed."""
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("pymysql")
    if shutil.which("mariadbd") is None:
        pytest.skip("no MariaDB server is installed")
    place = Path(mkdtemp(prefix="mariadb-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = ["--no-defaults", *(["--user=root"] if os.getuid() == 0 else [])]
    data, client = f"--datadir={place / 'data'}", [f"--socket={place / 'socket'}", "--user=root"]

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)

    run("mariadb-install-db", *own, data, "--auth-root-authentication-method=normal", "--skip-test-db")
    listening = [f"--port={port}", "--bind-address=127.0.0.1", f"--log-error={place / 'log'}"]
    server = subprocess.Popen(["mariadbd", *own, data, client[0], *listening], stderr=subprocess.DEVNULL)
    try:
        run("mariadb-admin", "--no-defaults", *client, "--wait=60", "ping")
        grant = "CREATE USER dlt IDENTIFIED BY 'none'; GRANT ALL ON *.* TO dlt"
        run("mariadb", "--no-defaults", *client, "-e", grant)
        yield f"mysql+pymysql://dlt:none@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)
        shutil.rmtree(place)
