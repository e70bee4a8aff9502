"""CCA maps: parity with the paper's formula, what they are invariant to, and how they fail."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ccamerge
from ccamerge.core.canonical import CCAResult
from tests.backends import Moments, assert_equal, cca, cca_batch

pytestmark = pytest.mark.usefixtures("backend")

EPS = np.finfo(np.float64).eps


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def moments(X, Y):
    X, Y = X - X.mean(0), Y - Y.mean(0)
    return X.T @ X / len(X), Y.T @ Y / len(X), X.T @ Y / len(X)


def problem(rng, p, q=None, condition=1.0, n=None, noise=0.5):
    """Correlated features whose covariances have about the given condition number."""
    q = p if q is None else q
    n = 4 * max(p, q) if n is None else n
    Z = rng.standard_normal((n, max(p, q)))
    turn = np.linalg.qr(rng.standard_normal((q, q)))[0]
    X = Z[:, :p] + noise * rng.standard_normal((n, p))
    Y = (Z[:, :q] + noise * rng.standard_normal((n, q))) @ turn
    spread = -0.5 * np.log10(condition)
    return moments(X * np.logspace(0, spread, p), Y * np.logspace(0, spread, q))


def roots(S, gamma):
    w, E = np.linalg.eigh(S + gamma * np.eye(len(S)))
    return (E * np.sqrt(w)) @ E.T, (E / np.sqrt(w)) @ E.T


def reference(Sxx, Syy, Sxy, gx=0.0, gy=0.0):
    """The published formula: symmetric square roots and an SVD, in float64."""
    x_root, x_inverse = roots(Sxx, gx)
    y_root, y_inverse = roots(Syy, gy)
    U, s, Vt = np.linalg.svd(x_inverse @ Sxy @ y_inverse, full_matrices=False)
    return y_inverse @ (U @ Vt).T @ x_root, x_inverse @ U @ Vt @ y_root, s


def gamma_of(S, ridge):
    return ridge * np.trace(S) / len(S)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
@pytest.mark.parametrize(
    ("p", "q"), [(1, 1), (1, 4), (5, 5), (31, 33), (64, 64), (97, 97), (150, 90), (90, 150)]
)
def test_matches_the_published_formula(rng, p, q, condition):
    S = problem(rng, p, q, condition)
    result = cca(*S, weights=True)
    expected_map, expected_inverse, s = reference(*S)
    # Both sides lose digits to the whitening; the reference's eigh more than the Cholesky factors.
    tolerance = 1e-12 if condition == 1 else 1e-9
    assert relative(result.map, expected_map) < tolerance
    assert relative(result.inverse, expected_inverse) < tolerance
    np.testing.assert_allclose(result.correlations, s, rtol=0, atol=tolerance)
    k = min(p, q)
    x, y = result.x_weights, result.y_weights
    assert x.shape == (p, k)
    assert y.shape == (q, k)
    bound = 100 * p * EPS * np.sqrt(result.x_condition)
    np.testing.assert_allclose(x.T @ S[0] @ x, np.eye(k), atol=bound)
    np.testing.assert_allclose(y.T @ S[1] @ y, np.eye(k), atol=bound)
    np.testing.assert_allclose(x.T @ S[2] @ y, np.diag(result.correlations), atol=tolerance)
    assert result.rank == k
    assert result.method == "qdwh"
    assert 1 <= result.x_condition < 1e3 * condition * p


@pytest.mark.parametrize("regulariser", ["ridge", "gamma"])
def test_each_side_is_regularised_as_documented(rng, regulariser):
    S = problem(rng, 20, 30)
    S = (S[0], 9 * S[1], 3 * S[2])  # the sides differ in scale, so their gammas must
    value = 0.3
    gx, gy = (
        (gamma_of(S[0], value), gamma_of(S[1], value)) if regulariser == "ridge" else (value, value)
    )
    expected_map, expected_inverse, s = reference(*S, gx, gy)
    result = cca(*S, **{regulariser: value}, correlations=True)
    assert relative(result.map, expected_map) < 1e-12
    assert relative(result.inverse, expected_inverse) < 1e-12
    np.testing.assert_allclose(result.correlations, s, atol=1e-13)
    assert result.x_weights is None
    assert result.y_weights is None
    assert cca(*S).correlations is None


def test_hand_computed_case():
    # One feature each: C = 4 and 9, so the map is sqrt(4 / 9) with the sign of the cross moment.
    result = cca([[3.0]], [[8.0]], [[-2.0]], gamma=1.0, correlations=True)
    np.testing.assert_allclose(result.map, [[-2 / 3]], rtol=1e-15)
    np.testing.assert_allclose(result.inverse, [[-3 / 2]], rtol=1e-15)
    np.testing.assert_allclose(result.correlations, [2 / 6], rtol=1e-15)


@settings(max_examples=40, deadline=None)
@given(
    p=st.integers(1, 40),
    q=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    ridge=st.sampled_from([1e-4, 1e-2, 1.0, 100.0]),
    samples=st.integers(2, 60),
)
def test_defining_properties(p, q, seed, ridge, samples):
    """Whatever the rank of the data: T carries C_y to C_x, and the product is symmetric."""
    rng = np.random.default_rng(seed)
    S = problem(rng, p, q, n=samples)
    result = cca(*S, ridge=ridge, correlations=True)
    gx, gy = gamma_of(S[0], ridge), gamma_of(S[1], ridge)
    Cx, Cy = S[0] + gx * np.eye(p), S[1] + gy * np.eye(q)
    T = result.map
    scale = 1e3 * max(p, q) * EPS * max(result.x_condition, result.y_condition)
    if p <= q:
        np.testing.assert_allclose(T.T @ Cy @ T, Cx, atol=scale * np.linalg.norm(Cx))
        np.testing.assert_allclose(result.inverse @ T, np.eye(p), atol=scale)
    if p >= q:
        np.testing.assert_allclose(T @ result.inverse, np.eye(q), atol=scale)
    assert np.all(result.correlations >= 0)
    assert np.all(result.correlations <= 1 + scale)
    assert np.all(np.diff(result.correlations) <= 0)
    assert result.rank <= min(p, q)


def test_any_invertible_change_of_basis_is_undone(rng):
    Sxx, Syy, Sxy = problem(rng, 40)
    A = np.linalg.qr(rng.standard_normal((40, 40)))[0] * np.logspace(0, 2, 40)
    changed = cca(Sxx, A.T @ Syy @ A, Sxy @ A)
    plain = cca(Sxx, Syy, Sxy)
    assert relative(A @ changed.map, plain.map) < 1e-10
    assert relative(changed.inverse, plain.inverse @ A) < 1e-10


def test_an_invertibly_transformed_copy_gives_the_transform_back(rng):
    X = rng.standard_normal((300, 50)) * np.logspace(0, -2, 50)
    A = np.linalg.qr(rng.standard_normal((50, 50)))[0] @ np.diag(np.logspace(0, 1, 50))
    result = cca(*moments(X, X @ A), correlations=True)
    assert relative(result.inverse, A) < 1e-9
    assert relative(result.map, np.linalg.inv(A)) < 1e-9
    np.testing.assert_allclose(result.correlations, 1, atol=1e-10)


def test_large_gamma_gives_orthogonal_procrustes(rng):
    S = problem(rng, 30)
    U, s, Vt = np.linalg.svd(S[2])
    result = cca(*S, gamma=1e12)
    assert relative(result.map, Vt.T @ U.T) < 1e-9 / s[-1]
    assert relative(result.inverse, U @ Vt) < 1e-9 / s[-1]


def test_dead_units_are_joined_to_dead_units(rng):
    n, dead_x, dead_y = 400, [3, 17, 18], [3, 17, 18]
    X, Y = rng.standard_normal((2, n, 40))
    Y += X
    X[:, dead_x] = 0
    Y[:, dead_y] = 0
    S = moments(X, Y)
    result = cca(*S, ridge=1e-2, correlations=True)
    assert result.method == "qdwh"  # deflated, without the SVD
    assert result.rank == 37
    np.testing.assert_array_equal(result.correlations[37:] < 1e-12, True)
    scale = np.sqrt(gamma_of(S[0], 1e-2) / gamma_of(S[1], 1e-2))
    expected = scale * np.eye(40)[:, dead_x]
    np.testing.assert_allclose(result.map[:, dead_x], expected, atol=1e-13)
    alive = np.setdiff1d(np.arange(40), dead_x)
    small = tuple(s[np.ix_(alive, alive)] for s in S)
    gx, gy = gamma_of(S[0], 1e-2), gamma_of(S[1], 1e-2)
    expected_map, _, _ = reference(*small, gx, gy)
    assert relative(result.map[np.ix_(alive, alive)], expected_map) < 1e-11


def test_different_numbers_of_dead_units(rng):
    X, Y = rng.standard_normal((2, 400, 30))
    Y += X
    X[:, [1, 2, 3, 4]] = 0
    Y[:, [2, 9]] = 0
    S = moments(X, Y)
    result = cca(*S, ridge=1e-2)
    assert result.rank == 26
    np.testing.assert_allclose(result.inverse @ result.map, np.eye(30), atol=1e-10)


def test_duplicated_columns_and_few_samples(rng):
    X, Y = rng.standard_normal((2, 20, 30))
    Y += X
    Y[:, 11] = Y[:, 10]
    S = moments(X, Y)
    result = cca(*S, ridge=1e-3, correlations=True)
    assert result.method == "svd"
    assert result.rank == 19  # the centred sample's rank
    assert np.all(result.correlations[19:] < 1e-9)
    np.testing.assert_allclose(result.inverse @ result.map, np.eye(30), atol=1e-9)


def test_no_cross_moment_gives_the_map_nearest_the_identity():
    result = cca(np.eye(4), np.eye(4), np.zeros((4, 4)), correlations=True)
    np.testing.assert_array_equal(result.map, np.eye(4))
    np.testing.assert_array_equal(result.correlations, 0)
    assert result.rank == 0


@pytest.mark.parametrize("scale", [1e-140, 1e-30, 1e30, 1e140])
def test_units_do_not_matter(rng, scale):
    S = problem(rng, 12)
    plain = cca(*S, ridge=0.1)
    scaled = cca(*(s * scale for s in S), ridge=0.1)
    assert relative(scaled.map, plain.map) < 1e-12


class TestBatch:
    def problems(self, rng):
        return [problem(rng, p, q) for p, q in ((40, 40), (7, 20), (90, 90), (33, 12), (1, 1))]

    def same(self, a, b):
        for name in ("map", "inverse", "correlations", "x_weights", "y_weights"):
            assert_equal(getattr(a, name), getattr(b, name))
        assert (a.rank, a.method) == (b.rank, b.method)
        assert a.x_condition == pytest.approx(b.x_condition, rel=1e-10)

    def test_equals_single_calls(self, rng):
        problems = self.problems(rng)
        single = [cca(*p, ridge=0.1, weights=True) for p in problems]
        for a, b in zip(cca_batch(problems, ridge=0.1, weights=True), single, strict=True):
            self.same(a, b)

    def test_sweep_is_problem_major(self, rng):
        problems = self.problems(rng)
        values = [1.0, 1e-3, 0.0]
        sweep = cca_batch(problems, gamma=values, weights=True)
        assert [len(row) for row in sweep] == [3] * len(problems)
        for row, p in zip(sweep, problems, strict=True):
            for result, value in zip(row, values, strict=True):
                self.same(result, cca(*p, gamma=value, weights=True))
        one = cca_batch(problems[:1], ridge=np.array([0.5]))
        assert isinstance(one[0], list)
        assert isinstance(cca_batch(problems[:1], ridge=np.float64(0.5))[0], CCAResult)

    def test_shared_reference(self, rng):
        Sxx, Syy, Sxy = problem(rng, 25)
        other = problem(rng, 25)[1]
        shared = cca_batch([(Sxx, Syy, Sxy), (Sxx, other, Sxy)], ridge=1.0)
        apart = cca_batch([(Sxx, Syy, Sxy), (Sxx.copy(), other, Sxy)], ridge=1.0)
        for a, b in zip(shared, apart, strict=True):
            assert_equal(a.map, b.map)

    def test_shared_covariance_with_itself(self, rng):
        Sxx = problem(rng, 25)[0]
        assert relative(cca(Sxx, Sxx, Sxx).map, np.eye(25)) < 1e-12

    def test_empty(self):
        assert cca_batch([]) == []
        assert cca_batch([], ridge=[0.1, 1.0]) == []

    def test_python_threads(self, rng):
        problems = self.problems(rng)
        expected = cca_batch(problems, ridge=0.1)
        failures = []

        def work():
            for _ in range(5):
                for a, b in zip(cca_batch(problems, ridge=0.1), expected, strict=True):
                    if not np.allclose(a.map, b.map, rtol=0, atol=1e-12):
                        failures.append(a)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert failures == []


@pytest.mark.parametrize(
    "convert",
    [
        lambda s: s.astype(np.float32),
        np.asfortranarray,
        lambda s: np.repeat(np.repeat(s, 2, 0), 2, 1)[::2, ::2],
        torch.from_numpy,
        lambda s: torch.from_numpy(s).float().requires_grad_(),
        lambda s: s.tolist(),
    ],
)
def test_input_types_and_layouts(rng, convert):
    S = problem(rng, 9, 6)
    given_ = [convert(s) for s in S]
    single = "float32" in str(getattr(given_[0], "dtype", ""))
    result = cca(*given_, ridge=0.1)
    assert result.map.dtype == np.float64
    expected = cca(*S, ridge=0.1).map
    assert relative(result.map, expected) <= (1e-5 if single else 0)


def test_bfloat16_tensors_and_integers():
    whole = torch.eye(3, dtype=torch.bfloat16) * 2
    np.testing.assert_allclose(cca(whole, whole, whole).map, np.eye(3), atol=1e-15)
    np.testing.assert_allclose(cca(*[np.eye(3, dtype=int)] * 3).map, np.eye(3), atol=1e-15)


def test_inputs_are_not_modified(rng):
    S = problem(rng, 40)
    before = [s.copy() for s in S]
    for s in S:
        s.flags.writeable = False
    cca_batch([S, S], ridge=[0.1, 1.0], weights=True)
    for s, b in zip(S, before, strict=True):
        np.testing.assert_array_equal(s, b)


def test_float32_asymmetry_is_averaged_out(rng):
    S = problem(rng, 9)
    skewed = S[0].copy()
    skewed[2, 5] += 4e-7 * abs(skewed).max()
    averaged = (skewed + skewed.T) / 2
    np.testing.assert_allclose(cca(skewed, *S[1:]).map, cca(averaged, *S[1:]).map, atol=1e-13)


def bad(S, i, j, value):
    out = S.copy()
    out[i, j] = value
    return out


I3 = np.eye(3)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "match"),
    [
        ((I3[0], I3, I3), {}, ValueError, r"Sxx must be a non-empty matrix, got shape \(3,\)"),
        ((I3, np.eye(0), I3), {}, ValueError, r"Syy must be a non-empty matrix, got shape \(0, 0"),
        ((I3[:2], I3, I3), {}, ValueError, r"Sxx must be square, got shape \(2, 3\)"),
        ((I3, I3, I3[:2]), {}, ValueError, r"Sxy must have shape \(3, 3\).*got \(2, 3\)"),
        ((bad(I3, 0, 0, np.nan), I3, I3), {}, ValueError, "Sxx must be finite"),
        ((I3, bad(I3, 1, 2, np.inf), I3), {}, ValueError, "Syy must be finite"),
        ((I3, I3, bad(I3, 1, 2, np.nan)), {}, ValueError, "Sxy must be finite"),
        ((I3, bad(I3, 1, 2, 1e-3), I3), {}, ValueError, "Syy must be symmetric.*0.001"),
        ((I3 * 1j, I3, I3), {}, TypeError, "Sxx must be a real array, got dtype complex128"),
        ((torch.eye(3) * 1j, I3, I3), {}, TypeError, "Sxx must be real, got torch.complex64"),
        ((I3, I3, I3), {"ridge": -0.1}, ValueError, "ridge must be finite and not negative"),
        ((I3, I3, I3), {"gamma": np.nan}, ValueError, "gamma must be finite and not negative"),
        ((I3, I3, I3), {"gamma": np.inf}, ValueError, "gamma must be finite"),
        ((I3, I3, I3), {"ridge": 0.1, "gamma": 0.1}, ValueError, "ridge or gamma, not both"),
        ((I3, I3, I3), {"ridge": [0.1]}, TypeError, "ridge must be a number, got a sequence"),
        ((I3, I3, I3), {"ridge": "big"}, TypeError, "ridge must be a number or a sequence"),
    ],
)
def test_caller_errors(args, kwargs, error, match):
    with pytest.raises(error, match=match):
        cca(*args, **kwargs)


@pytest.mark.parametrize("regulariser", [{}, {"ridge": 1e-6}, {"ridge": 1.0}, {"gamma": 0.5}])
@pytest.mark.parametrize("factor", [-5.0, 24.0])
@pytest.mark.parametrize(("p", "q"), [(1, 1), (6, 6), (4, 9)])
def test_cross_moments_that_no_data_can_have(rng, p, q, factor, regulariser):
    """Not divided by the number of samples, say: a correlation would be above 1."""
    Sxx, Syy, Sxy = problem(rng, p, q, noise=0.01)
    with pytest.raises(ValueError, match=r"^Sxy cannot be the cross moment of these two"):
        cca(Sxx, Syy, factor * Sxy, **regulariser)
    with pytest.raises(ValueError, match=r"^problems\[1\]: Sxy cannot be the cross moment"):
        cca_batch([(Sxx, Syy, Sxy), (Sxx, Syy, factor * Sxy)], **regulariser)


def test_cross_moments_whose_entries_are_possible_one_by_one():
    with pytest.raises(ValueError, match=r"Sxy .* a canonical correlation of 2\.4"):
        cca(I3, I3, np.full((3, 3), 0.8))
    close = np.full((3, 3), 0.99) + 0.01 * I3
    with pytest.raises(ValueError, match=r"Sxy .* a canonical correlation of"):
        cca(close, close, 0.9 * I3)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
def test_single_features_may_not_correlate_more_than_themselves_whatever_the_ridge(ridge):
    S = np.diag([4.0, 1.0, 9.0])
    for factor in (1.01, 2.0):
        with pytest.raises(ValueError, match=r"Sxy .* two features have a correlation of"):
            cca(S, S, factor * S, ridge=ridge)
    cca(S, S, S, ridge=ridge)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    spread=st.sampled_from([0.0, 2.0]),
    n=st.integers(2, 60),
    ridge=st.sampled_from([1e-6, 1e-3, 1.0]),
)
def test_moments_of_data_are_always_possible(seed, dtype, offset, spread, n, ridge):
    """Streamed, of any precision and however correlated; no correlation comes out above 1."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 8)) * np.exp(spread * rng.standard_normal(8)) + offset
    y = np.concatenate([x[:, ::-1], rng.standard_normal((n, 3))], axis=1)
    x[:, 2], y[:, 5] = 3.3, offset  # constant
    streamed = Moments([8, 11], pairs="all")
    for rows in np.array_split(np.arange(n), 2):
        streamed.update([x[rows].astype(dtype), y[rows].astype(dtype)])
    own = streamed.cov(0), streamed.cov(1)
    found = cca(*own, streamed.cov(0, 1), ridge=ridge, correlations=True)
    assert found.correlations.max() <= 1


