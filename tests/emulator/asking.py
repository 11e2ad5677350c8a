"""Asking the emulator HogQL over its socket, for the tests of HogQL and of the query API."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow as pa

from tests.emulator.conftest import Project, bearer

START = datetime(2026, 1, 10, tzinfo=UTC)


def ask(project: Project, text: str, *, key: str = "", **body: Any) -> httpx.Response:
    """POST one query; `values` and `modifiers` go inside it, everything else beside it."""
    inside = {name: body.pop(name) for name in ("values", "modifiers", "name") if name in body}
    return project.server.http.post(
        f"/api/projects/{project.id}/query/",
        json={"refresh": "force_blocking", "query": {"kind": "HogQLQuery", "query": text, **inside}, **body},
        headers=bearer(key or project.api_key),
    )


def answer(project: Project, text: str, **body: Any) -> dict[str, Any]:
    """The whole response of a query that must succeed."""
    response = ask(project, text, **body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def rows(project: Project, text: str, **body: Any) -> list[list[Any]]:
    """The rows of a query that must succeed."""
    found: list[list[Any]] = answer(project, text, **body)["results"]
    return found


def column(project: Project, text: str, **body: Any) -> list[Any]:
    """The first column of a query that must succeed."""
    return [row[0] for row in rows(project, text, **body)]


def refusal(project: Project, text: str, **body: Any) -> tuple[int, str]:
    """Status and code of a query that must fail."""
    response = ask(project, text, **body)
    envelope = response.json()
    assert set(envelope) == {"type", "code", "detail", "attr"}, envelope
    return response.status_code, envelope["code"]


def add_events(project: Project, count: int = 1, **columns: Sequence[Any]) -> list[str]:
    """Append events, a minute apart unless told otherwise; gives their uuids."""
    data: dict[str, Any] = {
        "uuid": [str(uuid.uuid4()) for _ in range(count)],
        "event": ["page"] * count,
        "distinct_id": [f"user-{n}" for n in range(count)],
        "timestamp": [START + timedelta(minutes=n) for n in range(count)],
        "properties": ["{}"] * count,
        **columns,
    }
    data["timestamp"] = pa.array(data["timestamp"], pa.timestamp("us", "UTC"))
    assert project.rows("events", **data) == count
    return list(data["uuid"])


def last_read(project: Project) -> tuple[int, int]:
    """Rows that the last query read, and rows that it returned."""
    entry = project.requests()[-1]
    return entry["read_rows"], entry["result_rows"]
