"""Folding BatchNorm into the linear operation before it, and putting it back.

Multiplying a BatchNorm's parameters by a general matrix is wrong: variances turn negative. Folded
into its convolution it is a weight and a bias, which transform exactly.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from ccamerge.graph.tracing.program import Node, Program, Ref

LINEAR_OPS = ("aten.linear", "aten.conv1d", "aten.conv2d", "aten.conv3d")
"""Operations with (input, weight, bias) and output features on the weight's axis 0."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """A linear operation and the BatchNorm folded into it, by the names of the ``state_dict``.

    ``node`` is the operation's name in the folded program and ``folded`` the key of its new bias.
    A BatchNorm without affine parameters has None for ``gamma`` and ``beta``.
    """

    node: str
    weight: str
    bias: str | None
    folded: str
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    eps: float

    def _scale(self, state: Mapping[str, Tensor]) -> Tensor:
        scale = (state[self.variance].double() + self.eps).rsqrt()
        return scale * state[self.gamma].double() if self.gamma else scale

    def apply(self, state: dict[str, Tensor]) -> None:
        """Replace, in place of the mapping, weight and BatchNorm by a weight and a bias."""
        weight = state[self.weight]
        scale = self._scale(state)
        shift = -state[self.mean].double()
        if self.bias:
            shift = shift + state[self.bias].double()
        bias = scale * shift
        if self.beta:
            bias = bias + state[self.beta].double()
        shape = (-1,) + (1,) * (weight.dim() - 1)
        state[self.weight] = (weight.double() * scale.reshape(shape)).to(weight.dtype)
        state[self.folded] = bias.to(weight.dtype)
        for key in (self.bias, self.gamma, self.beta, self.mean, self.variance):
            state.pop(key or "", None)

    def unapply(
        self, state: dict[str, Tensor], mean: Tensor | None = None, variance: Tensor | None = None
    ) -> None:
        """Put a BatchNorm back so that the function stays the same.

        ``mean`` and ``variance`` (out channels,) are those of the operation's output without its
        folded bias. They become the running statistics, which matters to whoever trains the model
        further; without them they are 0 and 1. A BatchNorm that has no affine parameters takes
        them from the statistics instead, and must have no negative scale to represent.
        """
        weight, bias = state[self.weight], state.pop(self.folded)
        if mean is None or variance is None:
            mean, variance = torch.zeros_like(bias), torch.ones_like(bias)
        mean, variance = mean.to(bias), variance.to(bias)
        if self.bias:
            state[self.bias] = torch.zeros_like(bias)
        if self.gamma is None or self.beta is None:
            # Without an affine part: output = (Wx - m) / sqrt(v + eps) with v + eps = 1, m = -b.
            mean, variance = -bias, torch.full_like(bias, 1.0 - self.eps)
        else:
            state[self.gamma] = (variance + self.eps).sqrt()
            state[self.beta] = bias + mean
        state[self.weight] = weight
        state[self.mean], state[self.variance] = mean, variance


def fold(program: Program) -> tuple[Program, tuple[Fold, ...]]:
    """The program with every BatchNorm that directly follows a linear operation folded away.

    A BatchNorm elsewhere (before the convolution, as in DenseNet), or whose parameters are used
    more than once, stays.
    """
    users = program.users()
    uses = Counter(ref for node in program.nodes for ref in node.refs())
    uses.update(program.outputs)
    aliases = Counter(program.parameters.values())
    by_name = {node.name: node for node in program.nodes}
    parameters, shapes = dict(program.parameters), dict(program.shapes)
    merged: dict[str, Node] = {}  # name of the linear operation -> what replaces it
    dropped: dict[str, str] = {}  # name of the BatchNorm -> name of the linear operation
    folds = []

    def key(argument: object) -> str | None:
        """The state key of a parameter that only this operation uses, and without limits."""
        if not isinstance(argument, Ref) or uses[argument.name] != 1:
            return None
        found = program.parameters.get(argument.name)
        if found is None or aliases[found] != 1 or found in program.limits:
            return None
        return found

    for norm in program.nodes:
        if norm.op != "aten.batch_norm" or not isinstance(norm.args[0], Ref):
            continue
        linear = by_name.get(norm.args[0].name)
        if linear is None or linear.op not in LINEAR_OPS or uses[linear.name] != 1:
            continue
        if len(users[linear.name]) != 1 or norm.argument(5, "training"):
            continue
        bias = linear.argument(2, "bias")
        arguments = [linear.args[1], bias, *(norm.argument(i, "") for i in range(1, 5))]
        keys = [key(a) for a in arguments]
        if any(k is None and a is not None for k, a in zip(keys, arguments, strict=True)):
            continue
        weight, old_bias, gamma, beta, mean, variance = keys
        if weight is None or mean is None or variance is None or linear.shape is None:
            continue
        if linear.op == "aten.linear" and len(linear.shape) != 2:
            continue  # BatchNorm over (batch, features, length) normalises another axis
        value = f"{norm.name}_folded_bias"
        folded = f"{weight}:folded_bias"
        parameters[value] = folded
        shapes[value] = (program.shapes[linear.args[1].name][0],)
        args = (*linear.args[:2], Ref(value), *linear.args[3:])
        kwargs = {k: v for k, v in linear.kwargs.items() if k != "bias"}
        merged[linear.name] = dataclasses.replace(linear, args=args, kwargs=kwargs)
        dropped[norm.name] = linear.name
        eps = float(norm.argument(7, "eps"))
        folds.append(Fold(linear.name, weight, old_bias, folded, gamma, beta, mean, variance, eps))

    def rename(node: Node) -> Node:
        node = merged.get(node.name, node)
        args, kwargs = torch.utils._pytree.tree_map_only(
            Ref, lambda ref: Ref(dropped.get(ref.name, ref.name)), (node.args, node.kwargs)
        )
        return dataclasses.replace(node, args=args, kwargs=kwargs)

    nodes = tuple(rename(node) for node in program.nodes if node.name not in dropped)
    read = {ref for node in nodes for ref in node.refs()}
    return (
        dataclasses.replace(
            program,
            nodes=nodes,
            parameters={name: k for name, k in parameters.items() if name in read},
            shapes=shapes,
            outputs=tuple(dropped.get(name, name) for name in program.outputs),
        ),
        tuple(folds),
    )
