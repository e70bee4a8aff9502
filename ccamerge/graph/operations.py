"""The table of operations: for each one all that is known of it, in one entry.

Derivation, folding, repair, regression and verification look up what they need here. The entries
are registered by the files of `ccamerge.graph.rules`, and may be by anyone: a name is that of a
`Node`, such as ``aten.conv2d``. An operation without an entry pins every live axis it touches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.groups import GENERAL, Group
from ccamerge.graph.tracing.program import Node, Ref

Axes = list[Axis] | list[list[Axis]]
Rule = Callable[[Node, Facts], "Axes | None"]
Move = Callable[[Node, "list[Axis]"], "Axes | None"]
Twin = Callable[[Node], Node]
SomeRule = TypeVar("SomeRule", bound=Rule)
SomeMove = TypeVar("SomeMove", bound=Move)


@dataclasses.dataclass(frozen=True)
class Operation:
    """What is known of an operation.

    Attributes
    ----------
    name : as `Node.op` gives it
    rule : equates axes, records which axes of which parameters write, read or scale the features of
        an axis, and returns the axes of the result, or None for a form of the operation that it
        does not know
    move : instead of a rule, where the result holds elements of the first operand: its axes follow
        from that one's alone, whatever these stand for
    tap : what its output is to a space, see `Tap`; without a kind it is an activation if a rule
        recorded an effect or a product of features, else none
    places : positions of its parameters among the arguments, by name: "weight" and "bias" scale and
        shift the features of the output; "running_mean" and "running_var" are those of a BatchNorm
    features : the axis of its output that its parameters act on
    linear : whether its arguments are input, weight and bias, and it is ``weight x + bias`` or a
        convolution with outputs on axis 0 of the weight: it can be fitted, and takes in a BatchNorm
        that follows
    commutes : the group that commutes with what it does to single features, where that is more
        than sums and products
    smooth : whether it is a function of the single elements of one tensor, its other arguments
        being numbers, with a finite value and slope wherever an element may be
    adds : whether it is the sum of two values and nothing else
    reduces : whether it makes one value of many, in whatever order these come
    magnitude : whether means of its values are statistics of features, as in norms
    sizes : whether it reads no values, but sizes of tensors
    twin : what stands for it in a network without non-linearities; itself if None
    """

    name: str
    rule: Rule | None = None
    move: Move | None = None
    tap: Literal["write", "norm", "sum"] | None = None
    places: Mapping[str, int] = dataclasses.field(default_factory=dict)
    features: int = 1
    linear: bool = False
    commutes: Group = GENERAL
    smooth: bool = False
    adds: bool = False
    reduces: bool = False
    magnitude: bool = False
    sizes: bool = False
    twin: Twin | None = None

    def place(self, node: Node, name: str) -> Any:
        """The argument of a node that is a parameter of some name; None if there is none."""
        return node.argument(self.places[name], name) if name in self.places else None


OPERATIONS: dict[str, Operation] = {}
"""All entries, by name. `ccamerge.graph.rules` fills it."""


def operation(node: Node) -> Operation:
    """The entry of a node's operation, which says nothing if there is none."""
    return OPERATIONS.get(node.op) or Operation(node.op)


def features_dim(node: Node) -> int:
    """The axis of an operation's output that its parameters act on, counted from the first."""
    axis = operation(node).features
    return axis if axis >= 0 else len(node.shape or ()) + axis


def rule(*names: str, **facts: Any) -> Callable[[SomeRule], SomeRule]:
    """Register operations by their rule; ``facts`` are other fields of `Operation`."""

    def register(function: SomeRule) -> SomeRule:
        for name in map(full_name, names):
            OPERATIONS[name] = Operation(name, rule=function, **facts)
        return function

    return register


def move(*names: str) -> Callable[[SomeMove], SomeMove]:
    """Register operations by how they move the axes of their first operand."""

    def register(function: SomeMove) -> SomeMove:
        for name in map(full_name, names):
            OPERATIONS[name] = Operation(name, move=function)
        return function

    return register


def full_name(name: str) -> str:
    """The name of an operation; of torch's own ones what follows ``aten.`` will do."""
    return name if "." in name else f"aten.{name}"


def left_out(node: Node) -> Node:
    """The operation replaced by the identity: the linear twin of what does more than that."""
    if not isinstance(node.args[0], Ref):
        return node
    return dataclasses.replace(node, target=_same, args=node.args[:1], kwargs={})


def _same(x: Any) -> Any:
    return x
