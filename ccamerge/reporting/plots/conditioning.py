"""How well conditioned each space's problem was, and the ridge that saw to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ccamerge.reporting.plots.style import DARK, grid, height_of, name_places, new_figure, width_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report
    from ccamerge.reporting.results import Comparison

TITLE = "Conditioning and ridge"
CAPTION = "Condition number of each space's regularised covariances, and the ridge used."
ABSENT = "The methods used solve no regularised problem."


def draw(report: Report, evaluated: Comparison | None) -> Figure | None:
    """Condition numbers of the regularised covariances over the ridges, both logarithmic."""
    conditions = [space.condition for space in report.spaces]
    ridges = [math.nan if s.ridge is None else s.ridge for s in report.spaces]
    kinds = [
        ("condition number,\nworst of the models", conditions, "o", "-"),
        ("ridge", ridges, "s", ":"),
    ]
    kinds = [kind for kind in kinds if any(math.isfinite(v) for v in kind[1])]
    if not kinds:
        return None
    count = len(report.spaces)
    names = [f"{s.name} ({s.size})" for s in report.spaces]
    figure = new_figure(width_of(count), 0.5 + 1.8 * len(kinds) + height_of(names))
    for axes, (label, values, marker, style) in zip(
        figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0], kinds, strict=True
    ):
        axes.plot(range(count), values, color=DARK, marker=marker, markersize=4, linestyle=style)
        positive = [v for v in values if v > 0 and math.isfinite(v)]
        if len(positive) == sum(math.isfinite(v) for v in values):
            axes.set_yscale("log")
            axes.set_ylim(min(positive) / 2, max(positive) * 2)
            axes.set_yticks(*_ticks(min(positive), max(positive)))
            axes.minorticks_off()
        axes.set_ylabel(label)
        grid(axes)
    gamma = "" if report.gamma is None else f", gamma {report.gamma:g} in all spaces"
    figure.suptitle(f"Conditioning of the regularised covariances{gamma}", fontsize=10)
    name_places(axes, names)
    return figure


def _ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round numbers over the data, as many as fit; the data itself where it is one number."""
    if math.isclose(low, high):
        return [low], [f"{low:.3g}"]
    first, last = math.floor(math.log10(low / 2)), math.ceil(math.log10(high * 2))
    step = max(1, (last - first) // 6)
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [m * 10.0**e for e in range(first, last + 1, step) for m in steps]
    ticks = [tick for tick in ticks if low / 2 <= tick <= high * 2]
    return ticks, [f"{tick:g}" for tick in ticks]
