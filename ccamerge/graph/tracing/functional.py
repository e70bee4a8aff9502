"""Changes in place as new values, so that a value, once computed, never changes.

An operation that changes a tensor becomes the one that returns a changed tensor. Names for the same
memory that are read later are computed anew: what the tensor is a view of by writing the change
into it, other views by taking them again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ccamerge.graph.tracing.node import Node, Ref, random_draw

_MAYBE = frozenset({"reshape", "flatten", "contiguous", "to", "dropout", "feature_dropout"})
"""Operations that return their input's memory in some cases, without saying so in their schema."""

_BACK = {"transpose", "t", "detach", "alias", "unsqueeze", "view", "_unsafe_view", "unflatten"} | {
    "squeeze",
    "permute",
}
"""Views that show every element of what they are taken of."""


def functional(
    nodes: Sequence[Node], outputs: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[Node], list[str], dict[str, tuple[int, ...]]]:
    """Operations without changes in place.

    Parameters
    ----------
    nodes, outputs : operations and the names of what they are for
    shapes : of all values, example inputs and parameters included

    Returns
    -------
    The operations, the names of the outputs, and the shapes of all values.

    Raises
    ------
    ValueError
        If an operation has no such form, or another name for what it changes, which is read later,
        cannot be followed.
    """
    writer = _Functional(nodes, outputs, shapes)
    for index, node in enumerate(nodes):
        writer.add(index, node)
    return writer.nodes, [writer.names.get(name, name) for name in outputs], writer.shapes


