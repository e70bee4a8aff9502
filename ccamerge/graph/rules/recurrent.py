"""Recurrent layers: what a step hands to the next is one space, which all of its gates write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.groups import PERMUTATION
from ccamerge.graph.operations import operation, rule
from ccamerge.graph.space import Role
from ccamerge.graph.tracing.program import Node, Ref

_GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def _gates(node: Node) -> int:
    kind = node.op.removeprefix("aten.").partition("_")[0]
    return _GATES[kind]


@rule("lstm", "gru", "rnn_tanh", "rnn_relu", commutes=PERMUTATION)
def _layers(node: Node, d: Facts) -> list[list[Axis]] | None:
    x, states, weights, biased, count, _, _, both, *_ = node.args
    given = list(states) if isinstance(states, (list, tuple)) else [states]
    per, sides = 4 if biased else 2, 1 + both
    if not isinstance(weights, (list, tuple)) or count > 1 or len(weights) != per * sides:
        return None  # packed sequences; projections; stacks come layer by layer
    if not all(d.is_tensor(a) for a in (x, *given, *weights)):
        return None
    axes = d.axes_of(x)
    for axis in axes[:-1]:
        ax.pin(axis, f"gone along by {node.name}")
    own = (weights[per * side : per * (side + 1)] for side in range(sides))
    handed = [_step(node, d, axes[-1], some) for some in own]
    _begun(node, d, given, handed)
    positions = [ax.inert(ax.axis_size(axis)) for axis in axes[:-1]]
    written = tuple(segment for hidden in handed for segment in hidden)
    return [[*positions, written], *_last(node, d, handed, given)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", commutes=PERMUTATION)
def _cell(node: Node, d: Facts) -> list[Axis] | list[list[Axis]] | None:
    x, states, *weights = node.args
    given = list(states) if isinstance(states, (list, tuple)) else [states]
    weights = [w for w in weights if w is not None]
    if not all(d.is_tensor(a) for a in (x, *given, *weights)):
        return None
    axes = d.axes_of(x)
    hidden = _step(node, d, axes[-1], weights)
    _begun(node, d, given, [hidden])
    result = [*axes[:-1], hidden]
    return result if node.shape is not None else [list(result) for _ in given]


def _step(node: Node, d: Facts, read: Axis, weights: Sequence[Any]) -> Axis:
    """What one direction of a layer hands on: its own features, in the same order in each gate."""
    inputs, own, *_ = weights
    hidden = d.features_of(own, 1)
    ax.unify(d.features_of(inputs, 1), read, node.name)
    for weight in weights:
        ax.unify(d.axes_of(weight)[0], hidden * _gates(node), node.name)
        d.use(weight, 0, Role.WRITE, hidden, node)
    d.use(inputs, 1, Role.READ, read, node)
    d.use(own, 1, Role.READ, hidden, node)
    d.restrict([hidden], "gates multiply its features", node)
    d.effect([hidden], PERMUTATION, node)
    return hidden


def _begun(node: Node, d: Facts, given: Sequence[Any], handed: Sequence[Axis]) -> None:
    """Where a sequence begins with other states than zeros, these are in the same basis."""
    alone = len(handed) == 1
    why = f"{node.name}: states of both directions come together"
    for state in given:
        if _is_zero(d, state):
            continue
        own = d.axes_of(state)
        for dim, axis in enumerate(own):
            role = Role.WRITE if alone and dim == len(own) - 1 else None
            d.use(state, dim, role, axis, node, why)
        for hidden in handed:
            if alone:
                ax.unify(own[-1], hidden, node.name)
            else:
                ax.pin(hidden, why)


def _is_zero(d: Facts, argument: Any) -> bool:
    """Whether a value is known to be zeros."""
    nodes = {node.name: node for node in d.program.nodes}
    node = nodes.get(argument.name) if isinstance(argument, Ref) else None
    while node is not None and (operation(node).move or node.op == "aten.expand"):
        node = nodes.get(node.args[0].name) if isinstance(node.args[0], Ref) else None
    return node is not None and node.op in ("aten.zeros", "aten.zeros_like", "aten.new_zeros")


def _last(node: Node, d: Facts, handed: Sequence[Axis], given: Sequence[Any]) -> list[list[Axis]]:
    """The axes of the last states, with both directions one after the other."""
    users = d.program.users()
    for picked in users.get(node.name, []):
        used = users.get(picked.name) or picked.name in d.program.outputs
        if picked.op == "getitem" and picked.args[1] > 0 and used and len(handed) > 1:
            for hidden in handed:
                ax.pin(hidden, f"{node.name}: last states of both directions are read together")
    size = ax.axis_size(handed[0])
    own = handed[0] if len(handed) == 1 else ax.inert(size)
    rest = [ax.inert(ax.axis_size(axis)) for axis in d.axes_of(given[0])[:-1]]
    return [[*rest, own] for _ in given]
