"""What every merge owes, by every method, mode and repair, on every kind of network, on new inputs.

Copies merge into the network; all weight on one model is that model; a transformed copy merges
back; the order of the other models does not matter; nothing given is changed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.aligning import Aligned
from ccamerge.apply import transform
from ccamerge.graph.plain import put_back
from ccamerge.graph.spaces import Group
from ccamerge.graph.states import folded_state, same_architecture
from ccamerge.graph.trial import random_map
from ccamerge.merging import load_merged
from ccamerge.methods import METHODS
from tests import models as M

pytestmark = pytest.mark.filterwarnings("ignore:aligned. :RuntimeWarning")  # tested apart

ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: M.MLP((10, 12, 14, 4)), (10,)),
    "mlp without bias": (lambda: M.MLP((10, 12, 14, 4), bias=False), (10,)),
    "regressor": (lambda: M.MLP((8, 12, 12, 1)), (8,)),
    "reparametrised": (M.Reparametrised, (8,)),
    "linear": (M.Linears, (6,)),
    "normed": (lambda: M.NormedMLP(10, 12), (10,)),
    "tied": (M.TiedAutoencoder, (10,)),
    "unknown": (M.UnknownOp, (6,)),
    "vgg": (lambda: M.vgg11(False, 1, 16), (3, 16, 16)),
    "vgg with norms": (lambda: M.vgg11(True, 1, 16), (3, 16, 16)),
    "bottleneck": (lambda: M.BottleneckResNet(2), (3, 6, 6)),
    "depthwise": (lambda: M.DepthwiseSeparable(6), (3, 6, 6)),
    "dense": (lambda: M.DenseBlockNet(4, 2), (3, 6, 6)),
    "grouped": (M.GroupedConv, (3, 5, 5)),
    "convnext": (M.ConvNeXt, (3, 8, 8)),
    "transformer": (M.Transformer, (4, 6)),
}
METHODS_AND_MODES = [(name, mode) for name, m in METHODS.items() for mode in m.modes]
REPAIRS = ["none", "variance", "regression"]

FEW = ["mlp", "mlp without bias", "regressor", "normed", "bottleneck", "grouped", "transformer"]
"""Networks that are merged by fewer samples, and positions of maps, than they have features."""

TOLERANCE = 1e-8
"""Relative. Rounding is 2e-16 times the condition of covariances, whose floor is that of the ridge
or, for rotations, what counts as varying; the sum of squares of small ones is beyond 1e-6."""


@dataclasses.dataclass(frozen=True)
class Family:
    """Networks of one architecture in double precision, their moments, and new inputs.

    ``models`` are three different ones, two copies of the first and two transformed ones.
    """

    models: list[nn.Module]
    new: Tensor
    collected: ccamerge.Collected
    outputs: list[Tensor]
    aligned: dict[Any, Aligned] = dataclasses.field(default_factory=dict)

    def merged(self, chosen: Sequence[int], **settings: Any) -> Tensor:
        """Outputs of a merge of some of the models; what is aligned is aligned once."""
        how = {k: v for k, v in settings.items() if k not in ("repair", "t")}
        key = (tuple(chosen), str(sorted(how.items())))
        result = ccamerge.merge(
            [self.models[i] for i in chosen],
            moments=self.collected.subset(chosen),
            aligned=self.aligned.get(key),
            progress=False,
            **settings,
        )
        self.aligned[key] = result.aligned
        return outputs(result.model, self.new)

    def off(self, found: Tensor, model: int = 0) -> float:
        """By how much outputs differ from a model's, relatively."""
        return off(found, self.outputs[model])


