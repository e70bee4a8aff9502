"""How alike models are: R2 from moments beside that computed from the features themselves."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

import ccamerge
from ccamerge.collection.statistics import Statistics
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import GENERAL
from ccamerge.graph.space import Space
from ccamerge.methods.explained_variance import RIDGES, explained_variance, linear_r2
from tests import attending as A
from tests import models as M
from tests.problems import Array, moments_of, related

EPS = np.finfo(np.float64).eps


def _space(folds: list[list[Array]], reference: int = 0) -> Space:
    return Space("test", folds[0][reference].shape[1], GENERAL, GENERAL, (), (), ())


def _collected(folds: list[list[Array]]) -> Statistics:
    matched = {"test": [moments_of(*fold) for fold in folds]}
    return Statistics(matched, {}, [], [], len(folds[0]), 0, "all", 0, "", {})


def _split(*of_models: Array, folds: int = 2) -> list[list[Array]]:
    parts = np.array_split(np.arange(len(of_models[0])), folds)
    return [[x[part] for x in of_models] for part in parts]


def _r2(folds: list[list[Array]], reference: int = 0, ridges: Any = RIDGES) -> list[float]:
    return linear_r2(_space(folds, reference), _collected(folds), reference, ridges)


def _naive(folds: list[list[Array]], model: int, reference: int, ridge: float) -> float:
    """Sample by sample, by least squares with rows for the ridge added."""
    error = total = 0.0
    for k, test in enumerate(folds):
        train = [np.vstack([fold[i] for j, fold in enumerate(folds) if j != k]) for i in (0, 1, 2)]
        y, x = (train[i] - train[i].mean(0) for i in (model, reference))
        rows = math.sqrt(ridge * (y**2).sum() / y.shape[1]) * np.eye(y.shape[1])
        none = np.zeros((y.shape[1], x.shape[1]))
        fitted = np.linalg.lstsq(np.vstack([y, rows]), np.vstack([x, none]), rcond=None)[0]
        y, x = (test[i] - test[i].mean(0) for i in (model, reference))
        error += ((x - y @ fitted) ** 2).sum()
        total += (x**2).sum()
    return max(0.0, 1 - error / total)


@pytest.mark.parametrize("folds", [2, 3])
@pytest.mark.parametrize("reference", [0, 2])
@pytest.mark.parametrize("n", [20, 150])
def test_held_out_r2_is_that_of_the_features(folds: int, reference: int, n: int) -> None:
    """Models of three widths, 7 to 9 features, on means that are far from zero."""
    whole = related(3, n=n, d=9, noise=0.5)
    data = _split(*(x[:, :width] + 5.0 for x, width in zip(whole, (8, 9, 7), strict=True)))
    others = [i for i in range(3) if i != reference]
    for ridge in RIDGES:
        expected = [_naive(data, i, reference, ridge) for i in others]
        np.testing.assert_allclose(_r2(data, reference, [ridge]), expected, rtol=1e-9, atol=1e-12)
    best = [max(_naive(data, i, reference, ridge) for ridge in RIDGES) for i in others]
    np.testing.assert_allclose(_r2(data, reference), best, rtol=1e-9, atol=1e-12)


def test_the_ridge_of_wide_spaces_is_chosen_by_some_features_and_judged_by_all() -> None:
    x, y = related(2, n=500, d=150, noise=0.5)
    data = _split(x, y, y)  # the naive one is of three models
    every = [_naive(data, 1, 0, ridge) for ridge in RIDGES]
    assert np.ptp(every) > 0.1
    np.testing.assert_allclose(_r2(data), [max(every)] * 2, rtol=1e-9)


def test_r2_by_the_map_is_that_of_the_features() -> None:
    rng = np.random.default_rng(3)
    x, y = related(2, n=80, d=6)
    x, y = x + 2.0, y[:, :5]
    data, there, own = _split(x, y), rng.standard_normal((6, 6)), rng.standard_normal((5, 6))
    for target in (np.eye(6), there):  # the second as of ZipIt!, which maps the reference, too
        maps = [FeatureMap(*(torch.from_numpy(m) for m in (t, t.T))) for t in (target, own)]
        (found,) = explained_variance(_space(data), _collected(data), maps, 0)
        wanted, mapped = (x - x.mean(0)) @ target, (y - y.mean(0)) @ own
        expected = 1 - ((wanted - mapped) ** 2).sum() / (wanted**2).sum()
        assert found.by_map == pytest.approx(expected, rel=1e-10)


def test_the_same_features_explain_everything() -> None:
    x = related(1, n=2000, d=8)[0]
    data = _split(x, x)
    maps = [FeatureMap.identity(8)] * 2
    (found,) = explained_variance(_space(data), _collected(data), maps, 0)
    assert abs(found.by_map - 1) < 8 * EPS
    assert 1 - RIDGES[0] < found.by_best <= 1


def test_independent_features_explain_nothing() -> None:
    """No map, the best one included: the data of other folds do not bear out what was fitted."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 4000, 10))
    for data in (_split(x, y), [[x, y]]):
        assert _r2(data)[0] < 0.005
    turned = [FeatureMap.identity(10)] * 2
    (found,) = explained_variance(_space(_split(x, y)), _collected(_split(x, y)), turned, 0)
    assert found.by_map == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize("folds", [1, 2])