class _Functional:
    def __init__(
        self,
        nodes: Sequence[Node],
        outputs: Sequence[str],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.nodes: list[Node] = []
        self.names: dict[str, str] = {}  # a name of the traced program -> the value it has by now
        self.shapes = dict(shapes)
        self._views: dict[str, Node] = {}  # a view, as it is taken, of names of the traced program
        self._same: dict[str, str] = {}  # what an operation in place returns -> what it changed
        self._made = {node.name for node in nodes}  # not kept from one call to the next
        self._several = {  # of several new tensors, each is no view of the others
            node.name
            for node in nodes
            if node.schema is not None and len(node.schema.returns) > 1 and not _is_view(node)
        }
        self._last = {name: len(nodes) for name in outputs}
        for index, node in enumerate(nodes):
            for name in node.refs():
                self._last[name] = max(index, self._last.get(name, 0))

    def add(self, index: int, node: Node) -> None:
        """The next operation, as it was traced."""
        changes = node.schema is not None and node.schema.is_mutable
        source = _source(node)
        if not changes:
            if source is not None and _is_view(node) and source not in self._several:
                self._views[node.name] = node
            self._emit(node.renamed(self.names))
            return
        if source is None or node.args[0] != Ref(source):
            message = f"the model uses {node.target}, which changes a tensor in place"
            raise ValueError(message)
        self._same[node.name] = changed = self._same.get(source, source)
        self._emit(dataclasses.replace(node, target=_pure(node)).renamed(self.names))
        self._refresh(index, node, changed)

    def _refresh(self, index: int, node: Node, changed: str) -> None:
        """Names for the memory that a node has changed, as they are after."""
        family = [name for name in self._family(self._root(changed)) if name != changed]
        for name in [changed, *(n for n, own in self._same.items() if own == changed)]:
            self.names[name] = node.name
        # What is read later, and what that is a view of.
        later = [name for name in family if self._read_after(name, index)]
        if not later:
            return
        apart = self._apart(changed, later)
        if apart is not None:
            later = [name for name in later if apart in self._chain(name)]
        for name in [changed, *later]:
            for view in self._way(name, apart):
                if view.op.removeprefix("aten.") in _MAYBE:
                    self._refuse(node, later[0], f"whether {view.op} copies depends on its input")
        up = self._way(changed, apart)
        fresh = {changed}
        for view in up:  # write the change into what was viewed, up to the memory's first name
            self._write_back(node, view, later[0])
            fresh.add(self._same.get(_source(view) or "", _source(view) or ""))
        for name in later:
            for view in reversed(self._way(name, apart)):
                if view.name not in fresh:
                    again = dataclasses.replace(view, name=f"{view.name}:{node.name}")
                    self._emit(again.renamed(self.names))
                    self._rename(view.name, again.name)
                    fresh.add(view.name)

    def _write_back(self, node: Node, view: Node, other: str) -> None:
        base = _source(view) or ""
        before, after = self.names.get(base, base), self.names.get(view.name, view.name)
        kind, rest = view.op.removeprefix("aten."), view.renamed(self.names).args[1:]
        ops = torch.ops.aten
        target: Any
        args: tuple[Any, ...] = (Ref(before), Ref(after), *rest)
        if kind in ("slice", "select", "diagonal", "as_strided"):
            if kind == "slice" and self.shapes[view.name] == self.shapes[base] and _whole(view):
                self._rename(base, after)
                return
            target = getattr(ops, f"{kind}_scatter").default
        elif kind == "narrow" and all(isinstance(x, int) for x in rest):
            target = ops.slice_scatter.default
            args = (Ref(before), Ref(after), rest[0], rest[1], rest[1] + rest[2])
        elif kind in _BACK:
            target, args = ops.reshape_as.default, (Ref(after), Ref(before))
            if kind == "transpose":
                target, args = ops.transpose.int, (Ref(after), *rest)
            elif kind == "t":
                target, args = ops.t.default, (Ref(after),)
            elif kind == "permute":
                rank = len(rest[0])
                order = [int(d) % rank for d in rest[0]]
                target = ops.permute.default
                args = (Ref(after), [order.index(d) for d in range(rank)])
            elif kind in ("detach", "alias"):
                self._rename(base, after)
                return
        else:
            self._refuse(node, other, f"{view.op} cannot be undone")
        name = f"{node.name}:{base}"
        self._emit(Node(name, target, args, {}, self.shapes[base]))
        self._rename(base, name)

    def _refuse(self, node: Node, other: str, why: str) -> None:
        message = (
            f"{node.target} ({node.name}) changes a tensor in place, and {other!r}, another name "
            f"for the same memory, is read after ({why}); use an operation that returns a new "
            "tensor"
        )
        raise ValueError(message)

    def _emit(self, node: Node) -> None:
        self.nodes.append(node)
        if node.shape is not None:
            self.shapes[node.name] = node.shape

    def _rename(self, name: str, value: str) -> None:
        """``name``, and what operations in place on it returned, have a value from now on."""
        first = self._same.get(name, name)
        for own in [first, *(n for n, of in self._same.items() if of == first)]:
            self.names[own] = value

    def _chain(self, name: str) -> Iterator[str]:
        """The name, what it is a view of, and so on to the memory's first name."""
        while True:
            name = self._same.get(name, name)
            yield name
            if name not in self._views:
                return
            name = _source(self._views[name]) or ""

    def _way(self, name: str, apart: str | None = None) -> list[Node]:
        """The views that lead to a name, from the memory's first name or ``apart``, last first."""
        chain = list(itertools.takewhile(lambda n: n != apart, self._chain(name)))
        return [self._views[n] for n in chain if n in self._views]

    def _apart(self, changed: str, later: Sequence[str]) -> str | None:
        """What may be a copy or a view of what nobody reads any more: then it does not matter."""
        for name in reversed(list(self._chain(changed))):
            view = self._views.get(name)
            if view is None or view.op.removeprefix("aten.") not in _MAYBE:
                continue
            if self._root(name) in self._made and all(name in self._chain(n) for n in later):
                return name
        return None

    def _root(self, name: str) -> str:
        return list(self._chain(name))[-1]

    def _family(self, root: str) -> list[str]:
        """Names for the same memory so far."""
        members = [n for n in self._views if self._root(n) == root and n not in self._same]
        return [root, *members]

    def _read_after(self, name: str, index: int) -> bool:
        own = [name, *(n for n, of in self._same.items() if of == name)]
        return any(self._last.get(n, -1) > index for n in own)


def _source(node: Node) -> str | None:
    """What an operation's first argument is, if it is a value."""
    first = node.args[0] if node.args else None
    return first.name if isinstance(first, Ref) else None


def _is_view(node: Node) -> bool:
    if node.schema is None:
        return getattr(node.target, "__name__", "") == "getitem"
    declared = any(r.alias_info is not None for r in node.schema.returns)
    return declared or node.op.removeprefix("aten.") in _MAYBE


def _whole(view: Node) -> bool:
    """Whether a slice of all elements takes them one by one."""
    return int(view.argument(4, "step", 1)) == 1


def _pure(node: Node) -> Any:
    """The functional form of an operation in place."""
    name = node.op.removeprefix("aten.")
    overload = getattr(
        getattr(torch.ops.aten, name.removesuffix("_"), None),
        node.target._overloadname,  # type: ignore[attr-defined]
        None,
    )
    if not name.endswith("_") or overload is None:
        why = "changes a tensor in place and has no other form"
        if random_draw(node):
            why = "draws random numbers; a model must give the same output for the same input"
        message = f"the model uses {node.target} ({node.name}), which {why}"
        raise ValueError(message)
    if dataclasses.is_dataclass(node.target):  # under autocast
        return dataclasses.replace(node.target, target=overload)  # type: ignore[type-var]
    return overload
