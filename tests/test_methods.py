from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ccamerge
from ccamerge.apply import FeatureMap
from ccamerge.graph.spaces import Group, Space
from ccamerge.methods import METHODS, Alignment, Solution, Solutions, register
from ccamerge.moments import Moments
from tests import models as M

Array = np.ndarray[Any, Any]


def _features(n: int = 400, d: int = 12, seed: int = 0) -> Array:
    """Correlated features of various scales, in float64."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * np.geomspace(0.1, 10, d)


def _moments(*features: Array) -> Moments:
    moments = Moments([x.shape[1] for x in features], pairs="all")
    moments.update(list(features))
    return moments


def _solve(
    method: str, x: Array, y: Array, *, ridge: float | None = None, gamma: float | None = None
) -> Solution:
    """The second model's map to the first, in one space."""
    space = Space("test", x.shape[1], Group.GENERAL, "", (), (), ())
    ridges = {} if ridge is None else {"test": ridge}
    alignment = Alignment(
        [space], {"test": _moments(x, y)}, [{}, {}], 0, "reference", ridges, gamma
    )
    first, second = METHODS[method].solve(alignment)["test"]
    assert torch.equal(first.feature_map.forward, torch.eye(x.shape[1]).double())
    return second


def _forward(solution: Solution) -> Array:
    return solution.feature_map.forward.numpy()


