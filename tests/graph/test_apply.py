"""Transforming parameters, against a dense reference written with einsum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import GENERAL
from ccamerge.graph.maps import transform
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.networks.states import folded_state
from ccamerge.graph.space import Role, Slot, Space
from ccamerge.merging.averaging import average
from tests import models as M


def _space(size: int, *slots: Slot) -> Space:
    return Space("s", size, GENERAL, GENERAL, (), slots, ())


def _map(size: int, seed: int = 0) -> FeatureMap:
    space = _space(size)
    return GENERAL.random(space.size, torch.Generator().manual_seed(seed))


def _dense(length: int, start: int, outer: int, inner: int, matrix: Tensor) -> Tensor:
    """The (length, length) matrix of a slot on a whole axis: an identity around a block."""
    block = torch.kron(
        torch.eye(outer, dtype=torch.float64),
        torch.kron(matrix.contiguous(), torch.eye(inner, dtype=torch.float64)),
    )
    whole = torch.eye(length, dtype=torch.float64)
    stop = start + len(block)
    whole[start:stop, start:stop] = block
    return whole


@pytest.mark.parametrize("role", [Role.WRITE, Role.READ, Role.SCALE, Role.NORM])
@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize(("start", "outer", "inner"), [(0, 1, 1), (2, 1, 1), (1, 2, 3), (0, 3, 1)])
def test_a_slot_is_a_dense_product(
    role: Role, dim: int, start: int, outer: int, inner: int
) -> None:
    size, feature_map = 3, _map(3)
    shape = [4, 4, 4]
    shape[dim] = start + outer * size * inner + 2
    weight = torch.randn(shape, dtype=torch.float64)
    slot = Slot("w", dim, role, start, outer, inner)
    out = transform({"w": weight}, [_space(size, slot)], {"s": feature_map})["w"]
    matrix = feature_map.inverse.T if role is Role.READ else feature_map.forward
    dense = _dense(shape[dim], start, outer, inner, matrix)
    expected = torch.moveaxis(
        torch.einsum("...a,ab->...b", weight.moveaxis(dim, -1), dense), -1, dim
    )
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)


def test_rows_limit_a_slot() -> None:
    feature_map, weight = _map(3), torch.randn(6, 3, 2, 2)
    slot = Slot("w", 1, Role.READ, 0, 1, 1, rows=(2, 4))
    out = transform({"w": weight}, [_space(3, slot)], {"s": feature_map})["w"]
    assert torch.equal(out[:2], weight[:2])
    assert torch.equal(out[4:], weight[4:])
    expected = torch.einsum("oihw,ij->ojhw", weight[2:4].double(), feature_map.inverse.T)
    torch.testing.assert_close(out[2:4], expected.float(), rtol=1e-6, atol=1e-6)


def test_a_variance_never_turns_negative() -> None:
    slot = Slot("v", 0, Role.VARIANCE, 0, 1, 1)
    variance = torch.rand(4, dtype=torch.float64)
    feature_map = _map(4)
    out = transform({"v": variance}, [_space(4, slot)], {"s": feature_map})["v"]
    torch.testing.assert_close(out, variance @ feature_map.forward**2)
    assert (out > 0).all()


def test_the_same_place_named_twice_is_transformed_once() -> None:
    slots = [Slot("w", 0, role, 0, 1, 1) for role in (Role.WRITE, Role.SCALE)]
    permutation = FeatureMap.permutation([2, 0, 1])
    weight = torch.arange(3.0)
    out = transform({"w": weight}, [_space(3, *slots)], {"s": permutation})["w"]
    assert torch.equal(out, weight[[2, 0, 1]])


def test_inputs_are_not_modified_and_dtypes_kept() -> None:
    model = M.randomise(M.vgg11(True, width=2, size=16)).half()
    found = spaces(model.float(), torch.randn(2, 3, 16, 16))
    state = {k: v.half() if v.is_floating_point() else v for k, v in
             folded_state(model.state_dict(), found.folds).items()}  # fmt: skip
    before = {k: v.clone() for k, v in state.items()}
    maps = {s.name: _map(s.size) for s in found}
    out = transform(state, found.spaces, maps)
    assert all(torch.equal(v, before[k]) for k, v in state.items())
    assert {k: v.dtype for k, v in out.items()} == {k: v.dtype for k, v in state.items()}
    changed = {k for k in out if not torch.equal(out[k], state[k])}
    assert changed == {slot.parameter for s in found for slot in s.slots}


def test_a_map_and_its_inverse_cancel() -> None:
    model = M.randomise(M.BottleneckResNet()).double()
    found = spaces(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    state = folded_state(model.state_dict(), found.folds)
    maps = {s.name: _map(s.size, i) for i, s in enumerate(found)}
    back = {name: FeatureMap(m.inverse, m.forward) for name, m in maps.items()}
    there = transform(state, found.spaces, maps)
    again = transform(there, found.spaces, back)
    for key, value in state.items():
        torch.testing.assert_close(again[key], value, rtol=1e-11, atol=1e-11)


def test_a_space_without_a_map_is_left_alone() -> None:
    found = spaces(M.MLP(), torch.randn(2, 12))
    state = folded_state(M.randomise(M.MLP()).state_dict(), found.folds)
    out = transform(state, found.spaces, {"layers.0": _map(16)})
    assert torch.equal(out["layers.2.weight"], state["layers.2.weight"])
    assert not torch.equal(out["layers.1.weight"], state["layers.1.weight"])


def test_permutation_takes_own_features_in_order() -> None:
    order = [2, 0, 3, 1]
    features = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(features @ FeatureMap.permutation(order).forward, features[:, order])
    m = FeatureMap.permutation(torch.tensor(order))
    assert torch.equal(m.forward @ m.inverse, torch.eye(4, dtype=torch.float64))


def test_average() -> None:
    states = [{"w": torch.full((2,), v), "n": torch.tensor(i)} for i, v in enumerate([1.0, 4.0])]
    out, reasons = average(states, lambda key: [0.75, 0.25])
    assert torch.equal(out["w"], torch.full((2,), 1.75))
    assert out["w"].dtype is torch.float32
    assert out["n"] == 0  # counters come from the first
    assert out["n"] is not states[0]["n"]
    assert reasons == {"n": "it is of int64, and differs"}


def test_average_sums_in_double() -> None:
    """In float32, 1 + 1e-8 - 1 is 0."""
    states = [{"w": torch.tensor([v])} for v in (1.0, 1e-8, -1.0)]
    torch.testing.assert_close(
        average(states, lambda key: [1.0, 1.0, 1.0])[0]["w"], torch.tensor([1e-8])
    )


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_have_a_mean(dtype: torch.dtype) -> None:
    states = [
        {"w": torch.tensor([1 + 2j, 3j], dtype=dtype)},
        {"w": torch.tensor([3 - 4j, 1j], dtype=dtype)},
    ]
    out, reasons = average(states, lambda key: [0.5, 0.5])
    assert torch.equal(out["w"], torch.tensor([2 - 1j, 2j], dtype=dtype))
    assert not reasons


def test_models_without_a_share_do_not_count() -> None:
    """Zero times infinity would be NaN, and so would be zero times NaN."""
    inf, nan = float("inf"), float("nan")
    states = [{"w": torch.tensor([1.0, -inf, 2.0])}, {"w": torch.tensor([nan, inf, inf])}]
    for shares, index in (([1.0, 0.0], 0), ([0.0, 1.0], 1)):
        out, reasons = average(states, lambda key, shares=shares: shares)
        torch.testing.assert_close(out["w"], states[index]["w"], equal_nan=True, rtol=0, atol=0)
        assert not reasons


def test_entries_that_are_not_finite_are_kept_where_models_agree() -> None:
    inf, nan = float("inf"), float("nan")
    states = [
        {"mask": torch.tensor([0.0, -inf, nan, 1.0])},
        {"mask": torch.tensor([2.0, -inf, nan, 3.0])},
    ]
    out, reasons = average(states, lambda key: [0.5, 0.5])
    torch.testing.assert_close(out["mask"], torch.tensor([1.0, -inf, nan, 2.0]), equal_nan=True)
    assert not reasons
    states[1]["mask"][1] = inf
    out, reasons = average(states, lambda key: [0.5, 0.5])
    assert out["mask"][1] == -inf
    assert "not finite" in reasons["mask"]


def test_what_the_traced_call_does_not_use_is_the_references() -> None:
    states = [
        {"head": torch.ones(2), "w": torch.ones(2)},
        {"head": torch.zeros(2), "w": torch.zeros(2)},
    ]
    out, reasons = average(states, lambda key: [0.5, 0.5], {"w"})
    assert out["head"].tolist() == [1.0, 1.0]
    assert out["w"].tolist() == [0.5, 0.5]
    assert reasons == {"head": "the traced call does not use it"}
