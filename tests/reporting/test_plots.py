from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import ccamerge
from ccamerge.reporting import plots
from tests import models as M
from tests import reports

FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg
Image = pytest.importorskip("PIL.Image")

CASES = {
    "usual": (reports.report(), reports.evaluated()),
    "one space": (reports.report(1), reports.evaluated(1)),
    "many": (reports.report(200, reports.AWKWARD + "{}"), reports.evaluated(20)),
    "awkward": (reports.report(2, reports.AWKWARD + "{}"), reports.evaluated(2, missing=True)),
}


@functools.cache
def drawn(case: str) -> dict:
    return plots.draw(*CASES[case])


def pixels(figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return np.asarray(Image.open(buffer).convert("L"))


@pytest.mark.parametrize("case", CASES)
def test_every_picture_is_drawn_and_not_blank(case: str) -> None:
    figures = drawn(case)
    assert tuple(figures) == plots.PICTURES
    for figure in figures.values():
        shades, counts = np.unique(pixels(figure), return_counts=True)
        assert len(shades) > 8  # in greyscale
        assert counts.max() < 0.99 * counts.sum()


def texts(figure) -> Iterator:
    """What is written outside the data: tick labels, titles, axis labels."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high and tick.label1.get_text():
                    yield tick.label1
            yield axis.label
        yield axes.title
        yield axes._left_title
    yield from (t for legend in figure.legends for t in legend.get_texts())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", plots.PICTURES)
def test_no_text_overlaps_another_or_leaves_the_picture(case: str, name: str) -> None:
    figure = drawn(case)[name]
    FigureCanvasAgg(figure).draw()
    written = [t for t in texts(figure) if t.get_text() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in written]
    assert boxes
    width, height = figure.bbox.size
    for text, box in boxes:
        assert box.x0 > -1, text
        assert box.y0 > -1, text
        assert box.x1 < width + 1, text
        assert box.y1 < height + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, along) < 1, f"{one!r} over {other!r}"


def test_what_would_be_empty_is_left_out() -> None:
    assert plots.draw(reports.report(missing=True)) == {}
    assert list(plots.draw(reports.report())) == list(plots.PICTURES[2:])
    assert plots.draw(reports.report(0, missing=True)) == {}


def test_heat_map_has_the_mean_correlations_over_depth() -> None:
    made = reports.report(2)
    heat, line = plots.draw(made)["correlations"].axes[:2]
    image = heat.images[0].get_array()
    for i, space in enumerate(made.spaces):
        rows = np.array(space.correlations)
        assert set(np.round(image[:, i], 12)) == set(np.round(rows.mean(0), 12))
        assert (np.diff(image[:, i]) <= 0).all()  # best first, on top
    found = {drawn.get_label(): drawn.get_ydata() for drawn in line.lines}
    expected = {
        "mean correlation": [s.mean_correlation for s in made.spaces],
        "R2 by the best linear map": [s.mean_explained for s in made.spaces],
        "R2 by the map used": [s.mean_explained_by_map for s in made.spaces],
    }
    assert list(found) == list(expected)
    for label, values in expected.items():
        np.testing.assert_allclose(found[label], values, rtol=1e-12)
    styles = {(drawn.get_linestyle(), drawn.get_marker()) for drawn in line.lines}
    assert len(styles) == 3  # told apart without colour


def test_r2_is_drawn_without_correlations() -> None:
    made = reports.report(3)
    made.spaces[:] = [
        dataclasses.replace(space, correlations=[[], []], explained_by_map=[-7.0, 0.5])
        for space in made.spaces
    ]
    figure = plots.draw(made)["correlations"]
    (line,) = figure.axes
    assert len(line.lines) == 2
    assert -1.1 < line.get_ylim()[0] < -1  # a map that is far off leaves room for the rest


def test_bars_and_lines_show_the_numbers() -> None:
    scores = reports.evaluated()
    figures = plots.draw(reports.report(), scores)
    metric, loss = figures["comparison"].axes
    rows = [*scores.models, scores.ensemble, *scores.merged]
    assert [bar.get_width() for bar in metric.patches] == [row.metric for row in rows if row]
    assert [bar.get_width() for bar in loss.patches] == [row.loss for row in rows if row]
    lines = figures["barriers"].axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [
        list(b.metric) for b in scores.barriers.values()
    ]
    styles = {(line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(styles) == len(lines)  # told apart without colour
    seconds, memory = figures["resources"].axes
    assert [bar.get_width() for bar in seconds.patches] == [2.5, 0.0]
    assert [bar.get_width() for bar in memory.patches] == [1024, 2048]


def test_fills_are_ordered_by_luminance() -> None:
    from matplotlib.colors import to_rgb

    from ccamerge.reporting.plots.style import DARK, LIGHT, MIDDLE

    grey = [np.dot(to_rgb(c), (0.299, 0.587, 0.114)) for c in (DARK, MIDDLE, LIGHT)]
    assert min(np.diff(grey)) > 0.15


@pytest.fixture(scope="module")
def result() -> ccamerge.MergeResult:
    torch.manual_seed(0)
    models = [M.randomise(M.MLP(), s) for s in range(2)]
    return ccamerge.merge(models, [torch.randn(64, 12)], progress=False)


def test_plot_of_a_result(result: ccamerge.MergeResult, tmp_path) -> None:
    figures = result.plot(tmp_path / "made")
    assert set(figures) == {"correlations", "conditioning", "repair", "resources"}
    assert {p.stem for p in (tmp_path / "made").iterdir()} == set(figures)
    for path in (tmp_path / "made").iterdir():
        assert len(np.unique(np.asarray(Image.open(path).convert("L")))) > 8
    assert set(result.plot()) == set(figures)


def test_memory_is_the_largest_so_far(result: ccamerge.MergeResult) -> None:
    peaks = list(result.report.peak_bytes.values())
    assert list(result.report.peak_bytes) == list(result.report.seconds)
    assert peaks == sorted(peaks)
    assert 50 << 20 < peaks[0] < 1 << 40  # torch alone takes more than 50 MiB


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'ccamerge\[plots\]'"):
        plots.draw(reports.report())


@pytest.mark.parametrize("method", ["cca", "permutation", "average"])
def test_maps_are_called_approximate_where_they_are(method: str) -> None:
    models = [M.randomise(M.MLP(), s) for s in range(2)]
    found = ccamerge.merge(models, [torch.randn(64, 12)], method=method, progress=False)
    for space in found.report.spaces:
        assert bool(space.approximate) == (method == "cca"), space
        if method == "cca":
            assert space.exact in space.approximate
