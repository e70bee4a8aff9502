"""Finding gains that can be folded: of norms into what reads them, of channels into what writes.

A gain goes into all linear operations that read a norm's output, or into none: the norm itself has
no place for it any more. Between them values may be moved, as long as no feature is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis, Basis
from ccamerge.graph.folds import Fold, Linear, NormFold, PerFeature, ScaleFold
from ccamerge.graph.parts import Part
from ccamerge.graph.rewriting import Rewriting, marked, moved, place_of
from ccamerge.graph.rules import operation
from ccamerge.graph.rules.shapes import CASTS, KEPT
from ccamerge.graph.rules.shared import dims_of
from ccamerge.graph.tracing.program import Node, Program, Ref

_NORMS = ("aten.layer_norm", "aten.rms_norm")
_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d", "aten.conv3d")
_POOLS = ("aten.adaptive_avg_pool1d", "aten.adaptive_avg_pool2d", "aten.adaptive_avg_pool3d")


def fold_gains(
    program: Program, state: Mapping[str, Tensor] | None = None
) -> tuple[Program, tuple[Fold, ...]]:
    """The program without gains and biases of norms, and constants of channels, that can be folded.

    What cannot be for the values that parameters have in ``state`` stays.
    """
    new = Rewriting(program)
    folds: list[Fold] = []
    for node in program.nodes:
        found: Fold | None = None
        if node.op in _NORMS and node.shape is not None and len(node.args[1]) == 1:
            found = _Norm(new, node).folded(state)
        elif node.op == "aten.mul":
            found = _scale(node, new)
        if found is not None:
            folds.append(found)
    return new.program(), tuple(folds)


# What multiplies and adds ------------------------------------------------------------------


def _parameter(
    argument: Any, shape: tuple[int, ...], dim: int, new: Rewriting
) -> tuple[PerFeature, set[str]] | None:
    """The parameter that holds a number for each feature along an axis, if an argument is one.

    With it the operations that bring it into its shape, or add one number to it.
    """
    steps: list[Node] = []
    offset = 0.0
    while (node := new.node_of(argument)) is not None:
        shifts = node.op == "aten.add" and len(node.args) == 2 and not node.kwargs
        if new.uses[node.name] != 1 or not (shifts or operation(node).move):
            return None
        steps.append(node)
        argument = node.args[0]
        if shifts:
            number = node.args[1]
            if not isinstance(argument, Ref):
                argument, number = number, argument
            if not isinstance(number, (int, float)):
                return None
            offset += float(number)
    key = new.key(argument)
    own = new.shapes.get(argument.name, ()) if key is not None else ()
    along = [i for i, size in enumerate(own) if size == shape[dim] > 1]
    if key is None or len(along) != 1 or sum(size > 1 for size in own) != 1:
        return None
    axes, basis = marked(own, along[0])
    for node in reversed(steps):
        after = axes if node.op == "aten.add" else moved(node, axes)
        if after is None or any(isinstance(axis, list) for axis in after):
            return None
        axes = after  # type: ignore[assignment]
    if place_of(axes, basis) != (dim - len(shape) + len(axes), 1, 1):
        return None
    return PerFeature(key, own, offset), {node.name for node in steps}


# Linear operations -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Site:
    """A linear operation: its weight, and the axes read and written.

    It ``shifts`` if a bias can take in what is added to all elements of a feature that is read, and
    ``owns`` its bias if nothing else reads that, or it has none.
    """

    linear: Linear
    reads: int
    writes: int
    shifts: bool
    owns: bool


def _site(node: Node, new: Rewriting) -> _Site | None:
    """What is known of an operation that is linear in a weight of its own."""
    last = len(node.shape or ()) - 1
    if node.op == "aten.linear":
        return _built(node, new, (last, last))
    if node.op not in _CONVOLUTIONS:
        return None
    found = _built(node, new, (1, 1))
    if found is None or len(node.shape or ()) != len(new.shapes[node.args[1].name]):
        return None
    padding = node.argument(4, "padding", 0)
    every = padding if isinstance(padding, (list, tuple, str)) else [padding]
    padded = every != "valid" and any(every)  # where there are zeros in its place
    linear = dataclasses.replace(found.linear, groups=int(node.argument(6, "groups", 1)))
    return dataclasses.replace(found, linear=linear, shifts=found.shifts and not padded)


def _built(node: Node, new: Rewriting, axes: tuple[int, int]) -> _Site | None:
    """From the axes of values that are read and written."""
    bias = operation(node).place(node, "bias")
    found = _weight(node.args[1], new)
    if found is None or (len(found[1]) != 2 and node.op not in _CONVOLUTIONS):
        return None
    weight, order, parts = found
    key = new.key(bias)
    if key is not None and len(new.shapes[bias.name]) != 1:
        key = None
    linear = Linear(weight, order[1], order[0], key, parts=parts)
    owns = key is not None or bias is None
    return _Site(linear, *axes, shifts=key is not None, owns=owns)


def _weight(argument: Any, new: Rewriting) -> tuple[str, list[int], int] | None:
    """The parameter that a weight is, and which of its axes each axis of the weight is.

    Last, how many such weights the parameter holds, each a part of it.
    """
    steps: list[Node] = []
    part: Part | None = None
    while part is None and (node := new.node_of(argument)) is not None:
        if operation(node).move is None or new.uses[node.name] != 1:
            return None
        part = new.parts.get(node.name)
        if part is None:
            steps.append(node)
            argument = node.args[0]
    key = new.key(argument) if part is None else part.key
    if key is None:
        return None
    own = [Basis(size) for size in new.shapes[argument.name]]
    axes: list[Axis] = [((basis,),) for basis in own]
    for node in reversed(steps):
        after = moved(node, axes)
        if after is None or any(isinstance(axis, list) for axis in after):
            return None
        axes = after  # type: ignore[assignment]
    order = [[i for i, basis in enumerate(own) if axis == ((basis,),)] for axis in axes]
    if len(order) != len(own) or any(len(places) != 1 for places in order):
        return None
    first = int(part is not None)  # the axis of the parts comes before those of each
    return key, [first + places[0] for places in order], part.count if part is not None else 1


# Folding -----------------------------------------------------------------------------------


def _scale(node: Node, new: Rewriting) -> ScaleFold | None:
    """Fold what multiplies the channels of a linear operation's output, if that is all of it."""
    for value, other in (node.args[:2], node.args[1::-1]):
        if not isinstance(value, Ref) or not isinstance(other, Ref) or node.shape is None:
            continue
        path: list[Node] = []
        step = new.node_of(value)
        while step is not None and operation(step).move and new.uses[step.name] == 1:
            path.append(step)
            step = new.node_of(step.args[0])
        if step is None or step.shape is None or new.uses[step.name] != 1:
            continue
        site = _site(step, new)
        if (
            site is None
            or not site.owns
            or site.linear.parts > 1
            or new.shapes.get(value.name) != node.shape
        ):
            continue
        axes, basis = marked(step.shape, site.writes)
        for move in reversed(path):
            axes = moved(move, axes)  # type: ignore[assignment]
            if axes is None:
                break
        place = place_of(axes, basis) if axes is not None else None
        found = _parameter(other, node.shape, place[0], new) if place is not None else None
        if place is None or place[1:] != (1, 1) or found is None:
            continue
        new.drop(node.name, value.name)
        new.remove(found[1])
        return ScaleFold(found[0], site.linear)
    return None


