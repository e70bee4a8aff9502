"""Matching by correlation: two models, many to a reference, and many with cycle consistency."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import ccamerge
from ccamerge.methods import METHODS
from ccamerge.methods.base import AlignmentProblem
from ccamerge.methods.orders import best_order
from tests import models as M
from tests.problems import Array, alignment_of, correlation, features, forward, related, solve


def test_permutation_maximises_the_sum_of_correlations() -> None:
    """Against every permutation of six features."""
    x, y = features(d=6, seed=5), features(d=6, seed=6) + features(d=6, seed=5)[:, ::-1]
    matrix = correlation(x, y)
    best = max(matrix[range(6), list(p)].sum() for p in itertools.permutations(range(6)))
    found = forward(solve("permutation", x, y))
    assert (matrix * found.T).sum() == pytest.approx(best)
    assert set(found.ravel()) == {0.0, 1.0}


def test_constant_features_correlate_with_nothing() -> None:
    x = features(d=4)
    y = x.copy()
    y[:, 2] = 7.0
    covariance = np.cov(np.hstack([x, y]).T)
    problem = AlignmentProblem("", covariance[:4, :4], covariance[4:, 4:], covariance[:4, 4:])
    np.testing.assert_array_equal(best_order(problem), np.arange(4))


def _orders(found: list[ccamerge.methods.Solution]) -> list[Array]:
    """For each model the own feature that each reference feature gets."""
    orders = [forward(s).argmax(0) for s in found]
    for solution, order in zip(found, orders, strict=True):
        np.testing.assert_array_equal(forward(solution), np.eye(len(order))[:, order])
    return orders


def _objective(of_models: list[Array], orders: list[Array]) -> float:
    """The sum over all pairs of correlations of what is matched."""
    return sum(
        float(correlation(of_models[i][:, orders[i]], of_models[j][:, orders[j]]).trace())
        for i, j in itertools.combinations(range(len(of_models)), 2)
    )


@given(seed=st.integers(0, 1000), reference=st.integers(0, 2))
@settings(max_examples=10, deadline=None)
def test_every_model_is_matched_with_the_reference(seed: int, reference: int) -> None:
    of_models = related(3, d=7, seed=seed)
    alignment = alignment_of(*of_models, reference=reference)
    orders = _orders(METHODS["permutation"].solve(alignment)["test"])
    for i in range(3):
        matrix = correlation(of_models[reference], of_models[i])
        expected = linear_sum_assignment(matrix, maximize=True)[1]
        np.testing.assert_array_equal(orders[i], expected)


def _universe(of_models: list[Array], reference: int = 0) -> list[Array]:
    alignment = alignment_of(*of_models, reference=reference, mode="universe")
    return _orders(METHODS["permutation"].solve(alignment)["test"])


@given(seed=st.integers(0, 1000), count=st.integers(3, 5))
@settings(max_examples=15, deadline=None)
def test_the_universe_is_not_worse_and_cannot_be_improved_by_one_model(
    seed: int, count: int
) -> None:
    of_models = related(count, d=7, seed=seed)
    plain = _orders(METHODS["permutation"].solve(alignment_of(*of_models))["test"])
    orders = _universe(of_models)
    np.testing.assert_array_equal(orders[0], np.arange(7))  # the reference keeps its basis
    reached = _objective(of_models, orders)
    assert reached >= _objective(of_models, plain) - 1e-9
    for i in range(count):
        pull = sum(
            correlation(of_models[i], of_models[j][:, orders[j]]) for j in range(count) if j != i
        )
        assert isinstance(pull, np.ndarray)
        rows, columns = linear_sum_assignment(pull, maximize=True)
        own = float(pull[orders[i], np.arange(7)].sum())
        assert own == pytest.approx(float(pull[rows, columns].sum()), abs=1e-9)


def test_maps_of_the_universe_compose() -> None:
    """``T_ij T_jk = T_ik`` whatever the reference, where the universe has the same optimum."""
    base = features(d=8)
    rng = np.random.default_rng(0)
    shuffles = [rng.permutation(8) for _ in range(4)]
    of_models = [(base + 0.05 * rng.standard_normal(base.shape))[:, s] for s in shuffles]
    to = {}  # to[i, k] takes features of model i to those of model k
    for k in range(4):
        alignment = alignment_of(*of_models, reference=k, mode="universe")
        for i, solution in enumerate(METHODS["permutation"].solve(alignment)["test"]):
            to[i, k] = forward(solution)
    for i, j, k in itertools.product(range(4), repeat=3):
        np.testing.assert_array_equal(to[i, j] @ to[j, k], to[i, k])
    for i, k in itertools.product(range(4), repeat=2):
        expected = np.eye(8)[shuffles[i]] @ np.eye(8)[shuffles[k]].T
        np.testing.assert_array_equal(to[i, k], expected)


def test_matching_with_a_reference_does_not_compose() -> None:
    """What the universe is for: pairwise matchings contradict each other."""
    of_models = related(3, d=8, seed=3)
    to = {}
    for k in range(3):
        row = METHODS["permutation"].solve(alignment_of(*of_models, reference=k))["test"]
        for i, solution in enumerate(row):
            to[i, k] = forward(solution)
    assert (to[0, 1] @ to[1, 2] != to[0, 2]).any()


def test_the_universe_by_name() -> None:
    models = [M.randomise(M.MLP(), s) for s in range(3)]
    data = [torch.randn(64, 12) for _ in range(2)]
    result = ccamerge.merge(models, data, method="permutation", mode="universe", progress=False)
    assert result.report.mode == "universe"
    for row in result.maps.values():
        assert torch.equal(row[0].forward, torch.eye(16).double())
        for feature_map in row:
            assert set(feature_map.forward.flatten().tolist()) == {0.0, 1.0}
            assert torch.equal(feature_map.forward @ feature_map.inverse, torch.eye(16).double())


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_a_copy_with_other_signs_is_recovered(seed: int) -> None:
    rng = np.random.default_rng(seed + 1)
    x, order, signs = features(seed=seed), rng.permutation(12), rng.choice([-1.0, 1.0], 12)
    solution = solve("signed_permutation", x, x[:, order] * signs)
    expected = np.eye(12)[order] * signs[:, None]
    np.testing.assert_array_equal(forward(solution), expected)
    np.testing.assert_array_equal(solution.feature_map.inverse.numpy(), expected.T)
    assert solution.correlations is not None
    np.testing.assert_allclose(solution.correlations, 1.0, atol=1e-9)


def test_signed_permutation_maximises_the_sum_of_sizes() -> None:
    """Against every permutation of six features; what is matched correlates positively."""
    x, y = features(d=6, seed=5), features(d=6, seed=6) - features(d=6, seed=5)[:, ::-1]
    matrix = correlation(x, y)
    best = max(abs(matrix[range(6), list(p)]).sum() for p in itertools.permutations(range(6)))
    solution = solve("signed_permutation", x, y)
    found = forward(solution)
    assert (matrix * found.T).sum() == pytest.approx(best)
    assert (found < 0).any()
    assert solution.correlations is not None
    np.testing.assert_allclose(solution.correlations.sum(), best, rtol=1e-9)
    assert (solution.correlations >= 0).all()
    unsigned = forward(solve("permutation", x, y))
    assert (matrix * unsigned.T).sum() < best


def test_a_network_of_odd_functions_is_recovered_with_its_signs() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(5, 8), torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.b(torch.tanh(self.a(x)))
            return found

    model = M.randomise(Odd()).double()
    models = [model, copy.deepcopy(model)]
    order, signs = torch.randperm(8), torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    with torch.no_grad():
        first, second = models[1].a, models[1].b
        first.weight.copy_((signs[:, None] * first.weight)[order])
        first.bias.copy_((signs * first.bias)[order])
        second.weight.copy_((second.weight * signs)[:, order])
    x = torch.randn(64, 5, dtype=torch.float64)
    found = ccamerge.collect(models, [x], progress=False)
    for method, same in (("signed_permutation", True), ("permutation", False)):
        result = ccamerge.merge(
            models, statistics=found, method=method, repair="none", progress=False
        )
        assert torch.allclose(result.model(x), models[0](x), rtol=0, atol=1e-9) is same


def test_there_is_no_universe_of_signed_permutations() -> None:
    models = [M.randomise(M.MLP(), s) for s in range(3)]
    with pytest.raises(ValueError, match="mode 'universe' is not for method 'signed_permutation'"):
        ccamerge.merge(models, [torch.randn(64, 12)], method="signed_permutation", mode="universe")
