"""How alike each space is: its correlations as a heat map, and over depth their mean and R2."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ccamerge.reporting.plots.style import (
    LINES,
    MARKERS,
    SHADES,
    grid,
    height_of,
    name_places,
    new_figure,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report, SpaceReport
    from ccamerge.reporting.results import Comparison

TITLE = "How alike the spaces are"
CAPTION = (
    "Correlation of matched directions, mean over the models but the reference; spaces from left "
    "to right in the network's order, their sizes in brackets. Canonical correlations are "
    "regularised: below those without a ridge. R2 is the share of the reference's variance that "
    "the others' features explain, by the best linear map and by the one that was used; below 0 "
    "zeros would be nearer, and what is below -1 is not shown."
)
ABSENT = "The methods used give no correlations, and nothing is known of R2."

_ROWS = 120


def draw(report: Report, evaluated: Comparison | None) -> Figure | None:
    """One column a space, best direction on top; below it the means over the models' directions.

    All but the reference count. Without correlations there is no heat map.
    """
    kinds = {
        "mean correlation": [_mean(space) for space in report.spaces],
        "R2 by the best linear map": [space.mean_explained for space in report.spaces],
        "R2 by the map used": [space.mean_explained_by_map for space in report.spaces],
    }
    values = [v for row in kinds.values() for v in row if math.isfinite(v)]
    if not values:
        return None
    count = len(report.spaces)
    names = [f"{s.name} ({s.size})" for s in report.spaces]
    columns = np.stack([_column(space) for space in report.spaces], 1)
    known = bool(np.isfinite(columns).any())
    figure = new_figure(width_of(count), (6.3 if known else 3.4) + height_of(names))
    panels = (3, 2) if known else (1,)
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=panels, squeeze=False)[:, 0]
    if known:
        _heat(figure, axes[0], columns)
    line = axes[-1]
    for place, (kind, row) in enumerate(kinds.items()):
        if np.isfinite(row).any():
            line.plot(
                range(count),
                row,
                color=SHADES[place],
                marker=MARKERS[place],
                markersize=4,
                linestyle=LINES[place],
                label=kind,
            )
    line.set_ylim(max(min(0.0, *values), -1.0) - 0.05, 1.05)
    line.set_ylabel("mean over models")
    grid(line)
    name_places(line, names)
    line.set_xlim(-0.5, count - 0.5)
    figure.legend(loc="outside lower center", ncols=len(kinds), fontsize=8, handlelength=4)
    return figure


def _heat(figure: Figure, heat: Any, columns: Any) -> None:
    """Correlations (directions, spaces), crossed out where a space has none."""
    heat.set_facecolor("w")
    heat.patch.set(hatch="xx", edgecolor="#999999")
    image = heat.imshow(
        np.ma.masked_invalid(columns),
        aspect="auto",
        interpolation="nearest",
        cmap="cividis",
        vmin=min(0.0, float(np.nanmin(columns))),
        vmax=1,
        extent=(-0.5, columns.shape[1] - 0.5, 100, 0),
    )
    figure.colorbar(image, ax=heat, label="correlation", pad=0.01)
    heat.set_ylabel("share of the space's directions,\nbest first (%)")
    missing = "" if np.isfinite(columns).all() else " (crossed: none given)"
    heat.set_title(f"Correlation of matched directions, by space{missing}", fontsize=10)


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
