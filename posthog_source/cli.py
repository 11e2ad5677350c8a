"""posthog-source: the command line. Thin: every command calls a function that can be imported.

Exit codes: 0 done, 2 cannot be done as asked (one line on stderr says why).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from posthog_source.errors import PosthogSourceError

app = typer.Typer(
    help="Exports PostHog into any warehouse that dlt can write to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Exports PostHog into any warehouse that dlt can write to."""


@app.command()
def demo(
    database: Annotated[Path, typer.Option(help="DuckDB file to load into.")] = Path("posthog.duckdb"),
    events: Annotated[int, typer.Option(min=1, help="Events that the emulated product has.")] = 200_000,
    persons: Annotated[int, typer.Option(min=1, help="Its persons.")] = 20_000,
    days: Annotated[int, typer.Option(min=1, help="Days that they spread over.")] = 30,
) -> None:
    """Try it without a PostHog account: an emulated project, two syncs into DuckDB, and what they cost."""
    os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
    from posthog_source.demo import run_demo  # dlt takes a second to import

    try:
        run_demo(database=database, events=events, persons=persons, days=days, console=Console())
    except PosthogSourceError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
