"""The ridge from held-out data: beside errors computed from the features themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import ccamerge
from ccamerge.collection.collecting import Statistics
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.space import Group, Space, Spaces
from ccamerge.methods.ridges import DEFAULT_RIDGE, GRID, best_ridge, held_out_errors, ridges_of
from tests import models as M
from tests.problems import Array, moments_of, related

SPACE = Space("test", 6, Group.GENERAL, "", (), (), ())


def _collected(*folds: list[Array]) -> Statistics:
    """Folds of one space of several models' features."""
    matched = {"test": [moments_of(*fold) for fold in folds]}
    count = len(folds[0])
    return Statistics(matched, {}, [], [], count, sum(map(len, folds[0])), "all", 0, "", {})


def _folds(models: int = 2, folds: int = 2, n: int = 90, noise: float = 1.0) -> list[list[Array]]:
    whole = related(models, n=n, d=6, noise=noise)
    parts = np.array_split(np.arange(n), folds)
    return [[x[part] + 5.0 for x in whole] for part in parts]


def _power(matrix: Array, exponent: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


def _naive_errors(folds: list[list[Array]], reference: int) -> Array:
    """Maps from all folds but one, applied to that one's features sample by sample."""
    rows = []
    for k, test in enumerate(folds):
        others = [fold for j, fold in enumerate(folds) if j != k]
        train = [np.vstack([fold[i] for fold in others]) for i in range(len(test))]
        centred = [x - x.mean(0) for x in test]
        for i in range(len(test)):
            if i == reference:
                continue
            row = []
            for ridge in GRID:
                joint = np.cov(np.hstack([train[reference], train[i]]).T)
                a, b, cross = joint[:6, :6], joint[6:, 6:], joint[:6, 6:]
                a, b = (c + ridge * c.trace() / 6 * np.eye(6) for c in (a, b))
                u, _, vt = np.linalg.svd(_power(a, -0.5) @ cross @ _power(b, -0.5))
                forward = _power(b, -0.5) @ vt.T @ u.T @ _power(a, 0.5)
                x, y = centred[reference], centred[i]
                there = ((x - y @ forward) ** 2).sum() / (x**2).sum()
                back = ((y - x @ np.linalg.inv(forward)) ** 2).sum() / (y**2).sum()
                row.append(there + back)
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("models", "folds", "reference"), [(2, 2, 0), (2, 3, 1), (3, 2, 1)])
def test_held_out_errors_are_those_of_the_features(models: int, folds: int, reference: int) -> None:
    data = _folds(models, folds)
    found = held_out_errors(SPACE, _collected(*data), reference)
    assert found.shape == (folds * (models - 1), len(GRID))
    np.testing.assert_allclose(found, _naive_errors(data, reference), rtol=1e-8)


def test_the_best_of_the_grid_is_chosen() -> None:
    collected = _collected(*_folds(3))
    errors = held_out_errors(SPACE, collected, 0).mean(0)
    assert best_ridge(SPACE, collected, 0) == GRID[int(errors.argmin())]


def test_more_noise_and_fewer_samples_want_a_larger_ridge() -> None:
    """Alike features of many samples are best matched as they are."""
    base = np.random.default_rng(0).standard_normal((2000, 6)) * np.geomspace(1, 30, 6)
    turn = np.random.default_rng(1).standard_normal((6, 6)) + 2 * np.eye(6)
    clean = [[base[:1000], base[:1000] @ turn], [base[1000:], base[1000:] @ turn]]
    assert best_ridge(SPACE, _collected(*clean), 0) == GRID[0]
    noisy = _folds(n=24, noise=30.0)
    assert best_ridge(SPACE, _collected(*noisy), 0) > 0.1


def test_methods_without_a_ridge_get_none() -> None:
    """Nor do they need folds to choose it from."""
    models, data, _ = _networks()
    result = ccamerge.merge(
        models,
        data[:1],
        method={"layers.0": "permutation", "*": "average"},
        ridge="auto",
        progress=False,
    )
    assert set(result.aligned.ridges.values()) == {None}


def test_fewer_than_two_folds_with_data() -> None:
    message = "ridge='auto' needs moments in two folds or more: collect with folds=2 or more"
    for folds in (_folds(folds=1), [_folds()[0], [np.empty((0, 6))] * 2]):
        with pytest.raises(ValueError, match=message):
            best_ridge(SPACE, _collected(*folds), 0)
    three = [*_folds(), [np.empty((0, 6))] * 2]  # an empty one beside two others is no harm
    np.testing.assert_array_equal(
        held_out_errors(SPACE, _collected(*three), 0),
        held_out_errors(SPACE, _collected(*three[:2]), 0),
    )


def test_dead_units() -> None:
    data = _folds()
    for fold in data:
        fold[0][:, 2] = 0.0
        fold[1][:, [1, 4]] = 0.0
    errors = held_out_errors(SPACE, _collected(*data), 0)
    assert np.isfinite(errors).all()
    assert best_ridge(SPACE, _collected(*data), 0) in GRID


@pytest.mark.parametrize("dead", [[0], [1], [0, 1]])
@pytest.mark.parametrize("where", [[0], [1], [0, 1]])
def test_features_that_are_all_constant_in_a_fold(dead: list[int], where: list[int]) -> None:
    """Nothing can be learned there; what other folds say counts."""
    data = _folds(folds=3)
    for fold in where:
        for model in dead:
            data[fold][model][:] = 4.0
    assert best_ridge(SPACE, _collected(*data), 0) in GRID


def test_a_space_that_is_constant_everywhere() -> None:
    data = [[np.full((20, 6), 4.0)] * 2 for _ in range(2)]
    assert best_ridge(SPACE, _collected(*data), 0) == DEFAULT_RIDGE


def _networks() -> tuple[list[Any], list[torch.Tensor], Spaces]:
    models = [M.randomise(M.MLP(), s) for s in range(3)]
    data = [torch.randn(40, 12) for _ in range(4)]
    return models, data, spaces(models[0], data[0])


def test_auto_in_a_merge() -> None:
    models, data, found = _networks()
    result = ccamerge.merge(models, data, ridge="auto", progress=False)
    chosen = {s.name: best_ridge(s, result.statistics, 0) for s in found.spaces}
    assert result.aligned.ridges == chosen
    assert set(chosen.values()) <= set(GRID)
    by_hand = ccamerge.merge(models, statistics=result.statistics, ridge=chosen, progress=False)
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, by_hand.model.state_dict()[key])
    with pytest.raises(ValueError, match="collect with folds=2 or more, from at least so many"):
        ccamerge.merge(models, data[:1], ridge="auto", progress=False)


def test_by_patterns_and_by_number() -> None:
    models, data, found = _networks()
    collected = ccamerge.collect(models, data, progress=False)
    names = [space.name for space in found.spaces]
    pick = lambda ridge: ridges_of(ridge, found, collected, 0, names)  # noqa: E731
    assert pick(None) == {"layers.0": DEFAULT_RIDGE, "layers.1": DEFAULT_RIDGE}
    assert pick(0.5) == {"layers.0": 0.5, "layers.1": 0.5}
    assert pick({"*.1": 2}) == {"layers.0": DEFAULT_RIDGE, "layers.1": 2}
    with pytest.raises(ValueError, match="ridge: 'x' matches no space"):
        pick({"x": 1})
    assert ridges_of({"*": 2}, found, collected, 0, names[1:]) == {names[1]: 2}
