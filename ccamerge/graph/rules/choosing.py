"""Operations that read or write elements at places that are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.operations import rule
from ccamerge.graph.rules.elementwise import several
from ccamerge.graph.rules.shared import close, dims_of, first_shape, operand_axes, places_are_read
from ccamerge.graph.tracing.program import Node

_TRUTHS = {"eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not"} | {
    "logical_xor",
    "isnan",
    "isinf",
    "isfinite",
}


@rule("gather", "take_along_dim")
def _gather(node: Node, d: Facts) -> list[Axis] | None:
    """Along an axis the elements whose places are given, for each element of the other axes."""
    if node.shape is None or node.named("dim") is None or d.is_static(node.args[0]):
        return None
    return _along_places(node, d, dims_of(node.named("dim"), len(node.shape))[0], node.args[:1])


@rule("scatter", "scatter_add", "scatter_reduce")
def _scatter(node: Node, d: Facts) -> list[Axis] | None:
    """The reverse: elements of one tensor put at places of another."""
    into, dim, index, source = node.args[:4]
    if node.shape is None or any(map(d.is_weight, (into, source))):
        return None
    dim = dims_of(dim, len(node.shape))[0]
    ax.pin(d.axes_of(index)[dim], f"indices of {node.name}")
    result = _along_places(node, d, dim, [a for a in (into, source) if d.is_tensor(a)])
    more = node.op == "aten.scatter_reduce" or len(node.args) > 4 or node.kwargs
    if more or not d.is_tensor(source):
        d.restrict(result, "another function than sums of features", node)
    return result


def _along_places(node: Node, d: Facts, dim: int, tensors: Sequence[Any]) -> list[Axis]:
    """The axes of what is moved along ``dim``, all others being one basis, be it of the indices."""
    assert node.shape is not None
    index = next(a for a in node.args[1:] if d.is_tensor(a) and a not in tensors)
    result: list[Axis] = [ax.inert(size) for size in node.shape]
    for argument in (*tensors, index):
        for i, axis in enumerate(d.axes_of(argument)):
            if i == dim or ax.axis_size(axis) != node.shape[i]:
                ax.pin(axis, f"places of {node.name}")
            elif argument is tensors[0]:
                result[i] = axis
            else:
                ax.unify(axis, result[i], node.name)
    d.made_of(node, [])
    return result


@rule("sort", "topk", "kthvalue", "median", "mode", "cummax", "cummin")
def _ordered(node: Node, d: Facts) -> list[list[Axis]] | None:
    """Values in an order along an axis, and their places: where these are read, it stays."""
    shape = first_shape(node, d)
    dim = node.named("dim", -1)
    if shape is None or not isinstance(dim, int) or d.is_static(node.args[0]):
        return None
    axes = operand_axes(node, d)
    at = dims_of(dim, len(axes))[0]
    close(axes[at], f"put in order by {node.name}", node, d)
    if places_are_read(node, d) or node.op in ("aten.cummax", "aten.cummin"):
        ax.pin(axes[at], f"a feature's place is read of {node.name}")
    d.restrict(axes, "puts each feature in order", node)
    result = [axis for i, axis in enumerate(axes) if i != at]
    if len(shape) == len(axes):
        result.insert(at, ax.inert(shape[at]))
    return [result, list(result)]


@rule("argsort")
def _order(node: Node, d: Facts) -> list[Axis] | None:
    axes = operand_axes(node, d)
    ax.pin(axes[dims_of(node.named("dim", -1), len(axes))[0]], f"put in order by {node.name}")
    d.restrict(axes, "puts each feature in order", node)
    d.made_of(node, [])
    return axes


@rule("one_hot")
def _one_hot(node: Node, d: Facts) -> list[Axis] | None:
    if node.shape is None or d.is_weight(node.args[0]):
        return None
    d.made_of(node, [])
    return [*operand_axes(node, d), ax.inert(node.shape[-1])]


@rule("index_add", "index_copy", "index_reduce")
def _index_add(node: Node, d: Facts) -> list[Axis] | None:
    """Rows of one tensor added to chosen rows of another, or put in their place."""
    into, dim, index, source = node.args[:4]
    if node.shape is None or any(d.is_weight(a) for a in (into, index, source)):
        return None
    axes, added = d.axes_of(into), d.axes_of(source)
    dim = dims_of(dim, len(axes))[0]
    for axis in (axes[dim], added[dim], *d.axes_of(index)):
        ax.pin(axis, f"indices of {node.name}")
    for i, (one, two) in enumerate(zip(axes, added, strict=True)):
        if i != dim:
            ax.unify(one, two, node.name)
    if node.op == "aten.index_reduce":
        d.restrict(added, "another function than sums of features", node)
    return [ax.inert(node.shape[i]) if i == dim else axis for i, axis in enumerate(added)]


@rule("index_put")
def _index_put(node: Node, d: Facts) -> list[Axis] | None:
    """Values put at places of a tensor that are given for some of its axes, or where it is true."""
    into, indices, values = node.args[:3]
    given = [i for i, index in enumerate(indices) if index is not None]
    if node.shape is None or any(map(d.is_weight, (into, values))):
        return None
    axes, own = d.axes_of(into), d.axes_of(values) if d.is_tensor(values) else []
    if _is_truth(indices[given[0]], d):
        return _put_where(node, d) if len(indices) == 1 else None
    if given != list(range(given[0], given[-1] + 1)):
        return None  # the axes of the places come first
    for axis in (*(axes[i] for i in given), *(a for i in given for a in d.axes_of(indices[i]))):
        ax.pin(axis, f"places of {node.name}")
    after = len(axes) - 1 - given[-1]
    for back, axis in enumerate(reversed(own), start=1):
        if back <= after and ax.axis_size(axis) == ax.axis_size(axes[-back]):
            ax.unify(axes[-back], axis, node.name)
        else:
            ax.pin(axis, f"places of {node.name}")
    if any(ax.axis_size(a) == 1 for a in own[-after:]) or len(own) < after:
        d.restrict(axes, "one number for many features", node)
    for axis in axes[: given[0]]:  # of values that may be fewer there
        ax.pin(axis, f"places of {node.name}")
    return axes


def _is_truth(argument: Any, d: Facts) -> bool:
    """Whether a value is a mask, by the operation that gives it."""
    node = next((n for n in d.program.nodes if n.name == argument.name), None)
    return node is not None and node.op.removeprefix("aten.") in _TRUTHS


def _put_where(node: Node, d: Facts) -> list[Axis] | None:
    """One number where a mask of the tensor's shape is true."""
    into, (mask,), value = node.args[:3]
    if len(d.axes_of(mask)) != len(node.shape or ()) or d.is_tensor(value):
        return None
    return several(Node(node.name, node.target, (into, mask), {}, node.shape), d)


