"""Where rules are registered, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.tracing.program import Node

if TYPE_CHECKING:
    from ccamerge.graph.derivation import Derivation

Axes = list[Axis] | list[list[Axis]]
Rule = Callable[[Node, "Derivation"], "Axes | None"]
Move = Callable[[Node, "list[Axis]"], "Axes | None"]

RULES: dict[str, Rule] = {}

MOVES: dict[str, Move] = {}
"""Operations whose result holds elements of their first operand: its axes follow from that one's
alone, whatever these stand for."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by name."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys((f"aten.{name}" for name in names), function))
        return function

    return register


def move(*names: str) -> Callable[[Move], Move]:
    """Register how operations, by name, move the axes of their first operand."""

    def register(function: Move) -> Move:
        MOVES.update(dict.fromkeys((f"aten.{name}" for name in names), function))
        return function

    return register


def operand_axes(node: Node, d: Derivation, index: int = 0) -> list[Axis]:
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
