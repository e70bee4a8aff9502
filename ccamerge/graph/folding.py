"""What is folded away of a program: norms' gains, constants of channels, and BatchNorms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from ccamerge.graph.folds import BatchNormFold, Fold
from ccamerge.graph.gains import fold_gains
from ccamerge.graph.norms import recognised
from ccamerge.graph.pointwise import with_pointwise
from ccamerge.graph.rewriting import Rewriting
from ccamerge.graph.rules import features_dim, operation
from ccamerge.graph.tracing.program import Node, Program, Ref
from ccamerge.graph.transposed import as_linear


def fold(
    program: Program, state: Mapping[str, Tensor] | None = None
) -> tuple[Program, tuple[Fold, ...]]:
    """The program with all folded away that can be; ``state`` is as for `fold_all_but_batch_norm`.

    Folds apply in order, and are put back in the reverse one.
    """
    unfolded, gains = fold_all_but_batch_norm(program, state)
    folded, norms = fold_batch_norm(unfolded)
    return folded, (*gains, *norms)


def fold_all_but_batch_norm(
    program: Program, state: Mapping[str, Tensor] | None = None
) -> tuple[Program, tuple[Fold, ...]]:
    """The program with norms, functions and products as single operations, and gains folded.

    With parameters given, those gains stay that cannot be folded for their values.
    """
    program, turned = as_linear(with_pointwise(recognised(program)))
    if state is not None:
        state = dict(state)
        for own in turned:
            own.apply(state)
    program, gains = fold_gains(program, state)
    return program, (*turned, *gains)


def fold_batch_norm(program: Program) -> tuple[Program, tuple[Fold, ...]]:
    """The program with every BatchNorm that directly follows a linear operation folded away.

    A BatchNorm elsewhere (before the convolution, as in DenseNet), or whose parameters are used
    more than once, stays.
    """
    new = Rewriting(program)
    found = []
    for norm in program.nodes:
        if "running_var" in operation(norm).places and (one := _folded(norm, new)) is not None:
            found.append(one)
    return new.program(), tuple(found)


def _folded(norm: Node, new: Rewriting) -> BatchNormFold | None:
    """Fold a BatchNorm if it can be."""
    linear = _linear(norm, new)
    if linear is None or linear.shape is None:
        return None
    bias = operation(linear).place(linear, "bias")
    own = [operation(norm).place(norm, name) for name in operation(norm).places]
    arguments = [linear.args[1], bias, *own]
    keys = [new.key(a) for a in arguments]
    if any(k is None and a is not None for k, a in zip(keys, arguments, strict=True)):
        return None
    weight, old_bias, gamma, beta, mean, variance = keys
    if weight is None or mean is None or variance is None:
        return None
    value = f"{norm.name}_folded_bias"
    folded = f"{weight}:folded_bias"
    new.parameters[value] = folded
    new.shapes[value] = (new.shapes[linear.args[1].name][0],)
    args = (*linear.args[:2], Ref(value), *linear.args[3:])
    kwargs = {k: v for k, v in linear.kwargs.items() if k != "bias"}
    new.change(dataclasses.replace(linear, args=args, kwargs=kwargs))
    new.drop(norm.name, linear.name)
    eps = float(norm.argument(7, "eps"))
    return BatchNormFold(linear.name, weight, old_bias, folded, gamma, beta, mean, variance, eps)


def _linear(norm: Node, new: Rewriting) -> Node | None:
    """The linear operation of which a BatchNorm is the only reader, and normalises outputs."""
    linear = new.node_of(norm.args[0])
    if linear is None or norm.argument(5, "training"):
        return None
    if not operation(linear).linear or new.uses[linear.name] != 1 or new.is_output(linear.name):
        return None
    if features_dim(linear) != features_dim(norm):
        return None  # after a layer over (batch, length, features) it normalises another axis
    return linear
