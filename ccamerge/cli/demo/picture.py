"""The demo's picture: accuracy by method, and how well each space was matched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccamerge.reporting.plots.style import LINES, new_figure, short

if TYPE_CHECKING:
    from ccamerge.cli.demo.comparison import Comparison

# Ordered from light to dark, so that they stay apart in greyscale too.
_SHADES = {"average": "#d9d9d9", "permutation": "#8fb8de", "CCA": "#1f4e8c"}


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Save a PNG: bars of accuracy, and canonical correlations of the largest merge."""
    figure = new_figure(12, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _bars(left, comparisons)
    _correlations(right, max(comparisons, key=lambda c: c.models))
    figure.savefig(path, dpi=150)


def _bars(axes: Any, comparisons: Sequence[Comparison]) -> None:
    places = np.arange(len(comparisons))
    width = 0.8 / len(_SHADES)
    for index, (label, shade) in enumerate(_SHADES.items()):
        heights = [100 * c.merged[label] for c in comparisons]
        bars = axes.bar(
            places + (index - 1) * width, heights, width, label=label, color=shade, edgecolor="k"
        )
        axes.bar_label(
            bars,
            fmt="%.0f",
            fontsize=8,
            label_type="center",
            color="w" if label == "CCA" else "k",
        )
    for place, c in zip(places, comparisons, strict=True):
        span = (place - 0.45, place + 0.45)
        first = place == 0
        axes.hlines(
            100 * c.ensemble,
            *span,
            colors="k",
            linestyles="--",
            label="ensemble" if first else None,
        )
        axes.hlines(
            100 * sum(c.base) / len(c.base),
            *span,
            colors="k",
            linestyles=":",
            label="base, mean" if first else None,
        )
    labels = [c.title.replace(", ", "\n", 1) + f"\nN = {c.models}" for c in comparisons]
    axes.set_xticks(places, labels, fontsize=7)
    axes.set_ylim(0, 119)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("One network out of N")
    axes.legend(ncols=5, loc="upper center", fontsize=8, frameon=False)


def _correlations(axes: Any, comparison: Comparison) -> None:
    """A line for each space: its canonical correlations, mean over the models."""
    spaces = [s for s in comparison.report.spaces if s.correlations]
    for index, space in enumerate(spaces):
        mean = np.mean([row for row in space.correlations if row], axis=0)
        shade = str(0.75 * (1 - index / max(1, len(spaces) - 1)))
        axes.plot(
            np.linspace(0, 1, len(mean)),
            mean,
            color=shade,
            linestyle=LINES[index % len(LINES)],
            label=f"{short(space.name)} ({space.size})",
        )
    axes.set_xlabel("share of canonical directions, best first")
    axes.set_ylabel("canonical correlation (regularised)")
    axes.set_ylim(0, 1.02)
    axes.set_title(f"How alike the spaces are: {comparison.title}, N = {comparison.models}")
    axes.title.set_fontsize(10)
    axes.legend(fontsize=7, ncols=1 + len(spaces) // 8)