def test_r2_does_not_depend_on_the_basis_of_the_model(folds: int) -> None:
    """Where the ridge is nothing; with a ridge it does."""
    x, y = related(2, n=600, d=7)
    turn = np.random.default_rng(1).standard_normal((7, 7)) + 2 * np.eye(7)
    plain, turned = (_split(x, z, folds=folds) for z in (y, y @ turn - 3.0))
    assert 0.1 < _r2(plain)[0] < 0.9
    # The ridge moves each direction by its share of the least variance there, and R2 by less.
    least = np.linalg.eigvalsh(np.cov((y @ turn).T))
    tolerance = 1e-9 * least.mean() / least[0]
    assert tolerance < 1e-5
    assert _r2(plain, ridges=[1e-9])[0] == pytest.approx(_r2(turned, ridges=[1e-9])[0], abs=1e-5)
    assert abs(_r2(plain, ridges=[1.0])[0] - _r2(turned, ridges=[1.0])[0]) > 1e-3


def test_fewer_samples_than_features_do_not_explain_everything() -> None:
    """A fit in so many dimensions is perfect on the samples that it was made from."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30, 100))
    x_far, y_far = rng.standard_normal((2, 30, 5)) @ rng.standard_normal((2, 5, 100))
    assert _r2(_split(x, y))[0] < 0.05
    assert _r2([[x, y]])[0] < 0.05
    assert math.isnan(_r2([[x[:8], y[:8]]])[0])  # one fold: nothing is left to judge by
    # Of few directions few samples tell what there is to tell.
    common = rng.standard_normal((30, 5))
    near = [common @ rng.standard_normal((5, 100)) for _ in range(2)]
    for folds in (1, 2):
        assert _r2(_split(*near, folds=folds))[0] > 0.99
        assert _r2(_split(x_far, y_far, folds=folds))[0] < 0.4


def test_one_fold_says_what_two_do() -> None:
    for noise in (0.3, 3.0):
        x, y = related(2, n=120, d=12, noise=noise)
        assert _r2([[x, y]])[0] == pytest.approx(_r2(_split(x, y, folds=6))[0], abs=0.04)


def test_dead_units() -> None:
    """Those of the model tell nothing; those of the reference have nothing to be explained."""
    x, y = related(2, n=200, d=6)
    x[:, 2], y[:, [0, 4]] = 7.0, 0.0
    alive = _r2(_split(x[:, [0, 1, 3, 4, 5]], y[:, [1, 2, 3, 5]]), ridges=[1e-9])[0]
    assert _r2(_split(x, y), ridges=[1e-9])[0] == pytest.approx(alive, abs=1e-7)
    assert 0 < _r2(_split(x, y))[0] < 1


@pytest.mark.parametrize("folds", [1, 2, 3])
def test_features_that_are_all_constant(folds: int) -> None:
    x = related(1, n=60, d=4)[0]
    still = np.full((60, 4), 3.0)
    maps = [FeatureMap.identity(4)] * 2
    data = _split(x, still, folds=folds)
    (found,) = explained_variance(_space(data), _collected(data), maps, 0)
    assert (found.by_best, found.by_map) == (0.0, 0.0)
    data = _split(still, x, folds=folds)
    (found,) = explained_variance(_space(data), _collected(data), maps, 0)
    assert math.isnan(found.by_best)
    assert math.isnan(found.by_map)


@pytest.mark.parametrize("counts", [[0], [1], [1, 0], [1, 1], [0, 0]])
def test_too_few_samples_say_nothing(counts: list[int]) -> None:
    folds = [related(2, n=5, d=3, seed=k) for k in range(len(counts))]
    data = [[x[:n] for x in fold] for fold, n in zip(folds, counts, strict=True)]
    (found,) = explained_variance(_space(data), _collected(data), [FeatureMap.identity(3)] * 2, 0)
    assert math.isnan(found.by_best)
    assert math.isnan(found.by_map) == (sum(counts) < 2)


def test_an_empty_fold_beside_one_with_data_changes_nothing() -> None:
    data = [related(2, n=50, d=4)]
    empty = [np.empty((0, 4))] * 2
    assert _r2([*data, empty]) == _r2(data)
    two = _split(*related(2, n=50, d=4))
    assert _r2([*two, empty]) == _r2(two)


@pytest.mark.parametrize("folds", [1, 2])
def test_a_ridge_below_rounding_errors_is_passed_over(folds: int) -> None:
    """A covariance that is not positive definite by as much as a device may round it."""
    x, y = related(2, n=400, d=6)
    y[:, 5] = y[:, 0] + y[:, 1]
    data = _split(x, y, folds=folds)
    collected = _collected(data)
    for fold, moments in enumerate(collected.matched["test"]):
        state = moments.state_dict()
        state["m2.1.1"] = state["m2.1.1"] - 1e-3 * np.trace(state["m2.1.1"]) / 6 * np.eye(6)
        collected.matched["test"][fold] = ccamerge.Moments.from_state(state)
    space = _space(data)
    (without,) = linear_r2(space, collected, 0, [1e-4])
    assert math.isnan(without)
    assert linear_r2(space, collected, 0) == linear_r2(space, collected, 0, RIDGES[1:])
    assert linear_r2(space, collected, 0)[0] > 0.1


def test_a_space_of_one_feature_has_the_square_of_the_correlation() -> None:
    x, y = related(2, n=4000, d=1)
    expected = np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2
    for folds in (1, 2):
        assert _r2(_split(x, y, folds=folds))[0] == pytest.approx(expected, abs=0.01)


def _activations(model: torch.nn.Module, data: list[torch.Tensor], name: str) -> Array:
    """What a ReLU makes of a layer's outputs."""
    rows: list[Array] = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_hook(lambda _m, _a, out: rows.append(out.relu().numpy()))
    with torch.no_grad():
        for batch in data:
            model(batch)
    hook.remove()
    return np.vstack(rows).astype(np.float64)


