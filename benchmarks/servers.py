"""Starts an empty Postgres for the scenario destinations."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

PROGRAMS = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
"""Where Debian keeps Postgres's."""


@contextmanager
def running_postgres() -> Iterator[str | None]:
    """The address of an empty Postgres, its settings as they come; None where it is not installed."""
    if PROGRAMS is None:
        yield None
        return
    place = Path(mkdtemp(prefix="postgres-"))
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    if user:
        shutil.chown(place, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    control = [str(PROGRAMS / "pg_ctl"), "-D", str(place / "data"), "-w", "-l", str(place / "log")]

    def run(*command: str) -> None:
        subprocess.run(command, user=user, cwd=place, check=True, stdout=subprocess.DEVNULL)

    run(str(PROGRAMS / "initdb"), "-D", str(place / "data"), "-U", "dlt", "-A", "trust", "-E", "UTF8")
    run(*control, "-o", f"-c listen_addresses=127.0.0.1 -p {port} -k {place}", "start")
    try:
        yield f"postgresql://dlt:none@127.0.0.1:{port}/postgres"
    finally:
        run(*control, "-m", "immediate", "stop")
        shutil.rmtree(place)
