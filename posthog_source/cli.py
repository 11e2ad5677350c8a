"""posthog-source: the command line. Thin: every command calls a function that can be imported.

Exit codes: 0 done, 1 done and something is amiss that the output names, 2 cannot be done as asked, or was
stopped (one line on stderr says why). Not here: how results look (`printing`).
"""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posthog_source.errors import InterruptedRunError, find_cause, iter_causes

if TYPE_CHECKING:
    import dlt
    import pyarrow as pa
    from rich.console import Console

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SHOWN_ROWS = 50
"""Of a query whose rows are not written into a file."""

logger = logging.getLogger("posthog_source")

app = typer.Typer(
    help="Exports PostHog into any warehouse that dlt can write to.\n\nSettings come from .dlt/ in this "
    "folder or the environment: SOURCES__POSTHOG__PROJECT_ID, SOURCES__POSTHOG__API_KEY, "
    "SOURCES__POSTHOG__HOST.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Destination = Annotated[str, typer.Option(help="Any dlt destination, such as postgres or bigquery.")]
Dataset = Annotated[str, typer.Option(help="Schema in the warehouse.")]
PipelineName = Annotated[
    str, typer.Option("--pipeline", help="Whose cursors are used, and settings below its name first.")
]
Tables = Annotated[str, typer.Option(help="Names of tables or groups, with commas between; all by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def main() -> None:
    """Exports PostHog into any warehouse that dlt can write to."""
    os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
    logging.getLogger("dlt").addFilter(_without_traceback)
    if sys.stderr.isatty():
        logger.addHandler(logging.StreamHandler())  # warnings as they are; dlt's lines are for files


@app.command()
def check(
    tables: Tables = "",
    destination: Annotated[str, typer.Option(help="Try this dlt destination, too.")] = "",
    dataset: Dataset = "posthog_data",
    pipeline: PipelineName = "posthog",
    as_json: AsJson = False,
) -> None:
    """Would a sync work? What the key may read, how much there is, and what a first sync takes."""
    with _answering(), _settings_of(pipeline):
        from posthog_source.checkup import check as run_check

        target = _pipeline(pipeline, destination, dataset) if destination else None
        found = run_check(target, **_chosen(tables))
        if as_json:
            _print_json(found)
        else:
            name = f" {found.project_name!r}" if found.project_name else ""
            zone = f", {found.timezone}" if found.timezone else ""
            typer.echo(f"{found.base_url}, project {found.project_id}{name}{zone}")
            _print_rows(
                ["table", "can be read", "rows", "first", "last", "requests", "kept up by"],
                [
                    (
                        t.name,
                        f"needs {', '.join(t.lacks)}" if t.lacks else t.access,
                        t.rows,
                        t.first_at,
                        t.last_at,
                        t.requests,
                        t.kept_up,
                    )
                    for t in found.tables
                ],
            )
            for line in found.advice:
                typer.echo(line)
            typer.echo(
                f"A first sync takes {found.requests:,} requests at least"
                + (
                    f", which PostHog's limits hold up for {found.waiting_minutes:,.0f} minutes."
                    if found.waiting_minutes >= 1
                    else ": PostHog's limits do not hold it up."
                )
                + f" PostHog reads about {found.read_bytes / 1e6:,.1f} MB for the events."
            )
            if found.hidden_before:
                typer.echo(
                    f"The first event is of {found.hidden_before:%Y-%m-%d}, whole years ago, and the project "
                    "is older: PostHog may have events from before that which its plan no longer shows."
                )
            if found.destination:
                typer.echo(f"{found.destination}: can be written")
        if found.missing:
            typer.echo(f"A sync would fail: {', '.join(found.missing)} cannot be read.", err=True)
            raise typer.Exit(1)


@app.command()
def sync(
    tables: Tables = "",
    destination: Destination = "duckdb",
    dataset: Dataset = "posthog_data",
    pipeline: PipelineName = "posthog",
    as_json: AsJson = False,
) -> None:
    """Brings the warehouse up to now. Run it every hour; each run takes what is new."""
    with _answering():
        from posthog_source.runs import run_sync

        target = _pipeline(pipeline, destination, dataset, is_quiet=as_json)
        report = run_sync(target, **_chosen(tables))
        _print_json(report.as_json()) if as_json else typer.echo(str(report))


@app.command()
def backfill(
    start: Annotated[str, typer.Option("--from", help="First day, such as 2024-01-01.")],
    end: Annotated[str, typer.Option("--to", help="First day not to be read.")],
    parallel: Annotated[int, typer.Option(help="Ranges read at once.")] = 1,
    destination: Destination = "duckdb",
    dataset: Dataset = "posthog_data",
    pipeline: PipelineName = "posthog",
    as_json: AsJson = False,
) -> None:
    """Reads a span of events again, whatever a sync has read. Stopped, it goes on when started again."""
    with _answering():
        from posthog_source.runs import run_backfill

        target = _pipeline(pipeline, destination, dataset, is_quiet=as_json)
        report = run_backfill(target, start, end, parallel=parallel)
        _print_json(report.as_json()) if as_json else typer.echo(str(report))


@app.command()
def verify(
    start: Annotated[str, typer.Option("--from", help="First day of events; what was synced.")] = "",
    end: Annotated[str, typer.Option("--to", help="First day that is not compared.")] = "",
    by: Annotated[str, typer.Option(help="event: tell a day's events apart by name.")] = "",
    tables: Annotated[
        str, typer.Option(help="Names of tables or groups, with commas between; all that are loaded.")
    ] = "",
    repair: Annotated[bool, typer.Option("--repair", help="Read the days that differ again.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the days into a file such as days.png.")] = None,
    destination: Destination = "duckdb",
    dataset: Dataset = "posthog_data",
    pipeline: PipelineName = "posthog",
    as_json: AsJson = False,
) -> None:
    """Compares the warehouse with PostHog: which rows are missing, extra, duplicate or changed.

    Exit codes: 0 all the same, 1 something differs, 2 it cannot be compared.
    """
    with _answering():
        from posthog_source.differences import tell
        from posthog_source.errors import SettingsError
        from posthog_source.heatmap import draw, require_matplotlib
        from posthog_source.verification import verify as run_verify

        if by not in ("", "event"):
            raise SettingsError(f"--by is {by!r}. It can be event.")
        if plot:
            require_matplotlib()
        is_quiet = as_json or not _console().is_terminal  # progress is of a repair, and no result
        target = _pipeline(pipeline, destination, dataset, is_quiet=is_quiet)
        asked: dict[str, Any] = {"start": start, "end": end, "by_event": by == "event", "repair": repair}
        found = run_verify(target, **asked, **_chosen(tables))
        if plot:
            draw(found, plot)
        _print_json(found.as_json()) if as_json else tell(found, _console())
        if not found.is_equal:
            raise typer.Exit(1)


@app.command()
def status(
    destination: Destination = "duckdb",
    dataset: Dataset = "posthog_data",
    pipeline: PipelineName = "posthog",
    as_json: AsJson = False,
) -> None:
    """What the last runs did, how far each table has been read, and what the next run will do."""
    with _answering():
        from posthog_source.status import RUN_COLUMNS, fetch_status

        found = fetch_status(_pipeline(pipeline, destination, dataset))
        if as_json:
            _print_json(found)
            return
        typer.echo(f"{found.pipeline} -> {found.destination}")
        _print_rows(RUN_COLUMNS, [[run[name] for name in RUN_COLUMNS] for run in found.runs])
        _print_rows(["table", "read up to"], sorted(found.cursors.items()))
        if found.lag is not None:
            typer.echo(f"Events are {found.lag.total_seconds() / 3600:,.1f} hours behind now.")
        typer.echo(found.next_run)


@app.command()
def tables(as_json: AsJson = False) -> None:
    """Every table: what a row is, how it is kept up, and what the key needs."""
    from posthog_source.catalog import ON_REQUEST, TABLES

    known = (*TABLES, *ON_REQUEST)
    if as_json:
        _print_json([{"name": t.name, "description": t.description, "scopes": t.scopes} for t in known])
        return
    _print_rows(
        ["table", "a row", "kept up by", "scope"],
        [(t.name, t.description.split(". ")[0].rstrip("."), t.kept_up, ", ".join(t.scopes)) for t in known],
    )


@app.command()
def query(
    statement: Annotated[str, typer.Argument(help="One HogQL SELECT, whose computed columns have names.")],
    output: Annotated[
        Path | None, typer.Option(help="Write all rows into this .parquet or .csv file.")
    ] = None,
    pipeline: PipelineName = "posthog",
    as_json: AsJson = False,
) -> None:
    """Runs one HogQL query as a sync would, to try it before it becomes a table."""
    with _answering(), _settings_of(pipeline):
        from posthog_source.trial import fetch_pages, write_pages

        if output:
            rows = write_pages(fetch_pages(statement), output)
            typer.echo(f"{rows:,} rows in {output}")
            return
        names, shown, rows = _first_rows(fetch_pages(statement))
        if as_json:
            _print_json([dict(zip(names, row, strict=True)) for row in shown])
            return
        _print_rows(names, shown)
        if rows > len(shown):
            typer.echo(f"{len(shown):,} of {rows:,} rows. --output takes all.")


@app.command()
def demo(
    database: Annotated[
        Path, typer.Option(help="DuckDB file to load into. Its schema posthog_data is replaced.")
    ] = Path("posthog_demo.duckdb"),
    events: Annotated[int, typer.Option(min=1, help="Events that the emulated product has.")] = 200_000,
    persons: Annotated[int, typer.Option(min=1, help="Its persons.")] = 20_000,
    days: Annotated[int, typer.Option(min=1, help="Days that they spread over.")] = 30,
) -> None:
    """Try it without a PostHog account: an emulated project, two syncs into DuckDB, and what they cost."""
    with _answering():
        from posthog_source.demo import run_demo

        run_demo(database=database, events=events, persons=persons, days=days, console=_console())


def _without_traceback(record: logging.LogRecord) -> bool:
    """Lets dlt's warnings pass, in a line each."""
    record.exc_info = None
    return True


@contextmanager
def _answering() -> Iterator[None]:
    """Whatever goes wrong is one line on stderr."""
    try:
        yield
    except (KeyboardInterrupt, InterruptedRunError) as error:
        typer.echo(f"{error or 'Stopped.'} Go on with: posthog-source {shlex.join(sys.argv[1:])}", err=True)
        raise typer.Exit(2) from None
    except typer.Exit:
        raise
    except Exception as error:
        cause = find_cause(error)
        if isinstance(cause, InterruptedRunError):
            typer.echo(f"{cause} Go on with: posthog-source {shlex.join(sys.argv[1:])}", err=True)
        else:
            typer.echo(str(cause) if cause else _first_line(error), err=True)
        logger.debug("What was behind it", exc_info=True)
        raise typer.Exit(2) from None


@contextmanager
def _settings_of(pipeline: str) -> Iterator[None]:
    """What stands below a pipeline's name goes first, where no pipeline is made."""
    from posthog_source.pipeline import settings_below

    with settings_below(pipeline):
        yield


def _first_line(error: BaseException) -> str:
    """What was at the bottom of an error that is not this package's, in its own words."""
    from dlt.common.configuration.exceptions import ConfigFieldMissingException
    from dlt.common.pipeline import get_dlt_pipelines_dir

    *_, cause = iter_causes(error)
    if isinstance(cause, OSError) and cause.errno in FULL_DISK:
        return (
            f"The disk is full: {cause.strerror}. dlt works in {get_dlt_pipelines_dir()}, and files go where "
            f"{Path.cwd()} is. Make room and run the same again: what is committed stays."
        )
    if isinstance(cause, ConfigFieldMissingException):
        return (
            f"dlt lacks {', '.join(cause.fields)} of the destination. Set it under [destination.<name>] in "
            ".dlt/secrets.toml, or DESTINATION__<NAME>__… in the environment."
        )
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no more is known'}"


def _pipeline(name: str, destination: str, dataset: str, *, is_quiet: bool = False) -> dlt.Pipeline:
    import dlt
    from dlt.common.destination.exceptions import UnknownDestinationModule

    from posthog_source.errors import SettingsError
    from posthog_source.progress import RichProgress

    console = _console()
    plain = dlt.progress.log(log_period=5, dump_system_stats=False)
    progress: Any = None if is_quiet else RichProgress(console) if console.is_terminal else plain
    try:
        made = dlt.pipeline(name, destination=destination, dataset_name=dataset, progress=progress)
        made.destination_client()  # so that credentials are missed before anything is sent
    except UnknownDestinationModule:
        raise SettingsError(
            f"dlt knows no destination {destination!r}. Name one of dlt's, such as duckdb or postgres."
        ) from None
    return made


def _chosen(tables: str) -> dict[str, Any]:
    return {"tables": [name.strip() for name in tables.split(",")]} if tables else {}


def _first_rows(pages: Iterator[pa.Table]) -> tuple[list[str], list[list[object]], int]:
    """Names of columns, the first rows, and how many there are in all."""
    names: list[str] = []
    shown: list[list[object]] = []
    rows = 0
    for page in pages:
        names = page.column_names
        shown += [list(row.values()) for row in page.slice(0, SHOWN_ROWS - len(shown)).to_pylist()]
        rows += page.num_rows
    return names, shown, rows


def _print_rows(headings: Any, rows: Any) -> None:
    from posthog_source.printing import print_rows

    print_rows(_console(), headings, rows)


def _print_json(value: object) -> None:
    from posthog_source.printing import to_json

    typer.echo(to_json(value))


def _console() -> Console:
    from rich.console import Console

    return Console()
