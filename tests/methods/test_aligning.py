"""Which method aligns which space, and what is asked of methods of the user's own."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

import ccamerge
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import PERMUTATION, SIGNED_PERMUTATION
from ccamerge.graph.networks.inspection import spaces
from ccamerge.methods import METHODS, Alignment, Solution, Solutions, register
from ccamerge.methods.alignment import methods_of, pairs_needed
from tests import models as M


@pytest.fixture
def reverse(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A method of the user's, "reverse"; the list has what each call was given."""
    monkeypatch.setitem(METHODS, "reverse", METHODS["average"])  # removed again after the test
    seen: list[Any] = []

    @register("reverse", regularised=True)
    def reverse(alignment: Alignment, *, times: int = 1) -> Solutions:
        seen.append((dict(alignment.ridges), alignment.reference, times))
        solutions = alignment.identities()
        for space in alignment.spaces:
            backwards = FeatureMap.permutation(range(space.size - 1, -1, -1))
            solutions[space.name][1] = Solution(backwards, None, {"note": 1})
        return solutions

    return seen


def _merge(**given: Any) -> ccamerge.MergeResult:
    models = [M.randomise(M.MLP(), s) for s in range(2)]
    return ccamerge.merge(models, [torch.randn(16, 12)], progress=False, **given)


def test_a_registered_method_is_merged_with(reverse: list[Any]) -> None:
    merge = functools.partial(_merge, method="reverse")
    result = merge(ridge=0.5, options={"times": 3})
    assert reverse == [({"layers.0": 0.5, "layers.1": 0.5}, 0, 3)]
    assert torch.equal(result.maps["layers.0"][1].forward, torch.eye(16).double().flip(0))
    assert result.report.spaces[0].details == [{"note": 1}]
    assert result.report.spaces[0].mean_correlation != result.report.spaces[0].mean_correlation
    assert "reverse" in str(result.report)
    with pytest.raises(ValueError, match=r"options: 'tims' is not known to 'reverse'.*times"):
        merge(options={"tims": 3})
    with pytest.raises(ValueError, match=r"mode 'universe' is not for method 'reverse'"):
        merge(mode="universe")


def test_a_registered_method_for_some_spaces(reverse: list[Any]) -> None:
    result = _merge(method={"*.1": "reverse"})
    assert reverse == [({"layers.0": 0.3, "layers.1": 0.3}, 0, 1)]
    assert result.aligned.methods == {"layers.0": "cca", "layers.1": "reverse"}
    assert torch.equal(result.maps["layers.1"][1].forward, torch.eye(16).double().flip(0))


def _good() -> Solution:
    return Solution(FeatureMap.identity(16))


def _of(forward: Any, inverse: Any = None) -> Solution:
    eye = torch.eye(16, dtype=torch.float64)
    return Solution(FeatureMap(forward, eye if inverse is None else inverse))


def _without_finite() -> torch.Tensor:
    matrix = torch.eye(16, dtype=torch.float64)
    matrix[3, 2] = torch.nan
    return matrix


WHERE = "method 'wrong', space 'layers.0'"


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (None, ValueError, f"{WHERE}: missing in what the method returned"),
        (3, TypeError, f"{WHERE}: expected a list of Solution, one for each model, got 3"),
        ([1, 2], TypeError, rf"{WHERE}: expected a list of Solution.* got \[1, 2\]"),
        ([_good()], ValueError, f"{WHERE}: expected 2 solutions, one for each model, got 1"),
        (
            [_good(), _of(torch.eye(15).double())],
            ValueError,
            rf"{WHERE}, models\[1\]: forward is float64 \(15, 15\), not float64 \(16, 16\)",
        ),
        (
            [_good(), _of(torch.eye(16))],
            ValueError,
            rf"{WHERE}, models\[1\]: forward is float32 \(16, 16\), not float64 \(16, 16\)",
        ),
        (
            [_of(torch.eye(16).double(), torch.ones(16).double()), _good()],
            ValueError,
            rf"{WHERE}, models\[0\]: inverse is float64 \(16,\), not float64 \(16, 16\)",
        ),
        (
            [_good(), _of(_without_finite())],
            ValueError,
            rf"{WHERE}, models\[1\]: forward is not finite",
        ),
    ],
)
def test_what_a_wrong_method_returned_is_said(
    monkeypatch: pytest.MonkeyPatch, row: Any, error: type[Exception], message: str
) -> None:
    monkeypatch.setitem(METHODS, "wrong", METHODS["average"])

    @register("wrong")
    def wrong(alignment: Alignment) -> Solutions:
        found: dict[str, Any] = dict(alignment.identities())
        del found["layers.0"]
        return found if row is None else {**found, "layers.0": row}

    with pytest.raises(error, match=message):
        _merge(method="wrong")


