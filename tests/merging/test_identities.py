"""What every merge owes, by every method, mode and repair, on every kind of network, on new inputs.

Copies merge into the network; all weight on one model is that model; a transformed copy merges
back; the order of the other models does not matter; nothing given is changed.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import ccamerge
from ccamerge.config.settings import Repair
from ccamerge.graph.groups import GENERAL, PERMUTATION
from ccamerge.graph.networks.parameters import parameters_of
from ccamerge.graph.tracing.plain import take_plain
from ccamerge.methods import METHODS
from ccamerge.methods.alignment import Aligned
from tests import models as M
from tests.moved import mapped_copy, permuted_heads

pytestmark = [
    pytest.mark.filterwarnings("ignore:aligned. :RuntimeWarning"),  # tested apart
    pytest.mark.usefixtures("one_thread"),
]


def _bottleneck() -> nn.Module:
    """An identity and a projected shortcut, behind a stem."""
    blocks = M.Bottleneck(8, 2), M.Bottleneck(8, 2, stride=2)
    stem = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def _flattened() -> nn.Module:
    """Channels of maps of several positions, read by a linear layer."""
    maps = nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*maps, nn.Linear(54, 8), nn.ReLU(), nn.Linear(8, 3))


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: M.MLP((10, 12, 14, 4)), (10,)),
    "mlp without bias": (lambda: M.MLP((10, 12, 14, 4), bias=False), (10,)),
    "regressor": (lambda: M.MLP((8, 12, 12, 1)), (8,)),
    "reparametrised": (M.Reparametrised, (8,)),
    "linear": (M.Linears, (6,)),
    "normed": (lambda: M.NormedMLP(10, 12), (10,)),
    "tied": (M.TiedAutoencoder, (10,)),
    "unknown": (M.UnknownOp, (6,)),
    "flattened": (_flattened, (3, 8, 8)),
    "vgg with norms": (lambda: M.vgg11(True, 1, 16), (3, 16, 16)),
    "bottleneck": (_bottleneck, (3, 6, 6)),
    "depthwise": (lambda: M.DepthwiseSeparable(6), (3, 6, 6)),
    "dense": (lambda: M.DenseBlockNet(4, 2), (3, 6, 6)),
    "grouped": (M.GroupedConv, (3, 5, 5)),
    "convnext": (M.ConvNeXt, (3, 8, 8)),
    "transformer": (M.Transformer, (4, 6)),
}

FEW = ["mlp", "mlp without bias", "bottleneck", "grouped", "transformer"]
"""Networks that are merged by fewer samples, and positions of maps, than they have features."""

INVERTIBLE = ["mlp", "mlp without bias", "linear", "dense", "bottleneck", "depthwise", "grouped"]
"""Networks of which all units vary, so that covariances have full rank."""

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
    collected: ccamerge.Statistics
    outputs: list[Tensor]
    aligned: dict[Any, Aligned] = dataclasses.field(default_factory=dict)
    subsets: dict[tuple[int, ...], ccamerge.Statistics] = dataclasses.field(default_factory=dict)

    def merged(self, chosen: Sequence[int], **settings: Any) -> Tensor:
        """Outputs of a merge of some of the models; what is aligned is aligned once."""
        how = {k: v for k, v in settings.items() if k not in ("repair", "t")}
        some = tuple(chosen)
        if some not in self.subsets:
            self.subsets[some] = self.collected.subset(chosen)
        key = (some, str(sorted(how.items())))
        result = ccamerge.merge(
            [self.models[i] for i in chosen],
            statistics=self.subsets[some],
            aligned=self.aligned.get(key),
            progress=False,
            **settings,
        )
        self.aligned[key] = result.aligned
        return outputs(result.model, self.new)

    def off(self, found: Tensor, model: int = 0) -> float:
        """By how much outputs differ from a model's, relatively."""
        return off(found, self.outputs[model])


