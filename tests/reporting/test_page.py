from __future__ import annotations

import base64
import functools
import io
import math
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from ccamerge.reporting import plots
from ccamerge.reporting.page import to_html
from ccamerge.reporting.run_folder import Record
from tests import reports

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
Image = pytest.importorskip("PIL.Image")

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Its text, pictures and links; raises AssertionError if a tag is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data
            assert "@import" not in data
            return
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def record(report=None, evaluated=None) -> Record:
    return Record(
        {"ccamerge": "9.9", "torch": "8.8"},
        {"merge_method": "cca", "note": "<script>alert(1)</script>"},
        [{"path": f"run&{i}.pt", "sha256": f"{i:064x}", "weight": 0.25} for i in range(3)],
        report or reports.report(),
        evaluated,
    )


@functools.cache
def page(case: str) -> Page:
    made = CASES[case]
    return Page(to_html(made, plots.draw(made.report, made.evaluated)))


CASES = {
    "usual": record(evaluated=reports.evaluated()),
    "no evaluation": record(),
    "nothing": record(reports.report(missing=True)),
    "no spaces": record(reports.report(0, missing=True)),
    "awkward": record(
        reports.report(2, reports.AWKWARD + "{}"), reports.evaluated(2, missing=True)
    ),
    "many": record(reports.report(200)),
}


@pytest.mark.parametrize("case", CASES)
def test_needs_no_network_and_no_scripts(case: str) -> None:
    found = page(case)
    assert all(link.startswith("data:image/png;base64,") for link in found.links)
    assert not {"script", "link", "iframe", "object", "base"} & set(found.tags)


@pytest.mark.parametrize("case", CASES)
def test_pictures_decode_and_show_something(case: str) -> None:
    found = page(case)
    counts = {"nothing": 0, "no spaces": 0, "no evaluation": 4, "many": 4}
    assert len(found.images) == counts.get(case, len(plots.PICTURES))
    for image in found.images:
        data = base64.b64decode(image["src"].partition(",")[2], validate=True)
        grey = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert len(np.unique(grey)) > 8
        assert image["alt"].startswith("Picture: ")
    assert len({image["alt"] for image in found.images}) == len(found.images)


@pytest.mark.parametrize("case", CASES)
def test_every_name_number_and_reason_is_there(case: str) -> None:
    made = CASES[case]
    found = page(case)
    for space in made.report.spaces:
        assert space.name in found.cells
        row = found.cells[found.cells.index(space.name) :][:10]
        assert row[1:3] == [str(space.size), space.method]
        assert row[3] == ("" if space.ridge is None else f"{space.ridge:.4g}")
        means = (space.mean_explained, space.mean_explained_by_map, space.mean_correlation)
        assert row[4:7] == ["" if math.isnan(mean) else f"{mean:.3f}" for mean in means]
        assert row[7] == (f"{space.condition:.1e}" if space.condition > 0 else "")
        exact = f"exact under {space.exact}"
        assert row[8] == (f"approximate: {space.approximate}" if space.approximate else exact)
        assert row[9] == "; ".join(space.notes)
    for name, why in made.report.fixed.items():
        assert found.cells[found.cells.index(name) + 1] == "; ".join(why)
    for axis, why in made.report.pinned.items():
        assert axis in found.cells[found.cells.index(why, found.cells.index("axes")) + 1]
    for r in made.report.repaired:
        row = found.cells[found.cells.index(r.tap) + 1 :]
        assert row[:2] == [f"{r.before:.1%}", f"{r.after:.1%}"]
    for f in made.report.fitted:
        assert found.cells[found.cells.index(f.tap) + 3] == f"{f.error:.1%}"
    for source in made.sources:
        assert source["sha256"] in found.cells
    assert "run&1.pt (reference)" in found.cells
    assert "torch 8.8" in found.text
    assert "<script>alert(1)</script>" in found.text  # as text
    assert "nan" not in " ".join(found.cells).lower().split()


def test_scores() -> None:
    found = page("usual")
    assert "On 77 samples; higher accuracy is better." in found.text
    place = found.cells.index("ensemble")
    assert found.cells[place : place + 5] == ["ensemble", "ensemble", "0.9500", "0.2000", ""]
    assert "0.8900" in found.cells


def test_says_what_is_absent() -> None:
    found = page("nothing")
    assert found.images == []
    for text in ("No evaluation", "No barriers", "give no correlations", "No tap was repaired"):
        assert text in found.text


def test_without_jinja2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"pip install 'ccamerge\[plots\]'"):
        to_html(CASES["nothing"], {})
