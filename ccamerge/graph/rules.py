"""One rule for each operation: how the axes of its result follow from those of its operands.

A rule receives the node and the `Derivation` under way. It equates axes, records which axes of
which parameters write, read or scale the features of an axis, and returns the axes of the result.
An operation without a rule pins every live axis it touches; nothing is guessed. To support a new
operation, add a rule here.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.program import Node, Ref

if TYPE_CHECKING:
    from ccamerge.graph.spaces import Derivation


class Role(enum.Enum):
    """What a parameter's axis does with the features of a space mapped by ``x -> x T``."""

    WRITE = "write"  # W -> T^T W
    READ = "read"  # W -> W T^{-T}
    SCALE = "scale"  # multiplies features one by one: only permutations commute with it
    NORM = "norm"  # as WRITE, of a normalisation whose affine part `repair` estimates anew
    VARIANCE = "variance"  # the running variance of such a normalisation


class Effect(enum.Enum):
    """What an operation's non-linearity leaves of the maps that commute with it."""

    POSITIVE = "positive scaling and permutation"  # relu(a x) = a relu(x) for a > 0
    ELEMENTWISE = "permutation"


Rule = Callable[[Node, "Derivation"], "list[Axis] | list[list[Axis]] | None"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by name."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys((f"aten.{name}" for name in names), function))
        return function

    return register


def _axes(node: Node, d: Derivation, index: int = 0) -> list[Axis]:
    return d.axes_of(node.args[index])


def _dims(argument: Any, rank: int) -> list[int]:
    items = argument if isinstance(argument, (list, tuple)) else [argument]
    return [int(i) % rank for i in items]


# --- element by element -------------------------------------------------------------------------


@rule("clone", "contiguous", "detach", "alias", "to", "_to_copy", "dropout", "feature_dropout")
@rule("neg", "lift_fresh_copy", "positive")
def _same(node: Node, d: Derivation) -> list[Axis]:
    d.passed_through(node)
    return _axes(node, d)


@rule("relu", "leaky_relu", "threshold")
def _relu(node: Node, d: Derivation) -> list[Axis]:
    axes = _axes(node, d)
    homogeneous = node.op != "aten.threshold"
    d.effect(axes, Effect.POSITIVE if homogeneous else Effect.ELEMENTWISE, node)
    return axes


@rule("gelu", "silu", "sigmoid", "tanh", "elu", "selu", "celu", "hardtanh", "relu6", "hardswish")
@rule("hardsigmoid", "mish", "softplus", "softsign", "log_sigmoid", "abs", "exp", "log", "sqrt")
@rule("rsqrt", "reciprocal", "square", "pow", "sign", "clamp", "clamp_min", "clamp_max", "erf")
@rule("sin", "cos", "rsub", "nan_to_num")
def _elementwise(node: Node, d: Derivation) -> list[Axis] | None:
    tensors = [a for a in node.args if isinstance(a, Ref)]
    if len(tensors) != 1 or tensors[0] is not node.args[0]:
        return None  # a tensor exponent or bound
    axes = _axes(node, d)
    d.effect(axes, Effect.ELEMENTWISE, node)
    return axes


@rule("prelu")
def _prelu(node: Node, d: Derivation) -> list[Axis]:
    axes = _axes(node, d)
    d.effect(axes, Effect.POSITIVE, node)
    slope = node.args[1]
    (axis,) = d.axes_of(slope)
    if ax.axis_size(axis) > 1:
        ax.unify(axis, axes[1], node.name)
        d.use(slope, 0, Role.SCALE, axis, node)
    return axes


@rule("add", "sub", "mul", "div", "maximum", "minimum")
def _binary(node: Node, d: Derivation) -> list[Axis]:
    tensors = [a for a in node.args[:2] if isinstance(a, Ref) and d.is_tensor(a)]
    linear = node.op in ("aten.add", "aten.sub")
    product = node.op in ("aten.mul", "aten.div")
    if len(tensors) == 1:
        axes = d.axes_of(tensors[0])
        if linear:  # a shift of every feature by one number
            d.effect(axes, Effect.ELEMENTWISE, node)
        elif not product:
            return []
        return axes
    operands = [d.axes_of(t) for t in tensors]
    rank = max(len(o) for o in operands)
    padded = [[ax.inert(1)] * (rank - len(o)) + o for o in operands]
    result: list[Axis] = []
    for a, b in zip(*padded, strict=True):
        if ax.axis_size(a) != 1 and ax.axis_size(b) != 1:
            ax.unify(a, b, node.name)
        elif linear and ax.axis_size(a) != ax.axis_size(b):
            d.restrict([b if ax.axis_size(a) == 1 else a], "one feature added to many", node)
        result.append(b if ax.axis_size(a) == 1 else a)
    for tensor, operand in zip(tensors, operands, strict=True):
        role = Role.WRITE if linear else Role.SCALE
        for dim, axis in enumerate(operand):
            d.use(tensor, dim, role, axis, node)
    if not linear:
        if product and any(d.is_weight(t) for t in tensors):
            return result
        d.restrict(result, "features multiplied by features" if product else node.op, node)
    return result


# --- linear operations --------------------------------------------------------------------------


@rule("linear")
def _linear(node: Node, d: Derivation) -> list[Axis] | None:
    x, weight = _axes(node, d), d.axes_of(node.args[1])
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
    x, weight = _axes(node, d), d.axes_of(node.args[1])
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
        cuts = [_split_evenly(axis, groups, node, d) for axis in (x[1], out)]
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


def _split_evenly(axis: Axis, groups: int, node: Node, d: Derivation) -> list[Axis] | None:
    """Cut an axis into equal pieces, each with a basis of its own."""
    pieces, rest, size = [], axis, ax.axis_size(axis) // groups
    for _ in range(groups - 1):
        cut = ax.split(rest, size)
        if cut is None:
            ax.pin(axis, f"{node.name}: {groups} groups do not fit its structure")
            return None
        pieces.append(cut[0])
        rest = cut[1]
    return [*pieces, rest]


@rule("embedding")
def _embedding(node: Node, d: Derivation) -> list[Axis]:
    weight = d.axes_of(node.args[0])
    d.use(node.args[0], 0, None, weight[0], node, "vocabulary")
    d.use(node.args[0], 1, Role.WRITE, weight[1], node)
    return [*_axes(node, d, 1), weight[1]]


# --- normalisation ------------------------------------------------------------------------------


@rule("batch_norm")
def _batch_norm(node: Node, d: Derivation) -> list[Axis]:
    axes = _axes(node, d)
    for index, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        own = node.argument(index, name)
        if own is not None:
            (axis,) = d.axes_of(own)
            ax.unify(axis, axes[1], node.name)
            d.use(own, 0, Role.VARIANCE if name == "running_var" else Role.NORM, axis, node)
    d.effect(axes, Effect.ELEMENTWISE, node)
    d.normalised(node)
    return axes


@rule("layer_norm", "rms_norm")
def _layer_norm(node: Node, d: Derivation) -> list[Axis]:
    axes = _axes(node, d)
    count = len(node.args[1])
    for index, name in ((2, "weight"), (3, "bias")):
        own = node.argument(index, name) if node.op == "aten.layer_norm" or index == 2 else None
        if own is not None:
            for dim, axis in enumerate(d.axes_of(own)):
                ax.unify(axis, axes[len(axes) - count + dim], node.name)
                d.use(own, dim, Role.SCALE if index == 2 else Role.WRITE, axis, node)
    # Without an affine part an orthogonal map would do; with it only a permutation is exact.
    d.restrict(axes[-count:], "normalised over its features", node)
    return axes


@rule("group_norm")
def _group_norm(node: Node, d: Derivation) -> list[Axis] | None:
    axes = _axes(node, d)
    groups, channels = int(node.args[1]), ax.axis_size(axes[1])
    if 1 < groups < channels:
        pieces = _split_evenly(axes[1], groups, node, d)
        if pieces is None:
            return None
        axes = [axes[0], tuple(s for piece in pieces for s in piece), *axes[2:]]
    for index, name in ((2, "weight"), (3, "bias")):
        own = node.argument(index, name)
        if own is not None:
            (axis,) = d.axes_of(own)
            ax.unify(axis, axes[1], node.name)
            d.use(own, 0, Role.SCALE if index == 2 else Role.WRITE, axes[1], node)
    d.restrict([axes[1]], "normalised within its group", node)
    return axes


# --- space and reductions -----------------------------------------------------------------------


@rule("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d")
@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
@rule("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d")
def _pool(node: Node, d: Derivation) -> list[Axis] | None:
    axes = _axes(node, d)
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
    axes = _axes(node, d)
    dims = node.argument(1, "dim")
    if node.shape is None:
        return None
    over = set(_dims(dims, len(axes)) if dims not in (None, []) else range(len(axes)))
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
    axes = _axes(node, d)
    ax.pin(axes[int(node.args[1])], f"softmax over it in {node.name}")
    d.effect(axes, Effect.ELEMENTWISE, node)
    return axes


@rule("constant_pad_nd", "pad", "reflection_pad2d", "replication_pad2d")
def _pad(node: Node, d: Derivation) -> list[Axis] | None:
    axes = _axes(node, d)
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


# --- shape --------------------------------------------------------------------------------------


@rule("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view")
def _reshape(node: Node, d: Derivation) -> list[Axis] | None:
    d.passed_through(node)
    return ax.reshape(_axes(node, d), list(node.shape)) if node.shape is not None else None


@rule("permute", "transpose", "t")
def _permute(node: Node, d: Derivation) -> list[Axis]:
    axes = _axes(node, d)
    order = list(range(len(axes)))
    if node.op == "aten.permute":
        order = _dims(node.args[1], len(axes))
    else:
        a, b = _dims(node.args[1:3], len(axes)) if node.op == "aten.transpose" else (0, -1)
        order[a], order[b] = order[b], order[a]
    d.passed_through(node, order)
    return [axes[i] for i in order]


@rule("expand")
def _expand(node: Node, d: Derivation) -> list[Axis] | None:
    axes = _axes(node, d)
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
    dim = _dims(node.argument(1, "dim", 0), len(parts[0]))[0]
    out = list(parts[0])
    for part in parts[1:]:
        for i, axis in enumerate(part):
            if i != dim:
                ax.unify(out[i], axis, node.name)
    out[dim] = tuple(segment for part in parts for segment in part[dim])
    return out


@rule("split", "split_with_sizes", "chunk")
def _split(node: Node, d: Derivation) -> list[list[Axis]] | None:
    axes = _axes(node, d)
    dim = _dims(node.argument(2, "dim", 0), len(axes))[0]
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
    axes = _axes(node, d)
    if node.shape is None:
        return None
    dim = _dims(node.argument(1, "dim", 0), len(axes))[0]
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
    axes = _axes(node, d)
    dim = _dims(node.args[1], len(axes))[0]
    if not ax.is_inert(axes[dim]):
        return None  # one feature alone: its basis is fixed
    return [*axes[:dim], *axes[dim + 1 :]]
