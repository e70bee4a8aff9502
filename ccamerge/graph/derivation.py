"""The derivation of a model's feature spaces from its program, by the rules of its operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ccamerge.graph import axes as ax
from ccamerge.graph.attention.cores import Core
from ccamerge.graph.attention.facts import Attended, visit
from ccamerge.graph.attention.heads import Heads
from ccamerge.graph.axes import Axis, Basis
from ccamerge.graph.facts import Facts, Limit
from ccamerge.graph.groups import PERMUTATION
from ccamerge.graph.parts import IN_ORDER, Part, parts_of
from ccamerge.graph.rules import operation
from ccamerge.graph.tracing.program import Node, Program

UNUSED = "no output depends on it"
"""Why a parameter is left alone that the network has, and does not use."""


class Derivation:
    """The program walked once: rules fill in the axes of every value.

    Parameters
    ----------
    program : the operations
    frozen : parameters and buffers that no map may touch (whole numbers), and why
    attention : cores of the program, with what they allow
    """

    def __init__(
        self,
        program: Program,
        frozen: Mapping[str, str] | None = None,
        attention: Sequence[tuple[Core, Heads]] = (),
    ) -> None:
        self.program = program
        self.facts = Facts(program)
        self._outs = {core.out: (core, heads) for core, heads in attention}
        self._within = {n.name for core, _ in attention for n in core.nodes} - self._outs.keys()
        self._parts = {n: p for n, p in parts_of(program).items() if p.key not in (frozen or {})}
        self.attended: list[Attended] = []
        for name, shape in program.shapes.items():
            self._begin(name, shape, frozen or {})
        for key, limit in program.limits.items():
            if key not in self.facts.own:
                continue
            own, why = self.facts.own[key], f"{key}: {limit.why}"
            if limit.movable:
                self.facts.limits.append((list(own), Limit(PERMUTATION, why)))
            for axis in () if limit.movable else own:
                ax.pin(axis, why)
        wanted = _wanted(program)
        idle = {node.name for node in program.nodes} - wanted
        for key in set(program.parameters.values()).difference(
            key for name, key in program.parameters.items() if name in wanted
        ):
            self.facts.kept |= {(key, i): UNUSED for i in range(len(self.facts.own[key]))}
        for node in program.nodes:
            if node.name not in idle:
                self._visit(node)
            elif node.shape is not None:
                self.facts.axes[node.name] = [ax.inert(size) for size in node.shape]
        for name in program.outputs:
            for axis in self._leaves(name):
                ax.pin(axis, "network output")
        self._pin_unknown_uses()
        self._keep_one_part()

    def _begin(self, name: str, shape: tuple[int, ...], frozen: Mapping[str, str]) -> None:
        """The axes of a value that is there before any operation: a parameter, or an input."""
        facts, key = self.facts, self.program.parameters.get(name)
        if key is not None:
            if key not in facts.own:
                fixed = key in frozen
                facts.own[key] = [
                    ax.inert(size) if fixed or size == 1 else ax.fresh(size) for size in shape
                ]
                if fixed:
                    facts.kept.update({(key, i): frozen[key] for i in range(len(shape))})
            facts.axes[name] = facts.own[key]
            facts.sources[name] = [[ax.fresh(n, (key, i, None)) for i, n in enumerate(shape)]]
            facts.static.add(name)
        elif name in self.program.inputs or name in self.program.constants:
            facts.axes[name] = self._along(name, shape)
            if name in self.program.constants:
                facts.static.add(name)

    def _along(self, name: str, shape: tuple[int, ...]) -> list[Axis]:
        """The axes of an input or a constant: it may be the same for all features that it meets."""
        value = self.program.constants.get(name)
        if not isinstance(value, Tensor) or value.is_meta or not value.is_floating_point():
            return [ax.inert(size) for size in shape]
        same = [bool((value == value.narrow(i, 0, min(n, 1))).all()) for i, n in enumerate(shape)]
        axes = [ax.idle(n) if one else ax.inert(n) for n, one in zip(shape, same, strict=True)]
        if bool(value.any()):
            why = f"{name}: one number for many features"
            self.facts.limits.append((axes, Limit(PERMUTATION, why)))
        return axes

    def _take(self, node: Node, part: Part) -> None:
        """The axes of a part of a parameter, which are its own."""
        facts, shape = self.facts, node.shape or ()
        own = [ax.fresh(size) if size > 1 else ax.inert(1) for size in shape]
        facts.parts[part.key, part.row] = facts.axes[node.name] = own
        origins = [(part.key, dim, part.row) for dim in range(1, len(shape) + 1)]
        facts.sources[node.name] = [[ax.fresh(n, o) for n, o in zip(shape, origins, strict=True)]]
        facts.static.add(node.name)
        facts.kept[part.key, 0] = IN_ORDER

    def _leaves(self, name: str) -> list[Axis]:
        found = self.facts.axes.get(name, [])
        return [a for x in found for a in (x if isinstance(x, list) else [x])]

    def _visit(self, node: Node) -> None:
        if node.name in self._within:
            if node.shape is not None:
                self.facts.axes[node.name] = [ax.inert(size) for size in node.shape]
            return
        if node.name in self._outs:
            core, heads = self._outs[node.name]
            found = visit(core, heads, node, self.facts)
            if found is not None:
                self.attended.append(found)
            return
        if node.name in self._parts:
            self._take(node, self._parts[node.name])
            return
        operands = [r for r in dict.fromkeys(node.refs()) if r in self.facts.axes]
        if all(r in self.facts.static for r in operands):
            self.facts.static.add(node.name)
        if not operands and (operation(node).rule is None or node.shape == ()):
            if node.shape is not None:
                self.facts.axes[node.name] = [ax.inert(size) for size in node.shape]
                self.facts.sources[node.name] = []
            return
        if node.op == "getitem":
            picked = self.facts.axes[operands[0]][node.args[1]]
            self.facts.axes[node.name] = picked if isinstance(picked, list) else [picked]
            if operands[0] in self.facts.sources:
                self.facts.sources[node.name] = [
                    source[node.args[1]] for source in self.facts.sources[operands[0]]
                ]
            if operands[0] in self.facts.active:
                self.facts.active.add(node.name)
            return
        result = self._applied(node)
        if result is None or not self._known(node, operands):
            known = operation(node).rule or operation(node).move
            why = f"{node.op} in an unknown form" if known else f"no rule for {node.op}"
            if result is not None:
                why = f"no rule for {node.op} of parameters"
            for name in operands:
                for axis in self._leaves(name):
                    ax.pin(axis, f"{why} ({node.name})")
            result = [ax.inert(size) for size in node.shape] if node.shape is not None else []
            self.facts.sources[node.name] = []
        if node.shape is not None and [ax.axis_size(a) for a in result] != list(node.shape):  # type: ignore[arg-type]
            message = f"rule for {node.op} gave axes {result} for shape {node.shape}"
            raise AssertionError(message)
        if result:
            self.facts.axes[node.name] = result

    def _applied(self, node: Node) -> list[Axis] | list[list[Axis]] | None:
        """The axes of a node's result by its rule; None if there is none that fits."""
        rule, move = operation(node).rule, operation(node).move
        if move is None:
            return rule(node, self.facts) if rule is not None else None
        if not self.facts.is_tensor(node.args[0]):
            return None
        if node.name in self.facts.static:
            moved = [move(node, source) for source in self.facts.sources_of(node.args[0])]
            if None not in moved:
                self.facts.sources[node.name] = moved  # type: ignore[assignment]
        result = move(node, self.facts.axes_of(node.args[0]))
        return None if result is None else result

    def _known(self, node: Node, operands: list[str]) -> bool:
        """Whether it is known where the parameters in a static value are."""
        if node.name not in self.facts.static or node.name in self.facts.sources:
            return True
        return not any(self.facts.sources.get(r) for r in operands)

    def _pin_unknown_uses(self) -> None:
        """Pin what a parameter shares a basis with in an axis that has no role there."""
        known = {(use.parameter, use.dim) for use in self.facts.uses} | self.facts.kept.keys()
        rows = {(use.parameter, use.dim, (use.rows or (None,))[0]) for use in self.facts.uses}
        why = "{} reaches it along axis {} by no operation that is known"
        for key, axes in self.facts.own.items():
            for dim, axis in enumerate(axes):
                if (key, dim) not in known:
                    ax.pin_free(axis, why.format(key, dim))
        for (key, row), axes in self.facts.parts.items():
            for dim, axis in enumerate(axes, start=1):
                if (key, dim, row) not in rows and (key, dim) not in self.facts.kept:
                    ax.pin_free(axis, why.format(key, dim))

    def _keep_one_part(self) -> None:
        """Of a basis that a view has made a product, align the largest part alone.

        Features of one part are found by their values over all of the other: where both may be
        reordered, neither is found.
        """
        every = (*self.facts.own.values(), *self.facts.parts.values())
        for segment in (s for own in every for a in own for s in ax.resolve(a)):
            free = [f for f in segment if isinstance(f, Basis) and f.piece and not f.pins]
            for basis in sorted(free, key=lambda f: f.size)[:-1]:
                ax.pin(((basis,),), "groups of features, whose order stays")


def _wanted(program: Program) -> set[str]:
    """Values, parameters among them, of which an output needs more than sizes."""
    wanted = set(program.outputs)
    for node in reversed(program.nodes):
        if node.name in wanted and not operation(node).sizes:
            wanted.update(node.refs())
    return wanted
