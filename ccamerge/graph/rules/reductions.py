"""Operations that pool, pad or reduce over axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.program import Node
from ccamerge.graph.rules.registry import dims_of, operand_axes, rule
from ccamerge.graph.spaces import Effect

if TYPE_CHECKING:
    from ccamerge.graph.derivation import Derivation


@rule("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d")
@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
@rule("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")
def _pool(node: Node, d: Derivation) -> list[Axis] | None:
    axes = operand_axes(node, d)
    if node.shape is None:
        return None
    spatial = next((int(c) for c in node.op if c.isdigit()), 2)
    kept, gone = axes[: len(axes) - spatial], axes[len(axes) - spatial :]
    for axis in gone:
        ax.pin(axis, f"pooled over by {node.name}")
    if "max" in node.op:
        d.effect(kept, Effect.POSITIVE, node)
    return [*kept, *(ax.inert(size) for size in node.shape[len(kept) :])]


@rule("mean", "sum", "amax", "amin", "var", "std", "logsumexp")
def _reduce(node: Node, d: Derivation) -> list[Axis] | None:
    axes = operand_axes(node, d)
    dims = node.argument(1, "dim")
    if node.shape is None:
        return None
    over = set(dims_of(dims, len(axes)) if dims not in (None, []) else range(len(axes)))
    for dim in over:
        ax.pin(axes[dim], f"reduced over by {node.name}")
    rest = [a for dim, a in enumerate(axes) if dim not in over]
    if node.op not in ("aten.mean", "aten.sum"):
        d.effect(rest, Effect.ELEMENTWISE, node)
    if len(node.shape) == len(axes):  # keepdim
        return [ax.inert(1) if dim in over else a for dim, a in enumerate(axes)]
    return rest


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(node: Node, d: Derivation) -> list[Axis]:
    axes = operand_axes(node, d)
    ax.pin(axes[int(node.args[1])], f"softmax over it in {node.name}")
    d.effect(axes, Effect.ELEMENTWISE, node)
    return axes


@rule("constant_pad_nd", "pad", "reflection_pad2d", "replication_pad2d")
def _pad(node: Node, d: Derivation) -> list[Axis] | None:
    axes = operand_axes(node, d)
    if node.shape is None:
        return None
    changed = len(node.args[1]) // 2
    for axis, size in zip(axes[len(axes) - changed :], node.shape[-changed:], strict=True):
        if ax.axis_size(axis) != size:
            ax.pin(axis, f"padded by {node.name}")
    return [
        axis if ax.axis_size(axis) == size else ax.inert(size)
        for axis, size in zip(axes, node.shape, strict=True)
    ]
