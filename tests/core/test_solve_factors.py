"""Polar factors, whitening and generalised eigenproblems."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends import (
    assert_equal,
    cca_batch,
    generalized_eigh,
    generalized_eigh_batch,
    polar,
    polar_batch,
    whiten,
)

pytestmark = pytest.mark.usefixtures("backend")

EPS = np.finfo(np.float64).eps


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def orthonormal(rng, m, n):
    return np.linalg.qr(rng.standard_normal((m, n)))[0]


def with_singular_values(rng, m, n, s):
    U, V = orthonormal(rng, m, len(s)), orthonormal(rng, n, len(s))
    return (U * s) @ V.T, U @ V.T


def departure(Q):
    m, n = Q.shape
    return np.linalg.norm((Q.T @ Q if m >= n else Q @ Q.T) - np.eye(min(m, n)), 2)


class TestPolar:
    @pytest.mark.parametrize(
        "smallest", [1.0, 0.3, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12]
    )
    @pytest.mark.parametrize(("m", "n"), [(100, 100), (130, 60), (60, 130)])
    def test_matches_the_svd(self, rng, m, n, smallest):
        A, expected = with_singular_values(rng, m, n, np.logspace(0, np.log10(smallest), min(m, n)))
        result = polar_batch([A])[0]
        # The factor's own condition number is the inverse of the smallest singular value, and the
        # Halley iteration's first weights cost a further factor of some hundred.
        assert np.abs(result.q - expected).max() < 300 * max(m, n) * EPS / max(smallest, 1e-4) + (
            300 * EPS / smallest
        )
        assert departure(result.q) < 1e-12
        assert result.rank == min(m, n)
        if smallest > 1e-6:
            assert result.method == "qdwh"
        if smallest < 1e-9:
            assert result.method == "svd"

    @settings(max_examples=60, deadline=None)
    @given(
        m=st.integers(1, 50),
        n=st.integers(1, 50),
        seed=st.integers(0, 2**32 - 1),
        exponent=st.integers(-300, 300),
    )
    def test_hermitian_factor_is_positive(self, m, n, seed, exponent):
        """A = QH with orthonormal Q and symmetric positive semidefinite H: no oracle needed."""
        A = np.random.default_rng(seed).standard_normal((m, n))
        Q = polar(np.ldexp(A, exponent))
        assert Q.shape == (m, n)
        H = Q.T @ A if m >= n else A @ Q.T
        size = np.linalg.norm(A)
        assert departure(Q) < 1e-12
        np.testing.assert_allclose(H, H.T, atol=1e-12 * size)
        assert np.linalg.eigvalsh((H + H.T) / 2)[0] > -1e-12 * size
        if m >= n:
            np.testing.assert_allclose(Q @ H, A, atol=1e-12 * size)

    @pytest.mark.parametrize(("m", "n", "rank"), [(40, 40, 33), (50, 30, 21), (30, 50, 0)])
    def test_null_spaces_are_joined_nearest_the_identity(self, rng, m, n, rank):
        A, _ = with_singular_values(rng, m, n, np.linspace(1, 2, rank))
        result = polar_batch([A])[0]
        assert result.rank == rank
        assert departure(result.q) < 1e-12
        U, _, Vt = np.linalg.svd(A)
        U2, V2 = U[:, rank:], Vt[rank:].T
        u, _, vt = np.linalg.svd(U2.T @ np.eye(m, n) @ V2, full_matrices=False)
        expected = U[:, :rank] @ Vt[:rank] + U2 @ u @ vt @ V2.T
        np.testing.assert_allclose(result.q, expected, atol=1e-10)

    @pytest.mark.parametrize(
        ("m", "n", "rows", "cols"),
        [(50, 50, [3], []), (50, 50, [], [4, 5, 6]), (60, 40, [1, 2], [2]), (40, 60, [], [0, 59])],
    )
    def test_zero_rows_and_columns(self, rng, m, n, rows, cols):
        A = rng.standard_normal((m, n))
        A[rows] = 0
        A[:, cols] = 0
        rank = min(m - len(rows), n - len(cols))
        result = polar_batch([A])[0]
        assert (result.rank, result.method) == (rank, "qdwh")
        U, _, Vt = np.linalg.svd(A)
        U2, V2 = U[:, rank:], Vt[rank:].T
        expected = U[:, :rank] @ Vt[:rank]
        if rank < min(m, n):
            u, _, vt = np.linalg.svd(U2.T @ np.eye(m, n) @ V2, full_matrices=False)
            expected = expected + U2 @ u @ vt @ V2.T
        np.testing.assert_allclose(result.q, expected, atol=1e-9)

    @pytest.mark.parametrize("tall", [True, False])
    @pytest.mark.parametrize("rank", [0, 1, 2])
    def test_memory_of_a_deficient_matrix_grows_as_the_matrix(self, rng, tall, rank, backend):
        """A null space of 60,000 by 60,000 would not fit."""
        m, n = 60_000 if backend == "cpu" else 500, 3
        if not tall:
            m, n = n, m
        A = with_singular_values(rng, m, n, np.linspace(1, 2, rank))[0]
        result = polar_batch([A])[0]
        assert result.rank == rank
        assert departure(result.q) < 1e-12
        H = result.q.T @ A if m >= n else A @ result.q.T
        np.testing.assert_allclose(H, H.T, atol=1e-12)
        assert np.linalg.eigvalsh((H + H.T) / 2)[0] > -1e-12

    def test_a_constant_tall_matrix(self, backend):
        """Of rank one, with the direction that is left as near the identity as can be."""
        for rows in (5, 50_000 if backend == "cpu" else 500):
            A = np.ones((rows, 2))
            q = polar(A)
            first, second = q.sum(1), q[:, 0] - q[:, 1]
            np.testing.assert_allclose(first, np.sqrt(2 / rows), atol=1e-12)
            assert departure(q) < 1e-12
            expected = np.eye(rows, 1)[:, 0] - np.eye(rows, 1, -1)[:, 0]
            np.testing.assert_allclose(second, expected, atol=1e-12)

    @pytest.mark.parametrize("free", [1, 3])
    @pytest.mark.parametrize(("m", "n"), [(12, 12), (30, 12), (12, 30)])
    def test_rounding_errors_decide_nothing_where_the_identity_does_not(self, rng, m, n, free):
        """Null spaces of both sides that are orthogonal to each other."""
        k, wide = min(m, n), max(m, n)
        turn = orthonormal(rng, k, k)
        V = np.zeros((wide, k))
        V[:k] = np.roll(turn, free, axis=1)  # what V leaves out is not what the other does
        U, V = (V, turn) if m >= n else (turn, V)
        factors = []
        for _ in range(8):  # the factor depends on the spaces only
            s = rng.uniform(1, 2, k)
            s[-free:] = 0
            factors.append(polar((U * s) @ V.T))
        assert departure(factors[0]) < 1e-12
        if m == n:  # else some directions are determined by zeros beyond the square
            assert np.abs(U[:, -free:].T @ V[:, -free:]).max() < 1e-12
        for q in factors[1:]:
            np.testing.assert_allclose(q, factors[0], atol=1e-10)

    @pytest.mark.parametrize("least", [1e-6, 1e-10, 1e-12, 1e-13])
    @pytest.mark.parametrize(("m", "n"), [(24, 24), (40, 12), (12, 40)])
    def test_rank_is_of_the_matrix_and_not_of_the_method(self, rng, m, n, least):
        """Alone or beside others, by either way: the same singular values count as zero."""
        k = min(m, n)
        s = np.ones(k)
        s[-2:] = least
        A = with_singular_values(rng, m, n, s)[0]
        padded = np.zeros((m + 2, n + 1))
        padded[:m, :n] = A
        ranks = {polar_batch([a])[0].rank for a in (A, A.T, A * 1e100, padded)}
        ranks |= {r.rank for r in polar_batch([rng.standard_normal((m, n)), A])[1:]}
        assert ranks == {k}
        S = np.eye(k)
        noisy = cca_batch([(S, S, np.diag(s))] * 2, ridge=[1e-3, 1e-9])
        assert {r.rank for one in noisy for r in one} == {k}

    def test_rank_deficient_rest_of_a_matrix_with_zero_rows(self, rng):
        A, _ = with_singular_values(rng, 30, 30, np.ones(20))
        A[5] = 0
        result = polar_batch([A])[0]
        assert result.method == "svd"
        assert departure(result.q) < 1e-12

    def test_orthogonal_input_comes_back(self, rng):
        Q = orthonormal(rng, 80, 80)
        np.testing.assert_allclose(polar(Q), Q, atol=1e-14)
        np.testing.assert_allclose(polar(-7 * Q), -Q, atol=1e-14)

    def test_extremes_of_scale(self, rng):
        A = rng.standard_normal((20, 20))
        plain = polar(A)
        for scale in (1e-305, 1e-200, 1e200, 1e305):
            np.testing.assert_allclose(polar(A * scale), plain, atol=1e-11)

    def test_batch_equals_single(self, rng):
        matrices = [rng.standard_normal(s) for s in ((3, 3), (70, 20), (20, 70), (1, 1))]
        for q, a in zip(polar_batch(matrices), matrices, strict=True):
            assert_equal(q.q, polar(a))
        assert polar_batch([]) == []

    def test_errors(self):
        with pytest.raises(ValueError, match=r"A must be a non-empty matrix, got shape \(2,\)"):
            polar([1.0, 2.0])
        with pytest.raises(ValueError, match="A must be finite"):
            polar([[np.nan]])
        with pytest.raises(ValueError, match=r"matrices\[1\] must be finite"):
            polar_batch([np.eye(2), np.full((2, 2), np.inf)])


def covariance(rng, d, condition):
    E = orthonormal(rng, d, d)
    S = (E * np.logspace(0, -np.log10(condition), d)) @ E.T
    return (S + S.T) / 2


class TestWhiten:
    @pytest.mark.parametrize("kind", ["symmetric", "cholesky"])
    @pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
    @pytest.mark.parametrize("d", [1, 5, 70])
    def test_whitens(self, rng, d, condition, kind):
        S = covariance(rng, d, condition)
        w, estimate = whiten(S, kind=kind)
        tolerance = 100 * d * EPS * condition
        np.testing.assert_allclose(w.T @ S @ w, np.eye(d), atol=tolerance)
        if kind == "symmetric":
            np.testing.assert_array_equal(w, w.T)
            assert np.linalg.eigvalsh(w)[0] > 0
            assert estimate == pytest.approx(np.linalg.cond(S), rel=1e-6)
        else:
            np.testing.assert_array_equal(w, np.triu(w))
            assert estimate <= np.linalg.cond(S, 1) * (1 + 1e-6)
            assert estimate >= np.linalg.cond(S, 1) / 10

    @pytest.mark.parametrize("kind", ["symmetric", "cholesky"])
    def test_ridge_is_relative_to_the_mean_variance(self, rng, kind):
        S = 5 * covariance(rng, 20, 1e3)
        gamma = 0.1 * np.trace(S) / 20
        np.testing.assert_allclose(
            whiten(S, ridge=0.1, kind=kind).w, whiten(S, gamma=gamma, kind=kind).w, rtol=1e-12
        )
        w = whiten(S, gamma=gamma, kind=kind).w
        np.testing.assert_allclose(w.T @ (S + gamma * np.eye(20)) @ w, np.eye(20), atol=1e-11)

    @pytest.mark.parametrize("kind", ["symmetric", "cholesky"])
    def test_errors(self, kind):
        with pytest.raises(np.linalg.LinAlgError, match=r"S \(order 2\) .*raise ridge to at least"):
            whiten(np.diag([1.0, 0.0]), kind=kind)
        with pytest.raises(np.linalg.LinAlgError, match=r"condition number.*raise gamma"):
            whiten(np.diag([1.0, 1e-14]), gamma=0.0, kind=kind)
        with pytest.raises(ValueError, match="S must be symmetric"):
            whiten([[1.0, 0.5], [0.0, 1.0]], kind=kind)

    def test_kind(self):
        with pytest.raises(ValueError, match="kind must be 'symmetric' or 'cholesky', got 'pca'"):
            whiten(np.eye(2), kind="pca")


class TestGeneralizedEigh:
    @pytest.mark.parametrize("condition", [1.0, 1e6])
    @pytest.mark.parametrize(("n", "k"), [(1, None), (30, None), (30, 4), (80, 1), (80, 79)])
    def test_matches_scipy(self, rng, n, k, condition):
        A = rng.standard_normal((n, n))
        A += A.T
        B = covariance(rng, n, condition)
        w, V = generalized_eigh(A, B, gamma=1e-3, k=k)
        C = B + 1e-3 * np.eye(n)
        wanted = n if k is None else k
        expected = scipy.linalg.eigh(A, C, eigvals_only=True)[::-1][:wanted]
        scale = np.abs(scipy.linalg.eigh(A, C, eigvals_only=True)).max()
        assert V.shape == (n, wanted)
        tolerance = 100 * n * EPS * np.linalg.cond(C)
        np.testing.assert_allclose(w, expected, atol=tolerance * scale)
        np.testing.assert_allclose(V.T @ C @ V, np.eye(wanted), atol=tolerance)
        np.testing.assert_allclose(A @ V, C @ V * w, atol=tolerance * scale * np.abs(V).max())
        largest = np.take_along_axis(V, np.abs(V).argmax(0)[None], 0)
        assert np.all(largest > 0)

    def test_two_spaces_give_the_canonical_correlations(self, rng):
        # [0 Sxy; Syx 0] w = rho blkdiag(Cx, Cy) w, of mathematics as in Kettenring (1971).
        X = rng.standard_normal((200, 6))
        Y = X[:, :4] + rng.standard_normal((200, 4))
        S = np.cov(np.hstack([X, Y]), rowvar=False)
        A, B = S.copy(), S.copy()
        A[:6, :6] = A[6:, 6:] = 0
        B[:6, 6:] = B[6:, :6] = 0
        w, _ = generalized_eigh(A, B, k=4)
        qx, qy = (np.linalg.qr(Z - Z.mean(0))[0] for Z in (X, Y))
        np.testing.assert_allclose(w, np.linalg.svd(qx.T @ qy)[1], atol=1e-12)

    def test_ragged_batch_equals_single(self, rng):
        problems = []
        for n in (3, 40, 17):
            A = rng.standard_normal((n, n))
            problems.append((A + A.T, covariance(rng, n, 10.0)))
        for (w, V), (A, B) in zip(
            generalized_eigh_batch(problems, ridge=0.1, k=3), problems, strict=True
        ):
            expected_w, expected_V = generalized_eigh(A, B, ridge=0.1, k=3)
            assert_equal(w, expected_w)
            assert_equal(V, expected_V)

    def test_errors(self):
        I2 = np.eye(2)
        with pytest.raises(ValueError, match=r"B must have A's shape \(2, 2\), got \(3, 3\)"):
            generalized_eigh(I2, np.eye(3))
        for k in (0, -1, 1.5):
            with pytest.raises((TypeError, ValueError), match="k must be a positive integer"):
                generalized_eigh(I2, I2, k=k)
        with pytest.raises(ValueError, match="k must be at most the order 2, got 3"):
            generalized_eigh(I2, I2, k=3)
        with pytest.raises(ValueError, match="A must be symmetric"):
            generalized_eigh([[1.0, 2.0], [0.0, 1.0]], I2)
        with pytest.raises(np.linalg.LinAlgError, match=r"problems\[1\]: B .*raise ridge"):
            generalized_eigh_batch([(I2, I2), (I2, np.zeros((2, 2)) + 1)])
        with pytest.raises(TypeError, match=r"problems\[0\] must be a tuple of 2"):
            generalized_eigh_batch([I2])
