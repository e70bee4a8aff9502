"""A program that is changed step by step: what reads what, and what takes whose place."""

from __future__ import annotations

import dataclasses
from collections import Counter

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis, Basis
from ccamerge.graph.parts import parts_of
from ccamerge.graph.rules import operation
from ccamerge.graph.tracing.program import Node, Program, Ref


class Rewriting:
    """Changes to a program, found out on the program as it was.

    Attributes
    ----------
    users : for each value the operations that read it, in order
    uses : how often each value is read, outputs included
    nodes : the operations by name
    parts : those that take a part of a parameter which falls apart
    parameters, shapes : of the new program; may be added to
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.users: dict[str, list[Node]] = {}
        self.uses = Counter(program.outputs)
        for node in program.nodes:
            refs = node.refs()
            self.uses.update(refs)
            for name in dict.fromkeys(refs):
                self.users.setdefault(name, []).append(node)
        self.nodes = {node.name: node for node in program.nodes}
        self.parts = parts_of(program)
        self.parameters, self.shapes = dict(program.parameters), dict(program.shapes)
        self._aliases = Counter(program.parameters.values())
        self._outputs = frozenset(program.outputs)
        self._changed: dict[str, Node] = {}
        self._dropped: dict[str, str] = {}
        self._gone: set[str] = set()

    def node_of(self, argument: object) -> Node | None:
        """The operation that gives an argument; None for parameters, inputs and numbers."""
        return self.nodes.get(argument.name) if isinstance(argument, Ref) else None

    def is_output(self, name: str) -> bool:
        """Whether the network returns a value."""
        return name in self._outputs

    def key(self, argument: object) -> str | None:
        """The state key of a parameter that only one operation uses, and without limits."""
        if not isinstance(argument, Ref) or self.uses[argument.name] != 1:
            return None
        found = self._program.parameters.get(argument.name)
        if found is None or self._aliases[found] != 1 or found in self._program.limits:
            return None
        return found

    def change(self, node: Node) -> None:
        """Put an operation in the place of the one of its name."""
        self._changed[node.name] = node

    def drop(self, name: str, into: str) -> None:
        """Leave an operation out; another value takes the place of its result."""
        self._dropped[name] = into

    def remove(self, names: set[str]) -> None:
        """Leave operations out that nothing reads any more."""
        self._gone |= names

    def program(self) -> Program:
        """The program with all changes."""
        places: dict[str, str] = {}
        for name, into in self._dropped.items():
            while into in self._dropped:
                into = self._dropped[into]
            places[name] = into
        left_out = self._dropped.keys() | self._gone
        concerned = {user.name for name in places for user in self.users.get(name, [])}
        nodes, read = [], {*(outputs := [places.get(n, n) for n in self._program.outputs])}
        for old in self._program.nodes:
            if old.name not in left_out:
                node = self._changed.get(old.name, old)
                nodes.append(node.renamed(places) if old.name in concerned else node)
                read.update(nodes[-1].refs())
        return dataclasses.replace(
            self._program,
            nodes=tuple(nodes),
            parameters={name: key for name, key in self.parameters.items() if name in read},
            shapes=self.shapes,
            outputs=tuple(outputs),
        )


def marked(shape: tuple[int, ...], dim: int) -> tuple[list[Axis], Basis]:
    """Axes of a value of which one, in a basis of its own, is to be followed."""
    basis = Basis(shape[dim])
    axes = [ax.inert(size) for size in shape]
    axes[dim] = ((basis,),)
    return axes, basis


def moved(node: Node, axes: list[Axis]) -> list[Axis] | list[list[Axis]] | None:
    """Axes after a node that only moves elements of its first operand; None for any other.

    Minus these elements are others: what is added to them changes its sign.
    """
    move = operation(node).move if node.op != "aten.neg" else None
    return move(node, axes) if move is not None else None


def place_of(axes: list[Axis], basis: Basis) -> tuple[int, int, int] | None:
    """Where a basis lies whole: (axis, elements outside it, elements inside it).

    None if it is cut, lies along several axes, or its order has become a matter of positions.
    """
    holding = [dim for dim, axis in enumerate(axes) if ax.bases(axis)]
    if basis.pins or basis.definition is not None or len(holding) != 1:
        return None
    segments = ax.resolve(axes[holding[0]])
    if len(segments) != 1 or segments[0].count(basis) != 1:
        return None
    at = segments[0].index(basis)
    outer, inner = (ax.segment_size(part) for part in (segments[0][:at], segments[0][at + 1 :]))
    return holding[0], outer, inner
