"""A picture of a comparison of events: a calendar in which each day says how many of its rows differ.

Not here: what differs (`comparison`). matplotlib is needed only by who asks for a picture.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from posthog_source.comparison import Verification
from posthog_source.errors import SettingsError

EQUAL, EMPTY, EDGE, INK = "#cfe8d5", "#efefec", "#ffffff", "#333333"
DIFFERING = ("#f9c74f", "#f3722c", "#d00000", "#4a0010")
"""From one row to the most: none of them near the green of an equal day."""
WEEKDAYS = ("Mon", "", "Wed", "", "Fri", "", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
WEEKS = 54


def require_matplotlib() -> None:
    """Says so before anything is asked, if a picture cannot be drawn.

    Raises:
        SettingsError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError("--plot needs matplotlib: pip install 'posthog-source[plot]'.")


def draw(found: Verification, path: Path) -> None:
    """Draws a year a row into a file whose ending says of which kind, such as .png or .svg.

    Raises:
        SettingsError: No events were compared, or the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    days = _days(found)
    if not any(rows is not None for rows in days.values()):
        raise SettingsError("There are no days of events to draw. Compare events: --tables events.")
    years = sorted({day.year for day, rows in days.items() if rows is not None})
    most = max(10, *(rows or 0 for rows in days.values()))
    scale = ScalarMappable(LogNorm(1, most), LinearSegmentedColormap.from_list("differing", DIFFERING))
    layout = ConstrainedLayoutEngine(h_pad=0.02, hspace=0.0)
    figure = Figure(figsize=(11, 0.75 + 1.5 * len(years)), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(years), 1, squeeze=False)[:, 0]
    for axis, year in zip(axes, years, strict=True):
        _draw_year(axis, year, {day: rows for day, rows in days.items() if day.year == year}, scale)
    differing, there = (
        sum(1 for rows in days.values() if rows), sum(1 for rows in days.values() if rows is not None)
    )  # fmt: skip
    title = f"Events in PostHog and in the warehouse: {differing:,} of {there:,} days differ"
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, color=INK)
    _draw_legend(figure, list(axes), scale)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise SettingsError(f"The picture cannot be written to {path}: {error}.") from error


def _days(found: Verification) -> dict[date, int | None]:
    """How many rows differ, by day that was compared: None on one that has no rows.

    At least one where it is not known how many.
    """
    rows = [row for row in found.rows if row.day is not None]
    days: dict[date, int | None] = {}
    for row in rows:
        differing = 0 if row.is_equal else max(1, row.differences + row.moved)
        days[row.day or date.min] = (days.get(row.day or date.min) or 0) + differing
    day = min(days, default=date.max)
    while day < max(days, default=date.min):
        days.setdefault(day, None)
        day += timedelta(days=1)
    return days


def _draw_year(axis: Any, year: int, days: Mapping[date, int | None], scale: Any) -> None:
    from matplotlib.colors import to_rgba

    first = date(year, 1, 1)
    shift = first.weekday()
    squares = [[to_rgba(EDGE)] * WEEKS for _ in range(7)]
    for day, rows in days.items():
        week, weekday = divmod((day - first).days + shift, 7)
        color = EMPTY if rows is None else scale.to_rgba(rows) if rows else EQUAL
        squares[weekday][week] = to_rgba(color)
    axis.pcolormesh(squares, edgecolors=EDGE, linewidth=1.5)
    axis.set_ylim(7, 0)
    axis.set_aspect("equal")
    axis.set_yticks([n + 0.5 for n in range(7)], WEEKDAYS, fontsize=7, color=INK)
    starts = [((date(year, month, 1) - first).days + shift) / 7 for month in range(1, 13)]
    axis.set_xticks(starts, MONTHS, fontsize=8, color=INK, ha="left")
    axis.tick_params(length=0)
    axis.set_ylabel(str(year), fontsize=12, color=INK, rotation=0, ha="right", va="center", labelpad=8)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_legend(figure: Any, axes: list[Any], scale: Any) -> None:
    from matplotlib.patches import Patch

    bar = figure.colorbar(scale, ax=axes, location="right", pad=0.01, fraction=0.015)
    bar.set_label("rows that differ", color=INK, fontsize=8)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter(lambda rows, _: f"{rows:,.0f}")
    bar.outline.set_visible(False)
    patches = [Patch(color=EQUAL, label="equal"), Patch(color=EMPTY, label="no events")]
    figure.legend(handles=patches, loc="upper right", ncols=2, frameon=False, fontsize=8, labelcolor=INK)