DIFFERENT, COPIES, MOVED = [0, 1, 2], [0, 3, 4], [0, 5, 6]


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(x)
        return found


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def transformed(model: nn.Module, example: Tensor, kind: str, seed: int) -> nn.Module:
    """The same function with all features mapped: permuted, or by each space's own group."""
    found = ccamerge.spaces(model, example)
    generator = torch.Generator().manual_seed(seed)
    maps = permuted_heads(found, generator)
    for space in [space for space in found.spaces if space.name not in found.attended]:
        open_to_all = kind == "exact" and space.group == GENERAL
        group = space.exact if open_to_all else PERMUTATION
        maps[space.name] = group.random(space.size, generator)
        if kind == "rotation":
            turn = torch.linalg.qr(maps[space.name].forward + torch.eye(space.size))[0]
            maps[space.name] = ccamerge.FeatureMap(turn, turn.T.contiguous())
    plain = parameters_of(model, "the model").plain
    moved = mapped_copy(plain, found, maps)
    if plain is model:
        return moved
    holder = copy.deepcopy(model)
    take_plain(holder, moved)
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
    for model in different:  # singular vectors that go with the random weights
        take_plain(model, parameters_of(model, "the model").plain)
    first = different[0]
    copies = [copy.deepcopy(first) for _ in range(2)]
    moved = [transformed(first, data[0], kind, seed).eval() for seed in range(2)]
    models = [*different, *copies, *moved]
    collected = ccamerge.collect(models, data, pairs="all", progress=False)
    found = Family(models, new, collected, [outputs(m, new) for m in models])
    assert all(found.off(found.outputs[i]) < 1e-10 for i in MOVED)
    assert not any(torch.equal(o, found.outputs[0]) for o in found.outputs[1:3])
    return found


REPAIRS = get_args(Repair)
APPROACHES = [(name, mode) for name, method in METHODS.items() for mode in method.modes]
FAMILIES = [*((name, False) for name in ARCHITECTURES), *((name, True) for name in FEW)]


def of_families(families: Sequence[tuple[str, bool]] = FAMILIES) -> Any:
    """All that is asked of one family, one after the other."""
    ids = [f"{name}, few" if few else name for name, few in families]
    return pytest.mark.parametrize(("name", "few"), families, ids=ids, scope="module")


def by(approaches: Sequence[tuple[str, str]] = APPROACHES) -> Any:
    return pytest.mark.parametrize(("method", "mode"), approaches, ids=map("-".join, approaches))


def check(offs: dict[Any, float]) -> None:
    """All that outputs are off by, by what was merged how."""
    assert all(value < TOLERANCE for value in offs.values()), offs


@of_families()
@by()
def test_copies_merge_into_the_network(name: str, few: bool, method: str, mode: Any) -> None:
    found = family(name, few)
    merge = functools.partial(found.merged, method=method, mode=mode)
    two = {repair: found.off(merge(COPIES[:2], repair=repair)) for repair in REPAIRS}
    three = {repair: found.off(merge(COPIES, repair=repair)) for repair in REPAIRS}
    check(two)
    check(three)


@of_families()
@by()
def test_all_weight_on_one_model_is_that_model(
    name: str, few: bool, method: str, mode: Any
) -> None:
    found = family(name, few)
    merge = functools.partial(found.merged, DIFFERENT, method=method, mode=mode)
    offs = {}
    for repair in REPAIRS:
        for model in DIFFERENT:
            weights = [int(i == model) for i in DIFFERENT]
            offs[repair, model] = found.off(merge(weights=weights, repair=repair), model)
        offs[repair, "t=0"] = found.off(merge(t=0, repair=repair))
    check(offs)


# The method "average" keeps all bases: a permuted copy is another network to it.
@of_families()
@by([(method, mode) for method, mode in APPROACHES if method != "average"])
def test_permuted_copies_merge_back(name: str, few: bool, method: str, mode: Any) -> None:
    """Permutations belong to every network's group and to every other method's class of maps."""
    found = family(name, few)
    merge = functools.partial(found.merged, MOVED, method=method, mode=mode)
    check({repair: found.off(merge(repair=repair)) for repair in REPAIRS})


@of_families()
@by()
def test_the_order_of_the_other_models_does_not_matter(
    name: str, few: bool, method: str, mode: Any
) -> None:
    found = family(name, few)
    merge = functools.partial(found.merged, method=method, mode=mode)
    check({r: off(merge([0, 2, 1], repair=r), merge(DIFFERENT, repair=r)) for r in REPAIRS})


# Maps beyond permutations and rotations are undone by CCA alone, and by it without a ridge: the
# ridge is an assumption about scales. Covariances have to have full rank for that: networks whose
# units all vary, and plenty of samples.
@of_families([(name, False) for name in INVERTIBLE])
@by([(method, mode) for method, mode in APPROACHES if method == "cca"])
def test_mapped_copies_merge_back(name: str, few: bool, method: str, mode: Any) -> None:
    """Any invertible map where nothing but linear layers touch a space, scales behind a ReLU."""
    found = family(name, few, "exact")
    merge = functools.partial(found.merged, MOVED, method=method, mode=mode, ridge=0.0)
    check({repair: found.off(merge(repair=repair)) for repair in REPAIRS})


