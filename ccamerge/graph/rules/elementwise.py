"""Operations on single elements, and of two or three tensors element by element."""

from __future__ import annotations

from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.facts import Facts
from ccamerge.graph.groups import PERMUTATION, POSITIVE, Group
from ccamerge.graph.operations import left_out, operation, rule
from ccamerge.graph.rules.shared import broadcast, dims_of, operand_axes
from ccamerge.graph.space import Role
from ccamerge.graph.tracing.program import Node, Ref

_COMPARED = ("eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "fmax", "fmin", "atan2")
_LOGICAL = ("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor")
_OTHER = ("fmod", "remainder", "floor_divide", "__and__", "__or__", "__xor__", "hypot")


def elementwise(*names: str, commutes: Group = PERMUTATION, **facts: Any) -> None:
    """Register functions of the single elements of one tensor; see `Operation` for the rest."""
    rule(*names, commutes=commutes, twin=left_out, **facts)(_elementwise)


def _elementwise(node: Node, d: Facts) -> list[Axis] | None:
    tensors = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, Ref)]
    bounds = [t for t in tensors if t is not node.args[0]]
    if node.op.startswith("aten.clamp") and all(_number(t, d) for t in bounds):
        for bound in bounds:
            for dim, axis in enumerate(d.axes_of(bound)):
                d.use(bound, dim, None, axis, node, "a single element")
        tensors = tensors[:1]
    if len(tensors) != 1 or tensors[0] is not node.args[0]:
        return several(node, d) if node.op == "aten.pow" else None  # a tensor as a bound
    axes = operand_axes(node, d)
    d.effect(axes, operation(node).commutes, node)
    d.made_of(node, d.sources_of(node.args[0]))
    return axes


def _number(argument: Ref, d: Facts) -> bool:
    """Whether a value is one number that does not depend on the input."""
    return d.is_static(argument) and all(ax.axis_size(a) == 1 for a in d.axes_of(argument))