@pytest.mark.parametrize("method", ["permutation", "cca"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_permuted_copy_is_recovered(method: str, seed: int) -> None:
    x = _features(seed=seed)
    order = np.random.default_rng(seed + 1).permutation(12)
    solution = _solve(method, x, x[:, order], ridge=1e-6 if method == "cca" else None)
    expected = np.eye(12)[order]  # own feature j is reference feature order[j]
    np.testing.assert_allclose(_forward(solution), expected, atol=1e-5)
    assert solution.correlations is not None
    assert (np.diff(solution.correlations) <= 0).all()
    assert solution.correlations[0] <= 1 + 1e-12
    if method == "permutation":  # the ridge lowers CCA's where the variance is small
        np.testing.assert_allclose(solution.correlations, 1.0, atol=1e-9)


@pytest.mark.parametrize("method", ["procrustes", "cca"])
def test_a_rotated_copy_is_recovered(method: str) -> None:
    x = _features()
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0]
    # For any ridge: a rotation carries trace and identity over.
    for ridge in (1e-8, 1e-2, 1e2):
        solution = _solve(method, x, x @ q, ridge=ridge)
        condition = np.linalg.cond(_moments(x, x).cov(0))
        np.testing.assert_allclose(_forward(solution), q.T, atol=condition * 1e-13)


def test_cca_recovers_any_invertible_copy_without_a_ridge() -> None:
    x = _features()
    a = np.random.default_rng(2).standard_normal((12, 12)) + 3 * np.eye(12)
    solution = _solve("cca", x, x @ a, gamma=0.0)
    inverse = np.linalg.inv(a)
    np.testing.assert_allclose(_forward(solution), inverse, atol=1e-7 * np.abs(inverse).max())
    np.testing.assert_allclose(solution.feature_map.inverse.numpy(), a, atol=1e-7)
    np.testing.assert_allclose(solution.correlations, 1.0, atol=1e-9)


def test_cca_tends_to_procrustes_for_a_large_ridge() -> None:
    x, y = _features(seed=0), _features(seed=1) * 0.3 + _features(seed=0)
    cca = _forward(_solve("cca", x, y, gamma=1e12))
    np.testing.assert_allclose(cca, _forward(_solve("procrustes", x, y)), atol=1e-6)


def test_gamma_and_ridge_mean_the_same_thing() -> None:
    x = _features()
    y = x[:, ::-1] + 0.1 * _features(seed=5)
    gamma = 0.01
    moments = _moments(x, y)
    ridges = [gamma * 12 / np.trace(moments.cov(i)) for i in (0, 1)]
    scale = np.sqrt(ridges[1] / ridges[0])  # own features rescaled to make both ridges equal
    by_gamma = _forward(_solve("cca", x, y * scale, gamma=gamma))
    own = np.trace(_moments(x, y * scale).cov(1))
    assert own * ridges[0] / 12 == pytest.approx(gamma, rel=1e-9)
    by_ridge = _forward(_solve("cca", x, y * scale, ridge=ridges[0]))
    np.testing.assert_allclose(by_gamma, by_ridge, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["cca", "permutation", "procrustes", "average"])
def test_the_map_and_its_inverse(method: str) -> None:
    solution = _solve(method, _features(seed=3), _features(seed=4), ridge=0.01)
    product = _forward(solution) @ solution.feature_map.inverse.numpy()
    np.testing.assert_allclose(product, np.eye(12), atol=1e-9)


@pytest.mark.parametrize("method", ["cca", "permutation"])
def test_dead_units_are_matched_with_dead_units(method: str) -> None:
    """A mixture of dead and living units, or of dead ones with signs, could wake them up."""
    x = _features()
    x[:, [3, 7]] = 0.0
    order = np.random.default_rng(3).permutation(12)
    y = x[:, order]
    forward = _forward(_solve(method, x, y, ridge=0.01))
    dead = np.flatnonzero((y == 0).all(0))
    alive = np.flatnonzero((y != 0).any(0))
    np.testing.assert_allclose(
        forward[np.ix_(dead, [0, 1, 2, 4, 5, 6, 8, 9, 10, 11])], 0, atol=1e-9
    )
    np.testing.assert_allclose(forward[np.ix_(alive, [3, 7])], 0, atol=1e-9)
    assert np.linalg.det(forward[np.ix_(dead, [3, 7])]) ** 2 == pytest.approx(1.0)
    block = forward[np.ix_(dead, [3, 7])]
    np.testing.assert_allclose(np.sort(block.ravel()), [0, 0, 1, 1], atol=1e-9)


def test_permutation_maximises_the_sum_of_correlations() -> None:
    """Against every permutation of six features."""
    import itertools

    x, y = _features(d=6, seed=5), _features(d=6, seed=6) + _features(d=6, seed=5)[:, ::-1]
    correlation = np.corrcoef(x.T, y.T)[:6, 6:]
    best = max(correlation[range(6), list(p)].sum() for p in itertools.permutations(range(6)))
    forward = _forward(_solve("permutation", x, y))
    assert (correlation * forward.T).sum() == pytest.approx(best)
    assert set(forward.ravel()) == {0.0, 1.0}


def test_procrustes_is_the_best_rotation() -> None:
    x, y = _features(seed=7), _features(seed=8)
    cross = _moments(x, y).cov(0, 1)
    forward = _forward(_solve("procrustes", x, y))
    np.testing.assert_allclose(forward.T @ forward, np.eye(12), atol=1e-12)
    best = np.linalg.svd(cross, compute_uv=False).sum()
    assert np.trace(cross @ forward) == pytest.approx(best, rel=1e-10)


def test_an_ill_conditioned_space_is_named_with_its_cure() -> None:
    x = _features()
    x[:, 1] = x[:, 0]
    named = r"raise gamma.*problems\[0\] is space 'test', models\[1\]"
    with pytest.raises(np.linalg.LinAlgError, match=named):
        _solve("cca", x, x, gamma=0.0)


def test_a_registered_method_is_merged_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "reverse", METHODS["average"])  # removed again after the test
    seen: list[Any] = []

    @register("reverse")
    def reverse(alignment: Alignment, *, times: int = 1) -> Solutions:
        seen.append((dict(alignment.ridges), alignment.reference, times))
        solutions = alignment.identities()
        for space in alignment.spaces:
            backwards = FeatureMap.permutation(range(space.size - 1, -1, -1))
            solutions[space.name][1] = Solution(backwards, None, {"note": 1})
        return solutions

    models = [M.randomise(M.MLP(), s) for s in range(2)]
    merge = functools.partial(
        ccamerge.merge, models, [torch.randn(16, 12)], method="reverse", progress=False
    )
    result = merge(ridge=0.5, options={"times": 3})
    assert seen == [({"layers.0": 0.5, "layers.1": 0.5}, 0, 3)]
    assert torch.equal(result.maps["layers.0"][1].forward, torch.eye(16).double().flip(0))
    assert result.report.spaces[0].details == [{"note": 1}]
    assert result.report.spaces[0].mean_correlation != result.report.spaces[0].mean_correlation
    assert "reverse" in str(result.report)
    with pytest.raises(ValueError, match=r"options: 'tims' is not known to 'reverse'.*times"):
        merge(options={"tims": 3})
    with pytest.raises(ValueError, match=r"mode 'universe' is not for method 'reverse'"):
        merge(mode="universe")


def test_permutation_spaces_get_permutations_from_every_method() -> None:
    models = [M.randomise(M.NormedMLP(), s) for s in range(2)]
    result = ccamerge.merge(models, [torch.randn(64, 12)], method="cca", progress=False)
    for row in result.maps.values():
        assert set(row[1].forward.flatten().tolist()) == {0.0, 1.0}