def test_a_method_that_returns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "wrong", METHODS["average"])
    register("wrong")(lambda alignment: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="method 'wrong' must return a dict by space, got NoneType"):
        _merge(method="wrong")


def test_methods_by_patterns() -> None:
    found = spaces(M.DepthwiseSeparable(), torch.randn(2, 3, 8, 8)).spaces
    assert {s.name for s in found} == {"stem.0", "expand.0"}  # the second carries permutations only
    names = lambda choice: {k: m.name for k, m in methods_of(choice, found, "reference").items()}  # noqa: E731
    assert names("procrustes") == {"stem.0": "procrustes", "expand.0": "permutation"}
    assert names({"stem*": "zipit"}) == {"stem.0": "zipit", "expand.0": "permutation"}
    assert names({"*": "average"}) == {"stem.0": "average", "expand.0": "average"}
    assert names({"e*": "weight_matching", "*": "ot"}) == {
        "stem.0": "ot",
        "expand.0": "weight_matching",
    }
    with pytest.raises(
        ValueError, match=r"method: 'stm\*' matches no space; did you mean 'stem.0'"
    ):
        names({"stm*": "cca"})
    with pytest.raises(ValueError, match=r"method must be one of .*; got 'acc'"):
        names({"stem*": "acc"})


@pytest.mark.parametrize(
    ("method", "mode", "expected"),
    [
        ("cca", "reference", "signed_permutation"),
        ("procrustes", "reference", "signed_permutation"),
        ("signed_permutation", "reference", "signed_permutation"),
        ("ot", "reference", "permutation"),
        ("permutation", "reference", "permutation"),
        ("average", "reference", "average"),
        ("cca", "universe", "permutation"),  # which signed permutations do not know
    ],
)
def test_what_rotates_changes_signs_where_no_more_is_exact(
    method: str, mode: Any, expected: str
) -> None:
    space = spaces(M.MLP(), torch.randn(2, 12)).spaces[0]
    signed = dataclasses.replace(space, group=SIGNED_PERMUTATION)
    permuted = dataclasses.replace(space, group=PERMUTATION)
    assert methods_of(method, [signed], mode)[space.name].name == expected
    smaller = "average" if method == "average" else "permutation"
    if mode == "reference":
        assert methods_of(method, [permuted], mode)[space.name].name == smaller


def test_which_moments_a_choice_needs() -> None:
    assert pairs_needed("cca", "reference") == "reference"
    assert pairs_needed("cca", "universe") == "all"
    assert pairs_needed({"a": "cca", "b": "zipit"}, "reference") == "all"


def test_options_go_to_the_methods_that_know_them() -> None:
    method = {"layers.0": "zipit", "layers.1": "ot"}
    plain = _merge(method=method)
    result = _merge(method=method, options={"entropy": 0.5, "beta": 1.0})
    assert (plain.maps["layers.1"][1].forward != result.maps["layers.1"][1].forward).any()
    with pytest.raises(
        ValueError, match="'alhpa' is not known to 'zipit', 'ot'; known: alpha, beta"
    ):
        _merge(method=method, options={"alhpa": 1})
