"""How a network's outputs are read as a prediction: probabilities of classes, or numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ccamerge.config.settings import Ensemble, Mean
from ccamerge.graph.operations import features_dim, full_name, operation
from ccamerge.graph.rules.shapes import KEPT
from ccamerge.graph.tracing.program import Node, Program, Ref

_FAR = 8
"""Operations that are looked back over for what writes an output."""

_ENDS = tuple(map(full_name, ("softmax", "_softmax", "sigmoid", "log_sigmoid", "hardsigmoid")))
"""After these an output has probabilities already."""

_LOGARITHMS = tuple(map(full_name, ("log_softmax", "_log_softmax")))

_RESIZED = full_name("upsample_")
"""Maps of scores are made larger by them."""

_INDICES = tuple(
    map(full_name, ("argmax", "argmin", "argsort", "eq", "ne", "gt", "lt", "ge", "le"))
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How outputs are read.

    Attributes
    ----------
    mean : what of the models an ensemble averages: the probabilities that logits stand for, or the
        outputs as they are
    leaves : the tensors among the outputs that count, by their places; with their axes of classes
        for probabilities
    why : where that comes from, for people
    function : what makes a prediction of the outputs, instead of all that
    """

    mean: Mean
    leaves: dict[int, int]
    why: str
    function: Callable[[Any], Any] | None = None

    @property
    def unit(self) -> str:
        """What distances are."""
        if self.mean == "probabilities":
            return "KL divergence, nats"
        return "squared error over the ensemble's variance"

    def predictions(self, output: Any) -> list[Tensor]:
        """What a network predicts: logarithms of probabilities, classes last, or numbers.

        Raises
        ------
        ValueError
            If the function fails, or gives no tensors.
        """
        if self.function is not None:
            return self._called(output)
        leaves = pytree.tree_leaves(output)
        found = [leaves[place] for place in self.leaves]
        dtypes = [torch.promote_types(x.dtype, torch.float32) for x in found]
        if self.mean == "outputs":
            return [x.to(dtype) for x, dtype in zip(found, dtypes, strict=True)]
        return [
            x.movedim(axis, -1).log_softmax(-1, dtype=dtype)
            for x, axis, dtype in zip(found, self.leaves.values(), dtypes, strict=True)
        ]

    def _called(self, output: Any) -> list[Tensor]:
        assert self.function is not None
        try:
            found = self.function(output)
        except Exception as error:  # the user's function can raise anything
            message = f"ensemble: the function failed on the outputs: {error!r}"
            raise ValueError(message) from error
        leaves = pytree.tree_leaves(found)
        if not leaves or not all(isinstance(x, Tensor) and not x.is_complex() for x in leaves):
            message = f"ensemble: the function must return tensors, got {type(found).__name__}"
            raise ValueError(message)
        return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in leaves]

    def combined(
        self, members: Sequence[Sequence[Tensor]], weights: Sequence[float]
    ) -> list[Tensor]:
        """The ensemble's prediction, from each member's."""
        pairs = [(w, own) for w, own in zip(weights, members, strict=True) if w > 0]
        (share, first), others = pairs[0], pairs[1:]
        logs = self.mean == "probabilities"
        total = [x + math.log(share) if logs else share * x for x in first]
        for share, own in others:  # one after the other: they may be large
            total = [
                torch.logaddexp(sum_, x + math.log(share)) if logs else sum_ + share * x
                for sum_, x in zip(total, own, strict=True)
            ]
        return total


def reading_of(program: Program, given: Ensemble | None) -> Reading | None:
    """How the outputs of a program are read; None if no number is among them.

    Parameters
    ----------
    program : of the reference
    given : what the user says, or None to guess: logits where a linear operation with two or more
        outputs, or the logarithm of softmax, comes last in all outputs; else numbers
    """
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return Reading("outputs", {}, f"as {name} reads them", given)
    nodes = {node.name: node for node in program.nodes}
    ends = {place: nodes.get(name) for place, name in enumerate(program.outputs)}
    found = {place: node for place, node in ends.items() if node is not None and _is_number(node)}
    if not found:
        return None
    writers = {place: _writer(node, nodes) for place, node in found.items()}
    axes = {place: _class_axis(found[place], writers[place]) for place in found}
    if given is not None:
        return Reading(given, axes, "as asked for")
    last = ", ".join(dict.fromkeys(_name(writers[place] or found[place]) for place in found))
    if all(writer is not None and _scores(writer) for writer in writers.values()):
        return Reading("probabilities", axes, f"guessed from the last operation, {last}")
    return Reading("outputs", axes, f"guessed from the last operation, {last}")


def _name(node: Node) -> str:
    return node.op.removeprefix("aten.")


def _is_number(node: Node) -> bool:
    """Whether a node's value is a tensor of floating-point numbers, as far as is known."""
    return node.shape is not None and node.op not in _INDICES


def _writer(node: Node, nodes: dict[str, Node]) -> Node | None:
    """The linear operation or the softmax that writes a value, if little comes after it."""
    for _ in range(_FAR):
        if operation(node).linear or node.op in (*_ENDS, *_LOGARITHMS):
            return node
        first = node.args[0] if node.args else None
        moved = (
            node.op in KEPT
            or node.op.startswith(_RESIZED)
            or (operation(node).move is not None and len(node.refs()) == 1)
        )
        if not moved or not isinstance(first, Ref) or first.name not in nodes:
            return None
        node = nodes[first.name]
    return None


def _scores(writer: Node) -> bool:
    """Whether a value holds scores of classes."""
    if writer.op in _ENDS:
        return False
    shape = writer.shape or (0,)
    return not operation(writer).linear or shape[features_dim(writer)] > 1


def _class_axis(node: Node, writer: Node | None) -> int:
    """The axis of an output that has the classes, if it has any."""
    axes = len(node.shape or ())
    if writer is not None and operation(writer).linear and writer.shape:
        size = writer.shape[features_dim(writer)]
        place = features_dim(writer)
        if len(writer.shape) == axes and node.shape and node.shape[place] == size:
            return place
        if node.shape and node.shape[-1] == size:
            return axes - 1
    return 1 if axes in (2, 4, 5) else max(axes - 1, 0)