@pytest.mark.parametrize("factor", [1 + 3e-5, 1 - 3e-5])
def test_correlations_beyond_one_by_errors_of_float32_are_one(rng, factor):
    S = problem(rng, 5)[0]
    found = cca(S, S, factor * S, correlations=True, weights=True)
    assert found.correlations.max() <= 1
    np.testing.assert_allclose(found.correlations, min(1.0, factor), rtol=1e-12)
    np.testing.assert_allclose(found.map, np.eye(5), atol=1e-9)


def test_batch_errors_name_the_problem():
    good = (I3, I3, I3)
    with pytest.raises(ValueError, match=r"problems\[2\]: Syy must be finite"):
        cca_batch([good, good, (I3, bad(I3, 0, 0, np.nan), I3)])
    with pytest.raises(ValueError, match=r"problems\[1\]: Sxy must have shape"):
        cca_batch([good, (I3, I3, I3[:2])])
    with pytest.raises(TypeError, match=r"problems\[0\] must be a tuple of 3 matrices"):
        cca_batch([I3])
    with pytest.raises(ValueError, match="ridge must not be an empty sequence"):
        cca_batch([good], ridge=[])
    with pytest.raises(ValueError, match="gamma must be a number or a sequence of numbers, got"):
        cca_batch([good], gamma=[[1.0]])
    with pytest.raises(np.linalg.LinAlgError, match=r"problems\[1\]: Syy \(order 3\)"):
        cca_batch([good, (I3, np.diag([1.0, 1.0, 0.0]), I3)])