# Rotations are exact only where no non-linearity touches a space.
@of_families([("linear", False)])
@by([(method, mode) for method, mode in APPROACHES if method in ("cca", "procrustes")])
def test_rotated_copies_merge_back(name: str, few: bool, method: str, mode: Any) -> None:
    found = family(name, few, "rotation")
    merge = functools.partial(found.merged, MOVED, method=method, mode=mode)
    check({repair: found.off(merge(repair=repair)) for repair in REPAIRS})


class Counting(nn.Module):
    """Each call changes buffers, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.tensor(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.inputs(x))
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        self.calls.add_(1)
        return self.outputs(x)


@dataclasses.dataclass(frozen=True)
class Seen:
    """All that could be changed of a model, tensors as bytes."""

    tensors: dict[str, tuple[Any, ...]]
    modules: dict[str, tuple[Any, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> Seen:
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return cls(
            {
                name: (
                    id(t),
                    t.data_ptr(),
                    t.requires_grad,
                    t.dtype,
                    t.stride(),
                    content(t),
                    None if t.grad is None else (id(t.grad), content(t.grad)),
                )
                for name, t in tensors
            },
            {
                name: (id(m), type(m), m.training, [*vars(m)], [*m._forward_hooks])
                for name, m in model.named_modules()
            },
        )


def content(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


LABELLED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{name: ARCHITECTURES[name] for name in ("mlp", "reparametrised", "tied", "transformer")},
    **{name: ARCHITECTURES[name] for name in ("bottleneck", "flattened")},
    "counting": (Counting, (6,)),
    "dropout": (lambda: nn.Sequential(M.MLP((6, 8, 8)), nn.Dropout(0.5), nn.Linear(8, 3)), (6,)),
}


@pytest.mark.parametrize("name", LABELLED)
def test_nothing_given_is_changed(name: str) -> None:
    """By any of the functions that take models and data, to the bit; nor is torch's own state."""
    build, shape = LABELLED[name]
    models = [M.randomise(build(), seed) for seed in range(3)]
    models[0].train()
    next(models[1].modules()).train()  # the outermost only: flags that differ within a model
    first = next(models[2].parameters())
    first.requires_grad_(False)
    inputs = [torch.randn(8, *shape) for _ in range(3)]
    with torch.no_grad():
        width = models[2](inputs[0]).shape[1]
    for parameter in models[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    labelled = [(x, torch.randint(width, (8,))) for x in inputs]
    before = [Seen.of(model) for model in models]
    data = [[content(t) for t in batch] for batch in labelled]
    whole = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype()

    def unchanged(what: str) -> None:
        for index, (model, seen) in enumerate(zip(models, before, strict=True)):
            assert Seen.of(model) == seen, f"{what} changed models[{index}]"
        assert [[content(t) for t in batch] for batch in labelled] == data, what
        assert torch.equal(torch.get_rng_state(), whole[0]), what
        assert (torch.is_grad_enabled(), torch.get_default_dtype()) == whole[1:], what

    moments = ccamerge.collect(models, labelled, pairs="all", progress=False)
    unchanged("collect")
    ccamerge.merge(models, labelled, progress=False)
    unchanged("merge of data")
    for repair in REPAIRS:
        ccamerge.merge(models, statistics=moments, repair=repair, progress=False)
        unchanged(f"merge with repair {repair!r}")
    ccamerge.merge(models, statistics=moments, norm="paper", progress=False)
    unchanged("merge with the paper's norm")
    merged = ccamerge.merge(models, statistics=moments, weights=[0, 1, 0], progress=False).model
    with torch.no_grad():
        for tensor in merged.state_dict().values():
            tensor.zero_()
    unchanged("writing to a merge with all weight on one model")
    ccamerge.evaluate(models, labelled)
    unchanged("evaluate")
    ccamerge.compare(models, labelled, statistics=moments, methods=["cca", "zipit"], progress=False)
    unchanged("compare")
    ccamerge.barrier(models, labelled, statistics=moments, points=3)
    unchanged("barrier")
    ccamerge.verify(models[0], inputs[0])
    unchanged("verify")