DIFFERENT, COPIES, TRANSFORMED = [0, 1, 2], [0, 3, 4], [0, 5, 6]


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(x)
        return found


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def transformed(model: nn.Module, example: Tensor, kind: str, seed: int) -> nn.Module:
    """The same function, features permuted or mapped by what each space is exact under."""
    found = ccamerge.spaces(model, example)
    generator = torch.Generator().manual_seed(seed)
    maps = {
        s.name: random_map(
            s, s.exact if kind == "exact" and s.group is Group.GENERAL else kind, generator
        )
        for s in found.spaces
    }
    plain = same_architecture([model, model])[0]
    moved = copy.deepcopy(plain)
    load_merged(moved, transform(folded_state(plain, found), found.spaces, maps), found, {})
    if plain is model:
        return moved
    holder = copy.deepcopy(model)
    put_back(holder, moved)
    return holder


@functools.cache
def family(name: str, few: bool = False, kind: str = "permutation") -> Family:
    build, shape = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(3)
    images = len(shape) == 3
    size, batches = ((1, 2) if images else (3, 2)) if few else (8, 4) if images else (16, 4)
    data = [torch.randn(size, *shape, generator=generator).double() for _ in range(batches)]
    new = torch.randn(24, *shape, generator=generator).double()
    torch.manual_seed(0)
    different = [M.randomise(build(), seed).double() for seed in range(3)]
    first = different[0]
    copies = [copy.deepcopy(first) for _ in range(2)]
    moved = [transformed(first, data[0], kind, seed).eval() for seed in range(2)]
    models = [*different, *copies, *moved]
    collected = ccamerge.collect(models, data, pairs="all", progress=False)
    found = Family(models, new, collected, [outputs(m, new) for m in models])
    assert all(found.off(found.outputs[i]) < 1e-10 for i in TRANSFORMED)
    assert not any(torch.equal(o, found.outputs[0]) for o in found.outputs[1:3])
    return found


every = [
    pytest.mark.parametrize("repair", REPAIRS),
    pytest.mark.parametrize(
        ("method", "mode"), METHODS_AND_MODES, ids=[f"{a}-{b}" for a, b in METHODS_AND_MODES]
    ),
    pytest.mark.parametrize(
        ("name", "few"),
        [*((name, False) for name in ARCHITECTURES), *((name, True) for name in FEW)],
        ids=[*ARCHITECTURES, *(f"{name}, few" for name in FEW)],
    ),
]


def all_combinations(test: Any) -> Any:
    return functools.reduce(lambda t, mark: mark(t), every, test)


@all_combinations
def test_copies_merge_into_the_network(
    name: str, few: bool, method: str, mode: Any, repair: Any
) -> None:
    found = family(name, few)
    for chosen in (COPIES[:2], COPIES):
        merged = found.merged(chosen, method=method, mode=mode, repair=repair)
        assert found.off(merged) < TOLERANCE, len(chosen)


@all_combinations
def test_all_weight_on_one_model_is_that_model(
    name: str, few: bool, method: str, mode: Any, repair: Any
) -> None:
    found = family(name, few)
    merge = functools.partial(found.merged, DIFFERENT, method=method, mode=mode, repair=repair)
    for model in DIFFERENT:
        weights = [int(i == model) for i in DIFFERENT]
        assert found.off(merge(weights=weights), model) == 0
    assert found.off(merge(t=0)) == 0


@all_combinations
def test_transformed_copies_merge_back(
    name: str, few: bool, method: str, mode: Any, repair: Any
) -> None:
    if method == "average":
        return
    found = family(name, few)
    merged = found.merged(TRANSFORMED, method=method, mode=mode, repair=repair)
    assert found.off(merged) < TOLERANCE


@all_combinations
def test_the_order_of_the_other_models_does_not_matter(
    name: str, few: bool, method: str, mode: Any, repair: Any
) -> None:
    found = family(name, few)
    merge = functools.partial(found.merged, method=method, mode=mode, repair=repair)
    assert off(merge([0, 2, 1]), merge(DIFFERENT)) < TOLERANCE


@all_combinations
def test_almost_all_weight_is_almost_that_model(
    name: str, few: bool, method: str, mode: Any, repair: Any
) -> None:
    if method == "zipit":
        return
    found = family(name, few)
    assert (
        found.off(found.merged(DIFFERENT, method=method, mode=mode, repair=repair, t=1e-9)) < 1e-6
    )
