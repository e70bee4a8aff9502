"""What rules share."""

from __future__ import annotations

from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.tracing.program import Node


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


def places_are_read(node: Node, d: Facts) -> bool:
    """Whether anything reads the second result of an operation, which says where values were."""
    users = d.program.users()
    places = [u for u in users.get(node.name, []) if u.op == "getitem" and u.args[1] == 1]
    return any(users.get(u.name) or u.name in d.program.outputs for u in places)


def first_shape(node: Node, d: Facts) -> tuple[int, ...] | None:
    """The shape of the results of an operation that gives several of one shape, if any is read."""
    found = (u.shape for u in d.program.users().get(node.name, []) if u.op == "getitem")
    return next(found, None)


def close(axis: Axis, why: str, node: Node, d: Facts) -> None:
    """Leave no more than permutations along an axis that is reduced over, and of groups nothing."""
    d.restrict([axis], why, node)
    ax.pin(ax.pieces(axis), f"groups of features, {why}")
