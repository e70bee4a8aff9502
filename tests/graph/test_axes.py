"""The algebra of axes, against brute force: each element of a tensor remembers its features."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis, Basis, Segment


def _labels(axis: Axis) -> list[frozenset[tuple[int, int]]]:
    """For each element the (basis, feature) pairs that it belongs to, by enumeration."""
    out = []
    for segment in ax.resolve(axis):
        sizes = [f.size if isinstance(f, Basis) else f for f in segment]
        for index in itertools.product(*map(range, sizes)):
            out.append(
                frozenset(
                    (id(f), i) for f, i in zip(segment, index, strict=True) if isinstance(f, Basis)
                )
            )
    return out


def _tensor_labels(axes: list[Axis]) -> list[frozenset[tuple[int, int]]]:
    """Row-major over all axes."""
    return [frozenset().union(*row) for row in itertools.product(*map(_labels, axes))]


def _random_shape(total: int, draw: st.DrawFn) -> list[int]:
    shape = []
    while total > 1:
        divisors = [d for d in range(1, total + 1) if total % d == 0]
        size = draw(st.sampled_from(divisors))
        shape.append(size)
        total //= size
        if len(shape) > 5:
            break
    return [*shape, total]


@st.composite
def _segments(draw: st.DrawFn) -> Segment:
    """A basis with numbers around it, or a number."""
    outer, inner = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return (outer, Basis(draw(st.integers(2, 4))), inner) if draw(st.booleans()) else (outer,)


@st.composite
def _axes(draw: st.DrawFn) -> list[Axis]:
    return [
        tuple(draw(st.lists(_segments(), min_size=1, max_size=2)))
        for _ in range(draw(st.integers(1, 3)))
    ]


@settings(max_examples=300, deadline=None)
@given(axes=_axes(), data=st.data())
def test_reshape_keeps_every_element_in_its_place(axes: list[Axis], data: st.DataObject) -> None:
    total = math.prod(map(ax.axis_size, axes))
    assume(total <= 600)
    for _ in range(3):  # a chain
        shape = data.draw(st.composite(lambda draw: _random_shape(total, draw))())
        after = ax.reshape(axes, shape, "view")
        assert [ax.axis_size(a) for a in after] == shape
        if any(basis.pins for axis in axes for basis in ax.bases(axis)):
            return
        assert _tensor_labels(after) == _tensor_labels(axes)  # a basis may be a product by now
        axes = after


@settings(max_examples=200, deadline=None)
@given(
    channels=st.integers(2, 5), height=st.integers(1, 4), width=st.integers(1, 4), data=st.data()
)
def test_flatten_and_back_is_always_possible(
    channels: int, height: int, width: int, data: st.DataObject
) -> None:
    axes = [ax.inert(2), ax.fresh(channels), ax.inert(height), ax.inert(width)]
    ones = data.draw(st.integers(0, 2))
    flat = ax.reshape(axes, [2, *[1] * ones, channels * height * width], "flatten")
    back = ax.reshape(flat, [2, channels, height, width], "view")
    assert _tensor_labels(back) == _tensor_labels(axes)


def test_unsqueeze_of_a_concatenation() -> None:
    axes = [ax.inert(2), (*ax.fresh(3), *ax.fresh(4))]
    for shape in ([2, 1, 7], [2, 7, 1], [1, 2, 7], [2, 1, 1, 7, 1]):
        after = ax.reshape(axes, shape, "view")
        assert _tensor_labels(after) == _tensor_labels(axes)


def test_a_view_of_a_basis_makes_a_product_of_it() -> None:
    whole, kept = ax.fresh(12), ax.fresh(5)
    after = ax.reshape([kept, whole], [5, 2, 2, 3], "view")
    parts = [ax.bases(axis)[0] for axis in after[1:]]
    assert [part.size for part in parts] == [2, 2, 3]
    assert ax.resolve(whole) == (tuple(parts),)
    assert after[0] == kept
    assert not any(part.pins for part in parts)
    assert _tensor_labels(after) == _tensor_labels([kept, whole])
    assert ax.reshape(after, [5, 12], "back") == [kept, ax.resolve(whole)]


def test_a_view_of_equal_groups_makes_them_one() -> None:
    first, second = ax.fresh(3), ax.fresh(3)
    after = ax.reshape([ax.inert(2), (*first, *second)], [2, 2, 3], "view")
    assert [ax.axis_size(axis) for axis in after] == [2, 2, 3]
    assert ax.is_inert(after[1])
    assert ax.bases(first) == ax.bases(second) == ax.bases(after[2])


def test_groups_that_are_cut_apart_elsewhere_keep_their_order() -> None:
    whole = ax.fresh(6)
    groups, inner = ax.reshape([whole], [2, 3], "view")
    parts = ax.split(whole, 3)
    assert parts is not None
    assert [ax.bases(part) for part in parts] == [ax.bases(inner)] * 2
    assert ax.is_inert(groups)
    assert "cut apart elsewhere" in ax.reasons(whole)[0]


def test_what_stands_outside_of_a_concatenation_is_a_number() -> None:
    """Features of a view's inner part come from two layers."""
    whole = ax.fresh(8)
    groups, inner = ax.reshape([whole], [2, 4], "view")
    first, second = ax.fresh(1), ax.fresh(3)
    ax.unify(inner, (*first, *second), "cat")
    assert ax.is_inert(groups)
    assert _labels(whole) == _labels((*first, *second) * 2)


