"""Operations that pool, pad or reduce over axes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch.nn import functional

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.groups import PERMUTATION, POSITIVE
from ccamerge.graph.operations import left_out, operation, rule
from ccamerge.graph.rules.elementwise import several
from ccamerge.graph.rules.shared import (
    close,
    dims_of,
    first_shape,
    operand_axes,
    places_are_read,
)
from ccamerge.graph.tracing.program import Node


def _averaged(node: Node) -> Node:
    """Means in place of the maxima, of windows that tile the input; where those were, zeros."""
    spatial = next(int(c) for c in node.op if c.isdigit())
    largest, average = node.target, getattr(functional, f"adaptive_avg_pool{spatial}d")

    def found(x: torch.Tensor, *args: Any, **options: Any) -> Any:
        result = largest(x, *args, **options)  # for its size: means know no dilation
        places = isinstance(result, (tuple, list))
        size = (result[0] if places else result).shape[-spatial:]
        mean = average(x, size)
        return (mean, torch.zeros_like(mean, dtype=torch.int64)) if places else mean

    return dataclasses.replace(node, target=found)


@rule("max_pool1d", "max_pool2d", "max_pool3d", commutes=POSITIVE, twin=_averaged)
@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
@rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d")
@rule("upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d")
@rule("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d")
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def _pool(node: Node, d: Facts) -> list[Axis] | None:
    axes = operand_axes(node, d)
    if node.shape is None:
        return None
    spatial = next((int(c) for c in node.op if c.isdigit()), 2)
    kept, gone = axes[: len(axes) - spatial], axes[len(axes) - spatial :]
    why = f"pooled over by {node.name}"
    for dim, axis in enumerate(gone, start=len(kept)):
        ax.pin(axis, why)
        d.use(node.args[0], dim, None, axis, node, why)
    d.effect(kept, operation(node).commutes, node)
    after = [ax.inert(size) for size in node.shape[len(kept) :]]
    d.made_of(node, [[*source[: len(kept)], *after] for source in d.sources_of(node.args[0])])
    return [*kept, *after]


_WITH_PLACES = ("max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices")


@rule("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", twin=_averaged)
@rule(*_WITH_PLACES, twin=_averaged)
def _pool_with_places(node: Node, d: Facts) -> list[list[Axis]] | None:
    """The largest of windows, and where in each they are, which scaling does not change."""
    axes, shape = operand_axes(node, d), first_shape(node, d)
    if shape is None:
        return None
    spatial = next(int(c) for c in node.op if c.isdigit())
    kept, gone = axes[: len(axes) - spatial], axes[len(axes) - spatial :]
    for axis in gone:
        ax.pin(axis, f"pooled over by {node.name}")
    d.effect(kept, POSITIVE, node)
    result = [*kept, *(ax.inert(size) for size in shape[len(kept) :])]
    return [result, list(result)]


def _mean(node: Node) -> Node:
    """The mean in place of another reduction."""
    if node.shape is None:
        return node
    dims = node.named("dim")
    over = [dims] if isinstance(dims, int) else dims
    args = (node.args[0], over, bool(node.named("keepdim", default=False)))
    return dataclasses.replace(node, target=torch.ops.aten.mean.dim, args=args, kwargs={})


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def _sampled(node: Node, d: Facts) -> list[Axis] | None:
    """Features at other positions, linear in what is there."""
    axes = operand_axes(node, d)
    if node.shape is None or d.is_static(node.args[0]) or not d.is_tensor(node.args[1]):
        return None
    for axis in (*axes[2:], *d.axes_of(node.args[1])):
        ax.pin(axis, f"positions of {node.name}")
    return [axes[0], axes[1], *(ax.inert(size) for size in node.shape[2:])]


@rule("mean", "sum", reduces=True)
@rule("any", "all", reduces=True, commutes=PERMUTATION)  # of truth values
@rule("amax", "amin", "var", "std", "prod", reduces=True, commutes=PERMUTATION, twin=_mean)
@rule("logsumexp", "norm", "linalg_vector_norm", reduces=True, commutes=PERMUTATION, twin=_mean)
def _reduce(node: Node, d: Facts) -> list[Axis] | None:
    axes = operand_axes(node, d)
    dims = node.argument(2 if "norm" in node.op else 1, "dim")
    if node.shape is None or (dims is not None and not isinstance(dims, (int, list, tuple))):
        return None
    over = set(dims_of(dims, len(axes)) if dims not in (None, []) else range(len(axes)))
    kept = len(node.shape) == len(axes) and len(over) > 0

    def reduced(axes: list[Axis]) -> list[Axis]:
        rest = [a for dim, a in enumerate(axes) if dim not in over]
        return [ax.inert(1) if i in over else a for i, a in enumerate(axes)] if kept else rest

    for dim in over:
        close(axes[dim], f"reduced over by {node.name}", node, d)
    result = reduced(axes)
    d.effect(result, operation(node).commutes, node)
    d.made_of(node, [reduced(source) for source in d.sources_of(node.args[0])])
    return result


def _mean_first(x: torch.Tensor, dim: int, keepdim: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean, and no places."""
    found = x.mean(dim, keepdim)
    return found, torch.zeros_like(found, dtype=torch.int64)


