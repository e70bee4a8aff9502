"""The attention of a program: from what writes queries, keys and values to what is made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ccamerge.graph.rules import operation
from ccamerge.graph.tracing.program import Node, Program, Ref, made_of

_SCALED = "aten.scaled_dot_product_attention"

_SOFTMAX = ("aten.softmax", "aten._softmax", "aten._safe_softmax")

_CONTRACTIONS = ("aten.matmul", "aten.bmm", "aten.mm", "aten.einsum", "aten.baddbmm")

_WEIGHTS = {"aten.addmm": 2, "aten.matmul": 1, "aten.mm": 1}
"""The argument that is the weight, of operations that are linear in one of their arguments."""


@dataclasses.dataclass(frozen=True)
class Core:
    """Attention as a function of what three linear operations write, some of which may be one.

    ``queries``, ``keys`` and ``values`` are the names of these operations, ``mixed`` is that of the
    sum over positions, and ``out`` of its features laid out as whoever reads them wants them, on
    ``axis``.
    ``read`` has, for queries, keys and values, what attention multiplies. ``nodes`` are the
    operations in between, in order; ``sides`` the other values that they read.
    """

    queries: str
    keys: str
    values: str
    mixed: str
    out: str
    axis: int
    read: tuple[str, str, str]
    nodes: tuple[Node, ...]
    sides: tuple[str, ...]

    @property
    def writers(self) -> tuple[str, ...]:
        """Each operation that writes something once."""
        return tuple(dict.fromkeys((self.queries, self.keys, self.values)))


def attends(program: Program) -> bool:
    """Whether there may be attention in a program."""
    return any(node.op in (_SCALED, *_SOFTMAX) for node in program.nodes)


def cores_of(program: Program) -> list[Core]:
    """All that is recognised as attention, in the order of the program.

    Softmax of products of two values, times a third, or torch's own operator; each of the three
    from one linear operation, and nothing in between used by anything else.
    """
    search = _Search(program)
    found = (search.core(node) for node in program.nodes)
    return [core for core in found if core is not None]


class _Search:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._nodes = {node.name: node for node in program.nodes}
        self._order = {node.name: index for index, node in enumerate(program.nodes)}
        self._users = program.users()
        self._weights = program.of_parameters

    def core(self, node: Node) -> Core | None:
        """The attention of which a node is the softmax, or all."""
        read: Sequence[Any]
        if node.op == _SCALED:
            read, mixed = node.args[:3], node
        elif node.op in _SOFTMAX and isinstance(node.args[0], Ref):
            parts = self._around(node)
            if parts is None:
                return None
            read, mixed = parts
        else:
            return None
        if not all(isinstance(argument, Ref) for argument in read):
            return None
        names = tuple(argument.name for argument in read)
        writers = [self._writer(name) for name in names]
        if None in writers:
            return None
        return self._between([str(name) for name in writers], mixed.name, names)

    def _around(self, softmax: Node) -> tuple[Sequence[Ref], Node] | None:
        """Queries and keys whose products a softmax is of, values that it weighs, their sum."""
        products = self._products(softmax.args[0].name)
        mixed = self._next(softmax.name, _CONTRACTIONS)
        if len(products) != 1 or mixed is None:
            return None
        scores = self._nodes[products.pop()]
        weighed, before = self._operands(mixed), self._operands(scores)
        if len(weighed) != 2 or len(before) != 2:
            return None
        at = [self._leads(softmax.name, operand.name) for operand in weighed]
        if sum(at) != 1:
            return None
        return (*before, weighed[1 - at.index(True)]), mixed

    def _operands(self, node: Node) -> list[Ref]:
        """What a product of two values multiplies."""
        given = node.args[1] if node.op == "aten.einsum" else node.args[:2]
        given = node.args[1:3] if node.op == "aten.baddbmm" else given
        found = [a for a in given if isinstance(a, Ref) and a.name not in self._weights]
        return found if len(found) == len(given) else []

    def _products(self, name: str) -> list[str]:
        """The products of two values that scores are made of."""

        def known(node: Node) -> bool:
            return node.scalar or node.name in self._weights or self._writes(node)

        def multiplies(node: Node) -> bool:
            return not known(node) and node.op in _CONTRACTIONS and bool(self._operands(node))

        found = made_of([name], self._nodes, lambda node: known(node) or multiplies(node))
        return [n for n in found if n in self._nodes and multiplies(self._nodes[n])]

    def _next(self, name: str, ops: Sequence[str]) -> Node | None:
        """The first operation of some kinds after a value that is otherwise only moved."""
        while (user := self._only_reader(name)) is not None:
            if user.op in ops:
                return user
            if not operation(user).move:
                return None
            name = user.name
        return None

    def _readers(self, name: str) -> list[Node]:
        """The operations that read more of a value than its size."""
        return [user for user in self._users.get(name, []) if not user.scalar]

    def _only_reader(self, name: str) -> Node | None:
        """The one operation that reads a value; None of several, or if the network returns it."""
        readers = self._readers(name)
        return readers[0] if len(readers) == 1 and name not in self._program.outputs else None

    def _leads(self, start: str, name: str) -> bool:
        """Whether a value is another one, moved."""
        while name != start:
            node = self._nodes.get(name)
            if node is None or not operation(node).move or not isinstance(node.args[0], Ref):
                return False
            name = node.args[0].name
        return True

    def _writes(self, node: Node) -> bool:
        """Whether an operation is linear in a weight."""
        at = 1 if operation(node).linear else _WEIGHTS.get(node.op)
        if at is None or len(node.args) <= at or not isinstance(node.args[at], Ref):
            return False
        return node.args[at].name in self._weights

    def _writer(self, name: str) -> str | None:
        """The one linear operation that a value comes from; None if there are more, or none."""
        found = made_of([name], self._nodes, lambda node: node.scalar or self._writes(node))
        writers = [n for n in found if n in self._nodes and self._writes(self._nodes[n])]
        return writers[0] if len(writers) == 1 else None

    def _between(self, writers: list[str], mixed: str, read: tuple[str, ...]) -> Core | None:
        """The core, if nothing reads what is in it but itself."""
        out = self._laid_out(mixed)
        last = self._order[out]
        after, pending = set(writers), list(writers)
        while pending:
            for user in self._users.get(pending.pop(), []):
                if user.name not in after and self._order[user.name] <= last and not user.scalar:
                    after.add(user.name)
                    pending.append(user.name)
        found = made_of([out], self._nodes, lambda n: n.name in writers or n.name not in after)
        inside = {out} | (found & after - set(writers))
        closed = {*inside, *writers} - {out}
        for name in closed:
            used = any(user.name not in inside for user in self._readers(name))
            if used or name in self._program.outputs:
                return None
        nodes = sorted((self._nodes[name] for name in inside), key=lambda n: self._order[n.name])
        refs = dict.fromkeys(ref for node in nodes for ref in node.refs())
        sides = tuple(ref for ref in refs if ref not in closed)
        queries, keys, values = writers
        assert len(read) == 3
        return Core(queries, keys, values, mixed, out, self._axis(out), read, tuple(nodes), sides)

    def _axis(self, out: str) -> int:
        """Where features lie: on the second axis of what convolutions read, else on the last."""
        images = any(user.op.startswith("aten.conv") for user in self._users.get(out, []))
        return 1 if images else len(self._nodes[out].shape or ()) - 1

    def _laid_out(self, name: str) -> str:
        """The value after all that only moves elements and is its only reader."""
        while (user := self._only_reader(name)) is not None:
            if not operation(user).move or user.shape is None:
                break
            name = user.name
        return name
