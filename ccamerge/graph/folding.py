"""Finding the BatchNorms of a program that can be folded, and the program without them."""

from __future__ import annotations

import dataclasses
from collections import Counter

from ccamerge.graph.folds import Fold
from ccamerge.graph.pointwise import with_pointwise
from ccamerge.graph.rules import features_dim, operation
from ccamerge.graph.tracing.program import Node, Program, Ref


def fold(program: Program) -> tuple[Program, tuple[Fold, ...]]:
    """The program with every BatchNorm that directly follows a linear operation folded away.

    A BatchNorm elsewhere (before the convolution, as in DenseNet), or whose parameters are used
    more than once, stays.
    """
    program = with_pointwise(program)
    found = _Folding(program)
    for norm in program.nodes:
        if "running_var" in operation(norm).places:
            found.offer(norm)
    return found.program(), tuple(found.folds)


class _Folding:
    """The folds found so far in a program, and what they change in it."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._users = program.users()
        self._uses = Counter(ref for node in program.nodes for ref in node.refs())
        self._uses.update(program.outputs)
        self._aliases = Counter(program.parameters.values())
        self._by_name = {node.name: node for node in program.nodes}
        self._parameters, self._shapes = dict(program.parameters), dict(program.shapes)
        self._merged: dict[str, Node] = {}  # name of the linear operation -> what replaces it
        self._dropped: dict[str, str] = {}  # name of the BatchNorm -> name of the linear operation
        self.folds: list[Fold] = []

    def offer(self, norm: Node) -> None:
        """Fold a BatchNorm if it can be."""
        linear = self._linear(norm)
        if linear is None or linear.shape is None:
            return
        bias = operation(linear).place(linear, "bias")
        own = [operation(norm).place(norm, name) for name in operation(norm).places]
        arguments = [linear.args[1], bias, *own]
        keys = [self._key(a) for a in arguments]
        if any(k is None and a is not None for k, a in zip(keys, arguments, strict=True)):
            return
        weight, old_bias, gamma, beta, mean, variance = keys
        if weight is None or mean is None or variance is None:
            return
        value = f"{norm.name}_folded_bias"
        folded = f"{weight}:folded_bias"
        self._parameters[value] = folded
        self._shapes[value] = (self._program.shapes[linear.args[1].name][0],)
        args = (*linear.args[:2], Ref(value), *linear.args[3:])
        kwargs = {k: v for k, v in linear.kwargs.items() if k != "bias"}
        self._merged[linear.name] = dataclasses.replace(linear, args=args, kwargs=kwargs)
        self._dropped[norm.name] = linear.name
        self.folds.append(
            Fold(
                linear.name,
                weight,
                old_bias,
                folded,
                gamma,
                beta,
                mean,
                variance,
                float(norm.argument(7, "eps")),
            )
        )

    def _linear(self, norm: Node) -> Node | None:
        """The linear operation of which a BatchNorm is the only reader, and normalises outputs."""
        if not isinstance(norm.args[0], Ref) or norm.argument(5, "training"):
            return None
        linear = self._by_name.get(norm.args[0].name)
        if linear is None or not operation(linear).linear or self._uses[linear.name] != 1:
            return None
        if len(self._users[linear.name]) != 1 or features_dim(linear) != features_dim(norm):
            return None  # after a layer over (batch, length, features) it normalises another axis
        return linear

    def _key(self, argument: object) -> str | None:
        """The state key of a parameter that only this operation uses, and without limits."""
        if not isinstance(argument, Ref) or self._uses[argument.name] != 1:
            return None
        found = self._program.parameters.get(argument.name)
        if found is None or self._aliases[found] != 1 or found in self._program.limits:
            return None
        return found

    def program(self) -> Program:
        """The program with what was found folded away."""
        program = self._program
        nodes = tuple(self._renamed(n) for n in program.nodes if n.name not in self._dropped)
        read = {ref for node in nodes for ref in node.refs()}
        return dataclasses.replace(
            program,
            nodes=nodes,
            parameters={name: k for name, k in self._parameters.items() if name in read},
            shapes=self._shapes,
            outputs=tuple(self._dropped.get(name, name) for name in program.outputs),
        )

    def _renamed(self, node: Node) -> Node:
        return self._merged.get(node.name, node).renamed(self._dropped)
