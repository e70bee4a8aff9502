"""Which operations can be fitted, to what, and why the others cannot."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.graph.feature_map import FeatureMap
from ccamerge.graph.rules import features_dim, operation
from ccamerge.graph.rules.shapes import KEPT, VIEWS
from ccamerge.graph.space import Role, Slot, Spaces
from ccamerge.graph.tracing.program import Node, Program, Ref
from ccamerge.methods.weights import Shares

LARGEST = 8192
"""Inputs or outputs of an operation up to which it is fitted; moments grow with their square."""

SHARED = "its weight or bias is used elsewhere too, or computed"
CONSTANT = "it reads a constant"
ACROSS = "a space lies on another axis of its output than its features"
UNKNOWN = "it writes features whose space is not known"


@dataclasses.dataclass(frozen=True)
class Piece:
    """Output features ``start`` to ``start + size``, of one space, in the reference.

    ``maps`` are each model's to the reference (own, ``size``), None if they keep their basis;
    ``shares`` say how much each model counts.
    """

    start: int
    size: int
    maps: tuple[Tensor, ...] | None
    shares: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A linear operation that can be fitted.

    ``pieces`` cover its output features. ``added`` is the value that is added to its output and
    ``activation`` the element-wise function that follows, where there are any.
    """

    node: Node
    weight: str
    bias: str | None
    pieces: tuple[Piece, ...]
    added: str | None = None
    activation: Node | None = None

    @property
    def source(self) -> str:
        """The value that the operation reads."""
        return str(self.node.args[0].name)

    def target(self, values: Sequence[Tensor]) -> Tensor:
        """The weighted mean of the models' values (features last) in the reference's features."""
        dtype = torch.promote_types(values[0].dtype, torch.float32)
        width = sum(piece.size for piece in self.pieces)
        total = values[0].new_zeros((*values[0].shape[:-1], width), dtype=dtype)
        for index, value in enumerate(values):
            features = value.to(dtype)
            start = 0  # in a model of another width
            for piece in self.pieces:
                own = piece.size if piece.maps is None else len(piece.maps[index])
                part = features.narrow(-1, start, own)
                mapped = part if piece.maps is None else part @ piece.maps[index].to(dtype)
                total.narrow(-1, piece.start, piece.size).add_(mapped, alpha=piece.shares[index])
                start += own
        return total

    def activate(self, value: Tensor) -> Tensor:
        """What follows the sum."""
        assert self.activation is not None
        result: Tensor = self.activation.target(
            value, *self.activation.args[1:], **self.activation.kwargs
        )
        return result

    def apply(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The operation's output with the parameters of a state."""
        bias = state[self.bias] if self.bias else None
        kwargs = {k: v for k, v in self.node.kwargs.items() if k != "bias"}
        value: Tensor = self.node.target(x, state[self.weight], bias, *self.node.args[3:], **kwargs)
        return value


def fits_of(
    spaces: Spaces,
    maps: Mapping[str, Sequence[FeatureMap]],
    shares: Shares,
    absorbers: Mapping[str, tuple[str, str | None]],
) -> tuple[dict[str, Fit], dict[str, str]]:
    """The operations that can be fitted, and why the other linear ones cannot, by name.

    Parameters
    ----------
    spaces : of the merged models
    maps : for each open space, each model's map
    shares : of the models
    absorbers : for operations whose weight and bias nothing else uses, their names
    """
    nodes = {node.name: node for node in spaces.program.nodes}
    shapes = spaces.program.parameter_shapes
    readable = {*nodes, *spaces.program.inputs}
    pieces: dict[str, list[Piece]] = {}
    across: set[str] = set()
    for space in (*spaces.spaces, *spaces.fixed):
        found = maps.get(space.name)
        forward = None if found is None else tuple(m.forward for m in found)
        for tap in (t for t in space.taps if t.kind == "write"):
            if tap.dim == features_dim(nodes[tap.node]) and tap.node in absorbers:
                share = shares.of_space(space.name)
                if forward is None:
                    share = shares.of_parameter(absorbers[tap.node][0])
                piece = Piece(tap.start, tap.size, forward, share)
                pieces.setdefault(tap.node, []).append(piece)
            elif found is not None:
                across.add(tap.node)
    fits: dict[str, Fit] = {}
    skipped: dict[str, str] = {}
    sites = _Sites(spaces.program)
    for node in nodes.values():
        if not operation(node).linear or node.shape is None:
            continue
        own = sorted(pieces.get(node.name, []), key=lambda piece: piece.start)
        wanted = node.shape[features_dim(node)]
        if sum(piece.size for piece in own) != wanted and node.name in absorbers:
            own = _of_products(absorbers[node.name][0], spaces, maps, shares)
        if node.name not in absorbers:
            reason = SHARED
        elif not isinstance(node.args[0], Ref) or node.args[0].name not in readable:
            reason = CONSTANT
        elif node.name in across:
            reason = ACROSS
        elif sum(piece.size for piece in own) != wanted:
            reason = UNKNOWN
        elif (largest := _largest(shapes[absorbers[node.name][0]])) > LARGEST:
            reason = f"it has {largest} inputs or outputs, more than {LARGEST}"
        else:
            fits[node.name] = Fit(node, *absorbers[node.name], tuple(own), *sites.after(node))
            continue
        skipped[node.name] = reason
    return fits, skipped


def _of_products(
    weight: str,
    spaces: Spaces,
    maps: Mapping[str, Sequence[FeatureMap]],
    shares: Shares,
) -> list[Piece]:
    """Pieces of what a weight writes where features lie among others: maps of their products."""
    parts: dict[tuple[int, int], list[tuple[str, Slot, int]]] = {}
    for space in (*spaces.spaces, *spaces.fixed):
        for slot in space.slots:
            place = (slot.parameter, slot.dim, slot.role, slot.rows)
            if place == (weight, 0, Role.WRITE, None) and slot.blocks is None:
                extent = (slot.start, slot.extent(space.size))
                parts.setdefault(extent, []).append((space.name, slot, space.size))
    found = []
    for (start, length), own in sorted(parts.items()):
        mapped = [(maps[name], slot) for name, slot, _ in own if name in maps]
        forward: tuple[Tensor, ...] | None = None
        if mapped:
            forward = tuple(
                functools.reduce(torch.matmul, (_spread(row[i], slot) for row, slot in mapped))
                for i in range(len(mapped[0][0]))
            )
        names = [name for name, _, _ in own if name in maps]
        share = shares.of_space(names[0]) if names else shares.of_parameter(weight)
        found.append(Piece(start, length, forward, share))
    return found


def _spread(feature_map: FeatureMap, slot: Slot) -> Tensor:
    """The map of all features that a slot holds a factor of."""
    forward = feature_map.forward
    outer, inner = (
        torch.eye(size, dtype=forward.dtype, device=forward.device)
        for size in (slot.outer, slot.inner)
    )
    return torch.kron(torch.kron(outer, forward), inner)


def _largest(shape: Sequence[int]) -> int:
    return max(shape[0], math.prod(shape[1:]))


class _Sites:
    """What follows the linear operations of a program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._users = program.users()
        self._order = {node.name: at for at, node in enumerate(program.nodes)}

    def after(self, node: Node) -> tuple[str | None, Node | None]:
        """The value that is added to an operation's output, and the function applied after that.

        Each only if nothing else reads the value before it, which may be laid out in other axes
        before its features.
        """
        end, added = self._same(node), None
        following = self._readers(end)
        if len(following) == 1 and operation(following[0]).adds:
            total = following[0]
            others = [ref for ref in total.refs() if ref != end.name]
            plain = not total.kwargs and len(total.args) == 2 and len(others) == 1
            earlier = (
                plain and self._order.get(others[0], len(self._order)) < self._order[node.name]
            )
            if earlier and self._program.shapes.get(others[0]) == end.shape:
                end, added = self._same(total), others[0]
        readers = self._readers(end)
        alike = all(_function(n) == _function(readers[0]) and len(n.refs()) == 1 for n in readers)
        if not readers or not alike:
            return added, None
        return added, readers[0] if operation(readers[0]).smooth else None

    def _readers(self, node: Node) -> list[Node]:
        """The operations that read a value; none if the network returns it."""
        return [] if node.name in self._program.outputs else self._users.get(node.name, [])

    def _same(self, node: Node) -> Node:
        """The last operation after which a value has the same elements, and features, in order."""
        while len(readers := self._readers(node)) == 1:
            (reader,) = readers
            laid_out = reader.op in VIEWS
            if reader.op not in (*VIEWS, *KEPT) or reader.args[0] != Ref(node.name):
                break
            if reader.shape != node.shape and not (laid_out and _features_last(node, reader)):
                break
            node = reader
        return node


def _features_last(node: Node, reader: Node) -> bool:
    """Whether both have features on the last axis, and all of them there."""
    last = features_dim(node) == len(node.shape or ()) - 1 if operation(node).linear else True
    return last and bool(node.shape and reader.shape) and node.shape[-1] == reader.shape[-1]  # type: ignore[index]


def _function(node: Node) -> tuple[Any, ...]:
    """What an operation does to its first operand."""
    return node.target, node.args[1:], node.kwargs
