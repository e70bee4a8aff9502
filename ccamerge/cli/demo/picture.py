"""The demo's picture: accuracy by method, and by class what each network brought."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccamerge.reporting.plots.style import LINES, MARKERS, new_figure

if TYPE_CHECKING:
    from ccamerge.cli.demo.comparison import Comparison

# In order of luminance, so that they stay apart in greyscale too.
_FILLS = {
    "average": ("#e4e4e4", ""),
    "permutation": ("#8fb8de", ""),
    "CCA": ("#1f4e8c", ""),
    "refined": ("#12305a", ""),
    "member refined": ("#ffffff", "////"),
}


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Save a PNG: bars of accuracy, and the accuracy by class of the first row."""
    figure = new_figure(13, 7.4)
    top, below = figure.subplots(2, 1)
    _by_class(top, comparisons[0])
    _bars(below, comparisons)
    figure.savefig(path, dpi=130)


def _by_class(axes: Any, comparison: Comparison) -> None:
    """Bars of merged networks, marks of the networks that went in and of their ensemble."""
    classes = np.arange(len(comparison.ensemble.classes))
    shown = [x for x in ("permutation", "CCA", "refined") if x in comparison.merged]
    width = 0.8 / len(shown)
    for index, label in enumerate(shown):
        axes.bar(
            classes + (index - (len(shown) - 1) / 2) * width,
            100 * np.array(comparison.merged[label].classes),
            width,
            color=_FILLS[label][0],
            edgecolor="k",
            label=label,
        )
    for index, own in enumerate(comparison.base):
        axes.plot(
            classes,
            100 * np.array(own.classes),
            color="k",
            linestyle=LINES[1 + index % (len(LINES) - 1)],
            marker=MARKERS[index % len(MARKERS)],
            label=f"network {index}",
        )
    axes.hlines(
        100 * np.array(comparison.ensemble.classes),
        classes - 0.42,
        classes + 0.42,
        colors="#a8571c",
        linewidth=2.5,
        label=f"ensemble of {comparison.models}",
    )
    axes.set_xticks(classes, [str(c) for c in classes])
    axes.set_xlabel("class")
    axes.set_title(f"What each network brought: {comparison.title}, N = {comparison.models}")
    _finish(axes)


def _bars(axes: Any, comparisons: Sequence[Comparison]) -> None:
    places = np.arange(len(comparisons))
    shown = {x: fill for x, fill in _FILLS.items() if all(x in c.merged for c in comparisons)}
    width = 0.84 / len(shown)
    for index, (label, (shade, hatch)) in enumerate(shown.items()):
        heights = [100 * c.merged[label].accuracy for c in comparisons]
        middle = places + (index - (len(shown) - 1) / 2) * width
        bars = axes.bar(
            middle, heights, width, label=label, color=shade, edgecolor="k", hatch=hatch
        )
        box = {"facecolor": "w", "edgecolor": "none", "pad": 1} if hatch else None
        colour = "w" if label in ("CCA", "refined") else "k"
        axes.bar_label(bars, fmt="%.0f", fontsize=8, label_type="center", color=colour, bbox=box)
    for index, c in enumerate(comparisons):
        base = sum(own.accuracy for own in c.base) / len(c.base)
        for value, line, label in ((c.ensemble.accuracy, "-", "ensemble"), (base, ":", "base")):
            axes.hlines(
                100 * value,
                index - 0.46,
                index + 0.46,
                colors="#a8571c",
                linestyles=line,
                linewidth=2,
                label=label if index == 0 else None,
            )
    labels = [c.title.replace(", ", "\n", 1) + f"\nN = {c.models}" for c in comparisons]
    axes.set_xticks(places, labels, fontsize=8)
    axes.set_title("One network out of N")
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.set_ylim(0, 122)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("test accuracy (%)")
    axes.legend(ncols=8, loc="upper center", fontsize=8, frameon=False)
