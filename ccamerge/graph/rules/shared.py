"""What rules share."""

from __future__ import annotations

from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.operations import operation
from ccamerge.graph.tracing.program import Node, Ref


def operand_axes(node: Node, d: Facts, index: int = 0) -> list[Axis]:
    """The axes of an operation's operand."""
    return d.axes_of(node.args[index])


def dims_of(argument: Any, rank: int) -> list[int]:
    """Dimensions given as one or several, as indices from 0."""
    items = argument if isinstance(argument, (list, tuple)) else [argument]
    return [int(i) % rank for i in items]


def broadcast(axes: list[Axis], shape: tuple[int, ...]) -> list[Axis]:
    """Axes of a tensor that is repeated to a shape; what is repeated holds no features then."""
    padded = [ax.inert(1)] * (len(shape) - len(axes)) + axes
    return [
        axis if ax.axis_size(axis) == size else ax.inert(size)
        for axis, size in zip(padded, shape, strict=True)
    ]


def split_evenly(axis: Axis, groups: int, where: str) -> list[Axis] | None:
    """Cut an axis into equal pieces, each with a basis of its own; None, and pinned, if none is."""
    pieces, rest, size = [], axis, ax.axis_size(axis) // groups
    for _ in range(groups - 1):
        cut = ax.split(rest, size)
        if cut is None:
            ax.pin(axis, f"{where}: {groups} groups do not fit its structure")
            return None
        pieces.append(cut[0])
        rest = cut[1]
    return [*pieces, rest]


def is_zero(d: Facts, argument: Any) -> bool:
    """Whether a value is known to be zeros, which every linear map leaves as they are."""
    nodes = {node.name: node for node in d.program.nodes}
    node = nodes.get(argument.name) if isinstance(argument, Ref) else None
    while node is not None and operation(node).move and isinstance(node.args[0], Ref):
        node = nodes.get(node.args[0].name)
    return node is not None and node.op in ("aten.zeros", "aten.zeros_like", "aten.new_zeros")