@pytest.mark.parametrize("method", ["cca", "permutation", "average", "zipit"])
def test_a_merge_says_it_of_every_space(method: str) -> None:
    models = [M.randomise(M.MLP(), s) for s in range(3)]
    data = [torch.randn(64, 12, generator=torch.Generator().manual_seed(s)) for s in range(4)]
    result = ccamerge.merge(models, data, method=method, repair="none", progress=False)
    for space, row in zip(result.report.spaces, result.aligned.maps.values(), strict=True):
        assert len(space.explained) == len(space.explained_by_map) == 2
        assert all(0 < value < 1 for value in space.explained)
        x = [_activations(model, data, space.name) for model in models]
        wanted = (x[0] - x[0].mean(0)) @ row[0].forward.numpy()
        for own, feature_map, found in zip(x[1:], row[1:], space.explained_by_map, strict=True):
            mapped = (own - own.mean(0)) @ feature_map.forward.numpy()
            expected = 1 - ((wanted - mapped) ** 2).sum() / (wanted**2).sum()
            assert found == pytest.approx(expected, abs=1e-4)


def test_every_reference_in_the_universe() -> None:
    models = [M.randomise(M.MLP(), s) for s in range(3)]
    data = [torch.randn(64, 12) for _ in range(4)]
    collected = ccamerge.collect(models, data, pairs="all", progress=False)
    for reference in range(3):
        made = ccamerge.merge(
            models,
            statistics=collected,
            mode="universe",
            reference=reference,
            repair="none",
            progress=False,
        )
        for space in made.report.spaces:
            of = made.spaces[space.name]
            maps = made.aligned.maps[space.name]
            expected = explained_variance(of, collected, maps, reference)
            assert space.explained == [e.by_best for e in expected]
            assert space.explained_by_map == [e.by_map for e in expected]
            assert min(space.explained) > 0


def test_networks_of_several_widths() -> None:
    models = [M.randomise(M.MLP((12, width, 16, 5)), s) for s, width in enumerate((16, 24, 9))]
    data = [torch.randn(64, 12) for _ in range(4)]
    result = ccamerge.merge(models, data, progress=False)
    for space in result.report.spaces:
        assert all(0 < value < 1 for value in space.explained)
        assert all(value < 1 for value in space.explained_by_map)


def test_maps_of_an_earlier_merge_bring_what_they_explain() -> None:
    models = [M.randomise(M.MLP(), s) for s in range(2)]
    first = ccamerge.merge(models, [torch.randn(64, 12) for _ in range(2)], progress=False)
    again = ccamerge.merge(
        models, statistics=first.statistics, aligned=first.aligned, t=0.25, progress=False
    )
    assert again.report.spaces == first.report.spaces
    assert again.report.spaces[0].explained


def test_within_attention() -> None:
    """Spaces of heads, of networks that are the same but for the order and basis of their heads."""
    first = M.randomise(A.Attention(heads=2, size=4, bias=False), 0)
    second = copy.deepcopy(first)
    swapped = torch.arange(8).roll(4)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    with torch.no_grad():
        for layer in (second.q, second.k, second.v):
            turned = torch.einsum("ij,hjk->hik", turn, layer.weight[swapped].view(2, 4, 10))
            layer.weight.copy_(turned.reshape(8, 10))
        read = second.out.weight[:, swapped].view(3, 2, 4)
        second.out.weight.copy_(torch.einsum("ohj,ij->ohi", read, turn).reshape(3, 8))
    data = [torch.randn(16, 6, 10) for _ in range(8)]
    result = ccamerge.merge([first, second], data, ridge=1e-3, repair="none", progress=False)
    within = {name for heads in result.spaces.attention for name in heads.spaces}
    found = {space.name: space for space in result.report.spaces}
    assert {"q", "k", "v"} <= within <= set(found)
    for name in within:
        assert found[name].explained[0] > 0.999
        assert found[name].explained_by_map[0] > 0.99
