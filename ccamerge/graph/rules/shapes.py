"""Operations that move elements and leave their values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.program import Node
from ccamerge.graph.rules.registry import dims_of, operand_axes, rule

if TYPE_CHECKING:
    from ccamerge.graph.derivation import Derivation


@rule("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view")
def _reshape(node: Node, d: Derivation) -> list[Axis] | None:
    d.passed_through(node)
    return ax.reshape(operand_axes(node, d), list(node.shape)) if node.shape is not None else None


@rule("permute", "transpose", "t")
def _permute(node: Node, d: Derivation) -> list[Axis]:
    axes = operand_axes(node, d)
    order = list(range(len(axes)))
    if node.op == "aten.permute":
        order = dims_of(node.args[1], len(axes))
    else:
        a, b = dims_of(node.args[1:3], len(axes)) if node.op == "aten.transpose" else (0, -1)
        order[a], order[b] = order[b], order[a]
    d.passed_through(node, order)
    return [axes[i] for i in order]


@rule("expand")
def _expand(node: Node, d: Derivation) -> list[Axis] | None:
    axes = operand_axes(node, d)
    if node.shape is None:
        return None
    axes = [ax.inert(1)] * (len(node.shape) - len(axes)) + axes
    return [
        a if ax.axis_size(a) == size else ax.inert(size)
        for a, size in zip(axes, node.shape, strict=True)
    ]


@rule("cat", "concat")
def _cat(node: Node, d: Derivation) -> list[Axis]:
    parts = [d.axes_of(r) for r in node.args[0]]
    dim = dims_of(node.argument(1, "dim", 0), len(parts[0]))[0]
    out = list(parts[0])
    for part in parts[1:]:
        for i, axis in enumerate(part):
            if i != dim:
                ax.unify(out[i], axis, node.name)
    out[dim] = tuple(segment for part in parts for segment in part[dim])
    return out


@rule("split", "split_with_sizes", "chunk")
def _split(node: Node, d: Derivation) -> list[list[Axis]] | None:
    axes = operand_axes(node, d)
    dim = dims_of(node.argument(2, "dim", 0), len(axes))[0]
    total, amount = ax.axis_size(axes[dim]), node.args[1]
    if node.op == "aten.chunk":
        amount = math.ceil(total / amount)
    sizes = list(amount) if isinstance(amount, (list, tuple)) else [amount] * (total // amount)
    if sum(sizes) < total:
        sizes.append(total - sum(sizes))
    results, rest = [], axes[dim]
    for size in sizes[:-1]:
        cut = ax.split(rest, size)
        if cut is None:
            return None
        piece, rest = cut
        results.append([*axes[:dim], piece, *axes[dim + 1 :]])
    return [*results, [*axes[:dim], rest, *axes[dim + 1 :]]]


@rule("slice", "narrow")
def _slice(node: Node, d: Derivation) -> list[Axis] | None:
    axes = operand_axes(node, d)
    if node.shape is None:
        return None
    dim = dims_of(node.argument(1, "dim", 0), len(axes))[0]
    size, total = node.shape[dim], ax.axis_size(axes[dim])
    if size == total:
        return axes
    if ax.is_inert(axes[dim]):
        return [*axes[:dim], ax.inert(size), *axes[dim + 1 :]]
    start = node.argument(2, "start", 0) or 0
    if int(node.argument(4, "step", 1)) != 1 or not isinstance(start, int):
        return None
    start += total if start < 0 else 0
    first = ax.split(axes[dim], start)
    second = ax.split(first[1], size) if first is not None else None
    return None if second is None else [*axes[:dim], second[0], *axes[dim + 1 :]]


@rule("select")
def _select(node: Node, d: Derivation) -> list[Axis] | None:
    axes = operand_axes(node, d)
    dim = dims_of(node.args[1], len(axes))[0]
    if not ax.is_inert(axes[dim]):
        return None  # one feature alone: its basis is fixed
    return [*axes[:dim], *axes[dim + 1 :]]