def _mean_of(node: Node) -> Node:
    """The mean in place of the largest or the smallest."""
    if not isinstance(dim := node.argument(1, "dim"), int):
        return node
    args = (node.args[0], dim, bool(node.argument(2, "keepdim", default=False)))
    return dataclasses.replace(node, target=_mean_first, args=args, kwargs={})


@rule("max", "min", commutes=PERMUTATION, twin=_mean_of)
def _extreme(node: Node, d: Facts) -> list[Axis] | list[list[Axis]] | None:
    """The largest along an axis, and where it is."""
    axes, dim = operand_axes(node, d), node.argument(1, "dim")
    if d.is_tensor(dim):  # the larger of two, element by element
        return several(node, d)
    if dim is None and node.shape == ():
        return _reduce(node, d)
    if not isinstance(dim, int) or d.is_static(node.args[0]):
        return None
    at = dim % len(axes)
    close(axes[at], f"reduced over by {node.name}", node, d)
    if places_are_read(node, d):
        ax.pin(axes[at], f"a feature's place is read of {node.name}")
    d.effect(axes, operation(node).commutes, node)
    kept = [ax.inert(1)] if node.argument(2, "keepdim", default=False) else []
    result = [*axes[:at], *kept, *axes[at + 1 :]]
    return [result, list(result)]


@rule("cumsum")
@rule("cumprod", "argmax", "argmin", commutes=PERMUTATION)
def _along(node: Node, d: Facts) -> list[Axis] | None:
    axes, dim = operand_axes(node, d), node.argument(1, "dim")
    if dim is None or node.shape is None:
        return None
    ax.pin(axes[int(dim)], f"gone along by {node.name}")
    d.effect(axes, operation(node).commutes, node)
    if not node.op.startswith("aten.arg"):
        d.made_of(node, d.sources_of(node.args[0]))
        return axes
    rest = [axis for i, axis in enumerate(axes) if i != int(dim) % len(axes)]
    return rest if len(node.shape) == len(rest) else None


@rule("softmax", "log_softmax", commutes=PERMUTATION, twin=left_out)
@rule("_softmax", "_log_softmax", commutes=PERMUTATION)
def _softmax(node: Node, d: Facts) -> list[Axis]:
    axes = operand_axes(node, d)
    close(axes[int(node.args[1])], f"softmax over it in {node.name}", node, d)
    d.effect(axes, operation(node).commutes, node)
    d.made_of(node, d.sources_of(node.args[0]))
    return axes


def _with_zeros(node: Node) -> Node:
    """Zeros in place of another number."""
    if node.op == "aten.pad" and node.argument(2, "mode") not in (None, "constant"):
        return node
    target = torch.ops.aten.constant_pad_nd.default
    return dataclasses.replace(node, target=target, args=node.args[:2])


@rule("constant_pad_nd", "pad", commutes=PERMUTATION, twin=_with_zeros)
@rule("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
@rule("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _pad(node: Node, d: Facts) -> list[Axis] | None:
    axes = operand_axes(node, d)
    if node.shape is None:
        return None
    amounts = list(node.args[1])
    for index in range(len(amounts) // 2):
        if any(amounts[2 * index : 2 * index + 2]):  # by as much less, it may keep its size
            dim = len(axes) - 1 - index
            ax.pin(axes[dim], f"padded by {node.name}")
            axes[dim] = ax.inert(node.shape[dim])
    mode = node.argument(2, "mode", "constant") if node.op == "aten.pad" else "constant"
    value = node.argument(3 if node.op == "aten.pad" else 2, "value", 0)
    if mode == "constant" and "constant" in node.op + mode and value not in (None, 0):
        d.effect(axes, operation(node).commutes, node)  # every feature gets the same number
        d.restrict(axes, f"padded with {value}", node)
        if not math.isfinite(value):  # before a maximum, whose features are counted
            d.active.discard(node.name)
    return axes
