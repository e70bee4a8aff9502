"""What attention is found to allow, in all its spellings: maps that are claimed are exact."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ccamerge
from ccamerge.graph.attention.facts import SHARED
from ccamerge.graph.attention.probing import ALIKE, NORMALISED
from ccamerge.graph.groups import FIXED, GENERAL, PERMUTATION
from ccamerge.graph.networks.inspection import spaces
from ccamerge.graph.space import Spaces
from tests import attending as A
from tests import models as M
from tests.moved import exact_maps, mapped_copy

HALVES, NEIGHBOURS = ((0, 2), (1, 3)), ((0, 1), (2, 3))


def _planes(x: Tensor) -> Tensor:
    return A.halves(x, 4)


def _pairs(x: Tensor) -> Tensor:
    return A.neighbours(x, 4)


def _normed(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def _bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT)
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1)).view(*q.shape[:3], v.shape[-1])


def _einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def _zeros_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return A.softmaxed(q, k, v, torch.zeros(q.shape[1], q.shape[2], k.shape[2]).to(q))


def _single(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1, dtype=torch.float32).to(q.dtype) @ v


APART = ("given slopes", "biases of features")
"""Attention whose heads keep their order, and say why."""

Build = Callable[[], nn.Module]
FOUND: dict[str, tuple[Build, tuple[str, Any, bool, bool]]] = {
    # What pairs of queries and keys, and values, allow; whether heads are exchanged, and shuffled.
    "bmm": (lambda: A.Attention(3, bias=False, mix=_bmm), ("general", GENERAL, True, False)),
    "einsum": (lambda: A.Attention(mix=_einsum), ("general", GENERAL, True, False)),
    "one head": (lambda: A.Attention(1), ("general", GENERAL, False, False)),
    "grouped": (lambda: A.Attention(4, groups=2, wide=3), ("general", GENERAL, True, True)),
    "in the dtype of values": (
        lambda: A.Attention(mix=lambda q, k, v: A.softmaxed(q.type_as(v), k.type_as(v), v)),
        ("general", GENERAL, True, False),
    ),
    "chosen": (A.Chosen, ("general", GENERAL, False, True)),
    "one group": (lambda: A.Attention(3, groups=1), ("general", GENERAL, False, True)),
    "partly neighbours": (
        lambda: A.Attention(4, 7, groups=2, prepare=_pairs),
        ("complex + general", GENERAL, True, True),
    ),
    "normalised": (lambda: A.Attention(prepare=_normed), ("orthogonal", GENERAL, True, False)),
    "normalised and rotated": (
        lambda: A.Attention(prepare=lambda x: _planes(_normed(x))),
        ("fixed", GENERAL, True, False),
    ),
    "with gains": (A.Gains, ("fixed", GENERAL, True, False)),
    "with gains of all heads": (lambda: A.Whole(heads=3), ("fixed", GENERAL, True, False)),
    "table": (lambda: A.Biased(heads=3), ("general", GENERAL, True, False)),
    "slopes": (lambda: A.Biased(slopes=True, heads=3), ("general", GENERAL, True, False)),
    "made table": (lambda: A.Made(heads=3), ("general", GENERAL, True, False)),
    "table of zeros": (
        lambda: A.Attention(mix=_zeros_added),
        ("general", GENERAL, True, False),
    ),
    "table and mask": (lambda: A.Masked(heads=3), ("general", GENERAL, True, False)),
    "biases of features": (A.Gated, ("general", GENERAL, False, False)),
    "given slopes": (
        lambda: A.Biased(slopes=True, learned=False),
        ("general", GENERAL, False, False),
    ),
    "factors of heads": (
        lambda: A.Grouped(heads=6, groups=3),
        ("general", GENERAL, True, True),
    ),
    "fused and rotated": (lambda: A.Fused(turned=4), ("complex", GENERAL, True, False)),
    "head by head": (lambda: A.Fused(interleaved=True), ("general", GENERAL, True, False)),
    "torch's": (A.Torchs, ("general", GENERAL, True, False)),
    "used twice": (A.Twice, ("general", GENERAL, True, False)),
    "function of values": (
        lambda: A.Attention(mix=lambda q, k, v: A.softmaxed(q, k, v.tanh())),
        ("general", PERMUTATION, True, False),
    ),
}


def _network(build: Build, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return M.randomise(build(), seed).double().eval()


@functools.cache
def _case(name: str) -> tuple[nn.Module, Spaces]:
    """A network and its spaces, which take time to find."""
    model = _network(FOUND[name][0])
    return model, spaces(model, _inputs())


def _inputs(count: int = 4, length: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, length, 10, generator=generator, dtype=torch.float64)


def _change(model: nn.Module, found: Spaces, *call: Tensor, seed: int = 1) -> float:
    """Relative change of a model's output by random maps that are said to be exact."""
    other = mapped_copy(model, found, exact_maps(found, seed))
    with torch.no_grad():
        before, after = model(*call), other(*call)
    return float((before - after).norm() / before.norm())


