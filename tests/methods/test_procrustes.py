from __future__ import annotations

import numpy as np
import pytest

from tests.problems import features, forward, moments_of, solve


def test_procrustes_is_the_best_rotation() -> None:
    x, y = features(seed=7), features(seed=8)
    cross = moments_of(x, y).cov(0, 1)
    found = forward(solve("procrustes", x, y))
    np.testing.assert_allclose(found.T @ found, np.eye(12), atol=1e-12)
    best = np.linalg.svd(cross, compute_uv=False).sum()
    assert np.trace(cross @ found) == pytest.approx(best, rel=1e-10)


def test_parity_with_schoenemanns_solution() -> None:
    """``V U^T`` of the cross-covariance of centred features, by singular vectors."""
    x, y = features(seed=7), features(seed=7) @ np.diag(np.arange(1.0, 13)) + features(seed=8)
    u, _, vt = np.linalg.svd((x - x.mean(0)).T @ (y - y.mean(0)))
    singular = np.linalg.svd(moments_of(x, y).cov(0, 1), compute_uv=False)
    tolerance = 1e-13 * singular[0] / singular[-1]  # the polar factor's condition
    np.testing.assert_allclose(forward(solve("procrustes", x, y)), (u @ vt).T, atol=tolerance)


def test_dead_units_do_not_mix_in_a_permuted_copy() -> None:
    """They leave the rotation undetermined: mixed with signs, a ReLU would let them pass."""
    for seed in range(20):
        for dead in ([3, 4, 5, 6], list(range(1, 11))):
            x = np.maximum(features(d=16, seed=seed), 0.0)
            x[:, dead] = 0.0
            y = x[:, np.random.default_rng(seed).permutation(16)]
            found = forward(solve("procrustes", x, y))
            np.testing.assert_allclose(found * (1 - found), 0.0, atol=1e-8)  # a permutation
            np.testing.assert_allclose(y @ found, x, atol=1e-7 * x.max())
