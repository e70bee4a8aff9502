"""Maps of the spaces that attention divides into heads: together, and what each alone may be."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from ccamerge.graph.attention.heads import Heads, InHeads, Part, groups_of
from ccamerge.graph.attention.pairing import Pairing
from ccamerge.graph.groups import FIXED, GENERAL, ORTHOGONAL, PERMUTATION


def _part(space: str, count: int, size: int, start: int = 0, step: int = 0) -> Part:
    starts = [start + (step or size) * head for head in range(count)]
    return Part(space, tuple(tuple(range(own, own + size)) for own in starts))


PLANES = Pairing(4, ((0, 2), (1, 3)))
GROUPED = Heads(
    "attention",
    _part("q", 4, 4),
    _part("k", 2, 4),
    _part("v", 2, 3),
    _part("o", 4, 3),
    PLANES,
    GENERAL,
    exchanged=True,
    shuffled=True,
)
FUSED = dataclasses.replace(
    GROUPED,
    queries=_part("qkv", 2, 4, 0, 11),
    keys=_part("qkv", 2, 4, 4, 11),
    values=_part("qkv", 2, 3, 8, 11),
    outputs=_part("o", 2, 3),
    shuffled=False,
)
CASES = {
    "grouped": GROUPED,
    "fused": FUSED,
    "told apart": dataclasses.replace(FUSED, exchanged=False),
    "shuffled": dataclasses.replace(GROUPED, exchanged=False, within=PERMUTATION),
    "exchanged": dataclasses.replace(GROUPED, shuffled=False, within=ORTHOGONAL),
    "values alone": dataclasses.replace(GROUPED, pairing=Pairing(4)),
}
SIZES = {"q": 16, "k": 8, "v": 6, "qkv": 22}


def _sizes(heads: Heads) -> dict[str, int]:
    return {**SIZES, "o": sum(map(len, heads.outputs.features))}


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-8 * b.norm().clamp_min(1))


@pytest.mark.parametrize("name", CASES)
def test_maps_are_of_each_spaces_group_and_come_with_their_inverses(name: str) -> None:
    heads, sizes = CASES[name], _sizes(CASES[name])
    groups, generator = groups_of(heads), torch.Generator().manual_seed(0)
    for _ in range(4):
        maps = heads.maps(heads.random(generator), sizes)
        assert maps.keys() == groups.keys() == set(heads.spaces)
        for space, found in maps.items():
            eye = torch.eye(sizes[space], dtype=torch.float64)
            assert _close(found.forward @ found.inverse, eye)
            assert groups[space].contains(found.forward)
            assert groups[space].contains(found.inverse)
    for space, found in heads.maps(heads.identity(), sizes).items():
        assert torch.equal(found.forward, torch.eye(sizes[space], dtype=torch.float64))


@pytest.mark.parametrize("name", CASES)
def test_what_a_space_alone_may_be_is_a_group(name: str) -> None:
    heads, sizes = CASES[name], _sizes(CASES[name])
    for space, group in groups_of(heads).items():
        generator, size = torch.Generator().manual_seed(1), sizes[space]
        eye, zero = torch.eye(size, dtype=torch.float64), torch.zeros(size, size).double()
        one, two = (group.random(size, generator) for _ in range(2))
        assert _close(one.forward @ one.inverse, eye)
        for matrix in (eye, one.forward, one.inverse, one.forward @ two.forward):
            assert group.contains(matrix)
            assert _close(group.project(matrix).forward, matrix)
        matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
        found = group.project(matrix)
        assert group.contains(found.forward)
        assert _close(found.forward @ found.inverse, eye)
        assert not group.contains(matrix)
        assert not group.contains(zero)
        assert group.contains(group.project(zero).forward)
        assert FIXED <= group <= GENERAL
        assert not group <= ORTHOGONAL
        assert group & ORTHOGONAL == FIXED
        assert group.joint


def test_queries_follow_the_keys_that_they_read() -> None:
    """Products of queries and keys of a head are those of the own heads that become it."""
    generator = torch.Generator().manual_seed(3)
    queries, keys, values = (
        torch.randn(5, size, generator=generator, dtype=torch.float64) for size in (16, 8, 6)
    )
    for _ in range(4):
        choice = GROUPED.random(generator)
        maps = GROUPED.maps(choice, _sizes(GROUPED))

        def scores(q: Tensor, k: Tensor, head: int) -> Tensor:
            at, read = GROUPED.queries.features[head], GROUPED.keys.features[head // 2]
            return q[:, list(at)] @ k[:, list(read)].T

        q, k = queries @ maps["q"].forward, keys @ maps["k"].forward
        for head, own in enumerate(choice.heads):
            assert own // 2 == choice.groups[head // 2]
            assert _close(scores(q, k, head), scores(queries, keys, own))
        # What heads make of values is mapped as values are.
        own = torch.cat([values[:, list(GROUPED.values.features[h // 2])] for h in range(4)], 1)
        v = values @ maps["v"].forward
        made = torch.cat([v[:, list(GROUPED.values.features[h // 2])] for h in range(4)], 1)
        assert _close(own @ maps["o"].forward, made)


def test_heads_that_are_told_apart_stay() -> None:
    group = groups_of(CASES["told apart"])["o"]
    swapped = torch.eye(6, dtype=torch.float64)[[3, 4, 5, 0, 1, 2]]
    assert not group.contains(swapped)
    assert groups_of(FUSED)["o"].contains(swapped)
    assert not groups_of(FUSED)["o"].contains(torch.eye(6, dtype=torch.float64)[[1, 2, 3, 4, 5, 0]])


def test_words() -> None:
    groups = groups_of(GROUPED)
    assert isinstance(groups["q"], InHeads)
    assert str(groups["v"]) == "any invertible map within each of 2 heads, which may be exchanged"
    assert "complex number" in str(groups["q"])
    assert GROUPED.share == 2
    assert not GROUPED.fixed
    nothing = dataclasses.replace(
        GROUPED, pairing=Pairing(4), within=FIXED, exchanged=False, shuffled=False
    )
    assert nothing.fixed
