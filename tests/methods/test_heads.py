"""Maps within attention: heads are matched, and random maps of a copy's features found back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ccamerge.graph.attention.heads import Heads, Part
from ccamerge.graph.attention.pairing import Pairing
from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.groups import GENERAL, ORTHOGONAL, PERMUTATION, Group
from ccamerge.graph.space import Space
from ccamerge.methods import METHODS, Alignment, Solutions
from ccamerge.methods.heads import HeadMoments, solve_heads
from tests.problems import moments_of

SIZES = {"q": 16, "k": 8, "v": 6, "o": 12}
EVERY = tuple(range(4))
PAIRINGS = {
    "any": Pairing(4, free=EVERY),
    "turns": Pairing(4, free=EVERY, inner=ORTHOGONAL),
    "halves": Pairing(4, ((0, 2), (1, 3))),
    "partly": Pairing(4, ((0, 1),), (2, 3)),
    "none": Pairing(4),
}


def _part(space: str, count: int, size: int) -> Part:
    return Part(space, tuple(tuple(range(size * h, size * (h + 1))) for h in range(count)))


def _heads(pairing: Pairing, within: Group = GENERAL, **given: bool) -> Heads:
    freely = {"exchanged": True, "shuffled": True, **given}
    parts = _part("q", 4, 4), _part("k", 2, 4), _part("v", 2, 3), _part("o", 4, 3)
    return Heads("attention", *parts, pairing, within, **freely)


def _features(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = {}
    for name, size in SIZES.items():
        mixing = torch.eye(size) + 0.3 * torch.randn(size, size, generator=generator)
        features[name] = torch.randn(500, size, generator=generator).double() @ mixing.double()
    return features


def _mapped(maps: dict[str, FeatureMap], x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value @ maps[name].forward for name, value in x.items()}


def _solved(
    heads: Heads,
    models: Sequence[dict[str, Tensor]],
    methods: tuple[str, str] = ("cca", "cca"),
    reference: int = 0,
) -> Solutions:
    spaces = [Space(name, size, GENERAL, GENERAL, (), (), ()) for name, size in SIZES.items()]
    moments = {name: moments_of(*(model[name].numpy() for model in models)) for name in SIZES}
    ridges = dict.fromkeys(SIZES, 0.0)
    alignment = Alignment(spaces, moments, [{} for _ in models], reference, ridges=ridges)
    return solve_heads(heads, alignment, (METHODS[methods[0]], METHODS[methods[1]]), {})


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


@pytest.mark.parametrize("name", PAIRINGS)
def test_random_maps_of_a_copy_are_found_back(name: str) -> None:
    heads, x = _heads(PAIRINGS[name]), _features()
    generator = torch.Generator().manual_seed(1)
    choices = [heads.random(generator) for _ in range(2)]
    copies = [_mapped(heads.maps(choice, SIZES), x) for choice in choices]
    found = _solved(heads, [copies[0], x, copies[1]], reference=1)
    for space, value in x.items():
        assert torch.equal(found[space][1].feature_map.forward, torch.eye(SIZES[space]).double())
        for index, copied in ((0, copies[0]), (2, copies[1])):
            own = found[space][index]
            assert _close(copied[space] @ own.feature_map.forward, value)
            assert own.correlations is not None
            assert own.correlations.min() > 1 - 1e-6
    places = [int(head) for head in found["q"][0].details["heads"].split()]
    assert [choices[0].heads[head] for head in places] == list(EVERY)


@pytest.mark.parametrize("within", [PERMUTATION, ORTHOGONAL])
def test_by_permutation_and_by_turns(within: Group) -> None:
    method = "permutation" if within == PERMUTATION else "procrustes"
    pairing = Pairing(4, free=EVERY, inner=ORTHOGONAL)
    heads, x = _heads(pairing, within), _features(3)
    own = heads.random(torch.Generator().manual_seed(0))
    if within == PERMUTATION:
        order = FeatureMap.permutation(torch.tensor([2, 0, 3, 1]))
        own = dataclasses.replace(own, pairs=[order, order])
    found = _solved(heads, [x, _mapped(heads.maps(own, SIZES), x)], (method, method))
    copied = _mapped(heads.maps(own, SIZES), x)
    for space, value in x.items():
        forward = found[space][1].feature_map.forward
        assert _close(copied[space] @ forward, value)
        if within == PERMUTATION:
            assert PERMUTATION.contains(forward)


def test_heads_that_may_not_be_exchanged_are_not() -> None:
    x = _features(5)
    moved = _mapped(_heads(PAIRINGS["any"]).maps(_swapped(), SIZES), x)
    found = _solved(_heads(PAIRINGS["any"], exchanged=False, shuffled=False), [x, moved])
    assert found["o"][1].details["heads"] == "0 1 2 3"
    found = _solved(_heads(PAIRINGS["any"]), [x, moved])
    assert found["o"][1].details["heads"] == "2 3 0 1"


def _swapped():  # type: ignore[no-untyped-def]
    same = _heads(PAIRINGS["any"]).identity()
    return dataclasses.replace(same, groups=[1, 0], heads=[2, 3, 0, 1])


def test_averaging_moves_nothing() -> None:
    x, y = _features(6), _features(7)
    found = _solved(_heads(PAIRINGS["any"]), [x, y], ("average", "average"))
    for name, size in SIZES.items():
        assert torch.equal(found[name][1].feature_map.forward, torch.eye(size).double())


@pytest.mark.parametrize("pairing", ["any", "partly"])
@pytest.mark.parametrize(("dead", "model"), [("q", 0), ("k", 1), ("qk", 1), ("v", 0)])
def test_dead_heads_get_maps_that_single_precision_holds(
    pairing: str, dead: str, model: int
) -> None:
    models = [_features(8), _features(9)]
    for name in dead:
        models[model][name] = torch.zeros_like(models[model][name])
    found = _solved(_heads(PAIRINGS[pairing]), models)
    for name in ("q", "k"):
        own = found[name][1].feature_map
        eye = torch.eye(SIZES[name], dtype=torch.float64)
        assert _close(own.forward @ own.inverse, eye)
        assert own.forward.abs().max() < 1e4
        assert own.inverse.abs().max() < 1e4


def test_moments_of_heads_are_the_mean_of_theirs() -> None:
    x, y = _features(1)["o"], _features(2)["o"]
    whole = moments_of(x.numpy(), y.numpy())
    rows = [torch.tensor([[0, 1, 2], [6, 7, 8]]), torch.tensor([[3, 4, 5], [9, 10, 11]])]
    found = HeadMoments(whole, dict(enumerate(rows)))
    assert found.dims == (3, 3)
    assert found.count == 1000
    apart = [moments_of(x[:, a].numpy(), y[:, b].numpy()) for a, b in zip(*rows, strict=True)]
    for pair in ((0, 0), (1, 1), (0, 1)):
        want = (apart[0].cov_tensor(*pair) + apart[1].cov_tensor(*pair)) / 2
        assert _close(found.cov_tensor(*pair), want, 1e-12)
        assert _close(torch.from_numpy(found.cov(*pair)), want, 1e-12)