@pytest.mark.parametrize("name", FOUND)
def test_what_attention_allows_is_found_and_is_exact(name: str) -> None:
    pairing, within, exchanged, shuffled = FOUND[name][1]
    model, found = _case(name)
    (heads,) = found.attention
    assert heads.pairing.name == pairing
    assert heads.within == within
    assert (heads.exchanged, heads.shuffled) == (exchanged, shuffled)
    if pairing.startswith("complex"):
        assert heads.pairing.planes == (NEIGHBOURS if "neighbours" in name else HALVES)
    assert bool(heads.why) == (pairing == "fixed" or name in APART)
    other = _inputs(seed=1)  # nor does it hold on these inputs alone
    assert all(_change(model, found, other, seed=seed) < 1e-12 for seed in range(2))


def test_it_is_verified() -> None:
    model = _network(FOUND["head by head"][0])
    assert all(check.passed for check in ccamerge.verify(model, _inputs()))


MERGED = ("partly neighbours", "table", "head by head")


@pytest.mark.parametrize("name", MERGED)
def test_a_mapped_copy_merges_back(name: str) -> None:
    (model, found), x = _case(name), _inputs(64)
    other = mapped_copy(model, found, exact_maps(found, 3))
    result = ccamerge.merge(
        [model, other], [x], method="cca", ridge=0.0, repair="none", progress=False
    )
    assert not result.report.chosen
    with torch.no_grad():
        before, after = model(x), result.model(x)
    assert float((before - after).norm() / before.norm()) < 1e-5


MOVED = {
    # What moves with heads: the parameter, its axis, elements for each head.
    "table": [("table", 0, 1)],
    "slopes": [("table", 0, 1)],
    "table and mask": [("table", 0, 1)],
    "made table": [("net.2.weight", 0, 1)],
    "with gains of all heads": [("q.1.weight", 0, 4), ("k.1.weight", 0, 4)],
    "factors of heads": [("queries", 0, 1), ("keys", 0, 1)],
}


@pytest.mark.parametrize("name", MOVED)
def test_what_heads_have_each_moves_with_them(name: str) -> None:
    model, found = _case(name)
    (heads,) = found.attention
    assert len(heads.tables) == len(MOVED[name])
    generator = torch.Generator().manual_seed(2)
    choice = heads.random(generator)
    maps = heads.maps(choice, {space.name: space.size for space in found})
    other = mapped_copy(model, found, maps)
    for key, axis, size in MOVED[name]:
        before, after = (dict(m.named_parameters())[key].movedim(axis, 0) for m in (model, other))
        order = choice.heads if len(before) == size * len(choice.heads) else choice.groups
        assert list(order) != sorted(order)
        assert (key, axis) not in found.pinned
        parts = before.unflatten(0, (-1, size))[torch.tensor(list(order))]
        torch.testing.assert_close(after, parts.flatten(0, 1), rtol=0, atol=0)


@pytest.mark.parametrize("name", MOVED)
def test_a_copy_with_permuted_heads_and_tables_merges_back(name: str) -> None:
    (model, found), x = _case(name), _inputs(64)
    (heads,) = found.attention
    generator = torch.Generator().manual_seed(4)
    sizes = {space.name: space.size for space in found}
    own = heads.permuting()
    other = mapped_copy(model, found, own.maps(own.random(generator), sizes))
    result = ccamerge.merge([model, other], [x], method="permutation", progress=False)
    with torch.no_grad():
        before, after = model(x), result.model(x)
    assert float((before - after).norm() / before.norm()) < 1e-6
    for key, _, _ in MOVED[name]:
        there, merged = (dict(m.named_parameters())[key] for m in (model, result.model))
        torch.testing.assert_close(merged, there, rtol=1e-12, atol=0)


def test_heads_of_attentions_that_share_a_table_keep_their_order() -> None:
    model, x = _network(A.Shared), _inputs()
    found = spaces(model, x)
    assert len(found.attention) == 2
    for heads in found.attention:
        assert (heads.exchanged, heads.tables) == (False, ())
        assert heads.why[0].endswith(SHARED)
    assert found.pinned["first.table", 0] == SHARED
    assert _change(model, found, x) < 1e-12


def test_gains_that_all_heads_share_say_why_they_stay() -> None:
    rotated = spaces(_network(lambda: A.Gains(turned=4)), _inputs())
    for found, why in ((_case("with gains")[1], ALIKE), (rotated, NORMALISED)):
        assert found.pinned["norms.0.weight", 0] == why
        assert found.pinned["norms.1.weight", 0] == why


