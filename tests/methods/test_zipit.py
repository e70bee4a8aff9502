"""ZipIt! beside a plain version of the published greedy matching."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import ccamerge
from ccamerge.methods.zipit import correlations, zipit, zipped
from tests import models as M
from tests.problems import Array, alignment_of, features, moments_of, related


class Stuck(Exception):  # noqa: N818 it is no error of the code under test
    """The published algorithm has nothing left that it may merge."""


def published(
    similarity: Array, owners: np.ndarray[Any, Any], count: int, alpha: float, beta: float
) -> list[set[int]]:
    """Greedy merges on a matrix that shrinks, as the paper's section 4 says.

    A group stands under its first feature. At alpha = 0 it takes nothing of the models it has.
    Within a model as many merges are allowed as its budget says, none for a budget of 0.
    """
    models = int(owners.max()) + 1
    groups = [{i} for i in range(len(owners))]
    origin = list(owners)
    s = similarity.astype(np.float64).copy()
    np.fill_diagonal(s, -np.inf)
    budget = [int(((len(owners) - count) // models) * beta + 1e-4)] * models

    def within(model: int) -> None:
        own = [g for g in range(len(groups)) if origin[g] == model]
        s[np.ix_(own, own)] = -np.inf

    for model in range(models):
        if budget[model] == 0:
            within(model)
    while len(groups) > count:
        i, j = divmod(int(s.argmax()), len(groups))
        if s[i, j] == -np.inf:
            raise Stuck
        i, j = min(i, j), max(i, j)
        row = np.minimum(s[i], s[j]) * (alpha if alpha > 0 else 1.0)
        if alpha == 0:
            has = {owners[f] for f in groups[i] | groups[j]}
            for g, members in enumerate(groups):
                if has & {owners[f] for f in members}:
                    row[g] = -np.inf
        row[i] = -np.inf
        s[i], s[:, i] = row, row
        groups[i] |= groups[j]
        same = origin[i] == origin[j]
        del groups[j], origin[j]
        s = np.delete(np.delete(s, j, 0), j, 1)
        if same:
            budget[origin[i]] -= 1
            if budget[origin[i]] == 0:
                within(origin[i])
    return groups


def _groups(labels: np.ndarray[Any, Any]) -> list[set[int]]:
    return [set(np.flatnonzero(labels == g).tolist()) for g in range(labels.max() + 1)]


@given(
    seed=st.integers(0, 1000),
    models=st.integers(2, 4),
    alpha=st.sampled_from([0.1, 0.3, 1.0]),
    beta=st.sampled_from([0.0, 0.125, 0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_parity_with_the_published_matching(
    seed: int, models: int, alpha: float, beta: float
) -> None:
    d = 8
    joint = np.corrcoef(np.hstack(related(models, d=d, seed=seed)).T)
    owners = np.repeat(np.arange(models), d)
    try:
        expected = published(joint, owners, d, alpha, beta)
    except Stuck:  # see the test of what is left below
        return
    assert _groups(zipped(joint, owners, d, alpha, beta)) == expected


@given(seed=st.integers(0, 1000), models=st.integers(2, 4), beta=st.sampled_from([0.0, 0.5]))
@settings(max_examples=40, deadline=None)
def test_at_alpha_0_a_group_takes_no_model_twice(seed: int, models: int, beta: float) -> None:
    d = 6
    joint = np.corrcoef(np.hstack(related(models, d=d, seed=seed)).T)
    owners = np.repeat(np.arange(models), d)
    try:
        expected = published(joint, owners, d, 0.0, beta)
    except Stuck:
        return
    found = _groups(zipped(joint, owners, d, 0.0, beta))
    assert found == expected
    if beta == 0:
        assert all(len({owners[f] for f in g}) == len(g) for g in found)


def test_the_parity_tests_reach_the_end() -> None:
    """With two models and any budget, something is always left to merge."""
    for seed in range(10):
        for beta in (0.0, 0.5):
            joint = np.corrcoef(np.hstack(related(2, d=8, seed=seed)).T)
            owners = np.repeat(np.arange(2), 8)
            for alpha in (0.0, 0.3):
                expected = published(joint, owners, 8, alpha, beta)
                assert _groups(zipped(joint, owners, 8, alpha, beta)) == expected


def test_where_nothing_allowed_is_left_the_nearest_are_merged() -> None:
    """Three models, one feature a group at alpha 0: greedy choices can leave no partner."""
    left_over = 0
    for seed in range(40):
        joint = np.corrcoef(np.hstack(related(3, d=4, seed=seed)).T)
        owners = np.repeat(np.arange(3), 4)
        labels = zipped(joint, owners, 4, 0.0, 0.0)
        assert set(labels) == set(range(4))
        try:
            published(joint, owners, 4, 0.0, 0.0)
        except Stuck:
            left_over += 1
    assert left_over


def test_equal_similarities_are_taken_in_order() -> None:
    owners = np.repeat(np.arange(2), 5)
    joint = np.full((10, 10), 0.5)
    for alpha in (0.0, 0.3, 1.0):
        expected = published(joint, owners, 5, alpha, 0.0)
        assert _groups(zipped(joint, owners, 5, alpha, 0.0)) == expected


def test_merge_and_unmerge_matrices() -> None:
    """Shares of a group's members sum to one over all models; what reads a member reads it all."""
    of_models = related(3, d=8)
    alignment = alignment_of(*of_models)
    row = zipit(alignment, beta=0.5)["test"]
    owners = np.repeat(np.arange(3), 8)
    joint = correlations(moments_of(*of_models))
    groups = published(joint, owners, 8, 0.3, 0.5)
    assert any(len({owners[f] for f in g}) < len(g) for g in groups)  # merges within a model
    merge = np.vstack([s.feature_map.forward.numpy() for s in row]) / 3
    unmerge = np.hstack([s.feature_map.inverse.numpy() for s in row]).T
    expected = np.array([[f in g for g in groups] for f in range(24)], dtype=float)
    np.testing.assert_array_equal(unmerge, expected)
    np.testing.assert_allclose(merge, expected / expected.sum(0), rtol=1e-15)
    for i, solution in enumerate(row):
        has = [{f - 8 * i for f in g if owners[f] == i} for g in groups]
        shared = sum(
            bool(h) and len({owners[f] for f in g}) > 1 for h, g in zip(has, groups, strict=True)
        )
        assert solution.details == {
            "shared": shared,
            "within": sum(len(h) - 1 for h in has if h),
        }


