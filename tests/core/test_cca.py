from __future__ import annotations

import numpy as np
import pytest

from tests.problems import Array, features, forward, moments_of, related, solve


def _power(matrix: Array, exponent: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


@pytest.mark.parametrize("ridge", [0.0, 0.1, 3.0])
def test_parity_with_the_published_map(ridge: float) -> None:
    """``C_i^{-1/2} V U^T C_r^{1/2}`` from singular vectors of the whitened cross-covariance."""
    x, y = related(2, d=8)
    moments = moments_of(x, y)
    a, b = (moments.cov(i) + ridge * np.trace(moments.cov(i)) / 8 * np.eye(8) for i in (0, 1))
    u, rho, vt = np.linalg.svd(_power(a, -0.5) @ moments.cov(0, 1) @ _power(b, -0.5))
    expected = _power(b, -0.5) @ vt.T @ u.T @ _power(a, 0.5)
    solution = solve("cca", x, y, ridge=ridge)
    tolerance = 1e-13 * np.sqrt(np.linalg.cond(a) * np.linalg.cond(b)) / rho[-1]
    np.testing.assert_allclose(forward(solution), expected, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(solution.correlations, rho, atol=tolerance)


def test_cca_recovers_any_invertible_copy_without_a_ridge() -> None:
    x = features()
    a = np.random.default_rng(2).standard_normal((12, 12)) + 3 * np.eye(12)
    solution = solve("cca", x, x @ a, gamma=0.0)
    inverse = np.linalg.inv(a)
    np.testing.assert_allclose(forward(solution), inverse, atol=1e-7 * np.abs(inverse).max())
    np.testing.assert_allclose(solution.feature_map.inverse.numpy(), a, atol=1e-7)
    np.testing.assert_allclose(solution.correlations, 1.0, atol=1e-9)


def test_cca_tends_to_procrustes_for_a_large_ridge() -> None:
    x, y = features(seed=0), features(seed=1) * 0.3 + features(seed=0)
    cca = forward(solve("cca", x, y, gamma=1e12))
    np.testing.assert_allclose(cca, forward(solve("procrustes", x, y)), atol=1e-6)


def test_gamma_and_ridge_mean_the_same_thing() -> None:
    x = features()
    y = x[:, ::-1] + 0.1 * features(seed=5)
    gamma = 0.01
    moments = moments_of(x, y)
    ridges = [gamma * 12 / np.trace(moments.cov(i)) for i in (0, 1)]
    scale = np.sqrt(ridges[1] / ridges[0])  # own features rescaled to make both ridges equal
    by_gamma = forward(solve("cca", x, y * scale, gamma=gamma))
    own = np.trace(moments_of(x, y * scale).cov(1))
    assert own * ridges[0] / 12 == pytest.approx(gamma, rel=1e-9)
    by_ridge = forward(solve("cca", x, y * scale, ridge=ridges[0]))
    np.testing.assert_allclose(by_gamma, by_ridge, rtol=1e-7, atol=1e-9)


def test_an_ill_conditioned_space_is_named_with_its_cure() -> None:
    x = features()
    x[:, 1] = x[:, 0]
    named = r"raise gamma.*problems\[0\] is space 'test', models\[1\]"
    with pytest.raises(np.linalg.LinAlgError, match=named):
        solve("cca", x, x, gamma=0.0)
