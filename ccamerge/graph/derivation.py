"""The derivation of a model's feature spaces from its program, by the rules of its operations."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ccamerge.graph import axes as ax
from ccamerge.graph.axes import Axis, Basis
from ccamerge.graph.facts import Facts, Limit, Use
from ccamerge.graph.folds import Fold
from ccamerge.graph.groups import FIXED, GENERAL, PERMUTATION, Group
from ccamerge.graph.rules import operation
from ccamerge.graph.space import Role, Slot, Space, Spaces, Tap
from ccamerge.graph.tracing.program import Node, Program


class Derivation:
    """The program walked once: rules fill in the axes of every value, and from them come spaces.

    Parameters
    ----------
    program : the operations
    frozen : parameters and buffers that no map may touch (whole numbers), and why
    """

    def __init__(self, program: Program, frozen: Mapping[str, str] | None = None) -> None:
        self.program = program
        self.facts = Facts(program)
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
        for node in program.nodes:
            self._visit(node)
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
            facts.sources[name] = [[ax.fresh(n, (key, i)) for i, n in enumerate(shape)]]
            facts.static.add(name)
        elif name in self.program.inputs or name in self.program.constants:
            facts.axes[name] = [ax.inert(size) for size in shape]
            if name in self.program.constants:
                facts.static.add(name)

    # The walk ------------------------------------------------------------------------------

    def _leaves(self, name: str) -> list[Axis]:
        found = self.facts.axes.get(name, [])
        return [a for x in found for a in (x if isinstance(x, list) else [x])]

    def _visit(self, node: Node) -> None:
        operands = [r for r in dict.fromkeys(node.refs()) if r in self.facts.axes]
        if all(r in self.facts.static for r in operands):
            self.facts.static.add(node.name)
        if not operands and operation(node).rule is None:
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
        for key, axes in self.facts.own.items():
            for dim, axis in enumerate(axes):
                if (key, dim) not in known:
                    ax.pin(axis, f"{key} reaches it along axis {dim} by no operation that is known")

    def _keep_one_part(self) -> None:
        """Of a basis that a view has made a product, align the largest part alone.

        Features of one part are found by their values over all of the other: where both may be
        reordered, neither is found.
        """
        for segment in (s for own in self.facts.own.values() for a in own for s in ax.resolve(a)):
            free = [f for f in segment if isinstance(f, Basis) and f.piece and not f.pins]
            for basis in sorted(free, key=lambda f: f.size)[:-1]:
                ax.pin(((basis,),), "groups of features, whose order stays")

    # The result ----------------------------------------------------------------------------

    def finish(self, folds: tuple[Fold, ...], unfolded: Program) -> Spaces:
        """Collect bases into spaces once every equation is known."""
        order: dict[Basis, None] = {}
        taps: dict[Basis, list[Tap]] = {}
        slots: dict[Basis, dict[Slot, None]] = {}
        users = self.program.users()
        for node in self.program.nodes:
            for basis, tap in self._taps(node, users.get(node.name, [])):
                order.setdefault(basis)
                taps.setdefault(basis, []).append(tap)
        for basis, tap in self._views_of_parts():
            if basis not in taps:
                order.setdefault(basis)
                taps[basis] = [tap]
        for use in self.facts.uses:
            for basis, slot in self._slots(use):
                order.setdefault(basis)
                slots.setdefault(basis, {}).setdefault(slot)
        limits = self._table(self.facts.limits)
        remarks = self._table(self.facts.remarks)
        effects = self._table(self.facts.effects)
        open_spaces: list[Space] = []
        fixed: list[Space] = []
        names: set[str] = set()
        for basis in order:
            own = tuple(slots.get(basis, {}))
            if basis.idle and not own:
                continue  # repetitions of one element
            reasons = list(dict.fromkeys(basis.pins))
            roles = {s.role for s in own}
            if not reasons and not ({Role.WRITE} <= roles and Role.READ in roles):
                reasons.append("written or read by no parameter")
            elif not reasons and basis not in taps:
                reasons.append("its features are never computed: it lies between parameters")
            limited = limits.get(basis, {})
            notes = [limit.why for limit in limited] + (tied := _tied(own))
            notes = [*dict.fromkeys(notes), *remarks.get(basis, {})]
            groups = [limit.group for limit in limited] + [PERMUTATION] * len(tied)
            group = _meet(GENERAL, groups)
            exact = _meet(group, effects.get(basis, {}))
            if reasons:
                group, exact, notes = FIXED, FIXED, reasons
            space = Space(
                _name(own, taps.get(basis, []), names),
                basis.size,
                group,
                exact,
                tuple(notes),
                own,
                tuple(taps.get(basis, [])),
            )
            (fixed if reasons else open_spaces).append(space)
        pinned = self._explained((*open_spaces, *fixed), fixed)
        return Spaces(self.program, unfolded, folds, tuple(open_spaces), tuple(fixed), pinned)

    def _table(self, records: Sequence[tuple[list[Axis], Any]]) -> dict[Basis, dict[Any, None]]:
        table: dict[Basis, dict[Any, None]] = {}
        for axes, value in records:
            for axis in axes:
                for basis in ax.bases(axis):
                    table.setdefault(basis, {}).setdefault(value)
        return table

    def _views_of_parts(self) -> Iterator[tuple[Basis, Tap]]:
        """Taps of features that stand alone only where a view shows a product of them as axes."""
        for node in self.program.nodes:
            if operation(node).move and node.name not in self.facts.static and node.real:
                yield from self._alone(node, "activation")

    def _taps(self, node: Node, users: list[Node]) -> list[tuple[Basis, Tap]]:
        if node.shape is None or operation(node).move or node.name in self.facts.static:
            return []
        if node.op == "getitem" and not users and node.name not in self.program.outputs:
            return []  # one of several results, which nobody wants
        kind = self._kind(node) if node.real else None
        reduced = bool(users) and all(operation(user).reduces for user in users)
        statistic = operation(node).magnitude and reduced
        if kind is None or statistic:  # squares of which only a mean is taken: nobody's features
            return []
        return list(self._alone(node, kind))

    def _alone(self, node: Node, kind: str) -> Iterator[tuple[Basis, Tap]]:
        """Bases that are a whole segment of an axis of a tensor, and where."""
        axes = self.facts.axes.get(node.name, []) if node.shape is not None else []
        for dim, axis in enumerate(axes):
            start = 0
            for part, segment in enumerate(ax.resolve(axis)):  # type: ignore[arg-type]
                if len(segment) == 1 and isinstance(segment[0], Basis):
                    tap = Tap(node.name, kind, dim, start, segment[0].size, part)
                    yield segment[0], tap
                start += ax.segment_size(segment)

    def _kind(self, node: Node) -> str | None:
        return operation(node).tap or ("activation" if node.name in self.facts.active else None)

    def _slots(self, use: Use) -> list[tuple[Basis, Slot]]:
        found, start = [], 0
        axis = self.facts.own[use.parameter][use.dim] if use.axis is None else use.axis
        for segment in ax.resolve(axis):
            sizes = [f.size if isinstance(f, Basis) else f for f in segment]
            for i, factor in enumerate(segment):
                if isinstance(factor, Basis):
                    outer, inner = math.prod(sizes[:i]), math.prod(sizes[i + 1 :])
                    slot = Slot(use.parameter, use.dim, use.role, start, outer, inner, use.rows)
                    found.append((factor, slot))
            start += math.prod(sizes)
        return found

    def _explained(
        self, spaces: tuple[Space, ...], fixed: list[Space]
    ) -> dict[tuple[str, int], str]:
        """A reason for every axis of every parameter that no open space holds."""
        closed = {s.name for s in fixed}
        held: dict[tuple[str, int], list[Space]] = {}
        for space in spaces:
            for slot in space.slots:
                held.setdefault((slot.parameter, slot.dim), []).append(space)
        pinned = dict(self.facts.kept)
        for key, axes in self.facts.own.items():
            for dim, axis in enumerate(axes):
                owners = held.get((key, dim), [])
                if any(s.name not in closed for s in owners) or (key, dim) in pinned:
                    continue
                reasons = [n for s in owners for n in s.notes]
                reasons += ax.reasons(axis)
                if ax.axis_size(axis) == 1:
                    reasons.append("a single element")
                if reasons:
                    pinned[key, dim] = "; ".join(dict.fromkeys(reasons))
        return pinned


def _meet(largest: Group, groups: Iterable[Group]) -> Group:
    """What all of some groups allow."""
    return functools.reduce(operator.and_, groups, largest)


def _tied(slots: tuple[Slot, ...]) -> list[str]:
    """A tied parameter that writes and reads along an axis: T^T W = W T^{-T} makes T orthogonal."""
    roles: dict[tuple[str, int], set[Role]] = {}
    for slot in slots:
        roles.setdefault((slot.parameter, slot.dim), set()).add(slot.role)
    return [
        f"{parameter} (tied) writes and reads it along axis {dim}"
        for (parameter, dim), found in roles.items()
        if {Role.WRITE, Role.READ} <= found
    ]


def _name(slots: tuple[Slot, ...], taps: list[Tap], taken: set[str]) -> str:
    """After the first parameter that writes the space, else after its first tap."""
    owners = [s.parameter for s in slots if s.role is Role.WRITE] or [s.parameter for s in slots]
    base = owners[0].split(":")[0] if owners else taps[0].node
    for suffix in (".weight", ".bias"):
        base = base.removesuffix(suffix)
    if owners and all(s.role is Role.READ for s in slots):
        base += ".input"
    name, count = base, 1
    while name in taken:
        count += 1
        name = f"{base}#{count}"
    taken.add(name)
    return name