def test_the_budget_bounds_merges_within_each_model() -> None:
    """A model with two copies of each feature would merge all of them within."""
    x = np.random.default_rng(0).standard_normal((300, 4))
    twice = np.hstack([x, x])
    other = np.random.default_rng(1).standard_normal((300, 8))
    for beta, allowed in ((0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)):
        row = zipit(alignment_of(twice, other), beta=beta)["test"]
        assert row[0].details["within"] == allowed


def test_a_redundant_model_is_zipped_within_and_both_functions_survive() -> None:
    """Each model has half of its units twice: zipped, one network of the same size holds both."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 300, 4))
    row = zipit(alignment_of(np.hstack([a, a]), np.hstack([b, b])), beta=1.0)["test"]
    merged = [s.feature_map.forward.numpy() for s in row]
    back = [s.feature_map.inverse.numpy() for s in row]
    zipped_features = (np.hstack([a, a]) @ merged[0] + np.hstack([b, b]) @ merged[1]) / 2
    np.testing.assert_allclose(zipped_features @ back[0], np.hstack([a, a]), atol=1e-12)
    np.testing.assert_allclose(zipped_features @ back[1], np.hstack([b, b]), atol=1e-12)


def test_a_merged_network_is_the_published_sum() -> None:
    """``sum_i M_i W_i U_i`` by hand, for three networks."""
    models = [M.randomise(M.MLP((5, 8, 6, 3)), s).double() for s in range(3)]
    data = [torch.randn(64, 5).double() for _ in range(4)]
    result = ccamerge.merge(models, data, method="zipit", repair="none", progress=False)
    merge = [[m.forward.numpy().T / 3 for m in result.maps[f"layers.{k}"]] for k in range(2)]
    unmerge = [[m.inverse.numpy().T for m in result.maps[f"layers.{k}"]] for k in range(2)]
    w = [[m.layers[k].weight.detach().numpy() for k in range(3)] for m in models]
    b = [[m.layers[k].bias.detach().numpy() for k in range(3)] for m in models]
    found = {k: v.numpy() for k, v in result.model.state_dict().items()}
    expected = {
        "layers.0.weight": sum(merge[0][i] @ w[i][0] for i in range(3)),
        "layers.0.bias": sum(merge[0][i] @ b[i][0] for i in range(3)),
        "layers.1.weight": sum(merge[1][i] @ w[i][1] @ unmerge[0][i] for i in range(3)),
        "layers.1.bias": sum(merge[1][i] @ b[i][1] for i in range(3)),
        "layers.2.weight": sum(w[i][2] @ unmerge[1][i] for i in range(3)) / 3,
        "layers.2.bias": sum(b[i][2] for i in range(3)) / 3,
    }
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12, atol=1e-14, err_msg=key)


def test_zipping_only_some_spaces() -> None:
    """Up to a layer: the spaces after it keep their basis."""
    models: list[nn.Module] = [M.randomise(M.MLP((5, 8, 6, 7, 3)), s) for s in range(2)]
    data = [torch.randn(64, 5) for _ in range(2)]
    part = ccamerge.merge(
        models, data, method={"layers.0": "zipit", "*": "average"}, progress=False
    )
    whole = ccamerge.merge(models, statistics=part.statistics, method="zipit", progress=False)
    for mine, other in zip(part.maps["layers.0"], whole.maps["layers.0"], strict=True):
        assert torch.equal(mine.forward, other.forward)
    for name in ("layers.1", "layers.2"):
        assert all(
            torch.equal(m.forward, torch.eye(len(m.forward)).double()) for m in part.maps[name]
        )


def test_dead_units_are_zipped_with_dead_units() -> None:
    x = features()
    x[:, [3, 7]] = 0.0
    y = x[:, np.random.default_rng(3).permutation(12)]
    first, second = zipit(alignment_of(x, y), beta=0.5)["test"]
    for values, solution in ((x, first), (y, second)):
        member = solution.feature_map.inverse.numpy()  # groups, features
        dead = (values == 0).all(0)
        alive_groups = member[:, ~dead].any(1)
        assert not member[np.ix_(alive_groups, dead)].any()
        assert np.isfinite(solution.correlations).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [{"alpha": -0.1}, {"beta": 1.5}, {"alpha": float("nan")}])
def test_options_that_make_no_sense(option: dict[str, float]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be between 0 and 1"):
        zipit(alignment_of(*related(2)), **option)
