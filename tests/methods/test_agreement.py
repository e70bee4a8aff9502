"""Queries and keys that models do not agree in are one model's."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge import FeatureMap
from ccamerge.graph.attention.heads import Heads, Part
from ccamerge.graph.attention.pairing import Pairing
from ccamerge.graph.groups import GENERAL
from ccamerge.graph.maps import transform
from ccamerge.graph.networks.states import folded_state
from ccamerge.methods import Solution
from ccamerge.methods.agreement import ENOUGH, with_agreement
from ccamerge.methods.weights import Shares
from tests import attending as A
from tests import models as M
from tests.moved import exact_maps, mapped_copy

Row = tuple[float, ...]


def _changed(asked: Row, agreement: Row, reference: int = 0, **given: frozenset[str]) -> Shares:
    one = ((0, 1),)
    parts = [Part(space, one) for space in "qkvo"]
    heads = Heads("attention", *parts, Pairing(2), GENERAL, False, False)  # type: ignore[arg-type]
    rows = [
        Solution(FeatureMap.identity(2), None if i == reference else np.array([a, a]))
        for i, a in enumerate(agreement)
    ]
    shares = Shares(asked, {}, {})
    found, reasons = with_agreement(
        shares, [heads], dict.fromkeys("qkvo", rows), reference, **given
    )
    changed = found.of_space("q") != asked
    assert found.of_space("q") == found.of_space("k")
    assert found.of_space("v") == found.of_space("o") == found.default == asked
    assert set(reasons) == (set("qk") if changed else set())
    return found


@pytest.mark.parametrize(
    ("asked", "agreement", "reference", "expected"),
    [
        ((0.5, 0.5), (1.0, 0.9), 0, (0.5, 0.5)),
        ((0.5, 0.5), (1.0, ENOUGH), 0, (0.5, 0.5)),
        ((0.5, 0.5), (1.0, 0.1), 0, (1.0, 0.0)),
        ((0.5, 0.5), (0.1, 1.0), 1, (0.0, 1.0)),
        ((0.4, 0.6), (1.0, 0.1), 0, (0.0, 1.0)),
        ((0.6, 0.4), (1.0, 0.1), 0, (1.0, 0.0)),
        ((0.5, 0.25, 0.25), (1.0, 0.1, 0.9), 0, (2 / 3, 0.0, 1 / 3)),
        ((0.2, 0.3, 0.5), (1.0, 0.1, 0.9), 0, (0.0, 0.0, 1.0)),
        ((1.0, 0.0), (1.0, 0.1), 0, (1.0, 0.0)),
        ((0.5, 0.0, 0.5), (1.0, 0.1, 0.9), 0, (0.5, 0.0, 0.5)),
        ((0.5, 0.5), (1.0, float("nan")), 0, (1.0, 0.0)),
    ],
)
def test_shares(asked: Row, agreement: Row, reference: int, expected: Row) -> None:
    assert _changed(asked, agreement, reference).of_space("q") == pytest.approx(expected)


def test_features_that_are_taken_to_correspond_are_averaged() -> None:
    found = _changed((0.5, 0.5), (1.0, 0.1), unmoved=frozenset({"k"}))
    assert found.of_space("q") == (0.5, 0.5)


X = torch.randn(64, 5, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FUSED = {"apart": False, "head by head": True}


@functools.cache
def _merged(name: str) -> tuple[list[nn.Module], ccamerge.MergeResult]:
    """Two unrelated networks whose queries, keys and values one layer writes, merged."""
    torch.manual_seed(0)
    models = [
        M.randomise(A.Fused(interleaved=FUSED[name]), seed).double().eval() for seed in range(2)
    ]
    return models, ccamerge.merge(models, [X], repair="none", progress=False)


def _again(name: str, t: float) -> ccamerge.MergeResult:
    models, first = _merged(name)
    given = {"statistics": first.statistics, "aligned": first.aligned}
    return ccamerge.merge(models, t=t, repair="none", progress=False, **given)  # type: ignore[arg-type]


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


@pytest.mark.parametrize("name", FUSED)
def test_of_unrelated_networks_one_has_the_queries_and_keys(name: str) -> None:
    models, result = _merged(name)
    found = result.spaces
    names = {heads.queries.space for heads in found.attention}
    names |= {heads.keys.space for heads in found.attention}
    assert set(result.report.chosen) == names
    mapped = [
        transform(
            folded_state(model.state_dict(), found.folds),
            found.spaces,
            {key: row[index] for key, row in result.maps.items()},
        )
        for index, model in enumerate(models)
    ]
    state = result.model.state_dict()
    for key in ("qkv.weight", "qkv.bias"):
        one, two, have = (own[key] for own in (*mapped, state))
        rows = len(have) if FUSED[name] else 2 * len(have) // 3
        assert _close(have[:rows], one[:rows], 1e-12)
        if rows < len(have):
            assert _close(have[rows:], (one[rows:] + two[rows:]) / 2, 1e-12)
    want = (mapped[0]["out.weight"] + mapped[1]["out.weight"]) / 2
    assert _close(state["out.weight"], want, 1e-12)


@pytest.mark.parametrize("name", FUSED)
def test_ends_are_the_networks_own_functions(name: str) -> None:
    models, _ = _merged(name)
    with torch.no_grad():
        outputs = [model(X) for model in models]
        for end, near in ((0.0, 1e-9), (1.0, 1 - 1e-9)):
            want = outputs[int(end)]
            assert _close(_again(name, end).model(X), want, 1e-10)
            assert _close(_again(name, near).model(X), want, 1e-5)


def test_copies_are_averaged() -> None:
    models, first = _merged("apart")
    other = mapped_copy(models[0], first.spaces, exact_maps(first.spaces, 2))
    result = ccamerge.merge(
        [models[0], other], [X], ridge=0.0, weights=[1, 3], repair="none", progress=False
    )
    assert not result.report.chosen
    with torch.no_grad():
        assert _close(result.model(X), models[0](X), 1e-5)


def test_parts_of_one_parameter_have_the_weights_of_their_spaces() -> None:
    models, first = _merged("apart")
    (heads,) = first.spaces.attention
    weights = {heads.values.space: [0, 1], "*": [1, 0]}
    given = {"statistics": first.statistics, "aligned": first.aligned}
    merged = ccamerge.merge(models, weights=weights, repair="none", progress=False, **given)
    maps = {key: row[1] for key, row in first.maps.items()}
    state = folded_state(models[1].state_dict(), first.spaces.folds)
    there = transform(state, first.spaces.spaces, maps)
    for key in ("qkv.weight", "qkv.bias"):
        have = merged.model.state_dict()[key]
        assert torch.equal(have[:16], models[0].state_dict()[key][:16])
        assert _close(have[16:], there[key][16:], 1e-12)
