"""Metric and loss on the way from one network to another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ccamerge.reporting.plots.style import LINES, MARKERS, SHADES, grid, new_figure, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report
    from ccamerge.reporting.results import Comparison

TITLE = "On the way between the networks"
CAPTION = (
    "Metric and loss of merges between the reference (t = 0) and the others (t = 1). A barrier is "
    "how far the loss rises above the straight line between the models' own losses."
)
ABSENT = "No barriers were evaluated."

_COLUMNS = 2


def draw(report: Report, evaluated: Comparison | None) -> Figure | None:
    """A line for each method; the legend below says how high its barrier is."""
    if evaluated is None or not evaluated.barriers:
        return None
    count = len(evaluated.barriers)
    figure = new_figure(11, 4.0 + 0.22 * math.ceil(count / _COLUMNS))
    every = figure.subplots(1, 2)
    titles = (
        f"{evaluated.metric}, {evaluated.better} is better",
        f"{evaluated.loss}, lower is better",
    )
    for axes, title, kind in zip(every, titles, ("metric", "loss"), strict=True):
        for index, (name, barrier) in enumerate(evaluated.barriers.items()):
            axes.plot(
                barrier.t,
                getattr(barrier, kind),
                color=SHADES[index % len(SHADES)],
                linestyle=LINES[index % len(LINES)],
                # another period than the lines': 32 lines before one is like another
                marker=MARKERS[(index + index // len(LINES)) % len(MARKERS)],
                markersize=5,
                label=f"{short(name, 48)}: barrier {barrier.barrier:.3g}",
            )
        axes.set_xlabel("t: from the reference (0) to the others (1)")
        axes.set_title(title, fontsize=10)
        grid(axes, "both")
    handles, names = every[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=_COLUMNS, fontsize=8, handlelength=4
    )
    return figure
