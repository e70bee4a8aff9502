"""Maps of a head's queries: they are a group, and products with keys stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ccamerge.graph.attention.pairing import Pairing, candidates, contrary
from ccamerge.graph.groups import FIXED, GENERAL, ORTHOGONAL, PERMUTATION

SIZE = 6
PAIRINGS = (
    Pairing(SIZE),
    Pairing(SIZE, free=tuple(range(SIZE))),
    Pairing(SIZE, free=tuple(range(SIZE)), inner=ORTHOGONAL),
    Pairing(SIZE, ((0, 3), (1, 4), (2, 5))),
    Pairing(SIZE, ((0, 1), (2, 3)), (4, 5)),
    Pairing(SIZE, ((2, 5),), (0, 1, 3), ORTHOGONAL),
    Pairing(SIZE, free=(1, 3, 4)),
)
pairings, seeds = st.sampled_from(PAIRINGS), st.integers(0, 2**32 - 1)
several = settings(max_examples=25, deadline=None)


def _matrix(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (SIZE, SIZE)), generator=generator, dtype=torch.float64)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-8 * b.norm().clamp_min(1))


@several
@given(pairing=pairings, seed=seeds)
def test_it_is_a_group(pairing: Pairing, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, two = (pairing.random(SIZE, generator) for _ in range(2))
    assert _close(one.forward @ one.inverse, torch.eye(SIZE, dtype=torch.float64))
    for matrix in (one.forward, one.inverse, one.forward @ two.forward):
        assert pairing.contains(matrix)
    assert pairing.contains(torch.eye(SIZE, dtype=torch.float64))
    assert bool(torch.linalg.cond(one.forward) < 20)


@several
@given(pairing=pairings, seed=seeds)
def test_projecting_leads_into_the_group_and_leaves_its_elements(
    pairing: Pairing, seed: int
) -> None:
    found = pairing.project(_matrix(seed))
    assert pairing.contains(found.forward)
    assert _close(found.forward @ found.inverse, torch.eye(SIZE, dtype=torch.float64))
    own = pairing.random(SIZE, torch.Generator().manual_seed(seed)).forward
    assert _close(pairing.project(own).forward, own)
    zero = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    assert pairing.contains(pairing.project(zero).forward)
    assert not pairing.contains(zero)
    assert not pairing.contains(zero * torch.nan)


@several
@given(pairing=pairings, seed=seeds)
def test_products_of_queries_and_keys_stay(pairing: Pairing, seed: int) -> None:
    found = pairing.random(SIZE, torch.Generator().manual_seed(seed))
    queries, keys = _matrix(seed, 5, SIZE), _matrix(seed + 1, 5, SIZE)
    mapped = queries @ found.forward @ (keys @ contrary(found).forward).T
    assert _close(mapped, queries @ keys.T)


@pytest.mark.parametrize("pairing", PAIRINGS, ids=str)
def test_it_lies_between_groups_with_names(pairing: Pairing) -> None:
    generator = torch.Generator().manual_seed(0)
    assert FIXED <= pairing <= GENERAL
    for group in (FIXED, PERMUTATION, ORTHOGONAL, GENERAL):
        if pairing <= group:
            assert all(group.contains(pairing.random(SIZE, generator).forward) for _ in range(3))
        if group <= pairing:
            assert all(pairing.contains(group.random(SIZE, generator).forward) for _ in range(3))
    turns = not pairing.planes and pairing.inner == ORTHOGONAL
    assert (pairing <= ORTHOGONAL) == (pairing.fixed or turns)
    assert (pairing <= FIXED) == pairing.fixed


def test_planes_are_told_from_what_is_near_them() -> None:
    pairing = PAIRINGS[4]
    found = pairing.random(SIZE, torch.Generator().manual_seed(0)).forward
    for row, column in ((0, 1), (0, 2), (0, 4), (4, 0)):
        other = found.clone()
        other[row, column] += 0.1
        assert not pairing.contains(other)


def test_the_size_is_the_heads() -> None:
    with pytest.raises(ValueError, match="5 features are not the 6"):
        PAIRINGS[4].random(5, torch.Generator())


def test_candidates_come_the_largest_first() -> None:
    found = candidates(6, (0, 1, 2, 3))
    assert [own.name for own in found] == [
        *("general", "complex + general", "complex + general", "orthogonal", "fixed"),
    ]
    assert found[1].planes == ((0, 2), (1, 3))
    assert found[2].planes == ((0, 1), (2, 3))
    assert found[1].free == found[2].free == (4, 5)
    assert [own.name for own in candidates(3, (0, 1, 2))] == ["general", "orthogonal", "fixed"]
    assert str(found[1]) == (
        "a complex number for each of 2 planes and any invertible map of 2 of 6 features"
    )
    assert str(found[-1]) == "identity"