class _Norm:
    """A norm over the last axis, what scales and shifts its output, and what reads that."""

    def __init__(self, new: Rewriting, node: Node) -> None:
        self._new, self._node = new, node
        self._shape = node.shape or ()
        self._gain: PerFeature | None = None
        self._bias: PerFeature | None = None
        self._product: tuple[str, str] | None = None  # a node that multiplies, and its operand
        self._sum: tuple[str, str] | None = None
        self._idle: set[str] = set()

    def folded(self, state: Mapping[str, Tensor] | None) -> NormFold | None:
        """Fold gain and bias if there is a gain, and everything that reads them can take it in."""
        end = self._affine()
        if end is None or self._gain is None:
            return None
        readers = self._readers(end, *marked(self._shape, len(self._shape) - 1))
        if not readers or any(readers.count(r) != r.parts for r in readers if r.parts > 1):
            return None
        readers = list(dict.fromkeys(readers))  # the parts of a parameter at once
        keeps = self._bias is not None and any(reader.bias is None for reader in readers)
        found = NormFold(self._gain, self._bias, keeps, tuple(readers))
        if state is not None and not found.fits(state):
            return None
        node = self._node
        if self._product is None:
            args = list(node.args)
            args[operation(node).places["weight"]] = None
            if self._bias is not None and not keeps:
                args[operation(node).places["bias"]] = None
            self._new.change(dataclasses.replace(node, args=tuple(args)))
            return found
        self._new.drop(*self._product)
        self._new.remove(self._idle)
        if self._sum is not None and not keeps:
            self._new.drop(*self._sum)
        return found

    def _affine(self) -> str | None:
        """Find gain and bias; the value that has them, or None if there is no gain."""
        node, new = self._node, self._new
        own = [operation(node).place(node, name) for name in ("weight", "bias")]
        if own[0] is None and own[1] is None:
            return self._following()
        found = [self._own(argument) for argument in own]
        if found[0] is None or (found[1] is None and own[1] is not None):
            return None
        self._gain, self._bias = found
        return node.name if not new.is_output(node.name) else None

    def _own(self, argument: Any) -> PerFeature | None:
        key = self._new.key(argument)
        return PerFeature(key, self._new.shapes[argument.name]) if key is not None else None

    def _following(self) -> str | None:
        """The same of a product and a sum that follow the norm, each reading nothing else."""
        new, value = self._new, self._node.name
        last = len(self._shape) - 1
        while new.uses[value] == 1 and not new.is_output(value):
            user = new.users[value][0]
            if user.op in (*CASTS, *KEPT) and user.args[0] == Ref(value):
                value = user.name
                continue
            wanted = "aten.add" if self._gain is not None else "aten.mul"
            if user.op != wanted or len(user.args) != 2 or user.kwargs or user.shape != self._shape:
                break
            other = user.args[1 if user.args[0] == Ref(value) else 0]
            found = _parameter(other, self._shape, last, new)
            if found is None or (self._gain is not None and (found[0].offset or found[1])):
                break
            if self._gain is not None:
                self._bias, self._sum = found[0], (user.name, value)
                return user.name
            self._gain, self._idle = found
            self._product, value = (user.name, value), user.name
        return value if self._gain is not None else None

    def _readers(self, value: str, axes: list[Axis], basis: Basis) -> list[Linear] | None:
        """All linear operations that a value reaches; None if it reaches anything else."""
        if self._new.is_output(value):
            return None
        found: list[Linear] = []
        for user in self._new.users.get(value, []):
            own = self._reader(user, Ref(value), axes, basis)
            if own is None:
                return None
            found += own
        return found

    def _reader(
        self, user: Node, value: Ref, axes: list[Axis], basis: Basis
    ) -> list[Linear] | None:
        """The linear operations that a value reaches by one of the operations that read it."""
        if user.scalar:
            return []  # a size
        if operation(user).move is not None and user.args[0] != value:
            return []  # a shape or a dtype
        if operation(user).move is not None:
            after = moved(user, axes)
            return self._after(user, after, basis) if after is not None else None
        place = place_of(axes, basis)
        if place is None or user.refs().count(value.name) != 1:
            return None
        dim, outer, inner = place
        if (averaged := _averaged(user, axes, dim)) is not None:
            return self._readers(user.name, averaged, basis)
        site = _site(user, self._new)
        if site is None or user.args[0] != value or site.reads != dim:
            return None
        if site.linear.groups > 1 and (outer, inner) != (1, 1):
            return None
        bias = site.linear.bias if site.shifts else None
        return [dataclasses.replace(site.linear, bias=bias, outer=outer, inner=inner)]

    def _after(self, node: Node, axes: list[Any], basis: Basis) -> list[Linear] | None:
        """What a value that was moved reaches, or each of several that it was taken apart to."""
        if not axes or not isinstance(axes[0], list):
            return self._readers(node.name, axes, basis)
        found: list[Linear] = []
        for picked in self._new.users.get(node.name, []):
            own = None
            if picked.op == "getitem":
                own = self._readers(picked.name, axes[picked.args[1]], basis)
            if own is None:
                return None
            found += own
        return found


def _averaged(node: Node, axes: list[Axis], features: int) -> list[Axis] | None:
    """Axes after a mean over others than that of features, which leaves what is constant."""
    if node.shape is None:
        return None
    if node.op in _POOLS:
        kept = axes[: len(axes) - int(node.op[-2])]
        if features >= len(kept):
            return None
        return [*kept, *(ax.inert(size) for size in node.shape[len(kept) :])]
    dims = node.argument(1, "dim")
    if node.op != "aten.mean" or not isinstance(dims, (int, list, tuple)) or dims in ([], ()):
        return None
    over = set(dims_of(dims, len(axes)))
    if features in over:
        return None
    if len(node.shape) == len(axes):
        return [ax.inert(1) if i in over else axis for i, axis in enumerate(axes)]
    return [axis for i, axis in enumerate(axes) if i not in over]
