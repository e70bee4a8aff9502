"""Operations on single elements, and of two tensors element by element."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis
from ccamerge.graph.program import Node, Ref
from ccamerge.graph.rules.registry import operand_axes, rule
from ccamerge.graph.spaces import Effect, Role

if TYPE_CHECKING:
    from ccamerge.graph.derivation import Derivation


@rule("clone", "contiguous", "detach", "alias", "to", "_to_copy", "dropout", "feature_dropout")
@rule("neg", "lift_fresh_copy", "positive")
def _same(node: Node, d: Derivation) -> list[Axis]:
    d.passed_through(node)
    return operand_axes(node, d)


@rule("relu", "leaky_relu", "threshold")
def _relu(node: Node, d: Derivation) -> list[Axis]:
    axes = operand_axes(node, d)
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
    axes = operand_axes(node, d)
    d.effect(axes, Effect.ELEMENTWISE, node)
    return axes


@rule("prelu")
def _prelu(node: Node, d: Derivation) -> list[Axis]:
    axes = operand_axes(node, d)
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
