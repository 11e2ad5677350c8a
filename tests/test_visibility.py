"""What a run shows of itself: progress by dlt's collectors, lines of the log, and docs/visibility.md."""

from __future__ import annotations

import json
import logging
import re
import threading
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any, get_args

from dlt.common.configuration.specs import RuntimeConfiguration
from dlt.common.runtime.collector import LogCollector
from dlt.common.runtime.collector_base import Collector
from dlt.pipeline.progress import TSupportedCollectors
from rich.console import Console

from posthog_source import posthog_source, run_backfill
from posthog_source.progress import RichProgress, shared_progress
from tests.conftest import ROOT, Project, Warehouse, add_events, run_program
from tests.test_documents import blocks
from tests.test_spelling import CREDENTIALS, write

DOCUMENT = (ROOT / "docs" / "visibility.md").read_text(encoding="utf-8")
DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
COLLECTORS = get_args(TSupportedCollectors)

PROGRESS = """
import sys, dlt
from posthog_source import posthog_source

for name in sys.argv[1:]:
    print("===", name)
    pipeline = dlt.pipeline(name, destination="duckdb", dataset_name="posthog_data", progress=name)
    pipeline.run(posthog_source(tables=["events"], end_date="2026-01-03"))
    print("\\nrows:", pipeline.last_trace.last_normalize_info.row_counts["events"])
"""


def two_days(project: Project) -> None:
    days = [START + n % 2 * DAY + timedelta(seconds=n) for n in range(100)]
    add_events(project, 100, timestamp=days, created_at=[START] * 100)


def fields_of(line: str) -> set[str]:
    """Fields that the document tells of a line."""
    found = re.search(rf"^\| {line} \| (.+) \|$", DOCUMENT, re.MULTILINE)
    assert found
    return set(re.findall(r"`(\w+)`", found[1]))


@contextmanager
def slack() -> Iterator[tuple[str, list[Any]]]:
    """The address of something that takes messages, and what it has taken."""
    taken: list[Any] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taker)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", taken
    server.shutdown()
    thread.join()
    server.server_close()


def documents(text: str) -> list[dict[str, Any]]:
    """JSON documents that follow each other."""
    found, decoder = [], json.JSONDecoder()
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def test_each_of_dlts_collectors_of_progress_shows_a_sync(project: Project, tmp_path: Path) -> None:
    """In a process of its own, whose output they take hold of."""
    two_days(project)

    done = run_program("-W", "ignore", "-c", PROGRESS, *COLLECTORS, cwd=tmp_path, project=project)

    assert done.returncode == 0, done.stderr
    shown = re.split(r"^=== (.+)\n", done.stdout, flags=re.MULTILINE)[1:]
    assert shown[::2] == list(COLLECTORS)
    assert all(part.endswith("\nrows: 100\n") for part in shown[1::2])
    assert all("Extract posthog" in part + done.stderr for part in shown[1::2])


def test_a_terminal_shows_rows_speed_time_and_what_is_left_of_the_limit(
    project: Project, tmp_path: Path
) -> None:
    two_days(project)
    terminal = StringIO()
    progress = RichProgress(Console(file=terminal, force_terminal=True, width=140))

    Warehouse.at(tmp_path, progress=progress).sync(project, "events")

    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"extract +events .+ 100/100 .*/s 0:00:\d\d left: 0:00:00", shown)
    assert re.search(r"extract +windows .+ 1/1 ", shown)
    assert re.search(r"\d queries left this hour", shown)


class Steps(Collector):
    """Keeps which threads begin steps, and what is counted within them."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.open = 0
        self.most_open = 0
        self.rows = 0
        self.total = 0

    def update(
        self,
        name: str,
        inc: int = 1,
        total: int | None = None,
        inc_total: int | None = None,
        message: str | None = None,
        label: str | None = None,
    ) -> None:
        if name == "events":
            self.rows += inc
            self.total += (total or 0) + (inc_total or 0)

    def _start(self, step: str) -> None:
        self.threads.add(threading.get_ident())
        self.open += 1
        self.most_open = max(self.most_open, self.open)

    def _stop(self) -> None:
        self.open -= 1


def test_of_ranges_that_are_read_at_once_a_collector_sees_one_step_and_all_rows(
    project: Project, tmp_path: Path
) -> None:
    """dlt's own die of a second step meanwhile."""
    two_days(project)
    steps = Steps()
    place = Warehouse.at(tmp_path, progress=steps)

    run_backfill(place.pipeline, START, START + 2 * DAY, parallel=2, **project.credentials)

    assert steps.threads == {threading.get_ident()}
    assert (steps.most_open, steps.open) == (1, 0)
    assert (steps.rows, steps.total) == (100, 100)


