"""What repair restored: standard deviations by tap, and errors of fitted operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ccamerge.reporting.plots.style import (
    DARK,
    MIDDLE,
    SHADES,
    grid,
    height_of,
    name_places,
    new_figure,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report
    from ccamerge.reporting.results import Comparison

TITLE = "Variance kept, before and after repair"
CAPTION = (
    "Standard deviation of the merged network's features over that of the aligned models, by tap; "
    "for regression, the root-mean-square error over that before, by operation."
)
ABSENT = "No tap was repaired and no operation fitted."


def draw(report: Report, evaluated: Comparison | None) -> Figure | None:
    """One panel for each of the two that took place."""
    panels: list[Callable[[Any, Report], None]] = []
    if any(math.isfinite(v) for row in report.repaired for v in (row.before, row.after)):
        panels.append(_deviations)
    if any(math.isfinite(row.error) for row in report.fitted):
        panels.append(_errors)
    if not panels:
        return None
    count = max(len(report.repaired), len(report.fitted))
    names = [row.tap for row in report.repaired] + [row.tap for row in report.fitted]
    figure = new_figure(width_of(count), (2.9 + height_of(names)) * len(panels))
    for axes, panel in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True
    ):
        panel(axes, report)
        axes.set_ylim(0, 1.12 * max(1.0, axes.dataLim.ymax))
        grid(axes)
    return figure


def _deviations(axes: Any, report: Report) -> None:
    for label, shade, marker, style in (
        ("before", SHADES[2], "v", "--"),
        ("after", DARK, "o", "-"),
    ):
        values = [100 * getattr(row, label) for row in report.repaired]
        axes.plot(values, color=shade, marker=marker, markersize=4, linestyle=style, label=label)
    axes.set_ylabel("of the models' (%)")
    axes.set_title("Standard deviation kept, before and after repair", fontsize=10, loc="left")
    axes.legend(
        ncols=2,
        fontsize=8,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0,
    )
    name_places(axes, [row.tap for row in report.repaired])


def _errors(axes: Any, report: Report) -> None:
    values = [100 * row.error for row in report.fitted]
    axes.bar(range(len(values)), values, color=MIDDLE, edgecolor="k")
    axes.axhline(100, color="k", linestyle=":")
    axes.set_ylabel("of the error before (%)")
    axes.set_title("Error left by regression, by operation", fontsize=10, loc="left")
    name_places(axes, [row.tap for row in report.fitted])
