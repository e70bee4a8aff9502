from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ccamerge
from ccamerge.graph.groups import GENERAL
from ccamerge.graph.space import Space
from ccamerge.methods import METHODS, Alignment, Solution
from tests import models as M
from tests.backends import Moments, assert_equal, cca, host, universe, universe_batch

pytestmark = pytest.mark.usefixtures("backend")

Array = np.ndarray[Any, Any]


def _features(models: int, d: int = 10, seed: int = 0, n: int = 300) -> list[Array]:
    """Of models that share a signal with a falling spectrum, in bases of their own."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, d))
    scales, noise = np.geomspace(3, 0.1, d), np.geomspace(0.2, 1.5, d)
    out = []
    for _ in range(models):
        x = (shared + noise * rng.standard_normal((n, d))) * scales
        x = x @ (rng.standard_normal((d, d)) / np.sqrt(d) + np.eye(d))
        out.append(x - x.mean(0))
    return out


def _moments(features: Sequence[Array]) -> tuple[list[Array], list[Array]]:
    n = len(features[0])
    own = [x.T @ x / n for x in features]
    return own, [x.T @ y / n for x, y in itertools.combinations(features, 2)]


def _objective(maps: Sequence[Array], features: Sequence[Array], ridge: float, w: Array) -> float:
    """From maps alone: ``tr(Q_i^T K_ij Q_j)`` is ``tr(C_r^-1 T_i^T S_ij T_j)``."""
    own, crosses = _moments(features)
    c = own[0] + ridge * np.trace(own[0]) / len(own[0]) * np.eye(len(own[0]))
    pairs = itertools.combinations(range(len(maps)), 2)
    return sum(
        w[i] * w[j] * float(np.trace(np.linalg.solve(c, maps[i].T @ s @ maps[j])))
        for (i, j), s in zip(pairs, crosses, strict=True)
    )


def _reference_ascent(features: Sequence[Array], ridge: float, w: Array) -> float:
    """The objective by symmetric roots, a dense eigendecomposition and SVDs."""
    own, crosses = _moments(features)
    roots = []
    for s in own:
        value, vector = np.linalg.eigh(s + ridge * np.trace(s) / len(s) * np.eye(len(s)))
        roots.append((vector * value**-0.5) @ vector.T)
    n, d = len(own), len(own[0])
    joint = np.zeros((n, d, n, d))
    for (i, j), s in zip(itertools.combinations(range(n), 2), crosses, strict=True):
        joint[i, :, j] = w[i] * w[j] * roots[i] @ s @ roots[j]
        joint[j, :, i] = joint[i, :, j].T
    flat = joint.reshape(n * d, n * d)

    def polar(a: Array) -> Array:
        u, _, vt = np.linalg.svd(a)
        return np.asarray(u @ vt)

    q = np.stack([polar(v) for v in np.linalg.eigh(flat)[1][:, -d:].reshape(n, d, d)])
    for _ in range(300):
        for i in range(n):
            q[i] = polar(joint[i].reshape(d, n * d) @ q.reshape(n * d, d))
    return float(np.vdot(q, flat @ q.reshape(n * d, d)) / 2)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 1.5]])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_as_good_as_a_dense_eigendecomposition_and_svds(
    weights: list[float] | None, seed: int
) -> None:
    features = _features(4, seed=seed)
    own, crosses = _moments(features)
    w = np.array(weights or [1.0] * 4)
    w /= w.mean()
    found = universe(own, crosses, ridge=0.01, weights=weights, tolerance=1e-13)
    assert found.objectives[-1] >= _reference_ascent(features, 0.01, w) * (1 - 1e-5)
    assert found.objectives[-1] == pytest.approx(_objective(found.maps, features, 0.01, w), 1e-10)


@given(models=st.integers(2, 5), seed=st.integers(0, 1000), whitened=st.booleans())
@example(models=2, seed=364, whitened=False)  # falls by 1.006e-13 of itself
@settings(max_examples=20, deadline=None)
def test_maps_compose_and_the_objective_never_falls(models: int, seed: int, whitened: bool) -> None:
    own, crosses = _moments(_features(models, seed=seed))
    ridge = 0.01 if whitened else None
    maps = [
        universe(own, crosses, ridge=ridge, whitened=whitened, reference=r).maps
        for r in range(models)
    ]
    for i, j, k in itertools.product(range(models), repeat=3):
        np.testing.assert_allclose(maps[j][i] @ maps[k][j], maps[k][i], atol=1e-10)
    found = universe(own, crosses, ridge=ridge, whitened=whitened)
    np.testing.assert_allclose(found.maps[0], np.eye(10))
    slack = 1e-12 * found.objectives[-1]  # to which polar factors are orthogonal, as below
    assert (np.diff(found.objectives) >= -slack).all()
    for forward, inverse in zip(found.maps, found.inverses, strict=True):
        np.testing.assert_allclose(forward @ inverse, np.eye(10), atol=1e-10)
    if not whitened:
        np.testing.assert_allclose(maps[0][1].T @ maps[0][1], np.eye(10), atol=1e-12)


def test_two_models_give_the_map_of_cca() -> None:
    own, crosses = _moments(_features(2))
    found, pair = universe(own, crosses, ridge=0.1), cca(*own, crosses[0], ridge=0.1)
    np.testing.assert_allclose(found.maps[1], pair.map, atol=1e-11)
    np.testing.assert_allclose(found.inverses[1], pair.inverse, atol=1e-11)
    assert found.sweeps == 1


def test_better_than_every_alignment_with_one_model() -> None:
    features = _features(5, seed=4)
    own, crosses = _moments(features)
    found = universe(own, crosses, ridge=0.01)
    pairs = dict(zip(itertools.combinations(range(5), 2), crosses, strict=True))
    for r in range(5):
        row = [
            cca(own[r], own[i], pairs[r, i] if r < i else pairs[i, r].T, ridge=0.01).map
            for i in range(5)
            if i != r
        ]
        row.insert(r, np.eye(10))
        back = np.linalg.inv(row[0])  # from the reference's features to model 0's
        maps = [t @ back for t in row]
        assert found.objectives[-1] > _objective(maps, features, 0.01, np.ones(5))


@pytest.mark.parametrize("models", [2, 3, 4, 5])
def test_invertible_copies_are_recovered(models: int) -> None:
    rng = np.random.default_rng(0)
    x = _features(1, n=100)[0]
    turns = [np.eye(10)] + [rng.standard_normal((10, 10)) + 3 * np.eye(10) for _ in range(models)]
    turns[1] = np.eye(10)[rng.permutation(10)]
    turns = turns[:models]
    found = universe(*_moments([x @ t for t in turns]), gamma=0.0)
    for t, forward in zip(turns, found.maps, strict=True):
        np.testing.assert_allclose(forward, np.linalg.inv(t), atol=1e-8)
    assert found.objectives[-1] == pytest.approx(10 * models * (models - 1) / 2)


def test_a_model_of_weight_zero_is_aligned_and_does_not_pull() -> None:
    features = _features(4, seed=3)
    own, crosses = _moments(features)
    pairs = dict(zip(itertools.combinations(range(4), 2), crosses, strict=True))
    found = universe(own, crosses, ridge=0.01, weights=[1, 2, 3, 0], tolerance=1e-13)
    three = [pairs[p] for p in itertools.combinations(range(3), 2)]
    without = universe(own[:3], three, ridge=0.01, weights=[1, 2, 3], tolerance=1e-13)
    for a, b in zip(found.maps[:3], without.maps, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    # In the merged features the zero-weight model is where CCA with them puts it.
    merged = np.average(
        [x @ t for x, t in zip(features, found.maps[:3], strict=False)], 0, [1, 2, 3]
    )
    aligned = features[3] @ found.maps[3]
    similar = [np.corrcoef(a, b)[0, 1] for a, b in zip(merged.T, aligned.T, strict=True)]
    assert min(similar) > 0.4
    scaled = universe(own, crosses, ridge=0.01, weights=[10, 20, 30, 0], tolerance=1e-13)
    np.testing.assert_allclose(scaled.maps[3], found.maps[3], atol=1e-8)


def test_one_positive_weight_aligns_all_with_that_model() -> None:
    own, crosses = _moments(_features(3))
    found = universe(own, crosses, ridge=0.01, weights=[0, 1, 0], reference=1)
    pair = cca(own[1], own[0], crosses[0].T, ridge=0.01)
    np.testing.assert_allclose(found.maps[0], pair.map, atol=1e-10)


def test_unequal_widths_share_the_least() -> None:
    rng = np.random.default_rng(0)
    narrow, *wide = _features(3, d=6)
    wide = [
        x @ np.linalg.qr(rng.standard_normal((d, 6)))[0].T
        for x, d in zip(wide, (9, 8), strict=True)
    ]
    own, crosses = _moments([wide[0], narrow, wide[1]])
    found = [universe(own, crosses, ridge=0.01, reference=r) for r in range(3)]
    assert [m.shape for m in found[0].maps] == [(9, 9), (6, 9), (8, 9)]
    assert np.linalg.matrix_rank(found[0].maps[2], tol=1e-8) == 6
    for i, j, k in itertools.product(range(3), repeat=3):
        np.testing.assert_allclose(
            found[j].maps[i] @ found[k].maps[j], found[k].maps[i], atol=1e-10
        )


def test_degenerate_features() -> None:
    """Dead units, duplicated columns and fewer samples than features."""
    for few in (300, 6):
        features = _features(4, n=few)
        for x in features:
            x[:, [2, 7]] = 0.0
            x[:, 1] = x[:, 0]
        own, crosses = _moments(features)
        found = universe(own, crosses, ridge=1e-3)
        assert not found.spectral
        assert found.rank <= 7
        assert (np.diff(found.objectives) >= -1e-10).all()
        alive = [0, 1, 3, 4, 5, 6, 8, 9]
        for forward, inverse in zip(found.maps, found.inverses, strict=True):
            np.testing.assert_allclose(forward @ inverse, np.eye(10), atol=1e-8)
            np.testing.assert_allclose(forward[np.ix_([2, 7], alive)], 0, atol=1e-8)
            np.testing.assert_allclose(forward[np.ix_(alive, [2, 7])], 0, atol=1e-8)
            assert (forward[[2, 7], [2, 7]] > 0).all()  # not flipped


def test_says_when_the_sweeps_ran_out() -> None:
    own, crosses = _moments(_features(4))
    full = universe(own, crosses, ridge=0.01, tolerance=1e-9)
    assert full.converged
    for sweeps in (1, 3):
        short = universe(own, crosses, ridge=0.01, tolerance=1e-14, max_sweeps=sweeps)
        assert not short.converged
        assert short.sweeps == sweeps
        assert short.objectives[-1] <= full.objectives[-1]


@pytest.mark.parametrize("unit", [5e307, 2e200, 1e-310, 5e-324])
def test_the_unit_of_weights_does_not_matter(unit: float) -> None:
    """Not even where their sum overflows, or the weights are subnormal."""
    own, crosses = _moments(_features(3))
    expected = universe(own, crosses, ridge=0.01, weights=[1, 2, 3])
    found = universe(own, crosses, ridge=0.01, weights=[1 * unit, 2 * unit, 3 * unit])
    for a, b in zip(found.maps, expected.maps, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_weights_of_all_sizes() -> None:
    own, crosses = _moments(_features(3))
    found = universe(own, crosses, ridge=0.01, weights=[1e308, 1e-310, 1e-310], reference=0)
    alone = universe(own, crosses, ridge=0.01, weights=[1, 0, 0], reference=0)
    for a, b in zip(found.maps, alone.maps, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("options", [{"ridge": 0.01}, {"gamma": 1e-3}, {"whitened": False}])
def test_cross_moments_that_no_data_can_have(options: dict[str, Any]) -> None:
    own, crosses = _moments(_features(3))
    crosses[1] = crosses[1] * 300
    with pytest.raises(ValueError, match=r"^models\[0\] with models\[2\] cannot be the cross mom"):
        universe(own, crosses, **options)
    good = _moments(_features(3))
    with pytest.raises(ValueError, match=r"^problems\[1\]: models\[0\] with models\[2\] cannot be"):
        universe_batch([good, (own, crosses)], **options)


def test_a_batch_is_its_problems() -> None:
    problems = [_moments(_features(n, seed=n)) for n in (2, 3, 4)]
    batch = universe_batch(problems, ridge=0.1, weights=[None, [1, 2, 3], None])
    alone = universe(*problems[1], ridge=0.1, weights=[1, 2, 3])
    assert_equal(batch[1].maps[2], alone.maps[2])
    assert universe_batch([]) == []
    assert len(batch[2].conditions) == 4


def test_failures_name_problem_and_model() -> None:
    own, crosses = _moments(_features(3))
    flat = [*own[:1], np.ones((10, 10)), own[2]]
    with pytest.raises(np.linalg.LinAlgError, match=r"^problems\[1\]: models\[1\].*raise ridge"):
        universe_batch([(own, crosses), (flat, crosses)])
    holed = [*crosses[:2], np.full((10, 10), np.nan)]
    with pytest.raises(ValueError, match=r"^models\[1\] with models\[2\] must be finite"):
        universe(own, holed, ridge=0.1)
    with pytest.raises(ValueError, match=r"crosses must hold the 3 pairs of models, got 2"):
        universe(own, crosses[:2])
    with pytest.raises(
        ValueError, match=r"models\[0\] with models\[2\] must have shape \(10, 10\)"
    ):
        universe(own, [crosses[0], crosses[1][:, :5], crosses[2]])
    with pytest.raises(ValueError, match=r"models\[1\] must be square"):
        universe([own[0], own[1][:5], own[2]], crosses)
    with pytest.raises(ValueError, match="at least 2 models"):
        universe(own[:1], [])
    with pytest.raises(ValueError, match="reference must be one of the 3 models, got 3"):
        universe(own, crosses, reference=3)
    for weights in ([1, 2], [1, -1, 1], [0, 0, 0], [1, np.nan, 1]):
        with pytest.raises(ValueError, match="weights must be 3 numbers"):
            universe(own, crosses, weights=weights)
    with pytest.raises(ValueError, match="leave them out"):
        universe(own, crosses, ridge=0.1, whitened=False)
    with pytest.raises(ValueError, match="one for each of 1 problems, got 2"):
        universe_batch([(own, crosses)], ridge=[0.1, 0.2])
    with pytest.raises(ValueError, match="max_sweeps must be at least 1"):
        universe(own, crosses, max_sweeps=0)
    with pytest.raises(ValueError, match="tolerance must be finite"):
        universe(own, crosses, tolerance=-1.0)
    with pytest.raises(ValueError, match="weights must be given for all 1 problems"):
        universe_batch([(own, crosses)], weights=[None, None])


def _row(method: str, features: list[Array], reference: int) -> list[Solution]:
    size = features[0].shape[1]
    moments = Moments([size] * len(features), pairs="all")
    moments.update(features)
    kept = moments if METHODS[method].on_device else moments.to("cpu")  # as `align` does
    space = Space("test", size, GENERAL, GENERAL, (), (), ())
    states = [{} for _ in features]
    ridges = {"test": 1e-2}
    alignment = Alignment([space], {"test": kept}, states, reference, "universe", ridges)
    return METHODS[method].solve(alignment)["test"]


@pytest.mark.parametrize("method", ["cca", "procrustes", "permutation"])
def test_every_reference_gives_the_same_up_to_its_basis(method: str) -> None:
    features = _features(4)
    for i, x in enumerate(features):
        x[:, [i, 5]] = 0.0  # dead units in different places
    rows = [[host(s.feature_map.forward) for s in _row(method, features, r)] for r in range(4)]
    for r in range(1, 4):
        change = rows[r][0]  # from model 0's features to model r's
        for i in range(4):
            np.testing.assert_allclose(rows[0][i] @ change, rows[r][i], atol=1e-9)
    dead, alive = [1, 5], [k for k in range(10) if k not in (0, 5)]
    # The ascent ends when a sweep adds a share of 1e-9: maps are right to some of its root, 3e-5.
    np.testing.assert_allclose(rows[0][1][np.ix_(dead, alive)], 0, atol=1e-7)


def test_merged_networks_agree_whatever_the_reference_and_mind_the_weights(backend: str) -> None:
    models = [M.randomise(M.MLP(), s) for s in range(3)]
    x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    outputs = {}
    for weights in (None, [1.0, 2.0, 4.0]):
        for r in range(2):
            merged = ccamerge.merge(
                models,
                [x],
                mode="universe",
                method="procrustes",
                reference=r,
                weights=weights,
                repair="none",
                progress=False,
                device=backend,
            )
            outputs[weights is None, r] = merged.report.spaces[0].details[0]["objective"]
    assert outputs[True, 0] == pytest.approx(outputs[True, 1])
    assert outputs[False, 0] == pytest.approx(outputs[False, 1])
    assert outputs[False, 0] != pytest.approx(outputs[True, 0], rel=1e-3)
