"""Groups of maps: what lies in which, and that their elements are what they say."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ccamerge.graph.blocks import Blocks, Contravariant
from ccamerge.graph.groups import (
    FIXED,
    GENERAL,
    KNOWN,
    ORTHOGONAL,
    ORTHOGONAL_FIXING_ONES,
    PERMUTATION,
    POSITIVE,
    SIGNED_PERMUTATION,
    Group,
)

PLAIN = (
    *(FIXED, PERMUTATION, SIGNED_PERMUTATION, POSITIVE),
    *(ORTHOGONAL_FIXING_ONES, ORTHOGONAL, GENERAL),
)
COMPOSED: tuple[Group, ...] = (
    *(Blocks(inner, 3) for inner in PLAIN[1:]),
    *(Blocks(inner, 3, True) for inner in PLAIN),
    *(Contravariant(inner) for inner in PLAIN[1:]),
    Blocks(Contravariant(GENERAL), 3, True),
    Blocks(Blocks(ORTHOGONAL, 2, True), 3, True),
    Blocks(POSITIVE, 2),
    Blocks(GENERAL, 2),
    Blocks(PERMUTATION, 2, True),
)
GROUPS: tuple[Group, ...] = (*PLAIN, *COMPOSED)
PAIRS = list(itertools.product(GROUPS, GROUPS))
NEAREST = (
    *(PERMUTATION, SIGNED_PERMUTATION, POSITIVE, ORTHOGONAL, ORTHOGONAL_FIXING_ONES),
    *(Blocks(FIXED, 3, True), Blocks(ORTHOGONAL, 3, True), Blocks(SIGNED_PERMUTATION, 3)),
)
SIZE = 12
groups, seeds = st.sampled_from(GROUPS), st.integers(0, 2**32 - 1)
several = settings(max_examples=200, deadline=None)


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-8) -> bool:
    return bool(((a - b).norm() <= tolerance * b.norm().clamp_min(1)).all())


def _matrix(seed: int, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, size, generator=generator, dtype=torch.float64)


@several
@given(group=groups, seed=seeds, repeats=st.integers(1, 3))
def test_random_elements_are_in_the_group_and_come_with_their_inverses(
    group: Group, seed: int, repeats: int
) -> None:
    size = SIZE * repeats
    found = group.random(size, torch.Generator().manual_seed(seed))
    assert found.forward.dtype is found.inverse.dtype is torch.float64
    assert _close(found.forward @ found.inverse, torch.eye(size, dtype=torch.float64))
    assert group.contains(found.forward)
    assert group.contains(found.inverse)
    assert bool(torch.linalg.cond(found.forward) < 20)


@several
@given(group=groups, seed=seeds)
def test_products_stay_in_the_group(group: Group, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, two = (group.random(SIZE, generator).forward for _ in range(2))
    assert group.contains(one @ two)


@several
@given(group=groups, seed=seeds)
def test_projecting_leads_into_the_group_and_leaves_its_elements(group: Group, seed: int) -> None:
    found = group.project(_matrix(seed))
    assert group.contains(found.forward)
    assert _close(found.forward @ found.inverse, torch.eye(SIZE, dtype=torch.float64), 1e-5)
    assert _close(group.project(found.forward).forward, found.forward)
    own = group.random(SIZE, torch.Generator().manual_seed(seed)).forward
    assert _close(group.project(own).forward, own)
    # Nor does rounding lead to another element.
    assert _close(group.project(own + 1e-10 * _matrix(seed)).forward, own, 1e-7)


@several
@given(group=st.sampled_from(NEAREST), seed=seeds)
def test_nothing_in_the_group_is_nearer_than_the_projection(group: Group, seed: int) -> None:
    matrix = _matrix(seed, 6).abs() if group is POSITIVE else _matrix(seed, 6)
    least = (group.project(matrix).forward - matrix).norm()
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(20):
        other = group.random(6, generator).forward
        assert (other - matrix).norm() >= least - 1e-9


@several
@given(group=groups)
def test_what_cannot_be_inverted_is_projected_on_what_can(group: Group) -> None:
    found = group.project(torch.zeros(SIZE, SIZE, dtype=torch.float64))
    assert group.contains(found.forward)
    assert not group.contains(torch.zeros(SIZE, SIZE, dtype=torch.float64))


@pytest.mark.parametrize(("one", "two"), PAIRS, ids=str)
def test_the_order_is_that_of_what_groups_contain(one: Group, two: Group) -> None:
    generator = torch.Generator().manual_seed(0)
    if one <= two:
        for _ in range(3):
            assert two.contains(one.random(SIZE, generator).forward)
        assert not two <= one or one == two
    shared = one & two
    assert shared == two & one
    assert shared <= one
    assert shared <= two
    assert not one <= two or shared == one
    element = shared.random(SIZE, generator).forward
    assert one.contains(element)
    assert two.contains(element)


@several
@given(one=groups, two=groups, three=groups)
def test_the_order_is_transitive_and_meets_are_the_largest(
    one: Group, two: Group, three: Group
) -> None:
    if one <= two and two <= three:
        assert one <= three
    if all(group in PLAIN for group in (one, two, three)):
        assert (one <= two & three) == (one <= two and one <= three)
        assert (one & two) & three == one & (two & three)


def test_the_known_groups_lie_in_each_other_as_they_should() -> None:
    assert all(FIXED <= group <= group for group in GROUPS)
    assert all(group <= GENERAL for group in GROUPS)
    assert FIXED <= PERMUTATION <= SIGNED_PERMUTATION <= ORTHOGONAL <= GENERAL
    assert PERMUTATION <= POSITIVE <= GENERAL
    assert PERMUTATION <= ORTHOGONAL_FIXING_ONES <= ORTHOGONAL
    assert not SIGNED_PERMUTATION <= ORTHOGONAL_FIXING_ONES
    assert ORTHOGONAL_FIXING_ONES & SIGNED_PERMUTATION == PERMUTATION
    assert Blocks(GENERAL, 3) & ORTHOGONAL_FIXING_ONES == Blocks(ORTHOGONAL_FIXING_ONES, 3)
    assert not POSITIVE <= ORTHOGONAL
    assert ORTHOGONAL & POSITIVE == SIGNED_PERMUTATION & POSITIVE == PERMUTATION
    assert Blocks(PERMUTATION, 2, True) <= PERMUTATION
    assert Blocks(GENERAL, 3, True) & ORTHOGONAL == Blocks(ORTHOGONAL, 3, True)
    assert Blocks(GENERAL, 3, True) & FIXED == FIXED
    assert Contravariant(GENERAL) & ORTHOGONAL == Contravariant(ORTHOGONAL)
    assert Contravariant(GENERAL) <= Blocks(GENERAL, 2)
    assert Blocks(GENERAL, 2) & Blocks(GENERAL, 3) == FIXED


def test_members_and_strangers() -> None:
    half_turn = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    inside = [group.name for group in PLAIN if group.contains(half_turn)]
    assert inside == ["signed permutation", "orthogonal", "general"]
    scaled = torch.diag(torch.tensor([1.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    inside = [group.name for group in PLAIN if group.contains(scaled)]
    assert inside == ["positive scaled permutation", "general"]
    assert not GENERAL.contains(torch.full((4, 4), float("nan"), dtype=torch.float64))
    swapped = torch.eye(4, dtype=torch.float64)[[2, 3, 0, 1]]
    assert Blocks(FIXED, 2, True).contains(swapped)
    assert not Blocks(GENERAL, 2).contains(swapped)
    assert not Blocks(GENERAL, 3).contains(swapped)
    both = torch.block_diag(2 * torch.eye(2), torch.eye(2) / 2).double()
    assert Contravariant(POSITIVE).contains(both)
    assert not Contravariant(POSITIVE).contains(both @ both.abs() @ swapped)
    assert not Contravariant(GENERAL).contains(2 * torch.eye(4, dtype=torch.float64))
    assert not Contravariant(GENERAL).contains(torch.eye(3, dtype=torch.float64))


def test_products_of_queries_and_keys_stay() -> None:
    found = Contravariant(GENERAL).random(8, torch.Generator().manual_seed(3)).forward
    x = _matrix(5, 8)
    y = x @ found
    assert _close(y[:, :4] @ y[:, 4:].mT, x[:, :4] @ x[:, 4:].mT)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_maps_that_fix_the_vector_of_ones_keep_means(size: int) -> None:
    drawn = ORTHOGONAL_FIXING_ONES.random(size, torch.Generator().manual_seed(0))
    x = _matrix(1, size)
    for found in (drawn, ORTHOGONAL_FIXING_ONES.project(_matrix(2, size))):
        assert _close((x @ found.forward).mean(1), x.mean(1), 1e-12)
        assert ORTHOGONAL_FIXING_ONES.contains(found.forward)
    if size > 2:  # of two features nothing but an exchange
        assert not PERMUTATION.contains(drawn.forward)


@pytest.mark.parametrize("group", [Blocks(GENERAL, 3), Contravariant(GENERAL)])
def test_features_that_do_not_divide_are_refused(group: Group) -> None:
    with pytest.raises(ValueError, match="7 features"):
        group.random(7, torch.Generator())


def test_a_group_has_one_name() -> None:
    for other in (
        lambda: Blocks(FIXED, 2),
        lambda: Blocks(GENERAL, 1),
        lambda: Contravariant(FIXED),
    ):
        with pytest.raises(ValueError, match="goes by a simpler name"):
            other()


def test_words() -> None:
    assert [str(group) for group in PLAIN] == [
        "identity",
        "permutation",
        "change of signs and permutation",
        "positive scaling and permutation",
        "any orthogonal map that fixes the vector of ones",
        "any orthogonal map",
        "any invertible map",
    ]
    heads = Blocks(Contravariant(GENERAL), 4, True)
    assert str(heads) == (
        "any invertible map on one half, its inverse transposed on the other within each of 4 "
        "blocks, and permutation of these"
    )
    assert heads.name == "4 x contravariant general, exchanged"
    assert len({group.name for group in GROUPS}) == len({str(group) for group in GROUPS})
    assert all(KNOWN[group.name] is group for group in PLAIN)


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_a_copy_is_the_same_group(group: Group) -> None:
    assert copy.deepcopy(group) == group
    assert pickle.loads(pickle.dumps(group)) == group
