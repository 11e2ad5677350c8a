"""How results look: drawn in a terminal, plain lines in a log, JSON for machines.

Not here: what is shown (`cli` and what it calls).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, datetime, timedelta
from typing import Any

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Sequence[object]

LINE_BREAKS = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})
"""A row is a line, whatever its texts hold."""


def print_rows(console: Console, headings: Sequence[str], rows: Sequence[Row]) -> None:
    """Rows under headings; numbers to the right."""
    is_number = [bool(rows) and all(_is_number(row[n]) for row in rows) for n in range(len(headings))]
    texts = [[_text(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        _print_plain(console, headings, texts)
        return
    table = Table(box=SIMPLE_HEAD)
    for heading, is_right in zip(headings, is_number, strict=True):
        table.add_column(heading, justify="right" if is_right else "left", overflow="fold")
    for row in texts:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def to_json(value: object) -> str:
    """A result as JSON: dataclasses by their attributes, times as ISO text, spans as seconds."""
    return orjson.dumps(
        value, default=_plain, option=orjson.OPT_INDENT_2 | orjson.OPT_PASSTHROUGH_DATACLASS
    ).decode()


def _print_plain(console: Console, headings: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
    lines = [list(headings), *texts]
    widths = [max(len(line[n]) for line in lines) for n in range(len(headings))]
    for line in lines:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        console.print(padded.rstrip(), markup=False, highlight=False, soft_wrap=True)


def _text(cell: object) -> str:
    match cell:
        case None:
            return ""
        case bool():
            return "yes" if cell else "no"
        case int():
            return f"{cell:,}"
        case float():
            return f"{cell:,.1f}"
        case datetime():
            return f"{cell:%Y-%m-%d %H:%M}"
        case _:
            return str(cell).translate(LINE_BREAKS)


def _is_number(cell: object) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _plain(value: Any) -> object:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON.")
