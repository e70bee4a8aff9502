"""Normalisations that stay in the program."""

from __future__ import annotations

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.groups import (
    ORTHOGONAL,
    ORTHOGONAL_FIXING_ONES,
    PERMUTATION,
    SIGNED_PERMUTATION,
)
from ccamerge.graph.operations import left_out, operation, rule
from ccamerge.graph.rules.linear import MATCHED_IN_ORDER
from ccamerge.graph.rules.shared import operand_axes, split_evenly
from ccamerge.graph.space import Role
from ccamerge.graph.tracing.program import Node

_PLACES = {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4}

_AFFINE = {"weight": 2, "bias": 3}

_ROLES = (("weight", Role.SCALE), ("bias", Role.WRITE))


@rule("batch_norm", tap="norm", places=_PLACES, commutes=PERMUTATION, twin=left_out)
def _batch_norm(node: Node, d: Facts) -> list[Axis] | None:
    axes = operand_axes(node, d)
    if len(axes) < 2:
        return None
    if d.is_static(node.args[0]):
        return _standardised(node, d)
    for name in _PLACES:
        own = operation(node).place(node, name)
        if own is not None:
            d.same_feature(own, 0, axes[1], node)
            d.use(own, 0, Role.VARIANCE if name == "running_var" else Role.NORM, axes[1], node)
    d.effect(axes, operation(node).commutes, node)
    return axes


def _standardised(node: Node, d: Facts) -> list[Axis] | None:
    """A weight seen as (1, outputs, others), each output of which gets a mean and a variance."""
    if not node.argument(5, "training") or any(node.argument(i, "") is not None for i in (3, 4)):
        return None
    axes = operand_axes(node, d)
    sources = d.sources_of(node.args[0])
    for name in ("weight", "bias"):
        own = operation(node).place(node, name)
        if own is None:
            continue
        if d.sources_of(own):
            d.same_feature(own, 0, axes[1], node)
        rest = [ax.inert(ax.axis_size(axis)) for axis in axes]
        sources += [[rest[0], source[0], *rest[2:]] for source in d.sources_of(own)]
    d.restrict(axes, "standardised", node)
    d.made_of(node, sources)
    return axes


@rule("layer_norm", tap="norm", places=_AFFINE, features=-1, twin=left_out)
@rule("rms_norm", tap="norm", places={"weight": 2}, features=-1, twin=left_out)
def _layer_norm(node: Node, d: Facts) -> list[Axis]:
    axes = operand_axes(node, d)
    count = len(node.args[1])
    scaled, centres = operation(node).place(node, "weight") is not None, node.op != "aten.rms_norm"
    group = PERMUTATION
    if count == 1 and centres and not scaled:
        group = ORTHOGONAL_FIXING_ONES
    elif count == 1 and not centres:  # other signs of single features would change a mean
        group = SIGNED_PERMUTATION if scaled else ORTHOGONAL
    for name, role in _ROLES:
        own = operation(node).place(node, name)
        if own is not None:
            for dim in range(count):
                axis = axes[len(axes) - count + dim]
                d.same_feature(own, dim, axis, node)
                d.use(own, dim, role, axis, node, group=group)
    d.restrict(axes[-count:], "normalised over its features", node, group)
    d.restrict(axes[: len(axes) - count], "normalised one by one", node)
    return axes


@rule("group_norm", tap="norm", places=_AFFINE, twin=left_out)
def _group_norm(node: Node, d: Facts) -> list[Axis] | None:
    axes = operand_axes(node, d)
    groups, channels = int(node.args[1]), ax.axis_size(axes[1])
    if 1 < groups < channels:
        pieces = split_evenly(axes[1], groups, node.name)
        if pieces is None:
            return None
        d.remark(pieces, f"{node.name}: {MATCHED_IN_ORDER}")
        axes = [axes[0], tuple(s for piece in pieces for s in piece), *axes[2:]]
    for name, role in _ROLES:
        own = operation(node).place(node, name)
        if own is not None:
            d.same_feature(own, 0, axes[1], node)
            d.use(own, 0, role, axes[1], node)
    d.restrict(axes, "normalised within its group", node)
    return axes


@rule("instance_norm", tap="norm", places={"weight": 1, "bias": 2}, twin=left_out)
def _instance_norm(node: Node, d: Facts) -> list[Axis] | None:
    axes = operand_axes(node, d)
    if any(node.argument(i, name) is not None for i, name in ((3, "mean"), (4, "variance"))):
        return None  # by running statistics
    for name, role in _ROLES:
        own = operation(node).place(node, name)
        if own is not None:
            d.same_feature(own, 0, axes[1], node)
            d.use(own, 0, role, axes[1], node)
    d.restrict(axes, "normalised one by one", node)
    return axes