def test_idle_elements_take_the_basis_of_what_they_meet() -> None:
    features = ax.fresh(4)
    one, other = ax.idle(4), ax.idle(4)
    ax.unify(one, features, "add")
    assert ax.bases(one) == ax.bases(features)
    ax.unify(other, ax.inert(4), "add")
    assert ax.is_inert(other)
    assert ax.is_inert(ax.idle(1))


def test_what_fits_no_product_is_pinned() -> None:
    for axes, shape in (([ax.fresh(4), ax.inert(3)], [3, 4]), ([ax.fresh(4)], [5])):
        cut = [basis for axis in axes for basis in ax.bases(axis)]
        assert ax.reshape(axes, shape, "view_3") == [ax.inert(size) for size in shape]
        for basis in cut:
            assert "view_3: a view cuts its features apart" in ax.reasons(((basis,),))


def test_a_reshape_pins_only_what_it_cuts() -> None:
    kept, cut = ax.fresh(5), ax.fresh(6)
    after = ax.reshape([kept, cut, ax.inert(2)], [5, 4, 3], "view")
    assert after == [kept, ax.inert(4), ax.inert(3)]
    assert not ax.bases(kept)[0].pins
    assert ax.reasons(cut)


def test_a_single_feature_whose_axis_is_squeezed_away_is_pinned() -> None:
    single = ax.fresh(1)
    assert ax.reshape([ax.inert(4), single], [4], "squeeze") == [ax.inert(4)]
    assert ax.bases(single)[0].pins == ["squeeze: a view drops its axis"]


@settings(max_examples=200, deadline=None)
@given(axis=_axes().map(lambda a: a[0]), data=st.data())
def test_split_cuts_the_elements_in_two(axis: Axis, data: st.DataObject) -> None:
    size = ax.axis_size(axis)
    cut = data.draw(st.integers(0, size))
    parts = ax.split(axis, cut)
    if parts is None:
        assert cut not in (0, size)
        return
    assert [ax.axis_size(p) for p in parts] == [cut, size - cut]
    assert _labels(parts[0]) + _labels(parts[1]) == _labels(axis)  # after the split


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4), data=st.data())
def test_unify_makes_two_axes_one(sizes: list[int], data: st.DataObject) -> None:
    """Two concatenations of the same length with different boundaries."""
    total = sum(sizes)
    a: Axis = tuple((Basis(s),) for s in sizes)
    cuts = sorted(data.draw(st.sets(st.integers(1, total - 1), max_size=3)) if total > 1 else [])
    ends = [*cuts, total]
    b: Axis = tuple((Basis(e - s),) for s, e in zip([0, *cuts], ends, strict=True))
    ax.unify(a, b, "test")
    assert _labels(a) == _labels(b)
    assert ax.axis_size(ax.resolve(a)) == total
    boundaries = {*itertools.accumulate(sizes), *ends}
    assert len(ax.resolve(a)) == len(boundaries)
    assert not any(basis.pins for basis in ax.bases(a))


