"""Canonical correlations of each space: a heat map over depth, and their mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ccamerge.reporting.plots.style import DARK, grid, height_of, name_places, new_figure, width_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report, SpaceReport
    from ccamerge.reporting.results import Comparison

TITLE = "How alike the spaces are"
CAPTION = (
    "Correlation of matched directions, mean over the models but the reference; spaces from left "
    "to right in the network's order, their sizes in brackets. Canonical correlations are "
    "regularised: below those without a ridge."
)
ABSENT = "The methods used give no correlations."

_ROWS = 120


def draw(report: Report, evaluated: Comparison | None) -> Figure | None:
    """One column a space, best direction on top; the mean over the models but the reference."""
    columns = np.stack([_column(space) for space in report.spaces], 1) if report.spaces else None
    if columns is None or not np.isfinite(columns).any():
        return None
    count = len(report.spaces)
    names = [f"{s.name} ({s.size})" for s in report.spaces]
    figure = new_figure(width_of(count), 5.2 + height_of(names))
    heat, line = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    lowest = min(0.0, float(np.nanmin(columns)))
    heat.set_facecolor("w")
    heat.patch.set(hatch="xx", edgecolor="#999999")  # seen where a space has none
    image = heat.imshow(
        np.ma.masked_invalid(columns),
        aspect="auto",
        interpolation="nearest",
        cmap="cividis",
        vmin=lowest,
        vmax=1,
        extent=(-0.5, count - 0.5, 100, 0),
    )
    figure.colorbar(image, ax=heat, label="correlation", pad=0.01)
    heat.set_ylabel("share of the space's directions,\nbest first (%)")
    missing = "" if np.isfinite(columns).all() else " (crossed: none given)"
    heat.set_title(f"Correlation of matched directions, by space{missing}", fontsize=10)
    means = [_mean(space) for space in report.spaces]
    line.plot(range(count), means, color=DARK, marker="o", markersize=4)
    line.set_ylim(lowest, 1.05)
    line.set_ylabel("mean")
    grid(line)
    name_places(line, names)
    line.set_xlim(-0.5, count - 0.5)
    return figure


def _values(space: SpaceReport) -> list[Any]:
    rows = (np.asarray(row, float) for row in space.correlations)
    return [row[np.isfinite(row)] for row in rows if np.isfinite(row).any()]


def _mean(space: SpaceReport) -> float:
    rows = _values(space)
    return float(np.mean(np.concatenate(rows))) if rows else float("nan")


def _column(space: SpaceReport) -> Any:
    """Of a space of any size: correlations at the same shares of its directions."""
    rows = _values(space)
    if not rows:
        return np.full(_ROWS, np.nan)
    share = (np.arange(_ROWS) + 0.5) / _ROWS
    return np.mean([row[(share * len(row)).astype(int)] for row in rows], axis=0)
