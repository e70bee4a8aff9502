"""The merged network beside the models and their ensemble."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ccamerge.reporting.plots.style import DARK, LIGHT, MIDDLE, bars, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report
    from ccamerge.reporting.results import Comparison

TITLE = "The merged network beside the models and their ensemble"
CAPTION = "Light to dark: models, ensemble, merged. The dotted line is the models' mean."
ABSENT = "No evaluation: `ccamerge evaluate` with --out RUN/evaluation.json makes one."


def draw(report: Report, evaluated: Comparison | None) -> Figure | None:
    """Bars of the metric and of the loss, light to dark: models, ensemble, merged."""
    if evaluated is None:
        return None
    kinds = (
        (LIGHT, evaluated.models),
        (MIDDLE, [evaluated.ensemble] if evaluated.ensemble else []),
        (DARK, evaluated.merged),
    )
    rows = [(fill, row) for fill, members in kinds for row in members]
    panels = [
        (f"{evaluated.metric}, {evaluated.better} is better", [row.metric for _, row in rows]),
        (f"{evaluated.loss}, lower is better", [row.loss for _, row in rows]),
    ]
    panels = [panel for panel in panels if any(map(math.isfinite, panel[1]))]
    if not panels:
        return None
    figure = new_figure(11, max(2.6, 1.2 + 0.3 * len(rows)))
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    labels = _distinct([row.name for _, row in rows])
    for axes, (title, values) in zip(every, panels, strict=True):
        bars(axes, dict(zip(labels, values, strict=True)), "{:.4g}", [fill for fill, _ in rows])
        axes.set_title(title, fontsize=10)
        means = values[: len(evaluated.models)]
        if means and all(map(math.isfinite, means)):
            mean = sum(means) / len(means)
            axes.axvline(mean, color="k", linestyle=":", label="mean of the models")
    handles, names = every[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", fontsize=8, frameon=False)
    return figure


def _distinct(names: list[str]) -> list[str]:
    """Names that several rows have are counted: each row is a bar of its own."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
