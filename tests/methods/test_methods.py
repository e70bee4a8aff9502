"""What holds for all methods; each has a file of tests of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ccamerge
from ccamerge.methods import METHODS
from tests import models as M
from tests.problems import alignment_of, features, forward, moments_of, solve

ON_FEATURES = [name for name in METHODS if name != "weight_matching"]


@pytest.mark.parametrize("method", ["permutation", "signed_permutation", "cca", "ot", "zipit"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_permuted_copy_is_recovered(method: str, seed: int) -> None:
    x = features(seed=seed)
    order = np.random.default_rng(seed + 1).permutation(12)
    solution = solve(method, x, x[:, order], ridge=1e-6 if method == "cca" else None)
    expected = np.eye(12)[order]  # own feature j is reference feature order[j]
    np.testing.assert_allclose(forward(solution), expected, atol=1e-5)
    assert solution.correlations is not None
    assert (np.diff(solution.correlations) <= 0).all()
    assert solution.correlations[0] <= 1 + 1e-12
    if method != "cca":  # the ridge lowers CCA's where the variance is small
        np.testing.assert_allclose(solution.correlations, 1.0, atol=1e-9)


@pytest.mark.parametrize("method", ["procrustes", "cca"])
def test_a_rotated_copy_is_recovered(method: str) -> None:
    x = features()
    q = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0]
    # For any ridge: a rotation carries trace and identity over.
    for ridge in (1e-8, 1e-2, 1e2):
        solution = solve(method, x, x @ q, ridge=ridge)
        condition = np.linalg.cond(moments_of(x, x).cov(0))
        np.testing.assert_allclose(forward(solution), q.T, atol=condition * 1e-13)


@pytest.mark.parametrize(
    "method", ["cca", "permutation", "signed_permutation", "procrustes", "average", "ot"]
)
def test_the_map_and_its_inverse(method: str) -> None:
    solution = solve(method, features(seed=3), features(seed=4), ridge=0.01)
    product = forward(solution) @ solution.feature_map.inverse.numpy()
    np.testing.assert_allclose(product, np.eye(12), atol=1e-9)


@pytest.mark.parametrize("method", ["cca", "permutation", "signed_permutation", "procrustes", "ot"])
def test_dead_units_are_matched_with_dead_units(method: str) -> None:
    """A mixture of dead and living units, or of dead ones with signs, could wake them up."""
    x = features()
    x[:, [3, 7]] = 0.0
    order = np.random.default_rng(3).permutation(12)
    y = x[:, order]
    found = forward(solve(method, x, y, ridge=0.01))
    dead = np.flatnonzero((y == 0).all(0))
    alive = np.flatnonzero((y != 0).any(0))
    np.testing.assert_allclose(found[np.ix_(dead, [0, 1, 2, 4, 5, 6, 8, 9, 10, 11])], 0, atol=1e-9)
    np.testing.assert_allclose(found[np.ix_(alive, [3, 7])], 0, atol=1e-9)
    block = found[np.ix_(dead, [3, 7])]
    np.testing.assert_allclose(np.sort(block.ravel()), [0, 0, 1, 1], atol=1e-9)


@pytest.mark.parametrize("method", ON_FEATURES)
@pytest.mark.parametrize("reference", [0, 1, 2])
def test_maps_are_finite_float64_and_the_reference_keeps_its_basis(
    method: str, reference: int
) -> None:
    of_models = [features(seed=s) for s in range(3)]
    of_models[1][:, 4] = 0.0
    of_models[2][:, [2, 5]] = 3.0
    alignment = alignment_of(*of_models, reference=reference, ridge=0.1)
    row = METHODS[method].solve(alignment)["test"]
    assert len(row) == 3
    for solution in row:
        for matrix in (solution.feature_map.forward, solution.feature_map.inverse):
            assert matrix.shape == (12, 12)
            assert matrix.dtype == torch.float64
            assert torch.isfinite(matrix).all()
    if method != "zipit":
        assert torch.equal(row[reference].feature_map.forward, torch.eye(12).double())


@pytest.mark.parametrize("method", METHODS)
def test_permutation_spaces_get_permutations_from_every_method(method: str) -> None:
    models = [M.randomise(M.NormedMLP(), s) for s in range(2)]
    result = ccamerge.merge(models, [torch.randn(64, 12)], method=method, progress=False)
    for row in result.maps.values():
        assert set(row[1].forward.flatten().tolist()) == {0.0, 1.0}
