"""Recurrent stacks written out layer by layer, so that what each hands to the next has a name."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ccamerge.graph.tracing.node import Node, Ref

_STACKS = ("aten.lstm", "aten.gru", "aten.rnn_tanh", "aten.rnn_relu")


def layer_by_layer(
    nodes: Sequence[Node], shapes: Mapping[str, tuple[int, ...] | None]
) -> list[Node]:
    """The nodes, with each stack of several layers as one operation for each of them.

    States of a single layer that are picked from those of all are that layer's; all of them
    together are joined only if somebody reads them. ``shapes`` are those of all values.
    """
    written: list[Node] = []
    stacks: dict[str, _Stack] = {}
    picked: dict[str, tuple[_Stack, int]] = {}  # the last states of a stack, by the name they have
    read = {name for node in nodes if not _of_one_layer(node) for name in node.refs()}
    for node in nodes:
        if (stack := _Stack.of(node, shapes)) is not None:
            stacks[node.name] = stack
            written += stack.nodes()
        elif node.op == "getitem" and node.args[0].name in stacks:
            stack, place = stacks[node.args[0].name], node.args[1]
            if place == 0:
                target = dataclasses.replace(node, args=(Ref(stack.name(stack.count - 1)), 0))
                written.append(target)
                continue
            picked[node.name] = (stack, place)
            own = stack.states(place)
            written += own
            if node.name in read:
                parts = [Ref(state.name) for state in own]
                joined = dataclasses.replace(
                    node, target=torch.ops.aten.cat.default, args=(parts, 0)
                )
                written.append(joined)
        elif _of_one_layer(node) and node.args[0].name in picked:
            stack, place = picked[node.args[0].name]
            index = node.args[2] % (stack.count * stack.sides)
            layer = Ref(stack.last(index // stack.sides, place))
            written.append(dataclasses.replace(node, args=(layer, 0, index % stack.sides)))
        else:
            written.append(node)
    return written


def _of_one_layer(node: Node) -> bool:
    """Whether a node picks one entry of the first axis of something."""
    return node.op == "aten.select" and node.args[1] == 0 and isinstance(node.args[2], int)


@dataclasses.dataclass(frozen=True)
class _Stack:
    """A recurrent operation of ``count`` layers, of one or two ``sides``."""

    node: Node
    count: int
    sides: int
    sequence: tuple[int, ...]
    state: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, shapes: Mapping[str, tuple[int, ...] | None]) -> _Stack | None:
        """What a node stacks; None if that is nothing, or in another form."""
        if node.op not in _STACKS or not isinstance(node.args[2], (list, tuple)):
            return None
        x, given, weights, biased, count, _, _, both, *_ = node.args
        sides = 1 + bool(both)
        if count < 2 or len(weights) != (4 if biased else 2) * count * sides:
            return None
        begin = given[0] if isinstance(given, (list, tuple)) else given
        known = [shapes.get(a.name) for a in (x, begin) if isinstance(a, Ref)]
        if len(known) != 2 or known[0] is None or known[1] is None:
            return None
        state = (sides, *known[1][1:])
        return cls(node, count, sides, (*known[0][:-1], sides * state[-1]), state)

    def name(self, layer: int) -> str:
        """Of a layer's operation."""
        return f"{self.node.name}_layer{layer}"

    def last(self, layer: int, place: int) -> str:
        """Of a layer's last states."""
        return f"{self.name(layer)}_state{place}"

    def nodes(self) -> list[Node]:
        """Each layer, which reads the one below it."""
        x, given, weights, biased, _, dropout, train, both, *rest = self.node.args
        per = len(weights) // self.count
        written: list[Node] = []
        for layer in range(self.count):
            several = isinstance(given, (list, tuple))
            states: list[Any] = []
            for index, state in enumerate(given if several else [given]):
                bounds = (0, layer * self.sides, (layer + 1) * self.sides)
                name = f"{self.name(layer)}_begin{index}"
                cut = torch.ops.aten.slice.Tensor
                written.append(Node(name, cut, (state, *bounds), {}, self.state))
                states.append(Ref(name))
            own = list(weights[layer * per : (layer + 1) * per])
            begin = states if several else states[0]
            args = (x, begin, own, biased, 1, dropout, train, both, *rest)
            written.append(dataclasses.replace(self.node, name=self.name(layer), args=args))
            if layer < self.count - 1:
                name = f"{self.name(layer)}_sequence"
                written.append(self._picked(name, layer, 0, self.sequence))
                x = Ref(name)
        return written

    def states(self, place: int) -> list[Node]:
        """Each layer's last states, of one kind."""
        layers = range(self.count)
        return [self._picked(self.last(i, place), i, place, self.state) for i in layers]

    def _picked(self, name: str, layer: int, place: int, shape: tuple[int, ...]) -> Node:
        return Node(name, operator.getitem, (Ref(self.name(layer)), place), {}, shape)
