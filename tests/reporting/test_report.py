from __future__ import annotations

import json
import math

import pytest
import torch

import ccamerge
from ccamerge.reporting.report import Report, SpaceReport
from tests import models as M


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
        "correlation",
        "condition",
        "exact",
        "under",
    ]
    assert [line.split()[0] for line in lines[2:7]] == ["a", "a#2", "b", "b#2", "c"]
    assert lines[7].startswith("aligned: ")
    assert lines[8].startswith("not aligned: ")
    assert lines[9].startswith("repair: averaging kept ")
    assert lines[10].startswith("time: collect ")
    starts = {
        line.index(space.exact) for line, space in zip(lines[2:], report.spaces, strict=False)
    }
    assert len(starts) == 1  # columns are aligned


def test_markdown(report: Report) -> None:
    lines = report.to_markdown().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(report.spaces)
    assert {line.count("|") for line in table} == {7}
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