@pytest.mark.parametrize("name", ["ridge", "gamma"])
@pytest.mark.parametrize("lowest", [0.0, -1.0, 1e-15])
def test_singular_covariances_name_a_cure_that_works(name, lowest):
    """Rank-deficient, indefinite and too ill-conditioned; the suggested value must then do."""
    S = np.diag([1e3, 1e3, 1e3, lowest])
    cross = np.diag([1.0, 1.0, 1.0, 0.0])
    with pytest.raises(np.linalg.LinAlgError, match="Sxx.*raise " + name) as info:
        cca(S, np.eye(4), cross, **{name: 0.0})
    words = str(info.value).split()
    if lowest >= 0:
        cca(S, np.eye(4), cross, **{name: float(words[-1])})


def test_constant_features():
    with pytest.raises(np.linalg.LinAlgError, match="every feature is constant"):
        cca(np.zeros((3, 3)), I3, np.zeros((3, 3)), ridge=0.1)
    result = cca(np.zeros((3, 3)), I3, np.zeros((3, 3)), gamma=4.0)
    np.testing.assert_allclose(result.map, np.eye(3) * 2 / np.sqrt(5), rtol=1e-14)


def test_overflow_is_an_error():
    with pytest.raises(np.linalg.LinAlgError, match="rescale"):
        cca(I3 * 1e308, I3, I3, gamma=1.7e308)


