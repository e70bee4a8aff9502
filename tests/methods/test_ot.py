"""Optimal transport beside an assignment, a linear programme and a plain Sinkhorn iteration."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog

from ccamerge.methods.base import AlignmentProblem
from ccamerge.methods.ot import distances, transport
from tests.problems import Array, features, forward, moments_of, related, solve


def _problem(x: Array, y: Array) -> AlignmentProblem:
    moments = moments_of(x, y)
    return AlignmentProblem("space 'test'", moments.cov(0), moments.cov(1), moments.cov(0, 1))


def _costs(x: Array, y: Array) -> Array:
    """Mean squared distances of centred features, sample by sample."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.array([[((a - b) ** 2).sum() / (len(x) - 1) for b in y.T] for a in x.T])


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_are_those_of_the_features(offset: float) -> None:
    x, y = related(2, d=7)
    # Cancellation: errors are those of moments with such means.
    found = distances(_problem(x + offset, y - offset))
    scale = moments_of(x, y).count / (len(x) - 1)  # whether moments divide by n or by n - 1
    np.testing.assert_allclose(found * scale, _costs(x, y), rtol=1e-9)


def test_standardised_distances() -> None:
    x, y = related(2, d=7)
    found = distances(_problem(x, y * np.geomspace(1e-3, 1e3, 7)), standardize=True)
    np.testing.assert_allclose(found, 2 - 2 * np.corrcoef(x.T, y.T)[:7, 7:], rtol=1e-9)
    y[:, 2] = 4.0  # constant: at distance 1 from all that vary, and 0 from what does not
    x[:, 5] = 0.0
    found = distances(_problem(x, y), standardize=True)
    np.testing.assert_allclose(np.delete(found[:, 2], 5), 1.0)
    assert found[5, 2] == 0.0


@given(seed=st.integers(0, 1000), standardize=st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_exact_plan_is_the_best_assignment(seed: int, standardize: bool) -> None:
    x, y = related(2, seed=seed)
    problem = _problem(x, y)
    solution = transport(problem, standardize=standardize)
    cost = distances(problem, standardize)
    expected = np.zeros((12, 12))
    rows, columns = linear_sum_assignment(cost)
    expected[columns, rows] = 1.0
    np.testing.assert_array_equal(forward(solution), expected)
    np.testing.assert_array_equal(solution.feature_map.inverse.numpy(), expected.T)


def test_the_exact_plan_between_other_widths_is_that_of_a_linear_programme() -> None:
    x, y = related(2, d=8)
    y = y[:, :5]
    problem = _problem(x, y)
    solution = transport(problem)
    cost = distances(problem)
    masses = np.vstack([np.kron(np.eye(8), np.ones(5)), np.kron(np.ones(8), np.eye(5))])
    totals = np.concatenate([np.full(8, 1 / 8), np.full(5, 1 / 5)])
    best = linprog(cost.ravel(), A_eq=masses, b_eq=totals)
    plan = forward(solution).T / 8  # (8, 5), rows weigh 1/8 each
    assert (cost * plan).sum() == pytest.approx(best.fun, rel=1e-9)
    np.testing.assert_allclose(plan.sum(0), 1 / 5, rtol=1e-12)
    np.testing.assert_allclose(forward(solution).sum(0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(solution.feature_map.inverse.numpy().sum(0), 1.0, rtol=1e-12)


def _sinkhorn(cost: Array, regulariser: float) -> Array:
    """Plain alternating scaling to uniform masses."""
    p, q = cost.shape
    kernel = np.exp(-cost / regulariser)
    u, v = np.ones(p), np.ones(q)
    for _ in range(20_000):
        u = 1 / p / (kernel @ v)
        v = 1 / q / (kernel.T @ u)
    return u[:, None] * kernel * v


@pytest.mark.parametrize("entropy", [0.05, 0.3, 3.0])
def test_the_entropic_plan_is_sinkhorns(entropy: float) -> None:
    problem = _problem(*related(2, d=6))
    cost = distances(problem)
    plan = _sinkhorn(cost, entropy * cost.mean())
    np.testing.assert_allclose(plan.sum(1), 1 / 6, rtol=1e-9)
    solution = transport(problem, entropy)
    # POT stops at an error of the masses of 1e-9.
    np.testing.assert_allclose(forward(solution), 6 * plan.T, atol=1e-7)
    np.testing.assert_allclose(solution.feature_map.inverse.numpy(), 6 * plan, atol=1e-7)


def test_the_entropic_plan_is_free_of_units_and_tends_to_the_exact_and_to_the_mean() -> None:
    x, y = related(2, d=6)
    by_unit = [forward(transport(_problem(x * u, y * u), 0.1)) for u in (1.0, 1e-4, 1e4)]
    np.testing.assert_allclose(by_unit[1], by_unit[0], atol=1e-8)
    np.testing.assert_allclose(by_unit[2], by_unit[0], atol=1e-8)
    np.testing.assert_allclose(forward(transport(_problem(x, y), 1e6)), 1 / 6, atol=1e-5)
    x, y = x, x[:, ::-1] + 0.01 * y  # well apart, so that a small entropy decides
    exact = forward(transport(_problem(x, y)))
    np.testing.assert_allclose(forward(transport(_problem(x, y), 0.01)), exact, atol=1e-6)


def test_features_that_all_are_dead() -> None:
    dead = np.zeros((50, 4))
    for entropy in (0.0, 0.5):
        found = forward(transport(_problem(dead, dead), entropy))
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found.sum(0), 1.0)


def test_large_variance_decides_unless_standardised() -> None:
    """The loudest feature takes its nearest; standardised, correlations do."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5000))
    x = np.stack([a, b], 1)
    y = np.stack([0.1 * a + 0.001 * b, 3 * (b + 0.5 * a)], 1)
    correlated = forward(solve("ot", x, y, standardize=True))
    np.testing.assert_array_equal(correlated, np.eye(2))


def test_a_plan_that_does_not_converge_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from ccamerge.methods import ot

    monkeypatch.setattr(ot, "_ITERATIONS", 11)
    x, y = related(2, d=6)
    with pytest.warns(RuntimeWarning, match="space 'test'.*after 11 iterations; a larger entropy"):
        transport(_problem(x, y), 0.002)


@pytest.mark.parametrize("entropy", [-0.1, float("nan"), float("inf")])
def test_an_entropy_that_makes_no_sense(entropy: float) -> None:
    x = features()
    with pytest.raises(ValueError, match="entropy must be a finite number >= 0"):
        solve("ot", x, x, entropy=entropy)


def test_without_pot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    x = features()
    with pytest.raises(ImportError, match=r"needs the package POT: pip install 'ccamerge\[ot\]'"):
        solve("ot", x, x)


def test_the_map_is_float64_and_contiguous() -> None:
    solution = solve("ot", *related(2), entropy=0.5)
    for matrix in (solution.feature_map.forward, solution.feature_map.inverse):
        assert matrix.dtype == torch.float64
        assert matrix.is_contiguous()
