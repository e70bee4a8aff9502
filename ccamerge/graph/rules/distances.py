"""Norms, angles and distances of vectors of features."""

from __future__ import annotations

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.operations import rule
from ccamerge.graph.rules.elementwise import together
from ccamerge.graph.rules.linear import contract
from ccamerge.graph.rules.shared import close, dims_of
from ccamerge.graph.space import Role
from ccamerge.graph.tracing.program import Node, Ref


@rule("cosine_similarity", "pairwise_distance")
def _compared(node: Node, d: Facts) -> list[Axis] | None:
    """Of two tensors along an axis: the same if the features of both are reordered."""
    pair = list(node.args[:2])
    if node.shape is None or not all(map(d.is_tensor, pair)) or d.is_static(Ref(node.name)):
        return None
    rank = max(len(d.axes_of(x)) for x in pair)
    kept = len(node.shape) == rank
    default = 1 if node.op == "aten.cosine_similarity" else -1
    at = dims_of(node.named("dim", default), rank)[0]
    sizes = [max(ax.axis_size(a[at - rank]) for a in map(d.axes_of, pair) if len(a) >= rank - at)]
    shape = (*node.shape[:at], *sizes, *node.shape[at + kept :])
    axes = together(node, d, pair, Role.SCALE, shape)
    d.restrict(axes, "compared with others", node)
    close(axes[at], f"reduced over by {node.name}", node, d)
    return [*axes[:at], *([ax.inert(1)] if kept else []), *axes[at + 1 :]]


@rule("cdist", "_cdist_forward", tap="write")
def _distances(node: Node, d: Facts) -> list[Axis] | None:
    """Of all rows of one tensor from all rows of another."""
    if node.shape is None or not all(map(d.is_tensor, node.args[:2])):
        return None
    more = [f"x{i}" for i in range(len(node.shape) - 2)]
    spec = [
        [*more[len(more) - len(d.axes_of(x)) + 2 :], row, "in"]
        for x, row in zip(node.args[:2], ("row", "out"), strict=True)
    ]
    result = contract(node, d, [*node.args[:2]], spec, [*more, "row", "out"])
    if result is not None:
        d.restrict([*result, d.axes_of(node.args[0])[-1]], "distances", node)
    return result
