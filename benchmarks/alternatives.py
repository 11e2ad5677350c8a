"""What other connectors load from the same projects: `python -m benchmarks.alternatives`.

Installs them from PyPI, each into a virtual environment of its own in a temporary folder, and runs them as
their documentation says, each against an emulator of its own for each situation. Other people's packages
change, so the tests do not run this. docs/comparison.md tells what the numbers mean; not how fast they are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import httpx
import pyarrow as pa

from benchmarks.programs import Emulator, Project, running_emulator
from benchmarks.report import Claim, Result

RESULTS = Path(__file__).parent / "results"
AIRBYTE = "airbyte-source-posthog==1.1.28"
INGESTR = "ingestr==1.1.22"
"""The last one whose wheel has the program in it; later ones fetch it from GitHub when they first run."""

START_DAYS = 31
BETWEEN_RUNS = timedelta(hours=1)
"""How long ago a first run is taken to be when the second begins."""

LONGEST_RUN_S = 1_800


@dataclass(frozen=True)
class Situation:
    """What a project holds: events that come in rounds, after each of which a connector is run."""

    title: str
    rounds: Sequence[Callable[[Project, datetime], None]]


@dataclass(frozen=True)
class Run:
    """A contender's place.

    Attributes:
        project: What it reads.
        folder: Where it works, which lasts for all rounds.
        start: Of all events.
        since: When its last run was, or the start.
        number: Of the round, from 0.
    """

    project: Project
    folder: Path
    start: datetime
    since: datetime
    number: int

    @property
    def url(self) -> str:
        """Of the emulator."""
        return self.project.emulator.url


@dataclass(frozen=True)
class Contender:
    """A connector and how it is run.

    Attributes:
        name: With its version.
        command: What is run, as a person would type it.
        package: What pip installs, or nothing.
        run: Runs it once; gives what it said.
        uuids: Of all that it has loaded into its folder.
    """

    name: str
    command: str
    package: str
    run: Callable[[Run, Path], str]
    uuids: Callable[[Path], list[str]]


@dataclass(frozen=True)
class Loaded:
    """What one contender made of one situation."""

    situation: str
    contender: str
    command: str
    expected: int
    rows: int
    distinct: int
    said: list[str]
    requests: int
    seconds: float
    found: int

    def line(self) -> list[str]:
        """Of the table."""
        said = "; ".join(dict.fromkeys(words.partition(":")[0] for words in self.said))
        share = f"{self.found:,} of {self.expected:,}"
        return [
            self.situation,
            self.contender,
            share,
            f"{self.rows - self.distinct:,}",
            said,
            f"{self.requests:,}",
        ]


def main() -> int:
    """Exit code: 1 where this connector did not load every event once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alternatives", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for alternatives.json")
    folder: Path = parser.parse_args().results
    with tempfile.TemporaryDirectory(prefix="posthog-alternatives-") as place:
        programs = {package: install(package, Path(place)) for package in (AIRBYTE, INGESTR)}
        programs[""] = Path(sys.executable).parent
        loaded = list(_measure(programs, Path(place)))
    result = _result(loaded)
    result.save(folder, {"packages": [AIRBYTE, INGESTR]})
    print(result.as_markdown())
    return 0 if all(claim.holds for claim in result.claims) else 1


def install(package: str, place: Path) -> Path:
    """A virtual environment with one package; the folder of its programs."""
    folder = place / package.partition("==")[0]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", package], check=True)
    return folder / "bin"


def _measure(programs: dict[str, Path], place: Path) -> Iterator[Loaded]:
    for title, situation in SITUATIONS.items():
        for contender in CONTENDERS[title]:
            with running_emulator() as emulator:
                folder = Path(tempfile.mkdtemp(dir=place))
                found = _load(title, situation, contender, emulator, programs[contender.package], folder)
            print(found, file=sys.stderr, flush=True)
            yield found


def _load(
    title: str, situation: Situation, contender: Contender, emulator: Emulator, programs: Path, folder: Path
) -> Loaded:
    project = _project(emulator)
    now = datetime.now(UTC)
    start = (now - timedelta(days=START_DAYS)).replace(hour=0, minute=0, second=0, microsecond=0)
    said, seconds = [], 0.0
    for number, add in enumerate(situation.rounds):
        add(project, now)
        since = now - BETWEEN_RUNS if number else start
        begun = time.monotonic()
        said.append(contender.run(Run(project, folder, start, since, number), programs))
        seconds += time.monotonic() - begun
    uuids = contender.uuids(folder)
    there = {uuid for (uuid,) in project.select("toString(uuid)")}
    return Loaded(
        title,
        contender.name,
        contender.command,
        expected=len(there),
        rows=len(uuids),
        distinct=len(set(uuids)),
        said=said,
        requests=len(project.control("GET", "requests")),
        seconds=round(seconds, 1),
        found=len(there & set(uuids)),
    )