elementwise("relu", "leaky_relu", commutes=POSITIVE, smooth=True)
elementwise("abs", "square", smooth=True, magnitude=True)
elementwise("exp", "pow", magnitude=True)
elementwise(
    *("threshold", "gelu", "silu", "sigmoid", "tanh", "elu", "selu", "celu", "hardtanh"),
    *("relu6", "hardswish", "hardsigmoid", "mish", "softplus", "softsign", "log_sigmoid"),
    *("hardshrink", "softshrink", "clamp", "clamp_min", "clamp_max", "erf"),
    *("sin", "cos", "atan", "asinh"),
    smooth=True,
)
elementwise("ccamerge.pointwise", smooth=True)
elementwise(
    *("exp2", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal"),
    *("sign", "tan", "sinh", "cosh", "asin", "acos", "acosh", "atanh", "floor", "ceil"),
    *("round", "trunc", "frac", "nan_to_num", "logit", "isnan", "isinf", "isfinite"),
    *("logical_not", "bitwise_not", "angle"),
)


@rule("prelu", commutes=POSITIVE, twin=left_out)
@rule("_prelu_kernel", commutes=POSITIVE)
def _prelu(node: Node, d: Facts) -> list[Axis]:
    axes = operand_axes(node, d)
    d.effect(axes, operation(node).commutes, node)
    slope = node.args[1]
    for dim, axis in enumerate(own := d.axes_of(slope)):
        if ax.axis_size(axis) > 1:
            along = axes[1 if len(own) == 1 else dim]
            ax.unify(axis, along, node.name)
            d.use(slope, dim, Role.SCALE, along, node)
    return axes


@rule(*_COMPARED, *_LOGICAL, *_OTHER, commutes=PERMUTATION)
@rule("where", "lerp", "addcmul", "addcdiv", commutes=PERMUTATION)
@rule("masked_fill", commutes=PERMUTATION, twin=left_out)
def several(node: Node, d: Facts) -> list[Axis] | None:
    """Several tensors, element by element, in another way than by sums and products."""
    if node.shape is None:
        return None
    result = together(node, d, [a for a in node.args if d.is_tensor(a)], Role.SCALE)
    d.effect(result, operation(node).commutes, node)
    tensors = [a for a in node.args if d.is_tensor(a)]
    if len(tensors) > 1 and any(not ax.is_inert(a) for t in tensors[1:] for a in d.axes_of(t)):
        d.restrict(result, node.op, node)
    return result


def together(
    node: Node, d: Facts, tensors: list[Ref], role: Role, shape: tuple[int, ...] | None = None
) -> list[Axis]:
    """Equate the axes of tensors that are broadcast together; weights among them have a role.

    They are broadcast to ``shape``, which is the node's if there is none.
    """
    shape = node.shape if shape is None else shape
    assert shape is not None
    rank = len(shape)
    padded = [[ax.inert(1)] * (rank - len(d.axes_of(t))) + d.axes_of(t) for t in tensors]
    result: list[Axis] = []
    for dim, size in enumerate(shape):
        every = [axes[dim] for axes in padded]
        full = [axis for axis in every if ax.axis_size(axis) == size]
        live = [axis for axis in full if not ax.is_inert(axis)]
        for axis in full[1:]:
            ax.unify(full[0], axis, node.name)
        for axis in every:
            if ax.axis_size(axis) != size:
                d.restrict([axis], "one feature beside many", node)
        result.append((live or full or [ax.inert(size)])[0])
    static = d.is_static(Ref(node.name))
    sources = [broadcast(source, shape) for t in tensors for source in d.sources_of(t)]
    d.made_of(node, sources)
    if not static:
        for tensor, axes in zip(tensors, padded, strict=True):
            for dim in range(len(own := d.axes_of(tensor))):
                d.use(tensor, dim, role, axes[rank - len(own) + dim], node)
    return result


def _unshifted(node: Node) -> Node:
    """Without a number that is added to every feature."""
    return node if isinstance(node.args[1], Ref) else left_out(node)


@rule("add", tap="sum", adds=True, commutes=PERMUTATION, twin=_unshifted)
@rule("sub", tap="sum", commutes=PERMUTATION, twin=_unshifted)
@rule("rsub", commutes=PERMUTATION, twin=_unshifted)
def _sum(node: Node, d: Facts) -> list[Axis] | None:
    tensors = [a for a in node.args[:2] if d.is_tensor(a)]
    if node.shape is None or not tensors:
        return None
    result = together(node, d, tensors, Role.WRITE)
    numbers = [d.axes_of(t) for t in tensors if all(ax.axis_size(a) == 1 for a in d.axes_of(t))]
    if len(tensors) == 1 or any(len(axes) == 0 for axes in numbers):
        d.effect(result, operation(node).commutes, node)  # a shift of every feature by one number
    for dim, axis in enumerate(result):
        for tensor in tensors:
            own = d.axes_of(tensor)
            at = dim - len(result) + len(own)
            if len(tensors) > 1 and (at < 0 or ax.axis_size(own[at]) != ax.axis_size(axis)):
                d.restrict([axis], "one feature added to many", node)
    return result


@rule("mul", magnitude=True)
@rule("div", "true_divide", commutes=PERMUTATION)  # if it rounds
def _product(node: Node, d: Facts) -> list[Axis] | None:
    tensors = [a for a in node.args[:2] if d.is_tensor(a)]
    if node.shape is None or not tensors:
        return None
    if node.kwargs.get("rounding_mode") is not None:
        return several(node, d)
    result = together(node, d, tensors, Role.SCALE)
    quotient = node.op != "aten.mul"
    if quotient and d.is_tensor(node.args[1]):
        divisor = d.axes_of(node.args[1])
        if not d.is_weight(node.args[1]) or d.is_static(Ref(node.name)):
            d.restrict(divisor, "features divided by features", node)
    if len(tensors) == 1:
        return result
    weights = [d.is_weight(t) for t in tensors]
    if any(weights) and not all(weights):
        return result  # a gain; `use` has said so
    for dim in range(1, len(result) + 1):
        own = [d.axes_of(t)[-dim] for t in tensors if len(d.axes_of(t)) >= dim]
        if len([axis for axis in own if ax.axis_size(axis) == node.shape[-dim]]) > 1:
            d.restrict([result[-dim]], "features multiplied by features", node)
            if not ax.is_inert(result[-dim]):
                d.multiplied(node)
    return result


@rule("glu", commutes=PERMUTATION)
def _gated(node: Node, d: Facts) -> list[Axis] | None:
    """The first half of the features times the sigmoid of the second one's."""
    axes = operand_axes(node, d)
    dim = dims_of(node.argument(1, "dim", -1), len(axes))[0]
    halves = ax.split(axes[dim], ax.axis_size(axes[dim]) // 2)
    if halves is None or d.is_static(node.args[0]):
        return None
    ax.unify(*halves, node.name)
    d.restrict([halves[0]], "features multiplied by features", node)
    d.multiplied(node)
    return [*axes[:dim], halves[0], *axes[dim + 1 :]]