def test_a_shared_collector_shows_what_is_read_together_and_nothing_twice() -> None:
    shown = StringIO()
    together = threading.Barrier(2, timeout=20)

    def read(shared: Collector) -> None:
        for step in ("Extract posthog", "Normalize posthog"):
            with shared(step):
                together.wait()
                shared.update("events", inc=0, total=50)
                shared.update("other")
                shared.update("other", inc=1, inc_total=7)
                shared.update("events", inc=20)
                together.wait()

    collector = LogCollector(log_period=0, logger=shown, dump_system_stats=False)
    with shared_progress(collector) as shared, ThreadPoolExecutor(2) as threads:
        list(threads.map(read, [shared, shared]))

    lines = [line.split("|")[0].strip() for line in shown.getvalue().splitlines()]
    assert [line for line in lines if line.startswith(("events", "other"))][-2:] == [
        "events: 40/100 (40.0%)",
        "other: 4",
    ]
    assert "Normalize" not in shown.getvalue()


def test_the_document_runs_as_it_stands_and_shows_what_it_says(project: Project, tmp_path: Path) -> None:
    two_days(project)
    (logs,) = (block for block in blocks(DOCUMENT, "toml") if "log_level" in block)
    write(tmp_path, config=logs)
    parts = sorted(blocks(DOCUMENT, "python"), key=lambda part: "opentelemetry" not in part)
    (tmp_path / "program.py").write_text("\n".join(parts), encoding="utf-8")

    with slack() as (hook, taken):
        done = run_program(
            "-W",
            "ignore",
            "program.py",
            cwd=tmp_path,
            project=project,
            RUNTIME__SLACK_INCOMING_HOOK=hook,
            SOURCES__POSTHOG__END_DATE="2026-01-03",
        )

    assert done.returncode == 0, done.stderr
    assert [message["text"].startswith("```sync done: 100 rows in 1 commits") for message in taken] == [True]
    check_lines([json.loads(line) for line in done.stderr.splitlines()])
    check_spans(documents(done.stdout))
    assert project.api_key not in done.stdout + done.stderr


def check_lines(lines: list[dict[str, Any]]) -> None:
    """One of each kind, with the fields that the document tells."""
    ours = [line for line in lines if line["logger"] == "posthog_source" and "seconds" in line]
    common = set.intersection(*(set(line) for line in lines)) - fields_of("commit") - fields_of("window")
    assert [set(line) - common for line in ours] == [
        fields_of(kind) for kind in ("window", "table", "commit")
    ]
    assert [line["rows"] for line in ours] == [100, 100, 100]
    assert (ours[0]["window_start"], ours[0]["window_end"]) == (
        START.isoformat(),
        (START + 2 * DAY).isoformat(),
    )


def check_spans(spans: list[dict[str, Any]]) -> None:
    """All of the document's OpenTelemetry went where it says."""
    names = {span["name"] for span in spans}
    assert names == {"posthog_source.sync", "posthog_source.window", "POST"}
    assert all(f"`{name}`" in DOCUMENT for name in names)


def test_each_setting_of_the_document_is_one_of_dlts() -> None:
    known = RuntimeConfiguration.get_resolvable_fields()

    for block in blocks(DOCUMENT, "toml"):
        (section,) = tomllib.loads(block).items()
        assert section[0] == "runtime"
        assert set(section[1]) <= set(known)


def test_warnings_reach_the_terminal_once_by_dlt_or_as_a_program_sets_up_logging(tmp_path: Path) -> None:
    program = (
        "import logging\nfrom posthog_source import posthog_source\n"
        "def tell(who):\n"
        "    posthog_source(project_id=1, api_key='phx_x')\n"
        "    for level in (logging.INFO, logging.WARNING):\n"
        "        logging.getLogger('posthog_source').log(level, '%s %d', who, level)\n"
        "tell('dlt')\n"
        "logging.basicConfig(format='own|%(message)s')\n"
        "tell('program')\n"
    )

    done = run_program("-c", program, cwd=tmp_path)

    by_dlt, by_program = done.stderr.splitlines()
    assert by_dlt.endswith("|dlt 30")
    assert by_program == "own|program 30"


def test_a_level_that_somebody_has_given_to_the_connectors_logger_stays() -> None:
    logger = logging.getLogger("posthog_source")
    before = logger.level
    try:
        logger.setLevel(logging.ERROR)
        posthog_source(**CREDENTIALS)
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)