def test_weights_that_are_returned_are_not_attention_within() -> None:
    model, x = _network(lambda: A.Torchs(need_weights=True)), _inputs()
    found = spaces(model, x, prove=False)
    assert not found.attention
    (before, weights), (after, other) = model(x), mapped_copy(model, found, exact_maps(found, 1))(x)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other, weights, rtol=1e-10, atol=1e-10)


MIXING = torch.tensor([[0.3, 0.7], [0.5, -0.2]], dtype=torch.float64)


@pytest.mark.parametrize("before", [True, False])
def test_heads_that_talk_are_not_claimed(before: bool) -> None:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        if before:
            scores = torch.einsum("bhij,gh->bgij", scores, MIXING)
        weights = scores.softmax(-1)
        if not before:
            weights = torch.einsum("bhij,gh->bgij", weights, MIXING)
        return weights @ v

    model, x = _network(lambda: A.Attention(mix=mix)), _inputs()
    found = spaces(model, x)
    assert not any(heads.exchanged for heads in found.attention)
    assert _change(model, found, x) < 1e-12


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_layer_that_also_writes_something_else_stays(interleaved: bool) -> None:
    model, x = _network(lambda: A.Tempered(interleaved)), _inputs()
    found = spaces(model, x, prove=False)
    assert not found.attention
    assert "qkv.weight" not in {slot.parameter for space in found for slot in space.slots}
    assert "another structure" in found.pinned["qkv.weight", 0]


def test_keys_and_values_of_another_sequence() -> None:
    model, x, context = _network(A.Attention), _inputs(), _inputs(length=7, seed=2)
    found = spaces(model, (x, context))
    (heads,) = found.attention
    assert heads.exchanged
    assert heads.pairing.name == "general"
    assert _change(model, found, _inputs(seed=3), context) < 1e-12


def test_of_one_position_nothing_is_known_of_queries_and_heads() -> None:
    model, x = _network(lambda: A.Biased(length=1)), _inputs(length=1)
    (heads,) = spaces(model, x).attention
    assert heads.pairing.fixed
    assert heads.within == GENERAL
    assert not heads.exchanged
    assert "nothing depends on queries" in heads.why[0]


def test_what_a_new_table_does_not_show() -> None:
    """Another network of the same shapes has another table."""
    build = FOUND["table"][0]
    new, trained, x = _network(build), _network(build, 1), _inputs()
    with torch.no_grad():
        new.table.zero_()  # type: ignore[operator]
    found = spaces(new, x)
    assert found.attention[0].exchanged
    assert all(_change(trained, found, x, seed=seed) < 1e-12 for seed in range(3))


@pytest.mark.parametrize("size", [2, 3])
def test_values_that_are_told_apart_keep_their_order(size: int) -> None:
    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return A.softmaxed(q, k, (v * torch.arange(1, size + 1, dtype=v.dtype)).tanh())

    model, x = _network(lambda: A.Attention(1, 4, wide=size, mix=mix)), _inputs()
    found = spaces(model, x, prove=False)
    assert all(heads.within == FIXED for heads in found.attention)
    assert all(_change(model, found, x, seed=seed) < 1e-12 for seed in range(3))


def test_slow_rotations_are_seen() -> None:
    def prepare(x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * torch.tensor([1.0, 1e-9])
        one, two = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

    (heads,) = spaces(_network(lambda: A.Attention(prepare=prepare)), _inputs()).attention
    assert heads.pairing.planes == HALVES


def test_positions_that_see_nothing() -> None:
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    mask[2] = False

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return A.softmaxed(q, k, v, torch.zeros(5, 5).masked_fill(~mask, -math.inf).to(q))

    class Masked(A.Attention):
        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return super().forward(x, context).nan_to_num()

    model, x = _network(lambda: Masked(mix=mix)), _inputs()
    found = spaces(model, x)
    assert _change(model, found, x) < 1e-12


@pytest.mark.parametrize(
    "build",
    [
        lambda: A.Attention(size=1),
        A.Latents,
        A.Pooled,
        lambda: A.Pooled(bias=False),
    ],
    ids=["heads of one feature", "given queries", "constant queries", "constant products"],
)
def test_odd_attention_keeps_its_function(build: Build) -> None:
    model, x = _network(build), _inputs()
    found = spaces(model, x, prove=False)
    assert all(_change(model, found, x, seed=seed) < 1e-12 for seed in range(3))


def test_queries_that_are_the_same_for_all_inputs() -> None:
    model, x = _network(A.Pooled), _inputs()
    found = spaces(model, x)
    assert ("q.weight", 0) in found.pinned
    assert _change(model, found, x) < 1e-12


def test_single_precision_networks() -> None:
    model = _network(lambda: A.Attention(prepare=_planes, mix=_single)).float()
    x = _inputs().float()
    found = spaces(model, x)
    assert found.attention[0].pairing.planes == HALVES
    assert _change(model, found, x) < 1e-5
