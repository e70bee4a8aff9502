"""A new element-wise operation, a new linear one and a new group, each registered in one place."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ccamerge
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import (
    FIXED,
    GENERAL,
    KNOWN,
    ORTHOGONAL,
    PERMUTATION,
    POSITIVE,
    SIGNED_PERMUTATION,
    Group,
    Plain,
    assigned,
    known,
)
from ccamerge.graph.operations import OPERATIONS, rule
from ccamerge.graph.rules.elementwise import elementwise
from ccamerge.graph.rules.linear import PLACES, dense
from tests import models as M
from tests.moved import mapped_copy


@torch.library.custom_op("extending::coarse", mutates_args=())
def coarse(x: Tensor) -> Tensor:
    """Numbers with five binary digits: signs and powers of two commute with that."""
    digits, exponent = torch.frexp(x)
    return torch.ldexp((digits * 32).round() / 32, exponent)


@torch.library.custom_op("extending::affine", mutates_args=())
def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


@coarse.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@affine.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


class _Affine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.extending.affine(x, self.weight, self.bias)
        return found


class _Coarse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.extending.coarse(x)
        return found


def _network() -> nn.Module:
    return nn.Sequential(
        *(_Affine(6, 12), nn.BatchNorm1d(12), _Coarse()),
        *(_Affine(12, 10), nn.ReLU()),
        _Affine(10, 4),
    )


def _nearest(matrix: Tensor) -> FeatureMap:
    order = assigned(matrix.abs())
    chosen = matrix[order, torch.arange(len(order))].double()
    power = torch.where(chosen != 0, chosen.abs().log2().round().exp2() * chosen.sign(), 1.0)
    permutation = FeatureMap.permutation(order)
    return FeatureMap(permutation.forward * power, permutation.inverse / power[:, None])


def _holds(matrix: Tensor) -> bool:
    single = all(bool(((matrix != 0).sum(dim) == 1).all()) for dim in (0, 1))
    return single and bool((torch.frexp(matrix[matrix != 0].abs())[0] == 0.5).all())


def _draw(size: int, generator: torch.Generator) -> FeatureMap:
    scales = torch.randint(-2, 3, (size,), generator=generator).double().exp2()
    own = SIGNED_PERMUTATION.random(size, generator)
    return FeatureMap(own.forward * scales, own.inverse / scales[:, None])


@pytest.fixture
def dyadic(monkeypatch: pytest.MonkeyPatch) -> Group:
    """The table with the new entries, which are removed again after the test."""
    for table, name in (
        (OPERATIONS, "extending.coarse"),
        (OPERATIONS, "extending.affine"),
        (KNOWN, "dyadic"),
    ):
        monkeypatch.setitem(table, name, None)
    group = known(
        Plain(
            "dyadic",
            "signed powers of two and permutation",
            *(_holds, _nearest, _draw),
            smaller=(SIGNED_PERMUTATION,),
            larger=(GENERAL,),
        )
    )
    elementwise("extending.coarse", commutes=group)
    rule("extending.affine", tap="write", places=PLACES, features=-1, linear=True)(dense)
    return group


def test_what_is_not_registered_is_pinned() -> None:
    found = ccamerge.spaces(_network(), torch.randn(4, 6))
    assert not found.spaces
    assert "no rule for extending.affine" in found.pinned["0.weight", 0]


def test_the_group_takes_its_place_among_the_others(dyadic: Group) -> None:
    assert SIGNED_PERMUTATION <= dyadic <= GENERAL
    assert dyadic & ORTHOGONAL == ORTHOGONAL & dyadic == SIGNED_PERMUTATION
    assert dyadic & POSITIVE == PERMUTATION
    assert not dyadic <= ORTHOGONAL
    assert dyadic >= FIXED
    for one, two in itertools.product([*KNOWN.values()], repeat=2):
        assert one & two == two & one
        assert one & two <= one
    found = dyadic.random(9, torch.Generator().manual_seed(0))
    assert dyadic.contains(found.forward)
    assert torch.equal(dyadic.project(found.forward).forward, found.forward)


def test_a_network_of_new_operations_is_understood(dyadic: Group) -> None:
    torch.manual_seed(0)
    model, x = M.randomise(_network()), torch.randn(64, 6)
    found = ccamerge.spaces(model, x)
    assert [(s.name, s.size, s.group) for s in found] == [("0", 12, GENERAL), ("3", 10, GENERAL)]
    assert [s.exact for s in found] == [dyadic, POSITIVE]
    assert "signed powers of two and permutation" in str(found)
    assert [[tap.kind for tap in s.taps] for s in found] == [["write", "activation"]] * 2
    assert len(found.folds) == 1
    checks = ccamerge.verify(model, x)
    assert all(check.passed for check in checks), "\n".join(map(str, checks))


def _models_and_data() -> tuple[list[nn.Module], list[Tensor]]:
    torch.manual_seed(0)
    models = [M.randomise(_network(), seed).double() for seed in range(2)]
    return models, [torch.randn(64, 6, dtype=torch.float64) for _ in range(4)]


@pytest.mark.parametrize("method", ["permutation", "cca", "procrustes"])
def test_it_is_merged_and_fitted(dyadic: Group, method: str) -> None:
    models, data = _models_and_data()
    result = ccamerge.merge(models, data, method=method, repair="regression", progress=False)
    assert {space.exact for space in result.report.spaces} == {dyadic.words, POSITIVE.words}
    assert {f.tap for f in result.report.fitted} == {"affine", "affine_1", "affine_2"}
    assert all(f.error < 1 for f in result.report.fitted)


def test_a_copy_in_other_features_is_the_same_network_and_merges_to_it(dyadic: Group) -> None:
    (model, _), data = _models_and_data()
    found = ccamerge.spaces(model, data[0])
    generator = torch.Generator().manual_seed(3)
    maps = {s.name: s.exact.random(s.size, generator) for s in found}
    moved = mapped_copy(model, found, maps)
    result = ccamerge.merge(
        [model, moved], data, method="cca", ridge=0.0, repair="none", progress=False
    )
    with torch.no_grad():
        wanted = model(data[0])
        torch.testing.assert_close(moved(data[0]), wanted)
        assert (result.model(data[0]) - wanted).norm() < 1e-6 * wanted.norm()
