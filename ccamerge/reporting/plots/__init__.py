"""The pictures of a report, one file each. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ccamerge.reporting.report import Report
    from ccamerge.reporting.results import Comparison

PICTURES = ("comparison", "barriers", "correlations", "conditioning", "repair", "resources")
"""In the order of a page; each is a module here, see `picture`."""

DPI = 130


def picture(name: str) -> ModuleType:
    """The module of a picture.

    It has the ``TITLE`` and ``CAPTION``, what a page says where the picture is ``ABSENT``, and
    ``draw(report, evaluated)``, which returns None where the picture would be empty.
    """
    return importlib.import_module(f"{__name__}.{name}")


def draw(report: Report, evaluated: Comparison | None = None) -> dict[str, Figure]:
    """Draw what a report and, if there is one, an evaluation have to show.

    Returns
    -------
    Figures by their names in `PICTURES`. One that would be empty is left out, such as
    "correlations" if the methods give none.

    Raises
    ------
    ImportError
        Without matplotlib; the message says how to get it.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        message = "pictures need matplotlib: pip install 'ccamerge[plots]'"
        raise ImportError(message) from error
    drawn = {name: picture(name).draw(report, evaluated) for name in PICTURES}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(figures: dict[str, Figure], folder: str | Path) -> None:
    """Write ``<name>.png`` for each figure; the folder is made if absent."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI)