def _project(emulator: Emulator) -> Project:
    """With PostHog's own limits, and a key for all that is there, since Airbyte's lists the projects."""
    made = emulator.control("POST", "projects", {})
    key = emulator.control("POST", "keys", {"scopes": ["*"], "project_ids": None})
    return Project(emulator, made["project_id"], key["api_key"])


def _result(loaded: Sequence[Loaded]) -> Result:
    ours = [one for one in loaded if one.contender == (LOOKING if one.situation == LATE else OURS)]
    return Result(
        "alternatives",
        "; ".join(f"{title}: {situation.title}" for title, situation in SITUATIONS.items()),
        ("situation", "connector", "events loaded", "copies", "it said", "requests"),
        [one.line() for one in loaded],
        [
            Claim(
                f"{one.situation}: every event once",
                f"{one.rows:,} rows, {one.found:,} of {one.expected:,} events",
                one.rows == one.found == one.expected,
            )
            for one in ours
        ],
        loaded,
    )


# What the projects hold


def _tied(project: Project, now: datetime) -> None:
    """37 events in each second, three days ago."""
    first = (now - timedelta(days=3)).replace(hour=12, minute=0, second=0, microsecond=0)
    times = [first + timedelta(seconds=n // 37) for n in range(60_000)]
    _append(project, 1, times, times)


def _product(events: int) -> Callable[[Project, datetime], None]:
    """A product's month, with its days, nights and weekends."""

    def add(project: Project, now: datetime) -> None:
        end = now.replace(hour=0, minute=0, second=0, microsecond=0)
        plan = {"seed": 1, "events": events, "persons": events // 10, "days": 30, "nasty": False}
        project.control("POST", "generate", {**plan, "end": end.isoformat()})

    return add


def _quiet(project: Project, now: datetime) -> None:
    """Few enough that no list is capped, a quarter of an hour apart."""
    times = [now - timedelta(days=10) + timedelta(minutes=15) * n for n in range(900)]
    _append(project, 1, times, times)


def _late(project: Project, now: datetime) -> None:
    """Phones that were offline send what they did two days ago; others are on time."""
    late = [now - timedelta(days=2) + timedelta(seconds=n) for n in range(40)]
    _append(project, 2, late, [now] * len(late))
    prompt = [now - timedelta(minutes=20) + timedelta(seconds=n) for n in range(50)]
    _append(project, 3, prompt, prompt)


def _append(project: Project, batch: int, times: Sequence[datetime], arrived: Sequence[datetime]) -> None:
    data = pa.table(
        {
            "uuid": [f"{batch:08x}-0000-4000-8000-{n:012x}" for n in range(len(times))],
            "event": ["page"] * len(times),
            "distinct_id": [f"user-{n % 500}" for n in range(len(times))],
            "timestamp": pa.array(times, pa.timestamp("us", "UTC")),
            "created_at": pa.array(arrived, pa.timestamp("us", "UTC")),
            "properties": ["{}"] * len(times),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_table(data)
    url = f"/_emulator/projects/{project.id}/rows/events"
    project.emulator.http.post(url, content=sink.getvalue().to_pybytes()).raise_for_status()


# This connector


def _ours(name: str, **settings: str) -> Contender:
    def run(run: Run, programs: Path) -> str:
        given = {
            "PROJECT_ID": str(run.project.id),
            "API_KEY": run.project.api_key,
            "HOST": run.url,
            "START_DATE": run.start.isoformat(),
            **settings,
        }
        environment = {f"SOURCES__POSTHOG__{key}": value for key, value in given.items()}
        environment |= {"DLT_DATA_DIR": str(run.folder / "dlt"), "RUNTIME__DLTHUB_TELEMETRY": "false"}
        return _said(run, [str(programs / "posthog-source"), "sync", "--tables", "events"], environment)

    shown = "".join(f"SOURCES__POSTHOG__{key}={value} " for key, value in settings.items())
    return Contender(name, f"{shown}posthog-source sync --tables events", "", run, _ours_uuids)


def _ours_uuids(folder: Path) -> list[str]:
    with duckdb.connect(str(folder / "posthog.duckdb"), read_only=True) as connection:
        return [
            str(uuid) for (uuid,) in connection.execute("SELECT uuid FROM posthog_data.events").fetchall()
        ]


# Airbyte's


def _airbyte(name: str, **settings: Any) -> Contender:
    def run(run: Run, programs: Path) -> str:
        config = {
            "base_url": run.url,
            "api_key": run.project.api_key,
            "start_date": f"{run.start:%Y-%m-%dT%H:%M:%SZ}",
            **settings,
        }
        (run.folder / "config.json").write_text(json.dumps(config))
        (run.folder / "catalog.json").write_text(json.dumps(_CATALOG))
        command = [
            str(programs / "source-posthog"),
            "read",
            "--config",
            "config.json",
            "--catalog",
            "catalog.json",
        ]
        if (run.folder / "state.json").exists():
            command += ["--state", "state.json"]
        with (run.folder / f"{run.number}.jsonl").open("w") as output:
            code = subprocess.run(
                command, check=False, cwd=run.folder, stdout=output, timeout=LONGEST_RUN_S
            ).returncode
        messages = list(_messages(run.folder, f"{run.number}.jsonl"))
        states = [message["state"] for message in messages if message["type"] == "STATE"]
        (run.folder / "state.json").write_text(json.dumps(states[-1:]))
        statuses = [
            message["trace"]["stream_status"]["status"]
            for message in messages
            if message["type"] == "TRACE" and "stream_status" in message["trace"]
        ]
        return "success" if code == 0 and statuses[-1:] == ["COMPLETE"] else f"exit code {code}"

    shown = "".join(f", `{key}` {value}" for key, value in settings.items())
    command = "source-posthog read --config config.json --catalog catalog.json --state state.json" + shown
    return Contender(name, command, AIRBYTE, run, _airbyte_uuids)


def _airbyte_uuids(folder: Path) -> list[str]:
    """Of the records that it gave out, which is what a destination gets."""
    messages = _messages(folder, "*.jsonl")
    return [message["record"]["data"]["id"] for message in messages if message["type"] == "RECORD"]


def _messages(folder: Path, names: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(names)):
        with path.open() as lines:
            yield from (json.loads(line) for line in lines)


_CATALOG = {
    "streams": [
        {
            "stream": {
                "name": "events",
                "json_schema": {},
                "supported_sync_modes": ["full_refresh", "incremental"],
                "source_defined_cursor": True,
                "default_cursor_field": ["timestamp"],
                "source_defined_primary_key": [["id"]],
            },
            "sync_mode": "incremental",
            "destination_sync_mode": "append",
            "cursor_field": ["timestamp"],
        }
    ]
}


# ingestr


def _ingestr(
    name: str, *arguments: str, again: timedelta = timedelta(0), step: timedelta | None = None
) -> Contender:
    """It keeps no cursor of events: who runs it says from when on, here from the last run on.

    Args:
        name: With its version.
        arguments: Others than those it needs.
        again: How much earlier than the last run it is to begin.
        step: Of the intervals that it is run for one by one; None is one without an end.
    """

    def run(run: Run, programs: Path) -> str:
        since = run.since - again if run.number else run.start
        intervals = [["--interval-start", since.isoformat()]]
        if step:
            ends = [since + step * n for n in range((datetime.now(UTC) - since) // step + 2)]
            intervals = [
                ["--interval-start", start.isoformat(), "--interval-end", end.isoformat()]
                for start, end in pairwise(ends)
            ]
        said = [_ingest(run, programs, [*interval, *arguments]) for interval in intervals]
        return "; ".join(dict.fromkeys(said))

    interval = "--interval-start …" + (" --interval-end …" if step else "")
    command = " ".join(("ingestr ingest --source-table events", interval, *arguments))
    return Contender(name, command, INGESTR, run, _ingestr_uuids)


def _ingest(run: Run, programs: Path, arguments: Sequence[str]) -> str:
    source = f"personal_api_key={run.project.api_key}&project_id={run.project.id}&base_url={run.url}"
    command = [
        *(str(programs / "ingestr"), "ingest", "--yes", "--progress", "log"),
        *("--source-uri", f"posthog://?{source}", "--source-table", "events"),
        *("--dest-uri", f"sqlite:///{run.folder}/ingestr.sqlite", "--dest-table", "main.events"),
        *arguments,
    ]
    return _said(run, command, {"DISABLE_TELEMETRY": "true"})


def _ingestr_uuids(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "ingestr.sqlite") as connection:
        return [uuid for (uuid,) in connection.execute("SELECT id FROM events")]


# Queries of programs that pip does not bring, sent by hand


def _by_hand(
    name: str, source: str, columns: str, order: str, limit: int, beyond: Callable[..., str]
) -> Contender:
    """Pages of events as a published source asks for them, until one is not full.

    The projects are in UTC, so what a query leaves to the project's time zone is spelt out as UTC.

    Args:
        name: Whose.
        source: Where it is published.
        columns: What is selected, `uuid` and `timestamp` first.
        order: Of the pages.
        limit: Rows of one.
        beyond: The condition for rows after a timestamp and a uuid.
    """

    def run(run: Run, programs: Path) -> str:  # noqa: ARG001 - as the others
        uuids: list[str] = []
        where = f"timestamp > {_hogql_time(run.start)}"
        while True:
            query = f"SELECT {columns} FROM events WHERE {where} ORDER BY {order} LIMIT {limit}"
            answer = httpx.post(
                f"{run.url}/api/projects/{run.project.id}/query/",
                json={"query": {"kind": "HogQLQuery", "query": query}},
                headers={"Authorization": f"Bearer {run.project.api_key}"},
                timeout=300,
            )
            if not answer.is_success:
                return f"status {answer.status_code}"
            rows = answer.json()["results"]
            uuids += [row[0] for row in rows]
            if len(rows) < limit:
                (run.folder / f"{run.number}.json").write_text(json.dumps(uuids))
                return "success"
            uuid, timestamp, *_ = rows[-1]
            where = beyond(_hogql_time(datetime.fromisoformat(timestamp)), uuid)

    return Contender(name, source, "", run, _queried_uuids)


def _hogql_time(at: datetime) -> str:
    return f"toDateTime64('{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}', 6, 'UTC')"


def _queried_uuids(folder: Path) -> list[str]:
    return [uuid for path in folder.glob("*.json") for uuid in json.loads(path.read_text())]


def _said(run: Run, command: Sequence[str], environment: dict[str, str]) -> str:
    """Success, or the code with which a program ended, and its last words."""
    done = subprocess.run(
        command,
        check=False,
        cwd=run.folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LONGEST_RUN_S,
    )
    if done.returncode == 0:
        return "success"
    words = _lines((done.stdout, done.stderr))
    return f"exit code {done.returncode}: {words[-1][:200] if words else ''}"


def _lines(texts: Iterable[str]) -> list[str]:
    """That say what is wrong, without keys."""
    return [
        re.sub(r"phx_\w+", "phx_…", line) for text in texts for line in text.splitlines() if "rror" in line
    ]


OURS = "this connector"
LOOKING = "this connector, looking for late events each time"
TIED, LARGE, SMALL, LATE = "ties", "a large month", "a small month", "late events"

SITUATIONS = {
    TIED: Situation("60,000 events, 37 in each second", [_tied]),
    LARGE: Situation("200,000 events of a product over 30 days", [_product(200_000)]),
    SMALL: Situation("20,000 events of it", [_product(20_000)]),
    LATE: Situation(
        "900 events, a run, 50 more on time and 40 that are two days late, a run", [_quiet, _late]
    ),
}

_OURS = _ours(OURS)
_AIRBYTE = _airbyte("Airbyte source-posthog 1.1.28")
_INGESTR = _ingestr("ingestr 1.1.22")

_QUERIES = [
    _by_hand(
        "ingestr's newer queries, by hand",
        "bruin-data/ingestr, pkg/source/posthog/posthog.go at 2f84bb4",
        "uuid, timestamp, event, distinct_id, properties, elements_chain, person_id, person.properties",
        "timestamp, uuid",
        25_000,
        lambda timestamp, uuid: f"(timestamp, uuid) > ({timestamp}, toUUID('{uuid}'))",
    ),
    _by_hand(
        "Estuary's queries, by hand",
        "estuary/connectors, source-posthog/source_posthog/api.py at 441abf5",
        "uuid, timestamp, event, distinct_id, properties",
        "timestamp ASC",
        50_000,
        lambda timestamp, _: f"timestamp > {timestamp}",
    ),
]

_MONTH = [
    _OURS,
    _AIRBYTE,
    _airbyte("Airbyte source-posthog 1.1.28, steps of a day", events_time_step=1),
    _INGESTR,
    _ingestr("ingestr 1.1.22, a run for each day", step=timedelta(days=1)),
    *_QUERIES,
]

CONTENDERS = {
    TIED: [_OURS, _AIRBYTE, _INGESTR, *_QUERIES],
    LARGE: _MONTH,
    SMALL: _MONTH,
    LATE: [
        _OURS,
        _ours(LOOKING, EVENTS__LATE_ARRIVAL_EVERY_S="0"),
        _AIRBYTE,
        _INGESTR,
        _ingestr("ingestr 1.1.22, a week read again", again=timedelta(days=7)),
        _ingestr("ingestr 1.1.22, all read again", "--full-refresh", again=timedelta(days=START_DAYS)),
    ],
}


if __name__ == "__main__":
    raise SystemExit(main())
