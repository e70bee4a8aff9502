"""What the pictures have in common. Everything is told apart by more than its hue."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

DARK, MIDDLE, LIGHT = "#1f4e8c", "#8fb8de", "#d9d9d9"
"""Fills in order of luminance: apart in greyscale, too."""

HATCHES = {DARK: "", MIDDLE: "//", LIGHT: ".."}
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*"
SHADES = ("#000000", DARK, "#a8571c", "#6f9bd1")

_LONGEST = 44
_TICKS = 48


def new_figure(width: float, height: float) -> Figure:
    """Inches; white, whatever the page around it is, and laid out so that nothing overlaps."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="w")


def width_of(count: int) -> float:
    """Inches for a picture with that many places side by side."""
    return min(16.0, max(7.5, 2.5 + 0.32 * count))


def short(name: str, longest: int = _LONGEST) -> str:
    """A name for a picture: its middle left out if it is long, nothing read as mathematics.

    The beginnings and ends of parameters' names tell most. What the font lacks becomes "?".
    """
    font = get_font(findfont(FontProperties()))
    name = "".join(c if font.get_char_index(ord(c)) else "?" for c in " ".join(name.split()))
    if len(name) > longest:
        half = (longest - 1) // 2
        name = f"{name[:half]}…{name[-half:]}"
    return name.replace("$", r"\$")


def height_of(names: Iterable[str]) -> float:
    """Inches that `name_places` takes for these."""
    return 0.3 + 0.065 * min(_LONGEST, max(map(len, names), default=0))


def name_places(axes: Any, names: Sequence[str]) -> None:
    """Label places 0, 1, ... of the x axis; of very many, as many as can be read."""
    step = -(-len(names) // _TICKS)
    places = range(0, len(names), step)
    axes.set_xticks(list(places), [short(names[i]) for i in places], rotation=90, fontsize=8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    if step > 1:
        axes.set_xlabel(f"in the network's order; one name in {step} is written")


def grid(axes: Any, axis: str = "y") -> None:
    """Thin lines behind the data."""
    axes.grid(axis=axis, color="#cccccc", linewidth=0.6)
    axes.set_axisbelow(True)


def bars(axes: Any, values: Mapping[str, float], form: str, fills: Sequence[str]) -> None:
    """Horizontal bars, the first on top, their values beside them."""
    places = range(len(values))
    drawn = axes.barh(
        places,
        list(values.values()),
        color=list(fills),
        edgecolor="k",
        hatch=[HATCHES[fill] for fill in fills],
    )
    labels = [form.format(v) if math.isfinite(v) else "" for v in values.values()]
    box = {"facecolor": "w", "edgecolor": "none", "pad": 0.6}  # over lines that cross the axes
    axes.bar_label(drawn, labels=labels, padding=4, fontsize=8, zorder=4, bbox=box)
    axes.set_yticks(list(places), [short(name) for name in values], fontsize=8)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.margins(x=0.18)
    grid(axes, "x")