@pytest.mark.parametrize("scale", [6e307, 1.6e308])
def test_a_trace_beyond_float64_is_none_of_the_result(rng, scale):
    """The ridge is relative to the mean of the diagonal, which is in range where the sum is not."""
    S = [s / 50 for s in problem(rng, 200)]
    expected = cca(*S, ridge=0.1, correlations=True)
    found = cca(*(scale * s for s in S), ridge=0.1, correlations=True)
    assert np.trace(S[0]) > np.finfo(np.float64).max / scale
    np.testing.assert_allclose(found.map, expected.map, atol=1e-9)
    np.testing.assert_allclose(found.correlations, expected.correlations, atol=1e-12)


def test_of_several_problems_that_fail_the_first_is_named(rng):
    """Whichever thread comes to its own first."""
    S = [1e-309 * s for s in problem(rng, 4)]
    before = ccamerge.num_threads()
    ccamerge.set_num_threads(2)
    try:
        for _ in range(300):
            with pytest.raises(np.linalg.LinAlgError, match="Sxx"):
                cca(*S, ridge=0.1)
    finally:
        ccamerge.set_num_threads(before)


def test_underflow_names_a_cure_that_works(rng):
    S = problem(rng, 4)
    with pytest.raises(np.linalg.LinAlgError, match=r"Sxx .* underflows: rescale the features"):
        cca(*(1e-309 * s for s in S), ridge=0.1)
