"""The algebra of axes: which features of which tensors share a basis.

An axis of a tensor is a concatenation of *segments*; a segment is a product of *factors*, outermost
first; a factor is a `Basis` (features in an unknown basis) or a plain number (inert: its order
means something, as in space or time). So the channels of an image are ``[(C,)]``, the flattened
``C x H x W`` in front of a linear layer ``[(C, H*W)]``, and a DenseNet's concatenation
``[(C1,), (C2,)]``.

Equating two axes unifies their bases, splitting a basis where the other axis has a boundary. A view
that shows features as ``(groups, n)`` makes a product of their basis: maps of both parts remain.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias


@dataclasses.dataclass(eq=False)
class Basis:
    """A set of ``size`` features that must be transformed together.

    A union-find node; one found to have structure (a concatenation, a product) carries that axis
    as its ``definition`` and stands for it from then on. ``origin`` is what whoever made it wants
    to find again in its parts. ``piece`` says that a view has made it of a larger basis, and
    ``outer`` are bases that stand outside of it in a product. ``idle`` says that no feature is in
    it: every element along it is the same, until it meets features.
    """

    size: int
    parent: Basis | None = None
    definition: Axis | None = None
    pins: list[str] = dataclasses.field(default_factory=list)
    origin: tuple[str, int, int | None] | None = None
    piece: bool = False
    idle: bool = False
    outer: list[Basis] = dataclasses.field(default_factory=list)

    def root(self) -> Basis:
        """The representative of the bases unified with this one."""
        node = self
        while node.parent is not None:
            node = node.parent
        return node


Factor: TypeAlias = "Basis | int"
Segment: TypeAlias = "tuple[Factor, ...]"
Axis: TypeAlias = "tuple[Segment, ...]"


def inert(size: int) -> Axis:
    """An axis that no basis change may touch."""
    return ((size,),)


def fresh(size: int, origin: tuple[str, int, int | None] | None = None) -> Axis:
    """An axis in a new basis."""
    return ((Basis(size, origin=origin),),)


def idle(size: int) -> Axis:
    """An axis along which every element is the same: in the basis of the features that it meets."""
    return ((Basis(size, idle=True),),) if size > 1 else inert(size)


def segment_size(segment: Segment) -> int:
    """Number of elements of a segment; negative if it depends on the batch."""
    return math.prod(f.size if isinstance(f, Basis) else f for f in segment)


def axis_size(axis: Axis) -> int:
    """Number of elements of an axis."""
    return sum(segment_size(s) for s in axis)


def bases(axis: Axis) -> list[Basis]:
    """The bases that occur in an axis once it is resolved, in order."""
    found = (f for segment in resolve(axis) for f in segment if isinstance(f, Basis))
    return list(dict.fromkeys(found))


def is_inert(axis: Axis) -> bool:
    """Whether no basis occurs in the axis."""
    return not bases(axis)


def resolve(axis: Axis) -> Axis:
    """Replace each basis by its representative, or by its definition."""
    out: list[Segment] = []
    for segment in axis:
        expanded: list[Segment] = [()]
        for factor in segment:
            options = _expand(factor)
            if len(options) == 1:
                expanded = [(*s, *options[0]) for s in expanded]
                continue
            # An outer number repeats the whole concatenation. (`split` and `_define` see to it that
            # no basis stands outside a concatenation.)
            repeats = math.prod(f for f in expanded[0] if isinstance(f, int))
            expanded = [option for _ in range(repeats) for option in options]
        out.extend(_simplify(s) for s in expanded)
    return tuple(out)


def _expand(factor: Factor) -> list[Segment]:
    if isinstance(factor, int):
        return [(factor,)]
    root = factor.root()
    return [(root,)] if root.definition is None else list(resolve(root.definition))


def _simplify(segment: Segment) -> Segment:
    """Drop factors of one and multiply neighbouring numbers."""
    out: list[Factor] = []
    for factor in segment:
        if factor == 1 and isinstance(factor, int):
            continue
        if isinstance(factor, int) and out and isinstance(out[-1], int):
            out[-1] = out[-1] * factor
        else:
            out.append(factor)
    return tuple(out) or (1,)


def pin(axis: Axis, reason: str) -> None:
    """Forbid any change of basis along an axis, and say why."""
    for basis in bases(axis):
        if reason not in basis.pins:
            basis.pins.append(reason)


def pin_free(axis: Axis, reason: str) -> None:
    """Pin the bases that nothing pins yet: what did so before says more."""
    for basis in bases(axis):
        if not basis.pins:
            basis.pins.append(reason)


def pieces(axis: Axis) -> Axis:
    """An axis of the bases in an axis that a view has cut out of larger ones."""
    return tuple((basis,) for basis in bases(axis) if basis.piece)


def freeze(axis: Axis, reason: str) -> None:
    """Pin an axis, and make its bases plain numbers, which may stand outside a concatenation."""
    for basis in bases(axis):
        pin(((basis,),), reason)
        basis.definition = inert(basis.size)


def reasons(axis: Axis) -> list[str]:
    """Why bases of an axis are pinned, those included that are plain numbers by now."""
    found: list[str] = []
    for basis in (f.root() for segment in axis for f in segment if isinstance(f, Basis)):
        found += basis.pins
        found += reasons(basis.definition) if basis.definition is not None else []
    return list(dict.fromkeys(found))


def split(axis: Axis, position: int) -> tuple[Axis, Axis] | None:
    """Cut an axis in two; a basis in the way is split. None if the cut falls inside a product."""
    axis = resolve(axis)
    done = 0
    for index, segment in enumerate(axis):
        size = segment_size(segment)
        if position == done:
            return axis[:index], axis[index:]
        if position < done + size:
            cut = position - done
            head, inner = (
                segment[0],
                math.prod(f.size if isinstance(f, Basis) else f for f in segment[1:]),
            )
            if cut % inner:
                return None
            left: Segment
            right: Segment
            inside = any(isinstance(f, Basis) for f in segment[1:])
            if isinstance(head, Basis) and inside and head.piece:
                freeze(((head,),), "the order of its groups, which are cut apart elsewhere")
                head = head.size
            if isinstance(head, Basis):
                if len(segment) > 2 or inside:
                    return None
                for basis in head.outer:
                    freeze(((basis,),), "stands outside of features that are cut apart")
                first, second = (
                    Basis(size, pins=list(head.pins), origin=head.origin, idle=head.idle)
                    for size in (cut // inner, head.size - cut // inner)
                )
                head.definition = ((first,), (second,))
                left, right = (first, *segment[1:]), (second, *segment[1:])
            else:
                left, right = (cut // inner, *segment[1:]), (head - cut // inner, *segment[1:])
            return (
                (*axis[:index], _simplify(left)),
                (_simplify(right), *axis[index + 1 :]),
            )
        done += size
    return axis, ()


def unify(a: Axis, b: Axis, where: str) -> None:
    """State that two axes are in the same basis; what cannot be matched is pinned."""
    a, b = resolve(a), resolve(b)
    if axis_size(a) != axis_size(b):
        pin(a, f"{where}: sizes {axis_size(a)} and {axis_size(b)} meet")
        pin(b, f"{where}: sizes {axis_size(a)} and {axis_size(b)} meet")
        return
    while a and b:
        size_a, size_b = segment_size(a[0]), segment_size(b[0])
        if size_a != size_b:
            longer, size = (a, size_b) if size_a > size_b else (b, size_a)
            cut = split(longer, size)
            if cut is None:
                pin_free((*a, *b), f"{where}: axes of different structure meet")
                return
            # A split basis may occur in both; a plain number is cut in this axis alone.
            parts = resolve(cut[0]) + resolve(cut[1])
            a, b = (parts, resolve(b)) if longer is a else (resolve(a), parts)
            continue
        _unify_segments(a[0], b[0], where)
        a, b = resolve(a[1:]), resolve(b[1:])


def _define(basis: Basis, segment: Segment) -> bool:
    """Give a basis the structure of a product; False if it occurs in it."""
    if basis in segment:
        return False
    for reason in basis.pins:
        pin((segment,), reason)
    for inner in bases((segment,)):
        inner.outer += basis.outer
    basis.definition = (segment,)
    return True


def _unify_segments(a: Segment, b: Segment, where: str) -> None:
    if len(a) != len(b):
        for one, other in ((a, b), (b, a)):
            if len(one) == 1 and isinstance(one[0], Basis) and _define(one[0], other):
                return
    sizes = [[f.size if isinstance(f, Basis) else f for f in s] for s in (a, b)]
    if sizes[0] != sizes[1]:
        pin_free((a, b), f"{where}: axes of different structure meet")
        return
    for f, g in zip(a, b, strict=True):
        if isinstance(f, Basis) and isinstance(g, Basis):
            f, g = f.root(), g.root()
            if f is not g:
                g.pins.extend(p for p in f.pins if p not in g.pins)
                g.outer += f.outer
                g.piece = g.piece and f.piece
                g.idle = g.idle and f.idle
                f.parent = g
        elif isinstance(f, Basis) or isinstance(g, Basis):
            basis = f if isinstance(f, Basis) else g
            assert isinstance(basis, Basis)
            if basis.root().idle:
                freeze(((basis,),), f"{where}: meets a fixed axis")
            else:
                pin_free(((basis,),), f"{where}: meets a fixed axis")


def reshape(axes: list[Axis], shape: list[int], where: str) -> list[Axis]:
    """Axes of a tensor after a view to ``shape``; a basis that is cut apart becomes a product.

    What no product fits is pinned. Both are walked together in the smallest groups of equal size,
    as a view is: each group is merged into one axis and that axis taken apart again.
    """
    out: list[Axis] = []
    i = j = 0
    while i < len(axes) or j < len(shape):
        group, sizes = axes[i : i + 1], shape[j : j + 1]
        i, j = i + 1, j + 1
        have, want = math.prod(map(axis_size, group)), math.prod(sizes)
        while have != want and (i < len(axes) if have < want else j < len(shape)):
            if have < want:
                group.append(axes[i])
                have *= axis_size(axes[i])
                i += 1
            else:
                sizes.append(shape[j])
                want *= shape[j]
                j += 1
        merged = _merge(group) if have == want else None
        parts = take_apart(merged, sizes) if merged is not None else None
        if parts is None:
            for axis in group:
                pin(axis, f"{where}: a view cuts its features apart")
            parts = [inert(size) for size in sizes]
        left = {basis for part in parts for basis in bases(part)}
        for basis in (b for axis in group for b in bases(axis)):
            if basis not in left and not basis.pins:  # a single feature, squeezed away
                pin(((basis,),), f"{where}: a view drops its axis")
        out.extend(parts)
    return out


def _merge(group: list[Axis]) -> Axis | None:
    """The row-major product of axes as one axis."""
    product: Axis = ((1,),)
    for axis in map(resolve, group):
        axis = inert(axis_size(axis)) if is_inert(axis) else axis
        if len(axis) == 1:
            product = tuple((*segment, *axis[0]) for segment in product)
        elif len(product) == 1 and is_inert(product):
            product = axis * segment_size(product[0])
        else:  # a concatenation inside a basis: no such form
            return None
    for segment in product:
        found = [f for f in segment if isinstance(f, Basis)]
        for index, basis in enumerate(found):
            basis.outer += found[:index]
    return tuple(_simplify(s) for s in product)


def take_apart(axis: Axis, sizes: list[int]) -> list[Axis] | None:
    """Split a product into axes of the given sizes, and so the bases that lie across; None if not.

    Equal groups in a concatenation get one basis, as a product has it.
    """
    if not sizes:
        return []
    if len(sizes) == 1:
        return [axis]
    if sizes[0] == 1:  # may stand before a concatenation, too
        following = take_apart(axis, sizes[1:])
        return None if following is None else [inert(1), *following]
    ends: list[tuple[Segment, Segment]] = []
    for segment in resolve(axis):
        found = _cut(segment, math.prod(sizes[1:]))
        if found is None:
            return None
        ends.append(found)
    rest: Axis = (ends[0][1],)
    for _, tail in ends[1:]:
        unify(rest, (tail,), "groups of one axis")
    # Sizes of one may stand anywhere; the recursion peels one output axis at a time.
    following = take_apart(resolve(rest), sizes[1:])
    return None if following is None else [tuple(head for head, _ in ends), *following]


def _cut(segment: Segment, inner: int) -> tuple[Segment, Segment] | None:
    """The outer factors of a segment, and the inner ones of a size."""
    flat = resolve((segment,))  # what was cut in another segment
    if len(flat) != 1:
        return None
    head, size = list(flat[0]), 1
    tail: list[Factor] = []
    while size < inner and head:
        factor = head.pop()
        count = factor.size if isinstance(factor, Basis) else factor
        part = inner // size
        if count > part and inner % size == 0 and count % part == 0:
            if isinstance(factor, Basis):
                outside, factor = _as_product(factor, part)
                head.append(outside)
            else:
                head.append(factor // part)
                factor = part
            count = part
        tail.insert(0, factor)
        size *= count
    return (_simplify(tuple(head)), _simplify(tuple(tail))) if size == inner else None


def _as_product(basis: Basis, inner: int) -> tuple[Basis, Basis]:
    """The two factors that a basis is shown as, the inner one of a size."""
    parts = [
        Basis(size, None, None, [*basis.pins], basis.origin, True, basis.idle, [*basis.outer])
        for size in (basis.size // inner, inner)
    ]
    parts[1].outer.append(parts[0])
    basis.definition = (tuple(parts),)
    return parts[0], parts[1]
