"""Several workers, one limit: processes that know nothing of each other share what a key may ask."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from tests.conftest import ROOT, Project, add_events

pytestmark = pytest.mark.slow

WORKERS = 8
DAYS = 3
"""Of each worker."""

PAGES = 24
"""Of each day."""

PAGE_ROWS = 20
A_MINUTE = 240
"""Questions that PostHog lets a key ask, and that each of the workers would ask by itself."""

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def crowded(project: Project) -> Project:
    """Events of days enough for all, and a key with PostHog's limit of a minute."""
    days = [START + timedelta(days=n) for n in range(WORKERS * DAYS)]
    times = [day + timedelta(seconds=60 * n) for day in days for n in range(PAGES * PAGE_ROWS)]
    add_events(project, len(times), timestamp=times)
    project.settings(rate_limits={"api_queries": [A_MINUTE, 10**6]})
    return project


def begin(worker: int, project: Project, folder: Path) -> subprocess.Popen[str]:
    """A worker's backfill of its own days, as Airflow or a shell would begin it."""
    folder.mkdir()
    start = START + timedelta(days=worker * DAYS)
    days = (str(each.date()) for each in (start, start + timedelta(days=DAYS)))
    settings = project.environment | {
        "DLT_DATA_DIR": str(folder / "dlt"),
        "PYTHONPATH": str(ROOT),
        "SOURCES__POSTHOG__EVENTS__PAGE_ROWS": str(PAGE_ROWS),
    }
    return subprocess.Popen(
        [sys.executable, str(ROOT / "pipelines" / "backfill.py"), *days],
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_eight_workers_under_one_limit_all_finish_exactly_and_keep_to_it_after_a_minute(
    crowded: Project, tmp_path: Path
) -> None:
    folders = [tmp_path / str(worker) for worker in range(WORKERS)]
    workers = [begin(worker, crowded, folder) for worker, folder in enumerate(folders)]
    said = [worker.communicate(timeout=900)[0] for worker in workers]

    assert [worker.returncode for worker in workers] == [0] * WORKERS, said
    loaded = Counter(uuid for folder in folders for uuid in loaded_uuids(folder))
    assert loaded == Counter(uuid for (uuid,) in crowded.events("uuid"))
    asked = sorted(
        (datetime.fromisoformat(each["started_at"]), each["status"]) for each in crowded.requests()
    )
    assert any(status == 429 for _, status in asked)
    a_minute = Counter((at - asked[0][0]) // timedelta(minutes=1) for at, _ in asked)
    print("asked in each minute:", dict(a_minute), Counter(status for _, status in asked))
    assert len(a_minute) > 2
    assert max(count for minute, count in a_minute.items() if minute > 0) <= A_MINUTE


def loaded_uuids(folder: Path) -> list[str]:
    with duckdb.connect(str(folder / "posthog.duckdb")) as warehouse:
        return [uuid for (uuid,) in warehouse.sql("SELECT uuid FROM posthog_data.events").fetchall()]
