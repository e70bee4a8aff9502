from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

import ccamerge
from ccamerge.reporting.report import Report, SpaceReport
from tests import models as M
from tests import reports


@pytest.fixture(scope="module")
def report() -> Report:
    torch.manual_seed(0)
    models = [M.randomise(M.GroupedConv(), s) for s in range(3)]
    data = [torch.randn(16, 3, 8, 8) for _ in range(2)]
    return ccamerge.merge(
        models, data, ridge=0.25, weights=[1, 2, 1], repair="variance", progress=False
    ).report


def test_settings_and_counts(report: Report) -> None:
    assert (report.method, report.mode, report.gamma) == ("cca", "reference", None)
    assert {space.ridge for space in report.spaces} == {0.25}
    assert (report.reference, report.weights, report.samples) == (0, [0.25, 0.5, 0.25], 32)
    assert set(report.seconds) == {"collect", "solve", "apply", "repair"}
    assert all(s >= 0 for s in report.seconds.values())
    assert [s.name for s in report.spaces] == ["a", "a#2", "b", "b#2", "c"]
    assert set(report.fixed) == {"fc", "a.input"}
    assert report.pinned["fc.weight axis 0"] == "network output"


def test_correlations_are_given_for_each_other_model(report: Report) -> None:
    for space in report.spaces:
        assert [len(row) for row in space.correlations] == [space.size] * 2
        for row in space.correlations:
            assert row == sorted(row, reverse=True)
            assert all(-1e-12 <= c <= 1 + 1e-12 for c in row)
        flat = [c for row in space.correlations for c in row]
        assert space.mean_correlation == pytest.approx(sum(flat) / len(flat))
        assert space.condition == max(d["condition"] for d in space.details)
        assert space.condition >= 1


def test_everything_is_plain_data(report: Report) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    again = json.loads(text)
    assert again["spaces"][0]["name"] == "a"
    assert again["repaired"][0].keys() == {"tap", "before", "after"}


def test_the_table(report: Report) -> None:
    lines = str(report).splitlines()
    assert lines[0].startswith(
        "3 models, method cca, ridge 0.25, mode reference, reference 0, norm fold"
    )
    assert lines[1].split() == [
        "space",
        "size",
        "method",
        "R2",
        "by",
        "map",
        "correlation",
        "condition",
        "exact",
        "under",
    ]
    assert [line.split()[0] for line in lines[2:7]] == ["a", "a#2", "b", "b#2", "c"]
    assert lines[7].startswith("aligned: ")
    assert lines[8].startswith("not aligned: ")
    assert lines[9].startswith("these models will hardly merge: ")
    assert lines[10].startswith("repair: averaging kept ")
    assert lines[11].startswith("time: collect ")
    starts = {
        line.index(space.exact) for line, space in zip(lines[2:], report.spaces, strict=False)
    }
    assert len(starts) == 1  # columns are aligned


def test_markdown(report: Report) -> None:
    lines = report.to_markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(report.spaces)
    assert {line.count("|") for line in table} == {9}
    assert "- `fc`: network output" in lines


def test_gamma_and_no_repair() -> None:
    models = [M.randomise(M.MLP(), s) for s in range(2)]
    data = [torch.randn(64, 12)]
    result = ccamerge.merge(models, data, gamma=0.1, repair="none", progress=False)
    assert "gamma 0.1" in str(result.report)
    assert {space.ridge for space in result.report.spaces} == {None}
    assert "repair:" not in str(result.report)
    assert "No repair." in result.report.to_markdown()


def test_methods_without_conditions_leave_the_cell_empty() -> None:
    space = SpaceReport("s", 4, "magic", None, "permutation", [], [[]], [{}], [4, 4])
    assert math.isnan(space.mean_correlation)
    assert math.isnan(space.condition)
    models = [M.randomise(M.MLP(), s) for s in range(2)]
    result = ccamerge.merge(models, [torch.randn(64, 12)], method="average", progress=False)
    assert "nan" not in str(result.report)


def _space(name: str, size: int, explained: list[float], by_map: list[float]) -> SpaceReport:
    return dataclasses.replace(
        SpaceReport(name, size, "cca", 0.3, "permutation", [], [[]], [{}], [size] * 3),
        explained=explained,
        explained_by_map=by_map,
    )


def test_how_alike_the_models_are() -> None:
    """In a column each, means over the models of which something is known."""
    unknown = _space("c", 500, [math.nan, math.nan], [])
    spaces = [
        _space("a", 10, [0.2, 0.4], [-1.5, 0.5]),
        _space("b", 30, [math.nan, 0.1], [0.1, 0.1]),
    ]
    made = dataclasses.replace(reports.report(), spaces=[*spaces, unknown])
    assert [s.mean_explained for s in spaces] == pytest.approx([0.3, 0.1])
    assert [s.mean_explained_by_map for s in spaces] == pytest.approx([-0.5, 0.1])
    assert math.isnan(unknown.mean_explained)
    assert math.isnan(unknown.mean_explained_by_map)
    rows = [line.split() for line in str(made).splitlines()[2:5]]
    assert [row[3:5] for row in rows[:2]] == [["0.300", "-0.500"], ["0.100", "0.100"]]
    assert rows[2][:4] == ["c", "500", "cca", "permutation"]
    assert "| a | 10 | cca | 0.300 | -0.500 |" in made.to_markdown()
    assert made.explained == pytest.approx((0.3 * 10 + 0.1 * 30) / 40)


@pytest.mark.parametrize("few", [False, True])
def test_models_that_are_unlike_are_named(few: bool) -> None:
    """Not by spaces of which too little was seen."""
    spaces = [_space("a", 10, [0.5], [0.1]), _space("b", 30, [0.1], [0.1])]
    made = dataclasses.replace(reports.report(), spaces=spaces, few={"b": 20} if few else {})
    line = (
        "these models will hardly merge: the others' features explain 20% of the variance of the "
        "reference's (R2, mean over spaces by size)"
    )
    assert (line in made.outcomes()) is not few
    assert made.explained == pytest.approx(0.5 if few else 0.2)


def test_nothing_is_said_where_nothing_is_known() -> None:
    made = dataclasses.replace(reports.report(), spaces=[_space("a", 10, [math.nan], [])])
    assert math.isnan(made.explained)
    assert made.unlike_line() is None
    assert dataclasses.replace(made, spaces=[]).unlike_line() is None
