"""Products with a weight of (in, out), as GPT-2 stores it, as the linear layers that they are."""

from __future__ import annotations

import dataclasses
from collections import Counter

import torch
from torch import Tensor

from ccamerge.graph.folds import Fold, Statistics
from ccamerge.graph.rewriting import Rewriting
from ccamerge.graph.tracing.program import Node, Program, Ref

_TURNED = ("aten.t", "aten.transpose", "aten.permute", "aten.numpy_T", "aten.mT")


@dataclasses.dataclass(frozen=True)
class TransposedFold(Fold):
    """A weight (in, out) that the folded program has as ``turned``, (out, in)."""

    weight: str

    @property
    def turned(self) -> str:
        """The key of the transposed weight."""
        return f"{self.weight}:transposed"

    @property
    def keys(self) -> tuple[str, ...]:
        """The weight as it was."""
        return (self.weight,)

    def apply(self, state: dict[str, Tensor]) -> None:
        """A view: no memory is taken."""
        state[self.turned] = state.pop(self.weight).T

    def unapply(self, state: dict[str, Tensor], statistics: Statistics) -> None:
        """The weight as the module has it."""
        state[self.weight] = state.pop(self.turned).T.contiguous()


def as_linear(program: Program) -> tuple[Program, tuple[Fold, ...]]:
    """The program with ``bias + x W`` and ``x W`` as linear layers, ``W`` being a parameter.

    Weights that are used elsewhere, too, or are limited, stay as they are, unless the program has
    their transpose as a parameter; so do sums of multiples, and sums with anything but a vector.
    """
    new = Rewriting(program)
    folds: list[Fold] = []
    left = Counter(new.uses)
    for node in program.nodes:
        parts = _parts(node)
        if parts is None:
            continue
        x, weight, bias = parts
        if bias is not None and len(program.shapes[bias.name]) != 1:
            continue
        found = _turned(weight, new)
        if found is None:
            key = new.key(weight)
            if key is None or len(program.shapes[weight.name]) != 2 or x == weight:
                continue
            fold = TransposedFold(key)
            folds.append(fold)
            found = Ref(f"{weight.name}_transposed")
            new.parameters[found.name] = fold.turned
            new.shapes[found.name] = program.shapes[weight.name][::-1]
        left[weight.name] -= 1
        args = (x, found) if bias is None else (x, found, bias)
        target = torch.ops.aten.linear.default
        new.change(dataclasses.replace(node, target=target, args=args, kwargs={}))
    new.remove({name for name, uses in left.items() if not uses})  # transposes without a reader
    return new.program(), tuple(folds)


def _parts(node: Node) -> tuple[Ref, Ref, Ref | None] | None:
    """Input, weight and bias of a product that may be a linear layer."""
    if node.kwargs or node.shape is None:
        return None
    if node.op == "aten.addmm":
        bias, x, weight = node.args[:3]
        if len(node.args) > 3 or not isinstance(bias, Ref):
            return None
    elif node.op in ("aten.matmul", "aten.mm"):
        (x, weight), bias = node.args[:2], None
    else:
        return None
    if not isinstance(x, Ref) or not isinstance(weight, Ref):
        return None
    return x, weight, bias


def _turned(weight: Ref, new: Rewriting) -> Ref | None:
    """The parameter that a weight is the transpose of."""
    node = new.node_of(weight)
    if node is None or node.op not in _TURNED or not isinstance(node.args[0], Ref):
        return None
    source = node.args[0]
    matrix = source.name in new.parameters and len(new.shapes[source.name]) == 2
    return source if matrix and _swaps(node) else None


def _swaps(node: Node) -> bool:
    """Whether an operation on a matrix transposes it."""
    if node.op == "aten.permute":
        return [dim % 2 for dim in node.args[1]] == [1, 0]
    return node.op != "aten.transpose" or node.args[1] % 2 != node.args[2] % 2