def test_unify_gives_a_basis_the_structure_of_a_product() -> None:
    whole, channels = ax.fresh(12), Basis(4)
    ax.unify(whole, ((channels, 3),), "linear")
    assert ax.resolve(whole) == ((channels, 3),)
    assert ax.bases(whole) == [channels]


def test_unify_is_transitive_and_keeps_pins() -> None:
    a, b, c = ax.fresh(5), ax.fresh(5), ax.fresh(5)
    ax.unify(a, b, "one")
    ax.pin(a, "because")
    ax.unify(c, b, "two")
    assert ax.resolve(a) == ax.resolve(b) == ax.resolve(c)
    (basis,) = ax.bases(c)
    assert basis.pins == ["because"]


def test_pins_survive_a_split_and_a_definition() -> None:
    whole = ax.fresh(6)
    ax.pin(whole, "because")
    parts = ax.split(whole, 2)
    assert parts is not None
    assert [b.pins for part in parts for b in ax.bases(part)] == [["because"]] * 2
    whole, inner = ax.fresh(6), Basis(3)
    ax.pin(whole, "because")
    ax.unify(whole, ((inner, 2),), "x")
    assert inner.pins == ["because"]


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (((Basis(4),),), ((4,),), "meets a fixed axis"),
        (((Basis(4),),), ((Basis(5),),), "sizes 4 and 5 meet"),
        (((Basis(4), 3),), ((3, Basis(4)),), "different structure"),
        (((2, Basis(3)),), ((Basis(2),), (Basis(4),)), "different structure"),
    ],
)
def test_what_cannot_be_matched_is_pinned(a: Axis, b: Axis, reason: str) -> None:
    ax.unify(a, b, "here")
    for basis in (*ax.bases(a), *ax.bases(b)):
        assert any(reason in pin and pin.startswith("here") for pin in basis.pins)


def test_a_repeated_concatenation_resolves_row_major() -> None:
    """(2, B) where B turns out to be a concatenation is B1 B2 B1 B2."""
    basis = Basis(5)
    axis: Axis = ((2, basis, 3),)
    parts = ax.split(((basis,),), 2)
    assert parts is not None
    first, second = (ax.bases(p)[0] for p in parts)
    assert ax.resolve(axis) == ((first, 3), (second, 3)) * 2


def test_unify_of_plain_axes_with_other_boundaries_ends() -> None:
    basis = ax.fresh(4)
    ax.unify(ax.inert(8), ax.inert(3) + ax.inert(5), "add")
    ax.unify(ax.inert(3) + ax.inert(3) + ax.inert(2), ax.inert(4) + basis, "add")
    assert ax.bases(basis)[0].pins == ["add: meets a fixed axis"]


@settings(max_examples=200, deadline=None)
@given(a=_axes().map(lambda a: a[0]), b=_axes().map(lambda a: a[0]), size=st.integers(1, 6))
def test_unify_ends_and_leaves_equal_boundaries_or_pins(a: Axis, b: Axis, size: int) -> None:
    """Whatever plain pieces stand between the bases."""
    a, b = a + ax.inert(size) + b, b + ax.inert(size) + a
    ax.unify(a, b, "add")
    assert ax.axis_size(ax.resolve(a)) == ax.axis_size(ax.resolve(b))
    if not any(basis.pins for axis in (a, b) for basis in ax.bases(axis)):
        assert _labels(a) == _labels(b)


def test_a_space_of_one_feature_is_one() -> None:
    assert [basis.size for basis in ax.bases(ax.fresh(1))] == [1]
    assert ax.bases(ax.inert(7)) == []
    assert np.prod([ax.axis_size(a) for a in [ax.fresh(3), ax.inert(2)]]) == 6
