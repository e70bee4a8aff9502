"""Operations that are linear in their weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.program import Node
from ccamerge.graph.rules.registry import operand_axes, rule, split_evenly
from ccamerge.graph.spaces import Role

if TYPE_CHECKING:
    from ccamerge.graph.derivation import Derivation


@rule("linear")
def _linear(node: Node, d: Derivation) -> list[Axis] | None:
    x, weight = operand_axes(node, d), d.axes_of(node.args[1])
    if not d.is_weight(node.args[1]):
        return None
    ax.unify(x[-1], weight[1], node.name)
    d.use(node.args[1], 0, Role.WRITE, weight[0], node)
    d.use(node.args[1], 1, Role.READ, weight[1], node)
    _bias(node, d, weight[0])
    return [*x[:-1], weight[0]]


def _bias(node: Node, d: Derivation, axis: Axis) -> None:
    bias = node.argument(2, "bias")
    if bias is not None:
        (own,) = d.axes_of(bias)
        ax.unify(own, axis, node.name)
        d.use(bias, 0, Role.WRITE, axis, node)


@rule("conv1d", "conv2d", "conv3d")
def _conv(node: Node, d: Derivation) -> list[Axis] | None:
    x, weight = operand_axes(node, d), d.axes_of(node.args[1])
    if not d.is_weight(node.args[1]) or node.shape is None or len(x) != len(weight):
        return None
    groups = int(node.argument(6, "groups", 1))
    for dim in range(2, len(weight)):
        d.use(node.args[1], dim, None, weight[dim], node, "position in the kernel")
    outputs, per_group = ax.axis_size(weight[0]), ax.axis_size(weight[1])
    out = weight[0]
    if groups == 1:
        ax.unify(x[1], weight[1], node.name)
        d.use(node.args[1], 1, Role.READ, weight[1], node)
        d.use(node.args[1], 0, Role.WRITE, out, node)
    elif per_group == 1:
        # Depthwise: each input channel makes outputs/groups channels of its own.
        multiplied = ax.resolve(x[1])
        repeat = outputs // groups
        out = tuple((*segment, repeat) for segment in multiplied) if repeat > 1 else x[1]
        ax.unify(weight[0], out, node.name)
        d.use(node.args[1], 0, Role.SCALE, out, node, "depthwise convolution")
        d.use(node.args[1], 1, None, weight[1], node, "one channel a group")
    else:
        cuts = [split_evenly(axis, groups, node) for axis in (x[1], out)]
        if cuts[0] is None or cuts[1] is None:
            return None
        rows = outputs // groups
        for index, piece in enumerate(cuts[0]):
            d.use(
                node.args[1],
                1,
                Role.READ,
                piece,
                node,
                rows=(index * rows, (index + 1) * rows),
            )
        out = tuple(segment for piece in cuts[1] for segment in piece)
        d.use(node.args[1], 0, Role.WRITE, out, node)
    _bias(node, d, out)
    return [x[0], out, *(ax.inert(size) for size in node.shape[2:])]


@rule("embedding")
def _embedding(node: Node, d: Derivation) -> list[Axis]:
    weight = d.axes_of(node.args[0])
    d.use(node.args[0], 0, None, weight[0], node, "vocabulary")
    d.use(node.args[0], 1, Role.WRITE, weight[1], node)
    return [*operand_axes(node, d, 1), weight[1]]
