"""Starts the emulator as anyone would, once, and gives each test a project of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

ROOT = Path(__file__).resolve().parents[2]


def start_program(*arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """The program and its ready line; close its stdin to stop it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "posthog_emulator", "--stop-with-stdin", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def stop_program(process: subprocess.Popen[bytes]) -> int:
    """Close stdin and wait; the exit code."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    code = process.wait(timeout=20)
    process.stdout.close()
    return code


@dataclass
class Server:
    """A running emulator."""

    url: str
    api_key: str
    project_token: str
    http: httpx.Client

    def control(self, method: str, path: str, /, **body: Any) -> Any:
        """Call the control API; fails unless it says yes."""
        answer = self.http.request(method, f"/_emulator/{path}", json=body or None)
        assert answer.is_success, answer.text
        return answer.json()

    def sql(self, text: str) -> list[list[Any]]:
        """Ask ClickHouse itself."""
        rows: list[list[Any]] = self.control("POST", "sql", sql=text)["rows"]
        return rows

    def project(self, **body: Any) -> Project:
        """A new project."""
        made = self.http.post("/_emulator/projects", json=body)
        assert made.status_code == 201, made.text
        return Project(self, made.json()["project_id"], made.json()["project_token"], made.json()["api_key"])

    def key(self, scopes: list[str], project_ids: list[int] | None = None) -> str:
        """A new API key."""
        return str(self.control("POST", "keys", scopes=scopes, project_ids=project_ids)["api_key"])


@dataclass
class Project:
    """One project of a running emulator."""

    server: Server
    id: int
    token: str
    api_key: str = field(repr=False)

    def get(self, path: str = "", *, key: str | None = None, **params: Any) -> httpx.Response:
        """GET something under this project."""
        return self.server.http.get(
            f"/api/projects/{self.id}/{path}", params=params or None, headers=bearer(key or self.api_key)
        )

    def control(self, method: str, path: str, /, **body: Any) -> Any:
        """Call the control API for this project."""
        return self.server.control(method, f"projects/{self.id}/{path}".rstrip("/"), **body)

    def settings(self, **changes: Any) -> None:
        """Change how the server treats this project."""
        self.control("PATCH", "", settings=changes)

    def faults(self, path: str, *faults: dict[str, Any], method: str | None = None) -> None:
        """Queue faults."""
        self.control("POST", "faults", path=path, faults=list(faults), method=method)

    def requests(self) -> list[dict[str, Any]]:
        """What was asked of this project."""
        journal: list[dict[str, Any]] = self.control("GET", "requests")
        return journal

    def rows(self, table: str, **columns: Any) -> int:
        """Append exact rows."""
        data = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, data.schema) as writer:
            writer.write_table(data)
        answer = self.server.http.post(
            f"/_emulator/projects/{self.id}/rows/{table}", content=sink.getvalue().to_pybytes()
        )
        assert answer.status_code == 200, answer.text
        return int(answer.json()["rows"])

    def capture(self, *events: dict[str, Any], path: str = "/batch/", **envelope: Any) -> httpx.Response:
        """Send events as an SDK does."""
        return self.server.http.post(path, json={"api_key": self.token, "batch": list(events), **envelope})

    def events(self, columns: str, where: str = "1") -> list[list[Any]]:
        """This project's event rows, oldest arrival first."""
        return self.server.sql(
            f"SELECT {columns} FROM events WHERE team_id = {self.id} AND {where}"
            " ORDER BY created_at, timestamp, uuid"
        )

    def measure(self, columns: str, tail: str = "") -> list[list[Any]]:
        """Sums over this project's events."""
        return self.server.sql(f"SELECT {columns} FROM events WHERE team_id = {self.id} {tail}")

    def persons(self, columns: str) -> list[list[Any]]:
        """The newest version of each person."""
        return self.server.sql(
            f"SELECT {columns} FROM person WHERE team_id = {self.id} ORDER BY id, version DESC LIMIT 1 BY id"
        )

    def person_ids(self) -> dict[str, str]:
        """Whose each distinct id is now."""
        rows = self.server.sql(
            "SELECT distinct_id, person_id FROM person_distinct_id2"
            f" WHERE team_id = {self.id} ORDER BY version DESC LIMIT 1 BY distinct_id"
        )
        return {row[0]: row[1] for row in rows}


def bearer(key: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    process, ready = start_program()
    with httpx.Client(base_url=ready["url"], timeout=60) as http:
        yield Server(ready["url"], ready["api_key"], ready["project_token"], http)
    assert stop_program(process) == 0


@pytest.fixture
def project(server: Server) -> Project:
    return server.project()
