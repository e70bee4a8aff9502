"""How queries, keys, values and outputs of attention lie in heads.

What lies between a linear operation and the first product only moves elements, up to norms,
rotations and the like. So the number of each feature goes the same way, and where it arrives tells
the heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ccamerge.graph.attention.cores import Core
from ccamerge.graph.rules import features_dim, operation
from ccamerge.graph.rules.shapes import CASTS, KEPT, VIEWS
from ccamerge.graph.tracing.program import Node, Program, Ref, bound, made_of

Rows = tuple[tuple[int, ...], ...]
"""Features of each head."""

_SCALED = ("aten.mul", "aten.div", "aten.layer_norm", "aten.rms_norm")
"""By a number, a gain or what is the same for all features, they leave features where they are."""

_COPIES = ("aten.lift_fresh_copy", "aten.clone")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Features of each head among those of what writes queries, keys and values, and of the output.

    Query head h reads the keys and values of head ``group(h)``.
    """

    queries: Rows
    keys: Rows
    values: Rows
    outputs: Rows

    def group(self, head: int) -> int:
        """The head of keys and values that a head of queries reads."""
        return head // (len(self.queries) // len(self.keys))


def layout_of(core: Core, program: Program) -> Layout | None:
    """The heads of a core of a program; None if there are no such."""
    nodes = {node.name: node for node in program.nodes}
    places = _places(core, program)
    every = {name: _numbers(nodes[name], core, places) for name in core.writers}
    roles = (core.queries, core.keys, core.values)
    inside = {node.name: node for node in core.nodes}
    reach = [made_of([name], inside) for name in core.read]
    found = []
    for role, writer in enumerate(roles):
        others = {name for at, names in enumerate(reach) if at != role for name in names}
        own = [
            numbers
            for name, numbers in every[writer].items()
            if name in reach[role] and (name not in others or roles.count(writer) == 1)
        ]
        heads = _heads(own)
        if heads is None:
            return None
        found.append(heads)
    outputs = _outputs(core, nodes[core.mixed])
    if outputs is None:
        return None
    layout = Layout(found[0], found[1], found[2], outputs)
    return layout if _fits(layout) else None


def _fits(layout: Layout) -> bool:
    queries, keys, values, outputs = (
        {len(head) for head in heads}
        for heads in (layout.queries, layout.keys, layout.values, layout.outputs)
    )
    counts = [len(heads) for heads in (layout.queries, layout.keys, layout.values, layout.outputs)]
    one_size = all(len(sizes) == 1 for sizes in (queries, keys, values, outputs))
    grouped = counts[0] == counts[3] and counts[1] == counts[2] and counts[0] % counts[1] == 0
    return one_size and grouped and queries == keys and values == outputs


def writer_axis(node: Node) -> int:
    """The axis of a linear operation's output that holds its features."""
    return features_dim(node) if operation(node).linear else len(node.shape or ()) - 1


def _places(core: Core, program: Program) -> dict[str, Tensor]:
    """Constants that attention may choose heads by."""
    found = {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}
    for node in program.nodes:
        if node.name in core.sides and node.op in _COPIES and node.refs()[0] in found:
            found[node.name] = found[node.refs()[0]]
    return found


def _numbers(writer: Node, core: Core, places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each value that is what a linear operation wrote, moved: which feature is where."""
    assert writer.shape is not None
    axis = writer_axis(writer)
    shape = [1] * len(writer.shape)
    shape[axis] = writer.shape[axis]
    found: dict[str, Any] = {
        writer.name: torch.arange(shape[axis]).reshape(shape).expand(writer.shape)
    }
    for node in core.nodes:
        known = [ref for ref in node.args if isinstance(ref, Ref) and ref.name in found]
        if len(known) == 1 and (known[0] is node.args[0] or node.op in _SCALED):
            value = _moved(node, found[known[0].name], places)
            if value is not None:
                found[node.name] = value
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _moved(node: Node, value: Any, places: Mapping[str, Tensor]) -> Any:
    """What an operation makes of numbers, if it only moves them; None otherwise.

    ``places`` are constants that may be indices.
    """
    if node.op == "getitem":
        return value[node.args[1]]
    if not isinstance(value, Tensor):
        return None
    if node.op == "aten.index":
        chosen = {ref for ref in node.refs() if ref != node.args[0].name}
        return node.target(value, bound(node.args[1], places)) if chosen <= set(places) else None
    scaled = node.op in _SCALED and node.shape == tuple(value.shape)
    if node.op in (*CASTS, *KEPT) or scaled:
        return value
    if not operation(node).move or node.op == "aten.neg":
        return None
    if node.op in VIEWS:
        return None if node.shape is None else value.reshape(node.shape)
    if len(node.refs()) > 1:
        return None  # sizes that are computed
    return node.target(value, *node.args[1:], **node.kwargs)


def _heads(every: Sequence[Tensor]) -> Rows | None:
    """The finest division into heads that any of some values has, all features there."""
    best: Rows | None = None
    for numbers in every:
        rows = _rows(numbers)
        if rows is None:
            continue
        whole = sorted({feature for row in rows for feature in row})
        known = sorted({feature for row in best or () for feature in row})
        if best is None or (whole == known and len(rows) > len(best)) or len(whole) > len(known):
            best = rows
    return best


def _rows(numbers: Tensor) -> Rows | None:
    """Features along the last axis on which they differ, in the order in which they come."""
    varying = [
        axis
        for axis, size in enumerate(numbers.shape)
        if size > 1 and bool((numbers != numbers.narrow(axis, 0, 1)).any())
    ]
    if not varying:
        return None
    lines = numbers.movedim(varying[-1], -1).flatten(0, -2)
    rows = tuple(dict.fromkeys(tuple(line) for line in lines.tolist()))
    features = [feature for row in rows for feature in row]
    return rows if len(set(features)) == len(features) else None


def _outputs(core: Core, mixed: Node) -> Rows | None:
    """The features of each head in what attention returns, where its readers find them."""
    if mixed.shape is None:
        return None
    value: Any = torch.arange(torch.Size(mixed.shape).numel()).reshape(mixed.shape)
    started = False
    for node in core.nodes:
        if node.name == core.mixed:
            started = True
        elif started and node.args and isinstance(node.args[0], Ref):
            value = _moved(node, value, {})
            if value is None:
                return None
    line = value.movedim(core.axis, -1).flatten(0, -2)[0]
    places = torch.stack(torch.unravel_index(line, mixed.shape), 1)  # (features, axes)
    varying = [dim for dim in range(places.shape[1]) if len(places[:, dim].unique()) > 1]
    if not varying:
        return None
    rows: dict[tuple[int, ...], dict[int, int]] = {}
    for feature, place in enumerate(places.tolist()):
        within = place.pop(varying[-1])
        rows.setdefault(tuple(place), {})[within] = feature
    return tuple(tuple(row[at] for at in sorted(row)) for _, row in sorted(rows.items()))
