"""Functions of single elements that a program writes out: GELU by its formula, ``x * sigmoid(x)``.

Read operation by operation they multiply features by features, which only permutations survive.
As what they are, functions of one value element by element, they are non-linearities as any other.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from ccamerge.graph.rules import operation
from ccamerge.graph.tracing.program import Node, Program, Ref, bound, made_of

NAME = "ccamerge.pointwise"

_BINARY = ("aten.mul", "aten.add", "aten.sub", "aten.rsub")


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """A function of the single elements of ``source``, by its operations; the last gives it."""

    source: str
    nodes: tuple[Node, ...]

    @property
    def __name__(self) -> str:
        return NAME

    def __call__(self, x: Tensor) -> Tensor:
        """Run the operations."""
        values: dict[str, Any] = {self.source: x}
        for node in self.nodes:
            args, kwargs = bound(node.args, values), bound(node.kwargs, values)
            values[node.name] = node.target(*args, **kwargs)
        result: Tensor = values[self.nodes[-1].name]
        return result


def with_pointwise(program: Program) -> Program:
    """The program with every product of functions of one value as one operation on that value."""
    sources = _sources(program)
    users = program.users()
    members: dict[str, list[Node]] = {}
    for node in program.nodes:
        if node.name in sources:
            members.setdefault(sources[node.name], []).append(node)
    last: dict[str, Node] = {}
    gone: set[str] = set()
    for source, own in members.items():
        for node in reversed(own):
            if node.op != "aten.mul" or len(node.refs()) < 2 or node.name in gone | last.keys():
                continue
            names = made_of([node.name], {other.name: other for other in own})
            inside = [other for other in own if other.name in names]
            hidden = {other.name for other in inside[:-1]}
            readers = {user.name for name in hidden for user in users.get(name, [])}
            if readers <= hidden | {node.name} and not hidden & {*program.outputs, *gone}:
                target = Pointwise(source, tuple(inside))
                last[node.name] = dataclasses.replace(
                    node, target=target, args=(Ref(source),), kwargs={}
                )
                gone |= hidden
    nodes = tuple(last.get(node.name, node) for node in program.nodes if node.name not in gone)
    return dataclasses.replace(program, nodes=nodes) if last else program


def _sources(program: Program) -> dict[str, str]:
    """For each value that is a function of the single elements of another one, that one."""
    sources: dict[str, str] = {}
    for node in program.nodes:
        if node.name in program.of_parameters:
            continue
        refs = node.refs()
        roots = {sources.get(ref, ref) for ref in refs}
        if len(roots) != 1 or not node.real or node.shape is None or roots & program.of_parameters:
            continue
        root = roots.pop()
        if program.shapes.get(root) == node.shape and _elementwise(node):
            sources[node.name] = root
    return sources


def _elementwise(node: Node) -> bool:
    """Whether an operation is a finite function of single elements, or a sum or product of such."""
    if node.op in _BINARY:
        return all(isinstance(a, (Ref, int, float)) for a in node.args[:2])
    if node.op in ("aten.div", "aten.true_divide"):
        divisor = node.args[1]
        exact = len(node.args) == 2 and not node.kwargs  # nothing is rounded
        return exact and isinstance(divisor, (int, float)) and divisor != 0
    if node.op == "aten.pow":
        exponent = node.args[1]
        return (
            isinstance(node.args[0], Ref) and isinstance(exponent, (int, float)) and exponent >= 1
        )
    return operation(node).smooth and len(node.refs()) == 1
