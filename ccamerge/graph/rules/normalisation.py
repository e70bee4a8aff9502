"""Normalisations that stay in the program."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.rules.linear import MATCHED_IN_ORDER
from ccamerge.graph.rules.registry import operand_axes, rule, split_evenly
from ccamerge.graph.space import Effect, Role
from ccamerge.graph.tracing.program import Node

if TYPE_CHECKING:
    from ccamerge.graph.derivation import Derivation


@rule("batch_norm")
def _batch_norm(node: Node, d: Derivation) -> list[Axis] | None:
    axes = operand_axes(node, d)
    if d.is_static(node.args[0]) or len(axes) < 2:
        return None
    for index, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        own = node.argument(index, name)
        if own is not None:
            d.same_feature(own, 0, axes[1], node)
            d.use(own, 0, Role.VARIANCE if name == "running_var" else Role.NORM, axes[1], node)
    d.effect(axes, Effect.ELEMENTWISE, node)
    d.normalised(node)
    return axes


@rule("layer_norm", "rms_norm")
def _layer_norm(node: Node, d: Derivation) -> list[Axis]:
    axes = operand_axes(node, d)
    count = len(node.args[1])
    for index, name in ((2, "weight"), (3, "bias")):
        own = node.argument(index, name) if node.op == "aten.layer_norm" or index == 2 else None
        if own is not None:
            for dim in range(count):
                axis = axes[len(axes) - count + dim]
                d.same_feature(own, dim, axis, node)
                d.use(own, dim, Role.SCALE if index == 2 else Role.WRITE, axis, node)
    # Without an affine part an orthogonal map would do; with it only a permutation is exact.
    d.restrict(axes[-count:], "normalised over its features", node)
    d.restrict(axes[: len(axes) - count], "normalised one by one", node)
    d.normalised(node)
    return axes


@rule("group_norm")
def _group_norm(node: Node, d: Derivation) -> list[Axis] | None:
    axes = operand_axes(node, d)
    groups, channels = int(node.args[1]), ax.axis_size(axes[1])
    if 1 < groups < channels:
        pieces = split_evenly(axes[1], groups, node.name)
        if pieces is None:
            return None
        d.remark(pieces, f"{node.name}: {MATCHED_IN_ORDER}")
        axes = [axes[0], tuple(s for piece in pieces for s in piece), *axes[2:]]
    for index, name in ((2, "weight"), (3, "bias")):
        own = node.argument(index, name)
        if own is not None:
            d.same_feature(own, 0, axes[1], node)
            d.use(own, 0, Role.SCALE if index == 2 else Role.WRITE, axes[1], node)
    d.restrict(axes, "normalised within its group", node)
    d.normalised(node)
    return axes
