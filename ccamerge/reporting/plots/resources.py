"""Time and memory by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccamerge.reporting.plots.style import DARK, MIDDLE, bars, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report
    from ccamerge.reporting.results import Comparison

TITLE = "Time and memory by stage"
CAPTION = (
    "Seconds of each stage, and the largest resident memory that the whole process had had when "
    "the stage ended, by the operating system's count: a stage that adds nothing to it needed no "
    "more than what came before."
)
ABSENT = "No times were recorded."


def draw(report: Report, evaluated: Comparison | None) -> Figure | None:
    """Bars of seconds, and of the largest resident memory up to each stage's end."""
    peaks = {stage: size / 2**20 for stage, size in report.peak_bytes.items()}
    panels = [
        (report.seconds, "seconds", "{:.3g}", DARK),
        (peaks, "largest memory of the process so far (MiB)", "{:.0f}", MIDDLE),
    ]
    panels = [panel for panel in panels if panel[0]]
    if not panels:
        return None
    figure = new_figure(11, 1.1 + 0.36 * max(len(panel[0]) for panel in panels))
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (values, title, form, fill) in zip(every, panels, strict=True):
        bars(axes, values, form, [fill] * len(values))
        axes.set_title(title, fontsize=10)
    return figure