@rule("slice_scatter", "select_scatter")
def _scattered(node: Node, d: Facts) -> list[Axis] | None:
    """A part of a tensor replaced by another tensor."""
    into, part = node.args[:2]
    if node.shape is None or not d.is_tensor(part) or d.is_weight(part):
        return None
    axes, own = operand_axes(node, d), d.axes_of(part)
    dim = dims_of(node.named("dim", 0), len(axes))[0]
    if sources := d.sources_of(into):
        rest = [ax.inert(ax.axis_size(axis)) for axis in own]
        if not d.is_static(part) or node.op != "aten.slice_scatter":
            return None
        moved = [[*s[:dim], _replaced(node, s[dim], rest[dim]), *s[dim + 1 :]] for s in sources]
        d.made_of(node, moved)
    if node.op == "aten.select_scatter":
        ax.pin(axes[dim], f"one feature alone in {node.name}")
        own = [*own[:dim], ax.inert(1), *own[dim:]]
    for i, (axis, put) in enumerate(zip(axes, own, strict=True)):
        if i != dim:
            ax.unify(axis, put, node.name)
    if node.op == "aten.slice_scatter":
        return [*axes[:dim], _replaced(node, axes[dim], own[dim]), *axes[dim + 1 :]]
    return [*axes[:dim], ax.inert(node.shape[dim]), *axes[dim + 1 :]]


def _replaced(node: Node, axis: Axis, part: Axis) -> Axis:
    """An axis of which a range is that of another tensor."""
    total, size = ax.axis_size(axis), ax.axis_size(part)
    start = node.named("start") or 0
    if size == total:
        return part
    if node.named("step", 1) == 1 and isinstance(start, int):
        first = ax.split(axis, max(0, start + total) if start < 0 else start)
        second = ax.split(first[1], size) if first is not None else None
        if first is not None and second is not None:
            return (*first[0], *part, *second[1])
    for pinned in (axis, part):
        ax.pin(pinned, f"cut apart by {node.name}")
    return ax.inert(total)
